"""Faults between real processes: who survives holds the same bits, all or nothing, and no call lasts for ever."""

import contextlib
import random
import signal
import time

import numpy as np
import pytest
from cluster import Cluster, eventually
from netns import ip, namespaces, needs_netns
from proxy import Proxy
from worker import digest

import pccl

DEAD_S = 1.0
LOST = {"RankConnectionLostError", "RankConnectionFailedError"}


@pytest.fixture
def cluster():
    with Cluster(PCCL_DEAD_TIMEOUT=str(DEAD_S)) as made:
        yield made


def try_reduce(peer, value, count, in_place=True, tag=0, op="sum", dtype="float32", announce=False, op_timeout=20.0):
    """One all-reduce; what came of it, and whether the input is as it was after a failure."""
    x = np.full(count, value, dtype)
    x[::97] += 1
    before = x.copy()
    out = x if in_place else np.zeros_like(x)
    if announce:
        peer.emit("posting", at=time.monotonic())
    error = record = None
    try:
        peer.comm.all_reduce(x, None if in_place else out, tag=tag, op=op, op_timeout=op_timeout)
    except pccl.PCCLError as failed:
        error, record = type(failed).__name__, vars(failed.record)
        out = x
    return {
        "error": error,
        "record": record,
        "digest": digest(out),
        "first": float(out[1]) if count > 1 else None,
        "restored": error is None or bool(np.array_equal(x, before)),
        "world": peer.comm.world_size,
        "at": time.monotonic(),
    }


def check_all_or_nothing(outcomes):
    """The law for survivors; returns whether they succeeded."""
    errors = {outcome["error"] for outcome in outcomes}
    assert len(errors) == 1, outcomes
    if errors == {None}:
        assert len({outcome["digest"] for outcome in outcomes}) == 1
        return True
    assert errors <= LOST, outcomes
    assert all(outcome["restored"] for outcome in outcomes)
    return False


def check_goes_on(cluster, peers):
    """The next operation of these peers gives their own sum, or there is but one."""
    outcomes = cluster.outcomes(peers, try_reduce, value=3, count=5000)
    if len(peers) == 1:
        assert outcomes[0]["error"] == "TooFewPeersError"
        return
    assert [(o["error"], o["first"], o["world"]) for o in outcomes] == [(None, 3.0 * len(peers), len(peers))] * len(
        peers
    ), outcomes


# ----------------------------------------------------------------------------------------------------------- SIGKILL --


@pytest.mark.parametrize(
    ("world", "ring_step"), [(world, ring_step) for world in (2, 3, 4) for ring_step in range(2 * (world - 1) + 1)]
)
def test_kill_in_each_ring_step(cluster, world, ring_step):
    """The bytes from the last peer to the first stop in the middle of a ring step, then the last is killed. The step
    after the last one: everything has passed."""
    peers = [cluster.spawn_behind_proxy(), *(cluster.spawn() for _ in range(world - 1))]
    cluster.join_in_order(peers, p2p_connection_pool_size=1)
    first, victim, survivors = peers[0], peers[-1], peers[:-1]
    links = first.proxy.connections(victim.pid)
    gate = first.proxy.gate("up", links)
    count = 600_000
    chunk_bytes = 4 * count // world
    steps = 2 * (world - 1)
    gate.hold(int((ring_step + 0.5) * chunk_bytes) if ring_step < steps else 1 << 40)
    cluster.start(peers, try_reduce, value=2, count=count)
    if ring_step < steps:
        assert gate.reached.wait(10)
    else:
        eventually(lambda: gate.passed_bytes >= steps * chunk_bytes)
    victim.kill()
    for link in links:
        link.cut()
    outcomes = [peer.wait() for peer in survivors]
    succeeded = check_all_or_nothing(outcomes)
    assert succeeded is False or ring_step == steps
    assert {outcome["world"] for outcome in outcomes} <= ({world - 1, world} if succeeded else {world - 1})
    if not succeeded:
        assert all(str(victim.id) in outcome["record"]["message"] + str(outcome["record"]) for outcome in outcomes)
    cluster.outcomes(survivors, is_pending)
    check_goes_on(cluster, survivors)


