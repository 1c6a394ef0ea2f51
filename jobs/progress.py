"""What a person sees of long work: a live bar on a terminal, a line every few seconds in a log."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from cluster.sweep import TrialProgress
from cluster.training import TrainingProgress

LOG_EVERY_S = 5.0
"""Seconds between lines where there is no terminal."""


class Stage:
    """One stage under way; `update` may be called as often as convenient."""

    def __init__(
        self, name: str, console: Console, bar: Progress | None, task: TaskID | None
    ) -> None:
        self.name = name
        self._console = console
        self._bar = bar
        self._task = task
        self._last_line = time.monotonic()

    def update(self, done: float, total: float, note: str = "") -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._last_line >= LOG_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(
                f"{self.name}: {done:,.0f} of {total:,.0f}  {note}",
                highlight=False,
                soft_wrap=True,
            )


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
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as bar:
                yield Stage(name, self.console, bar, bar.add_task(name, total=None, note=""))
        else:
            self.console.print(f"{name} ...", highlight=False)
            yield Stage(name, self.console, None, None)
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
    """Shows the trials of a sweep, and how the one that reported last is doing."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, trial: TrialProgress) -> None:
        progress = trial.progress
        self._stage.update(
            trial.num_done,
            trial.num_trials,
            f"trials; {trial.config.family.name} at {progress.step / progress.num_steps:.0%}: FVU {progress.fvu:.3f}, "
            f"L0 {progress.l0:.1f}, dead {progress.dead_fraction:.0%}, median density {progress.density.p50:.2%}",
        )
