"""Quantized payloads between real processes: bits equal at all, errors as known, feedback, mismatches, faults."""

import contextlib
import signal
import time

import numpy as np
import psutil
import pytest
from cluster import Cluster, everywhere
from worker import digest

import pccl

CODECS = ["bf16", "fp16", "int8", "int4", "fp8_e4m3", "e3m0", "min_max", "zero_point_scale", "top_k"]


@pytest.fixture(scope="module", params=[2, 3, 4], ids="{}peers".format)
def peers(request):
    with Cluster() as cluster:
        yield cluster.join(request.param)


@pytest.fixture(scope="module")
def three():
    with Cluster() as cluster:
        yield cluster.join(3)


def reduce_coded(peer, rank, size, codec, dtype):
    def contribution(of, count):
        return np.random.default_rng(100 * count + of).standard_normal(count).astype(dtype)

    made, errors = [], {}
    algorithms = ["exchange"] if codec == "top_k" else ["ring", "tree", "direct", "exchange", None]
    for count in (0, 1, 5, 300, 4097, 300_001):
        exact = sum(contribution(of, count).astype("f8") for of in range(size))
        for algorithm in algorithms:
            data = contribution(rank, count)
            peer.comm.all_reduce(data, codec=codec, algorithm=algorithm)
            out = np.zeros_like(data)
            peer.comm.all_reduce(contribution(rank, count), out, codec=codec, algorithm=algorithm)
            made += [data.tobytes(), out.tobytes()]
            if data.tobytes() != out.tobytes():
                errors["in place"] = [count, algorithm]
            if count > 100_000:
                errors[algorithm or "chosen"] = float(np.linalg.norm(data - exact) / np.linalg.norm(exact))
    errors["chose"] = peer.comm.stats()["algorithm"]
    return [digest(*(np.frombuffer(part, "u1") for part in made)), errors]


# One encoding's relative error; the sum of others is encoded once more, a ring's at each hop.
ONE = {"bf16": 0.00166, "fp16": 0.00021, "int8": 0.00696, "int4": 0.1174, "fp8_e4m3": 0.0261, "e3m0": 0.1924,
       "min_max": 0.00641, "zero_point_scale": 0.00644}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("codec", CODECS)
def test_all_peers_hold_the_same_bits(peers, codec, dtype):
    found = everywhere(peers, reduce_coded, codec=codec, dtype=dtype)
    assert len({bits for bits, _ in found}) == 1
    errors = found[0][1]
    assert "in place" not in errors
    if codec == "top_k":
        assert errors["chose"] == "exchange"
        assert errors["chosen" if "chosen" in errors else "exchange"] == pytest.approx(0.94, abs=0.02)
        return
    assert errors["chose"] == "direct"
    hops = (len(peers) + 1) / 2
    assert errors["direct"] == errors["chosen"]
    assert ONE[codec] < errors["direct"] < ONE[codec] * 1.45
    assert errors["ring"] < ONE[codec] * np.sqrt(hops) * 1.1


