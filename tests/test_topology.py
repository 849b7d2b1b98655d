"""optimize_topology among processes: links are measured over TCP, and a death costs its own measurement only."""

from __future__ import annotations

import numpy as np
import pytest
from cluster import Cluster


@pytest.fixture(params=["0", "1"], ids=["tcp", "shared memory"])
def cluster(request, monkeypatch):
    monkeypatch.setenv("PCCL_SHM", request.param)
    with Cluster() as made:
        yield made


def optimize(peer):
    before = peer.comm.stats()
    peer.comm.optimize_topology()
    after = peer.comm.stats()
    return after["epoch"] - before["epoch"], after["tx_wire_bytes"] - before["tx_wire_bytes"]


def reduce_ones(peer, count=100_000):
    x = np.ones(count, np.float32)
    info = peer.comm.all_reduce(x)
    return [info.local_world_size, float(x.min()), float(x.max())]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_links_are_measured_and_used_afterwards(cluster, n, request):
    peers = cluster.join(n)
    for _ in range(2):
        flips, sent = zip(*cluster.call(peers, optimize), strict=True)
        assert set(flips) == {1}
        if "tcp" in request.node.name:
            # From the first burst alone to all that may be sent, to each of the others.
            assert all((n - 1) * (8 << 10) <= each <= (n - 1) * (17 << 20) for each in sent)
        else:
            assert max(sent) < 8 << 10
        assert cluster.call(peers, reduce_ones) == [[n, n, n]] * n


def test_who_dies_meanwhile_is_not_waited_for(cluster):
    peers = cluster.join(4)
    calls = cluster.start(peers[:3], optimize)
    peers[3].kill()
    assert all(call.wait()[0] >= 1 for call in calls)
    assert cluster.call(peers[:3], reduce_ones) == [[3, 3, 3]] * 3
