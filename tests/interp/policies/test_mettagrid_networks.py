"""mettagrid's networks of each era, from tensors made here, against straightforward copies of what they computed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from interp.policies import mettagrid_box, mettagrid_flat, mettagrid_perceiver
from interp.policies.bundle import PolicyBundle
from interp.policies.mettagrid_box import BoxArchitecture, BoxNetwork, Convolution
from interp.policies.mettagrid_flat import FlatArchitecture, FlatNetwork
from interp.policies.mettagrid_perceiver import PerceiverArchitecture, PerceiverNetwork
from interp.policies.policy_file import PolicyFile
from interp.policies.recognition import recognise
from interp.policies.taps import Edit, RecordingTap, RowEdits
from interp.policies.translation import TokenNetwork
from interp.rollout import Capture, Trial, roll
from interp.tiles import REFERENCE_ROWS
from interp.worlds.mettagrid import MettagridFactory

NUM_TOKENS, STEPS, ROWS = 12, 4, 5


def flat(*, recurrent: bool, decoder: bool = False) -> FlatArchitecture:
    return FlatArchitecture(
        num_tokens=NUM_TOKENS, hidden=8, num_actions=6, recurrent=recurrent, decoder=decoder
    )


def box() -> BoxArchitecture:
    return BoxArchitecture(
        window_rows=11,
        window_cols=11,
        num_tokens=NUM_TOKENS,
        features={"type_id": 0, "hp": 1, "inv:heart": 2},
        norms=(1.0, 30.0, 100.0),
        action_names=("noop_0", "rotate_0", "rotate_1"),
        action_rows=(3, 1, 2),
        num_embeddings=5,
        embedding=4,
        convolutions=(
            Convolution(channels=6, kernel=(5, 5), stride=(3, 3), padding=(0, 0)),
            Convolution(channels=7, kernel=(3, 3), stride=(1, 1), padding=(0, 0)),
        ),
        flat=7,
        fc=9,
        hidden=8,
        num_layers=2,
        actor=10,
        critic=11,
    )


def perceiver(memory: Literal["lstm", "cortex"] = "lstm") -> PerceiverArchitecture:
    return PerceiverArchitecture(
        prefix="network.module" if memory == "lstm" else "_sequential_network.module",
        max_tokens=NUM_TOKENS,
        feature_embedding=4,
        num_frequencies=2,
        num_latents=3,
        latent=8,
        num_heads=2,
        num_layers=2,
        mlp=16,
        memory=memory,
        hidden=8,
        actor=(6, 6),
        critic=(5,),
        num_actions=6,
        norms=(1.0, 30.0, 100.0, *[1.0] * 253),
        features={"type_id": 0, "inv:heart": 2} if memory == "lstm" else None,
        positions_cache=200 if memory == "lstm" else None,
    )


Make = Callable[[], TokenNetwork]
NETWORKS: dict[str, Make] = {
    "lstm": lambda: FlatNetwork(flat(recurrent=True)),
    "stateless": lambda: FlatNetwork(flat(recurrent=False)),
    "stateless with a decoder": lambda: FlatNetwork(flat(recurrent=False, decoder=True)),
    "box": lambda: BoxNetwork(box()),
    "perceiver": lambda: PerceiverNetwork(perceiver()),
    "cortex": lambda: PerceiverNetwork(perceiver("cortex")),
}
RECURRENT = [name for name in NETWORKS if not name.startswith("stateless")]


def network(name: str) -> TokenNetwork:
    torch.manual_seed(0)
    made = NETWORKS[name]()
    for parameter in made.parameters():  # biases and norms too
        parameter.data += 0.4 * torch.randn_like(parameter)
    return made.requires_grad_(False)


def observations() -> np.ndarray:
    """[STEPS, ROWS, NUM_TOKENS, 3]: distinct places, a few features, and padding of various length."""
    generator = np.random.default_rng(0)
    out = np.full((STEPS, ROWS, NUM_TOKENS, 3), 255, np.uint8)
    for t in range(STEPS):
        for row in range(ROWS):
            cells = generator.choice(121, size=int(generator.integers(1, 9)), replace=False)
            for i, cell in enumerate(cells):
                feature, value = generator.integers(0, 3), generator.integers(0, 200)
                out[t, row, i] = (cell // 11 << 4 | cell % 11, feature, value)
    return out


def untouched(_site: str, x: Tensor) -> Tensor:
    return x


def play(made: TokenNetwork, observation_TR: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits [T, R, N] and values [T, R] of several steps."""
    state = made.initial_state(observation_TR.shape[1])
    steps = []
    for observation_R in observation_TR:
        step = made.step(observation_R, state, untouched)
        state = step.state
        steps.append(step)
    return torch.stack([s.logits_RN for s in steps]), torch.stack([s.value_R for s in steps])


