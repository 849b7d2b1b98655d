"""Writes README's figures from bench/results: ``python bench/table.py``; with --check, exit 1 when README differs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, size_text

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
Result = dict[str, Any]
NAMES = {
    "pccl-step": "pccl, step",
    "pccl-step-shm": "pccl, step, shm",
    "pccl-strict": "pccl, strict",
    "pccl-strict-shm": "pccl, strict, shm",
    "gloo": "Gloo",
    "limit": "bare C ring",
    "limit-shm": "bare C, shm",
    "mpi": "Open MPI",
}


def load(results: Path, what: str) -> Result | None:
    """The newest result of this kind."""
    files = sorted(results.glob(f"{what}-*.json"), key=lambda path: json.loads(path.read_text()).get("date", ""))
    return json.loads(files[-1].read_text()) if files else None


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(list(head)), *rows)]
    return [f"| {line} |" for line in lines]


def about(result: Result) -> str:
    machine = result["machine"]
    return (
        f"{machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}, {machine['congestion']}, "
        f"commit {result['commit']}, {result['date']}"
    )


def number(ms: float) -> str:
    return f"{ms:.3f}" if ms < 1 else f"{ms:.1f}"


def collectives(result: Result) -> list[str]:
    """Our median beside those of the others, and how many times faster than Gloo."""
    cells: dict[tuple[str, int, int], dict[str, float]] = {}
    libraries: list[str] = []
    for row in result["rows"]:
        if "ms" not in row:
            continue
        cells.setdefault((row["op"], row["peers"], row["bytes"]), {})[row["library"]] = row["ms"]["median"]
        if row["library"] not in libraries:
            libraries.append(row["library"])
    ours = "pccl-step" if "pccl-step" in libraries else libraries[0]
    head = [f"{result['machine']['congestion']}, ms", *(NAMES.get(name, name) for name in libraries), "step : Gloo"]
    rows = []
    for (op, peers, size), found in cells.items():
        ratio = f"{found['gloo'] / found[ours]:.2f}x" if "gloo" in found and ours in found else ""
        medians = [number(found[name]) if name in found else "" for name in libraries]
        rows.append([f"{op}, {size_text(size)}, {peers} peers", *medians, ratio])
    way = "TCP over loopback"
    if any(name.endswith("-shm") for name in libraries):
        way += "; shm: shared memory"
    return [*table(head, rows), "", f"In place, float32, {way}. {about(result)}."]


def other_collectives(result: Result) -> list[str]:
    """Of each collective and number of peers: our time and Gloo's, by size."""
    times: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    for row in result["rows"]:
        if "ms" in row:
            found = times.setdefault((row["op"], row["peers"]), {}).setdefault(row["bytes"], {})
            found[row["library"]] = row["ms"]["median"]
    sizes = sorted({size for by_size in times.values() for size in by_size})
    rows = []
    for (op, peers), by_size in times.items():
        cells = []
        for size in sizes:
            ours, gloo = (by_size.get(size, {}).get(name) for name in ("pccl-step", "gloo"))
            known = ours is not None and gloo is not None
            cells.append(f"{number(ours)} : {number(gloo)}, {gloo / ours:.1f}x" if known else "")
        rows.append([f"{op}, {peers} peers", *cells])
    head = [f"{result['machine']['congestion']}, ms, pccl in a step : Gloo", *map(size_text, sizes)]
    return [*table(head, rows), "", f"float32, TCP over loopback. {about(result)}."]


def spread(summary: Result) -> str:
    return f"{number(summary['median'])} [{number(summary['p10'])} .. {number(summary['p90'])}]"


def others(results: Path) -> list[str]:
    """What a start, a synchronisation and a death cost."""
    rows: list[list[str]] = []
    last: Result | None = None
    if (result := load(results, "connect")) is not None:
        last = result
        rows += [[f"connect until all {row['peers']} are there", spread(row["ms"])] for row in result["rows"]]
    if (result := load(results, "state")) is not None:
        last = result
        what = {"same": "nothing to do", "differ": "all of it to one peer"}
        rows += [
            [f"sync_shared_state of {size_text(row['bytes'])}, {row['peers']} peers, {what[row['what']]}",
             spread(row["ms"])] for row in result["rows"]
        ]  # fmt: skip
    if (result := load(results, "recovery")) is not None:
        last = result
        for row in result["rows"]:
            if row["how"] == "kill":
                name = f"SIGKILL of 1 of {row['peers']} in an all_reduce of {size_text(row['bytes'])}"
                rows.append([f"{name}: error at the others", spread(row["error_ms"])])
                rows.append([f"{name}: next success", spread(row["success_ms"])])
            elif row["how"] == "stop running":
                rows.append(["SIGSTOP of 1 of 4, dead timeout 2 s: error at the others", spread(row["error_ms"])])
    if last is None:
        return []
    return [*table(["ms, median [p10 .. p90]", ""], rows), "", f"{about(last)}."]


