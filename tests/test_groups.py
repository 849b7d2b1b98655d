"""Groups of some members between real processes: ranks, tags, steps and failures are each group's own."""

import json
import threading
import time

import numpy as np
import psutil
import pytest
from cluster import Cluster, eventually
from worker import digest

import pccl
from pccl import _core

DEAD_S = 1.0


@pytest.fixture
def cluster():
    with Cluster(PCCL_DEAD_TIMEOUT=str(DEAD_S)) as made:
        yield made


def make(peer, **lists):
    """peer.groups[name] for each name=ranks, made in this order by all peers alike."""
    peer.groups = {name: peer.comm.new_group(ranks) for name, ranks in lists.items()}
    return {
        name: {"members": list(group.members), "is_member": group.is_member, "world": group.world_size,
               "rank": group.rank if group.is_member else None}
        for name, group in peer.groups.items()
    }  # fmt: skip


def join(cluster, count, **lists):
    """That many peers by rank, with these groups."""
    peers = cluster.join(count)
    return peers, cluster.call(peers, make, **lists)


def reduce_in(peer, name, value, count=1000, tag=0, op_timeout=20.0):
    """An all-reduce of a group; what came of it."""
    x = np.full(count, float(value), np.float32)
    before = x.copy()
    error = record = None
    try:
        peer.groups[name].all_reduce(x, tag=tag, op_timeout=op_timeout)
    except pccl.PCCLError as failed:
        error, record = type(failed).__name__, vars(failed.record)
        assert np.array_equal(x, before)
    return {"error": error, "record": record, "first": float(x[0]), "digest": digest(x)}


def reduce_whole(peer, value, count=1000):
    x = np.full(count, float(value), np.float32)
    peer.comm.all_reduce(x, op_timeout=20.0)
    return float(x[0])


# ------------------------------------------------------------------------------------------------------------ making --


def test_ranks_are_those_of_the_list(cluster):
    peers, made = join(cluster, 4, front=[0, 1, 2], back=[3, 1], turned=[2, 1, 0], alone=[2])
    ids = [peer.id for peer in peers]
    for at, groups in enumerate(made):
        for name, ranks in {"front": [0, 1, 2], "back": [3, 1], "turned": [2, 1, 0], "alone": [2]}.items():
            rank = ranks.index(at) if at in ranks else None
            assert groups[name] == {
                "members": [ids[r] for r in ranks], "is_member": at in ranks, "world": len(ranks), "rank": rank,
            }  # fmt: skip


def all_collectives(peer, name):
    """Every collective of a group, with blocks that tell ranks apart."""
    group = peer.groups[name]
    n, rank = group.world_size, group.rank
    own = np.array([10 * rank, 10 * rank + 1], np.int32)
    blocks = np.array([[100 * rank + to] for to in range(n)], np.int32)
    many = [np.full(3, rank + 1.0), np.full(5, rank + 2.0)]
    group.barrier()
    out = {
        "all_reduce": (lambda x: (group.all_reduce(x), x)[1])(own.copy()).tolist(),
        "broadcast": group.broadcast(own.copy(), root=n - 1).tolist(),
        "all_gather": group.all_gather(own).tolist(),
        "reduce_scatter": group.reduce_scatter(blocks.copy(), np.zeros(1, np.int32)).tolist(),
        "all_to_all": group.all_to_all(blocks).tolist(),
        "coalesced": [float(x[0]) for x in group.all_reduce_coalesced(many)],
        "average": (lambda x: (group.all_reduce(x, op="avg", weight=rank), x)[1])(np.full(2, float(rank))).tolist(),
    }
    reduced, gathered = group.reduce(own.copy(), root=1), group.gather(own, root=0)
    out["reduce"] = None if reduced is None else reduced.tolist()
    out["gather"] = None if gathered is None else gathered.tolist()
    out["scatter"] = group.scatter(blocks if rank == 0 else None, np.zeros(1, np.int32), root=0).tolist()
    if rank == 0:
        group.send(own + 7, 1, tag=9)
    elif rank == 1:
        got = np.zeros(2, np.int32)
        out["received"] = [group.recv(got, tag=9), got.tolist()]
    return out


