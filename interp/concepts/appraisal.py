"""Is this a good dictionary? All its figures beside those of the units, of random directions and of shuffled labels.

    error, sparsity   FVU, explained variance, L0, dead share   interp.dictionaries.metrics
    densities         dense share, histogram                    interp.dictionaries.density
    geometry          coherence of the decoder                  interp.dictionaries.coherence
    sparse probing    AUROC and F1 of probes of k latents       interp.concepts.probing
    splitting         over how many latents a label is spread   interp.concepts.splitting
    absorption        its latents silent, others in their place interp.concepts.absorption
    disentanglement   cause and isolation of interchanges       interp.concepts.disentanglement
    TPP               a diagnostic, unreliable as a score       interp.concepts.perturbation

Everything that is chosen or fitted is so on training episodes, everything that is told is of held-out ones. (What it
keeps of the policy's play is `interp.steering.splicing`.)

E episodes · N samples, flat · D width · F latents · V values of a code · L labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64

from interp.concepts.absorption import absorption
from interp.concepts.blocks import known_table
from interp.concepts.disentanglement import draw_pairs, interchange, moved
from interp.concepts.lags import Targets
from interp.concepts.perturbation import ablated, accuracy_drop, attributed
from interp.concepts.probing import Probe, f1_parts, fit_probe, most_telling
from interp.concepts.ranks import centred_ranks
from interp.concepts.scoring import auroc_interval, label_null, null_kind, rank_auroc
from interp.concepts.splitting import MIN_GAIN, main_latents
from interp.concepts.tracks import Tracks
from interp.dictionaries.coherence import coherence
from interp.dictionaries.control import random_dictionary
from interp.dictionaries.density import DENSE, dense_share, density_histogram
from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.metrics import measure
from interp.stats.bootstrap import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_ratio_difference,
)
from interp.stats.episodes import check_episodes
from interp.stats.multiplicity import benjamini_hochberg
from interp.stats.permutation import EPISODE_PERMUTATION, UNTESTED, Draws, two_sided

LATENTS, RANDOM, NEURONS, ALL_UNITS, SHUFFLED = (
    "latents",
    "random dictionary",
    "neurons",
    "all units",
    "shuffled labels",
)
NOT_TESTED = "not tested"
MIN_PAIRS = 20
"""Pairs that differ in another label, for its isolation to count."""
MIN_JUDGE_AUROC = 0.7
"""Of a dense probe within the training episodes, for it to judge edits."""

APPRAISAL_SCHEMA = pa.schema(
    [
        ("policy_name", pa.string()),
        ("dict_id", pa.string()),
        ("site", pa.string()),
        ("figure", pa.string()),
        ("label", pa.string()),
        ("reads", pa.string()),
        ("k", pa.int32()),
        ("value", pa.float64()),
        ("lo", pa.float64()),
        ("hi", pa.float64()),
        ("p_value", pa.float64()),
        ("q_value", pa.float64()),
        ("n_samples", pa.int64()),
        ("n_episodes", pa.int32()),
        ("latents", pa.list_(pa.int32())),
    ]
)
"""One row per figure, label and what it is read from; bounds of 95 % over episodes. `label` is null where a figure is
of no label, `k` but for probes; NaN is what is undefined, null what a figure does not have. q is over all p of the
table. A label that holds, or fails to hold, in too few episodes has one row, "not tested", with the number of held-out
episodes in which it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalConfig:
    """How a dictionary is appraised."""

    stride_steps: int = 4
    """Every so manieth step is looked at; neighbouring steps say nearly the same."""
    k: tuple[int, ...] = (1, 2, 5, 16)
    """Latents, or units, that sparse probes read."""
    min_gain: float = MIN_GAIN
    """F1 that another latent must add, on training episodes, to count as a part of a split label."""
    max_pairs: int = 2000
    """Pairs of samples whose latents are interchanged, for each label."""
    perturbed_latents: int = 10
    """Latents that targeted perturbation takes away."""
    num_permutations: int = 1000
    """Episode permutations behind each p-value."""
    num_resamples: int = 2000
    """Bootstrap resamples of episodes behind each interval."""
    min_positive_episodes: int = 10
    """Episodes, of training and of held-out ones, in which a label must hold, and fail to hold."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"k is {self.k}: wanted numbers of latents, at least 1, each once")
        if not 0 < self.min_gain < 1:
            raise ValueError(f"min_gain is {self.min_gain}: a rise of F1, above 0 and below 1")
        for name, least in (
            ("stride_steps", 1),
            ("max_pairs", 2),
            ("perturbed_latents", 1),
            ("num_permutations", 1),
            ("num_resamples", 1),
            ("min_positive_episodes", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: at least {least}")


class Estimate(NamedTuple):
    """NaN if undefined; no bounds where a figure is of the weights, or a count over all samples."""

    value: float
    lo: float | None = None
    hi: float | None = None

    @classmethod
    def first(cls, interval: Interval) -> "Estimate":
        return cls(float(interval.mean[0]), float(interval.lo[0]), float(interval.hi[0]))


UNDEFINED = Estimate(np.nan, np.nan, np.nan)


class Row(NamedTuple):
    """A row of `APPRAISAL_SCHEMA` but for the q-value and the names of policy, dictionary and site."""

    figure: str
    label: str | None
    reads: str
    k: int | None
    value: float
    lo: float | None
    hi: float | None
    p_value: float | None
    n_samples: int
    n_episodes: int
    latents: list[int] | None


class Part(NamedTuple):
    """What one step of an appraisal found."""

    what: str
    rows: list[Row]


class _Samples(NamedTuple):
    """One side of the split, flat."""

    x_ND: Float32[np.ndarray, "N D"]
    label_NL: Bool[np.ndarray, "N L"]
    known_NL: Bool[np.ndarray, "N L"]
    episode_N: Int64[np.ndarray, " N"]
    targets: Targets

    @classmethod
    def of(cls, tracks: Tracks) -> "_Samples":
        mask_ES, targets = tracks.mask_ES, tracks.targets
        return cls(
            tracks.activation_ESD[mask_ES],
            targets.label_ESC[mask_ES],
            targets.known_ESC[mask_ES],
            np.nonzero(mask_ES)[0],
            targets,
        )

    @property
    def num_episodes(self) -> int:
        return len(self.targets.mask_ES)

    def by_episode(self, index: np.ndarray, value: np.ndarray) -> Float64[np.ndarray, "E 1"]:
        """Sums over the samples of each episode; `index` are the numbers of samples, each with its value."""
        sums_E = np.bincount(self.episode_N[index], value.astype(np.float64), self.num_episodes)
        return sums_E[:, None]


class _Code(NamedTuple):
    """What may be read and edited in place of the activation: latents, or the units themselves."""

    reads: str
    train_NV: Float32[np.ndarray, "N V"]
    held_out_NV: Float32[np.ndarray, "N V"]
    write_VD: Float32[np.ndarray, "V D"]
    """What a value of 1 adds to the activation."""
    base_D: Float32[np.ndarray, " D"]
    """What all values 0 stand for."""


class _Label(NamedTuple):
    name: str
    column: int
    order_of: dict[str, Int64[np.ndarray, " V"]]
    """Values of each code, the most telling first."""
    dense: Probe
    is_judge: bool
    """Whether the dense probe tells the label well enough to judge edits."""
    null: str


class Appraisal:
    """One dictionary on one recording; `run` says what it finds, part by part."""

    def __init__(
        self,
        train: Tracks,
        held_out: Tracks,
        dictionary: Dictionary,
        config: AppraisalConfig,
        *,
        seed: int,
    ) -> None:
        """ValueError for a transcoder, too few episodes on a side, or rows that are not finite."""
        if dictionary.is_transcoder:
            raise ValueError(
                f"a transcoder from {dictionary.site} to {dictionary.target_site} writes where it does not read; only "
                "a dictionary of one site can be appraised"
            )
        for tracks in (train, held_out):
            check_episodes(len(tracks.env_seed_E))
        self.config, self.seed = config, seed
        self._names = train.label_names
        self._train, self._held_out = _Samples.of(train), _Samples.of(held_out)
        measured = measure(dictionary, self._held_out.x_ND)
        dictionary = replace(dictionary, l0=measured.l0)
        self._dictionaries = {
            LATENTS: dictionary,
            RANDOM: random_dictionary(dictionary, self._train.x_ND, seed=seed),
        }

    @property
    def num_parts(self) -> int:
        return 2 + len(self._names)

    def run(self) -> Iterator[Part]:
        """The dictionary itself, what all labels need, and then label by label."""
        codes = [self._code(reads) for reads in self._dictionaries]
        yield Part(
            "error and geometry",
            [row for code in codes for row in self._of_dictionary(code)],
        )
        codes.append(self._units())
        labels = [self._label(c, codes) for c in range(len(self._names))]
        yield Part("dense probes", [])
        panel = _Panel.of([label for label in labels if label is not None and label.is_judge])
        for name, label in zip(self._names, labels, strict=True):
            found = (
                [self._not_tested(name)] if label is None else self._of_label(label, codes, panel)
            )
            yield Part(name, found)

    # --- what is read

    def _code(self, reads: str) -> _Code:
        dictionary = self._dictionaries[reads]
        silent_1F = torch.zeros(1, dictionary.d_sae)
        return _Code(
            reads,
            dictionary.encode_rows(self._train.x_ND),
            dictionary.encode_rows(self._held_out.x_ND),
            (dictionary.scale * dictionary.W_dec).numpy(),
            dictionary.decode(silent_1F)[0].numpy(),
        )

    def _units(self) -> _Code:
        mean_D = self._train.x_ND.mean(0, dtype=np.float64).astype(np.float32)
        return _Code(
            NEURONS,
            self._train.x_ND - mean_D,
            self._held_out.x_ND - mean_D,
            np.eye(len(mean_D), dtype=np.float32),
            mean_D,
        )

    def _label(self, column: int, codes: Sequence[_Code]) -> _Label | None:
        """Probes and orders of a label, or None if it cannot be tested."""
        kinds = [
            null_kind(
                side.targets.label_ESC[..., column],
                side.targets.known_ESC[..., column],
                self.config.min_positive_episodes,
            )
            for side in (self._train, self._held_out)
        ]
        if UNTESTED in kinds:
            return None
        known_N = self._train.known_NL[:, column]
        label_N = self._train.label_NL[known_N, column]
        x_ND = _some(self._train.x_ND, known_N)
        return _Label(
            self._names[column],
            column,
            {code.reads: most_telling(_some(code.train_NV, known_N), label_N) for code in codes},
            fit_probe(x_ND, label_N, np.arange(x_ND.shape[1])),
            _cross_auroc(x_ND, label_N, self._train.episode_N[known_N]) >= MIN_JUDGE_AUROC,
            kinds[1],
        )

    # --- what is found

    def _of_dictionary(self, code: _Code) -> Iterator[Row]:
        held_out, dictionary = self._held_out, self._dictionaries[code.reads]
        every = np.arange(len(held_out.x_ND))
        recon_ND = code.held_out_NV @ code.write_VD + code.base_D
        error_E1 = held_out.by_episode(every, np.square(held_out.x_ND - recon_ND).sum(1))
        about_ND = held_out.x_ND - held_out.x_ND.mean(0, dtype=np.float64)
        fvu = self._ratio(error_E1, held_out.by_episode(every, np.square(about_ND).sum(1)))
        active_N = (code.held_out_NV > 0).sum(1)
        density_F = torch.from_numpy((code.held_out_NV > 0).mean(0))
        histogram = density_histogram(density_F)
        found = coherence(dictionary.W_dec)
        explained = Estimate(
            1 - fvu.value, *(None if bound is None else 1 - bound for bound in (fvu.hi, fvu.lo))
        )
        num_E1 = held_out.by_episode(every, np.ones(len(every)))
        figures = {
            "FVU": fvu,
            "explained variance": explained,
            "L0": self._ratio(held_out.by_episode(every, active_N), num_E1),
            "dead share": Estimate(histogram.dead_share),
            f"dense share (above {DENSE:g})": Estimate(dense_share(density_F)),
            **{
                f"density above {low:g}, to {high:g}": Estimate(float(share))
                for low, high, share in zip(
                    histogram.edge_H[:-1], histogram.edge_H[1:], histogram.share_H, strict=True
                )
            },
            "coherence, mean": Estimate(found.mean),
            "coherence, nearest": Estimate(found.nearest),
            "coherence, max": Estimate(found.max),
            "coherence, least possible max": Estimate(found.welch_bound),
        }
        for figure, estimate in figures.items():
            yield self._row(figure, estimate, reads=code.reads, n_samples=len(every))

    def _not_tested(self, name: str) -> Row:
        targets, column = self._held_out.targets, self._names.index(name)
        num_with = float(targets.label_ESC[..., column].any(1).sum())
        num_known = int(targets.known_ESC[..., column].sum())
        return self._row(
            NOT_TESTED, Estimate(num_with), reads=LATENTS, label=name, n_samples=num_known
        )

    def _of_label(self, label: _Label, codes: Sequence[_Code], panel: "_Panel") -> list[Row]:
        rows = self._probed(label, codes)
        mains: dict[str, np.ndarray] = {}
        for code in codes:
            found, mains[code.reads] = self._split(label, code)
            if code.reads != NEURONS:
                rows += found
                rows += self._absorbed(label, code, mains[code.reads])
        if not label.is_judge or len(panel.columns) < 2:
            return rows + self._unjudged(label, codes)
        rows += self._interchanged(label, codes, mains, panel)
        return rows + [
            self._perturbed(label, code, panel) for code in codes if code.reads != NEURONS
        ]

    def _unjudged(self, label: _Label, codes: Sequence[_Code]) -> list[Row]:
        """No edit of a label can be judged that no probe tells, or that is the only one that is told."""
        return [
            self._row(figure, UNDEFINED, reads=code.reads, label=label.name, n_samples=0)
            for code in codes
            for figure in ("cause", "isolation", "disentanglement")
        ]

    def _probed(self, label: _Label, codes: Sequence[_Code]) -> list[Row]:
        """AUROC and F1 of all probes of one label, and of the latents' on labels of other episodes."""
        train, held_out = (self._targets(side, label) for side in (self._train, self._held_out))
        units = next(code for code in codes if code.reads == NEURONS)
        dense = label.dense._replace(bias=label.dense.bias + label.dense.weight_K @ units.base_D)
        probes = [(ALL_UNITS, units, dense)]
        for code in codes:
            order_V = label.order_of[code.reads]
            probes += [
                (code.reads, code, self._fit(code, train, order_V[:k]))
                for k in self.config.k
                if k <= len(order_V)
            ]
        rows = self._judged(label, probes, held_out)
        if label.null != EPISODE_PERMUTATION:  # the same in all episodes: shuffling changes nothing
            return rows
        generator = np.random.default_rng(self.seed)
        train, held_out = (_worn(targets, generator) for targets in (train, held_out))
        latents = codes[0]
        known_N, label_N = self._flat(train)
        if not label_N.any() or label_N.all() or not self._flat(held_out)[1].any():
            return rows
        order_V = most_telling(_some(latents.train_NV, known_N), label_N)
        probes = [
            (SHUFFLED, latents, self._fit(latents, train, order_V[:k]))
            for k in self.config.k
            if k <= len(order_V)
        ]
        return rows + self._judged(label, probes, held_out)

    def _targets(self, side: _Samples, label: _Label) -> Targets:
        one = slice(label.column, label.column + 1)
        return Targets(
            label_ESC=side.targets.label_ESC[..., one],
            known_ESC=side.targets.known_ESC[..., one],
            mask_ES=side.targets.mask_ES,
        )

    @staticmethod
    def _flat(targets: Targets) -> tuple[np.ndarray, np.ndarray]:
        """Which samples are known, and the label of those."""
        known_N = targets.known_ESC[targets.mask_ES][:, 0]
        return known_N, targets.label_ESC[targets.mask_ES][known_N, 0]

    def _fit(self, code: _Code, train: Targets, index_K: np.ndarray) -> Probe:
        known_N, label_N = self._flat(train)
        return fit_probe(_some(code.train_NV, known_N), label_N, index_K)

    def _judged(
        self, label: _Label, probes: Sequence[tuple[str, _Code, Probe]], targets: Targets
    ) -> list[Row]:
        mask_ES, known_ES = targets.mask_ES, targets.known_ESC[..., 0]
        logit_NP = np.stack([probe.logits(code.held_out_NV) for _, code, probe in probes], 1)
        logit_ESP = np.zeros((*mask_ES.shape, len(probes)), np.float32)
        logit_ESP[mask_ES] = logit_NP
        table = known_table(logit_ESP, targets)
        bounds = auroc_interval(table, seed=self.seed, num_resamples=self.config.num_resamples)
        draws = Draws.make(len(mask_ES), self.config.num_permutations, seed=self.seed)
        rank_ESP = centred_ranks(logit_ESP, known_ES)
        p_P = two_sided(
            label_null(rank_ESP, targets.label_ESC[..., 0], known_ES, label.null, draws)
        )
        known_N, label_N = self._flat(targets)
        episode_N = self._held_out.episode_N[known_N]
        rows: list[Row] = []
        for p, (reads, _, probe) in enumerate(probes):
            said_N = logit_NP[known_N, p] > probe.threshold
            parts = f1_parts(said_N, label_N, episode_N, len(mask_ES))
            tell = partial(
                self._row,
                reads=reads,
                label=label.name,
                k=len(probe.index_K),
                n_samples=len(label_N),
                latents=None if reads == ALL_UNITS else probe.index_K.tolist(),
            )
            area = Estimate(
                float(table.auroc_FC[p, 0]), float(bounds.lo[p, 0]), float(bounds.hi[p, 0])
            )
            rows += [
                tell("AUROC", area, p_value=float(p_P[p])),
                tell("F1", self._ratio(parts.twice_hits_E[:, None], parts.size_E[:, None])),
            ]
        return rows

    def _split(self, label: _Label, code: _Code) -> tuple[list[Row], np.ndarray]:
        """Main latents, and what they are worth on held-out episodes beside the first alone."""
        known_N, label_N = self._flat(self._targets(self._train, label))
        split = main_latents(
            _some(code.train_NV, known_N),
            label_N,
            label.order_of[code.reads],
            min_gain=self.config.min_gain,
        )
        held_known_N, held_label_N = self._flat(self._targets(self._held_out, label))
        tell = partial(
            self._row,
            reads=code.reads,
            label=label.name,
            n_samples=len(held_label_N),
            latents=split.main_K.tolist(),
        )
        if not split.probes:
            return [
                tell("splitting", Estimate(0.0)),
                tell("splitting gain", UNDEFINED),
            ], split.main_K
        value_NV = _some(code.held_out_NV, held_known_N)
        episode_N = self._held_out.episode_N[held_known_N]
        together, alone = (
            f1_parts(
                probe.logits(value_NV) > probe.threshold,
                held_label_N,
                episode_N,
                self._held_out.num_episodes,
            )
            for probe in (split.probes[-1], split.probes[0])
        )
        gain = bootstrap_ratio_difference(
            (together.twice_hits_E[:, None], together.size_E[:, None]),
            (alone.twice_hits_E[:, None], alone.size_E[:, None]),
            seed=self.seed,
            num_resamples=self.config.num_resamples,
        )
        return [
            tell("splitting", Estimate(float(split.main_K.size))),
            tell("splitting gain", Estimate.first(gain)),
        ], split.main_K

    def _absorbed(self, label: _Label, code: _Code, main_K: np.ndarray) -> list[Row]:
        held_out = self._held_out
        right = np.flatnonzero(
            held_out.label_NL[:, label.column] & (label.dense.logits(held_out.x_ND) > 0)
        )
        unit_D = label.dense.weight_K / max(np.linalg.norm(label.dense.weight_K), 1e-30)
        found = absorption(
            code.held_out_NV[right],
            code.write_VD,
            (held_out.x_ND[right] - code.base_D) @ unit_D,
            unit_D,
            main_K,
        )
        num_E1 = held_out.by_episode(right, np.ones(len(right)))
        absorber, times = np.unique(found.absorber_N[found.absorbed_N], return_counts=True)
        tell = partial(
            self._row,
            reads=code.reads,
            label=label.name,
            n_samples=len(right),
            latents=absorber[np.argsort(-times, kind="stable")][:5].tolist(),
        )
        return [
            tell(
                figure,
                self._ratio(held_out.by_episode(right, value_N), num_E1)
                if len(main_K)  # else no latent stands for the label, and nothing can be absorbed
                else UNDEFINED,
            )
            for figure, value_N in (
                ("absorption", found.absorbed_N),
                ("partly absorbed", found.partly_N),
            )
        ]

    def _interchanged(
        self,
        label: _Label,
        codes: Sequence[_Code],
        mains: Mapping[str, np.ndarray],
        panel: "_Panel",
    ) -> list[Row]:
        held_out, target = self._held_out, panel.columns.index(label.column)
        label_NL, known_NL = (
            column_NL[:, panel.columns] for column_NL in (held_out.label_NL, held_out.known_NL)
        )
        said_NL = panel.says(held_out.x_ND)
        right_N = known_NL[:, target] & (said_NL[:, target] == label_NL[:, target])
        pairs = draw_pairs(
            label_NL[:, target],
            right_N,
            held_out.episode_N,
            seed=self.seed,
            max_pairs=self.config.max_pairs,
        )
        base_P = pairs.base_P
        rows: list[Row] = []
        for code in codes:
            edited_PD = interchange(
                held_out.x_ND, code.held_out_NV, code.write_VD, mains[code.reads], pairs
            )
            after = moved(panel.says(edited_PD), said_NL, label_NL, known_NL, pairs, target)
            caused = (
                held_out.by_episode(base_P, after.caused_P),
                held_out.by_episode(base_P, np.ones(len(base_P))),
            )
            num_L = after.counts_PL.sum(0)
            enough_L = num_L >= MIN_PAIRS
            weight_L = enough_L / np.maximum(num_L, 1) / max(1, enough_L.sum())
            isolated = (
                held_out.by_episode(base_P, (after.counts_PL & after.kept_PL) @ weight_L),
                held_out.by_episode(base_P, after.counts_PL @ weight_L),
            )
            both = bootstrap_ratio_difference(
                caused,
                (-isolated[0], isolated[1]),
                seed=self.seed,
                num_resamples=self.config.num_resamples,
            )
            score = Estimate(*(bound[0] / 2 for bound in (both.mean, both.lo, both.hi)))
            tell = partial(
                self._row,
                reads=code.reads,
                label=label.name,
                n_samples=len(base_P),
                latents=mains[code.reads].tolist(),
            )
            rows += [
                tell("cause", self._ratio(*caused)),
                tell("isolation", self._ratio(*isolated)),
                tell("disentanglement", score),
            ]
        return rows

    def _perturbed(self, label: _Label, code: _Code, panel: "_Panel") -> Row:
        held_out, target = self._held_out, panel.columns.index(label.column)
        known_N, label_N = self._flat(self._targets(self._train, label))
        index_n = attributed(
            _some(code.train_NV, known_N),
            label_N,
            code.write_VD,
            label.dense.weight_K,
            num=min(self.config.perturbed_latents, len(code.write_VD)),
        )
        edited_ND = ablated(held_out.x_ND, code.held_out_NV, code.write_VD, index_n)
        drop_EL = accuracy_drop(
            panel.says(held_out.x_ND),
            panel.says(edited_ND),
            held_out.label_NL[:, panel.columns],
            held_out.known_NL[:, panel.columns],
            held_out.episode_N,
            held_out.num_episodes,
        )
        others_E = (drop_EL.sum(1) - drop_EL[:, target]) / (len(panel.columns) - 1)
        found = bootstrap_mean(
            held_out.num_episodes * (drop_EL[:, target] - others_E)[:, None],
            seed=self.seed,
            num_resamples=self.config.num_resamples,
        )
        return self._row(
            "TPP (diagnostic)",
            Estimate.first(found),
            reads=code.reads,
            label=label.name,
            n_samples=len(held_out.x_ND),
            latents=index_n.tolist(),
        )

    # --- how it is told

    def _row(
        self,
        figure: str,
        estimate: Estimate,
        *,
        reads: str,
        n_samples: int,
        label: str | None = None,
        k: int | None = None,
        p_value: float | None = None,
        latents: list[int] | None = None,
    ) -> Row:
        return Row(
            figure=figure,
            label=label,
            reads=reads,
            k=k,
            **estimate._asdict(),
            p_value=p_value,
            n_samples=n_samples,
            n_episodes=self._held_out.num_episodes,
            latents=latents,
        )

    def _ratio(self, numerator_E1: np.ndarray, denominator_E1: np.ndarray) -> Estimate:
        return Estimate.first(
            bootstrap_ratio(
                numerator_E1,
                denominator_E1,
                seed=self.seed,
                num_resamples=self.config.num_resamples,
            )
        )