def move_coded(peer, rank, size, codec, dtype, in_step):
    """Everything that is only moved: out of place, in place, in blocks of different sizes. What each member holds."""
    comm, held, own = peer.comm, {}, {}

    def values(of, count):
        return np.random.default_rng(1000 * count + of).standard_normal(count).astype(dtype)

    with comm.step() if in_step else contextlib.nullcontext():
        for count in (1, 300, 40_003):
            for algorithm in ("ring", "tree", "direct", None):
                data = values(1, count) if rank == 1 else np.zeros(count, dtype)
                held[f"broadcast {count} {algorithm}"] = comm.broadcast(data, root=1, codec=codec, algorithm=algorithm)
            for algorithm in ("ring", "direct", None):
                out = comm.all_gather(values(rank, count), codec=codec, algorithm=algorithm)
                held[f"all_gather {count} {algorithm}"] = out
                blocks = np.zeros((size, count), dtype)
                blocks[rank] = values(rank, count)
                comm.all_gather(blocks[rank], blocks, codec=codec, algorithm=algorithm)
                held[f"all_gather in place {count} {algorithm}"] = blocks
            counts = [count + 7 * of for of in range(size)]
            whole = comm.all_gather(values(rank, counts[rank]), counts=counts, codec=codec)
            held[f"all_gather of blocks {count}"] = whole
            parts = np.split(whole, np.cumsum(counts)[:-1])
            # What goes from one to another arrives as what that one would have told all.
            out = np.zeros(counts[rank], dtype)
            gathered = comm.gather(values(rank, counts[rank]), whole.copy(), root=0, counts=counts, codec=codec)
            if rank == 0:
                own[f"gather {count}"] = [gathered[counts[0] :], np.concatenate(parts[1:])]
            if rank == 1:
                comm.send(values(1, counts[1]), 0, codec=codec)
            elif rank == 0:
                from_1 = np.zeros(counts[1], dtype)
                comm.recv(from_1, 1, codec=codec)
                own[f"send {count}"] = [from_1, parts[1]]
            spread = values(1, count * size) if rank == 1 else None
            comm.scatter(spread, out := np.zeros(count, dtype), root=1, codec=codec)
            own[f"scatter {count}"] = [out, values(1, count * size).reshape(size, -1)[rank]]
            crossed = comm.all_to_all(values(rank, count * size), codec=codec).reshape(size, -1)
            sent = np.stack([values(of, count * size).reshape(size, -1)[rank] for of in range(size)])
            own[f"all_to_all {count}"] = [crossed, sent]
    own["all_gather"] = [
        held["all_gather 40003 None"].ravel(),
        np.concatenate([values(of, 40_003) for of in range(size)]),
    ]
    errors = {}
    for name, pair in own.items():
        found, exact = (part.astype("f8") for part in pair)
        errors[name] = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    return [{name: digest(value) for name, value in held.items()}, errors]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_moved_is_the_same_at_all(peers, codec, dtype):
    found = everywhere(peers, move_coded, codec=codec, dtype=dtype, in_step=codec == "int8")
    first = found[0][0]
    assert all(held == first for held, _ in found)
    for count in (1, 300, 40_003):
        for kind in ("broadcast", "all_gather", "all_gather in place"):
            assert len({bits for name, bits in first.items() if name.rsplit(" ", 1)[0] == f"{kind} {count}"}) == 1
        assert first[f"all_gather {count} None"] == first[f"all_gather in place {count} None"]
    expected = 0.94 if codec == "top_k" else ONE[codec]
    if dtype == "float16":  # the result is rounded to it, and fits already where codes are no finer
        expected = {"fp16": 0, "bf16": expected}.get(codec, np.hypot(expected, 0.00021))
    for rank, (_, errors) in enumerate(found):
        assert errors["all_gather"] == pytest.approx(expected, rel=0.05)
        for name, error in errors.items():
            if name.startswith(("gather", "send")):
                assert error == 0, name
            if name == "scatter 40003":
                assert error == pytest.approx(expected if rank != 1 else 0, rel=0.1)
            if name == "all_to_all 40003":  # the own block stays as it is
                assert error == pytest.approx(expected * np.sqrt(1 - 1 / len(peers)), rel=0.1)


def reduce_to_some(peer, rank, size):
    count = 5000
    whole = [np.random.default_rng(of).standard_normal(count * size).astype("float32") for of in range(size)]
    exact = sum(part.astype("f8") for part in whole)
    own = peer.comm.reduce_scatter(whole[rank], np.zeros(count, "float32"), codec="int8")
    part = exact[rank * count : (rank + 1) * count]
    errors = [float(np.linalg.norm(own - part) / np.linalg.norm(part))]
    result = peer.comm.reduce(whole[rank].copy(), root=1, op="avg", codec="int8")
    if rank == 1:
        errors.append(float(np.linalg.norm(result * size - exact) / np.linalg.norm(exact)))
    return errors


def test_reduce_and_reduce_scatter(peers):
    """What stays with one member is not encoded once more: only what came from others was."""
    for errors in everywhere(peers, reduce_to_some):
        assert all(0.002 < error < 0.0071 for error in errors)