@pytest.mark.parametrize("ranks", [[3, 0, 2], [1, 3]])
def test_every_collective_counts_ranks_in_the_order_of_the_list(cluster, ranks):
    peers, _ = join(cluster, 4, some=ranks)
    n = len(ranks)
    answers = cluster.call([peers[r] for r in ranks], all_collectives, name="some")
    total = sum(range(n))
    for rank, answer in enumerate(answers):
        assert answer["all_reduce"] == [10 * total, 10 * total + n]
        assert answer["broadcast"] == [10 * (n - 1), 10 * (n - 1) + 1]
        assert answer["all_gather"] == [[10 * r, 10 * r + 1] for r in range(n)]
        assert answer["reduce_scatter"] == [100 * total + n * rank]
        assert answer["all_to_all"] == [[100 * r + rank] for r in range(n)]
        assert answer["coalesced"] == [sum(r + 1.0 for r in range(n)), sum(r + 2.0 for r in range(n))]
        assert answer["average"] == pytest.approx([sum(r * r for r in range(n)) / total] * 2)
        assert answer["reduce"] == ([10 * total, 10 * total + n] if rank == 1 else None)
        assert answer["gather"] == ([[10 * r, 10 * r + 1] for r in range(n)] if rank == 0 else None)
        assert answer["scatter"] == [rank]
    assert answers[1]["received"] == [0, [7, 8]]


def use_foreign_group(peer, name):
    peer.groups[name].barrier()


def test_a_peer_that_is_not_in_it_can_do_nothing_with_it(cluster):
    peers, _ = join(cluster, 3, two=[0, 1])
    error = peers[2].start(use_foreign_group, name="two").outcome()
    assert error.type == "InvalidUsageError"
    assert "not in the group" in error.text


def make_bad(peer, ranks):
    peer.comm.new_group(ranks)


@pytest.mark.parametrize(("ranks", "reason"), [([], "nobody"), ([0, 1, 0], "twice"), ([0, 2], "no rank 2")])
def test_lists_that_make_no_group_are_refused(cluster, ranks, reason):
    peers = cluster.join(2)
    for error in cluster.outcomes(peers, make_bad, ranks=ranks):
        assert error.type == "InvalidArgumentError"
        assert reason in error.text
    assert cluster.call(peers, reduce_whole, value=2) == [4.0, 4.0]


def test_different_lists_fail_at_all_with_both(cluster):
    peers = cluster.join(3)
    ids = [peer.id for peer in peers]
    for at, peer in enumerate(peers):
        peer.start(make, some=[0, 1] if at < 2 else [1, 0])
    for peer in peers:
        error = peer.outcome()
        assert error.type == "MismatchError"
        assert f"[{ids[0]}, {ids[1]}]" in error.text
        assert f"[{ids[1]}, {ids[0]}]" in error.text
    made = cluster.call(peers, make, some=[0, 1])
    assert [groups["some"]["rank"] for groups in made] == [0, 1, None]


def test_groups_are_of_one_peer_group(cluster):
    """Two peer groups make groups at the same time, with the same ranks; neither waits for the other."""
    left, right = [cluster.spawn() for _ in range(2)], [cluster.spawn() for _ in range(3)]
    cluster.connect(left, peer_group=7)
    cluster.connect(right, left, peer_group=8)
    right.sort(key=lambda peer: peer.id)
    made = cluster.call(right, make, pair=[2, 0])
    assert [groups["pair"]["rank"] for groups in made] == [1, None, 0]
    assert len({tuple(groups["pair"]["members"]) for groups in cluster.call(left, make, pair=[1, 0])}) == 1
    for at, peer in enumerate([right[0], right[2], *left]):
        peer.start(reduce_in, name="pair", value=1 if at < 2 else 5)
    assert [peer.wait()["first"] for peer in [right[0], right[2], *left]] == [2.0, 2.0, 10.0, 10.0]