def is_pending(peer):
    return peer.comm.are_peers_pending()


def keep_reducing(peer, rank, count, until_world):
    """All-reduce in a retry loop until the world has shrunk to ``until_world``; checks every result."""
    x = np.empty(count, np.float32)
    peer.emit("running")
    failures = 0
    for i in range(1_000_000):
        x[:] = (rank + 1) * (1 + i % 3)
        before = x.copy()
        try:
            world = peer.comm.all_reduce(x, op="max", op_timeout=20).local_world_size
        except pccl.RankConnectionLostError:
            failures += 1
            assert np.array_equal(x, before)
            assert failures < 20
            world = peer.comm.all_reduce(x, op="max", retry=True, op_timeout=20).local_world_size
        assert np.all(x == x[0])
        if world == until_world:
            return {"ops": i, "failures": failures, "digest": digest(x)}


@pytest.mark.parametrize("seed", range(4))
def test_kill_at_random(cluster, seed):
    rng = random.Random(seed)
    peers = cluster.join(4)
    count = rng.choice([1000, 300_000])
    for rank, peer in enumerate(peers):
        peer.start(keep_reducing, rank=rank, count=count, until_world=2)
    for peer in peers:
        peer.event("running")
    victims = rng.sample(peers, 2)
    for victim in victims:
        time.sleep(rng.uniform(0.02, 0.3))
        victim.kill()
    survivors = [peer for peer in peers if peer not in victims]
    answers = [peer.wait() for peer in survivors]
    assert answers[0] == answers[1]
    check_goes_on(cluster, survivors)


def test_kill_out_of_place_keeps_the_input(cluster):
    peers = cluster.join(3)
    cluster.start(peers, try_reduce, value=1, count=20_000_000, in_place=False, announce=True)
    for peer in peers:
        peer.event("posting")
    time.sleep(0.02)
    peers[1].kill()
    survivors = [peers[0], peers[2]]
    check_all_or_nothing([peer.wait() for peer in survivors])
    check_goes_on(cluster, survivors)


def retry_all(peer, buffers, max_in_flight):
    """Reduces many buffers while a peer dies; each must be reduced in the end."""
    sends = [np.full(200_000, i + 1, np.float32) for i in range(buffers)]
    recvs = [np.zeros_like(send) for send in sends]
    peer.emit("running")
    descriptor = pccl.ReduceOperandDescriptor(pccl.DataType.FLOAT)
    plain = pccl.QuantizationOptions(pccl.DataType.FLOAT, pccl.QuantizationAlgorithm.NONE)
    peer.comm.all_reduce_multiple_with_retry(
        [
            pccl.ReduceOpDescriptor(
                send, recv, pccl.ReduceDescriptor(send.size, pccl.ReduceOp.SUM, i, descriptor, plain)
            )
            for i, (send, recv) in enumerate(zip(sends, recvs, strict=True))
        ],
        max_in_flight=max_in_flight,
    )
    return [float(recv[0] / (i + 1)) for i, recv in enumerate(recvs) if np.all(recv == recv[0])]


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_multiple_with_retry_reduces_every_buffer(cluster, max_in_flight):
    peers = cluster.join(3)
    cluster.start(peers, retry_all, buffers=150, max_in_flight=max_in_flight)
    for peer in peers:
        peer.event("running")
    time.sleep(0.02)
    peers[2].kill()
    first, second = (peer.wait() for peer in peers[:2])
    assert first == second
    assert len(first) == 150
    assert first[-1] == 2.0
    assert set(first) <= {3.0, 2.0}


# ---------------------------------------------------------------------------------------- silence: SIGSTOP, no route --


def check_silent_death(cluster, survivors, silent_since):
    outcomes = [peer.wait() for peer in survivors]
    assert not check_all_or_nothing(outcomes)
    assert max(outcome["at"] for outcome in outcomes) - silent_since < DEAD_S + 1
    check_goes_on(cluster, survivors)