def memory(results: Path) -> list[str]:
    """What a communicator takes beside the caller's buffers."""
    result = load(results, "memory")
    if result is None:
        return []
    cells: dict[str, dict[str, float]] = {}
    columns: dict[str, None] = {}
    for row in result["rows"]:
        column = f"{row['peers']} peers, {'shm' if row['shm'] else 'TCP'}"
        columns[column] = None
        cells.setdefault(f"{row['what']}, {size_text(row['bytes'])}", {})[column] = row["mib"]
    rows = [[name, *(f"{found[column]:.1f}" for column in columns)] for name, found in cells.items()]
    note = "Peak of resident memory less the caller's buffers; the system's socket buffers are not in it."
    return [*table(["memory of an all_reduce, MiB", *columns], rows), "", f"{note} {about(result)}."]


def medians_of(runs: Iterable[Result]) -> dict[int, dict[str, float]]:
    """The least median by bytes and name of the library, over the numbers of connections; not of void runs."""
    best: dict[int, dict[str, float]] = {}
    for run in runs:
        name = f"pccl-{run.get('mode', 'strict')}" if run["library"] == "pccl" else run["library"]
        for cell in run["cells"]:
            if run["void"] is None and cell["wrong"] == 0:
                found = best.setdefault(cell["bytes"], {})
                found[NAMES[name]] = min(found.get(NAMES[name], float("inf")), cell["median_ms"])
    return best


def wan_medians(result: Result) -> list[tuple[str, dict[str, float]]]:
    """Of each scenario and size what it is called, and the medians by library, where nothing but that was chosen."""
    found = []
    for scenario in result["rows"]:
        if any(run.get("codec") for run in scenario["runs"]):
            continue
        best = medians_of(run for run in scenario["runs"] if not run.get("algorithm"))
        found += [(f"{scenario['settings']['title']}, {size_text(size)}", ms) for size, ms in best.items()]
    return found


def wan(results: Path) -> list[str]:
    """Emulated links: our best number of connections beside Gloo."""
    result = load(results, "wan")
    found = wan_medians(result) if result is not None else []
    if result is None or not found:
        return []
    libraries = [name for name in NAMES.values() if any(name in ms for _, ms in found)]
    rows = []
    for title, ms in found:
        ours = [ms[name] for name in libraries if name in ms and name != NAMES["gloo"]]
        ratio = f"{ms[NAMES['gloo']] / min(ours):.1f}x" if ours and NAMES["gloo"] in ms else ""
        rows.append([title, *(number(ms[name]) if name in ms else "" for name in libraries), ratio])
    head = ["all_reduce over emulated links, ms", *libraries, "pccl : Gloo"]
    return [*table(head, rows), "", f"In place, float32, pccl with its best number of connections. {about(result)}."]


def shown_ratio(over: float | None, under: float | None, what: str) -> str | None:
    return f"{over / under:.1f}x {what}" if over is not None and under is not None else None


def median(runs: Iterable[Result], size: int, **options: Any) -> float | None:
    """Of the first run with these options that is not void."""
    for run in runs:
        if run["void"] is None and all(run.get(key) == value for key, value in options.items()):
            for cell in run["cells"]:
                if cell["bytes"] == size and cell["wrong"] == 0:
                    return float(cell["median_ms"])
    return None


def largest_cells(runs: Iterable[Result]) -> list[list[str]]:
    """What plain TCP would have done: of steps over each number of connections the largest size."""
    rows = []
    for run in runs:
        cells = [cell for cell in run["cells"] if "of_plain_tcp" in cell and cell["wrong"] == 0]
        if run["library"] != "pccl" or run.get("mode") != "step" or run.get("codec") or run["void"] or not cells:
            continue
        share = f"{cells[0]['of_plain_tcp']:.2f} of what {run['plain_tcp']['tool']} reaches"
        what = f"{size_text(cells[0]['bytes'])}, step, connections: {run['connections']}"
        rows.append([what, f"{number(cells[0]['median_ms'])} ms", share])
    return rows


