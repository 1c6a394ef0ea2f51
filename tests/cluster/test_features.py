"""Features of a recording are measured on its training episodes, found where they were planted, and chosen by name."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster import dictionaries, recordings
from cluster.features import NUM_PCA, NUM_RANDOM, SPARSE_UNITS, chosen, features_of
from cluster.recordings import Plan, ShardPlan
from cluster.staging import Split
from cluster.store import Store
from interp.dictionaries.dictionary import Dictionary
from interp.features.feature_set import FeatureKind, FeatureSet
from interp.recording import episode_rows
from interp.records import Episode

SITE, D, AGENTS, STEPS = "lstm.h", 40, 2, 32
LABELS = ("planted", "never")
SEEDS = range(30)
SPLIT = Split(held_out_fraction=0.4)
LOUD = 7
"""A unit that varies most and means nothing."""
SENTINEL = 1000.0
"""Value of every held-out activation; float16 has it."""


def direction() -> np.ndarray:
    """Along which the label lies, over five units of two signs."""
    direction_D = np.zeros(D, np.float32)
    direction_D[[1, 4, 9, 16, 25]] = [0.6, -0.5, 0.4, 0.35, -0.33]
    return direction_D / np.linalg.norm(direction_D)


def episode(env_seed: int) -> tuple[Episode, dict[str, np.ndarray]]:
    generator = np.random.default_rng(env_seed)
    label = generator.random((STEPS, AGENTS)) < 0.3
    x = 0.2 * generator.standard_normal((STEPS, AGENTS, D)) + 2 * label[..., None] * direction()
    x[..., LOUD] += 3 * generator.standard_normal((STEPS, AGENTS))
    if SPLIT.held_out(np.array([env_seed]))[0]:
        x[:] = SENTINEL
    one = Episode(
        env_seed=env_seed,
        index=0,
        action_TA=np.zeros((STEPS, AGENTS), np.int32),
        reward_TA=np.zeros((STEPS, AGENTS), np.float32),
        done_TA=np.zeros((STEPS, AGENTS), np.bool_),
        captured_t=np.arange(STEPS, dtype=np.int32),
        activations={SITE: x.astype(np.float32)},
    )
    return one, {"planted": label, "never": np.zeros_like(label)}


def dictionary(site: str = SITE) -> Dictionary:
    """Its second latent is the planted direction."""
    generator = torch.Generator().manual_seed(0)
    direction_FD = torch.randn(6, D, generator=generator) / D**0.5
    direction_FD[1] = torch.from_numpy(direction())
    return Dictionary(
        W_enc=direction_FD.T.contiguous(),
        b_enc=torch.zeros(6),
        W_dec=direction_FD,
        b_dec=torch.zeros(D),
        threshold=torch.tensor(1.0),
        mean=torch.zeros(D),
        scale=1.0,
        family="planted",
        fvu=0.0,
        l0=1.0,
        dead_fraction=0.0,
        site=site,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("features") / "store")
    dictionaries.save(store, "d-0", dictionary(), {})
    dictionaries.save(store, "d-elsewhere", dictionary("lstm.c"), {})
    return store


@pytest.fixture(scope="module")
def recording_id(store: Store) -> str:
    shards = (ShardPlan(shard="s0", env_seeds=tuple(SEEDS)),)
    config = {"site_widths": {SITE: D}, "labels": list(LABELS)}
    plan = Plan(config=config, inputs={"policy": "p-0"}, shards=shards)
    recordings.begin(store, plan)
    rows = [
        episode_rows(
            *episode(seed),
            policy_id="p-0",
            step=0,
            world="w",
            episode_number=seed,
            site_widths={SITE: D},
        )
        for seed in SEEDS
    ]
    recordings.write_shard(store, plan, "s0", pa.concat_tables(rows))
    recordings.commit(store, plan)
    return plan.recording_id


@pytest.fixture
def of(store: Store, recording_id: str):
    def of(
        kind: FeatureKind,
        *,
        site: str = SITE,
        dict_id: str | None = "d-0",
        labels: tuple[str, ...] = ("planted",),
        seed: int = 0,
    ) -> FeatureSet:
        return features_of(
            store,
            recording_id,
            kind,
            site=site,
            dict_id=dict_id,
            labels=labels,
            split=SPLIT,
            seed=seed,
        )

    return of


KINDS: dict[FeatureKind, int] = {
    "sae": 6,
    "neuron": D,
    "pca": NUM_PCA,
    "random_direction": NUM_RANDOM,
    "diff_in_means": 1,
    "probe": 1,
    "sparse_probe": 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_of_training_episodes_only(of, kind: FeatureKind) -> None:
    """Held-out activations are a hundred times larger: one of them among the rows would show."""
    known = of(kind)
    assert (known.kind, known.site, len(known)) == (kind, SITE, KINDS[kind])
    reach_F = np.abs(known.read_FD).sum(1) * 20  # no training activation is beyond 20
    assert (known.scale_F < reach_F).all()
    assert (np.abs(known.mean_F) < reach_F).all()
    assert known.scale_F.max() > 0.5


@pytest.mark.parametrize("kind", ["diff_in_means", "probe", "sparse_probe"])
def test_what_is_made_for_a_label_reads_and_writes_the_direction_that_was_planted(of, kind) -> None:
    known = of(kind)
    (feature,) = chosen(known, ["planted"])
    for read_or_written in (feature.read_D, feature.write_D):
        cosine = read_or_written @ direction() / np.linalg.norm(read_or_written)
        assert cosine > 0.9
    one, label = episode(next(s for s in SEEDS if not SPLIT.held_out(np.array([s]))[0]))
    value = known.values(one.activations[SITE].reshape(-1, D))[:, 0]
    held = label["planted"].reshape(-1)
    assert (value[held][:, None] > value[~held]).mean() > 0.95
    if kind == "sparse_probe":
        assert set(np.flatnonzero(feature.read_D)) == set(np.flatnonzero(direction()))
        assert np.count_nonzero(feature.read_D) == SPARSE_UNITS


def test_components_are_those_of_the_rows_and_random_directions_those_of_the_seed(of) -> None:
    assert np.abs(of("pca").write_FD[0]).argmax() == LOUD
    one, same, other = (of("random_direction", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.write_FD, same.write_FD)
    assert not np.allclose(one.write_FD, other.write_FD)


def test_a_label_that_never_holds_has_a_direction_of_no_length(of) -> None:
    """Two labels at once, in the order asked for."""
    known = of("diff_in_means", labels=("never", "planted"))
    assert known.names == ("never", "planted")
    assert not known.write_FD[0].any()
    assert known.write_FD[1].any()


def test_features_are_chosen_in_the_order_of_their_names(of) -> None:
    latents = of("sae")
    found = chosen(latents, ["planted:1", "a:b:5"])
    assert [(one.label, one.latent, one.concept) for one in found] == [
        ("planted", 1, "planted:1"),
        ("a:b", 5, "a:b:5"),
    ]
    np.testing.assert_array_equal(found[0].write_D, latents.write_FD[1])
    assert found[0].scale == pytest.approx(2.5, abs=0.4)
    (unit,) = chosen(of("neuron"), ["planted:25"])
    assert (unit.concept, unit.kind, unit.write_D.argmax()) == ("planted:neuron 25", "neuron", 25)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sae", {"dict_id": None}, r"latents are of a dictionary: name it with --dictionary"),
        ("sae", {"dict_id": "d-9"}, r"dictionary d-9 is not in store"),
        ("sae", {"dict_id": "d-elsewhere"}, r"dictionary d-elsewhere reads lstm\.c, not lstm\.h"),
        (
            "neuron",
            {"site": "encoder"},
            r"site 'encoder' is not in recording r-\w+; it has lstm\.h",
        ),
        ("probe", {"labels": ("joy",)}, r"label 'joy' is not in recording .* planted, never"),
        ("crosscoder", {}, r"crosscoder d-0 is not in store"),
    ],
)
def test_what_was_not_recorded_or_is_of_another_site_is_refused(of, kind, changes, message) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        of(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("sae", "planted", r"feature 'planted': wanted LABEL:NUMBER, .* among the 6 sae features"),
        ("sae", ":1", r"feature ':1': wanted LABEL:NUMBER"),
        ("sae", "planted:6", r"feature 'planted:6': no '6' among the 6 sae features .* 0 to 5"),
        ("neuron", "planted:-1", r"no '-1' among the 40 neuron features"),
        ("probe", "joy", r"feature 'joy': no 'joy' among the 1 probe features of lstm\.h"),
    ],
)
def test_a_feature_that_is_not_there_is_refused_by_name(of, kind, name, message) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(of(kind), [name])
