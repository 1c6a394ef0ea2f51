"""Figures of a report, as SVG text: small, legible on a phone, and the same bytes for the same data.

Text stays text (selectable, in the page's own fonts). Colours come from one palette that reads on a light card; colour
never carries a meaning alone, a marker or a dash goes with it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

PALETTE = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
MARKERS = ("o", "s", "D", "^", "v", "P")
NULL_COLOUR = "#a0aec0"
INK = "#1a202c"
_STYLE: dict[Any, Any] = {
    **sns.axes_style("whitegrid"),
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name is never mathematics, and half a formula in one would raise
    "svg.hashsalt": "sparsight",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
SIZE_IN = (4.7, 3.1)
"""Width and height of a figure in inches; the page scales it to its column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A curve with its interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    lo: Sequence[float]
    hi: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseCurve(Band):
    """Effects of one mode of steering over its doses."""

    percentile: Sequence[float]
    """Share (in %) of random directions of equal norm that do less; NaN at dose 0."""
    causal: Sequence[bool]
    """Which effects are significant and the direction's own."""
    random_lo: Sequence[float]
    random_hi: Sequence[float]
    """The least and the largest effect of those random directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One trial of a sweep."""

    family: str
    l0: float
    fvu: float
    kept: bool


def pareto(points: Sequence[SweepPoint]) -> str:
    """FVU against L0 of every trial, families apart, the front joined and the kept dictionary ringed."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        families = list(dict.fromkeys(point.family for point in points))
        sns.scatterplot(
            x=[point.l0 for point in points],
            y=[point.fvu for point in points],
            hue=[point.family for point in points],
            style=[point.family for point in points],
            hue_order=families,
            style_order=families,
            palette=[PALETTE[index % len(PALETTE)] for index in range(len(families))],
            markers=[MARKERS[index % len(MARKERS)] for index in range(len(families))],
            s=45,
            linewidth=0,
            ax=axes,
            zorder=3,
        )
        front, lowest = [], float("inf")
        for point in sorted(points, key=lambda point: (point.l0, point.fvu)):
            if point.fvu < lowest:
                front.append(point)
                lowest = point.fvu
        axes.plot(
            [p.l0 for p in front], [p.fvu for p in front], color=NULL_COLOUR, lw=1.2, label="front"
        )
        for point in points:
            if point.kept:
                axes.scatter(
                    [point.l0],
                    [point.fvu],
                    s=160,
                    facecolors="none",
                    edgecolors=INK,
                    linewidths=1.4,
                    label="kept",
                    zorder=4,
                )
        axes.set(xlabel="L0: latents per row", ylabel="FVU (held out)", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")  # "best" is looked for, and warns where that takes long
        return _svg(figure)


def training(runs: Sequence[Band], random_returns: Sequence[tuple[str, float]]) -> str:
    """Held-out return per agent over training, with standard errors; random actions as dashed lines."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        for index, run in enumerate(runs):
            _band(axes, run, index)
        for index, (world, value) in enumerate(random_returns):
            axes.axhline(
                value,
                color=NULL_COLOUR,
                ls=("--", ":", "-.")[index % 3],
                lw=1.2,
                label=f"random, {world}",
            )
        _step_axis(axes, [x for run in runs for x in run.x])
        axes.set(xlabel="agent-steps of training", ylabel="return per agent")
        axes.legend(loc="upper left")
        return _svg(figure)


def heat_map(rows: Sequence[str], columns: Sequence[str], value_RC: np.ndarray, label: str) -> str:
    """Held-out AUROC of the concept that stands for each label in each policy; blank where there is none."""
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(SIZE_IN[0], 0.9 + 0.28 * max(1, len(rows))), layout="constrained")
        axes = figure.add_subplot()
        sns.heatmap(
            value_RC,
            ax=axes,
            mask=np.isnan(value_RC),
            vmin=0.5,
            vmax=1,
            cmap="Blues",
            annot=True,
            fmt=".2f",
            annot_kws={"size": 9},
            xticklabels=list(columns),
            yticklabels=list(rows),
            linewidths=1,
            cbar_kws={"label": label, "shrink": 0.8},
        )
        axes.tick_params(length=0)
        axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
        return _svg(figure)


