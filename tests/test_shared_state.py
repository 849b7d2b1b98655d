"""Synchronising the shared state between real processes: elections, strategies, revisions, kicks, bytes moved."""

import time

import numpy as np
import pytest
from cluster import Cluster, RemoteError
from worker import digest

import pccl

MIB = 1 << 20


@pytest.fixture
def cluster():
    with Cluster(PCCL_DEAD_TIMEOUT="2") as made:
        yield made


def sync(peer, tensors, revision=0, strategy="ENFORCE_POPULAR", unaligned=False):
    """``tensors``: name to (dtype, count, value[, allow_content_inequality]). Returns what the state is afterwards."""
    arrays, infos = {}, []
    for name, (dtype_name, count, value, *allow) in tensors.items():
        dtype = pccl.DataType[dtype_name].to_numpy_dtype()
        if unaligned:
            memory = np.zeros(count * dtype.itemsize + 1, np.uint8)
            array = memory[1:].view(dtype)
        else:
            array = np.zeros(count, dtype)
        array[:] = np.asarray(value, np.float64).astype(dtype)
        arrays[name] = array
        infos.append(pccl.TensorInfo.from_numpy(array, name, allow_content_inequality=bool(allow and allow[0])))
    state = pccl.SharedState(infos)
    state.revision = revision
    before = digest(*arrays.values())
    try:
        info = peer.comm.sync_shared_state(state, pccl.SharedStateSyncStrategy[strategy])
    except pccl.PCCLError as error:
        return {
            "error": type(error).__name__,
            "text": str(error),
            "intact": digest(*arrays.values()) == before,
            "world": peer.comm.world_size,
        }
    return {
        "error": None,
        "revision": state.revision,
        "tx": info.tx_bytes,
        "rx": info.rx_bytes,
        "values": {name: float(array[0]) for name, array in arrays.items()},
        "uniform": all(bool(np.all(array == array[0])) for array in arrays.values()),
        "digest": digest(*arrays.values()),
    }


def run_sync(peers, cases, timeout=30):
    """``cases``: the arguments of each peer's call."""
    for peer, case in zip(peers, cases, strict=True):
        peer.start(sync, **case)
    return [peer.wait(timeout) for peer in peers]


def w(value, count=1000, dtype="FLOAT"):
    return {"tensors": {"w": (dtype, count, value)}}


def values(answers):
    return [answer["error"] or answer["values"]["w"] for answer in answers]


# --------------------------------------------------------------------------------------------------------- elections --


def test_equal_content_moves_nothing(cluster):
    answers = run_sync(cluster.join(3), [w(5)] * 3)
    assert [(a["tx"], a["rx"], a["revision"]) for a in answers] == [(0, 0, 0)] * 3


def test_the_popular_content_wins(cluster):
    peers = cluster.join(4)
    for outlier in range(4):
        cases = [{**w(outlier), "revision": outlier} for _ in range(4)]
        cases[outlier] = {**w(99), "revision": outlier}
        answers = run_sync(peers, cases)
        assert values(answers) == [outlier] * 4
        assert [a["rx"] for a in answers] == [4000 if i == outlier else 0 for i in range(4)]
        assert sum(a["tx"] for a in answers) == 4000


def test_a_tie_goes_to_the_longest_standing_member(cluster):
    peers = cluster.join(2)
    answers = run_sync(peers, [w(7), w(8)])
    assert values(answers) == [7, 7]
    assert [(a["tx"], a["rx"]) for a in answers] == [(4000, 0), (0, 4000)]


def test_only_dirty_keys_move(cluster):
    peers = cluster.join(2)
    cases = [
        {"tensors": {"same": ("DOUBLE", 1000, 3), "w": ("INT16", 10, last), "also": ("UINT8", MIB, 0)}}
        for last in (0, 1)
    ]
    answers = run_sync(peers, cases)
    assert [(a["tx"], a["rx"]) for a in answers] == [(20, 0), (0, 20)]
    assert answers[0]["digest"] == answers[1]["digest"]


def sync_with_flipped_byte(peer, size, at, revision):
    """A large tensor of which one byte differs if ``at`` is not negative."""
    data = np.random.default_rng(3).integers(0, 256, size, np.uint8)
    right = digest(data)
    if at >= 0:
        data[at] ^= 1
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(data, "w")])
    state.revision = revision
    info = peer.comm.sync_shared_state(state)
    return digest(data) == right, info.rx_bytes


