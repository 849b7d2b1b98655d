"""Draws the results: ``python bench/plot.py`` makes bench/results/KIND.png of the newest result of each kind.

Kinds: collectives-reno, collectives-system, wan, quant, topology.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness import RESULTS, size_text
from matplotlib.figure import Figure
from table import NAMES, Result, about, codec_kernels, load, wan_medians

COLOURS = {"step": "C0", "strict": "C2", "gloo": "C1", "limit": "0.5", "mpi": "C4"}


def colour(library: str) -> str:
    """Shared memory has the colour of TCP, and another line."""
    return COLOURS.get(library.removeprefix("pccl-").removesuffix("-shm"), "C5")


def finish(figure: Figure, title: str, result: Result) -> Figure:
    figure.suptitle(title)
    figure.supxlabel(about(result), fontsize=7, color="0.4")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    return figure


def sizes_on_x(axes: Any, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [size_text(size) for size in sizes], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("size of the buffer")


def collectives(result: Result) -> Figure:
    """Bus bandwidth against size; a column of panels for each number of peers, a row for each operation."""
    rows = [row for row in result["rows"] if "ms" in row]
    ops, peers, libraries = (list(dict.fromkeys(row[key] for row in rows)) for key in ("op", "peers", "library"))
    figure = Figure(figsize=(max(7.0, 1 + 3.6 * len(peers)), 1 + 3.4 * len(ops)), layout="constrained")
    panels = figure.subplots(len(ops), len(peers), sharey=True, squeeze=False)
    for op, line in zip(ops, panels, strict=True):
        for count, axes in zip(peers, line, strict=True):
            here = [row for row in rows if row["op"] == op and row["peers"] == count]
            for library in libraries:
                own = sorted((row["bytes"], row["busbw_gbs"]) for row in here if row["library"] == library)
                dash = "--" if library.endswith("-shm") else "-"
                label = NAMES.get(library, library)
                axes.plot(*zip(*own, strict=True), dash, marker="o", markersize=3, color=colour(library), label=label)
            sizes_on_x(axes, sorted({row["bytes"] for row in here}))
            axes.set_yscale("log")
            axes.set_title(f"{op}, {count} peers", fontsize=10)
        line[0].set_ylabel("bus bandwidth, GB/s")
    panels[0][-1].legend(fontsize=8, loc="lower right")
    return finish(figure, "Collectives on one host", result)


def wan(result: Result) -> Figure | None:
    """Bars of time, for each scenario and size one of each library; None where there is none."""
    found = wan_medians(result)
    if not found:
        return None
    libraries = [key for key, name in NAMES.items() if any(name in ms for _, ms in found)]
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(found) * (len(libraries) + 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(libraries)
    for index, library in enumerate(libraries):
        lines = [line for line, (_, ms) in enumerate(found) if NAMES[library] in ms]
        places, times = [line + index * height for line in lines], [found[line][1][NAMES[library]] for line in lines]
        bars = axes.barh(places, times, height, color=colour(library), label=NAMES[library])
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    axes.set_yticks([line + 0.4 - height / 2 for line in range(len(found))], [title for title, _ in found])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, 2 * axes.get_xlim()[1])
    axes.set_xlabel("time of an all_reduce, ms (logarithmic)")
    axes.legend(fontsize=8)
    return finish(figure, "All-reduce over emulated wide-area links", result)


def quant(result: Result) -> Figure:
    """Bars of what each codec's kernels do in a second."""
    kernels = codec_kernels(result)
    operations = list(dict.fromkeys(operation for gbs in kernels.values() for operation in gbs))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(operations)
    for index, operation in enumerate(operations):
        places = [place + index * width for place in range(len(kernels))]
        axes.bar(places, [gbs.get(operation, 0.0) for gbs in kernels.values()], width, label=operation)
    for row in result["rows"]:
        if row["what"] == "kernel" and row["operation"] == "copy" and not row["cached"]:
            axes.axhline(row["gbs"]["median"], color="0.5", linestyle="--", label="memcpy")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(kernels))], list(kernels))
    axes.set_ylabel("float32 coded or decoded, GB/s")
    axes.set_xlabel("codec")
    axes.legend(fontsize=8)
    return finish(figure, "Codecs: one thread, from memory to memory", result)


def topology(result: Result) -> Figure:
    """How far the choice is from the best fixed one: for each network a point for each operation and size."""
    rows = [row for row in result["rows"] if "chosen" in row]
    networks = list(dict.fromkeys(row["links"] for row in rows))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    kinds = (
        ("unknown_bandwidth_ratio", -0.15, "C1", "bandwidths unknown"),
        ("ratio", 0.15, "C0", "bandwidths measured"),
    )
    for key, shift, shade, label in kinds:
        places = [networks.index(row["links"]) + shift for row in rows]
        axes.scatter(places, [row[key] for row in rows], s=12, alpha=0.4, color=shade, label=label)
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("time : best fixed algorithm (ratio)")
    axes.set_xticks(range(len(networks)), [name.replace("_", " ") for name in networks])
    axes.set_xlabel("modelled links between 8 members")
    axes.legend(fontsize=8)
    return finish(figure, "Chosen algorithms beside the best fixed ones", result)


PLOTS = {
    "collectives-reno": collectives,
    "collectives-system": collectives,
    "wan": wan,
    "quant": quant,
    "topology": topology,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--output", type=Path, default=None, help="folder of the pictures; default: that of the results"
    )
    arguments = parser.parse_args()
    folder = arguments.output or arguments.results
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PLOTS.items():
        result = load(arguments.results, name)
        if result is not None and (figure := draw(result)) is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            print(path)


if __name__ == "__main__":
    main()