def histogram(value: np.ndarray, discovered: np.ndarray) -> str:
    """AUROC of every latent-label pair that was tested, discoveries apart."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        bins = np.linspace(0, 1, 51).tolist()
        for chosen, colour, name in (
            (value, NULL_COLOUR, "tested"),
            (value[discovered], PALETTE[0], "q < 0.05"),
        ):
            sns.histplot(
                chosen, bins=bins, color=colour, label=name, alpha=1, edgecolor="none", ax=axes
            )
        axes.axvline(0.5, color=INK, lw=0.8)
        axes.set(xlabel="AUROC (held out)", ylabel="latent-label pairs", yscale="log")
        axes.yaxis.set_major_formatter("{x:,.0f}")  # the default one writes mathematics
        axes.yaxis.set_minor_formatter("")
        axes.legend(loc="upper left")
        return _svg(figure)


def dose_response(curves: Sequence[DoseCurve], ylabel: str, *, max_percentile: float) -> str:
    """Paired difference against dose, one curve per mode, above its rank among random directions of equal norm.

    Bars reach from the least to the largest effect of these directions. Filled markers are effects that are significant
    and beyond `max_percentile` of them.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(SIZE_IN[0], 4.0), layout="constrained")
        effect, rank = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.1))
        effect.axhline(0, color=INK, lw=0.8)
        rank.axhspan(max_percentile, 104, color=NULL_COLOUR, alpha=0.35, lw=0)
        for index, curve in enumerate(curves):
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            sns.lineplot(
                x=curve.x,
                y=curve.y,
                ax=effect,
                label=curve.name,
                legend=False,
                **_line(colour, marker, size=5.5, face="white"),
            )
            effect.fill_between(curve.x, curve.lo, curve.hi, color=colour, alpha=0.14, lw=0)
            effect.vlines(curve.x, curve.random_lo, curve.random_hi, color=colour, alpha=0.35, lw=5)
            at = [x for x, causal in zip(curve.x, curve.causal, strict=True) if causal]
            y = [y for y, causal in zip(curve.y, curve.causal, strict=True) if causal]
            effect.plot(at, y, color=colour, marker=marker, ms=5.5, ls="")
            sns.scatterplot(
                x=curve.x,
                y=curve.percentile,
                ax=rank,
                marker=marker,
                s=26,
                color="white",
                edgecolor=colour,
                linewidth=1,
            )
        effect.set_ylabel(ylabel)
        rank.set(xlabel="dose", ylabel="random %ile", ylim=(-6, 106), yticks=(0, 50, 100))
        rank.xaxis.set_major_locator(MaxNLocator(6))
        _legend_above(effect)
        return _svg(figure)


def evolution(
    latent: Band, probe_y: Sequence[float], null_hi: Sequence[float], emergence: float | None
) -> str:
    """AUROC over training of a latent (with interval) and of a refitted probe, above the band of permuted labels.

    All figures share one y-axis, so that they can be compared at a glance.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        axes.fill_between(
            latent.x, 0.5, null_hi, color=NULL_COLOUR, alpha=0.45, lw=0, label="95 % null"
        )
        sns.lineplot(
            x=latent.x,
            y=probe_y,
            ax=axes,
            label="probe, refitted",
            legend=False,
            linestyle="--",
            **_line(PALETTE[2], MARKERS[2], size=4.0),
        )
        _band(axes, latent, 0)
        _step_axis(axes, latent.x)
        axes.set_ylim(float(np.nanmin([0.35, *latent.lo, *probe_y])), 1)
        if emergence is not None:
            right = emergence > 0 and emergence**2 > max(latent.x) * min(
                x for x in latent.x if x > 0
            )
            axes.axvline(emergence, color=INK, lw=1, ls=":")
            axes.annotate(
                "emerges",
                (emergence, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if right else 4, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=9,
            )
        axes.set(xlabel="agent-steps of training", ylabel="AUROC on frozen replay")
        _legend_above(axes)
        return _svg(figure)


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_IN, layout="constrained")
    return figure, figure.add_subplot()


def _legend_above(axes: Axes) -> None:
    """Where it hides no curve."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=4,
        borderaxespad=0.1,
        handlelength=1.8,
        columnspacing=1.2,
    )


def _line(colour: str, marker: str, *, size: float, face: str | None = None) -> dict[str, Any]:
    """How a curve of means is drawn. Its band is ours: seaborn would resample steps, and the unit is the episode."""
    return {
        "color": colour,
        "marker": marker,
        "markersize": size,
        "markerfacecolor": face or colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1,
        "errorbar": None,
        "sort": False,
        "estimator": None,
    }


def _band(axes: Axes, curve: Band, index: int) -> None:
    colour = PALETTE[index % len(PALETTE)]
    marker = MARKERS[index % len(MARKERS)]
    sns.lineplot(
        x=curve.x,
        y=curve.y,
        ax=axes,
        label=curve.name,
        legend=False,
        **_line(colour, marker, size=4.5),
    )
    if len(curve.x) > 1:
        axes.fill_between(curve.x, curve.lo, curve.hi, color=colour, alpha=0.18, lw=0)
    else:
        axes.vlines(curve.x, curve.lo, curve.hi, color=colour, alpha=0.6)


def _step_axis(axes: Axes, steps: Sequence[float]) -> None:
    """Log-spaced checkpoints, with room for step 0."""
    positive = [step for step in steps if step > 0]
    if not positive:
        return
    axes.set_xscale("symlog", linthresh=min(positive))
    axes.set_xlim(left=-min(positive) * 0.1)
    ticks = sorted({0.0, *(10.0**power for power in range(4, 10)), float(max(positive))})
    last = max(positive)  # a power of ten just below it would run into its text
    ticks = [tick for tick in ticks if tick in (0, last) or min(positive) <= tick <= last / 1.9]
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _short(number: float) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"


def _svg(figure: Figure) -> str:
    """The figure without what differs from run to run or from page to page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
