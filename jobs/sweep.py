"""Train sparse autoencoders on a recording with Ray Tune, and keep the best of the wanted sparsity.

    sparsight sweep --recording r-1234... --site lstm.c
    sparsight sweep --recording r-1234... --families topk gated --k 8 16 --l1 1 2 --d-sae 256 512 --seeds 0 1
    sparsight sweep --recording r-1234... --search tpe --trials 32 --space space.toml

A space file names fields of the configuration, those of a family with "family." before them, each with a list of values
or a range:

    "family.name" = ["batch_topk", "jumprelu"]
    "family.k" = [8, 16, 32]
    lr = {low = 1e-3, high = 1e-2, log = true}

The same question asked again goes on where it was cut short, or prints what came of it.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from cluster.laboratory import Laboratory
from cluster.placement import device_of
from cluster.search import Method, SearchConfig, SearchResult, search_id
from cluster.staging import Split
from cluster.store import Store
from cluster.sweep import Halving
from cluster.tracking import letters
from cluster.tracking.mirror import Mirror, Mode
from interp.dictionaries.search import own_fields
from interp.dictionaries.training import FAMILIES, SaeConfig
from interp.identity import parse_json
from jobs.main import run_as_module
from jobs.progress import Reporter, SweepNote

STRENGTHS: dict[str, tuple[float, ...]] = {
    "k": (8, 16, 32, 64),
    "l1": (0.5, 1.0, 2.0),
    "l0": (1.0,),
}
"""Usual values of the settings that make a dictionary sparse, tried with families that have them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    recording: str
    """Recording id; `sparsight recordings list` tells them."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""
    site: str = "lstm.c"
    """Site whose activations are decomposed, unless the space names some."""
    families: tuple[str, ...] = ("batch_topk", "relu_l1")
    """Architectures: batch_topk, topk, matryoshka, temporal, jumprelu, gated, relu_l1."""
    k: tuple[int, ...] | None = None
    """Active latents per row, of families that count them: by default 8, 16, 32 and 64."""
    l1: tuple[float, ...] | None = None
    """Weight of the L1 penalty, of families that have one: by default .5, 1 and 2."""
    l0: tuple[float, ...] | None = None
    """Weight of the L0 penalty of jumprelu: by default 1."""
    d_sae: tuple[int, ...] = (512,)
    """Numbers of latents."""
    lr: tuple[float, ...] = (3e-3,)
    """Learning rates."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and row order."""
    samples: int = 600_000
    """Rows that each trial sees, counting repeats."""
    space: Path | None = None
    """A .toml or .json file of fields and their values, beside those above or in their place."""
    search: Method = "grid"
    """grid: every combination. random: draws. tpe: by the results so far; needs the extra "search" (Optuna)."""
    trials: int = 16
    """Trials of random and tpe."""
    round_trials: int = 4
    """Trials of tpe that are asked for at once; as many can run beside each other."""
    seed: int = 0
    """Of the search."""
    asha: bool = False
    """End trials that do badly among those as sparse (asynchronous halving); what ends depends on who comes first."""
    halving: Halving = field(default_factory=Halving)
    """With --asha: when, and how many."""
    target_l0: tuple[float, float] | None = (12.0, 40.0)
    """The dictionary with the lowest FVU among those with so many latents per row is kept."""
    coverage_auroc: float = 0.8
    """A label is covered by a dictionary if a latent reaches this AUROC for it on held-out episodes."""
    stability_seeds: int = 2
    """Further seeds of the kept configuration, with which its latents are matched; 0 leaves that out."""
    split: Split = field(default_factory=Split)
    actors: int | None = None
    """Trials at once; by default one per core. Never changes a number."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial, perhaps a part of one; 0 trains on a core. What is trained on GPUs has an id of its own, for its
    last bits may differ."""
    wandb: Mode = "auto"
    """Mirror of the sweep on W&B, a run for each trial, grouped by the sweep's id: online (refuses to start without a
    server), offline (sparsight sync delivers later), disabled, or auto: as WANDB_MODE says, or else online if there is
    a key and the server answers, offline if it does not answer, disabled without a key. Told when all are done."""
    wandb_project: str | None = None
    """W&B project of the mirror; by default WANDB_PROJECT, or else sparsight."""
    wandb_entity: str | None = None
    """W&B entity of the mirror; by default WANDB_ENTITY, or else your own."""
    tensorboard: bool = False
    """Write TensorBoard files beside the trials' checkpoints, in the workspace of a store that is a folder."""

    def search_config(self) -> SearchConfig:
        """ValueError if it means nothing."""
        space: dict[str, Any] = {
            "family.name": list(self.families),
            **{
                f"family.{name}": list(given)
                for name in STRENGTHS
                if (given := getattr(self, name)) is not None
            },
            "d_sae": list(self.d_sae),
            "lr": list(self.lr),
            "seed": list(self.seeds),
        }
        if self.space is not None:
            space |= read_space(self.space)
        return SearchConfig(
            space=with_strengths(space),
            base=SaeConfig(samples=self.samples, d_sae=max(self.d_sae)),
            site=self.site,
            method=self.search,
            num_trials=self.trials,
            round_trials=self.round_trials,
            seed=self.seed,
            halving=self.halving if self.asha else None,
            target_l0=self.target_l0,
            coverage_auroc=self.coverage_auroc,
            stability_seeds=self.stability_seeds,
        )


