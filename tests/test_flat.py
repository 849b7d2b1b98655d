"""Nothing grows: descriptors, threads and memory of members and master over a thousand epochs and many operations."""

import time

import numpy as np
import psutil
import pytest
from cluster import Cluster

import pccl

pytestmark = pytest.mark.timeout(180)

EPOCHS = 1000
WARM_UP = 250


def admit_until(peer, epoch, size):
    """The member that stays: admits whoever waits, reduces with it, and reports its resources on the way."""
    comm = peer.comm
    reported = 0
    x = np.ones(size, np.float32)
    while comm.epoch < epoch:
        if comm.are_peers_pending():
            comm.update_topology()
        if comm.world_size > 1:
            try:
                comm.all_reduce(x, op="avg")
                comm.sync_shared_state(pccl.SharedState([pccl.TensorInfo.from_numpy(x, "x")]))
            except (pccl.RankConnectionLostError, pccl.TooFewPeersError, pccl.InvalidUsageError):
                pass
        if comm.epoch // 50 > reported:
            reported = comm.epoch // 50
            peer.emit("epoch", epoch=comm.epoch, pool=comm.stats()["pool_bytes"])


def come_and_go(peer, master, size, seconds):
    """A peer that joins, reduces, synchronises and leaves, again and again."""
    start = time.monotonic()
    x = np.zeros(size, np.float32)
    while time.monotonic() - start < seconds:
        with pccl.Communicator(master) as comm:
            try:
                comm.all_reduce(x, op="avg")
                comm.sync_shared_state(pccl.SharedState([pccl.TensorInfo.from_numpy(x, "x")]))
            except (pccl.RankConnectionLostError, pccl.TooFewPeersError):
                pass


def resources(process):
    seen = psutil.Process(process.pid)
    return {"descriptors": seen.num_fds(), "threads": seen.num_threads(), "memory": seen.memory_info().rss}


def test_flat_over_a_thousand_epochs():
    with Cluster() as cluster:
        (resident,) = cluster.join(1)
        guest = cluster.spawn()
        resident.start(admit_until, epoch=EPOCHS, size=20_000)
        guest.start(come_and_go, master=cluster.address, size=20_000, seconds=150)
        watched = {"member": resident, "master": cluster.master, "guest": guest}
        samples = {name: [] for name in watched}
        epoch = 0
        while epoch < EPOCHS - 60:
            epoch = resident.event("epoch", 60)["epoch"]
            if epoch >= WARM_UP:
                for name, process in watched.items():
                    samples[name].append(resources(process))
        guest.kill()
        for name, seen in samples.items():
            half = len(seen) // 2
            # A link of a guest may be there or not when the sample is taken: compare what is seen at most.
            for what, slack in (("descriptors", 2), ("threads", 0), ("memory", 1 << 20)):
                early = max(sample[what] for sample in seen[:half])
                late = max(sample[what] for sample in seen[half:])
                assert late <= early + slack, (name, what, [sample[what] for sample in seen])


def reduce_often(peer, times, count):
    x = np.zeros(count, np.float32)
    for tag in range(times):
        peer.comm.all_reduce(x, tag=tag % 50)
    return peer.comm.stats()["pool_bytes"], peer.comm.stats()["held_bytes"]


@pytest.mark.parametrize("count", [10, 300_000])
def test_flat_over_many_operations(count):
    with Cluster() as cluster:
        peers = cluster.join(3)
        cluster.call(peers, reduce_often, times=100, count=count)
        before = [resources(process) for process in (*peers, cluster.master)]
        pools = cluster.call(peers, reduce_often, times=100, count=count)
        cluster.call(peers, reduce_often, times=3000 if count == 10 else 200, count=count)
        assert [held for _, held in pools] == [0, 0, 0]
        after = [resources(process) for process in (*peers, cluster.master)]
        for old, new in zip(before, after, strict=True):
            assert (new["descriptors"], new["threads"]) == (old["descriptors"], old["threads"])
            assert new["memory"] - old["memory"] < 2 << 20
