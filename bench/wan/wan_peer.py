"""One peer of a measurement: python wan_peer.py JSON with library, rank, world, address, master, connections, cells.

A cell is {"bytes", "samples", "warmups"}. For each, one line of JSON: the seconds of each all-reduce (float32 sum, in
place, back to back), wrong elements, and the processor time of this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

AllReduce = Callable[[np.ndarray[Any, Any]], None]


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(all_reduce: AllReduce, rank: int, world: int, cell: dict[str, int]) -> dict[str, Any]:
    """Each operation starts with fresh data, written outside the measured time, and each result is verified."""
    data = np.empty(cell["bytes"] // 4, dtype=np.float32)
    wrong, seconds = 0, []
    for i in range(cell["warmups"] + cell["samples"]):
        if i == cell["warmups"]:
            cpu_before_s = cpu_s()
        data.fill(rank + 1 + i)
        start = time.perf_counter()
        all_reduce(data)
        if i >= cell["warmups"]:
            seconds.append(time.perf_counter() - start)
        wrong += int(np.count_nonzero(data != world * (world + 1) // 2 + world * i))
    return {"bytes": cell["bytes"], "seconds": seconds, "wrong": wrong, "cpu_s": cpu_s() - cpu_before_s}


def with_pccl(run: dict[str, Any]) -> None:
    from pccl.communicator import Communicator

    with Communicator(
        run["master"], 0, run["connections"], advertise=run["address"], congestion="system", op_timeout=run["timeout_s"]
    ) as comm:
        while comm.world_size < run["world"]:
            if comm.are_peers_pending():
                comm.update_topology()
            else:
                time.sleep(0.01)
        for cell in run["cells"]:
            print(
                json.dumps(measure(lambda data: void(comm.all_reduce(data)), run["rank"], run["world"], cell)),
                flush=True,
            )


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

        print(json.dumps(measure(all_reduce, run["rank"], run["world"], cell)), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def void(_: object) -> None:
    """A result that nobody wants."""


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    {"pccl": with_pccl, "gloo": with_gloo}[settings["library"]](settings)
