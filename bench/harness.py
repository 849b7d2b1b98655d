"""What the benchmarks share: results with the machine that they were measured on, workers that are told what to run,
and a network namespace in which the congestion control is known.

A result file is JSON: {"what", "machine", "commit", "date", "arguments", "rows"}; every row keeps its raw samples.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
RESULTS = BENCH / "results"
PATIENCE_S = 120.0


def machine() -> dict[str, Any]:
    """Processor, memory and kernel of this machine, and how its TCP is set."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "architecture": platform.machine(),
        "cpu": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "congestion": sysctl("net/ipv4/tcp_congestion_control"),
    }


def sysctl(name: str) -> str:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else "unknown"


def commit() -> str:
    """The commit measured, marked when the tree differs from it in anything but results and what is made from them."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!README.md")
    return f"{head}-dirty" if head and changed else head or "unknown"


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median and spread of ``samples``, which are kept."""
    ordered = sorted(samples)
    return {
        "median": statistics.median(ordered),
        "p10": ordered[len(ordered) // 10],
        "p90": ordered[-1 - len(ordered) // 10],
        "samples": [round(sample, 6) for sample in samples],
    }


def save(what: str, arguments: argparse.Namespace, rows: Sequence[dict[str, Any]], to: str | None = None) -> Path:
    """Writes a result file; by default ``results/<what>-<architecture>-<cores>.json``."""
    about = machine()
    path = Path(to) if to is not None else RESULTS / f"{what}-{platform.machine()}-{about['cores']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "what": what,
        "machine": about,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "arguments": {key: str(value) for key, value in vars(arguments).items() if key != "output"},
        "rows": list(rows),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"saved {path}")
    return path


def in_namespace(congestion: str) -> None:
    """Runs this script again in a network namespace of its own whose congestion control is ``congestion``, unless it is
    there already. Needs root."""
    if os.environ.get("BENCH_NAMESPACE") == congestion:
        return
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        raise SystemExit(f"--congestion {congestion} needs root, unshare and ip: use --congestion system")
    script = 'ip link set lo up && echo "$0" > /proc/sys/net/ipv4/tcp_congestion_control && exec "$@"'
    os.environ["BENCH_NAMESPACE"] = congestion
    os.execvp("unshare", ["unshare", "-n", "sh", "-c", script, congestion, sys.executable, *sys.argv])


def compile_c(source: Path, *flags: str, compiler: str = "cc", needs: Sequence[Path] = ()) -> Path:
    """The program made from ``source``, kept under build/ while nothing that it includes or ``needs`` changes."""
    target = ROOT / "build" / "bench" / source.stem
    target.parent.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in (source, *source.parent.glob("*.h"), *needs))
    if not target.exists() or target.stat().st_mtime < newest:
        subprocess.run(
            [compiler, "-std=c11", "-O3", "-march=native", "-D_GNU_SOURCE", "-Wall", "-Wextra", str(source), "-o",
             str(target), *flags],
            check=True,
        )  # fmt: skip
    return target


class Worker:
    """A child process that answers lines with lines; idle, it blocks in a read."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one_thread, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        self.pid = self._child.pid

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def hear(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"a worker has ended with status {self._child.wait()}: {self._child.args!r}")
        return line.strip()

    def close(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()


def everywhere(workers: Sequence[Worker], line: str) -> Iterator[str]:
    """Tells all workers the same; their answers."""
    for worker in workers:
        worker.say(line)
    for worker in workers:
        yield worker.hear()


def size_of(text: str) -> int:
    """'64M' -> bytes."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1].upper())
    return int(text) if unit is None else int(text[:-1]) << unit


def size_text(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"
