"""Dictionaries of a store: how good they are, what several policies share, and their exchange with SAELens (cfg.json
and sae_weights.safetensors).

What is written takes recorded activations as they are, centring and scaling included, and SAELens opens it with
SAE.load_from_disk. What is read is data alone: nothing of SAELens is needed, and no code of a file runs.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster import crosscoders, dictionaries, policies
from cluster.appraisal import plan_appraisal
from cluster.crosscoders import TrainCrosscoder, crosscoder_config
from cluster.evaluation import EvaluationConfig
from cluster.handed_in import check_lasting
from cluster.laboratory import Laboratory
from cluster.splicing import plan_splice
from cluster.staging import Split
from cluster.store import Store
from interp.concepts.appraisal import (
    ALL_UNITS,
    LATENTS,
    NEURONS,
    NOT_TESTED,
    RANDOM,
    SHUFFLED,
    AppraisalConfig,
)
from interp.dictionaries.batch_topk import BatchTopK
from interp.dictionaries.saelens import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Architecture,
    from_saelens,
    to_saelens,
)
from interp.dictionaries.training import SaeConfig
from interp.steering.splicing import UNTOUCHED
from jobs.factories import allow_factories
from jobs.main import run_as_module
from jobs.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class List:
    """The dictionaries of a store: widths, family, error and sparsity on held-out episodes."""

    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a dictionary of the store in the layout of SAELens. Prints the folder."""

    dictionary: str
    """Dictionary id; `sparsight dictionaries list` shows them."""
    out: Path
    """Folder to write; it must not exist yet."""
    architecture: Architecture | None = None
    """What it is called there; by default what fits: jumprelu for latents with a threshold (as SAELens does with its
    BatchTopK), standard for plain ReLU, topk for the k largest of a row. gated can say the same as jumprelu."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Keep a dictionary of SAELens in the store, measured on held-out rows of a recording. Prints its id.

    One that reads another width, or explains no more than the mean row does, is refused.
    """

    folder: Path
    """Folder with cfg.json and sae_weights.safetensors."""
    recording: str | None = None
    """Recording of the policy that it was trained on; `sparsight recordings list` shows them. Without one, a dictionary
    that Sparsight wrote keeps the figures that it brought, and another is refused."""
    site: str | None = None
    """Site that it reads; by default what cfg.json calls its hook."""
    split: Split = field(default_factory=Split)
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Splice:
    """How much of its play does the policy keep with a dictionary in the loop? Prints a table and its id.

    Every step's activation is replaced by what the dictionary makes of it, beside the mean row, zero and a dictionary
    of random directions, on the same seeds. docs/dictionaries.md tells how to read it.
    """

    dictionary: Annotated[str, tyro.conf.Positional]
    """Dictionary id; `sparsight dictionaries list` shows them."""
    recording: str | None = None
    """Recording of the policy to play; by default the one that the dictionary was trained on."""
    episodes: EvaluationConfig = field(default_factory=EvaluationConfig)
    split: Split = field(default_factory=Split)
    seed: int = 0
    """Of the random directions and of the intervals."""
    factory: tuple[str, ...] = ()
    """package.module:callable that makes the policy's network, if it is one of your own; actors import it too."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """How good is it on held-out episodes? Prints tables and an id.

    Error, sparsity and coherence; for each label what 1, 2, 5 and 16 latents tell of it, over how many it is split,
    where they are silent and others speak, whether it can be changed alone. Beside each figure stand the units of the
    site, a dictionary of random directions at equal L0, and labels of other episodes. docs/dictionaries.md has the
    formulas.
    """

    dictionary: Annotated[str, tyro.conf.Positional]
    """Dictionary id; `sparsight dictionaries list` shows them."""
    recording: str | None = None
    """Recording to judge it on; by default the one that it was trained on."""
    labels: tuple[str, ...] = ()
    """Labels, or expressions of them (carrying_ore&!landmark); by default all that were recorded."""
    figures: AppraisalConfig = field(default_factory=AppraisalConfig)
    split: Split = field(default_factory=Split)
    seed: int = 0
    """Of the random directions, pairs, shuffles, permutations and intervals."""
    json: bool = False
    """Print a JSON object with all rows instead."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""


