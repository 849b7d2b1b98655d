"""Whether plans fit the links: python bench/topology.py [--quick]

For each of some matrices of links, eight members: the time of collectives with the algorithm and the shares that the
cost model chooses, beside the best and the worst algorithm for that payload, and what is chosen without bandwidths.
Times come from bench/plan_model.py, which carries out the plans over a model of the network, not from a network: ratios
say whether the choice is right, milliseconds mean little. All use the ring that the solver finds.

Then the solver: rings of up to 12 members against a table over all sets, and rings of 64 members within the budget of
those that wait, against a search of a minute.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
from harness import save, size_text
from plan_model import ALGORITHMS, Network, carry_out, ffi, lib, shape_of

MEMBERS = 8
MBIT = 125  # bytes per ms
FAST_BYTES_PER_MS = 500_000
SIZES = tuple(1 << k for k in range(10, 28, 2))
OPS = ("all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter")
BUDGET = 1_200_000  # what the master spends while others wait
EXACT_MAX = 12


ALL = slice(None)


def pairs(value: float, *others: tuple[Any, Any, float]) -> Any:
    """A symmetric matrix of value, but for the others: (members, members, value)."""
    matrix = np.full((MEMBERS, MEMBERS), float(value))
    for one, two, other in others:
        matrix[one, two] = other
        matrix[two, one] = other
    return matrix


def network(rtt_ms: Any, bytes_per_ms: Any, loss: Any = 0.0) -> Network:
    """Uplinks and downlinks as fast as the fastest link over them."""
    links = np.array(bytes_per_ms, float)
    np.fill_diagonal(links, 0)
    return Network(np.array(rtt_ms, float), links, links.max(axis=1), links.max(axis=0), loss)


def even() -> Network:
    return network(pairs(0.2), pairs(1000 * MBIT))


def one_slow_node() -> Network:
    return network(pairs(10), pairs(1000 * MBIT, (5, ALL, 100 * MBIT)))


def one_slow_link() -> Network:
    return network(pairs(10), pairs(1000 * MBIT, (2, 5, 20 * MBIT)))


def two_sites() -> Network:
    here, there = slice(0, 4), slice(4, 8)
    return network(pairs(0.3, (here, there, 40)), pairs(10_000 * MBIT, (here, there, 100 * MBIT)))


def star() -> Network:
    """Members reach each other through the first one, which has a link as fast as theirs together."""
    return network(pairs(20, (0, ALL, 10)), pairs(150 * MBIT, (0, ALL, 1000 * MBIT)))


def asymmetric() -> Network:
    """Half of the members send at a tenth of the speed at which they receive."""
    links = pairs(1000 * MBIT)
    links[4:, :] = 100 * MBIT
    return network(pairs(30), links)


def lossy() -> Network:
    """One packet in a thousand is lost on the links of three members, which so reach what Mathis et al. say."""
    rtt_ms, loss = 50.0, 1e-3
    reached = 1.22 * 1448 / (rtt_ms * math.sqrt(loss))
    bad = slice(0, 3)
    return network(pairs(rtt_ms), pairs(500 * MBIT, (bad, ALL, reached)), pairs(0, (bad, ALL, loss)))


def long_fat() -> Network:
    return network(pairs(150), pairs(1000 * MBIT))


LINKS = (even, one_slow_node, one_slow_link, two_sites, star, asymmetric, lossy, long_fat)
NETWORKS = {links.__name__: links for links in LINKS}


# Choice --------------------------------------------------------------------------------------------------------


def bandwidth_class(bytes_per_ms: int) -> int:
    """What the master compares: three leading bits of what is below the speed of a host."""
    value = min(bytes_per_ms, FAST_BYTES_PER_MS)
    shift = max(value.bit_length() - 3, 0)
    return value >> shift << shift


def solved_ring(links: Network) -> list[int]:
    n = links.n
    bandwidth = np.vectorize(bandwidth_class, otypes=[np.uint64])(links.bytes_per_ms.astype(int))
    return solve(bandwidth, (links.rtt_ms * 500_000).astype(np.uint64))[0] if n > 2 else list(range(n))


class Model:
    def __init__(self, links: Network, ring: list[int]) -> None:
        n = links.n
        self.n, self.rtt_us = n, int(links.rtt_ms.max() * 1000)
        rtt = np.ascontiguousarray(links.rtt_ms * 1000, np.uint32)
        rate = np.ascontiguousarray(np.minimum(links.bytes_per_ms, FAST_BYTES_PER_MS), np.uint32)
        request = ffi.new("struct pc_cost_request *", {"n": n, "ring": (order := ffi.new("uint32_t[]", ring))})
        request.rtt_us = ffi.from_buffer("uint32_t[]", rtt)
        request.bytes_per_ms = ffi.from_buffer("uint32_t[]", rate)
        self._memory = ffi.new("uint64_t[]", lib.pc_cost_bytes(n) // 8)
        self.cost = lib.pc_cost_init(request, self._memory)
        del order

    def choice(self, op: str, size: int, known: bool = True) -> int:
        cost = self.cost if known else ffi.NULL
        return int(lib.pc_algorithm_choose(shape_of(op, size), self.n, self.rtt_us, cost))

    def shares(self, op: str, size: int) -> Any:
        return ffi.NULL if self.cost == ffi.NULL else lib.pc_cost_shares(self.cost, shape_of(op, size))


def compare(name: str, op: str, size: int) -> dict[str, Any]:
    links = NETWORKS[name]()
    ring = solved_ring(links)
    model = Model(links, ring)
    fixed = {}
    for algorithm, called in ALGORITHMS.items():
        if lib.pc_algorithm_fits(shape_of(op, size), algorithm):
            fixed[called] = carry_out(links, shape_of(op, size, algorithm), ring)
    chosen = model.choice(op, size)
    ours = carry_out(links, shape_of(op, size, chosen), ring, model.shares(op, size))
    blind = ALGORITHMS[model.choice(op, size, known=False)]
    return {
        "links": name, "op": op, "bytes": size, "ring": ring, "chosen": ALGORITHMS[chosen], "ms": round(ours, 4),
        "fixed_ms": {called: round(ms, 4) for called, ms in fixed.items()},
        "ratio": round(ours / min(fixed.values()), 4), "unknown_bandwidth": blind,
        "unknown_bandwidth_ratio": round(fixed[blind] / min(fixed.values()), 4),
    }  # fmt: skip


# Ring ----------------------------------------------------------------------------------------------------------


def solve(bandwidth: Any, latency_ns: Any = None, budget: int = BUDGET) -> tuple[list[int], int, bool, float]:
    """Order, bottleneck, whether it is proved the widest, and milliseconds."""
    n = len(bandwidth)
    bandwidth = np.ascontiguousarray(bandwidth, np.uint64)
    request = ffi.new("struct pc_ring_request *", {"n": n, "budget": budget})
    request.bandwidth = ffi.from_buffer("uint64_t[]", bandwidth)
    if latency_ns is not None:
        latency_ns = np.ascontiguousarray(latency_ns, np.uint64)
        request.latency_ns = ffi.from_buffer("uint64_t[]", latency_ns)
    order, quality = ffi.new("uint32_t[]", n), ffi.new("struct pc_ring_quality *")
    memory = ffi.new("uint64_t[]", lib.pc_ring_order_bytes(n) // 8)
    start = time.perf_counter()
    found = lib.pc_ring_order(request, order, quality, memory)
    took_ms = 1e3 * (time.perf_counter() - start)
    return (list(order) if found else []), int(quality.bottleneck), bool(quality.widest), took_ms


def best_of_all(bandwidth: Any) -> int:
    """The widest bottleneck by sets of members visited."""
    n = len(bandwidth)
    reached = np.zeros((1 << n, n), np.uint64)
    reached[1, 0] = np.iinfo(np.uint64).max
    for seen in range(1, 1 << n, 2):
        for at in np.flatnonzero(reached[seen]):
            for to in range(1, n):
                if not seen >> to & 1:
                    way = min(reached[seen, at], bandwidth[at, to])
                    reached[seen | 1 << to, to] = max(reached[seen | 1 << to, to], way)
    return max(int(min(reached[-1, at], bandwidth[at, 0])) for at in range(1, n))


def speeds(n: int, kind: str, seed: int) -> Any:
    rng = np.random.default_rng([n, seed])
    match kind:
        case "random":
            return rng.integers(1000, 10**6, (n, n)).astype(np.uint64)
        case "symmetric":
            half = np.triu(rng.integers(1000, 10**6, (n, n)), 1)
            return (half + half.T).astype(np.uint64)
        case "sites":  # four, with noise
            site = rng.integers(0, 4, n)
            base = np.where(site[:, None] == site, 10**6, 50_000)
            return (base * rng.uniform(0.5, 1, (n, n))).astype(np.uint64)
        case "planted":  # one ring of 900, and among the others some as fast, which lead astray
            bandwidth = rng.integers(1, 900, (n, n))
            bandwidth[rng.random((n, n)) < 3 / n] = 900
            ring = rng.permutation(n)
            bandwidth[ring, np.roll(ring, -1)] = 900
            return bandwidth.astype(np.uint64)
        case _:  # uplinks and downlinks of all kinds
            up, down = rng.integers(1000, 10**6, (2, n))
            return (np.minimum(up[:, None], down) * rng.uniform(0.7, 1, (n, n))).astype(np.uint64)


KINDS = ("random", "symmetric", "sites", "planted", "links of members")


def exact_rows(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for n in range(3, 9 if quick else EXACT_MAX + 1):
        for kind in KINDS:
            bandwidth = speeds(n, kind, 1)
            order, bottleneck, _, ms = solve(bandwidth)
            assert sorted(order) == list(range(n))
            row = {"ring": "exact", "members": n, "kind": kind, "bottleneck": bottleneck}
            rows.append({**row, "best": best_of_all(bandwidth), "ms": round(ms, 3)})
    return rows


def large_row(kind: str, seed: int, search_s: float) -> dict[str, Any]:
    """A search with more budget, twice as much each time, until it is proved or the time is over."""
    bandwidth = speeds(64, kind, seed)
    _, bottleneck, widest, ms = solve(bandwidth)
    latency_ns = np.random.default_rng(seed).integers(10**5, 10**8, (64, 64))
    *_, with_latency_ms = solve(bandwidth, latency_ns)
    best, proved, budget, start = bottleneck, widest, BUDGET, time.perf_counter()
    while not proved and time.perf_counter() - start < search_s:
        budget *= 2
        _, found, proved, _ = solve(bandwidth, budget=budget)
        best = max(best, found)
    return {
        "ring": "64", "kind": kind, "seed": seed, "bottleneck": bottleneck, "best": best, "proved": proved,
        "search_s": round(time.perf_counter() - start, 1), "ms": round(ms, 2),
        "with_latency_ms": round(with_latency_ms, 2),
    }  # fmt: skip


def text(row: dict[str, Any]) -> str:
    what = f"{row['links']:14} {row['op']:10} {size_text(row['bytes']):>8}"
    chosen = f"{row['chosen']:8} {row['ms']:10.3f} ms, {row['ratio']:.3f} of the best"
    blind = f"{row['unknown_bandwidth']:8} {row['unknown_bandwidth_ratio']:.3f}"
    return f"{what}: {chosen}; else {blind}; {row['fixed_ms']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few payloads, few rings")
    parser.add_argument("--links", default=",".join(NETWORKS))
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--search-s", type=float, default=60.0)
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    sizes = SIZES[:7:3] if arguments.quick else SIZES
    rows: list[dict[str, Any]] = []
    for name in arguments.links.split(","):
        for op in arguments.ops.split(","):
            for size in sizes:
                row = compare(name, op, size)
                rows.append(row)
                print(text(row), flush=True)
    rings = exact_rows(arguments.quick)
    seeds = 1 if arguments.quick else 3
    rings += [large_row(kind, seed, arguments.search_s) for kind in KINDS for seed in range(seeds)]
    for row in rings:
        print(f"ring: {row}", flush=True)
    print(f"worst ratio {max(row['ratio'] for row in rows):.3f}")
    if arguments.output != "none":
        save("topology", arguments, [*rows, *rings], arguments.output)


if __name__ == "__main__":
    main()