def pccl_options(peer, rank, size):
    comm, wrong = peer.comm, []
    for algorithm in (pccl.QuantizationAlgorithm.MIN_MAX, pccl.QuantizationAlgorithm.ZERO_POINT_SCALE):
        for quantized in (pccl.DataType.UINT8, pccl.DataType.INT8, pccl.DataType.UINT16, pccl.DataType.UINT32,
                          pccl.DataType.INT64):  # fmt: skip
            options = pccl.QuantizationOptions(quantized, algorithm)
            for op, expected in (("sum", sum(range(42, 42 + size))), ("avg", sum(range(42, 42 + size)) / size),
                                 ("max", 41 + size), ("min", 42)):  # fmt: skip
                data = np.full(1000, 42 + rank, "float32")
                info = comm.all_reduce(data, op=op, quantization_options=options)
                if not np.array_equal(data, np.full(1000, expected, "float32")):
                    wrong.append([algorithm.name, quantized.name, op, float(data[0]), expected])
                if info.tx_bytes >= 4000 * 2 and quantized == pccl.DataType.UINT8:
                    wrong.append(["bytes", info.tx_bytes])
    descriptor = pccl.ReduceDescriptor(
        1000, pccl.ReduceOp.SUM, 9, pccl.ReduceOperandDescriptor(pccl.DataType.FLOAT), pccl.QuantizationOptions()
    )
    batch = [np.full(1000, 42.0 + rank, "float32") for _ in range(3)]
    ops = []
    for i, data in enumerate(batch):
        each = pccl.ReduceDescriptor(1000, descriptor.op, 9 + i, descriptor.operand_descriptor,
                                     descriptor.quantization_options)  # fmt: skip
        ops.append(pccl.ReduceOpDescriptor.from_numpy(data, data, each))
    comm.all_reduce_multiple_with_retry(ops)
    if not all((data == sum(range(42, 42 + size))).all() for data in batch):
        wrong.append("batch")
    return wrong


def test_pccl_options(peers):
    assert everywhere(peers, pccl_options) == [[]] * len(peers)


def payload_bytes(peer, rank, size):
    data = np.random.default_rng(rank).standard_normal(size * 256 * 100).astype("float32")
    plain = peer.comm.all_reduce(data.copy())
    coded = peer.comm.all_reduce(data.copy(), codec="int8")
    return [plain.tx_bytes, coded.tx_bytes, coded.rx_bytes]


def test_bytes_are_those_of_the_formula(peers):
    size = len(peers)
    for plain, sent, received in everywhere(peers, payload_bytes):
        assert plain == 2 * (size - 1) * 25_600 * 4
        assert sent == received == 2 * (size - 1) * 25_600 * 65 // 64


def not_finite(peer, rank, size):
    comm, count = peer.comm, 20_000
    data = np.random.default_rng(rank).standard_normal(count).astype("float32")
    if rank == 0:
        data[5], data[9000] = np.nan, np.inf
    before = data.copy()
    passed = data.copy()
    comm.all_reduce(passed, codec="int8")
    finite = np.isfinite(passed)
    try:
        comm.all_reduce(data, codec=pccl.Codec("int8", nonfinite="error" if rank == 0 else "pass"))
    except pccl.NotEncodableError as error:
        kept = data.tobytes() == before.tobytes()
        again = np.ones(10, "float32")
        comm.all_reduce(again, codec="int8")
        return [[int(i) for i in np.flatnonzero(~finite)], kept, str(error), again.tolist()]
    return "no error"


def test_what_is_not_finite(peers):
    size = len(peers)
    for bad, kept, text, again in everywhere(peers, not_finite):
        assert bad == [5, 9000]
        assert kept
        assert "codec" in text
        assert again == [size] * 10


def sums_beyond_the_codec(peer, rank, size):
    """Each contribution can be coded, and a sum late in each member's share cannot."""
    comm, share = peer.comm, 64 * 1024
    data = np.random.default_rng(rank).standard_normal(size * share).astype("float32")
    data[share - 300 :: share] = 8e37
    residual = np.full_like(data, 0.25)
    before, kept = data.copy(), []
    for more in ({}, {"residual": residual}):
        try:
            comm.all_reduce(data, codec=pccl.Codec("int8", nonfinite="error"), **more)
        except pccl.NotEncodableError:
            kept.append(data.tobytes() == before.tobytes() and bool((residual == 0.25).all()))
    comm.all_reduce(data, codec="int8")
    return [kept, digest(data), float(data[share - 300])]