@dataclass(frozen=True, kw_only=True)
class Crosscode:
    """One set of latents for what several policies compute when they are shown the same bank. Prints whose they are.

    A latent is of a policy if its best decoder row there, on held-out episodes and with the other latents held fixed,
    is at least half as long as in the policy where it is longest; one has it alone if it is below a fifth of that in
    all others. Replays are made with `sparsight sequences replay`; what was found is steered with `sparsight steer
    --features crosscoder --dictionary x-...`.
    """

    replay: tuple[str, ...]
    """Two or more replays of one bank, each of another policy or checkpoint."""
    site: str = "lstm.h"
    """Site to compare; widths may differ."""
    k: int = 16
    """Active latents a step, which all policies share."""
    d_sae: int = 512
    """Number of latents."""
    samples: int = 1_000_000
    """Steps seen in training, counting repeats."""
    lr: float = 3e-3
    """Learning rate."""
    split: Split = field(default_factory=Split)
    seed: int = 0
    """Of weights and order."""
    show: int = 10
    """Latents shown of each kind, those that are strongest where they are strongest."""
    store: str = "./store"
    """Folder or s3://bucket/prefix in which everything rests."""

    def task(self) -> TrainCrosscoder:
        """ValueError if it means nothing."""
        config = SaeConfig(
            family=BatchTopK(k=self.k), d_sae=self.d_sae, samples=self.samples, lr=self.lr
        )
        return TrainCrosscoder(
            replay_ids=self.replay,
            site=self.site,
            config=crosscoder_config(config),
            split=self.split,
            seed=self.seed,
        )


Verb = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Splice, tyro.conf.subcommand("splice")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Crosscode, tyro.conf.subcommand("crosscode")]
)


def main(arguments: Sequence[str]) -> None:
    """Parses the command line, writes or reads."""
    verb = tyro.cli(Verb, args=list(arguments), prog="sparsight dictionaries", description=__doc__)
    store = Store.open(verb.store)
    match verb:
        case List():
            print_list(store)
        case Export() as export:
            write(store, export)
        case Import() as import_:
            read(store, import_)
        case Splice() as splice:
            play(store, splice)
        case Evaluate() as evaluate:
            appraise(store, evaluate)
        case Crosscode() as crosscode:
            compare(store, crosscode)