def with_strengths(space: Mapping[str, Any]) -> dict[str, Any]:
    """With the usual strengths of families that are tried, where the space names none."""
    names = space["family.name"]
    tried = [names] if isinstance(names, str) else list(names)
    has = {field for name in tried if name in FAMILIES for field in own_fields(name)}
    usual = {f"family.{name}": list(STRENGTHS[name]) for name in STRENGTHS if name in has}
    order = ("family.name", *(f"family.{name}" for name in STRENGTHS))
    filled = {**usual, **space}
    return {name: filled[name] for name in (*order, *filled) if name in filled}


def read_space(path: Path) -> dict[str, Any]:
    """Fields and their values; ValueError if the file is neither TOML nor JSON, or not there."""
    if not path.is_file():
        raise ValueError(f"--space {path}: no such file")
    content = path.read_bytes()
    if path.suffix == ".json":
        return dict(parse_json(content, source=str(path)))
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--space {path} is not TOML: {error}") from error


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, sweeps and prints every trial."""
    config = tyro.cli(Config, args=list(arguments), prog="sparsight sweep", description=__doc__)
    search = config.search_config()
    store = Store.open(config.store)
    store.probe()
    reporter = Reporter()
    device = device_of(config.gpus_per_trial)
    identity = search_id(config.recording, search, split=config.split, device=device)
    with (
        Mirror.open(
            store,
            identity,
            config.wandb,
            project=config.wandb_project,
            entity=config.wandb_entity,
            say=reporter.say,
        ) as mirror,
        Laboratory(
            store,
            num_actors=config.actors,
            say=reporter.say,
            gpus_per_trial=config.gpus_per_trial,
        ) as laboratory,
        reporter.stage("sweep") as stage,
    ):
        laboratory.watch("sweep")
        laboratory.num_unsent = mirror.num_unsent
        result = laboratory.search(
            config.recording,
            search,
            split=config.split,
            tensorboard=config.tensorboard,
            on_progress=SweepNote(stage),
        )
        mirror.post(letters.search_letters(store, result, recording_id=config.recording))
        state = mirror.close()
    if mirror.reason:
        reporter.say(f"wandb: {mirror.reason}")
    reporter.say(state)
    reporter.console.print(trials_table(result, f"Trials on {config.recording}"))
    reporter.console.print(f"kept {result.entry.dict_id}: {result.rule}")
    if (steady := result.stability) is not None:
        reporter.console.print(
            f"over {steady.num_dictionaries} seeds {steady.matched_share:.0%} of its latents are found again (cosine "
            f"above .9); mean cosine of matches {steady.mcc:.2f}, of random directions {steady.chance:.2f}"
        )
    print(result.entry.dict_id)


def trials_table(result: SearchResult, title: str) -> Table:
    """Every trial, those on the Pareto front with a star, the one kept with an arrow."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "site", "family", "d_sae", "lr", "seed", "FVU", "L0", "dead", "coverage"):
        table.add_column(heading, justify="left" if heading in ("", "site", "family") else "right")
    for number, row in enumerate(result.trials.to_pylist()):
        mark = "->" if number == result.chosen else "*" if number in result.front else ""
        settings = parse_json(row["family"].encode(), source="family")
        strength = next(
            (
                f" {name}={settings[name]:g}"
                for name in ("k", "l1", "target_l0", "l0")
                if settings.get(name)
            ),
            "",
        )
        table.add_row(
            mark,
            row["site"],
            row["family.name"] + strength + ("" if row["is_whole"] else " (ended early)"),
            str(row["d_sae"]),
            f"{row['lr']:.2g}",
            str(row["seed"]),
            f"{row['fvu']:.3f}",
            f"{row['l0']:.1f}",
            f"{row['dead_fraction']:.0%}",
            f"{row['coverage']:.0%}" if row["is_whole"] else "-",
        )
    return table


if __name__ == "__main__":
    run_as_module("sweep")
