"""What a person reads at the end of the main job."""

from rich.box import SIMPLE
from rich.table import Table

from interp.concepts.rivals import verdict
from interp.report.document import Report
from jobs.progress import Reporter


def print_summary(reporter: Reporter, report: Report, address: str) -> None:
    """A table of the named concepts, and where the report is."""
    table = Table(
        title=f"Concepts of study {report.study.study}: held-out AUROC beside its controls",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    table.add_column("concept", no_wrap=True)
    for heading in ("AUROC", "95 %", "lead"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("against controls")
    rows = [row for row in report.concepts.to_pylist() if row["concept"] is not None]
    for row in sorted(rows, key=lambda row: (row["policy_name"], -row["auroc"])):
        table.add_row(
            row["policy_name"],
            row["label"],
            f"{row['auroc']:.3f}",
            f"{row['auroc_lo']:.2f}-{row['auroc_hi']:.2f}",
            "–" if row["lead"] is None else f"{row['lead']:+.3f}",
            verdict(row),
        )
    console = reporter.console
    console.print(table)
    console.print(f"done in {reporter.elapsed_s:.0f} s; the report is\n  {address}", soft_wrap=True)
