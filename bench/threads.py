"""What more I/O threads would bring: ``python bench/threads.py``. Two processes without any protocol exchange a buffer
and add what they receive, with one thread or two for the same connections; all ways take turns. ms of a round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess

from harness import BENCH, compile_c, machine, save, size_of, size_text, summary

WAYS = ((1, 1), (1, 2), (2, 2), (1, 4), (2, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="64M", help="each way (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="in each turn (default: %(default)s)")
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    program, size_bytes = compile_c(BENCH / "limit" / "threads.c", "-pthread"), size_of(arguments.bytes)
    samples: dict[tuple[int, int], list[float]] = {way: [] for way in WAYS}
    for turn in range(arguments.turns):
        for index in range(len(WAYS)):
            threads, connections = WAYS[(index + turn) % len(WAYS)]
            command = [program, str(threads), str(connections), str(size_bytes), str(arguments.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            samples[threads, connections].append(1e3 * statistics.median(map(float, done.stdout.split())))
    rows = []
    for (threads, connections), ms in samples.items():
        row = {"threads": threads, "connections": connections, "bytes": size_bytes, "ms": summary(ms)}
        rows.append(row)
        cores = machine()["cores"]
        took = row["ms"]
        print(
            f"{cores} cores, {size_text(size_bytes)} each way, {connections} connections, {threads} threads: "
            f"{took['median']:.1f} ms [{took['p10']:.1f} .. {took['p90']:.1f}]"
        )
    if arguments.output != "none":
        save("threads", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
