"""The loop that plays a policy in many worlds at once, reads its sites and edits them row by row.

Everything else in Sparsight stands on three promises of this file (docs/spec.md numbers them):

* a trial's episode is a function of (policy, world, trial) alone: not of how many worlds share the batch, of the order
  of the trials, of the process or of a retry;
* a base trial and an edited one with the same env_seed use the same map, the same simulator seed and the same sampling
  noise, so they differ by the effect of the edit only;
* an edit of dose 0 changes nothing, to the last bit.

The first holds because noise is counter-based, and because the policy always sees batches of `TILE_ROWS` rows: BLAS may
choose another kernel, and so another rounding, for another number of rows (seen at 256 rows of LSTM 512).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int32

from interp.noise import BLOCK_STEPS, gumbel_block
from interp.policies.policy import Policy, State
from interp.policies.taps import Edit, RecordingTap, RowEdits
from interp.policies.translation import fitted
from interp.records import Episode
from interp.worlds.world import World

TILE_ROWS = 64
"""Rows of one forward pass. LSTM(128) is fastest here: 1.7 us a row at 64 rows, 2.4 at 16, 1.8 at 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One episode to play."""

    env_seed: int
    """Seed of the map, of the simulator and of the sampling noise."""
    edits: tuple[Edit, ...] = ()
    agents: tuple[int, ...] | None = None
    """Agents whose activations are edited; None for all."""
    action_TA: Int32[np.ndarray, "T A"] | None = None
    """If given, the policy is run open-loop: these actions are played, whatever it would have chosen."""


@dataclass(frozen=True, slots=True)
class EveryStep:
    """Capture at every step."""

    def steps(self, num_steps: int) -> Int32[np.ndarray, " T_"]:
        return np.arange(num_steps, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Stride:
    """Capture at steps 0, n, 2n, ..."""

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"stride {self.every}: it must be at least 1 step")

    def steps(self, num_steps: int) -> Int32[np.ndarray, " T_"]:
        return np.arange(0, num_steps, self.every, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class SequenceEnd:
    """Capture at the last step of an episode only."""

    def steps(self, num_steps: int) -> Int32[np.ndarray, " T_"]:
        return np.array([num_steps - 1], np.int32)


CaptureSteps = EveryStep | Stride | SequenceEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What to keep of an episode besides actions and rewards."""

    sites: tuple[str, ...] = ()
    steps: CaptureSteps = EveryStep()
    facts: bool = False
    """Whether to collect what the simulator knows, from which labels are computed."""


def check_sites(known: Collection[str], sites: Collection[str]) -> None:
    """Raises ValueError if one of the sites is not among those that a policy has."""
    unknown = sorted(set(sites) - set(known))
    if unknown:
        raise ValueError(f"site {unknown[0]!r} not in policy; it has {', '.join(known)}")


def roll(
    policy: Policy,
    world: World,
    trials: Sequence[Trial],
    capture: Capture = Capture(),
) -> Iterator[Episode]:
    """Plays every trial once and yields its episode as soon as it ends; `Episode.index` tells which trial it was.

    Raises:
        ValueError: a site that the policy lacks, a world that it cannot play in, or an edit whose width is not the
            site's. Before anything is played.
    """
    policy = fitted(policy, world.spec)
    check_sites(
        policy.sites, [*capture.sites, *(edit.site for trial in trials for edit in trial.edits)]
    )
    for trial in trials:
        for edit in trial.edits:
            if edit.write_D.shape != (policy.sites[edit.site],):
                raise ValueError(
                    f"edit of {edit.site} has width {edit.write_D.shape}, but the site has {policy.sites[edit.site]}"
                )
    return _Batch(policy, world, trials, capture).play()


