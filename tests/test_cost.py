"""The cost model: against times worked out by hand and what is sure of any model; its shares as plans use them."""

from __future__ import annotations

import itertools

import c_level
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

lib = c_level.load(
    """
    struct pc_op_shape {
        uint64_t count, layout; uint32_t root; uint8_t collective, dtype, redop, consistency, algorithm;
        uint8_t codec, codec_bits; uint32_t codec_block;
    };
    struct pc_codec { uint8_t kind, bits; bool stochastic, finite_only; uint32_t block; };
    struct pc_cost_request { uint32_t n; const uint32_t *ring, *rtt_us, *bytes_per_ms; };
    size_t pc_cost_bytes(uint32_t n);
    const void *pc_cost_init(const struct pc_cost_request *request, void *memory);
    uint64_t pc_cost_ns(const void *cost, const struct pc_op_shape *shape, uint8_t algorithm);
    const uint32_t *pc_cost_shares(const void *cost, const struct pc_op_shape *shape);
    bool pc_algorithm_fits(const struct pc_op_shape *shape, uint8_t algorithm);
    uint8_t pc_algorithm_choose(const struct pc_op_shape *shape, uint32_t n, uint32_t rtt_us, const void *cost);
    struct pc_chunk {
        uint32_t number, segments, segment_elems; uint64_t elems, own_elem, out_elem; bool kept;
        uint32_t inputs_at, input_count, copies_at, copy_count, down_at, down_count, up, from;
    };
    struct pc_chunk_plan {
        uint32_t n, rank, chunk_count, rank_count; struct pc_chunk *chunks; uint32_t *ranks;
        uint32_t elem_bytes, acc_bytes;
        struct pc_codec codec;
    };
    struct pc_plan_request {
        const struct pc_op_shape *shape; uint32_t n, rank; const uint32_t *ring; uint64_t count;
        const uint64_t *counts, *recv_counts; uint32_t source, target, rtt_us; const uint32_t *shares;
    };
    size_t pc_chunk_plan_bytes(uint32_t n);
    int pc_chunk_plan_init(struct pc_chunk_plan *plan, const struct pc_plan_request *request, void *memory);
    """,
    only=("base", "bytes", "math", "plan", "wire"),
)
ffi = lib.ffi
ALL_REDUCE, BROADCAST, REDUCE, ALL_GATHER, REDUCE_SCATTER, GATHER, SCATTER, ALL_TO_ALL, SEND_RECV = range(9)
RING, TREE, DIRECT, EXCHANGE = range(1, 5)
NAMES = {RING: "ring", TREE: "tree", DIRECT: "direct", EXCHANGE: "exchange"}
UNITS = 1 << 16
MEMBERS_MAX = 128
FLOAT = 10
CANARY = 0xC0FFEE
IMPOSSIBLE = (1 << 64) - 1
FAR_US = 2000


class Cost:
    """A model, or None in `model`; rtt_us and bytes_per_ms are matrices or one number for all."""

    def __init__(self, n, rtt_us, bytes_per_ms, ring=None):
        self.n = n
        rtt = np.ascontiguousarray(np.broadcast_to(rtt_us, (n, n)), np.uint32)
        rate = np.ascontiguousarray(np.broadcast_to(bytes_per_ms, (n, n)), np.uint32)
        self.longest_us = int(rtt.max())
        ring = ffi.new("uint32_t[]", list(range(n) if ring is None else ring))
        request = ffi.new("struct pc_cost_request *", {"n": n, "ring": ring})
        request.rtt_us = ffi.from_buffer("uint32_t[]", rtt)
        request.bytes_per_ms = ffi.from_buffer("uint32_t[]", rate)
        words = lib.pc_cost_bytes(n) // 8
        assert lib.pc_cost_bytes(n) % 8 == 0
        self._memory = ffi.new("uint64_t[]", words + 1)
        self._memory[words] = CANARY
        self.model = lib.pc_cost_init(request, self._memory)
        assert self._memory[words] == CANARY
        self.known = self.model != ffi.NULL

    def ms(self, algorithm, size, collective=ALL_REDUCE, root=0):
        return lib.pc_cost_ns(self.model, shape(size, collective, root), algorithm) / 1e6

    def choice(self, size, collective=ALL_REDUCE, root=0):
        asked = shape(size, collective, root)
        chosen = lib.pc_algorithm_choose(asked, self.n, self.longest_us, self.model)
        assert lib.pc_algorithm_fits(asked, chosen)
        return chosen

    def shares(self, size=1 << 30):
        first = lib.pc_cost_shares(self.model, shape(size))
        return None if first == ffi.NULL else [first[i] for i in range(self.n + 1)]


