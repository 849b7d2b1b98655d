"""All-reduce between real processes: every dtype and operation, odd sizes, many at once, every way to call it."""

import threading

import numpy as np
import pytest
from cluster import Cluster
from worker import digest

import pccl

DTYPES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
)
OPS = ("sum", "avg", "prod", "max", "min")


@pytest.fixture(scope="module", params=[2, 3, 4], ids="{}peers".format)
def peers(request):
    with Cluster() as cluster:
        yield cluster.join(request.param)


@pytest.fixture(scope="module")
def three():
    with Cluster() as cluster:
        yield cluster.join(3)


def reduce_formulas(peer, dtype_name, op, ranks, rank):
    """Values so small that every operation is exact; returns the cases that differ, and a digest of all results."""
    dtype = pccl.DataType[{"FLOAT32": "FLOAT", "FLOAT64": "DOUBLE"}.get(dtype_name.upper(), dtype_name.upper())]
    dtype = dtype.to_numpy_dtype()
    signed = dtype_name.startswith(("int", "float", "bfloat"))
    wrong, results = [], []

    def values(of_rank, count):
        i = np.arange(count)
        if op == "prod":
            return 1 + (i + of_rank) % 2
        return (7 * i + 3 * of_rank) % 11 - (5 if signed else 0)

    for count in (0, 1, 2, 7, 1000, 70_001):
        everybody = [values(r, count) for r in range(ranks)]
        folded = {"prod": np.multiply, "max": np.maximum, "min": np.minimum}.get(op, np.add)
        expected = folded.reduce(everybody)
        if op == "avg" and "float" in dtype_name:
            wide = np.float64 if dtype_name == "float64" else np.float32
            expected = expected.astype(wide) / wide(ranks)
        elif op == "avg":
            expected = np.trunc(expected / ranks)
        expected = expected.astype(dtype)
        for in_place in (True, False):
            send = everybody[rank].astype(dtype)
            recv = send if in_place else np.zeros_like(send)
            info = peer.comm.all_reduce(send, None if in_place else recv, op=op)
            intact = in_place or np.array_equal(send, everybody[rank].astype(dtype))
            if info.local_world_size != ranks or not intact or recv.tobytes() != expected.tobytes():
                wrong.append([count, in_place, str(recv[:8]), str(expected[:8])])
            results.append(recv)
    return wrong, digest(*results)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_op(peers, dtype, op):
    for rank, peer in enumerate(peers):
        peer.start(reduce_formulas, dtype_name=dtype, op=op, ranks=len(peers), rank=rank)
    answers = [peer.wait() for peer in peers]
    assert [wrong for wrong, _ in answers] == [[]] * len(peers)
    assert len({made for _, made in answers}) == 1


def reduce_noise(peer, dtype_name, count, seed):
    dtype = pccl.DataType[dtype_name].to_numpy_dtype()
    x = np.random.default_rng(seed).standard_normal(count).astype(dtype)
    total = x.copy()
    info = peer.comm.all_reduce(total)
    return digest(total), info.tx_bytes, info.rx_bytes


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"])
def test_all_hold_the_same_bits_of_rounded_sums(peers, dtype):
    for seed, peer in enumerate(peers):
        peer.start(reduce_noise, dtype_name=dtype, count=100_003, seed=seed)
    assert len({peer.wait()[0] for peer in peers}) == 1


def test_large_and_its_bytes(peers):
    count = 6_000_001
    for seed, peer in enumerate(peers):
        peer.start(reduce_noise, dtype_name="FLOAT", count=count, seed=seed)
    answers = [peer.wait() for peer in peers]
    assert len({answer[0] for answer in answers}) == 1
    ideal = 2 * (len(peers) - 1) / len(peers) * 4 * count
    for _, tx_bytes, rx_bytes in answers:
        assert tx_bytes == pytest.approx(ideal, rel=1e-4)
        assert rx_bytes == pytest.approx(ideal, rel=1e-4)


def reduce_many(peer, rank, tags, seed):
    """Posted and awaited in an order of each peer's own."""
    rng = np.random.default_rng(seed)
    sizes = [int(4 ** (tag % 9)) for tag in range(tags)]
    data = [np.full(size, (tag + 1) * (rank + 1), np.int64) for tag, size in enumerate(sizes)]
    handles = {}
    for tag in rng.permutation(tags):
        handles[tag] = peer.comm.all_reduce_async(data[tag], tag=int(tag))
    for tag in rng.permutation(tags):
        ok, status, info = handles[tag].wait(20)
        assert (ok, status, info.local_world_size) == (True, 0, 3), tag
        assert handles[tag].wait() == (ok, status, info)
    return [tag for tag in range(tags) if not np.all(data[tag] == (tag + 1) * 6)]