def test_an_abort_amid_a_result_brings_back_all_of_it(peers):
    kept, digests, sums = zip(*everywhere(peers, sums_beyond_the_codec), strict=True)
    assert list(kept) == [[True, True]] * len(peers)
    assert len(set(digests)) == 1
    assert sums[0] == pytest.approx(8e37 * len(peers), rel=1e-6)


def feedback(peer, rank, size, codec, rounds):
    """The same gradient again and again: with feedback the mean of what arrives comes as near to it as one likes."""
    comm, count = peer.comm, 10_000
    gradient = np.random.default_rng(rank).standard_normal(count).astype("float32")
    exact = sum(np.random.default_rng(of).standard_normal(count).astype("float32").astype("f8") for of in range(size))
    errors = []
    for residual in (None, np.zeros(count, "float32")):
        total = np.zeros(count)
        for _ in range(rounds):
            data = gradient.copy()
            comm.all_reduce(data, codec=codec, residual=residual)
            total += data
        errors.append(float(np.linalg.norm(total / rounds - exact) / np.linalg.norm(exact)))
    return errors


@pytest.mark.parametrize(("codec", "rounds", "least"), [("int4", 30, 10), ("e3m0", 30, 10), ("top_k", 400, 2.5)])
def test_error_feedback(peers, codec, rounds, least):
    for without, with_feedback in everywhere(peers, feedback, codec=codec, rounds=rounds):
        assert with_feedback * least < without


def feedback_of_what_is_no_number(peer, rank, size, codec, algorithm):
    residual, bad = np.zeros(3000, "float32"), np.full(3000, rank + 1.0, "float32")
    bad[7] = [np.inf, np.nan][rank % 2]
    peer.comm.all_reduce(bad, codec=codec, residual=residual, algorithm=algorithm)
    data = np.full(3000, rank + 1.0, "float32")
    peer.comm.all_reduce(data, codec=codec, residual=residual, algorithm=algorithm)
    return [bool(np.isnan(bad[7])), bool(np.isfinite(residual).all()), bool(np.isfinite(data).all())]


@pytest.mark.parametrize(("codec", "algorithm"), [("int8", "direct"), ("int8", "exchange"), ("top_k", "exchange")])
def test_what_is_no_number_stays_out_of_the_residual(peers, codec, algorithm):
    found = everywhere(peers, feedback_of_what_is_no_number, codec=codec, algorithm=algorithm)
    assert found == [[True, True, True]] * len(peers)


def feedback_of_exact_sums(peer, rank, size, op, algorithm):
    """What each contribution lacks is in its own residual, at the root of a chunk too."""
    codec, data = pccl.Codec("int_sum", exponent=-4), np.full(8192, 0.3 * (rank + 1), "float32")
    residual, work = np.zeros(8192, "float32"), data.copy()
    peer.comm.all_reduce(work, codec=codec, residual=residual, algorithm=algorithm, op=op)
    work = work * (size if op == "avg" else 1)
    return [float(data[0]), work[::4095].tolist(), residual[::4095].tolist()]


@pytest.mark.parametrize("algorithm", ["direct", "exchange"])
@pytest.mark.parametrize("op", ["sum", "avg"])
def test_residuals_of_integer_sums_are_all_that_a_result_lacks(peers, op, algorithm):
    found = everywhere(peers, feedback_of_exact_sums, op=op, algorithm=algorithm)
    exact = sum(mine for mine, _, _ in found)
    for i, got in enumerate(found[0][1]):
        assert got + sum(residual[i] for _, _, residual in found) == pytest.approx(exact, rel=1e-5)


def feedback_of_a_failure(peer, rank, size):
    comm, count = peer.comm, 10_000
    residual = np.full(count, 0.25, "float32")
    data = np.ones(count, "float32")
    if rank == 0:
        data[17] = np.nan
    try:
        comm.all_reduce(data, codec=pccl.Codec("int8", nonfinite="error"), residual=residual)
    except pccl.NotEncodableError:
        failed = [bool((residual == 0.25).all()), float(np.nansum(data))]
    comm.all_reduce(np.ones(count, "float32"), residual=residual, codec="int8")
    return [*failed, float(np.abs(residual).max())]


