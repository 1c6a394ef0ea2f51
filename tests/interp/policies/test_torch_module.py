"""A module of the user's own plays, remembers, is recorded and edited; what it may not do is refused by name."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.policies import factories
from interp.policies.bundle import PolicyBundle
from interp.policies.policy import Policy
from interp.policies.policy_file import PolicyFile
from interp.policies.recognition import recognise
from interp.policies.taps import Edit, RecordingTap, RowEdits, untapped
from interp.policies.torch_module import TorchModuleArchitecture, TorchModulePolicy
from interp.rollout import Capture, Trial, roll
from interp.worlds.gymnasium import GymnasiumFactory
from interp.worlds.world import WorldSpec
from tests.fakes.modules import ACTIONS, HIDDEN, MEMORIES, OBSERVATIONS, Remembering, seeded

NAME = "planted:make"
ROWS, STEPS = 4, 6
CARTPOLE = GymnasiumFactory.load("gym:CartPole-v1?max_steps=20")
EVERY_KIND = pytest.mark.parametrize("kind", MEMORIES)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Allows a function of the test under a name, as if it had been imported."""

    def plant(make: Callable[[], Any], name: str = NAME) -> str:
        monkeypatch.setitem(factories._allowed, name, make)
        return name

    return plant


def file_of(module: nn.Module, **changes: Any) -> PolicyFile:
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return PolicyFile(format="state-dict", sha256="0" * 64, tensors=tensors, **changes)


@pytest.fixture
def opened(plant) -> Callable[..., TorchModulePolicy]:
    """The policy of a planted module, by way of a file and a bundle."""

    def opened(module: nn.Module, make: Callable[[], Any] | None = None) -> TorchModulePolicy:
        name = plant(make or (lambda: _copy(module)))
        bundle = recognise(file_of(module), factories=[name], world=CARTPOLE.spec)
        return bundle.open()  # pyright: ignore[reportReturnType]

    return opened


def _copy(module: nn.Module) -> nn.Module:
    """Another of the same kind, with other weights."""
    other = deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    return other


def observations() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(STEPS, ROWS, OBSERVATIONS)).astype(np.float32)


def refusal(module: nn.Module, opened, make: Callable[[], Any] | None = None) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the caller looks at what it says
        opened(module, make)
    return str(error.value)


# --- memory


@EVERY_KIND
def test_memory_logits_and_value_are_those_of_torch_over_the_whole_sequence(kind, opened) -> None:
    module = seeded(kind)
    policy = opened(module)
    assert isinstance(policy, Policy)
    state = policy.initial_state(ROWS)
    reference = module.states_over_time(torch.from_numpy(observations()))
    for observation_RD, (h_RD, c_RD) in zip(observations(), reference, strict=True):
        tap = RecordingTap(policy.sites)
        step = policy.step(observation_RD, state, tap)
        state = step.state
        np.testing.assert_allclose(tap.activations["memory.h"], h_RD, atol=1e-5)
        np.testing.assert_allclose(tap.activations["memory.y"], h_RD, atol=1e-5)
        if c_RD is not None:
            np.testing.assert_allclose(tap.activations["memory.c"], c_RD, atol=1e-5)
        np.testing.assert_allclose(step.logits_RN, module.actor(h_RD), atol=1e-5)
        np.testing.assert_allclose(step.value_R, module.critic(h_RD)[:, 0], atol=1e-5)
    assert ("memory.c" in policy.sites) == ("lstm" in kind)


@EVERY_KIND
def test_every_site_is_tapped_once_with_its_width(kind, opened) -> None:
    policy = opened(seeded(kind))
    seen = []

    def tap(site: str, x_RD: Tensor, /) -> Tensor:
        seen.append((site, x_RD.shape[1]))
        return x_RD

    policy.step(observations()[0], policy.initial_state(ROWS), tap)
    assert seen == list(policy.sites.items())


