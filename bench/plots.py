# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw results as SVG: the same results always give the same bytes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import memory_lost, prefault, scale, start_path
from bench.results import Results, Series
from virt_dmem.units import GIB, format_size

__all__ = ["draw"]

_STYLE = {
    "svg.hashsalt": "virt-dmem",
    "svg.fonttype": "none",  # keep text as text
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_OURS = "#c0392b"
_SECONDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)
_OTHERS = ("#2c3e50", "#2980b9", "#16a085", "#8e44ad", "#7f8c8d", "#d68910", "#5d6d7e")


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw a plot for each kind of series in the results; return the files."""
    drawn = []
    with mpl.rc_context(_STYLE):
        for name, benchmark, function in (
            ("start", start_path.NAME, _start),
            ("throughput", prefault.NAME, _throughput),
            ("memory-lost", memory_lost.NAME, _memory_lost),
            ("scale", scale.NAME, _scale),
        ):
            figure = function(results)
            if figure is None:
                continue
            figure.text(0.01, 0.01, _caption(results, benchmark), fontsize=6, color="#555555", va="bottom")
            path = directory / f"{name}.svg"
            figure.savefig(path, format="svg", metadata={"Date": None})
            drawn.append(path)
    return drawn


def _caption(results: Results, benchmark: str) -> str:
    machine = results.machine
    facts = [machine.get("processor", ""), machine.get("memory", ""), f"Linux {machine.get('kernel', '?')}"]
    facts += [f"{name} {machine[name].split()[0]}" for name in ("QEMU", "libvirt") if machine.get(name)]
    if any(note.startswith(f"{benchmark}:") and "not calm" in note for note in results.notes):
        facts.append("its CPUs were contended meanwhile")
    return textwrap.fill("; ".join(filter(None, facts)) + ". Medians and their spread (MAD).", 150)


def _bars(axes: Axes, series: list[Series], x: list[float], *, ours: bool, colour: str) -> None:
    axes.errorbar(
        x,
        [one.median for one in series],
        yerr=[one.spread for one in series],
        label=series[0].case,
        color=_OURS if ours else colour,
        linewidth=2.2 if ours else 1.2,
        linestyle="-" if ours or "limit" not in series[0].case else "--",
        marker="o" if ours else ".",
        capsize=2,
        zorder=3 if ours else 2,
    )


def _start(results: Results) -> Figure | None:
    series = [one for one in results.series if one.benchmark == start_path.NAME]
    if not series:
        return None
    figure = Figure(figsize=(9, 4.4))
    for column, what in enumerate((start_path.HOOK_TO_HOOK, start_path.WHOLE), 1):
        axes = figure.add_subplot(1, 2, column)
        mine = [one for one in series if one.what == what]
        others = [case for case in dict.fromkeys(one.case for one in mine) if not case.startswith("pool")]
        for case in dict.fromkeys(one.case for one in mine):
            line = sorted((one for one in mine if one.case == case), key=lambda one: one.size_bytes)
            colour = _OTHERS[others.index(case) % len(_OTHERS)] if case in others else _OURS
            _bars(axes, line, [one.size_bytes / GIB for one in line], ours=case.startswith("pool"), colour=colour)
        sizes = sorted({one.size_bytes for one in mine})
        axes.set(xscale="log", yscale="log", xlabel="guest memory", ylabel="seconds", title=what)
        axes.set_xticks([size / GIB for size in sizes], [format_size(size) for size in sizes])
        seconds = [second for second in _SECONDS if axes.get_ylim()[0] <= second <= axes.get_ylim()[1]]
        axes.set_yticks(seconds, [f"{second:g}" for second in seconds])
        axes.minorticks_off()
        axes.legend(fontsize=6.5, frameon=False)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.92, bottom=0.2, wspace=0.2)
    return figure


def _throughput(results: Results) -> Figure | None:
    series = [one for one in results.series if one.benchmark == prefault.NAME]
    kinds = list(dict.fromkeys(one.what for one in series))
    if not kinds:
        return None
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.1 * rows + 0.5))
    cases = list(dict.fromkeys(one.case for one in series))
    for number, kind in enumerate(kinds, 1):
        axes = figure.add_subplot(rows, columns, number)
        for case in cases:
            line = sorted(
                (one for one in series if one.what == kind and one.case == case), key=lambda one: one.threads
            )
            if line:
                colour = _OTHERS[cases.index(case) % len(_OTHERS)]
                ours = case == prefault.HELPER_EMPTY
                _bars(axes, line, [one.threads for one in line], ours=ours, colour=colour)
        threads = sorted({one.threads for one in series})
        axes.set(xlabel="threads", ylabel="GiB/s", title=kind.removeprefix(f"{prefault.WHAT}, "))
        axes.set_xticks(threads, [str(count) for count in threads])
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(0.99, 0.08))
    figure.subplots_adjust(left=0.06, right=0.98, top=0.93, bottom=0.14, wspace=0.25, hspace=0.45)
    return figure


def _memory_lost(results: Results) -> Figure | None:
    series = [one for one in results.series if one.benchmark == memory_lost.NAME]
    if not series:
        return None
    figure = Figure(figsize=(9, 3))
    axes = figure.add_subplot()
    names = list(dict.fromkeys(one.case for one in series))[::-1]
    left = [0.0] * len(names)
    for what, colour in ((memory_lost.STRUCT_PAGES, _OTHERS[1]), (memory_lost.PAGE_TABLES, _OTHERS[5])):
        widths = [one.median if (one := results.find(memory_lost.NAME, what, name, GIB)) else 0.0 for name in names]
        axes.barh(names, widths, left=left, label=what, color=colour, height=0.6)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total + 0.1, row, f"{total:.3g}", va="center", fontsize=8)
    axes.set(xlabel="MiB that the host loses for each GiB of guest memory", title="host memory lost per GiB")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    figure.subplots_adjust(left=0.22, right=0.96, top=0.9, bottom=0.24)
    return figure


def _scale(results: Results) -> Figure | None:
    series = [one for one in results.series if one.benchmark == scale.NAME]
    if not series:
        return None
    figure = Figure(figsize=(9, 3.6))
    axes = figure.add_subplot()
    for what, colour in ((scale.RESERVE, _OURS), (scale.RELEASE, _OTHERS[1]), (scale.LIST, _OTHERS[4])):
        for quantile, style in ((scale.MEDIAN, "-"), (scale.WORST, ":")):
            line = [one for one in series if one.what == f"{what}, {quantile}"]
            domains = [int(one.case.split()[0]) for one in line]
            label = what if quantile == scale.MEDIAN else None
            axes.plot(domains, [one.median for one in line], style, marker=".", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="running domains", ylabel="ms", title="medians, dotted: 99 %")
    axes.legend(fontsize=7, frameon=False)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.9, bottom=0.2)
    return figure
