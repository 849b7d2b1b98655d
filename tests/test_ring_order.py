"""Ring orders against brute force, an independent table and planted rings: bottleneck first, then latency."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import c_level
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

lib = c_level.load(
    """
    struct pc_ring_request { uint32_t n; const uint64_t *bandwidth, *latency_ns; uint64_t budget; const bool *stop; };
    struct pc_ring_quality { uint64_t bottleneck, latency_ns; bool widest; };
    size_t pc_ring_order_bytes(uint32_t n);
    bool pc_ring_order(const struct pc_ring_request *request, uint32_t *order, struct pc_ring_quality *quality,
                       void *memory);
    """,
    only=("base", "bytes", "math", "plan", "wire"),
)
ffi = lib.ffi
BUDGET = 12_000_000
EXACT_MAX = 12
LATENCY_MAX_NS = 1 << 36
UINT64_MAX = (1 << 64) - 1
CANARY = 0xC0FFEE


@dataclass(frozen=True)
class Ring:
    order: tuple[int, ...]
    bottleneck: int
    latency_ns: int
    widest: bool


def solve(bandwidth, latency_ns=None, budget=BUDGET, stopped=False) -> Ring | None:
    bandwidth = np.ascontiguousarray(bandwidth, np.uint64)
    n = len(bandwidth)
    request = ffi.new("struct pc_ring_request *", {"n": n, "budget": budget})
    stop = ffi.new("bool *", stopped)
    request.stop = stop
    request.bandwidth = ffi.from_buffer("uint64_t[]", bandwidth)
    if latency_ns is not None:
        latency_ns = np.ascontiguousarray(latency_ns, np.uint64)
        request.latency_ns = ffi.from_buffer("uint64_t[]", latency_ns)
    order = ffi.new("uint32_t[]", [CANARY] * n)
    quality = ffi.new("struct pc_ring_quality *")
    words = lib.pc_ring_order_bytes(n) // 8
    memory = ffi.new("uint64_t[]", words + 1)
    memory[words] = CANARY
    found = lib.pc_ring_order(request, order, quality, memory)
    assert memory[words] == CANARY
    if not found:
        assert list(order) == [CANARY] * n
        return None
    ring = Ring(tuple(order), quality.bottleneck, quality.latency_ns, bool(quality.widest))
    assert ring.order[0] == 0
    assert sorted(ring.order) == list(range(n))
    if n > 1:
        assert (ring.bottleneck, ring.latency_ns) == value(ring.order, bandwidth, latency_ns)
    return ring


def value(order, bandwidth, latency_ns) -> tuple[int, int]:
    edges = list(zip(order, (*order[1:], order[0]), strict=True))
    bottleneck = min(int(bandwidth[edge]) for edge in edges)
    if latency_ns is None:
        return bottleneck, 0
    return bottleneck, sum(min(int(latency_ns[edge]), LATENCY_MAX_NS) for edge in edges)


def brute_force(bandwidth, latency_ns):
    """The best (bottleneck, latency), and the first order that has it; None: there is no ring."""
    best = None
    for rest in itertools.permutations(range(1, len(bandwidth))):
        bottleneck, latency = value((0, *rest), bandwidth, latency_ns)
        if bottleneck > 0 and (best is None or (-bottleneck, latency) < best[0]):
            best = (-bottleneck, latency), (0, *rest)
    return best and ((-best[0][0], best[0][1]), best[1])


def table(bandwidth, latency_ns):
    """The same by sets of members visited, forwards, bottlenecks by trying each: unlike the solver in every way."""
    n = len(bandwidth)
    for least in sorted({int(x) for x in bandwidth.flat if x > 0}, reverse=True):
        ways = {(1, 0): 0}
        for _ in range(n - 1):
            longer: dict[tuple[int, int], int] = {}
            for (seen, at), so_far in ways.items():
                for to in range(n):
                    if not seen >> to & 1 and bandwidth[at, to] >= least:
                        key, latency = (seen | 1 << to, to), so_far + int(latency_ns[at, to])
                        longer[key] = min(longer.get(key, latency), latency)
            ways = longer
        rings = [sofar + int(latency_ns[at, 0]) for (_, at), sofar in ways.items() if bandwidth[at, 0] >= least]
        if rings:
            return least, min(rings)
    return None


@st.composite
def small_cases(draw):
    n = draw(st.integers(2, 6))
    values = draw(st.sampled_from([(0, 1), (0, 1, 2, 3), (1, 10, UINT64_MAX), tuple(range(100))]))
    bandwidth = np.array(draw(st.lists(st.sampled_from(values), min_size=n * n, max_size=n * n)), np.uint64)
    latencies = st.one_of(st.integers(0, 5), st.integers(0, LATENCY_MAX_NS))
    latency = draw(st.none() | st.lists(latencies, min_size=n * n, max_size=n * n))
    return bandwidth.reshape(n, n), None if latency is None else np.array(latency, np.uint64).reshape(n, n)


@settings(max_examples=250, deadline=None)
@given(small_cases())
def test_small_rings_are_the_first_of_the_best(case):
    bandwidth, latency = case
    best, ring = brute_force(bandwidth, latency), solve(bandwidth, latency, budget=0)
    assert (ring and ((ring.bottleneck, ring.latency_ns), ring.order)) == best
    assert ring is None or ring.widest


@pytest.mark.parametrize("n", [7, 8])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_eight_members_by_brute_force(n, zeros):
    rng = np.random.default_rng(n)
    bandwidth = rng.integers(1, 20, (n, n)) * (rng.random((n, n)) >= zeros)
    latency = rng.integers(0, 100, (n, n))
    best, ring = brute_force(bandwidth, latency), solve(bandwidth, latency)
    assert (ring and ((ring.bottleneck, ring.latency_ns), ring.order)) == best


@pytest.mark.parametrize("n", range(9, EXACT_MAX + 1))
@pytest.mark.parametrize("values", [2, 4, 1000])
def test_exact_up_to_twelve_members(n, values):
    rng = np.random.default_rng([n, values])
    bandwidth, latency = rng.integers(0, values, (n, n)), rng.integers(0, 1000, (n, n))
    ring = solve(bandwidth, latency, budget=0)
    assert (ring and (ring.bottleneck, ring.latency_ns)) == table(bandwidth, latency)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 13, 40, 64, 65, 200])
def test_alike_they_stay_in_order(n):
    assert solve(np.full((n, n), 7)).order == tuple(range(n))
    if n <= EXACT_MAX:
        assert solve(np.full((n, n), 7), np.full((n, n), 3)).order == tuple(range(n))


def test_two_members_need_both_directions():
    assert solve([[0, 5], [3, 0]]) == Ring((0, 1), 3, 0, True)
    assert solve([[9, 5], [0, 9]]) is None


def planted(n, seed, symmetric=False, more=3.0):
    """A ring of 900, and as many edges at random from 100 to 899 as give each member `more`, and below 100 the rest."""
    rng = np.random.default_rng([n, seed])
    bandwidth = rng.integers(1, 100, (n, n))
    fast = rng.random((n, n)) < more / n
    bandwidth[fast] = rng.integers(100, 900, fast.sum())
    if symmetric:
        bandwidth = np.maximum(bandwidth, bandwidth.T)
    ring = rng.permutation(n)
    for a, b in zip(ring, np.roll(ring, -1), strict=True):
        bandwidth[a, b] = 900
        if symmetric:
            bandwidth[b, a] = 900
    return bandwidth


@pytest.mark.parametrize("symmetric", [False, True], ids=["directed", "symmetric"])
@pytest.mark.parametrize("n", range(13, 65))
def test_planted_rings_are_found(n, symmetric):
    ring = solve(planted(n, 1, symmetric))
    assert (ring.bottleneck, ring.widest) == (900, True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [13, 32, 64])
def test_planted_among_edges_as_fast(n, seed):
    """Conclusions alone do not lead to the ring: other fast edges lead astray."""
    rng = np.random.default_rng([n, seed])
    bandwidth = planted(n, seed)
    bandwidth[rng.random((n, n)) < 3 / n] = 900
    ring = solve(bandwidth)
    assert (ring.bottleneck, ring.widest) == (900, True)


@pytest.mark.parametrize("n", [13, 24])
def test_agrees_with_the_exact_solver(n):
    """Twelve members of random bandwidths, and others that can only stand between two of them at full speed."""
    rng = np.random.default_rng(n)
    core = rng.integers(1, 1000, (EXACT_MAX, EXACT_MAX))
    exact = solve(core)
    bandwidth = np.zeros((n, n), np.int64)
    bandwidth[:EXACT_MAX, :EXACT_MAX] = core
    # A chain takes the place of member 0: edges enter it at 0 and leave it at its end.
    chain = [0, *range(EXACT_MAX, n)]
    bandwidth[0] = 0
    for a, b in itertools.pairwise(chain):
        bandwidth[a, b] = 5000
    bandwidth[chain[-1], :EXACT_MAX] = core[0]
    bandwidth[chain[-1], 0] = 0
    found = solve(bandwidth)
    assert (found.bottleneck, found.widest) == (exact.bottleneck, True)


def test_no_ring_among_many():
    n = 30
    one_way = np.triu(np.ones((n, n)), 1)  # nobody goes back
    assert solve(one_way) is None
    halves = np.kron(np.eye(2), np.ones((n // 2, n // 2)))
    assert solve(halves) is None
    halves[0, -1] = halves[-1, 0] = 1  # there and back through the same members
    assert solve(halves) is None
    halves[1, -2] = 1
    assert solve(halves).bottleneck == 1


def test_low_latency_among_rings_as_wide():
    """Members on a circle in disorder: the shortest ring follows it."""
    n = 48
    rng = np.random.default_rng(3)
    place = rng.permutation(n)
    apart = np.abs(place[:, None] - place)
    latency = np.minimum(apart, n - apart) * 1000
    ring = solve(np.full((n, n), 10), latency)
    assert (ring.bottleneck, ring.latency_ns) == (10, n * 1000)


def test_directed_latencies():
    n = 40
    rng = np.random.default_rng(4)
    latency = rng.integers(500, 1000, (n, n))
    ring = rng.permutation(n)
    latency[ring, np.roll(ring, -1)] = 1
    assert solve(np.full((n, n), 10), latency).latency_ns == n


def test_bandwidth_comes_before_latency():
    for n in (6, 20):
        bandwidth = np.full((n, n), 10)
        latency = np.ones((n, n))
        ring = (0, *range(2, n), 1)
        for a, b in zip(ring, (*ring[1:], 0), strict=True):
            bandwidth[a, b], latency[a, b] = 11, 10**6
        assert solve(bandwidth, latency) == Ring(ring, 11, n * 10**6, True)


def test_more_budget_is_no_worse():
    rng = np.random.default_rng(8)
    for n in (20, 40):
        bandwidth, latency = rng.integers(1, 5, (n, n)), rng.integers(1, 10**6, (n, n))
        few, many = solve(bandwidth, latency, 10**6), solve(bandwidth, latency, 10**7)
        assert few.bottleneck == many.bottleneck
        assert many.latency_ns <= few.latency_ns


def test_without_budget_it_gives_up():
    assert solve(planted(40, 1), budget=0) is None


def test_stopped_it_ends_with_what_it_has():
    """With a budget that would last for years; here that is nothing, for it was stopped before it began."""
    latency_ns = np.random.default_rng(5).integers(1, 1 << 30, (40, 40))
    assert solve(np.ones((40, 40)), latency_ns, UINT64_MAX, stopped=True) is None


@pytest.mark.parametrize("n", [11, 40])
def test_same_matrix_same_ring(n):
    rng = np.random.default_rng(n)
    bandwidth, latency = rng.integers(0, 50, (n, n)), rng.integers(0, 10**6, (n, n))
    assert solve(bandwidth, latency, 10**6) == solve(bandwidth, latency, 10**6)


def test_extreme_numbers():
    for n in (5, 20):
        ring = solve(np.full((n, n), UINT64_MAX, np.uint64), np.full((n, n), UINT64_MAX, np.uint64), 10**6)
        assert (ring.bottleneck, ring.latency_ns) == (UINT64_MAX, n * LATENCY_MAX_NS)


def test_a_thousand_members_with_some_pairs_apart():
    n = 1000
    rng = np.random.default_rng(1)
    usable = np.ones((n, n))
    a, b = rng.integers(0, n, (2, 3000))
    usable[a, b] = usable[b, a] = 0
    assert solve(usable).bottleneck == 1
