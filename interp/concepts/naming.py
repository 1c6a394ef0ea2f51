"""What stands out where a latent peaks? Its strongest moments against other moments of the same episodes.

A moment is described by *items*: tokens of what the agent saw (feature, value, where), or labels. An item that is
over-represented names the latent; if none is, nothing stands out, and the latent gets no name. Names are made by fixed
templates: the same numbers give the same words.

Both kinds of moments are equally many in every episode, so that under the null (the latent has nothing to do with what
is seen) swapping them changes nothing: the sign of an episode's difference is then a coin toss (Fisher 1935), and its p
needs no model of how steps depend on each other. q is Benjamini & Hochberg's over the items of one latent, so a latent
that means nothing gets a name in at most `max_q_value` of the cases.

E episodes · S samples of an episode · W moments · M items · N tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from interp.stats.bootstrap import log_odds_interval
from interp.stats.episodes import MIN_EPISODES
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.power import permutations_needed
from interp.stats.sign_flip import paired_sign_flip
from interp.worlds.world import TokenVocabulary

NOTHING = "nothing stands out"
PADDING, GLOBAL = 0xFF, 0xFE
"""Location bytes of an unused token, and of one about the world or the agent as such."""
_FLIPPED_ITEMS = 256
"""Items whose signs are tossed together: bounds the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingConfig:
    """How latents are named."""

    moments_per_episode: int = 6
    """Strongest moments of an episode that are looked at, and as many others of it."""
    apart_steps: int = 5
    """Steps that strong moments of one agent are apart at least."""
    min_episodes: int = MIN_EPISODES
    """Episodes in which an item must be seen, at either kind of moment, to be tested; and with moments at all."""
    max_items: int = 1000
    """The most frequent items are tested, so many of them."""
    max_q_value: float = 0.05
    """Largest q-value, over items, of one that stands out."""
    min_odds: float = 2.0
    """Times by which the odds of an item are raised at least; the lower end of the interval counts."""
    num_resamples: int = 1000
    """Bootstrap resamples of episodes behind each interval."""

    def __post_init__(self) -> None:
        for name, least in (
            ("moments_per_episode", 1),
            ("apart_steps", 1),
            ("min_episodes", MIN_EPISODES),
            ("max_items", 1),
            ("num_resamples", 1),
            ("min_odds", 1.0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: at least {least}")
        if not 0 < self.max_q_value < 1:
            raise ValueError(f"max_q_value {self.max_q_value}: between 0 and 1")


class Moments(NamedTuple):
    """Samples to look at: the strongest, and others of the same episodes, equally many in each."""

    episode_W: Int64[np.ndarray, " W"]
    sample_W: Int64[np.ndarray, " W"]
    """Place in the episode's row: step * agents + agent."""
    is_peak_W: Bool[np.ndarray, " W"]


def choose_moments(
    value_ES: Float32[np.ndarray, "E S"],
    mask_ES: Bool[np.ndarray, "E S"],
    *,
    num_agents: int,
    config: NamingConfig,
    seed: int,
) -> Moments:
    """The strongest moments of every episode in which the latent fires, and others drawn among those that remain."""
    generator = np.random.default_rng(seed)
    episodes, samples, are_peaks = [], [], []
    for e in np.flatnonzero(((value_ES > 0) & mask_ES).any(1)).tolist():
        exist_S = np.flatnonzero(mask_ES[e])
        most = min(config.moments_per_episode, len(exist_S) // 2)
        peaks = _peaks(value_ES[e], exist_S, most, num_agents, config.apart_steps)
        others = generator.choice(np.setdiff1d(exist_S, peaks), len(peaks), replace=False)
        episodes += [e] * (2 * len(peaks))
        samples += [*peaks, *others.tolist()]
        are_peaks += [True] * len(peaks) + [False] * len(peaks)
    return Moments(
        np.array(episodes, np.int64), np.array(samples, np.int64), np.array(are_peaks, np.bool_)
    )


def _peaks(
    value_S: Float32[np.ndarray, " S"],
    exist_S: Int64[np.ndarray, " S_"],
    most: int,
    num_agents: int,
    apart_steps: int,
) -> list[int]:
    """Places of the highest values above 0, those of one agent some steps apart."""
    chosen: list[int] = []
    for s in exist_S[np.argsort(-value_S[exist_S], kind="stable")].tolist():
        if len(chosen) == most or value_S[s] <= 0:
            break
        if all(
            s % num_agents != other % num_agents
            or abs(s // num_agents - other // num_agents) >= apart_steps
            for other in chosen
        ):
            chosen.append(s)
    return chosen


class Items(NamedTuple):
    """What may be seen at a moment."""

    names: tuple[str, ...]
    present_WM: Bool[np.ndarray, "W M"]
    topic_M: tuple[str, ...]
    """Items of one topic say the same of different places; a name takes one of each."""


def token_items(observation_WN3: UInt8[np.ndarray, "W N 3"], vocabulary: TokenVocabulary) -> Items:
    """Every token at its place, next to the agent (one of the four cells), and anywhere in view."""
    location_WN, feature_WN, value_WN = (
        x.astype(np.int64) for x in np.moveaxis(observation_WN3, -1, 0)
    )
    rows, cols = location_WN >> 4, location_WN & 15
    north_WN, west_WN = vocabulary.window_rows // 2 - rows, vocabulary.window_cols // 2 - cols
    is_used_WN = location_WN != PADDING
    in_view_WN = is_used_WN & (location_WN != GLOBAL)
    is_next_WN = in_view_WN & (np.abs(north_WN) + np.abs(west_WN) == 1)
    elsewhere_WN = in_view_WN & (np.abs(north_WN) + np.abs(west_WN) > 0)
    token_WN = feature_WN << 8 | value_WN
    # (token, place): places are location bytes, and two more that no location has
    codes = [
        np.where(is_used, token_WN << 9 | place, -1)
        for is_used, place in (
            (is_used_WN, location_WN),
            (is_next_WN, _NEXT),
            (elsewhere_WN, _IN_VIEW),
        )
    ]
    code_M, column = np.unique(np.concatenate(codes, axis=1), return_inverse=True)
    present_WM = np.zeros((len(observation_WN3), len(code_M)), np.bool_)
    np.put_along_axis(present_WM, column.reshape(len(observation_WN3), -1), True, axis=1)
    is_token_M = code_M >= 0
    code_M, present_WM = code_M[is_token_M], present_WM[:, is_token_M]
    feature_names = {number: name for name, number in vocabulary.features.items()}
    topics = [_token_name(int(code) >> 9, feature_names, vocabulary) for code in code_M]
    names = [
        topic + _place_name(int(code) & 0x1FF, vocabulary)
        for topic, code in zip(topics, code_M, strict=True)
    ]
    return Items(tuple(names), present_WM, tuple(topics))


_NEXT, _IN_VIEW = 0x100, 0x101


def _token_name(token: int, feature_names: Mapping[int, str], vocabulary: TokenVocabulary) -> str:
    feature, value = feature_names.get(token >> 8, f"feature {token >> 8}"), token & 0xFF
    if feature == "tag" and value < len(vocabulary.tags):
        return vocabulary.tags[value].removeprefix("type:")
    return f"{feature}={value}"


def _place_name(place: int, vocabulary: TokenVocabulary) -> str:
    if place == _NEXT:
        return " next to it"
    if place == _IN_VIEW:
        return " in view"
    if place == GLOBAL:
        return ""
    north = vocabulary.window_rows // 2 - (place >> 4)
    east = (place & 15) - vocabulary.window_cols // 2
    parts = [
        f"{abs(far)} {positive if far > 0 else negative}"
        for far, positive, negative in ((north, "north", "south"), (east, "east", "west"))
        if far
    ]
    return " " + (" ".join(parts) or "on itself")


def label_items(
    label_WL: Bool[np.ndarray, "W L"], known_WL: Bool[np.ndarray, "W L"], names: Sequence[str]
) -> Items:
    """Labels that hold, and labels that do not, where they are known."""
    return Items(
        tuple([*names, *(f"not {name}" for name in names)]),
        np.concatenate([label_WL & known_WL, ~label_WL & known_WL], axis=1),
        tuple([*names, *(f"not {name}" for name in names)]),
    )


def joined(parts: Sequence[Items]) -> Items:
    """All items of several kinds, of the same moments."""
    return Items(
        tuple(name for part in parts for name in part.names),
        np.concatenate([part.present_WM for part in parts], axis=1),
        tuple(topic for part in parts for topic in part.topic_M),
    )


class StandOut(NamedTuple):
    """An item that is seen more often where the latent peaks."""

    item: str
    log_odds: float
    """Natural logarithm of the odds ratio of strong against other moments."""
    lo: float
    hi: float
    """Percentile interval over episodes."""
    q: float
    share_peaks: float
    """Of the strong moments, those with the item."""
    share_others: float


class Contrast(NamedTuple):
    """What was found out about one latent."""

    stand_outs: tuple[StandOut, ...]
    """Most certain first, one of each topic; empty if nothing stands out."""
    num_moments: int
    """Strong ones."""
    num_episodes: int
    num_items: int
    """Tested; 0 if the latent fires in too few episodes."""


def contrast(moments: Moments, items: Items, *, config: NamingConfig, seed: int) -> Contrast:
    """Items that are over-represented at the strong moments."""
    episodes, episode_W = np.unique(moments.episode_W, return_inverse=True)
    num_peaks = int(moments.is_peak_W.sum())
    if len(episodes) < config.min_episodes:
        return Contrast((), num_peaks, len(episodes), 0)
    # [E, 2, M]: how often each item is seen at strong and at other moments of an episode
    kind_W = 2 * episode_W + ~moments.is_peak_W
    in_kind_KW = np.arange(2 * len(episodes))[:, None] == kind_W
    # as float32, in which whole numbers are exact: 10 times faster than np.add.at
    count = (in_kind_KW.astype(np.float32) @ items.present_WM.astype(np.float32)).astype(np.float64)
    count = count.reshape(len(episodes), 2, len(items.names))
    support_M = (count > 0).any(1).sum(0)
    constant_M = items.present_WM.all(0)
    tested = np.flatnonzero((support_M >= config.min_episodes) & ~constant_M)
    frequency_M = items.present_WM.sum(0)
    tested = tested[np.argsort(-frequency_M[tested], kind="stable")][: config.max_items]
    if not len(tested):
        return Contrast((), num_peaks, len(episodes), 0)
    peaks_EM, others_EM = count[:, 0, tested], count[:, 1, tested]
    moments_E = np.bincount(episode_W[moments.is_peak_W], minlength=len(episodes)).astype(float)
    difference_EM = (peaks_EM - others_EM) / moments_E[:, None]
    q_M = benjamini_hochberg(_sign_flip_p(difference_EM, seed=seed))
    odds = log_odds_interval(
        peaks_EM, others_EM, moments_E, seed=seed, num_resamples=config.num_resamples
    )
    found = np.flatnonzero((q_M < config.max_q_value) & (odds.lo > np.log(config.min_odds)))
    found = found[np.argsort(-odds.lo[found], kind="stable")]
    stand_outs: dict[str, StandOut] = {}
    for m in found.tolist():
        stand_outs.setdefault(
            items.topic_M[tested[m]],
            StandOut(
                item=items.names[tested[m]],
                log_odds=float(odds.mean[m]),
                lo=float(odds.lo[m]),
                hi=float(odds.hi[m]),
                q=float(q_M[m]),
                share_peaks=float(peaks_EM[:, m].sum() / moments_E.sum()),
                share_others=float(others_EM[:, m].sum() / moments_E.sum()),
            ),
        )
    return Contrast(tuple(stand_outs.values()), num_peaks, len(episodes), len(tested))


def _sign_flip_p(difference_EM: Float64[np.ndarray, "E M"], *, seed: int) -> np.ndarray:
    """As many flips as Benjamini-Hochberg needs to find a single item, the same for all items."""
    num_items = difference_EM.shape[1]
    num_flips = max(10_000, permutations_needed(num_items))
    return np.concatenate(
        [
            paired_sign_flip(
                difference_EM[:, start : start + _FLIPPED_ITEMS], seed=seed, num_flips=num_flips
            )
            for start in range(0, num_items, _FLIPPED_ITEMS)
        ]
    )


def name_of(found: Contrast) -> str:
    """The item that stands out most, or that nothing does."""
    return found.stand_outs[0].item if found.stand_outs else NOTHING


def describe(found: Contrast, *, most: int = 3) -> str:
    """What stands out, in words, with numbers; the same for the same numbers."""
    if found.num_items == 0:
        return f"Too rare to say what stands out: strong moments in {found.num_episodes} episodes."
    if not found.stand_outs:
        return f"Nothing stands out among {found.num_items} items at {found.num_moments} strong moments."
    said = "; ".join(
        f"{one.item} (at {one.share_peaks:.0%} of the strong moments, {one.share_others:.0%} of others; log odds "
        f"{one.log_odds:.1f} [{one.lo:.1f}, {one.hi:.1f}])"
        for one in found.stand_outs[:most]
    )
    rest = len(found.stand_outs) - most
    more = f"; and {rest} more" if rest > 0 else ""
    return f"Peaks with {said}{more}. {found.num_moments} strong moments in {found.num_episodes} episodes."