def test_the_sites_of_one_layer(opened) -> None:
    assert opened(seeded("lstm")).sites == {
        "encoder.0": 6,
        "encoder.1": 6,
        "encoder": 6,
        "memory.c": HIDDEN,
        "memory.h": HIDDEN,
        "memory.y": HIDDEN,
        "actor": ACTIONS,
        "critic": 1,
        "logits": ACTIONS,
        "value": 1,
    }


def test_layers_below_the_last_have_their_number_in_the_name(opened) -> None:
    module = seeded("lstm, two layers")
    policy = opened(module)
    tap = RecordingTap(policy.sites)
    state = policy.step(observations()[0], policy.initial_state(ROWS), tap).state
    x_1RD = module.encoder(torch.from_numpy(observations()[:1]))
    _, (h_LRD, c_LRD) = module.memory(x_1RD)
    for site, expected_RD in (
        ("memory.0.h", h_LRD[0]),
        ("memory.0.c", c_LRD[0]),
        ("memory.h", h_LRD[1]),
        ("memory.c", c_LRD[1]),
    ):
        np.testing.assert_allclose(tap.activations[site], expected_RD, atol=1e-6)
    assert [tensor.shape for tensor in state] == [(ROWS, HIDDEN)] * 4


def test_the_state_that_a_module_passes_or_keeps_is_replaced_by_the_one_held(opened) -> None:
    class Stateful(Remembering):
        state = None

        def recall(self, x: Tensor) -> Tensor:
            if self.state is None or self.state[0].shape[1] != len(x):
                self.state = (torch.zeros(1, len(x), HIDDEN), torch.zeros(1, len(x), HIDDEN))
            out, self.state = self.memory(x.unsqueeze(0), self.state)
            return out[0]

    module = Stateful()
    module.load_state_dict(seeded("lstm").state_dict())
    held, plain = opened(module), opened(seeded("lstm"))
    for observation_RD in observations()[:3]:  # every one is the first of an episode
        np.testing.assert_array_equal(
            held.step(observation_RD, held.initial_state(ROWS), untapped).logits_RN,
            plain.step(observation_RD, plain.initial_state(ROWS), untapped).logits_RN,
        )


@pytest.mark.parametrize("kind", ["lstm, two layers", "gru, two layers"])
def test_a_module_may_read_the_last_state_instead_of_the_output(kind, opened) -> None:
    class LastState(Remembering):
        def recall(self, x: Tensor) -> Tensor:
            _, state = self.memory(x.unsqueeze(0))
            return (state[0] if isinstance(state, tuple) else state)[-1]

    module = LastState(kind)
    module.load_state_dict(seeded(kind).state_dict())
    module.requires_grad_(False).eval()
    policy = opened(module)
    h_RD, _ = module.states_over_time(torch.from_numpy(observations()[:1]))[0]
    step = policy.step(observations()[0], policy.initial_state(ROWS), untapped)
    np.testing.assert_allclose(step.logits_RN, module.actor(h_RD), atol=1e-5)


# --- edits


def edit_of(site: str, width: int, dose: float = 1.0) -> Edit:
    direction_D = np.ones(width, np.float32)
    return Edit(
        site=site,
        mode="add",
        dose=dose,
        scale=0.5,
        write_D=direction_D,
        read_D=direction_D,
        read_bias=0.0,
        threshold=0.0,
    )


def logits_with(policy: TorchModulePolicy, edit: Edit) -> list[Tensor]:
    """Of three steps, the first of which is edited in row 2."""
    edits = RowEdits(ROWS, {edit.site: policy.sites[edit.site]})
    edits.set_row(2, [edit])
    state = policy.initial_state(ROWS)
    logits = []
    for t, observation_RD in enumerate(observations()[:3]):
        tap = RecordingTap((), edits.tile(0, ROWS)) if t == 0 else untapped
        step = policy.step(observation_RD, state, tap)
        logits.append(step.logits_RN)
        state = step.state
    return logits