class _Batch:
    """The worlds of one call of `roll`: each plays one trial after the other until none is left."""

    def __init__(
        self, policy: Policy, world: World, trials: Sequence[Trial], capture: Capture
    ) -> None:
        self._policy = policy
        self._world = world
        self._trials = trials
        self._capture = capture
        spec = world.spec
        self._agents = spec.num_agents
        num_worlds = world.num_worlds
        rows = num_worlds * self._agents
        self._tiles = [
            slice(start, min(start + TILE_ROWS, rows)) for start in range(0, rows, TILE_ROWS)
        ]
        self._states: list[State] = [policy.initial_state(TILE_ROWS) for _ in self._tiles]
        self._last_tile_observation = np.zeros(
            (TILE_ROWS, *world.observation_R.shape[1:]), world.observation_R.dtype
        )
        edited = {edit.site for trial in trials for edit in trial.edits}
        self._edits = RowEdits(
            len(self._tiles) * TILE_ROWS, {site: policy.sites[site] for site in edited}
        )
        self._trial_of = np.full(num_worlds, -1)  # -1: idle
        self._forced: dict[int, Int32[np.ndarray, "T A"]] = {}
        self._t_of = np.zeros(num_worlds, np.int64)
        self._noise = np.zeros(
            (num_worlds, BLOCK_STEPS, self._agents, len(spec.action_names)), np.float32
        )
        # Rings over time: one copy a step for the whole batch; an episode is cut out when it ends.
        ring = spec.max_steps
        self._action = np.zeros((ring, rows), np.int32)
        self._reward = np.zeros((ring, rows), np.float32)
        self._done = np.zeros((ring, rows), np.bool_)
        self._activation = {
            site: np.zeros((ring, rows, policy.sites[site]), np.float32) for site in capture.sites
        }

    def play(self) -> Iterator[Episode]:
        waiting = iter(range(len(self._trials)))
        for slot in range(self._world.num_worlds):
            self._start(slot, next(waiting, None))
        clock = 0
        while (self._trial_of >= 0).any():
            at = clock % len(self._action)
            logits_RN = self._forward(at)
            action_R = self._choose(logits_RN)
            self._world.step(action_R)
            self._action[at] = action_R
            self._reward[at] = self._world.reward_R
            self._done[at] = self._world.done_R
            clock += 1
            self._t_of += 1
            for slot in self._ended_slots():
                yield self._cut(slot, clock)
                self._start(slot, next(waiting, None))

    def _start(self, slot: int, trial_index: int | None) -> None:
        rows = range(slot * self._agents, (slot + 1) * self._agents)
        self._trial_of[slot] = -1 if trial_index is None else trial_index
        self._t_of[slot] = 0
        self._forced.pop(slot, None)
        with torch.inference_mode():  # the states were made in it
            for row in rows:
                tile, offset = divmod(row, TILE_ROWS)
                for memory in self._states[tile]:
                    memory[offset] = 0
        if trial_index is None:
            for row in rows:
                self._edits.set_row(row, ())
            return
        trial = self._trials[trial_index]
        if trial.action_TA is not None:
            self._forced[slot] = trial.action_TA
        edited = range(self._agents) if trial.agents is None else trial.agents
        for agent, row in enumerate(rows):
            self._edits.set_row(row, trial.edits if agent in edited else ())
        self._world.reset(
            slot,
            map_seed=trial.env_seed,
            sim_seed=trial.env_seed,
            collect_facts=self._capture.facts,
        )

    def _forward(self, at: int) -> Float32[np.ndarray, "R N"]:
        """One step of the policy on every row; keeps what is captured in the rings at `at`."""
        logits = []
        for number, rows in enumerate(self._tiles):
            num_rows = rows.stop - rows.start
            observation = self._world.observation_R[rows]
            if num_rows < TILE_ROWS:
                self._last_tile_observation[:num_rows] = observation
                observation = self._last_tile_observation
            tap = RecordingTap(
                self._capture.sites, self._edits.tile(rows.start, rows.start + TILE_ROWS)
            )
            with torch.inference_mode():
                step = self._policy.step(observation, self._states[number], tap)
            self._states[number] = step.state
            logits.append(step.logits_RN[:num_rows].numpy())
            for site, ring in self._activation.items():
                ring[at, rows] = tap.activations[site][:num_rows].numpy()
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _choose(self, logits_RN: Float32[np.ndarray, "R N"]) -> Int32[np.ndarray, " R"]:
        step_in_block = self._t_of % BLOCK_STEPS
        for slot in np.flatnonzero((step_in_block == 0) & (self._trial_of >= 0)):
            self._noise[slot] = gumbel_block(
                self._trials[self._trial_of[slot]].env_seed,
                int(self._t_of[slot]) // BLOCK_STEPS,
                *self._noise.shape[2:],
            )
        noise_RN = self._noise[np.arange(len(self._noise)), step_in_block].reshape(logits_RN.shape)
        action_R = (logits_RN + noise_RN).argmax(1).astype(np.int32)
        for slot, forced_TA in self._forced.items():
            rows = slice(slot * self._agents, (slot + 1) * self._agents)
            action_R[rows] = forced_TA[self._t_of[slot]]
        return action_R

    def _ended_slots(self) -> list[int]:
        done_E = self._world.done_R.reshape(-1, self._agents).all(1)
        return [int(slot) for slot in np.flatnonzero(done_E & (self._trial_of >= 0))]

    def _cut(self, slot: int, clock: int) -> Episode:
        num_steps = int(self._t_of[slot])
        rows = slice(slot * self._agents, (slot + 1) * self._agents)
        at_T = np.arange(clock - num_steps, clock) % len(self._action)
        captured_t = self._capture.steps.steps(num_steps)
        trial_index = int(self._trial_of[slot])
        return Episode(
            env_seed=self._trials[trial_index].env_seed,
            index=trial_index,
            action_TA=self._action[at_T, rows],
            reward_TA=self._reward[at_T, rows],
            done_TA=self._done[at_T, rows],
            captured_t=captured_t,
            activations={
                site: ring[at_T[captured_t], rows] for site, ring in self._activation.items()
            },
            facts=self._world.retire(slot),
        )