def try_all(peer):
    comm, x = peer.comm, np.ones(6)
    state = pccl.SharedState([pccl.TensorInfo(x, "x")])
    names = []
    for call in (
        lambda: comm.all_gather(x), lambda: comm.reduce(x), lambda: comm.all_to_all(x), lambda: comm.send(x, 1),
        lambda: comm.scatter(x, x[:2]), comm.barrier, lambda: comm.step().__enter__(),
        lambda: comm.sync_shared_state(state), lambda: comm.new_group([0, 1]),
    ):  # fmt: skip
        try:
            call()
            names.append("")
        except pccl.PCCLError as error:
            names.append(type(error).__name__)
    return names


def test_stopped_peer_in_an_operation_is_evicted_and_learns_why(cluster):
    peers = cluster.join(3)
    victim, survivors = peers[1], [peers[0], peers[2]]
    cluster.start(survivors, try_reduce, value=1, count=1_000_000, announce=True)
    for peer in survivors:
        peer.event("posting")
    victim.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    check_silent_death(cluster, survivors, stopped_at)
    victim.send_signal(signal.SIGCONT)
    outcome = victim.call(try_reduce, value=1, count=10)
    # It may call before it hears of that, and all that the others need may have left it by then.
    assert outcome["error"] in ("EvictedError", "OutcomeUnknownError"), outcome
    assert "has been silent for" in outcome["record"]["message"]
    assert outcome["world"] == 1
    assert victim.call(try_all) == ["EvictedError"] * 9
    # It comes back as a newcomer.
    cluster.connect([victim], members=survivors)
    assert cluster.call([*survivors, victim], is_pending) == [False] * 3
    check_goes_on(cluster, [*survivors, victim])


def make_group(peer, ranks):
    peer.group = peer.comm.new_group(ranks)


def vote_in_group(peer):
    try:
        with peer.group.step():
            pass
    except pccl.PCCLError as error:
        return type(error).__name__
    return "committed"


def test_a_silent_peer_costs_those_their_place_that_are_silent_only():
    """It is in a group whose other member gives up a vote; when it is removed, all are frozen at that moment."""
    with Cluster(PCCL_OP_TIMEOUT="1", PCCL_DEAD_TIMEOUT="2") as cluster:
        peers = [cluster.spawn() for _ in range(5)]
        cluster.join_in_order(peers)
        cluster.call(peers, make_group, ranks=[0, 1])
        peers[1].send_signal(signal.SIGSTOP)
        assert peers[0].call(vote_in_group) == "OperationTimeoutError"
        check_goes_on(cluster, [peers[0], *peers[2:]])


def test_stopped_peer_while_idle(cluster):
    peers = cluster.join(3)
    peers[2].send_signal(signal.SIGSTOP)
    time.sleep(DEAD_S + 0.5)
    check_goes_on(cluster, peers[:2])


def test_stop_shorter_than_the_dead_timeout_is_only_latency(cluster):
    peers = cluster.join(3)
    peers[1].send_signal(signal.SIGSTOP)
    cluster.start([peers[0], peers[2]], try_reduce, value=1, count=100_000)
    time.sleep(0.4 * DEAD_S)
    peers[1].send_signal(signal.SIGCONT)
    peers[1].start(try_reduce, value=1, count=100_000)
    assert [peer.wait()["error"] for peer in peers] == [None] * 3