def test_a_failure_leaves_the_residual(peers):
    for rank, (kept, total, after) in enumerate(everywhere(peers, feedback_of_a_failure)):
        assert kept
        assert total == (9999 if rank == 0 else 10_000)
        assert after < 0.01


def weigh(peer, rank, size):
    comm = peer.comm
    weights = [3, 0, 5, 2][:size]
    data = np.full(3000, rank + 1, "float32") if weights[rank] else np.full(3000, np.nan, "float32")
    comm.all_reduce(data, op="avg", weight=weights[rank], codec="int8")
    bf16 = np.full(3000, rank + 1.0, "float32")
    comm.all_reduce(bf16, scale=0.5, codec="bf16")
    try:
        comm.all_reduce(data, op="avg", weight=0, codec="int8")
    except pccl.InvalidArgumentError:
        return [float(data[0]), float(bf16[0])]
    return "all weights 0"


def test_weights_and_scales(peers):
    size = len(peers)
    weights = [3, 0, 5, 2][:size]
    mean = sum(w * (r + 1) for r, w in enumerate(weights)) / sum(weights)
    for got, half in everywhere(peers, weigh):
        assert got == pytest.approx(mean, rel=0.01)
        assert half == size * (size + 1) / 4


def reduce_late(peer, rank, size, count):
    """Rank 0 sends but frames without payload, more than anybody holds for a call that has not come."""
    if rank == 1:
        time.sleep(0.3)
    data = np.ones(count, "float16")
    wide = pccl.Codec("min_max", bits=64)  # few elements a segment
    made = peer.comm.reduce(data, root=1, weight=rank, codec=wide, algorithm="direct")
    return None if made is None else [float(made[0]), float(made[-1])]


def test_many_frames_without_payload_before_the_call():
    with Cluster() as cluster:
        assert everywhere(cluster.join(2), reduce_late, count=1100 * 20_480) == [None, [1.0, 1.0]]


def exact_sums(peer, rank, size):
    comm, made = peer.comm, []
    data = np.random.default_rng(rank).standard_normal(20_000).astype("float32")
    codec = pccl.Codec.int_sum(comm, data)
    for algorithm in ("ring", "tree", "direct"):
        work = data.copy()
        comm.all_reduce(work, codec=codec, algorithm=algorithm)
        made.append(digest(work))
    exact = sum(np.random.default_rng(of).standard_normal(20_000).astype("float32").astype("f8") for of in range(size))
    return [codec.exponent, made, float(np.abs(work - exact).max()) <= size * 2.0**codec.exponent / 2]


def test_integer_sums_do_not_depend_on_the_way(peers):
    found = everywhere(peers, exact_sums)
    assert all(answer == found[0] for answer in found)
    exponent, made, within = found[0]
    assert -15 <= exponent <= -9
    assert len(set(made)) == 1
    assert within


def in_a_step(peer, rank, size):
    data = np.random.default_rng(rank).standard_normal(50_000).astype("float32")
    with peer.comm.step():
        peer.comm.all_reduce(data, codec="int8")
    return digest(data)


def test_in_a_step(peers):
    assert len(set(everywhere(peers, in_a_step))) == 1


def disagree(peer, rank, size, mine):
    data = np.arange(1000, dtype="float32")
    before = data.copy()
    codec = None if mine[rank] is None else pccl.Codec(**mine[rank])
    try:
        peer.comm.all_reduce(data, codec=codec)
    except pccl.MismatchError as error:
        peer.comm.all_reduce(np.ones(3, "float32"))
        return [str(error), data.tobytes() == before.tobytes()]
    return ["no error", False]


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ([None, {"name": "int8"}, {"name": "int8"}], "as int8 in blocks of 256"),
        ([{"name": "int8", "block": 64}, {"name": "int8"}, {"name": "int8"}], "as int8 in blocks of 64"),
        ([{"name": "int_sum", "exponent": -3}, {"name": "int_sum"}, {"name": "int_sum"}], "as int_sum of 2^-3"),
        ([{"name": "min_max"}, {"name": "min_max"}, {"name": "min_max", "bits": 16}], "as min_max of 16 bits"),
    ],
)
def test_mismatch(three, mine, words):
    for text, kept in everywhere(three, disagree, mine=mine):
        assert words in text
        assert kept


