"""Every collective between real processes: values that are formulas, both consistencies, all algorithms, bad calls."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
from cluster import Cluster, RemoteError, everywhere
from worker import digest

import pccl

REDUCING = ("ring", "tree", "direct", "exchange")


@pytest.fixture(scope="module", params=[2, 3, 5], ids="{}peers".format)
def peers(request):
    with Cluster() as cluster:
        yield cluster.join(request.param)


@pytest.fixture(scope="module")
def three():
    with Cluster() as cluster:
        yield cluster.join(3)


def reduce_by(peer, rank, size, algorithm, in_step):
    wrong = []
    for count in (0, 1, 5, 1000, 20_011, 300_007):
        for dtype in ("float32", "int64", "float16"):
            values = [((np.arange(count) * 3 + r * 7) % 13 - 6).astype(dtype) for r in range(size)]
            expected = np.sum([value.astype("float64") for value in values], axis=0)
            for in_place in (True, False):
                send = values[rank].copy()
                recv = None if in_place else np.empty_like(send)
                with peer.comm.step() if in_step else contextlib.nullcontext():
                    peer.comm.all_reduce(send, recv, algorithm=algorithm)
                if not np.array_equal((send if in_place else recv).astype("float64"), expected):
                    wrong.append([count, dtype, in_place])
    return [peer.comm.rank, wrong]


@pytest.mark.parametrize("in_step", [False, True], ids=["strict", "step"])
@pytest.mark.parametrize("algorithm", REDUCING)
def test_all_reduce_by_each_algorithm(peers, algorithm, in_step):
    found = everywhere(peers, reduce_by, algorithm=algorithm, in_step=in_step)
    assert found == [[rank, []] for rank in range(len(peers))]


def same_bits(peer, rank, size, algorithm):
    rng = np.random.default_rng(rank)
    made = []
    for dtype in ("float32", "float16", "float64"):
        data = rng.standard_normal(50_001).astype(dtype)
        peer.comm.all_reduce(data, op="avg", algorithm=algorithm)
        made.append(data)
    return digest(*made)


@pytest.mark.parametrize("algorithm", REDUCING)
def test_all_members_hold_the_same_bits(peers, algorithm):
    assert len(set(everywhere(peers, same_bits, algorithm=algorithm))) == 1


def move_blocks(peer, rank, size, dtype, count, in_step):
    comm = peer.comm
    wrong = []

    def block(source, target=0):
        return ((np.arange(count) + 5 * source + 11 * target) % 97).astype(dtype)

    def check(name, got, expected):
        if got is None or not np.array_equal(np.ravel(got), np.ravel(expected)):
            wrong.append(name)

    blocks = np.stack([block(r) for r in range(size)])
    for root in range(size):
        with comm.step() if in_step else contextlib.nullcontext():
            data = block(root) if rank == root else np.zeros(count, dtype)
            check("broadcast", comm.broadcast(data, root=root), block(root))
            for algorithm in ("ring", "tree", "direct"):
                data = block(root) if rank == root else np.zeros(count, dtype)
                check(f"broadcast {algorithm}", comm.broadcast(data, root=root, algorithm=algorithm), block(root))
            gathered = comm.gather(block(rank), root=root)
            if rank == root:
                check("gather", gathered, blocks)
            elif gathered is not None:
                wrong.append("gather elsewhere")
            check(
                "scatter",
                comm.scatter(blocks if rank == root else None, np.zeros(count, dtype), root=root),
                block(rank),
            )
    with comm.step() if in_step else contextlib.nullcontext():
        for algorithm in (None, "ring", "direct"):
            check("all_gather", comm.all_gather(block(rank), algorithm=algorithm), blocks)
            inside = np.zeros((size, count), dtype)
            inside[rank] = block(rank)
            check("all_gather in place", comm.all_gather(inside[rank], inside, algorithm=algorithm), blocks)
        check(
            "all_to_all",
            comm.all_to_all(np.stack([block(rank, t) for t in range(size)])),
            np.stack([block(s, rank) for s in range(size)]),
        )
        right, left = (rank + 1) % size, (rank - 1) % size
        received = np.zeros(count, dtype)
        handle = comm.recv(received, left, tag=3, async_op=True)
        comm.send(block(rank, right), right, tag=3)
        if handle.result() != left:
            wrong.append("the source of recv")
        check("recv", received, block(left, rank))
        comm.barrier()
    return wrong


@pytest.mark.parametrize("in_step", [False, True], ids=["strict", "step"])
@pytest.mark.parametrize(("dtype", "count"), [("float32", 1000), ("bool", 3), ("complex64", 70_001), ("int8", 0)])
def test_blocks_move(peers, dtype, count, in_step):
    assert everywhere(peers, move_blocks, dtype=dtype, count=count, in_step=in_step) == [[]] * len(peers)


def reduce_to_some(peer, rank, size, count):
    comm = peer.comm
    wrong = []
    whole = sum(np.arange(count * size) % 7 + r for r in range(size)).astype("float32")
    for algorithm in (None, "ring", "tree", "direct"):
        for root in (0, size - 1):
            data = (np.arange(count * size) % 7 + rank).astype("float32")
            before = data.copy()
            result = comm.reduce(data, root=root, algorithm=algorithm)
            if rank == root and not (result is data and np.array_equal(data, whole)):
                wrong.append(["reduce", algorithm, root])
            if rank != root and not (result is None and np.array_equal(data, before)):
                wrong.append(["reduce elsewhere", algorithm, root])
    for algorithm in (None, "ring", "direct"):
        data = (np.arange(count * size) % 7 + rank).astype("float32")
        own = comm.reduce_scatter(data, np.zeros(count, "float32"), algorithm=algorithm)
        if not np.array_equal(own, whole[rank * count : (rank + 1) * count]):
            wrong.append(["reduce_scatter", algorithm])
        inside = data[rank * count : (rank + 1) * count]
        comm.reduce_scatter(data, inside, op="avg", algorithm=algorithm)
        if not np.allclose(inside, whole[rank * count : (rank + 1) * count] / size):
            wrong.append(["reduce_scatter in place", algorithm])
    return wrong


@pytest.mark.parametrize("count", [1, 1000, 200_003])
def test_reductions_to_some(peers, count):
    assert everywhere(peers, reduce_to_some, count=count) == [[]] * len(peers)


def large_blocks(peer, rank, size):
    """More partial values than a member stages, in a circle, at a pace that differs: whoever waits gets its gap."""
    count = 1_600_000
    blocks = np.full(size * count, rank + 1, "float32")
    own = np.zeros(count, "float32")
    for turn in range(6):
        if turn % size == rank:
            time.sleep(0.05)
        peer.comm.reduce_scatter(blocks, own, algorithm="ring")
    return [float(own.min()), float(own.max())]


def test_blocks_larger_than_the_staging_memory(peers):
    total = len(peers) * (len(peers) + 1) / 2
    assert everywhere(peers, large_blocks) == [[total, total]] * len(peers)


def uneven(peer, rank, size):
    comm = peer.comm
    wrong = []
    counts = [3 * r * r for r in range(size)]

    def block(source, target=0):
        return np.arange(counts[source] + target, dtype="float32") + 100 * source + target

    everything = np.concatenate([block(r) for r in range(size)])
    for algorithm in ("ring", "direct"):
        if not np.array_equal(comm.all_gather(block(rank), counts=counts, algorithm=algorithm), everything):
            wrong.append("all_gather")
        summed = comm.reduce_scatter(everything, np.zeros(counts[rank], "float32"), counts=counts, algorithm=algorithm)
        if not np.array_equal(summed, size * block(rank)):
            wrong.append("reduce_scatter")
    gathered = comm.gather(block(rank), counts=counts if rank == 1 else None, root=1)
    if rank == 1 and not np.array_equal(gathered, everything):
        wrong.append("gather")
    own = np.zeros(counts[rank], "float32")
    comm.scatter(everything if rank == 1 else None, own, counts=counts if rank == 1 else None, root=1)
    if not np.array_equal(own, block(rank)):
        wrong.append("scatter")
    out = np.concatenate([block(rank, target) for target in range(size)])
    to, come = [counts[rank] + t for t in range(size)], [counts[s] + rank for s in range(size)]
    back = comm.all_to_all(out, counts=to, recv_counts=come)
    if not np.array_equal(back, np.concatenate([block(source, rank) for source in range(size)])):
        wrong.append("all_to_all")
    return wrong


def test_blocks_of_different_sizes(peers):
    assert everywhere(peers, uneven) == [[]] * len(peers)


def weigh(peer, rank, size, algorithm):
    comm = peer.comm
    weights = [3, 0, 2, 7, 1][:size]
    data = np.full(30_000, rank + 1, "float32") if weights[rank] else np.full(30_000, np.nan, "float32")
    comm.all_reduce(data, op="avg", weight=weights[rank], algorithm=algorithm)
    expected = sum(w * (r + 1) for r, w in enumerate(weights)) / sum(weights)
    greatest = np.full(10, 100 - rank, "int16")
    comm.all_reduce(greatest, op="max", weight=int(rank > 0), algorithm=algorithm)
    scaled = np.full(1000, 1.0)
    comm.all_reduce(scaled, scale=rank + 0.5, algorithm=algorithm)
    some = np.full(1000, 1.0)
    comm.all_reduce(some, scale=float(rank > 0), algorithm=algorithm)
    whole = np.full(5000, rank - 20, "int32")  # averaged at the last rank too, which adds nothing
    comm.all_reduce(whole, op="avg", weight=int(rank < size - 1), algorithm=algorithm)
    others = size - 1
    halves = np.full(5000, rank + 1, "float16")
    comm.all_reduce(halves, op="avg", weight=rank + 1, algorithm=algorithm)
    by_rank = sum((r + 1) ** 2 for r in range(size)) / sum(r + 1 for r in range(size))
    return [
        bool(np.allclose(data, expected)),
        bool((greatest == 99).all()),
        bool(np.allclose(scaled, sum(r + 0.5 for r in range(size)))),
        bool((some == others).all()),
        bool((whole == -(-sum(r - 20 for r in range(others)) // others)).all()),
        bool((halves == np.float16(by_rank)).all()),
    ]


@pytest.mark.parametrize("algorithm", REDUCING)
def test_weights(peers, algorithm):
    assert everywhere(peers, weigh, algorithm=algorithm) == [[True] * 6] * len(peers)


def weigh_nothing(peer, rank, size, algorithm):
    data = np.ones(100, "float32")
    try:
        peer.comm.all_reduce(data, op="avg", weight=0, algorithm=algorithm)
    except pccl.InvalidArgumentError as error:
        message = error.record.message
    intact = bool((data == 1).all())
    peer.comm.all_reduce(data)
    return [message.endswith("the weights of all peers are 0"), intact, float(data[0]) == size]


@pytest.mark.parametrize("algorithm", REDUCING)
def test_no_weight_at_all(peers, algorithm):
    assert everywhere(peers, weigh_nothing, algorithm=algorithm) == [[True, True, True]] * len(peers)


def more_operators(peer, rank, size):
    bits = np.full(100, 1 << rank, "uint32")
    results = [int(peer.comm.all_reduce(data := bits.copy(), op=op) and data[7]) for op in ("band", "bor", "bxor")]
    flags = np.array([rank == 0, True, False])
    both = flags.copy()
    peer.comm.all_reduce(both, op="sum")
    every = flags.copy()
    peer.comm.all_reduce(every, op="min")
    points = np.full(1000, rank + 2j * rank, "complex128")
    peer.comm.all_reduce(points)
    several = [np.full(count, rank, "float32") for count in (1, 100, 70_000)]
    peer.comm.all_reduce_coalesced(several)
    return [results, both.tolist(), every.tolist(), str(points[9]), [float(tensor[0]) for tensor in several]]


def test_more_operators_and_types(three):
    expected = [[0, 7, 7], [True, True, False], [False, True, False], "(3+6j)", [3.0, 3.0, 3.0]]
    assert everywhere(three, more_operators) == [expected] * 3


def from_anybody(peer, rank, size):
    comm = peer.comm
    if rank > 0:
        time.sleep(0.05 * rank)
        comm.send(np.full(100_000, rank, "float32"), 0, tag=9)
        return None
    data = np.zeros(100_000, "float32")
    return [[comm.recv(data, tag=9), float(data[-1])] for _ in range(size - 1)]


def test_receive_from_anybody(three):
    assert everywhere(three, from_anybody)[0] == [[1, 1.0], [2, 2.0]]


def wrong_call(peer, rank, size, name):
    comm = peer.comm
    data = np.full(1000, float(rank))
    calls = {
        "collective": lambda: comm.broadcast(data) if rank == 1 else comm.all_reduce(data),
        "root": lambda: comm.broadcast(data, root=rank // 2),
        "algorithm": lambda: comm.all_reduce(data, algorithm="ring" if rank == 1 else "tree"),
        "consistency": lambda: comm.all_reduce(data),
        "counts": lambda: comm.all_gather(data[: 10 + rank], counts=[10 + rank] * size),
        "gather sizes": lambda: comm.gather(data[: 10 + (rank == 1)]),
    }
    try:
        calls[name]()
        found = "nothing"
    except pccl.MismatchError as error:
        found = "mismatch" if f"peer {comm.members[1].id}" in str(error) or name != "gather sizes" else str(error)
    intact = bool((data == rank).all())
    comm.all_reduce(data)
    return [found, intact, float(data[0])]


@pytest.mark.parametrize("name", ["collective", "root", "algorithm", "counts", "gather sizes"])
def test_mismatch_is_told_to_all(three, name):
    assert everywhere(three, wrong_call, name=name) == [["mismatch", True, 3.0]] * 3


def wrong_in_a_step(peer, rank, size):
    comm, refused = peer.comm, []
    calls = {
        "retry": lambda: comm.all_reduce(np.ones(5), retry=True),
        "many": lambda: comm.all_reduce_multiple_with_retry([]),
        "update_topology": comm.update_topology,
        "optimize_topology": comm.optimize_topology,
        "new_group": lambda: comm.new_group([0, 1]),
        "sync": lambda: comm.sync_shared_state(pccl.SharedState([pccl.TensorInfo(np.ones(3), "t")])),
    }
    with comm.step() as step:  # no operation has been posted in it yet
        for name, call in calls.items():
            with contextlib.suppress(pccl.InvalidUsageError):
                call()
                refused.append(name)
    data = np.ones(5)
    comm.all_reduce(data)
    return [refused, step.committed, float(data[0])]


def test_what_cannot_be_done_in_a_step_is_refused_there(three):
    assert everywhere(three, wrong_in_a_step) == [[[], True, 3.0]] * 3


def strict_and_in_a_step(peer, rank, size, odd):
    comm = peer.comm
    start = time.monotonic()
    name = ""
    try:
        with comm.step() if rank == odd else contextlib.nullcontext():
            time.sleep(0.5 if rank == odd else 0)
            comm.all_reduce(np.ones(5), op_timeout=20)
    except pccl.PCCLError as error:
        name = type(error).__name__
    seconds = time.monotonic() - start
    if rank != odd:
        with contextlib.suppress(pccl.StepAbortedError), comm.step():  # the vote that the one in a step waits for
            comm.barrier()
    data = np.ones(5)
    comm.all_reduce(data)
    return [name, seconds < 10, float(data[0])]


@pytest.mark.parametrize("odd", [0, 1])
def test_the_same_call_in_a_step_and_outside_ends_for_all(three, odd):
    found = everywhere(three, strict_and_in_a_step, odd=odd)
    assert [outcome[1:] for outcome in found] == [[True, 3.0]] * 3
    assert [name for name, *_ in found] == ["StepAbortedError" if rank == odd else "MismatchError" for rank in range(3)]


def send_unawaited(peer, rank, size, name):
    comm, data = peer.comm, np.ones(5)
    if rank == 1:
        peer.emit("busy")
        time.sleep(3)
        return None
    start = time.monotonic()
    message = ""
    try:
        if name == "broadcast":
            comm.broadcast(data, root=rank, op_timeout=1)
        elif name == "scatter":
            comm.scatter(np.ones(10), data, root=rank, op_timeout=1)
        else:
            comm.barrier(op_timeout=1)
    except pccl.OperationTimeoutError as error:
        message = error.record.message
    return [time.monotonic() - start < 2.5, message[: len(name)], "waited for" in message]


@pytest.mark.parametrize("name", ["broadcast", "scatter", "barrier"])
def test_who_has_done_its_part_does_not_wait_beyond_the_limit(name):
    with Cluster() as cluster:
        peers = cluster.join(2)
        for rank, peer in enumerate(peers):
            peer.start(send_unawaited, rank=rank, size=2, name=name)
        assert peers[0].wait() == [True, name, True]


def wait_in_threads(peer, rank, size, late):
    names = {}

    def reduce(tag):
        try:
            time.sleep(late if tag != rank else 0)
            peer.comm.all_reduce(np.ones(5), tag=tag)
            names[tag] = "done"
        except pccl.PCCLError as error:
            names[tag] = type(error).__name__

    threads = [threading.Thread(target=reduce, args=(tag,)) for tag in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [names[tag] for tag in range(size)]


def test_a_slow_thread_of_each_peer_is_no_deadlock():
    with Cluster() as cluster:
        assert everywhere(cluster.join(2), wait_in_threads, late=4) == [["done"] * 2] * 2


def produce_and_consume(peer, rank, size):
    def produce():
        for tag in (1, 2):
            handles.append(peer.comm.send(np.full(5, float(tag)), 1 - rank, tag=tag, async_op=True))
            time.sleep(4)

    handles = []
    thread = threading.Thread(target=produce)
    thread.start()
    data = np.zeros((2, 5))
    for tag in (1, 2):
        peer.comm.recv(data[tag - 1], 1 - rank, tag=tag)
    thread.join()
    for handle in handles:
        handle.result()
    return data[:, 0].tolist()


def test_a_thread_that_only_posts_is_waited_for():
    with Cluster() as cluster:
        assert everywhere(cluster.join(2), produce_and_consume) == [[1.0, 2.0]] * 2


def mismatch_and_go_on(peer, rank, size):
    seen = []
    time.sleep(4 if rank == 2 else 0)
    peer.emit("posting")
    for tag, count in ((1, 5 + (rank == 2)), (2, 5)):
        data = np.ones(count)
        try:
            peer.comm.all_reduce(data, tag=tag)
            seen.append(float(data[0]))
        except pccl.PCCLError as error:
            seen.append(type(error).__name__)
    return seen


def test_who_hears_late_of_an_abort_is_not_taken_for_blocked():
    with Cluster() as cluster:
        peers = cluster.join(3)
        for rank, peer in enumerate(peers):
            peer.start(mismatch_and_go_on, rank=rank, size=3)
        time.sleep(3.7)
        peers[0].send_signal(signal.SIGSTOP)
        peers[2].event("posting")
        time.sleep(3.7)
        peers[0].send_signal(signal.SIGCONT)
        assert [peer.wait() for peer in peers] == [["MismatchError", 3.0]] * 3


def fail_receive_in_a_step(peer, rank, size, how):
    comm, start = peer.comm, time.monotonic()
    seconds = 0.0
    with contextlib.suppress(pccl.StepAbortedError), comm.step() as step:
        if rank == 1 and how == "timeout":
            with contextlib.suppress(pccl.OperationTimeoutError):
                comm.recv(np.ones(3), tag=9, op_timeout=0.5)
        elif rank == 1:
            comm.recv(np.ones(3), tag=9, async_op=True).cancel()
        else:
            with contextlib.suppress(pccl.PCCLError):
                comm.recv(np.ones(3), 1, tag=8)  # waits for what never comes
            seconds = time.monotonic() - start
        time.sleep(2 if rank == 1 else 0)  # the others know before it votes
    data = np.ones(3)
    comm.all_reduce(data)
    return [step.committed, seconds < 1.5, float(data[0])]


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_receive_from_anybody_that_fails_fails_its_step(three, how):
    assert everywhere(three, fail_receive_in_a_step, how=how) == [[False, True, 3.0]] * 3


def retry_until_the_limit(peer, rank, size, how):
    comm, start = peer.comm, time.monotonic()
    if rank > 0:
        peer.emit("busy")
        time.sleep(20)
    name = ""
    x = np.ones(5, np.float32)
    try:
        if how == "retry":
            comm.all_reduce(x, retry=True, op_timeout=3)
        else:
            operand = pccl.ReduceOperandDescriptor(pccl.DataType.FLOAT)
            descriptor = pccl.ReduceDescriptor(5, pccl.ReduceOp.SUM, 0, operand, pccl.QuantizationOptions())
            comm.all_reduce_multiple_with_retry([pccl.ReduceOpDescriptor.from_numpy(x, x, descriptor)])
    except pccl.PCCLError as error:
        name = type(error).__name__
    return [name, time.monotonic() - start]


@pytest.mark.parametrize("how", ["retry", "many"])
def test_retries_keep_to_the_limit(how):
    with Cluster(PCCL_OP_TIMEOUT="3") as cluster:
        peers = cluster.join(3)
        for rank, peer in enumerate(peers):
            peer.start(retry_until_the_limit, rank=rank, size=3, how=how)
        peers[1].event("busy")
        time.sleep(2)
        peers[2].kill()
        name, seconds = peers[0].wait()
        assert name in ("OperationTimeoutError", "RankConnectionLostError")
        assert 2.5 < seconds < 4


def wait_alone(peer, rank, size):
    # What a thread has done that has ended is forgotten.
    thread = threading.Thread(target=peer.comm.barrier)
    thread.start()
    thread.join()
    start = time.monotonic()
    name = ""
    try:
        peer.comm.all_reduce(np.ones(5), tag=rank)
    except pccl.PCCLError as error:
        name = type(error).__name__
    return [name, time.monotonic() - start < 10]


def test_threads_that_have_ended_hide_no_deadlock(three):
    assert everywhere(three, wait_alone) == [["DeadlockError", True]] * 3


def reduce_beside_a_topology_call(peer, rank, size):
    comm = peer.comm
    if rank == 1:
        time.sleep(4)
        comm.update_topology()
        return None
    thread = threading.Thread(target=comm.update_topology)
    thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    message = ""
    try:
        comm.all_reduce(np.ones(5), op_timeout=1)
    except pccl.OperationTimeoutError as error:
        message = error.record.message
    seconds = time.monotonic() - start
    thread.join()
    return ["could not begin" in message, seconds < 2.5]


def test_what_waits_for_a_topology_call_keeps_to_its_limit():
    with Cluster() as cluster:
        assert everywhere(cluster.join(2), reduce_beside_a_topology_call) == [[True, True], None]


def abort_step(peer, rank, size, how):
    comm = peer.comm
    seen = []
    try:
        with comm.step() as step:
            comm.all_reduce(np.ones(1000))
            if how == "exception" and rank == 1:
                raise ValueError("no")
            if how == "mismatch":
                comm.all_reduce(np.ones(1000 + (rank == 1)), tag=1)
    except pccl.StepAbortedError as error:
        seen = ["aborted", step.committed, type(error.__cause__).__name__]
    except ValueError:
        seen = ["own", step.committed, ""]
    data = np.ones(5)
    with comm.step() as step:
        comm.all_reduce(data)
        comm.all_reduce(data, tag=1)
    return [seen, step.committed, float(data[0])]


def test_an_exception_aborts_the_step_for_all(three):
    aborted, own = ["aborted", False, "NoneType"], ["own", False, ""]
    assert everywhere(three, abort_step, how="exception") == [[seen, True, 9.0] for seen in (aborted, own, aborted)]


def test_a_failure_aborts_the_step_for_all(three):
    expected = [["aborted", False, "MismatchError"], True, 9.0]
    assert everywhere(three, abort_step, how="mismatch") == [expected] * 3


def leave_step_early(peer, rank, size, how):
    comm = peer.comm
    start = time.monotonic()
    seen = ""
    try:
        with comm.step() as step:
            if rank == 1 and how == "at once":
                raise ValueError("no")
            if rank == 1 and how == "with a receive in flight":  # rank 0 sends when it has got the broadcast
                comm.recv(np.empty(5), 0, tag=9, async_op=True)
                raise ValueError("no")
            if rank == 1 and how == "interrupted at the end":
                comm.all_reduce_async(np.ones(5), tag=5)
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            elif how != "without an operation" or rank != 1:
                data = np.ones(5)
                comm.broadcast(data, root=1, tag=3)
                if rank == 0:
                    comm.send(data, 1, tag=9)
    except pccl.StepAbortedError:
        seen = "aborted"
    except (ValueError, KeyboardInterrupt) as error:
        seen = type(error).__name__
    seconds = time.monotonic() - start
    data = np.ones(5)
    with comm.step() as again:
        comm.all_reduce(data)
    return [seen, step.committed, seconds < 10, again.committed, float(data[0])]


@pytest.mark.parametrize(
    ("how", "own"),
    [
        ("at once", "ValueError"),
        ("with a receive in flight", "ValueError"),
        ("interrupted at the end", "KeyboardInterrupt"),
        ("without an operation", "aborted"),  # found out by the master, when all are stuck
    ],
)
def test_who_leaves_a_step_early_aborts_it_for_all(three, how, own):
    expected = [[seen, False, True, True, 3.0] for seen in ("aborted", own, "aborted")]
    assert everywhere(three, leave_step_early, how=how) == expected


def send_before_all(peer, rank, size):
    comm = peer.comm
    start = time.monotonic()
    cause = None
    try:
        with comm.step():
            if rank == 0:
                comm.send(np.ones(100_000), 1, tag=1)  # more than goes ahead of its receive
            comm.broadcast(np.ones(5), tag=2)
            if rank == 1:
                comm.recv(np.empty(100_000), 0, tag=1)
    except pccl.StepAbortedError as error:
        cause = type(error.__cause__).__name__
    seconds = time.monotonic() - start
    data = np.ones(5)
    with comm.step() as step:
        comm.all_reduce(data)
    return [cause, seconds < 10, step.committed, float(data[0])]


def test_a_send_that_nobody_receives_yet_aborts_a_step_that_waits_for_it(three):
    assert everywhere(three, send_before_all) == [["DeadlockError", True, True, 3.0]] * 3


def differ_in_a_step(peer, rank, size, how):
    comm, odd = peer.comm, rank == 1
    start = time.monotonic()
    said = []
    data = np.full(5, 1.0)
    try:
        with comm.step() as step:
            if how == "one operation less" and not odd:
                comm.broadcast(data, root=0, tag=3)
            if how == "another tag":
                comm.reduce(data, root=0, tag=4 if odd else 3)
            if how == "another tag at the receiver":
                comm.broadcast(data, root=0, tag=4 if odd else 3)
            if how == "a receive without a send" and odd:
                comm.recv(data, 0, tag=7)
            if how == "a receive from anybody without a send" and odd:
                comm.recv(data, tag=7)
            if how == "a send without a receive" and odd:
                comm.send(data, 0, tag=7)
            if how == "a send with another tag" and rank < 2:
                comm.send(data, 1, tag=7) if rank == 0 else comm.recv(data, 0, tag=8)
    except pccl.StepAbortedError as error:
        said = [word for word in ("same operations", "do not match", "can never match") if word in str(error)]
    seconds = time.monotonic() - start
    with comm.step() as again:
        data = np.full(5, float(rank))
        comm.broadcast(data, root=0, tag=3)
        comm.send(data + rank, (rank + 1) % size, tag=7)
        received = np.empty(5)
        comm.recv(received, tag=7)
    return [said, seconds < 10, step.committed, again.committed, data.tolist(), received.tolist()]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("one operation less", "same operations"),
        ("another tag", "can never match"),
        ("another tag at the receiver", "can never match"),
        ("a receive without a send", "can never match"),
        ("a receive from anybody without a send", "can never match"),
        ("a send without a receive", "do not match"),
        ("a send with another tag", "can never match"),
    ],
)
def test_a_step_in_which_not_all_do_the_same_counts_for_nobody(three, how, said):
    expected = [[[said], True, False, True, [0.0] * 5, [float(source)] * 5] for source in (2, 0, 1)]
    assert everywhere(three, differ_in_a_step, how=how) == expected


def step_on(peer, rank, size, late_s, grouped, steps):
    """One is late at its second step. Nothing in a step makes its root wait for the others."""
    comm = peer.comm.new_group([2, 0, 1]) if grouped else peer.comm
    ends = []
    for step in range(steps):
        if step == 1 and rank == 1:
            time.sleep(late_s)
        x = np.full(4, float(step))
        try:
            with comm.step():
                comm.broadcast(x)
            ends.append(x.tolist())
        except (pccl.OperationTimeoutError, pccl.StepAbortedError) as error:
            ends.append(str(error))
    return ends


@pytest.mark.parametrize("grouped", [False, True], ids=["whole", "group"])
@pytest.mark.parametrize("owed", [1, 2])
def test_a_late_vote_counts_for_no_other_step(owed, grouped):
    """The others give up one step, or two; then all go on with the same one."""
    with Cluster(PCCL_OP_TIMEOUT="1") as cluster:
        peers = cluster.join(3)
        ends = everywhere(peers, step_on, late_s=owed + 0.5, grouped=grouped, steps=owed + 4)
    given_up = range(1, 1 + owed)
    for step in range(owed + 4):
        if step in given_up:
            assert "which did not wait for this one" in ends[1][step]
            for text in (ends[0][step], ends[2][step]):
                assert f"not voted: peers [{peers[1].id}]" in text
        else:
            assert [end[step] for end in ends] == [[float(step)] * 4] * 3


def wait_in_a_step(peer, rank, size, late_s):
    if rank == 1:
        time.sleep(late_s)
    start, seen = time.monotonic(), ""
    try:
        with peer.comm.step() as step:
            peer.comm.all_reduce_async(np.ones(5))
    except pccl.StepAbortedError as error:
        seen = str(error)
    seconds = time.monotonic() - start
    x = np.ones(5)
    with peer.comm.step():
        peer.comm.all_reduce(x)
    return [seconds, step.committed, seen, x.tolist()]


def test_who_has_waited_in_a_step_does_not_wait_for_its_votes_too():
    with Cluster(PCCL_OP_TIMEOUT="2") as cluster:
        first, late, third = everywhere(cluster.join(3), wait_in_a_step, late_s=3.2)
    assert late[0] < 1
    for seconds, committed, text, values in (first, late, third):
        assert seconds < 3
        assert committed is False
        assert "the step was aborted: TIMEOUT: all_reduce with tag 0 was not finished within" in text
        assert values == [3.0] * 5


def fail_in_a_step(peer, rank, size, late_s):
    if rank == 1:
        time.sleep(late_s)
    try:
        with peer.comm.step() as step:
            if rank == 0:
                raise ValueError("no data")
            peer.comm.all_reduce(np.ones(5))
    except (pccl.StepAbortedError, pccl.OperationTimeoutError, ValueError) as error:
        return [type(error).__name__, step.committed]


def test_an_exception_of_the_block_is_not_hidden_by_a_vote_that_nobody_waits_for():
    with Cluster(PCCL_OP_TIMEOUT="1") as cluster:
        ends = everywhere(cluster.join(3), fail_in_a_step, late_s=1.6)
    assert ends[:2] == [["ValueError", False], ["StepAbortedError", False]]
    # It waits as long as the first.
    assert ends[2] in (["StepAbortedError", False], ["OperationTimeoutError", False])


def give_up_beside(peer, rank, size):
    """Nobody but rank 0 is in the step that it gives up. What is in flight fails with it, and nothing later."""
    comm, ends = peer.comm, []

    def reduce(x):
        comm.all_reduce(x, tag=77, op_timeout=20)

    def pass_on(x):
        if rank == 0:
            comm.send(x, 1, tag=5, op_timeout=20)
        elif rank == 1:
            comm.recv(x, 0, tag=5, op_timeout=20)

    if rank == 0:
        time.sleep(0.3)
        try:
            with comm.step():
                pass
        except pccl.OperationTimeoutError as error:
            ends.append(type(error).__name__)
    for call in (reduce, reduce, pass_on):
        x = np.full(4, rank + 1.0)
        try:
            call(x)
            ends.append(x[0])
        except pccl.PCCLError as error:
            ends.append(f"{type(error).__name__}: {error.record.phase}: {error.record.message}")
    return ends


def test_what_is_in_flight_when_a_step_is_given_up_fails_for_all_and_says_so():
    with Cluster(PCCL_OP_TIMEOUT="1") as cluster:
        peers = cluster.join(3)
        ends = everywhere(peers, give_up_beside)
    why = f"peer {peers[0].id} gave up a step, which begins a new epoch of its group"
    lost = f"RankConnectionLostError: all_reduce: {why}"
    assert ends == [["OperationTimeoutError", lost, 6.0, 1.0], [lost, 6.0, 1.0], [lost, 6.0, 3.0]]


def raise_in_two_steps(peer, rank, size):
    comm, start, seen = peer.comm, time.monotonic(), ""
    with comm.new_group([0, 1]) as group:
        try:
            with comm.step(), group.step() if group.is_member else contextlib.nullcontext():
                if rank == 1:
                    raise ValueError("no data")
                comm.all_reduce(np.ones(10), op_timeout=20)
        except (pccl.StepAbortedError, ValueError) as error:
            seen = type(error).__name__
    return [seen, time.monotonic() - start < 1]


def test_an_exception_in_nested_steps_ends_both_at_once(three):
    assert everywhere(three, raise_in_two_steps) == [
        ["StepAbortedError", True],
        ["ValueError", True],
        ["StepAbortedError", True],
    ]


def vote_beside_a_question(peer, rank, size):
    """One thread asks for newcomers, which is answered when all ask; another ends a step."""
    comm, ends = peer.comm, []
    with comm.new_group([0, 1]) as group:
        asks = threading.Thread(target=lambda: ends.append(comm.are_peers_pending()))
        if rank == 0:
            asks.start()
            time.sleep(0.3)
        if group.is_member:
            with group.step():
                group.all_reduce(np.ones(4), op_timeout=5)
            ends.append("committed")
        if rank != 0:
            time.sleep(0.3)
            asks.start()
        asks.join()
    return ends


def test_a_step_ends_while_another_thread_asks_for_newcomers(three):
    assert everywhere(three, vote_beside_a_question) == [["committed", False], ["committed", False], [False]]


def cancel_at_random(peer, rank, size, rounds):
    rng, ends = np.random.default_rng(5), []
    for tag in range(rounds):
        x = np.full(10, rank + 1.0)
        handle = peer.comm.all_reduce_async(x, tag=tag, op_timeout=5)
        if rank == 0:
            until = time.perf_counter() + rng.uniform(0, 6e-4)
            while time.perf_counter() < until:
                pass
            handle.cancel()
        try:
            handle.result()
            ends.append(x[0])
        except pccl.OperationCancelledError:
            ends.append("restored" if np.all(x == rank + 1.0) else f"cancelled, and {x[0]}")
    return ends


def test_a_cancel_that_comes_too_late_is_no_cancel():
    with Cluster() as cluster:
        first, second = everywhere(cluster.join(2), cancel_at_random, rounds=1000)
    assert set(zip(first, second, strict=True)) <= {("restored", "restored"), (3.0, 3.0)}


def interrupt_at_random(peer, rank, size, rounds):
    """Whatever a call has come to, nothing touches its buffer later; steps go on."""
    rng, armed, wrong = np.random.default_rng(rank), [False], []

    def interrupted(*_):
        if armed.pop():
            raise KeyboardInterrupt
        armed.append(False)

    signal.signal(signal.SIGALRM, interrupted)
    for tag in range(rounds):
        x = np.full(1000, rank + 1.0)
        if rank != 0:
            time.sleep(0.01)
        try:
            with peer.comm.step() if tag % 2 else contextlib.nullcontext():
                if rank == 0:
                    armed[:] = [True]
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-4))
                peer.comm.all_reduce(x, tag=100 + tag, op_timeout=0.3)
                armed[:] = [False]
        except KeyboardInterrupt:
            pass
        except pccl.PCCLError as error:  # a time limit: the other one has not called at all
            if not isinstance(error, pccl.StepAbortedError | pccl.OperationCancelledError | pccl.OperationTimeoutError):
                wrong.append(str(error))
        armed[:] = [False]
        value = x[0]
        if rank == 0:
            time.sleep(0.02)
            wrong += [f"{value} became {x[0]}"] if x[0] != value else []
        peer.comm.barrier(tag=2, op_timeout=5)
        if x[0] != value:
            wrong.append("written later")
    return wrong


def test_an_interrupt_leaves_nothing_behind_that_runs_on():
    with Cluster() as cluster:
        assert everywhere(cluster.join(2), interrupt_at_random, rounds=60) == [[], []]


def leave_nested_steps(peer, rank, size):
    comm = peer.comm
    start = time.monotonic()
    seen = ""
    with comm.new_group([2, 1, 0]) as group:
        try:
            with comm.step() as outer, group.step() as inner:
                group.all_reduce(np.ones(5))
                if rank == 1:
                    raise ValueError("no")
                comm.all_reduce(np.ones(5))
        except (pccl.StepAbortedError, ValueError) as error:
            seen = type(error).__name__
        seconds = time.monotonic() - start
        data = np.ones(5)
        with comm.step(), group.step():
            comm.all_reduce(data)
            group.all_reduce(data)
    return [seen, outer.committed, inner.committed, seconds < 10, float(data[0])]


def test_who_leaves_nested_steps_aborts_both_for_all(three):
    expected = [[seen, False, False, True, 9.0] for seen in ("StepAbortedError", "ValueError", "StepAbortedError")]
    assert everywhere(three, leave_nested_steps) == expected


def start_with_a_failure(peer, rank, size):
    comm = peer.comm
    start = time.monotonic()
    if rank == 1:
        time.sleep(0.5)
    else:
        with contextlib.suppress(pccl.OperationTimeoutError):
            comm.all_reduce(np.ones(5), tag=6, op_timeout=0.1)
    cause = None
    try:
        with comm.step():
            comm.all_reduce(np.ones(5), tag=6)
    except pccl.StepAbortedError as error:
        cause = type(error.__cause__).__name__
    seconds = time.monotonic() - start
    data = np.ones(5)
    with comm.step() as step:
        comm.all_reduce(data, tag=6)
    return [cause, seconds < 2, step.committed, float(data[0])]


def test_a_verdict_that_came_before_the_step_aborts_it_for_all(three):
    assert everywhere(three, start_with_a_failure) == [["OperationTimeoutError", True, True, 3.0]] * 3


def lose_in_step(peer, rank, size, victim):
    comm = peer.comm
    try:
        with comm.step() as step:
            comm.all_reduce(np.ones(1000))
            if rank == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 0:
                time.sleep(0.3)  # posts when the others have failed already
            comm.all_reduce(np.ones(1000), tag=5)
    except pccl.StepAbortedError as error:
        cause = type(error.__cause__).__name__
    data = np.ones(3)
    with comm.step() as again:
        comm.all_reduce(data, tag=5)
    return [cause, step.committed, again.committed, float(data[0]), comm.world_size]


def test_a_death_aborts_the_step_and_the_run_goes_on():
    with Cluster() as cluster:
        peers = cluster.join(4)
        for rank, peer in enumerate(peers):
            peer.start(lose_in_step, rank=rank, size=4, victim=3)
        expected = ["RankConnectionLostError", False, True, 3.0, 3]
        assert [peer.wait() for peer in peers[:3]] == [expected] * 3


def lose_in(peer, rank, size, name, victim):
    comm = peer.comm
    big = np.full(2_000_000, 1.0 + rank, "float32")
    blocks = np.full(size * 300_000, 1.0 + rank, "float32")
    calls = {
        "broadcast": lambda: comm.broadcast(big, root=1),
        "reduce": lambda: comm.reduce(big, root=2),
        "all_gather": lambda: comm.all_gather(big),
        "reduce_scatter": lambda: comm.reduce_scatter(blocks, blocks[rank * 300_000 : (rank + 1) * 300_000]),
        "all_to_all": lambda: comm.all_to_all(blocks),
        "tree": lambda: comm.all_reduce(big, algorithm="tree"),
        "direct": lambda: comm.all_reduce(big, algorithm="direct"),
    }
    if rank == victim:
        threading.Timer(0.004, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    failed = None
    for _ in range(500):
        before = digest(big, blocks) if name in ("tree", "direct", "reduce", "reduce_scatter") else None
        try:
            calls[name]()
            if comm.world_size < size:  # the victim died between two calls
                failed = True
                break
        except pccl.RankConnectionLostError:
            failed = before == digest(big, blocks) if before else True
            break
    data = np.ones(10)
    comm.all_reduce(data, retry=True)
    return [failed, float(data[0])]


@pytest.mark.parametrize(
    "name", ["broadcast", "reduce", "all_gather", "reduce_scatter", "all_to_all", "tree", "direct"]
)
def test_a_death_in_each_collective(name):
    with Cluster() as cluster:
        peers = cluster.join(4)
        for rank, peer in enumerate(peers):
            peer.start(lose_in, rank=rank, size=4, name=name, victim=3)
        assert [peer.wait() for peer in peers[:3]] == [[True, 3.0]] * 3


def refuse(peer, rank, size):
    comm = peer.comm
    data = np.ones(12, "float32")
    calls = [
        lambda: comm.broadcast(data, root=size),
        lambda: comm.send(data, rank),
        lambda: comm.all_gather(data, np.ones(5, "float32")),
        lambda: comm.all_gather(data, counts=[12]),
        lambda: comm.all_gather(data, counts=[11] * size),
        lambda: comm.gather(data, counts=[11] * size, root=rank),
        lambda: comm.reduce_scatter(data, data[:1].copy(), counts=[4] * size),
        lambda: comm.scatter(data, data[:1].copy(), counts=[4] * size, root=rank),
        lambda: comm.broadcast(data, root=1.5),
        lambda: comm.all_reduce(data, op="avg", weight=1.5),
        lambda: comm.all_reduce(data, tag=1.5),
        lambda: comm.all_reduce(data, op="band"),
        lambda: comm.all_reduce(data, op="sum", weight=2),
        lambda: comm.all_reduce(np.ones(3, bool), op="avg"),
        lambda: comm.all_to_all(data, data),
        lambda: comm.reduce_scatter(data, data[1:5]),
        lambda: comm.all_reduce(data, algorithm="magic"),
    ]
    refused = []
    for call in calls:
        try:
            call()
            refused.append("no error")
        except pccl.InvalidArgumentError:
            refused.append("")
    comm.all_reduce(data)
    return [refused, float(data[0])]


def test_wrong_arguments_are_refused_before_anything_is_sent(three):
    assert everywhere(three, refuse) == [[[""] * 17, 3.0]] * 3


def test_a_collective_of_one_is_refused():
    def alone(peer):
        peer.comm.broadcast(np.ones(3))

    with Cluster() as cluster:
        (peer,) = cluster.join(1)
        with pytest.raises(RemoteError) as caught:
            peer.call(alone)
        assert caught.value.type == "TooFewPeersError"


def tell_choice(peer, rank, size):
    comm = peer.comm
    comm.all_reduce(np.ones(10))
    small = comm.stats()
    comm.all_reduce(np.ones(200_000), algorithm="direct")
    return [small["algorithm"], small["reason"].split(",")[0], comm.stats()["algorithm"], comm.stats()["reason"][:9]]


def test_stats_tell_how_and_why(three):
    expected = ["exchange", "chosen: 80 bytes among 3 peers", "direct", "asked for"]
    assert everywhere(three, tell_choice) == [expected] * 3


def test_the_environment_chooses_the_algorithm():
    with Cluster(PCCL_ALGO="tree") as cluster:
        peers = cluster.join(3)
        assert (
            everywhere(peers, tell_choice) == [["tree", "asked for: 80 bytes among 3 peers", "direct", "asked for"]] * 3
        )


def run_ahead(peer, rank, kind, times, tags):
    """Rank 0 does its part of many small operations of a step long before the others call."""
    x = np.zeros(3, np.uint8)
    wrong = 0
    with peer.comm.step():
        if rank > 0:
            peer.emit("late")
            time.sleep(0.3)
        for i in range(times):
            tag = i % tags
            if kind == "send" and rank == 0:
                peer.comm.send(np.full(3, i % 251, np.uint8), 1, tag=tag)
            elif kind == "send" and rank == 1:
                wrong += peer.comm.recv(x, 0, tag=tag) is None or not np.all(x == i % 251)
            elif kind == "broadcast":
                x[:] = i % 251 if rank == 0 else 255
                peer.comm.broadcast(x, root=0, tag=tag)
                wrong += not np.all(x == i % 251)
    stats = peer.comm.stats()
    return wrong, stats["links_lost"], stats["held_bytes"], stats["eager_bytes"] <= 2 * (256 << 10)


@pytest.mark.parametrize("kind", ["send", "broadcast"])
@pytest.mark.parametrize("tags", [1, 50])
def test_a_step_can_run_far_ahead_of_others(kind, tags):
    """More than the others may hold: who is ahead waits for them, and nobody loses a link."""
    with Cluster() as cluster:
        peers = cluster.join(3)
        for rank, peer in enumerate(peers):
            peer.start(run_ahead, rank=rank, kind=kind, times=16_000, tags=tags)
        assert [peer.wait(60) for peer in peers] == [[0, 0, 0, True]] * 3


def try_alone(peer, rank, times):
    """Rank 0 gives up many times before the others call: each of their calls gets its verdict, and then all meet."""
    seen = []
    if rank > 0:
        peer.emit("late")
        time.sleep(1.5)
    for i in range(times):
        x = np.full(4, i, np.float32)
        try:
            peer.comm.all_reduce(x, tag=5, op_timeout=0.02 if rank == 0 else 10)
            seen.append(float(x[0]))
        except pccl.OperationTimeoutError as error:
            seen.append([type(error).__name__, error.record.seq, bool(np.all(x == i))])
    x = np.full(4, rank, np.float32)
    peer.comm.all_reduce(x, tag=5, op_timeout=10)
    return seen, float(x[0])


def test_verdicts_of_many_attempts_wait_for_those_who_come_late(three):
    for rank, peer in enumerate(three):
        peer.start(try_alone, rank=rank, times=20)
    for seen, total in [peer.wait() for peer in three]:
        assert [name for name, *_ in seen] == ["OperationTimeoutError"] * 20
        assert [kept for *_, kept in seen] == [True] * 20
        first = seen[0][1]
        assert [seq for _, seq, _ in seen] == list(range(first, first + 20))
        assert total == 3


def interrupt_the_vote(peer, rank):
    """Rank 0 is interrupted while it waits for the others' votes. All repeat the step until it is committed, twice."""

    def interrupted(*_):
        raise KeyboardInterrupt

    outcomes, x = [], np.zeros(4, np.float32)
    while outcomes.count(3.0) < 2:
        try:
            with peer.comm.step():
                x[:] = rank
                peer.comm.all_reduce(x, op_timeout=10)
                if not outcomes and rank == 0:
                    signal.signal(signal.SIGALRM, interrupted)
                    signal.setitimer(signal.ITIMER_REAL, 0.2)
                elif not outcomes:
                    time.sleep(0.6)
            outcomes.append(float(x[0]))
        except (KeyboardInterrupt, pccl.StepAbortedError) as error:
            outcomes.append(type(error).__name__)
    return outcomes


