"""How long sync_shared_state takes: ``python bench/state.py``. One tensor of float32; all peers hold the same (nothing
to do), or one of them holds something else in every block (a full transfer to it). Measured at the slowest peer.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
from harness import Worker, everywhere, save, summary

import pccl


def peer(rank: int, size: int, address: str, size_bytes: int) -> None:
    """Told ``same`` or ``differ``: synchronises; answers with seconds and bytes received."""
    comm = pccl.Communicator(address)
    comm.connect()
    while comm.world_size < size:
        if comm.are_peers_pending():
            comm.update_topology()
    data = np.zeros(size_bytes // 4, np.float32)
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(data, "weights")])
    state.revision = 1
    print("ready", flush=True)
    for line in sys.stdin:
        data += 1
        if line.strip() == "differ" and rank == size - 1:
            data -= 0.5
        comm.barrier()
        start = time.perf_counter()
        info = comm.sync_shared_state(state)
        took = time.perf_counter() - start
        state.revision += 1
        print(took, info.rx_bytes, flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        peer(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="2,4")
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in map(int, arguments.peers.split(",")):
        master = pccl.MasterNode("127.0.0.1:0")
        master.run()
        command = [sys.executable, __file__, "--peer"]
        ends = [f"127.0.0.1:{master.port}", str(arguments.bytes)]
        workers = [Worker([*command, str(rank), str(size), *ends]) for rank in range(size)]
        for worker in workers:
            assert worker.hear() == "ready"
        for what in ("same", "differ"):
            samples = []
            for index in range(arguments.runs + 1):
                answers = [answer.split() for answer in everywhere(workers, what)]
                moved = max(int(received) for _, received in answers)
                if moved != (arguments.bytes if what == "differ" else 0):
                    raise SystemExit(f"{what}: {moved} bytes were received")
                if index > 0:
                    samples.append(1e3 * max(float(took) for took, _ in answers))
            rows.append({"what": what, "peers": size, "bytes": arguments.bytes, "ms": summary(samples)})
            ms = rows[-1]["ms"]
            print(f"{size} peers, {what:>6}: {ms['median']:.2f} ms [{ms['p10']:.2f} .. {ms['p90']:.2f}]", flush=True)
        for worker in workers:
            worker.close()
        master.interrupt()
    if arguments.output != "none":
        save("state", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