def give_up(peer, ranks):
    began = time.monotonic()
    try:
        peer.comm.new_group(ranks)
    except pccl.OperationTimeoutError:
        return time.monotonic() - began
    return None


def test_a_call_that_nobody_joins_ends_and_the_next_one_works(cluster):
    peers = cluster.join(2, op_timeout=1.0)
    assert peers[0].call(give_up, ranks=[0, 1]) is not None
    assert [groups["ab"]["rank"] for groups in cluster.call(peers, make, ab=[1, 0])] == [1, 0]
    assert [answer["first"] for answer in cluster.call(peers, reduce_in, name="ab", value=2)] == [4.0, 4.0]


def test_status_shows_the_groups(cluster):
    peers, _ = join(cluster, 3, ab=[2, 0], all=[0, 1, 2])
    ids = [peer.id for peer in peers]

    def lists():
        status = json.loads(_core.query_status(cluster.address, 5000))
        return [row["members"] for row in status["subsets"]]

    assert lists() == [[ids[2], ids[0]], ids]
    cluster.call(peers, close, name="all")
    eventually(lambda: lists() == [[ids[2], ids[0]]])


def test_status_shows_what_nobody_is_done_with(cluster):
    """One waits in an operation that no other has called; another one is done with its part of one."""
    peers = cluster.join(3)
    ids = [peer.id for peer in peers]
    peers[0].start(wait_in_reduce, tag=7)
    peers[1].start(broadcast_ahead, tag=5)

    def ops():
        listed = json.loads(_core.query_status(cluster.address, 5000))["ops"]
        return [(row["tag"], row["done"], row["started"], row["waiting"]) for row in listed]

    eventually(lambda: ops() == [(5, [ids[1]], [], [ids[0], ids[2]]), (7, [], [ids[0]], ids)])


def wait_in_reduce(peer, tag):
    peer.comm.all_reduce(np.ones(1), tag=tag)


def broadcast_ahead(peer, tag):
    peer.comm.broadcast(np.ones(1), root=peer.comm.rank, tag=tag)


def close(peer, name):
    peer.groups[name].close()


# -------------------------------------------------------------------------------------------------------- operations --


def overlap(peer, names, count, rounds):
    """The same tag in flight in several groups and in the whole at once."""
    rank = peer.comm.rank
    for i in range(rounds):
        mine = [name for name in names if peer.groups[name].is_member]
        if (rank + i) % 2:
            mine.reverse()
        arrays = {name: np.full(count, (rank + 1.0) * (1 + i % 3), np.float32) for name in [*mine, "whole"]}
        handles = [peer.comm.all_reduce_async(arrays["whole"], tag=3)]
        handles += [peer.groups[name].all_reduce_async(arrays[name], tag=3) for name in mine]
        for handle in handles:
            handle.result()
        sums = {name: float(array[0]) / (1 + i % 3) for name, array in arrays.items()}
        assert all(np.all(array == array[0]) for array in arrays.values())
    return sums


@pytest.mark.parametrize("count", [10, 300_000])
def test_one_tag_in_flight_in_overlapping_groups(cluster, count):
    lists = {"ab": [0, 1], "bc": [2, 1], "ac": [0, 2], "abc": [2, 0, 1]}
    peers, _ = join(cluster, 4, **lists)
    answers = cluster.call(peers, overlap, names=list(lists), count=count, rounds=6)
    for rank, sums in enumerate(answers):
        expected = {name: sum(r + 1.0 for r in ranks) for name, ranks in lists.items() if rank in ranks}
        assert sums == {**expected, "whole": 10.0}


def mismatched(peer, name, count):
    peer.groups[name].all_reduce(np.zeros(count, np.float32), op_timeout=20.0)


def test_a_mismatch_is_of_its_group_alone(cluster):
    peers, _ = join(cluster, 3, ab=[0, 1], bc=[1, 2])
    peers[0].start(mismatched, name="ab", count=5)
    peers[1].start(mismatched, name="ab", count=6)
    assert [peer.outcome().type for peer in peers[:2]] == ["MismatchError"] * 2
    assert [answer["first"] for answer in cluster.call(peers[:2], reduce_in, name="ab", value=2)] == [4.0] * 2
    assert [answer["first"] for answer in cluster.call(peers[1:], reduce_in, name="bc", value=3)] == [6.0] * 2