def findings(scenario: Result) -> list[list[str]]:
    """Of one scenario what its runs are there to show: what, figure, beside what."""
    if "choices" in scenario:
        chosen, auto = (max(row[key] for row in scenario["choices"]) for key in ("chosen_ratio", "ratio"))
        beside = f"of the time of the best, at worst; {auto:.2f} in the samples with the automatic choice"
        return [["the algorithm that is chosen", f"{chosen:.2f}", beside]]
    runs, ours = scenario["runs"], {"library": "pccl"}
    size = max((cell["bytes"] for run in runs for cell in run["cells"]), default=0)
    found: list[tuple[str, float | None, str | None]] = []
    if scenario["settings"].get("loss"):
        one, sixteen = (median(runs, size, **ours, connections=count) for count in (1, 16))
        found = [("16 connections", sixteen, shown_ratio(one, sixteen, "faster than one"))]
    elif any(run.get("codec") for run in runs):
        plain = median(runs, size, **ours, codec=None)
        coded = [(name, median(runs, size, **ours, codec=name)) for name in ("int8", "int4")]
        found = [(name, ms, shown_ratio(plain, ms, "faster than plain")) for name, ms in coded]
    elif any(run.get("algorithm") for run in runs):
        free = median(runs, size, **ours, mode="step", algorithm=None)
        ring = median(runs, size, **ours, mode="step", algorithm="ring")
        found = [("step", free, shown_ratio(ring, free, "faster than our own ring"))]
    else:
        return largest_cells(runs)
    return [[f"{size_text(size)}, {what}", f"{number(ms)} ms", beside or ""] for what, ms, beside in found if ms]


def wan_findings(results: Path) -> list[str]:
    """What emulated links are there to show."""
    result = load(results, "wan")
    rows = []
    for scenario in result["rows"] if result is not None else []:
        rows += [[scenario["settings"]["title"], *row] for row in findings(scenario)]
    return table(["emulated links", "", "", ""], rows) if rows else []


def codec_kernels(result: Result) -> dict[str, dict[str, float]]:
    """GB of float32 a second from memory, by codec and operation."""
    found: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        if row["what"] == "kernel" and row["codec"] != "none" and not row["stochastic"] and not row["cached"]:
            found.setdefault(row["codec"], {})[row["operation"]] = row["gbs"]["median"]
    return found


def codecs(results: Path) -> list[str]:
    """What codecs cost, and what they gain on a slow link."""
    columns: dict[str, dict[str, str]] = {}
    sources = []
    if (result := load(results, "quant")) is not None:
        sources.append(result)
        kernels = codec_kernels(result)
        for operation in ("encode", "decode and add"):
            able = {codec: gbs[operation] for codec, gbs in kernels.items() if operation in gbs}
            columns[f"{operation}, GB/s"] = {codec: f"{speed:.1f}" for codec, speed in able.items()}
        reduces = [row for row in result["rows"] if row["what"] == "all_reduce" and "ms" in row]
        size = max((row["bytes"] for row in reduces), default=0)
        columns[f"2 peers, loopback, {size_text(size)}, ms"] = {
            row["library"].removeprefix("pccl-step-"): number(row["ms"]["median"])
            for row in reduces
            if row["bytes"] == size
        }
    if (result := load(results, "wan")) is not None:
        scenarios = [row for row in result["rows"] if any(run.get("codec") for run in row["runs"])]
        sources += [result] if scenarios else []
        for scenario in scenarios:
            for run in scenario["runs"]:
                for size, ms in medians_of([run]).items():
                    title = f"{scenario['settings']['title'].removesuffix(', codecs')}, {size_text(size)}, ms"
                    columns.setdefault(title, {})[run["codec"] or "plain"] = number(*ms.values())
    names = dict.fromkeys(["plain", *(codec for column in columns.values() for codec in column)])
    rows = [[name, *(column.get(name, "") for column in columns.values())] for name in names]
    if not sources:
        return []
    machines = dict.fromkeys(about(source) for source in sources)
    note = "Bytes of float32 before coding; kernels on one thread, from memory; all_reduce in place, in a step."
    return [*table(["codec", *columns], rows), "", " ".join([note, *(f"{machine}." for machine in machines)])]


def text(results: Path) -> str:
    systems = ("reno", "system")
    parts = [collectives(found) for name in systems if (found := load(results, f"collectives-{name}"))]
    parts += [other_collectives(found) for name in systems if (found := load(results, f"others-{name}"))]
    rest = (others(results), memory(results), wan(results), wan_findings(results), codecs(results))
    parts += [part for part in rest if part]
    return "\n\n".join("\n".join(part) for part in parts)


def replaced(readme: str, figures: str) -> str:
    head, _, rest = readme.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{figures}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    arguments = parser.parse_args()
    old = arguments.readme.read_text()
    new = replaced(old, text(arguments.results))
    if arguments.check:
        sys.exit(None if old == new else f"{arguments.readme} differs from the results: run python bench/table.py")
    arguments.readme.write_text(new)


if __name__ == "__main__":
    main()