def lstm_over_time(
    weights: Mapping[str, Tensor], prefix: str, x_TRD: Tensor, layers: int
) -> Tensor:
    own = {
        name.removeprefix(f"{prefix}."): one
        for name, one in weights.items()
        if name.startswith(f"{prefix}.")
    }
    hidden = own["weight_hh_l0"].shape[1]
    lstm = nn.LSTM(x_TRD.shape[2], hidden, num_layers=layers)
    lstm.load_state_dict(own)
    return lstm(x_TRD)[0]


def linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def reference_flat(w: Mapping[str, Tensor], observation_TR: np.ndarray) -> tuple[Tensor, Tensor]:
    mark = "_" if "_net.0.weight" in w else ""
    x = torch.from_numpy(observation_TR).flatten(2).float() / 255
    y = linear(w, f"{mark}net.2", torch.relu(linear(w, f"{mark}net.0", x)))
    if mark:
        y = lstm_over_time(w, "_rnn", y, 1)
    return linear(w, f"{mark}action_head", y), linear(w, f"{mark}value_head", y)[..., 0]


def reference_box(w: Mapping[str, Tensor], observation_TR: np.ndarray) -> tuple[Tensor, Tensor]:
    w = {name.removeprefix("components."): one for name, one in w.items()}
    encoded = []
    for observation_R in observation_TR:
        boxes = torch.zeros(len(observation_R), 3, 11, 11)
        for row, tokens in enumerate(observation_R):
            for location, feature, value in tokens:
                if location != 255:
                    boxes[row, feature, location >> 4, location & 15] = float(value)
        x = boxes / w["obs_normalizer.obs_norm"]
        x = torch.relu(functional.conv2d(x, w["cnn1._net.0.weight"], w["cnn1._net.0.bias"], 3))
        x = torch.relu(functional.conv2d(x, w["cnn2._net.0.weight"], w["cnn2._net.0.bias"]))
        x = torch.relu(linear(w, "fc1._net.0", x.flatten(1)))
        encoded.append(torch.relu(linear(w, "encoded_obs._net.0", x)))
    y = lstm_over_time(w, "_core_._net", torch.stack(encoded), 2)
    value = linear(w, "_value_._net", torch.tanh(linear(w, "critic_1._net.0", y)))
    hidden = torch.relu(linear(w, "actor_1._net.0", y))
    scores = []
    for row in w["_action_embeds_.active_indices"]:
        embedding = w["_action_embeds_._net.weight"][row]
        query = torch.tanh(torch.einsum("trh,khe->trke", hidden, w["_action_.W"]))
        scores.append(torch.einsum("trke,e->trk", query, embedding)[..., 0] + w["_action_.bias"])
    return torch.stack(scores, dim=-1), value[..., 0]