@pytest.mark.parametrize("at", [0, 4 * MIB - 1, 4 * MIB, 9 * MIB + 5])
def test_one_flipped_byte_is_found_and_only_its_block_moves(cluster, at):
    peers = cluster.join(3)
    size = 9 * MIB + 6
    for peer, flipped in zip(peers, (-1, at, -1), strict=True):
        peer.start(sync_with_flipped_byte, size=size, at=flipped, revision=0)
    block = min(4 * MIB, size - at // (4 * MIB) * 4 * MIB)
    assert [peer.wait() for peer in peers] == [[True, 0], [True, block], [True, 0]]


@pytest.mark.parametrize("unaligned", [False, True])
@pytest.mark.parametrize("dtype", [t.name for t in pccl.DataType])
def test_every_dtype(dtype, unaligned, three):
    value = 3 if "INT" in dtype else 1.5
    revision = three["next"]()
    cases = [
        {"tensors": {"w": (dtype, 777, v)}, "revision": revision, "unaligned": unaligned} for v in (value, 1, value)
    ]
    answers = run_sync(three["peers"], cases)
    assert values(answers) == [value] * 3
    assert [a["rx"] > 0 for a in answers] == [False, True, False]
    assert all(a["uniform"] for a in answers)


@pytest.fixture(scope="module")
def three():
    """Three peers, and the revision of their next synchronisation."""
    with Cluster() as cluster:
        revisions = iter(range(1_000_000))
        yield {"peers": cluster.join(3), "next": lambda: next(revisions)}


def sync_without_values(peer, tensors):
    arrays = {
        name: np.full(count, value, pccl.DataType[dtype].to_numpy_dtype())
        for name, (dtype, count, value) in tensors.items()
    }
    peer.comm.sync_shared_state(pccl.SharedState([pccl.TensorInfo.from_numpy(a, n) for n, a in arrays.items()]))
    return {name: array.tolist() for name, array in arrays.items()}


def test_empty_tensors(cluster):
    peers = cluster.join(2)
    for peer, value in zip(peers, (1, 2), strict=True):
        peer.start(sync_without_values, tensors={"empty": ("FLOAT", 0, 0), "w": ("FLOAT", 3, value)})
    assert [peer.wait() for peer in peers] == [{"empty": [], "w": [1.0, 1.0, 1.0]}] * 2


def test_alone_it_succeeds_without_bytes(cluster):
    (answer,) = run_sync(cluster.join(1), [w(4)])
    assert (answer["error"], answer["tx"], answer["rx"]) == (None, 0, 0)


# --------------------------------------------------------------------------------------------------------- revisions --


def test_revisions_count_up(cluster):
    peers = cluster.join(2)
    for revision in range(4):
        answers = run_sync(peers, [{**w(revision), "revision": revision}] * 2)
        assert [a["revision"] for a in answers] == [revision] * 2


def test_synchronising_again_is_another_revision(cluster):
    """As in PCCL 1.0. Nothing moves, whatever may differ stays, and a peer that has gone on has the newer content."""
    peers = cluster.join(2)
    own = [{"tensors": {"w": ("FLOAT", 10, 7), "own": ("FLOAT", 10, at, True)}, "revision": 7} for at in (1, 2)]
    for revision in (7, 8, 9):
        answers = run_sync(peers, own)
        assert [(a["revision"], a["tx"], a["rx"], a["values"]["own"]) for a in answers] == [
            (revision, 0, 0, at) for at in (1, 2)
        ]
        own = [{**case, "revision": revision} for case in own]
    answers = run_sync(peers, [{**w(5), "revision": 9}, {**w(6), "revision": 10}])
    assert values(answers) == [6, 6]
    assert [a["revision"] for a in answers] == [10, 10]


def test_first_revision_of_a_resumed_run(cluster):
    peers = cluster.join(3)
    answers = run_sync(peers, [{**w(1), "revision": 0}, {**w(2), "revision": 13}, {**w(1), "revision": 0}])
    assert values(answers) == [2, 2, 2]  # the newer revision, although the older content has more votes
    assert [a["revision"] for a in answers] == [13] * 3
    answers = run_sync(peers, [{**w(3), "revision": 14}] * 3)
    assert [a["revision"] for a in answers] == [14] * 3


def test_outdated_peer_is_lifted(cluster):
    peers = cluster.join(2)
    run_sync(peers, [w(1)] * 2)
    run_sync(peers, [{**w(2), "revision": 1}] * 2)
    answers = run_sync(peers, [{**w(3), "revision": 2}, {**w(2), "revision": 1}])
    assert values(answers) == [3, 3]
    assert [(a["revision"], a["rx"]) for a in answers] == [(2, 0), (2, 4000)]
    answers = run_sync(peers, [{**w(5), "revision": 3}, {**w(5), "revision": 1}])
    assert [(a["revision"], a["rx"]) for a in answers] == [(3, 0), (3, 0)]  # equal content needs no bytes


def check_kicked(cluster, kicked, others, *words):
    """``kicked`` got an error with its reason; its next call says why too; ``others`` go on without it."""
    answer = kicked["answer"]
    assert answer["error"] in {"InvalidUsageError", "EvictedError"}, answer
    assert answer["intact"]
    for word in words:
        assert word in answer["text"], answer["text"]
    with pytest.raises(RemoteError) as caught:
        kicked["peer"].call(reduce_once)
    assert caught.value.type in {"EvictedError", "InvalidUsageError"}
    for word in words:
        assert word in caught.value.text
    if len(others) > 1:
        cluster.call(others, refresh)
        assert cluster.call(others, reduce_once) == [len(others)] * len(others)


def reduce_once(peer):
    return peer.comm.all_reduce(np.ones(10, np.float32), retry=True).local_world_size


def refresh(peer):
    return peer.comm.are_peers_pending()


def test_revision_of_the_future_is_kicked(cluster):
    peers = cluster.join(3)
    run_sync(peers, [w(1)] * 3)
    answers = run_sync(peers, [{**w(2), "revision": 1}, {**w(2), "revision": 5}, {**w(2), "revision": 1}])
    assert [answers[0]["error"], answers[2]["error"]] == [None, None]
    check_kicked(cluster, {"peer": peers[1], "answer": answers[1]}, [peers[0], peers[2]], "revision")


@pytest.mark.parametrize(
    ("odd", "word"),
    [
        ({"tensors": {"v": ("FLOAT", 1000, 1)}}, "v"),
        ({"tensors": {"w": ("INT32", 1000, 1)}}, "w"),
        ({"tensors": {"w": ("FLOAT", 1001, 1)}}, "w"),
        ({"tensors": {"w": ("FLOAT", 1000, 1), "more": ("FLOAT", 1, 1)}}, "2 tensors"),
    ],
    ids=["name", "dtype", "size", "one more"],
)
def test_another_set_of_tensors_is_kicked(cluster, odd, word):
    peers = cluster.join(3)
    answers = run_sync(peers, [w(1), odd, w(1)])
    assert [answers[0]["error"], answers[2]["error"]] == [None, None]
    check_kicked(cluster, {"peer": peers[1], "answer": answers[1]}, [peers[0], peers[2]], word)


def test_content_that_may_differ_goes_to_newcomers_only(cluster):
    peers = cluster.join(2)

    def case(value, own, revision):
        return {"tensors": {"w": ("FLOAT", 10, value), "own": ("FLOAT", 10, own, True)}, "revision": revision}

    answers = run_sync(peers, [case(1, 10, 0), case(1, 20, 0)])
    assert [a["values"]["own"] for a in answers] == [10, 20]
    assert [a["rx"] for a in answers] == [0, 0]
    run_sync(peers, [case(2, 11, 1), case(2, 21, 1)])
    newcomers = cluster.join(1, members=peers)
    answers = run_sync([*peers, *newcomers], [case(3, 12, 2), case(3, 22, 2), case(0, 0, 0)])
    assert [a["values"]["own"] for a in answers][:2] == [12, 22]
    assert answers[2]["values"]["own"] in (12, 22)
    assert answers[2]["values"]["w"] == 3


# -------------------------------------------------------------------------------------------------------- strategies --


def with_strategy(value, strategy, revision=0):
    return {**w(value), "strategy": strategy, "revision": revision}


def test_send_only_wins_over_the_majority(cluster):
    peers = cluster.join(4)
    cases = [with_strategy(1, "RECEIVE_ONLY"), with_strategy(2, "SEND_ONLY"), *[with_strategy(1, "RECEIVE_ONLY")] * 2]
    answers = run_sync(peers, cases)
    assert values(answers) == [2, 2, 2, 2]
    assert [(a["tx"], a["rx"]) for a in answers] == [(0, 4000), (12000, 0), (0, 4000), (0, 4000)]


def test_two_senders_of_equal_content(cluster):
    cases = [with_strategy(2, "SEND_ONLY"), with_strategy(1, "RECEIVE_ONLY"), with_strategy(2, "SEND_ONLY")]
    answers = run_sync(cluster.join(3), cases)
    assert values(answers) == [2, 2, 2]
    assert [a["rx"] for a in answers] == [0, 4000, 0]


def test_two_senders_of_different_content(cluster):
    peers = cluster.join(3)
    cases = [with_strategy(2, "SEND_ONLY"), with_strategy(1, "RECEIVE_ONLY"), with_strategy(3, "SEND_ONLY")]
    answers = run_sync(peers, cases)
    kicked = [i for i, answer in enumerate(answers) if answer["error"]]
    assert kicked in ([0], [2])
    assert answers[1]["values"]["w"] == (3 if kicked == [0] else 2)
    rest = [peer for i, peer in enumerate(peers) if i not in kicked]
    check_kicked(cluster, {"peer": peers[kicked[0]], "answer": answers[kicked[0]]}, rest)


@pytest.mark.parametrize("contents", [(1, 1), (1, 2)])
def test_all_receive_only_is_kicked(cluster, contents):
    answers = run_sync(cluster.join(2), [with_strategy(content, "RECEIVE_ONLY") for content in contents])
    assert [a["error"] in {"InvalidUsageError", "EvictedError"} for a in answers] == [True, True]
    assert all(a["intact"] for a in answers)


@pytest.mark.parametrize("other", ["SEND_ONLY", "RECEIVE_ONLY"])
def test_mixed_strategies_cost_those_that_do_not_enforce(cluster, other):
    peers = cluster.join(3)
    enforce = with_strategy(1, "ENFORCE_POPULAR")
    answers = run_sync(peers, [enforce, with_strategy(2, other), enforce])
    assert [answers[0]["values"]["w"], answers[2]["values"]["w"]] == [1, 1]
    check_kicked(cluster, {"peer": peers[1], "answer": answers[1]}, [peers[0], peers[2]], "enforce")


# ---------------------------------------------------------------------------------------------- groups, and the rest --


def test_groups_synchronise_apart_at_the_same_time(cluster):
    red, blue = [cluster.spawn() for _ in range(2)], [cluster.spawn() for _ in range(2)]
    cluster.connect(red[:1], peer_group=1)
    cluster.connect(red[1:], members=red[:1], peer_group=1)
    cluster.connect(blue, members=red, peer_group=2)
    blue.sort(key=lambda peer: peer.id)
    cases = [w(1), w(2), {**w(3), "revision": 40}, {**w(4), "revision": 40}]
    answers = run_sync([*red, *blue], cases)
    assert values(answers) == [1, 1, 3, 3]
    assert [a["revision"] for a in answers] == [0, 0, 40, 40]
    assert [a["rx"] for a in answers] == [0, 4000, 0, 4000]


def sync_with_op_in_flight(peer):
    x = np.ones(10, np.float32)
    handle = peer.comm.all_reduce_async(x, tag=3)
    names = []
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(np.zeros(3, np.float32), "t")])
    for call in (peer.comm.update_topology, lambda: peer.comm.sync_shared_state(state)):
        try:
            call()
            names.append(None)
        except pccl.PCCLError as error:
            names.append(error.result.name)
    peer.emit("tried")
    return names, handle.wait()[0]