@EVERY_KIND
@pytest.mark.parametrize(
    ("site", "now", "later"),
    [
        ("memory.h", True, True),
        ("memory.y", True, False),
        ("memory.c", False, True),
        ("memory.0.h", True, True),
        ("memory.0.c", False, True),
        ("encoder", True, True),
        ("actor", True, False),
        ("critic", False, False),
        ("logits", True, False),
    ],
)
def test_where_an_edit_reaches(kind, site, now, later, opened) -> None:
    policy = opened(seeded(kind))
    if site not in policy.sites:
        assert (".0." in site and "two layers" not in kind) or (".c" in site and "gru" in kind)
        return
    edit = edit_of(site, policy.sites[site])
    plain = logits_with(policy, edit_of(site, policy.sites[site], dose=0.0))
    changed = [
        (a != b).any(1).tolist() for a, b in zip(plain, logits_with(policy, edit), strict=True)
    ]
    assert changed == [[False, False, reached, False] for reached in (now, later, later)]


@EVERY_KIND
def test_a_dose_of_zero_changes_nothing_to_the_last_bit(kind, opened) -> None:
    policy = opened(seeded(kind))
    for site, width in policy.sites.items():
        edits = RowEdits(ROWS, {site: width})
        edits.set_row(2, [edit_of(site, width, dose=0.0)])
        state = edited_state = policy.initial_state(ROWS)
        for observation_RD in observations():
            tap = RecordingTap((), edits.tile(0, ROWS))
            plain = policy.step(observation_RD, state, untapped)
            edited = policy.step(observation_RD, edited_state, tap)
            state, edited_state = plain.state, edited.state
            assert torch.equal(plain.logits_RN, edited.logits_RN), site
            assert all(map(torch.equal, state, edited_state)), site


# --- outputs of submodules


def test_what_follows_in_place_does_not_change_what_was_recorded(opened) -> None:
    module = seeded("lstm")
    policy = opened(module)
    tap = RecordingTap(policy.sites)
    observation_RD = observations()[0].copy()
    policy.step(observation_RD, policy.initial_state(ROWS), tap)
    linear_RD = module.encoder[0](torch.from_numpy(observations()[0]))
    np.testing.assert_allclose(tap.activations["encoder.0"], linear_RD, atol=1e-6)
    np.testing.assert_allclose(tap.activations["encoder.1"], linear_RD.relu(), atol=1e-6)
    assert (linear_RD < 0).any()


def test_a_module_that_changes_its_observation_leaves_the_worlds_alone(opened) -> None:
    class InPlace(Remembering):
        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(observation.mul_(0.5))

    module = InPlace()
    observation_RD = observations()[0].copy()
    policy = opened(module)
    policy.step(observation_RD, policy.initial_state(ROWS), untapped)
    np.testing.assert_array_equal(observation_RD, observations()[0])


def test_only_what_is_one_row_for_each_row_and_called_once_is_a_site(opened) -> None:
    class Odd(Remembering):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Tanh()
            self.table = nn.Embedding(3, 5)
            """Three rows, as a batch of three would have."""
            self.pairs = nn.Unflatten(1, (2, 3))
            self.never = nn.Linear(2, 2)
            self.forgotten = nn.LSTM(2, 2)

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            x = self.pairs(self.twice(self.twice(self.encoder(observation)))).flatten(1)
            h = self.recall(x + self.table(torch.arange(3)).sum())
            return self.actor(h), self.critic(h)

    policy = opened(Odd())
    assert policy.sites.keys() == opened(seeded("lstm")).sites.keys()
    assert len(policy.initial_state(1)) == 2