def reference_perceiver(
    w: Mapping[str, Tensor], observation_TR: np.ndarray
) -> tuple[Tensor, Tensor]:
    prefix = next(name for name in w if name.endswith("latents")).split(".obs_perceiver")[0]
    w = {name.removeprefix(f"{prefix}."): one for name, one in w.items()}
    is_late = prefix.startswith("_")  # of 2025-12, when x had become the column
    encoded = torch.stack(
        [
            torch.stack([one_latent(w, tokens, rows_first=not is_late) for tokens in observation_R])
            for observation_R in observation_TR
        ]
    )
    memory = "lstm.func.net" if "lstm.func.net.weight_ih_l0" in w else ""
    memory = memory or "cortex.func.stack.blocks.0.experts.0.cell.net"
    y = lstm_over_time(w, memory, encoded, 1)
    mlp = "func.network.module"
    hidden = torch.relu(linear(w, f"actor_mlp.{mlp}.0.module", y))
    hidden = linear(w, f"actor_mlp.{mlp}.2.module", hidden)
    value = torch.relu(linear(w, f"critic.{mlp}.0.module", y))
    value = linear(w, f"critic.{mlp}.2.module", value)
    return linear(w, "actor_head.func._module.module", hidden), value[..., 0]


def one_latent(w: Mapping[str, Tensor], tokens: np.ndarray, *, rows_first: bool) -> Tensor:
    """The perceiver of one row: only the tokens that are there, attended to head by head."""
    norms = w["obs_shim_tokens.func.attr_val_normer._norm_factors"]
    embeddings = w["obs_attr_embed_fourier.func._attr_embeds.weight"]
    features = []
    for location, feature, value in tokens[tokens[:, 0] != 255]:
        cell = (location >> 4, location & 15) if rows_first else (location & 15, location >> 4)
        x, y = ((int(c) / 10 * 2 - 1) * torch.tensor([1.0, 2.0]) for c in cell)
        scalar = torch.tensor([float(value)]) / norms[int(feature)]
        features.append(
            torch.cat([embeddings[int(feature)], x.cos(), x.sin(), y.cos(), y.sin(), scalar])
        )
    p = "obs_perceiver_latent.func"

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], w[f"{p}.{name}.weight"], w[f"{p}.{name}.bias"]
        )

    token = norm("token_norm", torch.stack(features))
    k, v = token @ w[f"{p}.k_proj.weight"].T, token @ w[f"{p}.v_proj.weight"].T
    z = w[f"{p}.latents"][0]
    for layer in (f"layers.{i}" for i in range(2)):
        q = norm(f"{layer}.latent_norm", z) @ w[f"{p}.{layer}.q_proj.weight"].T
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = torch.softmax(q[:, part] @ k[:, part].T / 2.0, dim=1)
            heads.append(weights @ v[:, part])
        z = z + linear(w, f"{p}.{layer}.attn_out_proj", torch.cat(heads, dim=1))
        inner = functional.gelu(linear(w, f"{p}.{layer}.mlp.0", norm(f"{layer}.mlp_norm", z)))
        z = z + linear(w, f"{p}.{layer}.mlp.2", inner)
    return norm("final_norm", z).mean(dim=0)


