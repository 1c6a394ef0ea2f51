"""Is a concept about what the agent does, where it is, when it is, or what is there? Four models, held-out, in contest.

Each kind has predictors of its own, and a ridge regression of the activation on them, fitted on training episodes:

    behavioural   this action, the one before, and the recorded labels of that kind
    spatial       the place on the map: distance to its border, and which of 4 x 4 parts of it; and labels of that kind
    temporal      the step of the episode, in 20 stretches of its time limit
    object-based  objects of each sort at distance 1, 2, or in view, other agents in view; and labels of that kind

A kind's *share* is the variance that its model explains on held-out episodes (R^2, 1 exact, at most 0 no better than
the mean of training). A kind passes if its share is at least `min_share` and its q is small enough: p is of the
covariance of prediction and activation, with whole predictions exchanged between episodes, or, for the temporal
model, whose prediction is the same in every episode, with the sign of each episode's part tossed
(`interp.stats.permutation`). The type is the kind with the largest share of those that pass; "mixed" if the next one
that passes is not surely smaller (the bootstrap interval of the difference holds 0); "undecided" if none passes.

A model of the activation's *own* past is not in the contest: it would win nearly always, since what lasts predicts
itself. How long a concept lasts and remembers is told beside the type (`run_steps`, `memory_steps`).

E episodes · S samples of an episode · P predictors · C concepts · T steps · A agents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32
from scipy import ndimage

from interp.records import Facts, LabelKind, Trace
from interp.stats.autocorrelation import autocorrelation_time
from interp.stats.bootstrap import bootstrap_ratio_difference
from interp.stats.episodes import centred, check_episodes
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.permutation import Draws, exchange_null, sign_flip_null, two_sided
from interp.worlds.labels import Scene

Family = Literal["behavioural", "spatial", "temporal", "object-based"]
FAMILIES: tuple[Family, ...] = get_args(Family)
ConceptType = Literal["behavioural", "spatial", "temporal", "object-based", "mixed", "undecided"]
TIME_STRETCHES = 20
MAP_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationConfig:
    """How the type of a concept is decided."""

    min_share: float = 0.05
    """Share of the held-out variance that a kind must explain to pass."""
    max_q_value: float = 0.05
    """Largest q-value, over all concepts and kinds, of a kind that passes."""
    num_permutations: int = 2000
    """Episode permutations, or sign flips, behind each p-value."""
    num_resamples: int = 1000
    """Bootstrap resamples of episodes behind the comparison of the two largest shares."""
    ridge: float = 1e-3
    """Penalty of the regressions, per sample and in units of the predictors' variance."""

    def __post_init__(self) -> None:
        for name in ("min_share", "max_q_value"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: between 0 and 1")
        for name in ("num_permutations", "num_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1")
        if self.ridge <= 0:
            raise ValueError(f"ridge {self.ridge}: above 0")


Predictors = Mapping[Family, Float32[np.ndarray, "_ _ _"]]
"""[E, S, P] by kind, each with a P of its own; a kind that a world cannot tell has none (P is 0), and never passes."""


def predictors_of(
    facts: Facts | Trace,
    action_TA: Int32[np.ndarray, "T A"],
    labels: Mapping[str, Bool[np.ndarray, "T A"]],
    kinds: Mapping[str, LabelKind],
    *,
    num_actions: int,
    max_steps: int,
) -> dict[Family, Float32[np.ndarray, "T A _"]]:
    """The predictors of one episode at every step, of every kind."""
    own: dict[Family, list[np.ndarray]] = {
        "behavioural": _actions(action_TA, num_actions),
        "spatial": _places(facts) if isinstance(facts, Facts) else [],
        "temporal": _times(action_TA.shape, max_steps),
        "object-based": _objects(facts) if isinstance(facts, Facts) else [],
    }
    for family in FAMILIES:
        if family != "temporal":
            own[family] += [labels[name] for name in labels if kinds[name] == family]
    return {
        family: np.stack([np.asarray(x, np.float32) for x in columns], axis=-1)
        if columns
        else np.zeros((*action_TA.shape, 0), np.float32)
        for family, columns in own.items()
    }


def _actions(action_TA: Int32[np.ndarray, "T A"], num_actions: int) -> list[np.ndarray]:
    before_TA = np.full_like(action_TA, -1)
    before_TA[1:] = action_TA[:-1]
    return [
        np.asarray(played_TA == number)
        for played_TA in (action_TA, before_TA)
        for number in range(num_actions)
    ]


def _places(facts: Facts) -> list[np.ndarray]:
    """Part of the map, one-hot, and steps to its border in units of half its shorter side."""
    row_TA, col_TA = np.moveaxis(facts.position_SA2[:-1].astype(np.int64), -1, 0)
    height, width = facts.map_HW.shape
    part_TA = row_TA * MAP_PARTS // height * MAP_PARTS + col_TA * MAP_PARTS // width
    border_TA = np.min([row_TA, col_TA, height - 1 - row_TA, width - 1 - col_TA], axis=0)
    return [
        *(part_TA == part for part in range(MAP_PARTS**2)),
        border_TA / (min(height, width) / 2),
    ]


def _times(shape: tuple[int, ...], max_steps: int) -> list[np.ndarray]:
    """Stretches of the time limit, one-hot."""
    stretch_T1 = (np.arange(shape[0]) * TIME_STRETCHES // max_steps)[:, None]
    return [np.broadcast_to(stretch_T1 == stretch, shape) for stretch in range(TIME_STRETCHES)]


def _objects(facts: Facts) -> list[np.ndarray]:
    """Of every sort of object but walls: one at distance 1, at most 2, in view; and another agent, an enemy in view."""
    scene = Scene(facts)
    walls_HW = scene.objects("wall")
    cell_TA = scene.cell_SA[:-1]
    rows, columns = facts.view_radius
    found = []
    for sort in range(1, len(facts.object_names)):
        is_there_HW = (facts.map_HW == sort) & ~walls_HW
        distance_HW = (
            ndimage.distance_transform_cdt(~is_there_HW, "taxicab")
            if is_there_HW.any()
            else np.full(is_there_HW.shape, np.iinfo(np.int32).max)
        )
        seen_HW = ndimage.maximum_filter(
            is_there_HW, size=(2 * rows + 1, 2 * columns + 1), mode="constant", cval=0
        )
        found += [x_HW.take(cell_TA) for x_HW in (distance_HW <= 1, distance_HW <= 2, seen_HW)]
    offset_TAA2 = scene.offset_SAA2[:-1]
    seen_TAA = (offset_TAA2[..., 0] <= rows) & (offset_TAA2[..., 1] <= columns)
    other_AA = ~np.eye(len(facts.team_A), dtype=np.bool_)
    return [*found, *(np.any(seen_TAA & who_AA, axis=-1) for who_AA in (other_AA, scene.enemy_AA))]


class Explanation(NamedTuple):
    """What a concept is about, and the evidence."""

    kind: ConceptType
    share: dict[str, float]
    """Of each kind the share of held-out variance; NaN if the world cannot tell it."""
    q: dict[str, float]
    run_steps: float
    """Mean length of a stretch of firing."""
    memory_steps: float
    """Integrated autocorrelation time of the activation."""


def explain(
    train_ESC: Float32[np.ndarray, "E S C"],
    train: Predictors,
    train_mask_ES: Bool[np.ndarray, "E S"],
    held_out_ESC: Float32[np.ndarray, "E_ S_ C"],
    held_out: Predictors,
    held_out_mask_ES: Bool[np.ndarray, "E_ S_"],
    *,
    num_agents: int,
    stride_steps: int,
    config: ExplanationConfig,
    seed: int,
) -> list[Explanation]:
    """The type of every concept; activations are at least 0 and have a scale of about 1.

    `stride_steps` is how many steps two neighbouring samples of an agent are apart.
    """
    check_episodes(len(held_out_ESC))
    num_concepts = train_ESC.shape[2]
    draws = Draws.make(len(held_out_ESC), config.num_permutations, seed=seed)
    mean_C = train_ESC[train_mask_ES].mean(0, dtype=np.float64)
    about_ESC = np.where(held_out_mask_ES[..., None], held_out_ESC - mean_C, 0)
    total_EC = (about_ESC**2).sum(1)
    value_ESC = centred(held_out_ESC, held_out_mask_ES)
    p_KC = np.full((len(FAMILIES), num_concepts), np.nan)
    explained_KEC = np.full((len(FAMILIES), *total_EC.shape), np.nan)
    for k, family in enumerate(FAMILIES):
        if train[family].shape[2] == 0:
            continue
        prediction_ESC = _ridge(
            train[family], train_ESC, train_mask_ES, held_out[family], config.ridge
        )
        left_ESC = np.where(held_out_mask_ES[..., None], held_out_ESC - prediction_ESC, 0)
        explained_KEC[k] = total_EC - (left_ESC**2).sum(1)
        track_ESC = centred(prediction_ESC.astype(np.float32), held_out_mask_ES)
        null_of = sign_flip_null if family == "temporal" else exchange_null
        for c in range(num_concepts):
            null = null_of(value_ESC[..., c : c + 1], track_ESC[..., c], draws)
            if null.observed_F[0] > 0:  # one that predicts the opposite explains nothing
                p_KC[k, c] = two_sided(null)[0]
            else:
                p_KC[k, c] = 1.0
    q_KC = benjamini_hochberg(p_KC)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_KC = explained_KEC.sum(1) / total_EC.sum(0)
    memory_C = stride_steps * autocorrelation_time(
        held_out_ESC, held_out_mask_ES, num_agents=num_agents
    )
    run_C = stride_steps * _run_samples(held_out_ESC > 0, held_out_mask_ES, num_agents)
    return [
        Explanation(
            kind=_decide(
                share_KC[:, c], q_KC[:, c], explained_KEC[..., c], total_EC[:, c], config, seed
            ),
            share=dict(zip(FAMILIES, share_KC[:, c].tolist(), strict=True)),
            q=dict(zip(FAMILIES, q_KC[:, c].tolist(), strict=True)),
            run_steps=float(run_C[c]),
            memory_steps=float(memory_C[c]),
        )
        for c in range(num_concepts)
    ]


def _ridge(
    x_ESP: Float32[np.ndarray, "E S P"],
    y_ESC: Float32[np.ndarray, "E S C"],
    mask_ES: Bool[np.ndarray, "E S"],
    held_out_ESP: Float32[np.ndarray, "E_ S_ P"],
    ridge: float,
) -> Float64[np.ndarray, "E_ S_ C"]:
    """Predictions of held-out samples; columns that are constant in training predict nothing."""
    x_NP, y_NC = x_ESP[mask_ES].astype(np.float64), y_ESC[mask_ES].astype(np.float64)
    mean_P, mean_C, sd_P = x_NP.mean(0), y_NC.mean(0), x_NP.std(0)
    unit_P = np.where(sd_P > 0, sd_P, np.inf)
    x_NP = (x_NP - mean_P) / unit_P
    gram_PP = x_NP.T @ x_NP / len(x_NP) + ridge * np.eye(len(mean_P))
    weight_PC = np.linalg.solve(gram_PP, x_NP.T @ (y_NC - mean_C) / len(x_NP))
    return ((held_out_ESP - mean_P) / unit_P) @ weight_PC + mean_C


def _run_samples(
    fires_ESC: Bool[np.ndarray, "E S C"], mask_ES: Bool[np.ndarray, "E S"], num_agents: int
) -> Float64[np.ndarray, " C"]:
    """Mean length of a stretch of firing of one agent; NaN if it never fires."""
    fires_ESC = fires_ESC & mask_ES[..., None]
    onset_ESC = fires_ESC.copy()
    onset_ESC[:, num_agents:] &= ~fires_ESC[:, :-num_agents]
    with np.errstate(invalid="ignore"):
        return fires_ESC.sum((0, 1)) / onset_ESC.sum((0, 1))


def _decide(
    share_K: Float64[np.ndarray, " K"],
    q_K: Float64[np.ndarray, " K"],
    explained_KE: Float64[np.ndarray, "K E"],
    total_E: Float64[np.ndarray, " E"],
    config: ExplanationConfig,
    seed: int,
) -> ConceptType:
    passes = np.flatnonzero((share_K >= config.min_share) & (q_K < config.max_q_value))
    if not len(passes):
        return "undecided"
    order = passes[np.argsort(-share_K[passes], kind="stable")]
    if len(order) == 1:
        return FAMILIES[order[0]]
    first, second = order[0], order[1]
    lead = bootstrap_ratio_difference(
        (explained_KE[first][:, None], total_E[:, None]),
        (explained_KE[second][:, None], total_E[:, None]),
        seed=seed,
        num_resamples=config.num_resamples,
    )
    return FAMILIES[first] if lead.lo[0] > 0 else "mixed"


def stacked(
    episodes: Sequence[Mapping[Family, Float32[np.ndarray, "_ _ _"]]],
    steps: Sequence[int],
    num_samples: int,
) -> dict[Family, Float32[np.ndarray, "_ _ _"]]:
    """[E, S, P] from [T, A, P] by kind: predictors of several episodes at some of their steps, as tracks padded to
    `num_samples` samples.

    Raises:
        ValueError: episodes with other predictors, as of worlds with other objects.
    """
    tracks: dict[Family, np.ndarray] = {}
    for family in FAMILIES:
        widths = sorted({one[family].shape[2] for one in episodes})
        if len(widths) > 1:
            raise ValueError(
                f"episodes have {widths} {family} predictors; wanted those of one world, with the same objects"
            )
        track_ESP = np.zeros((len(episodes), num_samples, widths[0]), np.float32)
        for e, one in enumerate(episodes):
            kept = one[family][[t for t in steps if t < len(one[family])]]
            num_kept = kept.shape[0] * kept.shape[1]
            track_ESP[e, :num_kept] = kept.reshape(num_kept, widths[0])  # -1 fails where P is 0
        tracks[family] = track_ESP
    return tracks