def in_tag(peer, name, tag):
    peer.groups[name].all_reduce(np.zeros(4, np.float32), tag=tag, op_timeout=25.0)


def test_a_deadlock_is_found_though_others_are_busy(cluster):
    """The third peer is in no call at all: it must not keep the two from being told."""
    peers, _ = join(cluster, 3, ab=[0, 1])
    peers[0].start(in_tag, name="ab", tag=1)
    peers[1].start(in_tag, name="ab", tag=2)
    for peer in peers[:2]:
        error = peer.outcome()
        assert error.type == "DeadlockError"
        assert "tag 1" in error.text
        assert "tag 2" in error.text
    assert [answer["first"] for answer in cluster.call(peers[:2], reduce_in, name="ab", value=2)] == [4.0] * 2


def chat(peer, rank, rounds):
    for _ in range(rounds):
        peer.comm.send(np.ones(3), 1, tag=5) if rank == 0 else peer.comm.recv(np.zeros(3), 0, tag=5)
        time.sleep(0.2)


def test_a_deadlock_is_found_though_others_get_on(cluster):
    peers, _ = join(cluster, 4, them=[2, 3])
    for rank in (0, 1):
        peers[rank].start(chat, rank=rank, rounds=30)
    start = time.monotonic()
    for rank in (2, 3):
        peers[rank].start(in_tag, name="them", tag=rank)
    assert [peers[rank].outcome().type for rank in (2, 3)] == ["DeadlockError"] * 2
    assert time.monotonic() - start < 5
    for rank in (0, 1):
        peers[rank].wait()


def test_a_circle_of_groups_is_a_deadlock(cluster):
    lists = {"ab": [0, 1], "bc": [1, 2], "ca": [2, 0]}
    peers, _ = join(cluster, 3, **lists)
    for peer, name in zip(peers, lists, strict=True):
        peer.start(in_tag, name=name, tag=0)
    assert [peer.outcome().type for peer in peers] == ["DeadlockError"] * 3


def slow_join(peer, name, seconds):
    peer.emit("busy")
    time.sleep(seconds)
    return float(peer.groups[name].all_gather(np.ones(1)).sum())


def waiting(peer, name):
    return float(peer.groups[name].all_gather(np.ones(1), op_timeout=25.0).sum())


def test_waiting_for_somebody_who_waits_for_a_busy_one_is_no_deadlock(cluster):
    """Rank 0 waits for rank 1, which waits for rank 2, which comes late."""
    peers, _ = join(cluster, 3, ab=[0, 1], bc=[1, 2])
    peers[2].start(slow_join, name="bc", seconds=4.0)
    peers[2].event("busy")
    peers[0].start(waiting, name="ab")
    assert peers[1].call(waiting, name="bc") == 2.0
    assert peers[1].call(waiting, name="ab") == 2.0
    assert [peers[0].wait(), peers[2].wait()] == [2.0, 2.0]


# ------------------------------------------------------------------------------------------------------------- steps --


def run_step(peer, name, fail):
    """A step of a group with two operations; whether it was committed."""
    group = peer.groups[name]
    x, y = np.full(100, 2.0), np.full(70_000, 3.0)
    try:
        with group.step() as step:
            handle = group.all_reduce_async(y, tag=5)
            group.all_reduce(x, tag=4)
            handle.result()
            if fail:
                raise ValueError
    except (pccl.StepAbortedError, ValueError):
        pass
    return [step.committed, float(x[0]), float(y[0])]


