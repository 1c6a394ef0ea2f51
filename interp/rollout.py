"""The loop that plays a policy in many worlds at once, reads its sites and edits them row by row.

Everything else in Sparsight stands on three promises of this file (docs/spec.md numbers them):

* a trial's episode is a function of (policy, world, trial) alone: not of how many worlds share the batch, of the order
  of the trials, of the process or of a retry;
* a base trial and an edited one with the same env_seed use the same map, the same simulator seed and the same sampling
  noise, so they differ by the effect of the edit only;
* an edit of dose 0 changes nothing, to the last bit.

The first holds because noise is counter-based, and because a forward pass has a number of rows at which the policy
computes the same bits as at every other that is used (`interp.tiles`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int32

from interp.kernels import choose
from interp.noise import BLOCK_STEPS, gumbel_block
from interp.notebook import Notebook
from interp.policies.policy import Policy, State
from interp.policies.taps import Edit, RecordingTap, RowEdits, Splice
from interp.policies.translation import fitted
from interp.records import Episode
from interp.tiles import SIZES, tile_sizes
from interp.trajectories import PADDING
from interp.worlds.world import World, WorldSpec

FULL_BATCH_ROWS = 256
"""Rows beyond which a batch that is captured gets hardly any faster."""
PLAYED_BATCH_ROWS = SIZES[-1]
"""Rows of a batch of which nothing is captured: arms of an experiment, evaluations."""
BATCH_BYTES = 512 << 20
"""What the activations of a batch may occupy while its episodes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One episode to play."""

    env_seed: int
    """Seed of the map, of the simulator and of the sampling noise."""
    edits: tuple[Edit | Splice, ...] = ()
    agents: tuple[int, ...] | None = None
    """Agents whose activations are edited; None for all."""
    action_TA: Int32[np.ndarray, "T A"] | None = None
    """If given, the policy is run open-loop: these actions are played, whatever it would have chosen."""


@dataclass(frozen=True, slots=True)
class EveryStep:
    """Capture at every step."""

    def steps(self, num_steps: int) -> Int32[np.ndarray, " T_"]:
        return np.arange(num_steps, dtype=np.int32)

    def among(self, first: int, stop: int, *, is_end: bool) -> Int32[np.ndarray, " T_"]:
        return np.arange(first, stop, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Stride:
    """Capture at steps 0, n, 2n, ..."""

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"stride {self.every}: it must be at least 1 step")

    def steps(self, num_steps: int) -> Int32[np.ndarray, " T_"]:
        return np.arange(0, num_steps, self.every, dtype=np.int32)

    def among(self, first: int, stop: int, *, is_end: bool) -> Int32[np.ndarray, " T_"]:
        return np.arange(-(-first // self.every) * self.every, stop, self.every, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class SequenceEnd:
    """Capture at the last step of an episode only."""

    def steps(self, num_steps: int) -> Int32[np.ndarray, " T_"]:
        return np.array([num_steps - 1], np.int32)

    def among(self, first: int, stop: int, *, is_end: bool) -> Int32[np.ndarray, " T_"]:
        return np.array([stop - 1] if is_end else [], np.int32)


CaptureSteps = EveryStep | Stride | SequenceEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What to keep of an episode besides actions and rewards."""

    sites: tuple[str, ...] = ()
    steps: CaptureSteps = EveryStep()
    facts: bool = False
    """Whether to collect what the simulator knows, from which labels are computed."""
    precision: Literal["float32", "float16"] = "float32"
    """Of the activations; float16 is converted as they are kept, and infinite where one does not fit."""