@needs_netns
@pytest.mark.netns
@pytest.mark.parametrize("when", ["in an operation", "idle"])
def test_blackhole_route(when):
    with (
        namespaces(3) as (hub, names),
        Cluster(("ip", "netns", "exec", hub), "10.77.0.1:0", PCCL_DEAD_TIMEOUT=str(DEAD_S)) as cluster,
    ):
        peers = [cluster.spawn(("ip", "netns", "exec", name)) for name in names]
        cluster.join_in_order(peers)
        survivors = peers[:2]
        check_goes_on(cluster, peers)
        if when == "in an operation":
            cluster.start(survivors, try_reduce, value=1, count=1_000_000, announce=True)
            for peer in survivors:
                peer.event("posting")
        ip("-n", names[2], "route", "add", "blackhole", "10.77.0.1/32")
        for i in (0, 1):
            ip("-n", names[2], "route", "add", "blackhole", f"10.77.0.{i + 2}/32")
        cut_at = time.monotonic()
        if when == "in an operation":
            check_silent_death(cluster, survivors, cut_at)
        else:
            time.sleep(DEAD_S + 0.5)
            check_goes_on(cluster, survivors)
        lonely = peers[2].call(try_reduce, value=1, count=10)
        # What fitted into the sockets counts as sent: the others may have it committed, as far as this peer knows.
        ended = {"MasterConnectionFailedError", "EvictedError", "TooFewPeersError", "OutcomeUnknownError"}
        assert lonely["error"] in ended
        assert lonely["at"] - cut_at < 10


@needs_netns
@pytest.mark.netns
def test_one_way_partition_between_two_peers():
    """Packets from one peer to another vanish; both talk to the master. One of the two has to go, or the ring goes
    another way: the rest goes on either way."""
    with (
        namespaces(3) as (hub, names),
        Cluster(("ip", "netns", "exec", hub), "10.77.0.1:0", PCCL_DEAD_TIMEOUT=str(DEAD_S)) as cluster,
    ):
        peers = [cluster.spawn(("ip", "netns", "exec", name)) for name in names]
        cluster.join_in_order(peers)
        ip("-n", names[2], "route", "add", "blackhole", "10.77.0.2/32")
        start = time.monotonic()
        alive = list(peers)
        while time.monotonic() - start < 20:
            outcomes = cluster.call(alive, try_reduce, value=1, count=300_000)
            alive = [p for p, o in zip(alive, outcomes, strict=True) if o["error"] not in ("EvictedError",)]
            if [o["error"] for o in outcomes] == [None] * len(outcomes):
                break
        assert len(alive) >= 2
        check_goes_on(cluster, alive)


# -------------------------------------------------------------------------------------------- connections on the way --


@pytest.mark.parametrize("reset", [False, True])
def test_one_stripe_cut_in_an_operation(cluster, reset):
    peers = [cluster.spawn_behind_proxy(), cluster.spawn(), cluster.spawn()]
    cluster.join_in_order(peers, p2p_connection_pool_size=4)
    check_goes_on(cluster, peers)  # a link that fails before a newcomer's first operation costs the newcomer
    links = peers[0].proxy.connections(peers[2].pid)
    assert len(links) == 4
    gate = peers[0].proxy.gate("up", links)
    gate.hold(200_000)
    cluster.start(peers, try_reduce, value=1, count=2_000_000)
    assert gate.reached.wait(10)
    links[1].cut(reset)
    gate.open()
    outcomes = [peer.wait() for peer in peers]
    assert not check_all_or_nothing(outcomes)
    assert [outcome["world"] for outcome in outcomes] == [3, 3, 3]  # a link died, nobody else
    check_goes_on(cluster, peers)
    assert len(eventually(lambda: peers[0].proxy.connections(peers[2].pid))) == 4


@pytest.mark.parametrize("count", [1_000_000, 5_000_000], ids=["bytes on the way", "bytes that wait"])
def test_stalled_stripe_is_a_lost_link(cluster, count):
    """Bytes of one direction stop for good while both ends live: fewer than the kernels on the way hold, so that the
    sender has seen all accepted, and more."""
    peers = [cluster.spawn_behind_proxy(), cluster.spawn()]
    cluster.join_in_order(peers, p2p_connection_pool_size=2)
    check_goes_on(cluster, peers)
    links = peers[0].proxy.connections(peers[1].pid)
    gate = peers[0].proxy.gate("up", links[:1])
    gate.hold(100_000)
    cluster.start(peers, try_reduce, value=1, count=count)
    start = time.monotonic()
    outcomes = [peer.wait() for peer in peers]
    assert time.monotonic() - start < DEAD_S + 2
    assert {outcome["error"] for outcome in outcomes} <= LOST
    assert all(outcome["restored"] for outcome in outcomes)