def misuse(peer, rank, size):
    comm = peer.comm
    data = np.ones(100, "float32")
    calls = {
        "unknown codec": lambda: comm.all_reduce(data, codec="int7"),
        "floating-point": lambda: comm.all_reduce(np.ones(4, "int32"), codec="int8"),
        "4096 elements, not 100": lambda: comm.all_reduce(data, codec=pccl.Codec("int8", block=100)),
        "not both": lambda: comm.all_reduce(data, codec="int8", quantization_options=pccl.QuantizationOptions()),
        "quantizes to integers": lambda: comm.all_reduce(
            data, quantization_options=pccl.QuantizationOptions(pccl.DataType.FLOAT)
        ),
        "nothing is left out": lambda: comm.all_reduce(data, residual=np.zeros(100, "float32")),
        "residual is 99": lambda: comm.all_reduce(data, codec="int8", residual=np.zeros(99, "float32")),
        "travel alone": lambda: comm.all_reduce(
            data, codec="int8", algorithm="ring", residual=np.zeros(100, "float32")
        ),
        "sums and averages": lambda: comm.all_reduce(data, op="max", codec="int8", residual=np.zeros(100, "float32")),
        "sums are less sparse": lambda: comm.reduce(data, codec="top_k"),
        "no use for codec int8": lambda: comm._start(
            pccl.types.Collective.BARRIER, None, None, 0, result=None, codec="int8"
        ),
        "overlaps a buffer": lambda: comm.all_reduce(data, codec="int8", residual=data),
        "exponent of a codec": lambda: comm.all_reduce(data, codec=pccl.Codec("int_sum", exponent=200)),
        "residual decay": lambda: comm.all_reduce(data, codec=pccl.Codec("int8", residual_decay=2)),
    }
    wrong = []
    for words, call in calls.items():
        try:
            call()
            wrong.append([words, "no error"])
        except pccl.InvalidArgumentError as error:
            if words not in str(error):
                wrong.append([words, str(error)])
    return wrong


def test_misuse_is_refused_before_anything_is_sent(three):
    assert everywhere(three, misuse) == [[]] * 3


def reduce_until_one_is_gone(peer, rank, size):
    residual = np.zeros(400_000, "float32")
    data = np.random.default_rng(rank).standard_normal(400_000).astype("float32")
    peer.emit("going")
    while True:
        work, before = data.copy(), residual.copy()
        kept = True
        try:
            world = peer.comm.all_reduce(work, codec="int8", residual=residual).local_world_size
        except pccl.RankConnectionLostError:
            kept = work.tobytes() == data.tobytes() and residual.tobytes() == before.tobytes()
            world = peer.comm.all_reduce(work, codec="int8", residual=residual).local_world_size
        if world < size:
            return [kept, digest(work)]


def test_a_killed_peer_costs_nothing(three):
    for rank, peer in enumerate(three):
        peer.start(reduce_until_one_is_gone, rank=rank, size=3)
    for peer in three:
        peer.event("going")
    three[2].kill()
    found = [peer.wait() for peer in three[:2]]
    assert [kept for kept, _ in found] == [True, True]
    assert found[0][1] == found[1][1]


def broadcast_large(peer, rank, size):
    data = np.full(32 << 20, 1.5 if rank == 0 else 0.0, "float32")
    peer.comm.barrier()
    peer.emit("ready")
    time.sleep(0.5)
    peer.comm.broadcast(data, codec="bf16", algorithm="ring")
    return bool(np.all(data == 1.5))


def test_a_slow_member_costs_the_one_before_it_no_memory():
    """Encoded values that are passed on wait for credit: 64 MiB of them would be there else."""
    with Cluster(PCCL_SHM="0") as cluster:
        peers = cluster.join(3)
        for rank, peer in enumerate(peers):
            peer.start(broadcast_large, rank=rank, size=3)
        for peer in peers:
            peer.event("ready")
        peers[2].send_signal(signal.SIGSTOP)
        before = psutil.Process(peers[1].pid).memory_info().rss
        time.sleep(2)
        grown = psutil.Process(peers[1].pid).memory_info().rss - before
        peers[2].send_signal(signal.SIGCONT)
        assert [peer.wait() for peer in peers] == [True] * 3
        assert 1 << 20 < grown < 32 << 20