def print_list(store: Store) -> None:
    """A table. Ids are to be copied, so never cut."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("dictionary", "family", "d_in", "d_sae", "FVU", "L0", "dead"):
        is_name = heading in ("dictionary", "family")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    for entry in dictionaries.known(store):
        figures = (f"{entry.fvu:.3f}", f"{entry.l0:.1f}", f"{entry.dead_fraction:.0%}")
        table.add_row(entry.dict_id, entry.family, str(entry.d_in), str(entry.d_sae), *figures)
    Console().print(table)


def write(store: Store, config: Export) -> None:
    """Writes the folder, which appears when it is whole, and prints it."""
    check_lasting("--out", config.out)
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists; name a new folder, or remove it")
    dictionary = dictionaries.load(store, config.dictionary)
    files = to_saelens(dictionary, architecture=config.architecture)
    partial = config.out.with_name(f"{config.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    partial.rename(config.out)
    print(config.out)


def read(store: Store, config: Import) -> None:
    """Measures it, keeps it and prints its id."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (config.folder / name).is_file():
            raise FileNotFoundError(
                f"{config.folder} has no {name}; the layout of SAELens is {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    files = {name: (config.folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    dictionary = from_saelens(files, site=config.site)
    store.probe()
    reporter = Reporter()
    with reporter.stage("import") as stage:
        entry = dictionaries.adopt(
            store,
            dictionary,
            config.recording,
            split=config.split,
            origin={"imported": "SAELens"},
            note=stage.update,
        )
    reporter.done(
        "import",
        f"{entry.family}, {entry.d_sae:,} latents of {dictionary.site}: FVU {entry.fvu:.3f}, L0 {entry.l0:.1f}, "
        f"{entry.dead_fraction:.0%} dead",
    )
    print(entry.dict_id)


def play(store: Store, config: Splice) -> None:
    """Plays it, or finds that it was played, and prints the figures."""
    allow_factories(config.factory)
    task = plan_splice(
        store,
        config.dictionary,
        recording_id=config.recording,
        config=config.episodes,
        split=config.split,
        seed=config.seed,
    )
    store.probe()
    reporter = Reporter()
    with (
        Laboratory(store, num_actors=1, factories=config.factory, say=reporter.say) as laboratory,
        reporter.stage("splice") as stage,
    ):
        laboratory.watch("splice", stage)
        (figures,) = laboratory.answer([task], stage.update)
    reporter.console.print(splice_view(figures))
    print(task.question.id)


def compare(store: Store, config: Crosscode) -> None:
    """Trains a crosscoder, or finds it, and prints whose latents are whose."""
    task = config.task()
    task.check(store)
    store.probe()
    reporter = Reporter()
    with (
        Laboratory(store, num_actors=1, say=reporter.say) as laboratory,
        reporter.stage("crosscode") as stage,
    ):
        laboratory.watch("crosscode", stage)
        (entry,) = laboratory.train_crosscoders([task], stage.update)
    names = [policies.read_card(store, policy).name for policy in entry.policies]
    presence = crosscoders.read_presence(store, entry.crosscoder_id)
    reporter.done(
        "crosscode",
        f"{entry.d_sae:,} latents of {entry.site} of {', '.join(names)}: FVU {entry.fvu:.3f}, L0 {entry.l0:.1f}, "
        f"{entry.dead_fraction:.0%} dead",
    )
    for table in presence_views(presence, entry.policies, names, show=config.show):
        reporter.console.print(table)
    print(entry.crosscoder_id)


def presence_views(
    presence: pa.Table, policy_ids: Sequence[str], names: Sequence[str], *, show: int
) -> list[Table]:
    """How many latents are whose; and of each kind those with the longest decoder rows, with their presences."""
    rows = presence.to_pylist()
    counts = Table(title="Whose latents are they?", title_justify="left", box=SIMPLE_HEAD)
    counts.add_column("latents of", no_wrap=True)
    counts.add_column("number", justify="right")
    shown = Table(title="Presence, 1 where strongest", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("latents of", "latent", *names):
        shown.add_column(heading, justify="left" if heading == "latents of" else "right")
    groups: dict[str, list[dict[str, Any]]] = {"all": []}
    groups |= {f"{name} alone": [] for name in names} | {"some, or in part": [], "silent": []}
    for row in rows:
        own = [row[f"presence.{policy}"] for policy in policy_ids]
        match row["whose"]:
            case "one":
                groups[f"{names[own.index(max(own))]} alone"].append(row)
            case "some":
                groups["some, or in part"].append(row)
            case kind:
                groups[kind].append(row)
    for kind, members in groups.items():
        counts.add_row(kind, str(len(members)))
        if kind == "silent":
            continue
        members.sort(key=lambda row: -max(row[f"norm.{policy}"] for policy in policy_ids))
        for row in members[:show]:
            figures = (f"{row[f'presence.{policy}']:.2f}" for policy in policy_ids)
            shown.add_row(kind, str(row["latent"]), *figures)
    return [counts, shown]


def splice_view(figures: pa.Table) -> Table:
    """A column for each thing that the site was replaced by, a line for each metric; 95 % over episodes."""
    rows = figures.to_pylist()
    of = {(row["replaced_by"], row["metric"]): row for row in rows}
    ways = [way for way in dict.fromkeys(row["replaced_by"] for row in rows) if way != UNTOUCHED]
    table = Table(
        title=f"What is left of its play, {rows[0]['n_episodes']} episodes, with intervals of 95 %\n"
        f"untouched, its return is {_figure(of[UNTOUCHED, 'return'])}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("replaced by", no_wrap=True)
    for way in ways:
        table.add_column(way, justify="right")
    for metric in dict.fromkeys(row["metric"] for row in rows):
        table.add_row(metric, *(_figure(of[way, metric]) for way in ways))
    return table


def appraise(store: Store, config: Evaluate) -> None:
    """Computes the figures, or finds them, and prints them."""
    task = plan_appraisal(
        store,
        config.dictionary,
        recording_id=config.recording,
        labels=config.labels,
        config=config.figures,
        split=config.split,
        seed=config.seed,
    )
    store.probe()
    reporter = Reporter(Console(stderr=config.json))  # what is piped on is JSON alone
    with reporter.stage("evaluate") as stage:
        figures = task.answer(store, stage.update)
    if config.json:
        print(json.dumps(appraisal_json(figures, task.question.id), allow_nan=False))
        return
    for view in appraisal_views(figures):
        reporter.console.print(view)
    print(task.question.id)


def appraisal_json(figures: pa.Table, table_id: str) -> dict[str, Any]:
    """All rows; what is undefined, or does not exist, is null."""
    rows = [
        {name: None if value != value else value for name, value in row.items()}
        for row in figures.to_pylist()
    ]
    return {"evaluation": table_id, "rows": rows}


def appraisal_views(figures: pa.Table) -> list[Table]:
    """The dictionary itself; sparse probes; splitting, absorption and disentanglement. 95 % over episodes."""
    rows = figures.to_pylist()
    num_episodes = rows[0]["n_episodes"]
    plain = [row for row in rows if row["label"] is None]
    found = {(row["figure"], row["label"], row["reads"], row["k"]): row for row in rows}
    tested = dict.fromkeys(row["label"] for row in rows if row["figure"] == "AUROC")
    itself = _table(
        f"The dictionary, on {num_episodes} held-out episodes, with intervals of 95 %",
        ("figure",),
        (LATENTS, RANDOM),
    )
    for figure in dict.fromkeys(row["figure"] for row in plain):
        itself.add_row(
            figure, *(_cell(found[figure, None, reads, None]) for reads in (LATENTS, RANDOM))
        )
    views = [itself]
    if tested:
        views += [_probe_view(rows, figure, list(tested)) for figure in ("AUROC", "F1")]
        views += [
            _by_label(found, list(tested), "splitting", "absorption", "partly absorbed"),
            _by_label(found, list(tested), "cause", "isolation", "disentanglement"),
        ]
    if rare := [row for row in rows if row["figure"] == NOT_TESTED]:
        view = _table("Not tested: too few episodes", ("label",), ("held-out episodes with it",))
        for row in rare:
            view.add_row(row["label"], f"{row['value']:.0f}")
        views.append(view)
    return views


def _probe_view(rows: Sequence[Mapping[str, Any]], figure: str, labels: Sequence[str]) -> Table:
    """A line for each label and what is read; a column for each k, and one for the dense probe."""
    found = {(row["label"], row["reads"], row["k"]): row for row in rows if row["figure"] == figure}
    ks = sorted({k for _, reads, k in found if reads == LATENTS})
    dense = {row["label"]: row for row in found.values() if row["reads"] == ALL_UNITS}
    view = _table(
        f"{figure} of probes of the k most telling values, held-out"
        + ("; * where q is at most .05" if figure == "AUROC" else ""),
        ("label", "reads"),
        (*(f"k = {k}" for k in ks), ALL_UNITS),
    )
    for label in labels:
        for reads in (LATENTS, NEURONS, RANDOM, SHUFFLED):
            cells = [_cell(found.get((label, reads, k))) for k in ks]
            if any(cells):
                is_first = reads == LATENTS
                view.add_row(
                    label if is_first else "",
                    reads,
                    *cells,
                    _cell(dense[label]) if is_first else "",
                )
        view.add_section()
    return view


def _by_label(found: Mapping[Any, Any], labels: Sequence[str], *figures: str) -> Table:
    """A line for each label and what is read; a column for each figure."""
    view = _table("", ("label", "reads"), figures)
    for label in labels:
        for reads in (LATENTS, NEURONS, RANDOM):
            cells = [_cell(found.get((figure, label, reads, None))) for figure in figures]
            if any(cells):
                view.add_row(label if reads == LATENTS else "", reads, *cells)
        view.add_section()
    return view


def _table(title: str, names: Sequence[str], columns: Sequence[str]) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cell(row: Mapping[str, Any] | None) -> str:
    """A value with its interval, if it has one, and a star where its q is small; "" for none."""
    if row is None:
        return ""
    if math.isnan(row["value"]):
        return "undefined"
    star = "*" if row["q_value"] is not None and row["q_value"] <= 0.05 else ""
    if row["label"] is None and row["lo"] is not None:
        return _figure(row)
    if row["lo"] is None:
        return f"{row['value']:.3g}{star}"
    value, lo, hi = (f"{row[name]:.2f}" for name in ("value", "lo", "hi"))
    return f"{value} [{lo}, {hi}]{star}"


def _figure(row: Mapping[str, Any]) -> str:
    if math.isnan(row["value"]):
        return "undefined"
    return f"{row['value']:.3g} [{row['lo']:.3g}, {row['hi']:.3g}]"


if __name__ == "__main__":
    run_as_module("dictionaries")
