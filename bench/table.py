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
    names = {"pccl-step": "pccl, step", "pccl-strict": "pccl, strict", "mpi": "Open MPI", "gloo": "Gloo"}
    names["limit"] = "bare C ring"
    ours = "pccl-step" if "pccl-step" in libraries else libraries[0]
    head = [f"{result['machine']['congestion']}, ms", *(names.get(name, name) for name in libraries), "step : Gloo"]
    rows = []
    for (op, peers, size), found in cells.items():
        ratio = f"{found['gloo'] / found[ours]:.2f}x" if "gloo" in found and ours in found else ""
        medians = [number(found[name]) if name in found else "" for name in libraries]
        rows.append([f"{op}, {size_text(size)}, {peers} peers", *medians, ratio])
    return [*table(head, rows), "", f"In place, float32, TCP over loopback. {about(result)}."]


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


def wan(results: Path) -> list[str]:
    """Emulated links: our best number of connections beside Gloo."""
    result = load(results, "wan")
    if result is None:
        return []
    rows = []
    for scenario in result["rows"]:
        best: dict[int, dict[str, float]] = {}
        for run in scenario["runs"]:
            for cell in run["cells"]:
                found = best.setdefault(cell["bytes"], {})
                found[run["library"]] = min(found.get(run["library"], float("inf")), cell["median_ms"])
        for size, found in best.items():
            ours, gloo = found.get("pccl"), found.get("gloo")
            ratio = f"{gloo / ours:.1f}x" if ours and gloo else ""
            title = f"{scenario['settings']['title']}, {size_text(size)}"
            rows.append([title, number(ours) if ours else "", number(gloo) if gloo else "", ratio])
    return [*table(["emulated, ms", "pccl, strict", "Gloo", ""], rows), "", f"{about(result)}."]


def text(results: Path) -> str:
    parts = [collectives(found) for name in ("reno", "system") if (found := load(results, f"collectives-{name}"))]
    parts += [part for part in (others(results), wan(results)) if part]
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