def test_steps_of_groups_are_their_own(cluster):
    """The step of one group fails while that of another is committed; later both work."""
    peers, _ = join(cluster, 4, left=[0, 1], right=[3, 2])
    for at, peer in enumerate(peers):
        peer.start(run_step, name="left" if at < 2 else "right", fail=at == 0)
    answers = [peer.wait() for peer in peers]
    assert [answer[0] for answer in answers] == [False, False, True, True]
    assert answers[2] == answers[3] == [True, 4.0, 6.0]
    for at, peer in enumerate(peers):
        peer.start(run_step, name="left" if at < 2 else "right", fail=False)
    assert [peer.wait() for peer in peers] == [[True, 4.0, 6.0]] * 4


def nested_steps(peer, fail_inner):
    """A step of the group within one of the whole."""
    x, y = np.ones(10), np.ones(10)
    with peer.comm.step() as outer:
        peer.comm.all_reduce(x, tag=1)
        try:
            with peer.groups["ab"].step() as inner:
                peer.groups["ab"].all_reduce(y, tag=1)
                if fail_inner:
                    raise ValueError
        except (pccl.StepAbortedError, ValueError):
            pass
    return [outer.committed, inner.committed, float(x[0]), float(y[0])]


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_within_a_step_of_another_group(cluster, fails):
    peers, _ = join(cluster, 2, ab=[0, 1])
    for at, peer in enumerate(peers):
        peer.start(nested_steps, fail_inner=fails and at == 0)
    assert [peer.wait() for peer in peers] == [[True, not fails, 2.0, 2.0]] * 2


# -------------------------------------------------------------------------------------------------------------- loss --


