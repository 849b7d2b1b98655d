"""One rank of a library under measurement: ``peer.py LIBRARY RANK SIZE RENDEZVOUS [MODE [CODEC]]``.

Reads lines ``OP BYTES ITERATIONS`` and answers with the seconds that the iterations took, after one that is not timed;
``OP BYTES 0`` only warms up. Every library gets the same buffers, written before (a page that nobody has written is the
system's one page of zeros, which stays in the cache), in place where the operation allows it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Operation = Callable[[], object]


class Ours:
    """MODE strict or step; step: all iterations of a line are one step, whose vote is not timed. CODEC: of all_reduce,
    which averages random data then; "plain": it does so without a codec."""

    def __init__(self, rank: int, size: int, rendezvous: str, mode: str, codec: str) -> None:
        import pccl

        self._comm = pccl.Communicator(rendezvous)
        self._comm.connect()
        while self._comm.world_size < size:
            if self._comm.are_peers_pending():
                self._comm.update_topology()
        self._size, self._mode = size, mode
        self._codec = codec
        self._blocks: dict[int, Any] = {}

    def block(self) -> contextlib.AbstractContextManager[object]:
        return self._comm.step() if self._mode == "step" else contextlib.nullcontext()

    def barrier(self) -> None:
        self._comm.barrier()

    def operation(self, op: str, size_bytes: int) -> Operation:
        comm, size = self._comm, self._size
        data = np.full(size_bytes // 4, 0, np.float32)
        rank = comm.rank
        if op == "all_reduce" and self._codec != "none":
            codec = None if self._codec == "plain" else self._codec
            data[:] = np.random.default_rng(rank).standard_normal(len(data), np.float32)
            return lambda: comm.all_reduce(data, op="avg", codec=codec)
        if op == "all_reduce":
            return lambda: comm.all_reduce(data)
        if op == "broadcast":
            return lambda: comm.broadcast(data)
        if op == "reduce":
            return lambda: comm.reduce(data)
        blocks = data[: len(data) // size * size].reshape(size, -1)
        if op == "all_gather":
            return lambda: comm.all_gather(blocks[rank], blocks)
        other = np.full_like(blocks, 0)
        if op == "reduce_scatter":
            return lambda: comm.reduce_scatter(blocks, other[0])
        if op == "all_to_all":
            return lambda: comm.all_to_all(blocks, other)
        raise SystemExit(f"unknown operation {op}")


class Gloo:
    def __init__(self, rank: int, size: int, rendezvous: str, mode: str, codec: str) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"tcp://{rendezvous}", rank=rank, world_size=size)
        self._torch, self._dist, self._rank, self._size = torch, dist, rank, size

    def block(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def barrier(self) -> None:
        self._dist.barrier()

    def operation(self, op: str, size_bytes: int) -> Operation:
        torch, dist, size = self._torch, self._dist, self._size
        data = torch.full((size_bytes // 4,), 0.0)
        if op == "all_reduce":
            return lambda: dist.all_reduce(data)
        if op == "broadcast":
            return lambda: dist.broadcast(data, 0)
        if op == "reduce":
            return lambda: dist.reduce(data, 0)
        whole = data[: len(data) // size * size]
        blocks = list(whole.chunk(size))
        if op == "all_gather":
            own = blocks[self._rank].clone()
            return lambda: dist.all_gather(blocks, own)
        other = torch.full_like(whole, 0.0)
        if op == "reduce_scatter":
            return lambda: dist.reduce_scatter_tensor(other[: len(whole) // size], whole)
        if op == "all_to_all":
            return lambda: dist.all_to_all_single(other, whole)
        raise SystemExit(f"unknown operation {op}")


LIBRARIES = {"pccl": Ours, "gloo": Gloo}


def main() -> None:
    library, rank, size, rendezvous, mode, codec = [*sys.argv[1:7], "none"][:6]
    peer = LIBRARIES[library](int(rank), int(size), rendezvous, mode, codec)
    print("ready", flush=True)
    prepared: tuple[str, str] = ("", "")
    for line in sys.stdin:
        op, size_bytes, iterations = line.split()
        try:
            if prepared != (op, size_bytes):
                run = peer.operation(op, int(size_bytes))
                prepared = (op, size_bytes)
            peer.barrier()
            with peer.block():
                run()
                start = time.perf_counter()
                for _ in range(int(iterations)):
                    run()
                took = time.perf_counter() - start
        except Exception as error:
            print(f"error {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            prepared = ("", "")
            continue
        print(took, flush=True)


if __name__ == "__main__":
    main()