def test_a_vote_that_is_given_up_ends_the_step_for_all(three):
    for rank, peer in enumerate(three):
        peer.start(interrupt_the_vote, rank=rank)
    first, *others = [peer.wait(20) for peer in three]
    assert first == ["KeyboardInterrupt", 3.0, 3.0]
    assert others == [["StepAbortedError", 3.0, 3.0]] * 2


def resize_under_a_check(peer, rank):
    """The group is smaller by the time of the call than when its size was read."""
    if rank == 2:
        return None
    comm = peer.comm
    seen = comm._place()
    peer.emit("seen")
    comm.all_reduce(np.ones(1, np.float32), retry=True)
    assert (seen.size, comm.world_size) == (3, 2)
    comm._place = lambda: seen
    try:
        comm.all_gather(np.ones(1000, np.float32))
        return ["no error", []]
    except pccl.RankConnectionLostError as error:
        del comm._place
        return [str(error), comm.all_gather(np.full(3, rank, np.float32)).tolist()]


def test_sizes_that_were_read_too_early_touch_nothing():
    with Cluster() as cluster:
        peers = cluster.join(3)
        for rank, peer in enumerate(peers):
            peer.start(resize_under_a_check, rank=rank)
        for peer in peers[:2]:
            peer.event("seen")
        peers[2].kill()
        for text, gathered in [peer.wait() for peer in peers[:2]]:
            assert "has changed since" in text
            assert gathered == [[0.0] * 3, [1.0] * 3]


def receive_from_anybody(peer, rank, size, sender):
    """All but ``sender`` receive; it sends long after they have called."""
    x = np.zeros(2, np.float32)
    try:
        if rank == sender:
            time.sleep(4)
            for to in range(3):
                if to != rank:
                    peer.comm.send(np.full(2, 7, np.float32), to, tag=3)
            return "sent"
        peer.comm.recv(x, tag=3, op_timeout=20)
        return float(x[0])
    except pccl.DeadlockError as error:
        return str(error)


def test_receives_from_anybody_that_nobody_sends_to(three):
    start = time.monotonic()
    for text in everywhere(three, receive_from_anybody, sender=None):
        assert text.count("send/recv with tag 3") == 3
    assert time.monotonic() - start < 10
    assert sorted(everywhere(three, receive_from_anybody, sender=1), key=str) == [7.0, 7.0, "sent"]