def test_joint_calls_with_an_operation_in_flight(cluster):
    peers = cluster.join(2)
    peers[0].start(sync_with_op_in_flight)
    peers[0].event("tried")
    peers[1].call(reduce_with_tag, tag=3)
    assert peers[0].wait() == [["PENDING_ASYNC_OPS", "PENDING_ASYNC_OPS"], True]


def reduce_with_tag(peer, tag):
    peer.comm.all_reduce(np.ones(10, np.float32), tag=tag)


def sync_large(peer, size, value, strategy):
    data = np.full(size, value, np.uint8)
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(data, "w")])
    before = digest(data)
    peer.emit("syncing")
    try:
        peer.comm.sync_shared_state(state, pccl.SharedStateSyncStrategy[strategy])
    except pccl.PCCLError as error:
        return type(error).__name__, digest(data) == before, int(data[0])
    return None, bool(np.all(data == data[0])), int(data[0])


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05])
def test_source_killed_while_it_serves(cluster, delay_s):
    """The receiver has the whole content or keeps what it had."""
    peers = cluster.join(3)
    for peer, value in zip(peers, (9, 1, 2), strict=True):
        peer.start(sync_large, size=64 * MIB, value=value, strategy="ENFORCE_POPULAR")
    for peer in peers:
        peer.event("syncing")
    time.sleep(delay_s)
    peers[0].kill()
    rest = peers[1:]
    answers = [peer.wait() for peer in rest]
    assert [whole for _, whole, _ in answers] == [True, True]
    if {error for error, _, _ in answers} == {None}:
        assert [value for _, _, value in answers] in ([9, 9], [1, 1])
    else:
        assert {error for error, _, _ in answers} == {"InvalidUsageError"}  # what a failed one answers
        assert [value for _, _, value in answers] == [1, 2]
    assert cluster.call(rest, refresh) == [False, False]
    assert cluster.call(rest, reduce_once) == [2, 2]


def test_receiver_killed_while_it_receives(cluster):
    peers = cluster.join(3)
    for peer, value in zip(peers, (1, 1, 2), strict=True):
        peer.start(sync_large, size=64 * MIB, value=value, strategy="ENFORCE_POPULAR")
    for peer in peers:
        peer.event("syncing")
    time.sleep(0.05)
    peers[2].kill()
    assert [peer.wait()[1:] for peer in peers[:2]] == [[True, 1], [True, 1]]
    assert cluster.call(peers[:2], refresh) == [False, False]
    assert cluster.call(peers[:2], reduce_once) == [2, 2]