def test_many_in_flight_in_any_order(three):
    for rank, peer in enumerate(three):
        peer.start(reduce_many, rank=rank, tags=64, seed=rank)
    assert [peer.wait() for peer in three] == [[], [], []]


def reduce_same_tag_often(peer, times):
    for i in range(times):
        x = np.full(5, i, np.uint32)
        peer.comm.all_reduce(x, op="max", tag=9)
        assert x.tolist() == [i] * 5
    return peer.comm.stats()["held_bytes"]


def test_one_tag_again_and_again(three):
    assert Cluster.call(three, reduce_same_tag_often, times=300) == [0, 0, 0]


def reduce_multiple(peer, rank, count, max_in_flight):
    sends = [np.full(1000 + i, rank + i, np.float32) for i in range(count)]
    recvs = [np.zeros_like(send) for send in sends]
    descriptors = [
        pccl.ReduceOpDescriptor.from_numpy(
            send,
            recv,
            pccl.ReduceDescriptor(
                count=send.size,
                op=pccl.ReduceOp.AVG,
                tag=i,
                operand_descriptor=pccl.ReduceOperandDescriptor(pccl.DataType.FLOAT),
                quantization_options=pccl.QuantizationOptions(pccl.DataType.FLOAT, pccl.QuantizationAlgorithm.NONE),
            ),
        )
        for i, (send, recv) in enumerate(zip(sends, recvs, strict=True))
    ]
    info = peer.comm.all_reduce_multiple_with_retry(descriptors, max_in_flight=max_in_flight)
    return info.local_world_size, [i for i, recv in enumerate(recvs) if not np.all(recv == 1 + i)]


@pytest.mark.parametrize("max_in_flight", [1, 4, 40])
def test_multiple_with_retry(three, max_in_flight):
    for rank, peer in enumerate(three):
        peer.start(reduce_multiple, rank=rank, count=20, max_in_flight=max_in_flight)
    assert [peer.wait() for peer in three] == [[3, []]] * 3


def reduce_awaited(peer, tags):
    import asyncio

    async def main():
        data = [np.full(50_000, tag, np.float64) for tag in range(tags)]
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        infos = await asyncio.gather(*(reduce(x, tag) for tag, x in enumerate(data)))
        ticker.cancel()
        assert ticks > 0
        return [info.local_world_size for info in infos], [float(x[-1]) for x in data]

    async def reduce(x, tag):
        return await peer.comm.all_reduce_async(x, tag=tag)

    return asyncio.run(main())


def test_awaited_in_asyncio(three):
    assert Cluster.call(three, reduce_awaited, tags=6) == [[[3] * 6, [3.0 * tag for tag in range(6)]]] * 3


def reduce_from_threads(peer, rank, threads, times):
    wrong = []

    def body(tag):
        for i in range(times):
            x = np.full(257, rank + i + tag, np.int32)
            peer.comm.all_reduce(x, tag=tag)
            if not np.all(x == 3 + 3 * (i + tag)):
                wrong.append([tag, i])

    running = [threading.Thread(target=body, args=(tag,)) for tag in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(20)
    return wrong


def test_calls_from_several_threads(three):
    for rank, peer in enumerate(three):
        peer.start(reduce_from_threads, rank=rank, threads=6, times=40)
    assert [peer.wait() for peer in three] == [[], [], []]


def reduce_of_a_slow_peer(peer, sleep_s):
    """Holds the interpreter's lock: no Python thread of this process runs meanwhile."""
    import ctypes

    if sleep_s:
        ctypes.PyDLL(None).usleep(int(sleep_s * 1e6))
    x = np.ones(1_000_000, np.float32)
    return peer.comm.all_reduce(x).local_world_size, float(x[-1])


def test_a_straggler_is_no_dead_peer():
    with Cluster(PCCL_DEAD_TIMEOUT="0.5") as cluster:
        peers = cluster.join(3)
        for peer, sleep_s in zip(peers, (0, 0, 1.2), strict=True):
            peer.start(reduce_of_a_slow_peer, sleep_s=sleep_s)
        assert [peer.wait() for peer in peers] == [[3, 3.0]] * 3


def reduce_striped(peer, count):
    x = np.arange(count, dtype=np.float32)
    peer.comm.all_reduce(x, op="avg")
    return bool(np.array_equal(x, np.arange(count, dtype=np.float32)))


@pytest.mark.parametrize("connections", [2, 5])
def test_striped_over_connections(connections):
    with Cluster() as cluster:
        peers = cluster.join(2, p2p_connection_pool_size=connections)
        assert Cluster.call(peers, reduce_striped, count=3_000_000) == [True, True]