def vote_on_a_send(peer, target):
    """A step in which something is sent, unless ``target`` is None; whether it was committed, and why not."""
    why = ""
    try:
        with peer.comm.step() as step:
            if target is not None:
                peer.comm.send(np.ones(3), target, tag=7)
            peer.emit("votes")
    except pccl.StepAbortedError as error:
        why = str(error)
    return [step.committed, "do not match" in why]


def test_a_step_is_compared_although_a_link_was_made_anew_before_its_end():
    """What was sent and not received fails it. The epoch in between, when all had voted, changed no member."""
    with Cluster(PCCL_DEAD_TIMEOUT="10") as cluster:
        address = cluster.address
        master = Proxy(lambda: int(address.rpartition(":")[2]))
        with contextlib.closing(master):
            sender, other = cluster.spawn_behind_proxy(), cluster.spawn()
            cluster.connect([sender])
            cluster.address = master.address
            cluster.connect([other], [sender])
            cluster.address = address
            check_goes_on(cluster, [sender, other])
            master.gate("up", master.connections()).hold()
            other.start(vote_on_a_send, target=None)
            sender.start(vote_on_a_send, target=1)
            for peer in (sender, other):
                peer.event("votes")
            time.sleep(0.3)
            for connection in sender.proxy.connections(other.pid):
                connection.cut()
            time.sleep(0.3)
            for connection in master.connections():
                connection.gates["up"].open()
            assert [peer.wait() for peer in (sender, other)] == [[False, True]] * 2


# ------------------------------------------------------------------------------------------------------------ master --


def test_master_killed_in_an_operation(cluster):
    peers = cluster.join(3)
    cluster.start(peers[:2], try_reduce, value=1, count=100_000, announce=True)
    for peer in peers[:2]:
        peer.event("posting")
    cluster.master.kill()
    killed_at = time.monotonic()
    for outcome in (peer.wait() for peer in peers[:2]):
        assert outcome["error"] == "MasterConnectionFailedError", outcome
        assert cluster.address in str(outcome["record"])
        assert outcome["restored"]
        assert outcome["world"] == 1
        assert outcome["at"] - killed_at < DEAD_S + 1


def call_and_time(peer, call):
    comm = peer.comm
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(np.zeros(4, np.float32), "t")])
    calls = {
        "all_reduce": lambda: comm.all_reduce(np.ones(4, np.float32), tag=7, retry=True),
        "update_topology": comm.update_topology,
        "are_peers_pending": comm.are_peers_pending,
        "sync_shared_state": lambda: comm.sync_shared_state(state),
    }
    start = time.monotonic()
    try:
        calls[call]()
    except pccl.PCCLError as error:
        return type(error).__name__, time.monotonic() - start, comm.world_size
    return None, time.monotonic() - start, comm.world_size


def test_every_call_ends_when_the_master_is_gone(cluster):
    peers = cluster.join(2)
    cluster.master.kill()
    time.sleep(0.2)
    for call in ("all_reduce", "update_topology", "are_peers_pending", "sync_shared_state"):
        for error, seconds, world in cluster.call(peers, call_and_time, call=call):
            assert (error, world) == ("MasterConnectionFailedError", 1), call
            assert seconds < DEAD_S + 1


def test_stopped_master_is_noticed(cluster):
    peers = cluster.join(2)
    cluster.master.send_signal(signal.SIGSTOP)
    for error, seconds, world in cluster.call(peers, call_and_time, call="are_peers_pending"):
        assert (error, world) == ("MasterConnectionFailedError", 1)
        assert seconds < DEAD_S + 1.5


# ------------------------------------------------------------------------------------------------- calls that differ --


DIFFERENT = [
    ({"count": 100}, {"count": 101}),
    ({"dtype": "float32"}, {"dtype": "int32"}),
    ({"op": "sum"}, {"op": "max"}),
]