def steps_by_threads(peer, late):
    """A thread for each group; ``late``, by name: how long it computes within its step."""
    outcome = {}

    def work(name):
        data = np.ones(10)
        try:
            with peer.groups[name].step():
                peer.groups[name].all_reduce(data)
                time.sleep(late.get(name, 0))
            outcome[name] = [time.monotonic() - start, float(data[0])]
        except pccl.PCCLError as error:
            outcome[name] = repr(error)

    start = time.monotonic()
    threads = [threading.Thread(target=work, args=(name,)) for name in peer.groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return outcome


def test_steps_of_groups_end_at_the_same_time_by_threads_of_their_own(cluster):
    """Each waits in a vote for the other's slow thread, which is nobody's deadlock."""
    peers, _ = join(cluster, 2, a=[0, 1], b=[0, 1], c=[1, 0])
    for peer, late in zip(peers, ({"a": 4.0}, {"b": 4.0}), strict=True):
        peer.start(steps_by_threads, late=late)
    for outcome in (peer.wait() for peer in peers):
        assert {name: value for name, (_, value) in outcome.items()} == {"a": 2.0, "b": 2.0, "c": 2.0}
        assert outcome["c"][0] < 2 < 3.5 < min(outcome["a"][0], outcome["b"][0])


def keep_on(peer, name, until_s):
    """All-reduces of a group for some time: none of them may fail."""
    peer.emit("running")
    rounds, x, end = 0, np.empty(20_000, np.float32), time.monotonic() + until_s
    while True:
        x[:] = 1
        x[0] = time.monotonic() < end
        peer.groups[name].all_reduce(x, tag=rounds % 3, op_timeout=20.0)
        assert x[-1] == 2
        rounds += 1
        if x[0] < 2:
            return rounds


def post_and_wait(peer, name):
    """An operation of the group that another member never posts."""
    peer.emit("posting")
    x = np.ones(100_000, np.float32)
    try:
        peer.groups[name].all_reduce(x, op_timeout=20.0)
    except pccl.RankConnectionLostError as error:
        assert np.all(x == 1)
        return vars(error.record)
    return None


def test_a_death_breaks_the_groups_of_the_dead_and_no_others(cluster):
    """Peers 0 and 1 work in a group all the time; peer 3 dies while 2 waits for it in another."""
    peers, _ = join(cluster, 4, living=[0, 1], dying=[2, 3], both=[0, 3, 2])
    for peer in peers[:2]:
        peer.start(keep_on, name="living", until_s=2.5)
    for peer in peers[:2]:
        peer.event("running")
    peers[2].start(post_and_wait, name="dying")
    peers[2].event("posting")
    time.sleep(0.2)
    peers[3].kill()
    record = peers[2].wait()
    assert record["peer_id"] == peers[3].id
    assert "is broken" in record["message"]
    assert f"peer {peers[3].id} " in record["message"]
    assert "new group" in record["hint"]
    rounds = [peer.wait() for peer in peers[:2]]
    assert rounds[0] == rounds[1] > 10
    for peer, name in [(peers[2], "dying"), (peers[2], "both"), (peers[0], "both")]:
        began = time.monotonic()
        answer = peer.call(reduce_in, name=name, value=1)
        assert answer["error"] == "RankConnectionLostError"
        assert answer["record"]["peer_id"] == peers[3].id
        assert time.monotonic() - began < 5
    assert cluster.call(peers[:3], reduce_whole, value=2) == [6.0] * 3
    assert [groups["again"]["rank"] for groups in cluster.call(peers[:3], make, again=[2, 0])] == [1, None, 0]
    answers = cluster.call([peers[2], peers[0]], reduce_in, name="again", value=4)
    assert [answer["first"] for answer in answers] == [8.0, 8.0]


def vote_in(peer, name, post):
    """A step of the group in which this peer may post nothing; how it ended."""
    group = peer.groups[name]
    try:
        with group.step() as step:
            if post:
                group.all_reduce(np.ones(10), tag=1, op_timeout=20.0)
    except pccl.PCCLError as error:
        return [step.committed, type(error).__name__]
    return [step.committed, None]


def test_a_death_in_a_step_fails_it_for_the_survivors(cluster):
    peers, _ = join(cluster, 3, all=[0, 1, 2])
    for peer in peers[:2]:
        peer.start(vote_in, name="all", post=True)
    time.sleep(0.3)
    peers[2].kill()
    answers = [peer.wait() for peer in peers[:2]]
    assert answers[0] == answers[1]
    assert answers[0] == [False, "RankConnectionLostError"]


def test_newcomers_are_in_no_group_and_groups_outlive_their_coming(cluster):
    peers, _ = join(cluster, 2, ab=[1, 0])
    (newcomer,) = cluster.join(1, members=peers)
    assert [answer["first"] for answer in cluster.call(peers, reduce_in, name="ab", value=2)] == [4.0, 4.0]
    made = cluster.call([*peers, newcomer], make, all=[2, 1, 0])
    assert [groups["all"]["rank"] for groups in made] == [2, 1, 0]
    answers = cluster.call([*peers, newcomer], reduce_in, name="all", value=2)
    assert [answer["first"] for answer in answers] == [6.0] * 3


def test_a_lost_link_is_no_lost_member(cluster):
    """Both ends live: the operation in flight fails, the group stays."""
    peers = [cluster.spawn_behind_proxy(), cluster.spawn(), cluster.spawn()]
    cluster.join_in_order(peers, p2p_connection_pool_size=1)
    cluster.call(peers, make, pair=[1, 0], other=[2, 1])
    assert cluster.call(peers, reduce_whole, value=1) == [3.0] * 3  # a link that never carried anything costs its peer
    peers[2].start(post_and_wait, name="other")
    peers[2].event("posting")
    peers[0].start(post_and_wait, name="pair")
    peers[0].event("posting")
    time.sleep(0.2)
    for link in peers[0].proxy.connections(peers[1].pid):
        link.cut()
    record = peers[0].wait()
    assert record is not None
    assert "the link between" in record["message"]
    # Its part of the operation that has failed.
    assert peers[1].call(reduce_in, name="pair", value=2)["error"] == "RankConnectionLostError"
    assert [answer["first"] for answer in cluster.call(peers[:2], reduce_in, name="pair", value=2)] == [4.0] * 2
    assert peers[1].call(post_and_wait, name="other") is None
    assert peers[2].wait() is None


# ------------------------------------------------------------------------------------------------------------ ending --


def close_and_use(peer, name):
    group = peer.groups[name]
    group.close()
    group.close()
    group.barrier()


def test_a_closed_group_is_refused_here_and_found_out_there(cluster):
    peers, _ = join(cluster, 3, ab=[0, 1], all=[2, 0, 1])
    error = peers[1].start(close_and_use, name="ab").outcome()
    assert error.type == "InvalidUsageError"
    assert "closed" in error.text
    error = peers[0].start(in_tag, name="ab", tag=0).outcome()
    assert error.type == "DeadlockError"
    assert f"peer {peers[1].id} has destroyed its end" in error.text
    assert [answer["first"] for answer in cluster.call(peers, reduce_in, name="all", value=1)] == [3.0] * 3


def close_busy(peer, name):
    group = peer.groups[name]
    x = np.ones(10, np.float32)
    handle = group.all_reduce_async(x, tag=1)
    try:
        group.close()
    except pccl.PendingAsyncOpsError as error:
        refusal = str(error)
    peer.emit("refused")
    handle.result()
    group.close()
    return [refusal, float(x[0])]


def test_a_group_with_an_operation_in_flight_is_not_closed(cluster):
    peers, _ = join(cluster, 2, ab=[0, 1])
    peers[0].start(close_busy, name="ab")
    peers[0].event("refused")
    assert peers[1].call(reduce_in, name="ab", value=2, count=10, tag=1)["first"] == 3.0
    refusal, first = peers[0].wait()
    assert "in flight" in refusal
    assert first == 3.0


def make_and_close(peer, rounds, ranks):
    x = np.ones(50, np.float32)
    for _ in range(rounds):
        with peer.comm.new_group(ranks) as group:
            if group.is_member:
                x[:] = 1
                group.all_reduce(x, op_timeout=20.0)
                assert x[0] == len(ranks)
    return rounds


def resident_kib(process):
    return psutil.Process(process.pid).memory_info().rss // 1024


def test_groups_made_and_closed_leave_nothing_behind(cluster):
    peers = cluster.join(3)
    assert cluster.call(peers, make_and_close, rounds=100, ranks=[2, 0], timeout=60) == [100] * 3
    before = [resident_kib(process) for process in [*peers, cluster.master]]
    assert cluster.call(peers, make_and_close, rounds=200, ranks=[2, 0], timeout=60) == [200] * 3
    after = [resident_kib(process) for process in [*peers, cluster.master]]
    assert all(late - early < 512 for early, late in zip(before, after, strict=True)), (before, after)


def make_many(peer, count):
    groups = []
    try:
        for _ in range(count):
            groups.append(peer.comm.new_group([1, 0]))
    except pccl.InvalidUsageError as error:
        made, text = len(groups), str(error)
    groups[0].close()
    peer.comm.all_reduce(np.ones(1))  # both have closed it
    again = peer.comm.new_group([0, 1])
    x = np.ones(4, np.float32)
    again.all_reduce(x)
    return [made, text, float(x[0])]


def test_there_is_a_limit_to_groups_at_a_time(cluster):
    peers = cluster.join(2)
    for made, text, first in cluster.call(peers, make_many, timeout=60, count=1100):
        assert made == 1024
        assert "1024 groups" in text
        assert first == 2.0


def make_and_drop(peer, count):
    for _ in range(count):
        x = np.ones(4)
        peer.comm.new_group([1, 0]).all_reduce(x)
        assert x[0] == 2
    return count


def test_dropped_groups_do_not_count(cluster):
    peers = cluster.join(2)
    assert cluster.call(peers, make_and_drop, timeout=60, count=1100) == [1100] * 2


def reconnect_and_use(peer, master, name):
    group = peer.groups[name]
    peer.comm.abort()
    peer.comm.connect()
    group.close()
    group.barrier()


def test_groups_end_with_the_connection(cluster):
    peers, _ = join(cluster, 1, alone=[0])
    error = peers[0].start(reconnect_and_use, master=cluster.address, name="alone").outcome()
    assert error.type == "InvalidUsageError"
    assert "before this connection" in error.text


def test_group_is_part_of_the_module():
    assert issubclass(pccl.Group, pccl.collectives.Collectives)