class _Panel(NamedTuple):
    """The dense probes that judge edits."""

    columns: list[int]
    weight_DL: Float64[np.ndarray, "D L"]
    bias_L: Float64[np.ndarray, " L"]

    @classmethod
    def of(cls, judges: Sequence[_Label]) -> "_Panel":
        weights = [one.dense.weight_K for one in judges]
        return cls(
            [one.column for one in judges],
            np.stack(weights, 1) if weights else np.zeros((0, 0)),
            np.array([one.dense.bias for one in judges], np.float64),
        )

    def says(self, x_ND: Float[np.ndarray, "N D"]) -> Bool[np.ndarray, "N L"]:
        return x_ND @ self.weight_DL + self.bias_L > 0


def _cross_auroc(
    x_ND: Float32[np.ndarray, "N D"],
    label_N: Bool[np.ndarray, " N"],
    episode_N: Int64[np.ndarray, " N"],
) -> float:
    """AUROC of a dense probe of every second episode on the others; 0.5 if one half has nothing to tell apart."""
    fits_N = episode_N % 2 == 0
    if any(label_N[half].all() or not label_N[half].any() for half in (fits_N, ~fits_N)):
        return 0.5
    probe = fit_probe(x_ND[fits_N], label_N[fits_N], np.arange(x_ND.shape[1]))
    logit_1N1 = probe.logits(x_ND[~fits_N]).astype(np.float32)[None, :, None]
    label_1N1 = label_N[~fits_N][None, :, None]
    return float(rank_auroc(logit_1N1, label_1N1, np.ones(label_1N1.shape[:2], np.bool_))[0, 0])


