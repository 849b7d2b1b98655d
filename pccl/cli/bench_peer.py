"""What `pccl bench` runs: one process per local peer, each doing the same sizes; the parent joins their times.

Data are small integers made from the element's index and the peer's rank, so that the expected result is a formula.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from pccl.communicator import Communicator
from pccl.errors import PCCLError
from pccl.master_node import MasterNode
from pccl.types import DataType

DATATYPES = {
    "int8": DataType.INT8, "uint8": DataType.UINT8, "int16": DataType.INT16, "uint16": DataType.UINT16,
    "int32": DataType.INT32, "uint32": DataType.UINT32, "int64": DataType.INT64, "uint64": DataType.UINT64,
    "half": DataType.FLOAT16, "bfloat16": DataType.BFLOAT16, "float": DataType.FLOAT, "double": DataType.DOUBLE,
}  # fmt: skip
_PATTERN = 7


class Settings(NamedTuple):
    sizes: list[int]
    iters: int
    warmups: int
    check: bool
    datatype: str
    op: str
    world: int
    pool: int


@dataclass(frozen=True)
class Measure:
    time_us: float
    algbw: float
    busbw: float
    wrong: int


@dataclass(frozen=True)
class Row:
    size: int
    count: int
    type: str
    redop: str
    out_of_place: Measure
    in_place: Measure


def sizes_of(low: int, high: int, factor: int, step: int | None, datatype: str) -> list[int]:
    """The sizes in bytes from low to high, each a whole number of elements, none twice."""
    itemsize = DATATYPES[datatype].itemsize
    sizes: list[int] = []
    size = max(low, itemsize)
    while size <= high or not sizes:
        sizes.append(size // itemsize * itemsize)
        size = size + step if step else size * factor
    return list(dict.fromkeys(sizes))


def local_data(count: int, rank: int, dtype: np.dtype[Any], op: str) -> np.ndarray[Any, Any]:
    index = np.arange(count, dtype=np.int64)
    values = 1 + (index + rank) % 2 if op == "prod" else index % _PATTERN + rank
    return values.astype(dtype)


def expected(count: int, world: int, dtype: np.dtype[Any], op: str) -> np.ndarray[Any, Any]:
    """The result of ``op`` over what ``local_data`` gives to ranks 0 to world - 1."""
    index = np.arange(count, dtype=np.int64)
    base = index % _PATTERN
    total = world * base + world * (world - 1) // 2
    if op == "prod":
        odd = np.where(index % 2 == 0, world // 2, (world + 1) // 2)
        return (2.0**odd).astype(dtype)
    if op == "avg":
        return (total // world if np.issubdtype(dtype, np.integer) else total / world).astype(dtype)
    return {"sum": total, "max": base + world - 1, "min": base}[op].astype(dtype)


def gather(comm: Communicator, world: int) -> None:
    """Admit newcomers until the world is complete."""
    while comm.world_size < world:
        if comm.are_peers_pending():
            comm.update_topology()
        else:
            time.sleep(0.001)


def measure(comm: Communicator, settings: Settings, size: int, in_place: bool) -> tuple[float, int]:
    """(mean seconds of one operation, wrong elements)"""
    dtype = DATATYPES[settings.datatype].to_numpy_dtype()
    count = size // dtype.itemsize
    rank = next(member.rank for member in comm.members if member.is_self) or 0
    send = local_data(count, rank, dtype, settings.op)
    recv = send if in_place else np.empty_like(send)
    wrong = 0
    if settings.check:
        comm.all_reduce(send, recv, op=settings.op)
        wrong = int(np.count_nonzero(recv != expected(count, comm.world_size, dtype, settings.op)))
    if settings.op == "prod":
        send[:] = 1  # a product in place would overflow
    elif in_place:
        send[:] = 0
    for _ in range(settings.warmups):
        comm.all_reduce(send, recv, op=settings.op)
    start = time.perf_counter()
    for _ in range(settings.iters):
        comm.all_reduce(send, recv, op=settings.op)
    return (time.perf_counter() - start) / settings.iters, wrong


def end_with_parent() -> None:
    """However the parent ends, this process does at once: as a member that nobody drives it would hold up the run. It
    hears of it by the end of a pipe that only the parent holds."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="pccl-parent", daemon=True).start()


def peer_main(pipe: Connection, master: str, settings: Settings) -> None:
    end_with_parent()
    try:
        with Communicator(master, 0, settings.pool) as comm:
            gather(comm, settings.world)
            for size in settings.sizes:
                pipe.send((measure(comm, settings, size, False), measure(comm, settings, size, True)))
    except PCCLError as error:
        pipe.send(str(error))
    except MemoryError as error:
        pipe.send(f"no memory for the data: {error}")
    except KeyboardInterrupt:
        pipe.send("interrupted")


def run_peers(settings: Settings, peers: int, master: str | None) -> Generator[Row, None, None]:
    """Start the peers, and a master unless one is given; one row per size, as soon as all peers have measured it."""
    if master is not None:
        yield from _rows(settings, peers, master)
        return
    with MasterNode("127.0.0.1:0") as node:
        yield from _rows(settings, peers, f"127.0.0.1:{node.port}")


def _rows(settings: Settings, peers: int, master: str) -> Generator[Row, None, None]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(peers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=peer_main, args=(theirs, master, settings), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for size in settings.sizes:
            yield _joined(settings, size, _receive_all(pipes))
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _receive_all(pipes: list[Connection]) -> list[Any]:
    """One message of each peer; whichever peer fails first ends the benchmark with its own words."""
    messages: dict[int, Any] = {}
    while len(messages) < len(pipes):
        for ready in wait([pipe for i, pipe in enumerate(pipes) if i not in messages]):
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except EOFError:
                message = "a peer's process ended before its time"
            if isinstance(message, str):
                raise SystemExit(f"pccl bench: {message}")
            messages[pipes.index(ready)] = message
    return [messages[i] for i in range(len(pipes))]


def _joined(settings: Settings, size: int, measured: list[Any]) -> Row:
    world = settings.world

    def join(side: int) -> Measure:
        seconds = sum(peer[side][0] for peer in measured) / len(measured)
        algbw = size / seconds / 1e9
        return Measure(seconds * 1e6, algbw, algbw * 2 * (world - 1) / world, sum(peer[side][1] for peer in measured))

    count = size // DATATYPES[settings.datatype].itemsize
    return Row(size, count, settings.datatype, settings.op, join(0), join(1))