def shape(size, collective=ALL_REDUCE, root=0):
    return ffi.new("struct pc_op_shape *", {"count": size // 4, "dtype": FLOAT, "collective": collective, "root": root})


def but(n, value, others):
    """A matrix of value, but for the places in others."""
    matrix = np.full((n, n), value, np.uint32)
    for place, other in others.items():
        matrix[place] = other
    return matrix


# What is not known ---------------------------------------------------------------------------------------------


def test_nothing_to_say():
    assert not Cost(4, 50_000, but(4, 1000, {(2, 1): 0})).known
    assert Cost(4, 50_000, but(4, 1000, {(2, 2): 0})).known
    assert not Cost(1, 50_000, 1000).known
    assert Cost(MEMBERS_MAX, 50_000, 1000).known
    assert not Cost(MEMBERS_MAX + 1, 50_000, 1000).known
    assert not Cost(4, 60, 2_000_000).known
    assert Cost(4, but(4, 60, {(0, 1): FAR_US}), 2_000_000).known
    assert Cost(4, 60, but(4, 2_000_000, {(3, 0): 100_000})).known


@pytest.mark.parametrize("size", [1 << 10, 32 << 10, 1 << 20, 64 << 20])
def test_unknown_means_the_rule_without_bandwidth(size):
    unknown = Cost(4, 50_000, 0)
    assert unknown.choice(size) == (EXCHANGE if size <= 14 << 10 else DIRECT)
    unknown = Cost(4, 60, 0)
    assert unknown.choice(size) == (EXCHANGE if size <= 4096 else TREE if size <= 64 << 10 else RING)


# By hand -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
def test_large_payloads_take_what_the_links_take(n):
    size, rate = 256 << 20, 10_000
    cost = Cost(n, 20_000, rate)
    once = size / rate
    assert cost.ms(RING, size) == pytest.approx(2 * (n - 1) / n * once, rel=0.1)
    assert cost.ms(DIRECT, size) == pytest.approx(2 * (n - 1) / n * once, rel=0.05)
    assert cost.ms(RING, size, ALL_GATHER) == pytest.approx((n - 1) * once, rel=0.1)
    assert cost.ms(DIRECT, size, REDUCE_SCATTER) == pytest.approx((n - 1) * once, rel=0.05)
    assert cost.ms(RING, size, BROADCAST) == pytest.approx(once, rel=0.1)
    assert cost.ms(DIRECT, size, REDUCE) == pytest.approx((n - 1) * once, rel=0.05)


@pytest.mark.parametrize("n", [3, 4, 7, 16])
def test_small_payloads_take_the_trips(n):
    cost, one_way_ms = Cost(n, 200_000, 100_000), 100
    depth = (n - 1).bit_length()
    assert cost.ms(RING, 64) == pytest.approx(2 * (n - 1) * one_way_ms, rel=0.01)
    assert cost.ms(DIRECT, 64) == pytest.approx(2 * one_way_ms, rel=0.01)
    assert cost.ms(EXCHANGE, 64) == pytest.approx(one_way_ms, rel=0.01)
    assert 2 * one_way_ms <= cost.ms(TREE, 64) <= 2 * depth * one_way_ms * 1.01
    assert cost.ms(RING, 64, BROADCAST) == pytest.approx((n - 1) * one_way_ms, rel=0.01)
    assert cost.ms(DIRECT, 64, REDUCE) == pytest.approx(one_way_ms, rel=0.01)


def test_a_ring_spares_its_shortest_edges():
    """Four hops of 10 ms, and of the far edge twice; its neighbours are the shortest two."""
    rtt = but(3, 20_000, {(0, 1): 200_000})
    assert Cost(3, rtt, 100_000).ms(RING, 64) == pytest.approx(100 + 10 + 10 + 100, rel=0.01)
    assert Cost(3, rtt, 100_000).ms(RING, 64, ALL_GATHER) == pytest.approx(100 + 10, rel=0.01)
    assert Cost(3, rtt, 100_000, ring=(0, 2, 1)).ms(RING, 64) == pytest.approx(40, rel=0.01)


def test_a_rooted_collective_uses_its_own_edges():
    """The edge back to the root is not used; which one that is depends on the direction."""
    rate = but(4, 10_000, {(3, 0): 10})
    cost = Cost(4, 20_000, rate)
    size = 16 << 20
    assert cost.ms(RING, size, BROADCAST, 0) < 3000
    assert cost.ms(RING, size, BROADCAST, 1) > 1_000_000
    assert cost.ms(RING, size, REDUCE, 3) < 3000
    assert cost.ms(RING, size, REDUCE, 0) > 1_000_000
    assert cost.ms(DIRECT, size, REDUCE, 0) > 1_000_000
    assert cost.ms(DIRECT, size, BROADCAST, 0) < 7000


def test_a_connection_speeds_up_by_doubling():
    """A megabyte over an idle long fat link takes six doublings of 14 KiB, whatever its bandwidth."""
    size = 1 << 20
    times = [Cost(2, 100_000, rate).ms(EXCHANGE, size) for rate in (100_000, 1_000_000)]
    assert all(650 <= time <= 670 for time in times)
    assert Cost(2, 1000, 100_000).ms(EXCHANGE, size) < 20


# Choices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
def test_even_links_are_used_as_without_knowing_them(n):
    """At both ends of the scale the model and the thresholds on the round trip alone choose alike."""
    near, far = Cost(n, 60, 125_000), Cost(n, 100_000, 12_500)
    assert near.choice(256) == EXCHANGE
    assert near.choice(256 << 20) == RING
    assert near.choice(64 << 20, BROADCAST) == (RING if n > 2 else DIRECT)
    assert near.choice(1 << 10, ALL_GATHER) == DIRECT
    assert far.choice(256) == EXCHANGE
    assert far.choice(14 << 10) == EXCHANGE
    assert n == 2 or far.choice(1 << 20) == DIRECT  # two do the same in a ring and directly
    assert far.choice(256 << 20) == DIRECT
    assert far.choice(1 << 10, BROADCAST) == DIRECT


@pytest.mark.parametrize("collective", [GATHER, SCATTER, ALL_TO_ALL, SEND_RECV])
def test_where_there_is_no_choice(collective):
    assert Cost(4, 60, 1000).choice(1 << 20, collective) == DIRECT


def test_a_ring_goes_round_a_slow_link():
    """One pair is slow, and not neighbours in the ring: everything that talks to everybody waits for it."""
    slow = but(5, 10_000, {(1, 3): 100, (3, 1): 100})
    assert NAMES[Cost(5, 20_000, slow).choice(64 << 20)] == "ring"
    assert Cost(5, 20_000, 10_000).choice(64 << 20) == DIRECT
    assert Cost(5, 20_000, slow, ring=(0, 1, 3, 2, 4)).choice(64 << 20) != RING


def test_a_slow_member_owns_little():
    rate = np.full((4, 4), 10_000)
    rate[3, :] = rate[:, 3] = 2_500
    cost = Cost(4, 20_000, rate)
    assert cost.choice(64 << 20) == DIRECT
    assert cost.shares() == pytest.approx([0, UNITS / 3, 2 * UNITS / 3, UNITS, UNITS], abs=2)
    # It only sends its own and receives the result: once over its link, not 1.5 times.
    assert cost.ms(DIRECT, 64 << 20) == pytest.approx((64 << 20) / 2_500, rel=0.05)
    assert cost.ms(RING, 64 << 20) == pytest.approx(1.5 * (64 << 20) / 2_500, rel=0.1)


# Shares --------------------------------------------------------------------------------------------------------


def test_alike_within_a_quarter():
    rate = np.full((4, 4), 10_000)
    rate[2, :] = rate[:, 2] = 8_000
    assert Cost(4, 20_000, rate).shares() is None
    rate[2, :] = rate[:, 2] = 7_900
    shares = np.diff(Cost(4, 20_000, rate).shares())
    assert shares[2] < shares[0] == pytest.approx(shares[1], abs=1)
    assert Cost(2, 20_000, but(2, 10_000, {(0, 1): 100})).shares() is None


def test_small_payloads_are_shared_evenly():
    """Sending more over fewer links costs another round trip, which a small payload does not get back."""
    rate = np.full((8, 8), 125_000)
    rate[4:] = 12_500
    cost = Cost(8, 30_000, rate)
    assert cost.shares(256 << 10) is None
    assert cost.shares(64 << 20)[4:] == pytest.approx([UNITS] * 5, abs=2)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_ready_at_once(seed):
    """Members that own something are done at the same time; one that owns nothing needs longer for its own payload."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 20))
    speed = rng.integers(1_000, 20_000, n)
    rate = np.minimum(speed[:, None], speed[None, :]).astype(np.uint32)
    cost = Cost(n, 20_000, rate)
    speed = np.array([min(np.delete(rate[i], i).max(), np.delete(rate[:, i], i).max()) for i in range(n)])
    part = np.diff(cost.shares()) / UNITS
    assert part.min() >= 0
    assert part.sum() == 1
    done = (1 + (n - 2) * part) / speed
    owners = part > 0.001
    assert done[owners] == pytest.approx(done[owners].max(), rel=0.01)
    assert (done[~owners] >= done[owners].max() * 0.99).all()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 1000, 10**6, 10**9 + 7])
def test_plans_use_shares(count):
    rng = np.random.default_rng(7)
    n = 6
    speed = rng.integers(1_000, 20_000, n)
    cost = Cost(n, 20_000, np.minimum(speed[:, None], speed[None, :]))
    borders = {}
    for rank in range(n):
        asked = shape(4 * count)
        asked.algorithm = DIRECT
        ring = ffi.new("uint32_t[]", list(range(n)))
        request = ffi.new("struct pc_plan_request *", {"shape": asked, "n": n, "rank": rank, "ring": ring})
        request.shares = lib.pc_cost_shares(cost.model, shape(1 << 30))
        plan, memory = ffi.new("struct pc_chunk_plan *"), ffi.new("uint64_t[]", lib.pc_chunk_plan_bytes(n) // 8 + 1)
        assert lib.pc_chunk_plan_init(plan, request, memory) == 0
        borders[rank] = [(plan.chunks[i].out_elem, plan.chunks[i].elems) for i in range(plan.chunk_count)]
    assert len(set(map(tuple, borders.values()))) == 1
    firsts, ends = zip(*((first, first + elems) for first, elems in borders[0]), strict=True)
    assert firsts[0] == 0
    assert ends[-1] == count
    assert firsts[1:] == ends[:-1]
    assert all(first % 64 == 0 for first in firsts)
    if count > 10**5:
        parts = [(end - first) / count for first, end in zip(firsts, ends, strict=True)]
        assert parts == pytest.approx(list(np.diff(cost.shares()) / UNITS), abs=1e-3)


# Any matrix ----------------------------------------------------------------------------------------------------


@st.composite
def matrices(draw):
    n = draw(st.sampled_from([2, 3, 4, 5, 8, 13, 64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = draw(st.sampled_from([100, 10**6, 2**32 - 1]))
    rate = np.exp(rng.uniform(0, np.log(top), (n, n))).astype(np.uint32).clip(1)
    rtt = rng.integers(0, draw(st.sampled_from([1, 1000, 300_000, 2**32 - 1])), (n, n))
    return Cost(n, rtt, rate, rng.permutation(n))


@settings(max_examples=150, deadline=None)
@given(matrices(), st.integers(0, 8))
def test_estimates_grow_and_the_least_is_chosen(cost, collective):
    if not cost.known:
        return
    sizes = [0, 4, 64, *(4**k for k in range(4, 27, 2)), 2**60]
    for algorithm in NAMES:
        times = [cost.ms(algorithm, size, collective, cost.n - 1) for size in sizes]
        possible = [time for time in times if time != IMPOSSIBLE / 1e6]
        assert all(before <= after * 1.000001 for before, after in itertools.pairwise(possible))
    for size in sizes:
        times = {algorithm: cost.ms(algorithm, size, collective, cost.n - 1) for algorithm in NAMES}
        assert times[cost.choice(size, collective, cost.n - 1)] == min(times.values())


def test_equal_numbers_equal_models():
    rng = np.random.default_rng(1)
    rate, rtt = rng.integers(1, 10**5, (9, 9)), rng.integers(1, 10**5, (9, 9))
    one, two = Cost(9, rtt, rate), Cost(9, rtt, rate)
    assert one.shares() == two.shares()
    for algorithm, k in itertools.product(NAMES, range(2, 30)):
        assert one.ms(algorithm, 1 << k) == two.ms(algorithm, 1 << k)
