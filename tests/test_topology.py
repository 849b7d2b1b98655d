"""optimize_topology among processes: links are measured over TCP, and a death costs its own measurement only."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from cluster import Cluster, eventually
from wan.emulator import Path, Wan, why_not

REASON = why_not()


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


def broadcast_early(peer, rank):
    """What the root has sent before the other one calls, and whether it then arrives whole."""
    x = np.full(100_000, rank, np.float32)
    if rank == 0:
        handle = peer.comm.broadcast(x, async_op=True)
        time.sleep(0.5)
        sent = peer.comm.stats()["eager_bytes"]
        peer.emit("sent")
        handle.result()
        return sent
    peer.comm.broadcast(x)
    return int(np.count_nonzero(x))


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.netns
@pytest.mark.parametrize(
    ("delay_s", "least", "most"), [(0.0, 32 << 10, 66 << 10), (0.005, 400_000, 420_000)], ids=["near", "far"]
)
def test_more_is_sent_unasked_where_an_answer_takes_long(delay_s, least, most):
    with (
        Wan(2, path=Path(delay_s=delay_s), seed=1) as wan,
        Cluster(wan.command_in(0, []), f"{wan.addresses[0]}:0") as cluster,
    ):
        peers = [cluster.spawn(wan.command_in(node, [])) for node in range(2)]
        cluster.join_in_order(peers)
        peers[0].start(broadcast_early, rank=0)
        peers[0].event("sent")
        peers[1].start(broadcast_early, rank=1)
        sent, wrong = (peer.wait() for peer in peers)
        assert wrong == 0
        assert least <= sent <= most


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.netns
def test_a_master_that_searches_a_better_ring_ends(tmp_path):
    """13 far members: one more than the search for a ring is exact for. The call does not wait for the long search, and
    neither does the end of the master."""

    def path(node, to):
        return Path(delay_s=0.005 + 0.001 * ((node * node + to * to) % 7))

    def searches():
        return log.read_text().count("a search of")

    log = tmp_path / "log"
    log.touch()
    settings = {"PCCL_LOG_LEVEL": "debug", "PCCL_DEBUG_FILE": str(log)}
    with (
        Wan(13, path=path, seed=1) as wan,
        Cluster(wan.command_in(0, []), f"{wan.addresses[0]}:0", **settings) as cluster,
    ):
        quiet = {"PCCL_LOG_LEVEL": "error", "PCCL_DEBUG_FILE": ""}
        peers = [cluster.spawn(wan.command_in(node, []), **quiet) for node in range(13)]
        cluster.connect(peers)
        before = eventually(searches)
        assert {flips for flips, _ in cluster.call(peers, optimize)} == {1}
        assert cluster.call(peers, reduce_ones) == [[13, 13, 13]] * 13
        eventually(lambda: searches() > before)
        cluster.master.send_signal(signal.SIGINT)
        assert cluster.master.popen.wait(10) == 0
