"""What more I/O threads bring: ``python bench/threads.py``. First what they could: two processes without any protocol
exchange a buffer and add what they receive, with one thread or two for the same connections. Then what they do
(PCCL_NTHREADS): all_reduce among two and four peers, over TCP, a connection for each thread. All ways take turns. ms of
a round or an operation.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from typing import Any

from collectives import Library, measure
from harness import BENCH, compile_c, machine, save, size_of, size_text, summary

WAYS = ((1, 1), (1, 2), (2, 2), (1, 4), (2, 4))
THREADS = (1, 2, 3, 4)


def bare(size_bytes: int, turns: int, rounds: int) -> list[dict[str, Any]]:
    program = compile_c(BENCH / "limit" / "threads.c", "-pthread")
    samples: dict[tuple[int, int], list[float]] = {way: [] for way in WAYS}
    for turn in range(turns):
        for index in range(len(WAYS)):
            threads, connections = WAYS[(index + turn) % len(WAYS)]
            command = [program, str(threads), str(connections), str(size_bytes), str(rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            samples[threads, connections].append(1e3 * statistics.median(map(float, done.stdout.split())))
    return [
        {"what": "bare", "threads": threads, "connections": connections, "bytes": size_bytes, "ms": summary(ms)}
        for (threads, connections), ms in samples.items()
    ]


def library(size_bytes: int, turns: int, peers: int) -> list[dict[str, Any]]:
    libraries = [Library(f"pccl-step-threads{threads}", peers, "step") for threads in THREADS]
    try:
        rows = measure(libraries, "all_reduce", size_bytes, peers, turns)
    finally:
        for each in libraries:
            each.close()
    return [{"what": "library", "threads": threads, **row} for threads, row in zip(THREADS, rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="64M", help="each way (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="in each turn (default: %(default)s)")
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    size_bytes = size_of(arguments.bytes)
    rows = bare(size_bytes, arguments.turns, arguments.rounds)
    for peers in (2, 4):
        rows += library(size_bytes, arguments.turns, peers)
    cores = machine()["cores"]
    for row in rows:
        took = row["ms"]
        who = f"{row['connections']} connections" if row["what"] == "bare" else f"pccl, {row['peers']} peers"
        print(
            f"{cores} cores, {size_text(size_bytes)}, {who}, {row['threads']} threads: "
            f"{took['median']:.1f} ms [{took['p10']:.1f} .. {took['p90']:.1f}]"
        )
    if arguments.output != "none":
        save("threads", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
