"""What a person sees of long work: a live bar on a terminal, a line every few seconds in a log."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cluster.pool import Result, Unwatched
from cluster.recordings import Receipt
from cluster.sweep import TrialProgress
from cluster.training import TrainingProgress

LOG_EVERY_S = 5.0
"""Seconds between lines where there is no terminal."""
RECENT_S = 30.0
"""Seconds over which the moving rate is taken."""
MOST_ACTORS = 16
"""Actors that are shown: those that are lost, then the slowest."""


@dataclass(slots=True)
class _Actor:
    """What is known of an actor."""

    node: str = ""
    num_done: int = 0
    rows: int = 0
    since: float = 0.0
    """When it was first there."""
    in_hand: list[str] = field(default_factory=list)
    is_there: bool = True


class Stage(Unwatched):
    """One stage under way; `update` may be called as often as convenient.

    It watches the pool's runs: of shards it tells agent-steps a second, of the last half minute and by actor.
    """

    def __init__(
        self, name: str, console: Console, bar: "Progress | None" = None, task: TaskID | None = None
    ) -> None:
        self.name = name
        self._console = console
        self._bar = bar
        self._task = task
        self._start = self._last_line = time.monotonic()
        self._actors: dict[str, _Actor] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._recent_rows = 0
        self._num_retries = 0
        self._quarantined: list[str] = []
        self.below: Callable[[], Table | None] = self.actors_table
        """What a terminal shows below the bar."""

    def update(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=done, total=total, note=self._summary(now) or note
            )
        elif now - self._last_line >= LOG_EVERY_S:
            self._last_line = now
            summary = self._summary(now)
            if summary and 0 < done < total:
                left = timedelta(seconds=round((now - self._start) * (total - done) / done))
                summary += f", {left} left"
            self._console.print(
                f"{self.name}: {done:,.0f} of {total:,.0f}  {summary or note}",
                highlight=False,
                soft_wrap=True,
            )

    # --- what a run of tasks tells

    def submitted(self, key: str, actor: str) -> None:
        self._actors[actor].in_hand.append(key)

    def done(self, result: Result[Any]) -> None:
        now, actor = time.monotonic(), self._actors[result.actor]
        actor.num_done += 1
        actor.node = result.node
        actor.in_hand.remove(result.task.key)
        if isinstance(result.value, Receipt):
            actor.rows += result.value.rows
            self._recent_rows += result.value.rows
            self._recent.append((now, result.value.rows))
        while self._recent and now - self._recent[0][0] > RECENT_S:
            self._recent_rows -= self._recent.popleft()[1]

    def retried(self, key: str, attempt: int, cause: BaseException) -> None:
        self._num_retries += 1
        self._let_go(key)

    def quarantined(self, key: str, cause: BaseException) -> None:
        self._quarantined.append(key)
        self._let_go(key)

    def actor_lost(self, actor: str, cause: BaseException) -> None:
        self._actors[actor].is_there = False

    def actor_back(self, actor: str) -> None:
        known = self._actors.setdefault(actor, _Actor(since=time.monotonic()))
        known.is_there = True

    def _let_go(self, key: str) -> None:
        for actor in self._actors.values():
            if key in actor.in_hand:
                actor.in_hand.remove(key)

    def _summary(self, now: float) -> str:
        """Rates and troubles; empty if there is neither."""
        parts = []
        if self._recent:
            span_s = min(RECENT_S, max(now - self._start, 1e-3))
            mean = sum(actor.rows for actor in self._actors.values()) / max(now - self._start, 1e-3)
            parts.append(f"{self._recent_rows / span_s:,.0f} agent-steps/s (mean {mean:,.0f})")
        if absent := sum(not actor.is_there for actor in self._actors.values()):
            parts.append(f"{absent} of {len(self._actors)} actors lost")
        if self._num_retries:
            parts.append(f"{self._num_retries} retried")
        if self._quarantined:
            parts.append(f"set aside: {', '.join(self._quarantined[:3])}")
        return ", ".join(parts)

    def actors_table(self) -> Table | None:
        """The slowest actors, and all that are lost; None before there are any."""
        if not self._actors:
            return None
        now = time.monotonic()
        rate = {
            name: (actor.rows or actor.num_done) / max(now - actor.since, 1e-3)
            for name, actor in self._actors.items()
        }
        shown = sorted(
            self._actors, key=lambda name: (self._actors[name].is_there, rate[name], name)
        )[:MOST_ACTORS]
        table = Table("actor", "node", "done", "rate/s", "in hand", box=None, padding=(0, 2, 0, 11))
        for name in sorted(shown, key=lambda name: int(name[1:])):
            actor = self._actors[name]
            in_hand = ", ".join(key.rsplit("/", 1)[-1] for key in actor.in_hand)
            table.add_row(
                name,
                actor.node[:8],
                str(actor.num_done),
                f"{rate[name]:,.0f}" if actor.rows else f"{rate[name]:.2f}",
                in_hand if actor.is_there else "[red]lost[/]",
            )
        if (others := len(self._actors) - len(shown)) > 0:
            table.add_row(f"and {others} faster ones")
        return table


class _Live(Progress):
    """A bar, and what the stage that it shows has below it."""

    stage: Stage | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        table = self.stage.below() if self.stage is not None else None
        if table is not None:
            yield table


class Reporter:
    """The stages of a job, their wall time, and whether there was anything to do."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.wall_s: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times a stage and shows it while it runs."""
        start = time.monotonic()
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("[bold]{task.description:<10}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
            )
            with _Live(*columns, console=self.console, transient=True, refresh_per_second=4) as bar:
                bar.stage = Stage(name, self.console, bar, bar.add_task(name, total=None, note=""))
                yield bar.stage
        else:
            self.console.print(f"{name} ...", highlight=False)
            yield Stage(name, self.console)
        self.wall_s[name] = time.monotonic() - start

    def done(self, name: str, what: str) -> None:
        """One line that stays: what a stage gave."""
        self.console.print(
            f"[bold]{name:<10}[/] {what} [dim]({self.wall_s.get(name, 0.0):.1f} s)[/]",
            highlight=False,
            soft_wrap=True,
        )

    def say(self, line: str) -> None:
        """One line that stays, whatever stage is under way."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started


class TrainingNote:
    """Shows several trainings as one bar: steps together, the returns side by side."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._latest: dict[str, TrainingProgress] = {}

    def __call__(self, progress: TrainingProgress) -> None:
        self._latest[progress.run_id] = progress
        runs = self._latest.values()
        # no episode has ended before the first update
        returns = " ".join(
            "-" if math.isnan(run.return_mean) else f"{run.return_mean:.2f}" for run in runs
        )
        self._stage.update(
            sum(run.step for run in runs),
            sum(run.budget for run in runs),
            f"agent-steps; return per agent {returns}",
        )