@pytest.mark.parametrize("size", [64, 1_000_000])
@pytest.mark.parametrize("differ", DIFFERENT, ids=["count", "dtype", "op"])
@pytest.mark.parametrize("world", [2, 3])
def test_mismatch_is_told_to_all(cluster, world, size, differ):
    peers = cluster.join(world)
    common = {"value": 1, "count": size}
    left, right = ({**common, **part} for part in differ)
    if "count" in differ[0]:
        left["count"], right["count"] = size, size + 1
    for peer, arguments in zip(peers, [left] * (world - 1) + [right], strict=True):
        peer.start(try_reduce, **arguments)
    for outcome in (peer.wait() for peer in peers):
        assert outcome["error"] == "MismatchError", outcome
        assert outcome["restored"]
        message = outcome["record"]["message"]
        for arguments in (left, right):
            shape = f"{arguments.get('op', 'sum')} of {arguments['count']} x {arguments.get('dtype', 'float32')}"
            assert shape in message, message
    check_goes_on(cluster, peers)


def test_crossed_tags_are_a_deadlock(cluster):
    peers = cluster.join(3)
    start = time.monotonic()
    for peer, tag in zip(peers, (1, 2, 1), strict=True):
        peer.start(try_reduce, value=1, count=100_000, tag=tag)
    outcomes = [peer.wait() for peer in peers]
    assert time.monotonic() - start < 5
    for outcome in outcomes:
        assert outcome["error"] == "DeadlockError", outcome
        assert outcome["restored"]
        for peer in peers:
            assert f"peer {peer.id} " in outcome["record"]["message"]
    for tag in (1, 2):  # nobody has a part of what was ended before it
        assert [o["error"] for o in cluster.call(peers, try_reduce, value=1, count=1000, tag=tag)] == [None] * 3


@pytest.mark.parametrize(
    "calls",
    [("all_reduce", "update_topology"), ("all_reduce", "sync_shared_state"), ("are_peers_pending", "update_topology")],
    ids="-".join,
)
def test_crossed_joint_calls_are_a_deadlock(cluster, calls):
    peers = cluster.join(2)
    for peer, call in zip(peers, calls, strict=True):
        peer.start(call_and_time, call=call)
    for error, seconds, world in (peer.wait() for peer in peers):
        assert (error, world) == ("DeadlockError", 2)
        assert seconds < 5
    assert [error for error, _, _ in cluster.call(peers, call_and_time, call="all_reduce")] == [None, None]
    check_goes_on(cluster, peers)


def ask_then_reduce(peer, begin_with_reduce):
    """Both calls, again and again from the first one until both succeed; how often one did not."""
    failures = 0
    while True:
        try:
            if not begin_with_reduce or failures > 0:
                peer.comm.are_peers_pending()
            peer.comm.all_reduce(np.ones(4, np.float32), tag=7)
            return failures
        except pccl.DeadlockError:
            failures += 1


def test_a_loop_out_of_step_is_in_step_after_one_deadlock(cluster):
    peers = cluster.join(3)
    for peer in peers:
        peer.start(ask_then_reduce, begin_with_reduce=peer is peers[0])
    assert [peer.wait() for peer in peers] == [1, 1, 1]


def test_late_peer_is_no_deadlock(cluster):
    """One waits in an operation while the other computes for longer than it takes to suspect a deadlock."""
    peers = cluster.join(2)
    peers[0].start(try_reduce, value=1, count=1000, tag=4)
    time.sleep(2.5)
    peers[1].start(try_reduce, value=1, count=1000, tag=4)
    assert [peer.wait()["error"] for peer in peers] == [None, None]


def test_op_timeout_ends_it_for_all(cluster):
    peers = cluster.join(3)
    outcomes = cluster.call(peers[:2], try_reduce, value=1, count=1000, op_timeout=0.5)
    assert [outcome["error"] for outcome in outcomes] == ["OperationTimeoutError"] * 2
    assert all(outcome["restored"] for outcome in outcomes)
    assert peers[2].call(try_reduce, value=1, count=1000)["error"] == "OperationTimeoutError"
    check_goes_on(cluster, peers)
