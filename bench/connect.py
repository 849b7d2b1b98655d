"""How long it takes until a world is there: ``python bench/connect.py``. All peers are told to connect at the same
time; measured from the first connect() to when all see the full world, admitting whoever is pending meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from harness import Worker, everywhere, save, summary

import pccl


def peer() -> None:
    """Told ``ADDRESS SIZE``: joins, waits for all, answers when it began and when all were there; then leaves."""
    print("ready", flush=True)
    for line in sys.stdin:
        address, size = line.split()
        comm = pccl.Communicator(address)
        start = time.monotonic()
        comm.connect()
        while comm.world_size < int(size):
            if comm.are_peers_pending():
                comm.update_topology()
        print(start, time.monotonic(), flush=True)
        sys.stdin.readline()
        comm.close()
        print("left", flush=True)


def run(workers: list[Worker]) -> float:
    """Milliseconds."""
    master = pccl.MasterNode("127.0.0.1:0")
    master.run()
    answers = [answer.split() for answer in everywhere(workers, f"127.0.0.1:{master.port} {len(workers)}")]
    took_ms = 1e3 * (max(float(end) for _, end in answers) - min(float(start) for start, _ in answers))
    for _ in everywhere(workers, "leave"):
        pass
    master.interrupt()
    return took_ms


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        peer()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="2,4,8")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in map(int, arguments.peers.split(",")):
        workers = [Worker([sys.executable, __file__, "--peer"]) for _ in range(size)]
        for worker in workers:
            assert worker.hear() == "ready"
        run(workers)  # the first one loads what the others have loaded
        row = {"peers": size, "ms": summary([run(workers) for _ in range(arguments.runs)])}
        for worker in workers:
            worker.close()
        rows.append(row)
        ms = row["ms"]
        print(f"{size} peers: {ms['median']:.1f} ms [{ms['p10']:.1f} .. {ms['p90']:.1f}]", flush=True)
    if arguments.output != "none":
        save("connect", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
