"""One peer of a measurement: python wan_peer.py JSON with library, rank, world, address, master, connections, mode,
codec, algorithm, cells, epoch_s (of the monotonic clock, which all peers share; the same for all).

A cell is {"bytes", "samples", "warmups"}. For each, one line of JSON: the seconds of each all-reduce (float32 sum, in
place, back to back), wrong elements, and the processor time of this process. Mode "step": each cell is one step, whose
vote is not timed, and its line comes when it is committed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pccl.communicator import Communicator

AllReduce = Callable[[np.ndarray[Any, Any]], None]
CODEC_TOLERANCE = 0.02  # of a result that went through a codec
LEAD_S = 1.0


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def start_together(all_reduce: AllReduce, run: dict[str, Any]) -> None:
    """Returns at the same time at all peers. Operations without a verdict keep an offset between two peers for ever:
    the late one finds the data there and so is early next time, and the slower of them seems to take a whole offset
    more, though nobody waits for longer on average. After a verdict the peers are half a round trip apart."""
    now_s = np.empty(1, np.float32)
    for _ in range(2):  # the first waits for those that are still far behind
        now_s[0] = time.monotonic() - run["epoch_s"]
        all_reduce(now_s)
    time.sleep(max(0.0, float(now_s[0]) / run["world"] + LEAD_S - (time.monotonic() - run["epoch_s"])))


def measure(
    all_reduce: AllReduce, rank: int, world: int, cell: dict[str, int], tolerance: float = 0.0
) -> dict[str, Any]:
    """Each operation takes the result of the one before, with nothing in between: a sum multiplies it by the world's
    size, and what one gets wrong stays wrong. Exact up to 2^24, and for a world of a power of two beyond."""
    data = np.full(cell["bytes"] // 4, rank + 1, dtype=np.float32)
    seconds = []
    for i in range(cell["warmups"] + cell["samples"]):
        if i == cell["warmups"]:
            cpu_before_s = cpu_s()
        start = time.perf_counter()
        all_reduce(data)
        if i >= cell["warmups"]:
            seconds.append(time.perf_counter() - start)
    spent_s = cpu_s() - cpu_before_s
    expected = world * (world + 1) // 2 * world ** (cell["warmups"] + cell["samples"] - 1)
    right = (data >= expected * (1 - tolerance)) & (data <= expected * (1 + tolerance))  # false for a NaN
    wrong = data.size - int(np.count_nonzero(right))
    return {"bytes": cell["bytes"], "seconds": seconds, "wrong": wrong, "cpu_s": spent_s}


@contextlib.contextmanager
def all_members(run: dict[str, Any]) -> Iterator[Communicator]:
    """A communicator in whose group all peers of the run are."""
    from pccl.communicator import Communicator

    with Communicator(
        run["master"], 0, run["connections"], advertise=run["address"], congestion="system", op_timeout=run["timeout_s"]
    ) as comm:
        while comm.world_size < run["world"]:
            if comm.are_peers_pending():
                comm.update_topology()
            else:
                time.sleep(0.01)
        yield comm


def with_pccl(run: dict[str, Any]) -> None:
    with all_members(run) as comm:

        def all_reduce(data: np.ndarray[Any, Any]) -> None:
            comm.all_reduce(data, codec=run["codec"], algorithm=run["algorithm"])

        tolerance = CODEC_TOLERANCE if run["codec"] is not None else 0.0
        for cell in run["cells"]:
            start_together(lambda data: void(comm.all_reduce(data)), run)
            with comm.step() if run["mode"] == "step" else contextlib.nullcontext():
                measured = measure(all_reduce, run["rank"], run["world"], cell, tolerance)
            print(json.dumps(measured), flush=True)


def with_gloo(run: dict[str, Any]) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    host, _, port = run["master"].rpartition(":")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port)
    torch.set_num_threads(1)
    limit = timedelta(seconds=run["timeout_s"])
    dist.init_process_group("gloo", rank=run["rank"], world_size=run["world"], timeout=limit)
    for cell in run["cells"]:

        def all_reduce(data: np.ndarray[Any, Any]) -> None:
            dist.all_reduce(torch.from_numpy(data))

        start_together(all_reduce, run)
        print(json.dumps(measure(all_reduce, run["rank"], run["world"], cell)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def void(_: object) -> None:
    """A result that nobody wants."""


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    {"pccl": with_pccl, "gloo": with_gloo}[settings["library"]](settings)