def test_a_module_without_a_value_has_no_such_site_and_values_zero(opened) -> None:
    class Actor(Remembering):
        def forward(self, observation: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.actor(self.recall(self.encoder(observation)))

    policy = opened(Actor())
    assert "value" not in policy.sites
    assert "critic" not in policy.sites
    step = policy.step(observations()[0], policy.initial_state(ROWS), untapped)
    assert step.value_R.tolist() == [0] * ROWS


def test_a_token_world_is_shown_as_bytes(plant) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(256, 3)
            self.gru = nn.GRUCell(3, HIDDEN)
            self.head = nn.Linear(HIDDEN, 2)

        def forward(self, observation: Tensor) -> Tensor:
            assert observation.dtype == torch.uint8
            return self.head(self.gru(self.embed(observation[:, :, 1].int()).sum(1)))

    world = WorldSpec(
        name="tokens",
        num_agents=1,
        max_steps=5,
        action_names=("noop", "move"),
        observation_shape=(7, 3),
        observation_dtype="uint8",
    )
    bundle = recognise(file_of(Tokens()), factories=[plant(Tokens)], world=world)
    policy = bundle.open()
    assert policy.action_names == ("noop", "move")
    observation_R = np.random.default_rng(0).integers(0, 256, (ROWS, 7, 3), np.uint8)
    step = policy.step(observation_R, policy.initial_state(ROWS), untapped)
    assert step.logits_RN.shape == (ROWS, 2)
    with pytest.raises(ValueError, match=r"observes \[7, 3\] uint8, but the world shows \[4\]"):
        policy.step(observations()[0], policy.initial_state(ROWS), untapped)


# --- the rollout loop


def test_an_episode_does_not_depend_on_what_it_is_played_beside(opened) -> None:
    policy = opened(seeded("gru, two layers"))
    capture = Capture(sites=("encoder", "memory.h", "logits", "value"))
    trials = [Trial(env_seed=seed) for seed in range(4)]
    alone, together = (
        {one.index: one for one in roll(policy, CARTPOLE(number), trials, capture)}
        for number in (1, 3)
    )
    for index, episode in alone.items():
        for site in capture.sites:
            np.testing.assert_array_equal(
                episode.activations[site], together[index].activations[site]
            )


# --- what a module may not do


class Bidirectional(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(6, HIDDEN, bidirectional=True)


class Projected(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(6, HIDDEN, proj_size=3)


class PlainRnn(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.RNN(6, HIDDEN)


class _OwnLstm(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


class OwnForward(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.memory = _OwnLstm(6, HIDDEN)


class Twice(Remembering):
    def recall(self, x: Tensor) -> Tensor:
        return super().recall(x) + super().recall(x)


class Unbatched(Remembering):
    """torch reads [R, D] as one sequence of R steps."""

    def recall(self, x: Tensor) -> Tensor:
        return self.memory(x)[0]


class WrongAxis(Remembering):
    def recall(self, x: Tensor) -> Tensor:
        return self.memory(x.unsqueeze(1))[0].squeeze(1)


class Mixing(Remembering):
    def recall(self, x: Tensor) -> Tensor:
        return super().recall(x - x.mean(0))


class Noisy(Remembering):
    def recall(self, x: Tensor) -> Tensor:
        return super().recall(x + torch.randn_like(x))


class Counting(Remembering):
    count = 0

    def recall(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().recall(x * self.count)


class Learned(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.ones(2, 1, 1, HIDDEN))

    def recall(self, x: Tensor) -> Tensor:
        h, c = self.start.expand(2, 1, len(x), HIDDEN).contiguous()
        return self.memory(x.unsqueeze(0), (h, c))[0][0]


class Changing(Remembering):
    """Its small batches are not computed as its large ones."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.other = nn.GRUCell(6, HIDDEN)

    def forward(self, observation: Tensor) -> Any:
        change = self.change if len(observation) > 3 else ""
        x = self.encoder(observation)
        h = self.other(x) if change == "another layer" else self.recall(x)
        logits = self.actor(self.actor(h).sum() + h if change == "two calls" else h)
        if change == "no value":
            self.critic(h)
            return logits
        return logits, h[:, :1] if change == "no call" else self.critic(h)


class WideLogits(Remembering):
    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        logits, value = super().forward(observation)
        return torch.cat([logits, logits], 1), value


class StateSecond(Remembering):
    def forward(self, observation: Tensor) -> Any:
        h = self.recall(self.encoder(observation))
        return self.actor(h), (h, h)


class Failing(Remembering):
    def forward(self, observation: Tensor) -> Any:
        raise KeyError("observation.image")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Bidirectional, "memory has bidirectional=True, which is not supported"),
        (Projected, "memory has proj_size=3, which is not supported"),
        (PlainRnn, "memory is nn.RNN; use nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell"),
        (OwnForward, "memory is a _OwnLstm with a forward of its own"),
        (Twice, "recurrent layer memory was called twice in one step"),
        (Unbatched, "memory was given float32 [3, 6], wanted float32 [1, 3, 6], one step of every"),
        (WrongAxis, "memory was given float32 [3, 1, 6], wanted float32 [1, 3, 6], one step of"),
        (Mixing, "it mixes the rows of a batch"),
        (Noisy, "it gave two results for the same observations"),
        (Counting, "it gave two results for the same observations"),
        (Learned, "a learned initial memory is not supported"),
        (WideLogits, "returned logits float32 [3, 4], wanted float32 [3, 2]: one number per row"),
        (StateSecond, "it returned a tuple after the logits, where a value"),
        (Failing, "given observations [3, 4] torch.float32: KeyError: 'observation.image'"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(kind, wanted, opened) -> None:
    said = refusal(kind(), opened)
    assert wanted in said
    assert NAME in said


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("no call", "site critic was not computed in this step"),
        ("no value", "site value was not computed in this step"),
        ("two calls", "submodule actor was called twice in one step, once at first"),
        ("another layer", "recurrent layer other was called, though it was not at first"),
    ],
)
def test_a_module_whose_calls_change_is_stopped(change, wanted, opened) -> None:
    policy = opened(Changing(change))
    with pytest.raises(ValueError, match=wanted):
        policy.step(observations()[0], policy.initial_state(ROWS), untapped)


def test_a_recurrent_layer_alone_is_no_policy(opened) -> None:
    assert "is itself a recurrent layer, GRUCell" in refusal(nn.GRUCell(4, 2), opened)


def test_a_factory_that_fails_or_makes_something_else_is_refused(opened) -> None:
    module = seeded("lstm")
    assert "it returned a dict, wanted a torch.nn.Module" in refusal(module, opened, dict)
    said = refusal(module, opened, lambda: Remembering("perceptron"))
    assert f"factory {NAME}: called without arguments it fails: KeyError: 'perceptron'" in said


def test_dropout_and_batch_norm_are_in_evaluation_mode(opened) -> None:
    class Training(Remembering):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)
            self.drop = nn.Dropout(0.5)
            self.train()

        def recall(self, x: Tensor) -> Tensor:
            return super().recall(self.drop(self.norm(x)))

    assert {"norm", "drop"} <= opened(Training()).sites.keys()


# --- tensors


def test_a_tensor_that_is_missing_unknown_or_of_another_shape_is_named(plant) -> None:
    name = plant(Remembering)
    for change, wanted in (
        ({"actor.bias": None}, "missing actor.bias, unknown none"),
        ({"extra.weight": torch.zeros(2)}, "missing none, unknown extra.weight"),
        ({"actor.bias": torch.zeros(3)}, r"tensor actor.bias .* shape \[3\], wanted \[2\]"),
    ):
        file = file_of(seeded("lstm"))
        tensors = {name: one for name, one in {**file.tensors, **change}.items() if one is not None}
        with pytest.raises(ValueError, match=wanted):
            recognise(
                PolicyFile(format="state-dict", sha256="0" * 64, tensors=tensors),
                factories=[name],
                world=CARTPOLE.spec,
            )


class Tied(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.copy = nn.Linear(HIDDEN, ACTIONS)
        self.copy.weight = self.actor.weight


def test_tied_tensors_must_agree_in_the_file(plant, opened) -> None:
    policy = opened(Tied())
    bundle = PolicyBundle.of(policy.architecture, file_of(Tied()).tensors)
    assert bundle.untrained(1).open().sites == policy.sites
    file = file_of(Tied())
    file.tensors["copy.weight"].add_(1)
    with pytest.raises(ValueError, match=r"actor.weight and copy.weight are one .* but differ"):
        recognise(file, factories=[plant(Tied)], world=CARTPOLE.spec)


def test_an_untrained_copy_has_other_weights_the_same_every_time(plant) -> None:
    bundle = recognise(file_of(seeded("lstm")), factories=[plant(Remembering)], world=CARTPOLE.spec)
    assert bundle.untrained(1) == bundle.untrained(1)
    assert (
        len({bundle.policy_id, bundle.untrained(1).policy_id, bundle.untrained(2).policy_id}) == 3
    )


def test_opening_a_policy_draws_no_random_numbers_of_the_process(plant) -> None:
    file, name = file_of(seeded("lstm")), plant(Remembering)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    recognise(file, factories=[name], world=CARTPOLE.spec).open()
    assert torch.equal(torch.rand(1), expected)


# --- which factory


def test_a_factory_that_fits_goes_before_a_network_that_is_known(plant) -> None:
    class Known(nn.Module):
        """Its tensors are those of sb3-contrib's, what it computes is not."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm_actor = nn.LSTM(OBSERVATIONS, HIDDEN)
            self.action_net = nn.Linear(HIDDEN, ACTIONS)
            self.value_net = nn.Linear(HIDDEN, 1)

        def forward(self, observation: Tensor) -> Tensor:
            return self.action_net(-self.lstm_actor(observation[None])[0][0])

    file = file_of(Known())
    assert recognise(file).architecture["family"] == "sb3-recurrent"
    bundle = recognise(file, factories=[plant(Known)], world=CARTPOLE.spec)
    assert bundle.architecture["family"] == "torch-module"


def test_a_known_network_that_no_factory_fits_is_opened_with_a_warning(plant, caplog) -> None:
    module = nn.Module()
    module.lstm_actor = nn.LSTM(OBSERVATIONS, HIDDEN)
    module.action_net = nn.Linear(HIDDEN, ACTIONS)
    module.value_net = nn.Linear(HIDDEN, 1)
    bundle = recognise(file_of(module), factories=[plant(Remembering)], world=CARTPOLE.spec)
    assert bundle.architecture["family"] == "sb3-recurrent"
    assert "read as a policy of family sb3-recurrent" in caplog.text
    assert NAME in caplog.text


def test_two_factories_that_fit_are_not_chosen_between(plant) -> None:
    names = [plant(Remembering), plant(Mixing, "other:make"), plant(Remembering, "third:make")]
    file = file_of(seeded("lstm"))
    recognise(file, factories=names[:2], world=CARTPOLE.spec)
    with pytest.raises(ValueError, match=r"planted:make and third:make have the same tensors"):
        recognise(file, factories=names, world=CARTPOLE.spec)


def test_a_factory_wants_a_world(plant) -> None:
    with pytest.raises(ValueError, match=r"planted:make .* --world"):
        recognise(file_of(seeded("lstm")), factories=[plant(Remembering)])


def test_an_architecture_survives_json_and_refuses_nonsense(opened) -> None:
    architecture = opened(seeded("lstm")).architecture
    content = architecture.to_json()
    assert TorchModuleArchitecture.from_json(content) == architecture
    for change, wanted in (
        ({"factory": "os:system; rm"}, "wanted package.module:callable"),
        ({"factory": 3}, "factory"),
        ({"family": "other"}, "family 'other'"),
        ({"width": 3}, "width"),
        ({"observation_shape": None}, "torch-module"),
    ):
        with pytest.raises(ValueError, match=wanted):
            TorchModuleArchitecture.from_json({**content, **change})