def fitting_worlds(spec: WorldSpec, site_widths: Mapping[str, int], num_trials: int) -> int:
    """How many worlds to play at once: enough for a full batch, no more than memory holds or than there are trials.

    Changes speed and memory only, never a number.
    """
    step_bytes = spec.num_agents * (2 * sum(site_widths.values()) + 16)
    in_memory = BATCH_BYTES // (spec.max_steps * step_bytes)
    rows = FULL_BATCH_ROWS if site_widths else PLAYED_BATCH_ROWS
    full = -(-rows // spec.num_agents)
    return max(1, min(full, in_memory, num_trials))


def check_sites(known: Collection[str], sites: Collection[str]) -> None:
    """Raises ValueError if one of the sites is not among those that a policy has."""
    unknown = sorted(set(sites) - set(known))
    if unknown:
        raise ValueError(f"site {unknown[0]!r} not in policy; it has {', '.join(known)}")


def roll(
    policy: Policy,
    world: World | tuple[World, ...],
    trials: Sequence[Trial],
    capture: Capture = Capture(),
) -> Iterator[Episode]:
    """Plays every trial once and yields its episode as soon as it ends; `Episode.index` tells which trial it was.

    With several batches of worlds, of one kind, the policy computes for one while another is stepped. That pays if the
    policy is on a GPU; it never changes a number.

    Raises:
        ValueError: a site that the policy lacks, a world that it cannot play in, or an edit whose width is not the
            site's. Before anything is played.
    """
    worlds = world if isinstance(world, tuple) else (world,)
    asked, policy = policy, fitted(policy, worlds[0].spec)
    check_sites(
        policy.sites, [*capture.sites, *(edit.site for trial in trials for edit in trial.edits)]
    )
    for trial in trials:
        for edit in trial.edits:
            if edit.width != policy.sites[edit.site]:
                raise ValueError(
                    f"edit of {edit.site} has width {edit.width}, but the site has {policy.sites[edit.site]}"
                )
    waiting = iter(range(len(trials)))
    return _play(
        [_Batch(policy, world, trials, waiting, capture, known_as=asked) for world in worlds]
    )


def _play(batches: Sequence["_Batch"]) -> Iterator[Episode]:
    """Turn by turn: what a batch launches is computed while the others are stepped."""
    for batch in batches:
        batch.begin()
        batch.launch()
    while any(batch.is_busy for batch in batches):
        for batch in batches:
            if batch.is_busy:
                yield from batch.finish()
                batch.launch()


@dataclass(slots=True)
class _Tile:
    """The rows of one forward pass."""

    rows: slice
    """Of the batch."""
    size: int
    """Rows of the pass; those that the batch lacks are padded."""
    worlds: slice
    """Which of the batch's worlds have rows in it."""
    state: State
    padded_R: np.ndarray | None
    """The observation of a pass that the batch does not fill, or that a GPU is to fetch."""


class _Batch:
    """Worlds that are stepped together: each plays one trial after the other until none is left."""

    def __init__(
        self,
        policy: Policy,
        world: World,
        trials: Sequence[Trial],
        waiting: Iterator[int],
        capture: Capture,
        *,
        known_as: Policy,
    ) -> None:
        self._policy = policy
        self._known_as = known_as
        self._world = world
        self._trials = trials
        self._waiting = waiting
        self._capture = capture
        on_gpu = policy.device.type == "cuda"
        spec = world.spec
        self._agents = spec.num_agents
        num_worlds = world.num_worlds
        rows = num_worlds * self._agents
        self._tiles: list[_Tile] = []
        edited = {edit.site for trial in trials for edit in trial.edits}
        self._edits = RowEdits(
            rows + SIZES[-1], {site: policy.sites[site] for site in edited}, policy.device
        )  # more rows than the batch has, for those that pad its last pass
        self._trial_of = np.full(num_worlds, -1)  # -1: idle
        self._forced: dict[int, Int32[np.ndarray, "T A"]] = {}
        self._t_of = np.zeros(num_worlds, np.int64)
        self._noise = np.zeros(
            (num_worlds, BLOCK_STEPS, self._agents, len(spec.action_names)), np.float32
        )
        self._notebook = Notebook(
            num_worlds,
            self._agents,
            {site: policy.sites[site] for site in capture.sites},
            capture.steps,
            capture.precision,
            pinned=on_gpu,
        )
        self._action_R = np.zeros(rows, np.int32)
        self._logits_RN = torch.zeros(rows, len(spec.action_names), pin_memory=on_gpu)
        self._computed = torch.cuda.Event() if on_gpu else None

    @property
    def is_busy(self) -> bool:
        return bool((self._trial_of >= 0).any())

    def begin(self) -> None:
        """Starts the first trials."""
        for slot in range(self._world.num_worlds):
            self._start(slot, next(self._waiting, None))
        self._lay_tiles()

    def finish(self) -> Iterator[Episode]:
        """Waits for what was launched, plays the step, and cuts out the episodes that end with it."""
        if self._computed is not None:
            self._computed.synchronize()
        action_R = self._choose()
        self._world.step(action_R)
        self._notebook.note(action_R, self._world.reward_R, self._world.done_R)
        self._t_of += 1
        for slot in self._ended_slots():
            yield self._cut(slot)
            self._start(slot, next(self._waiting, None))
        self._notebook.turn()

    def _lay_tiles(self) -> None:
        """Divides the batch into passes; its first observations tell how large they may be."""
        observation_R = self._world.observation_R
        start = 0
        for size in tile_sizes(self._policy, observation_R, known_as=self._known_as):
            stop = min(start + size, len(observation_R))
            padded_R = None
            if stop - start < size or self._computed is not None:
                # of tokens, rows without any: the others are then read no further than they are used
                blank = PADDING if self._world.spec.vocabulary is not None else 0
                padded_R = np.full((size, *observation_R.shape[1:]), blank, observation_R.dtype)
                if self._computed is not None:  # a GPU fetches from pinned memory while we go on
                    padded_R = torch.from_numpy(padded_R).pin_memory().numpy()
            self._tiles.append(
                _Tile(
                    rows=slice(start, stop),
                    size=size,
                    worlds=slice(start // self._agents, -(-stop // self._agents)),
                    state=self._policy.initial_state(size),
                    padded_R=padded_R,
                )
            )
            start = stop

    def _start(self, slot: int, trial_index: int | None) -> None:
        rows = slice(slot * self._agents, (slot + 1) * self._agents)
        self._trial_of[slot] = -1 if trial_index is None else trial_index
        self._t_of[slot] = 0
        self._forced.pop(slot, None)
        self._forget(rows)
        trial = None if trial_index is None else self._trials[trial_index]
        for agent, row in enumerate(range(rows.start, rows.stop)):
            is_edited = trial is not None and (trial.agents is None or agent in trial.agents)
            self._edits.set_row(row, trial.edits if trial is not None and is_edited else ())
        if trial is None:
            return
        if trial.action_TA is not None:
            self._forced[slot] = trial.action_TA
        self._notebook.begin(slot)
        self._world.reset(
            slot,
            map_seed=trial.env_seed,
            sim_seed=trial.env_seed,
            collect_facts=self._capture.facts,
        )

    def _forget(self, rows: slice) -> None:
        """Zero memory at the start of an episode."""
        with torch.inference_mode():  # the states were made in it
            for tile in self._tiles:
                first = max(rows.start, tile.rows.start) - tile.rows.start
                last = min(rows.stop, tile.rows.stop) - tile.rows.start
                if first < last:
                    for memory in tile.state:
                        memory[first:last] = 0

    def launch(self) -> None:
        """One step of the policy on every row: logits, and what is captured in the rings. A GPU may still be at it."""
        with torch.inference_mode():
            for tile in self._tiles:
                if (self._trial_of[tile.worlds] < 0).all():
                    continue
                rows = tile.rows
                num_rows = rows.stop - rows.start
                observation_R = self._world.observation_R[rows]
                if tile.padded_R is not None:
                    tile.padded_R[:num_rows] = observation_R
                    observation_R = tile.padded_R
                tap = RecordingTap(
                    self._capture.sites, self._edits.tile(rows.start, rows.start + tile.size)
                )
                step = self._policy.step(observation_R, tile.state, tap)
                tile.state = step.state
                self._logits_RN[rows].copy_(step.logits_RN[:num_rows], non_blocking=True)
                self._notebook.keep(rows, tap.activations)
        if self._computed is not None:
            self._computed.record()

    def _choose(self) -> Int32[np.ndarray, " R"]:
        step_in_block = self._t_of % BLOCK_STEPS
        for slot in np.flatnonzero((step_in_block == 0) & (self._trial_of >= 0)):
            self._noise[slot] = gumbel_block(
                self._trials[self._trial_of[slot]].env_seed,
                int(self._t_of[slot]) // BLOCK_STEPS,
                *self._noise.shape[2:],
            )
        action_R = self._action_R
        choose(self._logits_RN.numpy(), self._noise, step_in_block, action_R)
        for slot, forced_TA in self._forced.items():
            rows = slice(slot * self._agents, (slot + 1) * self._agents)
            action_R[rows] = forced_TA[self._t_of[slot]]
        return action_R

    def _ended_slots(self) -> list[int]:
        done_R = self._world.done_R
        if not done_R.any():
            return []
        done_E = done_R.reshape(-1, self._agents).all(1)
        return [int(slot) for slot in np.flatnonzero(done_E & (self._trial_of >= 0))]

    def _cut(self, slot: int) -> Episode:
        trial_index = int(self._trial_of[slot])
        noted = self._notebook.end(slot)
        return Episode(
            env_seed=self._trials[trial_index].env_seed,
            index=trial_index,
            action_TA=noted.action_TA,
            reward_TA=noted.reward_TA,
            done_TA=noted.done_TA,
            captured_t=noted.captured_t,
            activations=noted.activations,
            facts=self._world.retire(slot),
        )