class SweepNote:
    """Shows the trials of a sweep: on a terminal all that are under way and the best that are done, else the last."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._latest: dict[tuple[int, str], TrialProgress] = {}
        self._since: dict[tuple[int, str], float] = {}
        self._seen: dict[tuple[int, str], float] = {}
        stage.below = self.table

    def __call__(self, trial: TrialProgress) -> None:
        key = (trial.trial, str(trial.config))
        self._since.setdefault(key, time.monotonic())
        self._seen[key] = time.monotonic()
        self._latest[key] = trial
        progress = trial.progress
        self._stage.update(
            trial.num_done,
            trial.num_trials,
            f"trials; {trial.config.family.name} at {progress.step / progress.num_steps:.0%}: FVU {progress.fvu:.3f}, "
            f"L0 {progress.l0:.1f}, dead {progress.dead_fraction:.0%}, median density {progress.density.p50:.2%}",
        )

    def table(self) -> Table | None:
        """Trials under way first, then the others by their error; None before one has reported."""
        if not self._latest:
            return None
        table = Table(box=None, padding=(0, 2, 0, 11))
        for heading in ("trial", "family", "d_sae", "done", "FVU", "L0", "dead", "rows/s"):
            table.add_column(heading, justify="left" if heading == "family" else "right")
        order = sorted(
            self._latest.items(), key=lambda item: (item[1].progress.done, item[1].progress.fvu)
        )
        for key, trial in order[:MOST_ACTORS]:
            progress, config = trial.progress, trial.config
            first = progress.samples / max(1, round(progress.step / config.report_steps))
            span_s = self._seen[key] - self._since[key]
            rate = f"{(progress.samples - first) / span_s:,.0f}" if span_s > 0 else ""
            table.add_row(
                str(trial.trial),
                config.family.name,
                str(config.d_sae),
                f"{progress.step / progress.num_steps:.0%}",
                f"{progress.fvu:.3f}",
                f"{progress.l0:.1f}",
                f"{progress.dead_fraction:.0%}",
                rate,
            )
        return table
