"""Several I/O threads (PCCL_NTHREADS): the same bits, no thread left, and deaths in the middle of large operations."""

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster, eventually
from worker import digest

import pccl


def io_threads(pid):
    names = (path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm"))
    return sum(name == "pccl-io" for name in names)


def collectives(peer, count):
    """Results that depend on every peer and place."""
    comm = peer.comm
    n, rank = comm.world_size, comm.rank
    rng = np.random.default_rng([rank, count])
    x = rng.integers(0, 100, count).astype(np.float32) / 7
    blocks = x[: count // n * n].reshape(n, -1)
    everything, sums, exchanged = np.empty((n, *blocks[0].shape), np.float32), blocks[0].copy(), np.empty_like(blocks)
    comm.all_gather(blocks[rank], everything)
    comm.reduce_scatter(blocks.copy(), sums)
    comm.all_to_all(blocks.copy(), exchanged)
    with comm.step():
        several = [x[i::3].copy() for i in range(3)]
        for part in several:
            comm.all_reduce(part)
    coded = x.copy()
    comm.all_reduce(coded, op="avg", codec="int8")
    strict = x.copy()
    comm.all_reduce(strict)
    comm.broadcast(x, root=n - 1)
    return [digest(strict, *several), digest(coded), digest(everything, x), digest(sums, exchanged)]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_same_bits_as_with_one_thread(world):
    seen = []
    for threads in ("1", "2", "4"):
        with Cluster(PCCL_NTHREADS=threads, PCCL_SHM="0") as cluster:
            peers = cluster.join(world)
            seen.append([cluster.call(peers, collectives, count=count) for count in (100, 50_001, 1_500_003)])
            assert [io_threads(peer.pid) for peer in peers] == [int(threads) if threads != "1" else 0] * world
    assert seen[0] == seen[1] == seen[2]


def make_and_close(peer, master, times):
    with contextlib.suppress(pccl.PCCLError):
        for _ in range(times):
            comm = pccl.Communicator(master)
            comm.connect()
            comm.close()
    return len(os.listdir("/proc/self/fd"))


def test_threads_and_descriptors_go_with_their_communicator():
    with Cluster(PCCL_NTHREADS="3", PCCL_SHM="0") as cluster:
        peer = cluster.spawn()
        address = cluster.address
        first = peer.call(make_and_close, master=address, times=2)
        assert peer.call(make_and_close, master=address, times=20) == first
        eventually(lambda: io_threads(peer.pid) == 0)


def reduce_for_ever(peer, count):
    """All-reduces, of which those that fail leave the buffer as it was, until too few peers are there."""
    failed = 0
    while True:
        x = np.ones(count, np.float32)
        try:
            peer.comm.all_reduce(x)
            assert np.unique(x).tolist() in ([2], [3], [4])
            peer.emit("reduced")
        except pccl.TooFewPeersError:
            return failed
        except pccl.PCCLError:
            assert (x == 1).all()
            failed += 1


def test_deaths_in_the_middle_of_large_operations():
    """Of four peers three are killed one after the other, each while bytes of many threads move."""
    with Cluster(PCCL_NTHREADS="3", PCCL_SHM="0") as cluster:
        peers = cluster.join(4)
        for peer in peers:
            peer.start(reduce_for_ever, count=2_000_000)
        while len(peers) > 1:
            for _ in range(3):
                peers[0].event("reduced")
            time.sleep(0.01)
            peers.pop().kill()
        peers[0].wait()
        eventually(lambda: io_threads(peers[0].pid) == 3)


def test_a_wrong_count_is_named(monkeypatch):
    for wrong in ("0", "17", "many", "1.5"):
        monkeypatch.setenv("PCCL_NTHREADS", wrong)
        with pytest.raises(pccl.InvalidArgumentError, match=f"PCCL_NTHREADS.*{wrong}.*1 to 16"):
            pccl.Communicator("127.0.0.1:1")