REFERENCES = {
    "lstm": reference_flat,
    "stateless": reference_flat,
    "stateless with a decoder": reference_flat,
    "box": reference_box,
    "perceiver": reference_perceiver,
    "cortex": reference_perceiver,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_its_makers_computed(name: str) -> None:
    made = network(name)
    observation_TR = observations()
    logits, values = play(made, observation_TR)
    wanted_logits, wanted_values = REFERENCES[name](made.state_dict(), observation_TR)
    torch.testing.assert_close(logits, wanted_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values, wanted_values, atol=1e-5, rtol=1e-4)
    assert logits.std() > 0.01  # else everything would be equal


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    """In a pass of as many rows as numbers are defined by; of fewer some processors round the last ones otherwise."""
    made = network(name)
    observation_TR = observations()[:, np.resize(np.arange(ROWS), REFERENCE_ROWS)]
    order_R = np.random.default_rng(1).permutation(REFERENCE_ROWS)
    logits, _ = play(made, observation_TR)
    shuffled, _ = play(made, observation_TR[:, order_R])
    torch.testing.assert_close(logits[:, order_R], shuffled, atol=0, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_survives_the_store_and_has_an_untrained_copy(name: str) -> None:
    made = network(name)
    bundle = PolicyBundle.of(made.architecture, made.state_dict())  # pyright: ignore[reportArgumentType]
    opened = bundle.open()
    assert isinstance(opened, TokenNetwork)
    torch.testing.assert_close(play(opened, observations()), play(made, observations()))
    untrained = bundle.untrained(1).open()
    assert isinstance(untrained, TokenNetwork)
    assert not torch.allclose(play(untrained, observations())[0], play(made, observations())[0])
    assert untrained.sites == made.sites


@pytest.mark.parametrize("norms", [(1.0,) * 255, (0.0, *[1.0] * 255)])
def test_norms_that_are_too_few_or_zero_are_refused(norms: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"norms of which [01] are 0, wanted 256 and none"):
        replace(perceiver(), norms=norms)


def edited(made: TokenNetwork, site: str) -> Tensor:
    """Change of the logits [T] after one edit of a site at the first step only."""
    observation_TR = observations()
    direction = np.ones(made.sites[site], np.float32)
    edit = Edit(
        site=site,
        mode="add",
        dose=1.0,
        scale=1.0,
        write_D=direction,
        read_D=direction,
        read_bias=0.0,
        threshold=0.0,
    )
    edits = RowEdits(ROWS, {site: made.sites[site]})
    for row in range(ROWS):
        edits.set_row(row, (edit,))
    state, plain = made.initial_state(ROWS), made.initial_state(ROWS)
    changes = []
    for t, observation_R in enumerate(observation_TR):
        tap: Any = RecordingTap((), edits.tile(0, ROWS)) if t == 0 else untouched
        step = made.step(observation_R, state, tap)
        base = made.step(observation_R, plain, untouched)
        state, plain = step.state, base.state
        changes.append((step.logits_RN - base.logits_RN).abs().max())
    return torch.stack(changes)


@pytest.mark.parametrize("name", RECURRENT)
def test_edits_reach_what_their_site_promises(name: str) -> None:
    made = network(name)
    y, h, c = (edited(made, f"lstm.{part}") for part in "yhc")
    assert y[0] > 0
    assert (y[1:] == 0).all()  # the heads only
    assert (h[:2] > 0).all()  # the heads now, and the memory
    assert c[0] == 0
    assert (c[1:] > 0).all()  # the memory, so the heads a step later


@pytest.mark.mettagrid
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_plays_in_a_world_of_today(name: str) -> None:
    factory = MettagridFactory.load("forage")
    made = network(name)
    sites = tuple(site for site in made.sites if site not in ("logits", "value"))
    (episode,) = roll(made, factory(1), [Trial(env_seed=3)], Capture(sites=(*sites, "logits")))
    assert episode.activations["logits"].shape == (256, 4, made.sites["logits"])
    assert all(np.isfinite(one).all() for one in episode.activations.values())
    assert len(np.unique(episode.action_TA)) > 1
    if name == "box":  # its actions are noop, and turns up and down
        assert set(np.unique(episode.action_TA)) <= {0, 1, 2}


# --- which network is it?


BOX_CLASSES = {
    **{
        f"components.{name}._net.1": "torch.nn.ReLU"
        for name in ("cnn1", "cnn2", "fc1", "encoded_obs", "actor_1")
    },
    "components.critic_1._net.1": "torch.nn.modules.activation.Tanh",
    "components._core_._net": "torch.nn.LSTM",
    "components._action_": "metta.agent.lib.actor.MettaActorSingleHead",
}


def file_of(made: TokenNetwork, **metadata: Any) -> PolicyFile:
    return PolicyFile(
        format="test",
        sha256="0",
        tensors=made.state_dict(),
        modules=BOX_CLASSES if isinstance(made, BoxNetwork) else {},
        metadata=metadata,
    )


def told_of_box(**changes: Any) -> dict[str, Any]:
    convolution = {"padding": [0, 0], "dilation": [1, 1], "groups": 1, "padding_mode": "zeros"}
    return {
        "obs_width": 11,
        "obs_height": 11,
        "obs_shape": [NUM_TOKENS, 3],
        "features": {
            name: {"id": channel, "normalization": 1.0} for name, channel in box().features.items()
        },
        "action_names": ["noop", "rotate"],
        "action_max_params": [0, 1],
        "attributes": {
            "components.cnn1._net.0": {**convolution, "stride": [3, 3]},
            "components.cnn2._net.0": {**convolution, "stride": [1, 1]},
        },
        **changes,
    }


def told_of_perceiver(memory: Literal["lstm", "cortex"] = "lstm", **changes: Any) -> dict[str, Any]:
    lstm = (
        {"name": "lstm", "num_layers": 1}
        if memory == "lstm"
        else {
            "name": "cortex",
            "d_hidden": 8,
            "out_features": 8,
            "stack_cfg": {
                "blocks": [
                    {"experts": [{"block_type": "passthrough", "cell": {"cell_type": "lstm"}}]}
                ],
                "post_norm": False,
            },
        }
    )
    mlp = {"nonlinearity": "ReLU", "output_nonlinearity": None}
    attention = {"name": "obs_perceiver_latent", "num_heads": 2, "pool": "mean", "use_mask": True}
    components = [
        {"name": "obs_shim_tokens", "max_tokens": NUM_TOKENS},
        {**attention, **changes},
        lstm,
        {"name": "actor_mlp", **mlp},
        {"name": "critic", **mlp},
    ]
    features = {name: {"id": byte} for name, byte in (perceiver(memory).features or {}).items()}
    return {"architecture": {"components": components}, "features": features or None}


TOLD: dict[str, Callable[[], dict[str, Any]]] = {
    "box": told_of_box,
    "perceiver": told_of_perceiver,
    "cortex": lambda: told_of_perceiver("cortex"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_recognised_by_its_tensors(name: str) -> None:
    made = network(name)
    bundle = recognise(file_of(made, **TOLD.get(name, dict)()))
    assert bundle.architecture == PolicyBundle.of(made.architecture, {}).architecture  # pyright: ignore[reportArgumentType]
    opened = bundle.open()
    assert isinstance(opened, TokenNetwork)
    torch.testing.assert_close(play(opened, observations()), play(made, observations()))


@pytest.mark.parametrize("name", TOLD)
def test_an_untrained_copy_reads_observations_on_the_scale_of_the_file(name: str) -> None:
    made = network(name)
    key, norms = next(
        (key, one)
        for key, one in made.named_buffers()
        if key.endswith(("obs_norm", "_norm_factors"))
    )
    norms.copy_(torch.arange(2.0, 2.0 + norms.numel()).view_as(norms))
    untrained = recognise(file_of(made, **TOLD[name]())).untrained(1).open()
    torch.testing.assert_close(untrained.get_buffer(key), norms, atol=0, rtol=0)


@pytest.mark.parametrize("missing", ["features", "action_names", "obs_width", "attributes"])
def test_a_box_network_whose_file_does_not_tell_its_world_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match=rf"does not tell {missing}"):
        mettagrid_box.recognise(file_of(network("box"), **told_of_box(**{missing: None})))


@pytest.mark.parametrize("path", BOX_CLASSES)
def test_a_part_of_another_class_is_refused(path: str) -> None:
    file = file_of(network("box"), **told_of_box())
    with pytest.raises(ValueError, match=rf"{path.removeprefix('components.')} is of Sigmoid"):
        mettagrid_box.recognise(replace(file, modules={**BOX_CLASSES, path: "torch.nn.Sigmoid"}))


def test_claims_about_actions_cost_nothing() -> None:
    for largest in ([0, 2_000_000_000], [0], [0, "1"], None):
        with pytest.raises(ValueError, match=r"action|valid"):
            recognise(file_of(network("box"), **told_of_box(action_max_params=largest)))


def test_a_perceiver_that_is_wired_otherwise_is_refused() -> None:
    told = told_of_perceiver()
    told["architecture"]["components"][-1]["in_key"] = "obs_latent_attn"
    with pytest.raises(ValueError, match="whose critic reads 'obs_latent_attn'"):
        mettagrid_perceiver.recognise(file_of(network("perceiver"), **told))


def test_a_convolution_of_another_kind_is_refused() -> None:
    told = told_of_box()
    told["attributes"]["components.cnn2._net.0"]["dilation"] = [2, 2]
    with pytest.raises(ValueError, match=r"convolution cnn2.*dilation"):
        mettagrid_box.recognise(file_of(network("box"), **told))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": "first"}, "pool"),
        ({"use_mask": False}, "use_mask"),
        ({"num_heads": 3}, "num_heads is 3, wanted a divisor"),
    ],
)
def test_a_perceiver_with_other_options_is_refused(change: dict[str, Any], said: str) -> None:
    file = file_of(network("perceiver"), **told_of_perceiver(**change))
    with pytest.raises(ValueError, match=said):
        mettagrid_perceiver.recognise(file)


def test_a_cortex_of_several_experts_is_refused() -> None:
    told = told_of_perceiver("cortex")
    (block,) = told["architecture"]["components"][2]["stack_cfg"]["blocks"]
    block["experts"].append({"block_type": "preup", "cell": {"cell_type": "mlstm"}})
    with pytest.raises(ValueError, match=r"cortex of 1 blocks and experts .*mlstm"):
        mettagrid_perceiver.recognise(file_of(network("cortex"), **told))


def test_a_perceiver_without_its_description_is_refused() -> None:
    with pytest.raises(ValueError, match="number of attention heads is not in the tensors"):
        mettagrid_perceiver.recognise(file_of(network("perceiver")))


def test_a_policy_of_other_components_is_named_by_them() -> None:
    file = PolicyFile(
        format="test",
        sha256="0",
        tensors={"network.module.cnn.weight": torch.zeros(2, 2)},
        metadata={"architecture": {"components": [{"class_path": "metta.x.CNNEncoderConfig"}]}},
    )
    with pytest.raises(ValueError, match=r"made of CNNEncoder; known is"):
        mettagrid_perceiver.recognise(file)


def test_a_joint_policy_of_all_agents_is_refused_for_what_it_is() -> None:
    tensors = {
        f"network.{i}.{part}": torch.zeros(shape)
        for i, (out, inputs) in {0: (8, 2400), 2: (8, 8), 4: (7, 8)}.items()
        for part, shape in (("weight", (out, inputs)), ("bias", (out,)))
    }
    with pytest.raises(ValueError, match=r"2,400 inputs: .* the tokens of all agents at once"):
        mettagrid_flat.recognise(PolicyFile(format="test", sha256="0", tensors=tensors))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tensor_of_the_wrong_shape_is_named(name: str) -> None:
    made = network(name)
    weights = {
        key: one for key, one in made.state_dict().items() if key.endswith("weight_hh_l0")
    } or {key: one for key, one in made.state_dict().items() if key.endswith("value_head.weight")}
    (wrong,) = weights
    tensors = {**made.state_dict(), wrong: torch.zeros(3, weights[wrong].shape[1])}
    file = replace(file_of(made, **TOLD.get(name, dict)()), tensors=tensors)
    with pytest.raises(ValueError, match=wrong.replace(".", r"\.")):
        recognise(file)
