"""One peer that compares algorithms: python choice_peer.py JSON with rank, world, address, master, connections, cells,
samples, timeout_s.

A cell is {"op", "bytes", "algorithms"}; for each, one line of JSON: for each algorithm, and for "auto", the seconds of
each operation from a start that is the same time at all peers, in turns whose order is drawn anew each time, since an
algorithm leaves some links warm and others cold; the algorithm that was chosen; wrong elements.
Links are measured before (optimize_topology).
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import numpy as np
from wan_peer import all_members

from pccl.communicator import Communicator

LEAD_S = 0.15  # for all to know when the next operation starts
WARMUPS = 1


class Cell:
    """Buffers of a collective, and what they hold before and after it."""

    def __init__(self, comm: Communicator, op: str, size: int) -> None:
        self.comm, self.op = comm, op
        self.data = np.empty(size // 4, np.float32)
        self.blocks = np.empty((comm.world_size, size // 4), np.float32) if op == "all_gather" else None

    def fill(self) -> None:
        self.data.fill(self.comm.rank + 1)
        if self.blocks is not None:
            self.blocks.fill(0)

    def call(self, algorithm: str | None) -> None:
        if self.op == "all_reduce":
            self.comm.all_reduce(self.data, algorithm=algorithm)
        elif self.op == "broadcast":
            self.comm.broadcast(self.data, algorithm=algorithm)
        else:
            self.comm.all_gather(self.data, self.blocks, algorithm=algorithm)

    def wrong(self) -> int:
        world = self.comm.world_size
        if self.blocks is not None:
            return int(np.count_nonzero(self.blocks != np.arange(1, world + 1)[:, None]))
        expected = world * (world + 1) // 2 if self.op == "all_reduce" else 1
        return int(np.count_nonzero(self.data != expected))


def common_start(comm: Communicator) -> float:
    """A time that all peers wait for; they share the clock."""
    now = np.array([time.monotonic()])
    comm.all_reduce(now, op="max")
    start_s = float(now[0]) + LEAD_S
    time.sleep(max(0.0, start_s - time.monotonic()))
    return start_s


def compare(comm: Communicator, cell: dict[str, Any], samples: int) -> dict[str, Any]:
    ways: list[str | None] = [None, *cell["algorithms"]]
    seconds: dict[str, list[float]] = {way or "auto": [] for way in ways}
    buffers, wrong, chosen = Cell(comm, cell["op"], cell["bytes"]), 0, ""
    for i in range(WARMUPS + samples):
        for way in random.Random(i).sample(ways, len(ways)):
            buffers.fill()
            start_s = common_start(comm)
            with comm.step():
                buffers.call(way)
                took_s = time.monotonic() - start_s
            wrong += buffers.wrong()
            if way is None:
                chosen = comm.stats()["algorithm"]
            if i >= WARMUPS:
                seconds[way or "auto"].append(took_s)
    return {"seconds": seconds, "chosen": chosen, "wrong": wrong}


def main(run: dict[str, Any]) -> None:
    with all_members(run) as comm:
        comm.optimize_topology()
        for cell in run["cells"]:
            print(json.dumps(compare(comm, cell, run["samples"])), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
