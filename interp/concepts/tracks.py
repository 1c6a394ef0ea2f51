"""Rows of a recording, folded back into episodes: the form in which everything is scored.

E episodes · S samples of an episode (captured steps x agents, step-major, padded to the longest) · D · L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from interp.concepts.lags import Targets
from interp.recording import activations, judged_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """One site of one policy and the ground truth beside it, episode by episode."""

    env_seed_E: Int64[np.ndarray, " E"]
    activation_ESD: Float32[np.ndarray, "E S D"]
    label_ESL: Bool[np.ndarray, "E S L"]
    """False where not known."""
    mask_ES: Bool[np.ndarray, "E S"]
    """False where an episode is shorter than the longest."""
    label_names: tuple[str, ...]
    num_agents: int
    known_ESL: Bool[np.ndarray, "E S L"] | None = None
    """Where the labels are known; None if they are wherever there is a sample."""

    @classmethod
    def of(
        cls, table: pa.Table, *, site: str, labels: Sequence[str], stride_steps: int = 1
    ) -> "Tracks":
        """From rows in the recording's order; every `stride_steps`-th captured step is kept."""
        env_seed_N = table.column("env_seed").to_numpy()
        num_agents = int(table.column("agent").to_numpy().max()) + 1
        starts = np.flatnonzero(np.diff(env_seed_N, prepend=env_seed_N[0] - 1))
        lengths = np.diff(starts, append=len(env_seed_N))
        kept = [
            _every(start, length, num_agents, stride_steps)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]
        longest = max(len(rows) for rows in kept)
        row_ES = np.zeros((len(kept), longest), np.int64)
        mask_ES = np.zeros((len(kept), longest), np.bool_)
        for episode, rows in enumerate(kept):
            row_ES[episode, : len(rows)] = rows
            mask_ES[episode, : len(rows)] = True
        activation_ESD = activations(table, site)[row_ES].astype(np.float32)
        activation_ESD[~mask_ES] = 0
        judged = judged_labels(table, labels)
        known_ESL = judged.known_NL[row_ES] & mask_ES[..., None]
        return cls(
            env_seed_E=env_seed_N[starts],
            activation_ESD=activation_ESD,
            label_ESL=judged.label_NL[row_ES] & mask_ES[..., None],
            mask_ES=mask_ES,
            label_names=tuple(labels),
            num_agents=num_agents,
            known_ESL=None if judged.known_NL.all() else known_ESL,
        )

    def select(self, episode_E: Bool[np.ndarray, " E"]) -> "Tracks":
        """The episodes for which the mask is true."""
        return type(self)(
            env_seed_E=self.env_seed_E[episode_E],
            activation_ESD=self.activation_ESD[episode_E],
            label_ESL=self.label_ESL[episode_E],
            mask_ES=self.mask_ES[episode_E],
            label_names=self.label_names,
            num_agents=self.num_agents,
            known_ESL=None if self.known_ESL is None else self.known_ESL[episode_E],
        )

    @property
    def targets(self) -> Targets:
        """The labels, and where each of them is known."""
        if self.known_ESL is None:
            return Targets.known(self.label_ESL, self.mask_ES)
        return Targets(label_ESC=self.label_ESL, known_ESC=self.known_ESL, mask_ES=self.mask_ES)

    @classmethod
    def joined(cls, parts: Sequence["Tracks"]) -> "Tracks":
        """All episodes of several tracks of one recording, padded to the longest of them."""
        longest = max(part.mask_ES.shape[1] for part in parts)

        def padded(name: str) -> np.ndarray:
            return _padded([getattr(part, name) for part in parts], longest)

        return cls(
            env_seed_E=np.concatenate([part.env_seed_E for part in parts]),
            activation_ESD=padded("activation_ESD"),
            label_ESL=padded("label_ESL"),
            mask_ES=padded("mask_ES"),
            label_names=parts[0].label_names,
            num_agents=parts[0].num_agents,
            known_ESL=(
                None
                if all(part.known_ESL is None for part in parts)
                else _padded([part.targets.known_ESC for part in parts], longest)
            ),
        )

    def label(self, name: str) -> Bool[np.ndarray, "E S"]:
        return self.label_ESL[..., self.label_names.index(name)]


def _padded(arrays: Sequence[np.ndarray], longest: int) -> np.ndarray:
    """Arrays [E, S, ...] behind each other, with S the longest."""
    return np.concatenate(
        [np.pad(x, [(0, 0), (0, longest - x.shape[1])] + [(0, 0)] * (x.ndim - 2)) for x in arrays]
    )


def _every(start: int, length: int, num_agents: int, stride_steps: int) -> np.ndarray:
    """Rows of every `stride_steps`-th step of an episode that begins at row `start`."""
    steps = np.arange(0, length // num_agents, stride_steps)
    return start + (steps[:, None] * num_agents + np.arange(num_agents)).reshape(-1)