def _some(value_NV: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """The rows that are known, without a copy if all are."""
    return value_NV if known_N.all() else value_NV[known_N]


def _worn(targets: Targets, generator: np.random.Generator) -> Targets:
    """Every episode with the label track of another one."""
    order_E = generator.permutation(len(targets.mask_ES))
    worn_E = np.empty_like(order_E)
    worn_E[order_E] = np.roll(order_E, 1)
    known_ESC = targets.known_ESC[worn_E] & targets.mask_ES[..., None]
    return Targets(
        label_ESC=targets.label_ESC[worn_E] & known_ESC,
        known_ESC=known_ESC,
        mask_ES=targets.mask_ES,
    )


def appraisal_table(parts: Sequence[Part], *, identity: Mapping[str, str]) -> pa.Table:
    """All parts as `APPRAISAL_SCHEMA`; `identity` gives the columns policy_name, dict_id and site."""
    rows = [row for part in parts for row in part.rows]
    p_value = np.array([np.nan if row.p_value is None else row.p_value for row in rows])
    return pa.Table.from_pylist(
        [
            {**identity, **row._asdict(), "q_value": None if np.isnan(q) else q}
            for row, q in zip(rows, benjamini_hochberg(p_value).tolist(), strict=True)
        ],
        schema=APPRAISAL_SCHEMA,
    )
