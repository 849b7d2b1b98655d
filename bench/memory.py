"""What a communicator takes beside the caller's buffers: ``python bench/memory.py``. The peak of the resident memory of
a process while it connects and reduces, less what it had with its buffers, before it connected; at the largest peer.
In MiB; Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import Worker, everywhere, save, size_of, size_text

import pccl

ITERATIONS = 5
WAYS = ("out of place, step", "out of place, strict", "in place, step", "in place, strict", "in place, strict, int8")


def resident(which: str) -> float:
    """MiB: VmRSS, or VmHWM, the peak."""
    found = re.search(rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def peer(size: int, address: str, size_bytes: int, way: str) -> None:
    """Told anything: connects, reduces, and answers with the MiB that it took for that."""
    data = np.full(size_bytes // 4, 1, np.float32)
    out = data if "in place" in way else np.full_like(data, 0)
    codec = "int8" if "int8" in way else None
    print("ready", flush=True)
    sys.stdin.readline()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    comm = pccl.Communicator(address)
    comm.connect()
    while comm.world_size < size:
        if comm.are_peers_pending():
            comm.update_topology()
    for _ in range(ITERATIONS):
        if "step" in way:
            with comm.step():
                comm.all_reduce(data, out, op="avg", codec=codec)
        else:
            comm.all_reduce(data, out, op="avg", codec=codec)
    print(resident("VmHWM") - before, flush=True)
    sys.stdin.readline()


def measure(size: int, size_bytes: int, way: str, shm: bool) -> float:
    master = pccl.MasterNode("127.0.0.1:0")
    master.run()
    command = [sys.executable, __file__, "--peer", str(size), f"127.0.0.1:{master.port}", str(size_bytes), way]
    workers = [Worker(command, {"PCCL_SHM": "1" if shm else "0"}) for _ in range(size)]
    for worker in workers:
        assert worker.hear() == "ready"
    took = max(float(answer) for answer in everywhere(workers, "go"))
    for worker in workers:
        worker.close()
    master.interrupt()
    return took


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        peer(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="2,4,8", help="default: %(default)s")
    parser.add_argument("--bytes", default="64M", help="of the buffer (default: %(default)s)")
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        raise SystemExit("this system does not count the peak of a process's memory anew (/proc/self/clear_refs)")
    size_bytes = size_of(arguments.bytes)
    rows: list[dict[str, Any]] = []
    for size in map(int, arguments.peers.split(",")):
        for way in WAYS:
            for shm in (False, True):
                mib = measure(size, size_bytes, way, shm)
                rows.append({"what": way, "peers": size, "bytes": size_bytes, "shm": shm, "mib": round(mib, 1)})
                where = "shared memory" if shm else "TCP"
                print(f"{size} peers, {size_text(size_bytes)} {way}, {where}: {mib:.1f} MiB", flush=True)
    if arguments.output != "none":
        save("memory", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
