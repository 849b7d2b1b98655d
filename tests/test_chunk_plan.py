"""The plans of collectives, executed symbolically: who sends what to whom fits together at all ranks, every result
holds each contribution once, in one order, and chunks and segments cover the payload once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from c_level import load

lib = load(
    """
    struct pc_op_shape {
        uint64_t count, layout; uint32_t root; uint8_t collective, dtype, redop, consistency, algorithm;
        uint8_t codec, codec_bits; uint32_t codec_block;
    };
    struct pc_codec { uint8_t kind, bits; bool stochastic, finite_only; uint32_t block; };
    size_t pc_codec_bytes_max(const struct pc_codec *codec, int dtype, size_t count);
    struct pc_chunk {
        uint32_t number, segments, segment_elems; uint64_t elems, own_elem, out_elem; bool kept;
        uint32_t inputs_at, input_count, copies_at, copy_count, down_at, down_count, up, from;
    };
    struct pc_chunk_plan {
        uint32_t n, rank, chunk_count, rank_count; struct pc_chunk *chunks; uint32_t *ranks;
        uint32_t elem_bytes, acc_bytes;
        struct pc_codec codec;
        uint32_t ahead;
    };
    struct pc_plan_request {
        const struct pc_op_shape *shape; uint32_t n, rank; const uint32_t *ring; uint64_t count;
        const uint64_t *counts, *recv_counts; uint32_t source, target, rtt_us;
        const uint32_t *shares;
    };
    struct pc_range { uint64_t first_elem; uint32_t elems; };
    size_t pc_chunk_plan_bytes(uint32_t n);
    int pc_chunk_plan_init(struct pc_chunk_plan *plan, const struct pc_plan_request *request, void *memory);
    struct pc_range pc_chunk_segment(const struct pc_chunk *chunk, uint32_t segment);
    bool pc_algorithm_fits(const struct pc_op_shape *shape, uint8_t algorithm);
    uint8_t pc_algorithm_choose(const struct pc_op_shape *shape, uint32_t n, uint32_t rtt_us, const void *cost);
    """,
    only=("base", "bytes", "wire", "math", "plan"),
)
ffi = lib.ffi
ALL_REDUCE, BROADCAST, REDUCE, ALL_GATHER, REDUCE_SCATTER, GATHER, SCATTER, ALL_TO_ALL, SEND_RECV = range(9)
NAMES = ("all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter", "gather", "scatter", "all_to_all", "send")
ALGORITHMS = {1: "ring", 2: "tree", 3: "direct", 4: "exchange"}
NONE = 2**32 - 1
FLOAT = 10


class Plan:
    """One rank's plan, as Python values."""

    def __init__(self, collective: int, algorithm: int, n: int, rank: int, count: int, **more: Any) -> None:
        shape = ffi.new("struct pc_op_shape *")
        shape.collective, shape.algorithm, shape.dtype = collective, algorithm, FLOAT
        shape.count, shape.root = count, more.get("root", 0)
        shape.codec, shape.codec_block = more.get("codec", (0, 0))
        request = ffi.new("struct pc_plan_request *")
        ring = ffi.new("uint32_t[]", list(more.get("ring", range(n))))
        request.shape, request.n, request.rank, request.ring, request.count = shape, n, rank, ring, count
        counts, back = more.get("counts"), more.get("recv_counts")
        kept = [ffi.new("uint64_t[]", list(values)) for values in (counts, back) if values is not None]
        request.counts = kept[0] if counts is not None else ffi.NULL
        request.recv_counts = kept[-1] if back is not None else ffi.NULL
        request.source, request.target = more.get("source", 0), more.get("target", 0)
        request.rtt_us = more.get("rtt_us", 0)
        self._memory = ffi.new("uint64_t[]", lib.pc_chunk_plan_bytes(n) // 8 + 1)
        plan = ffi.new("struct pc_chunk_plan *")
        self.status = lib.pc_chunk_plan_init(plan, request, self._memory)
        if self.status != 0:
            return

        self.ahead = plan.ahead

        def listed(at: int, length: int) -> list[int]:
            return [plan.ranks[at + i] for i in range(length)]

        self.chunks = []
        for i in range(plan.chunk_count):
            chunk = plan.chunks[i]
            self.chunks.append(
                {
                    "number": chunk.number, "elems": chunk.elems, "own": chunk.own_elem, "out": chunk.out_elem,
                    "kept": chunk.kept, "up": chunk.up, "from": chunk.__getattribute__("from"),
                    "inputs": listed(chunk.inputs_at, chunk.input_count),
                    "copies": listed(chunk.copies_at, chunk.copy_count),
                    "down": listed(chunk.down_at, chunk.down_count), "segments": chunk.segments,
                    "segment_elems": chunk.segment_elems,
                }
            )  # fmt: skip
            self.check_segments(chunk)

    @staticmethod
    def check_segments(chunk: Any) -> None:
        at = 0
        for segment in range(chunk.segments):
            part = lib.pc_chunk_segment(ffi.addressof(chunk), segment)
            assert part.first_elem == at
            assert part.elems > 0 or chunk.elems == 0
            at += part.elems
        assert at == chunk.elems


def execute(plans: Sequence[Plan]) -> list[dict[int, tuple[Any, int, int]]]:
    """For each rank: where in its receive buffer -> (what is there, from which element, how many). What: the tuple of
    contributors, in the order of addition."""
    n = len(plans)
    partial: dict[tuple[int, int, int], tuple[int, ...]] = {}  # sender, receiver, number -> contributors
    final: dict[tuple[int, int, int], Any] = {}
    results: list[dict[int, tuple[Any, int, int]]] = [{} for _ in range(n)]
    sizes: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    todo = [(rank, chunk) for rank in range(n) for chunk in plans[rank].chunks]
    for rank, chunk in todo:
        size = (chunk["elems"], chunk["segments"], chunk["segment_elems"])
        for receiver in [*chunk["copies"], *chunk["down"], *([chunk["up"]] if chunk["up"] != NONE else [])]:
            sizes[rank, receiver, chunk["number"]] = size
        for receiver in chunk["copies"]:
            partial[rank, receiver, chunk["number"]] = (rank,)
    progress = True
    while todo and progress:
        progress = False
        for item in list(todo):
            rank, chunk = item
            number = chunk["number"]
            if chunk["inputs"]:
                ways = [(sender, rank, number) for sender in chunk["inputs"] if sender != rank]
                if any(way not in partial for way in ways):
                    continue
                value = tuple(
                    part for s in chunk["inputs"] for part in ((rank,) if s == rank else partial[s, rank, number])
                )
                for way in ways:
                    assert sizes[way] == (chunk["elems"], chunk["segments"], chunk["segment_elems"])
                if chunk["up"] != NONE and (rank, chunk["up"], number) not in partial:
                    partial[rank, chunk["up"], number] = value
                    progress = True
            if chunk["from"] != NONE:
                way = (chunk["from"], rank, number)
                if way not in final:
                    # What goes up does not wait for what comes down.
                    continue
                assert sizes[way] == (chunk["elems"], chunk["segments"], chunk["segment_elems"])
                value = final[way]
            elif chunk["up"] != NONE:
                todo.remove(item)
                progress = True
                continue
            for receiver in chunk["down"]:
                final[rank, receiver, number] = value
            if chunk["kept"]:
                assert chunk["out"] not in results[rank] or chunk["elems"] == 0
                if chunk["elems"] > 0:
                    results[rank][chunk["out"]] = (value, chunk["own"], chunk["elems"])
            todo.remove(item)
            progress = True
    assert not todo, "some chunks wait for what nobody sends"
    return results


def covers(result: dict[int, tuple[Any, int, int]], count: int) -> bool:
    at = 0
    for out in sorted(result):
        if out != at:
            return False
        at += result[out][2]
    return at == count


def rings(n: int) -> list[list[int]]:
    mixed = list(range(n))
    random.Random(n).shuffle(mixed)
    return [list(range(n)), mixed]


def counts_for(n: int) -> list[int]:
    return sorted({0, 1, 2, max(0, n - 1), n, n + 1, 100, 70_000})


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=ALGORITHMS.get)
@pytest.mark.parametrize("n", range(1, 34))
def test_all_reduce(n: int, algorithm: int) -> None:
    for ring in rings(n):
        for count in counts_for(n):
            results = execute([Plan(ALL_REDUCE, algorithm, n, rank, count, ring=ring) for rank in range(n)])
            for result in results:
                assert covers(result, count)
                for out, (value, own, _) in result.items():
                    assert out == own
                    assert sorted(value) == list(range(n))
                    assert value == results[0][out][0]  # one order at all members


@pytest.mark.parametrize("algorithm", [1, 2, 3], ids=ALGORITHMS.get)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 16, 33])
def test_rooted(n: int, algorithm: int) -> None:
    for root in {0, n // 2, n - 1}:
        for count in (0, 1, 100, 70_000):
            options = {"root": root, "ring": rings(n)[1]}
            down = execute([Plan(BROADCAST, algorithm, n, rank, count, **options) for rank in range(n)])
            assert all(covers(result, count) for result in down)
            assert {value for result in down for value, _, _ in result.values()} <= {(root,)}
            up = execute([Plan(REDUCE, algorithm, n, rank, count, **options) for rank in range(n)])
            assert covers(up[root], count)
            assert all(sorted(value) == list(range(n)) for value, _, _ in up[root].values())
            assert not any(up[rank] for rank in range(n) if rank != root)


@pytest.mark.parametrize("algorithm", [1, 3], ids=ALGORITHMS.get)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 33])
def test_blocks_of_all(n: int, algorithm: int) -> None:
    for counts in ([3] * n, [7 * r for r in range(n)], [0] * n):
        even = len(set(counts)) == 1
        options = {"ring": rings(n)[1], "counts": None if even else counts}
        gathered = execute([Plan(ALL_GATHER, algorithm, n, rank, counts[0], **options) for rank in range(n)])
        scattered = execute([Plan(REDUCE_SCATTER, algorithm, n, rank, counts[0], **options) for rank in range(n)])
        for rank in range(n):
            assert covers(gathered[rank], sum(counts))
            for out, (value, _, elems) in gathered[rank].items():
                (owner,) = value
                assert (out, elems) == (sum(counts[:owner]), counts[owner])
            if counts[rank] > 0:
                assert list(scattered[rank]) == [0]
                value, own, elems = scattered[rank][0]
                assert (sorted(value), own, elems) == (list(range(n)), sum(counts[:rank]), counts[rank])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 33])
def test_blocks_between_two(n: int) -> None:
    for root in {0, n - 1}:
        counts = [5 * r for r in range(n)]
        gather = [
            Plan(GATHER, 3, n, rank, counts[rank], root=root, counts=counts if rank == root else None)
            for rank in range(n)
        ]
        result = execute(gather)[root]
        assert covers(result, sum(counts))
        assert all((out, elems) == (sum(counts[: v[0]]), counts[v[0]]) for out, (v, _, elems) in result.items())
        scatter = [
            Plan(SCATTER, 3, n, rank, counts[rank], root=root, counts=counts if rank == root else None)
            for rank in range(n)
        ]
        for rank, found in enumerate(execute(scatter)):
            assert covers(found, counts[rank])
            assert all(value == (root,) for value, _, _ in found.values())

    def size(source: int, target: int) -> int:
        return (3 * source + target) % 5

    plans = [
        Plan(
            ALL_TO_ALL, 3, n, rank, 0, counts=[size(rank, t) for t in range(n)],
            recv_counts=[size(s, rank) for s in range(n)],
        ) for rank in range(n)
    ]  # fmt: skip
    for rank, found in enumerate(execute(plans)):
        assert covers(found, sum(size(s, rank) for s in range(n)))
        for out, ((source,), _, elems) in found.items():
            assert (out, elems) == (sum(size(s, rank) for s in range(source)), size(source, rank))


def test_send() -> None:
    plans = [Plan(SEND_RECV, 3, 4, rank, 1000, source=1, target=3) for rank in (1, 3)]
    assert plans[0].chunks[0]["down"] == [3]
    assert plans[1].chunks[0]["from"] == 1
    assert [plan.chunks[0]["kept"] for plan in plans] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0}, {"rank": 5}, {"collective": 9}, {"algorithm": 5}, {"count": 2**62},
        {"collective": BROADCAST, "root": 4}, {"collective": SEND_RECV, "source": 1, "target": 1},
        {"collective": SEND_RECV, "source": 9, "target": 1}, {"collective": ALL_GATHER, "counts": [2**61] * 4},
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    request: dict[str, Any] = {"collective": ALL_REDUCE, "algorithm": 1, "n": 4, "rank": 0, "count": 10, **wrong}
    assert Plan(**request).status == 3


@pytest.mark.parametrize("n", range(2, 34))
def test_ring_adds_in_order_and_loads_links_evenly(n: int) -> None:
    """Part p is added from position p of the ring on; over its 2(n-1) hops, every link carries all parts but two."""
    ring, count = rings(n)[1], 1000 * n
    plans = [Plan(ALL_REDUCE, 1, n, rank, count, ring=ring) for rank in range(n)]
    for result in execute(plans):
        for part in range(n):
            value, _, elems = result[1000 * part]
            assert (value, elems) == (tuple(ring[part:] + ring[:part]), 1000)
    for position, rank in enumerate(ring):
        follower = ring[(position + 1) % n]
        chunks = plans[rank].chunks
        assert {chunk["up"] for chunk in chunks} | {to for chunk in chunks for to in chunk["down"]} == {follower, NONE}
        assert sum(chunk["up"] == follower for chunk in chunks) == n - 1
        assert sum(chunk["down"] == [follower] for chunk in chunks) == n - 1


@pytest.mark.parametrize(
    ("count", "n", "rtt_us", "expected"),
    [
        (10, 2, 30, "exchange"), (1000, 8, 30, "exchange"), (1000, 9, 30, "tree"), (10_000, 4, 30, "tree"),
        (10_000, 2, 30, "ring"), (10**7, 8, 30, "ring"), (10, 8, 50_000, "exchange"), (10**6, 8, 50_000, "direct"),
        (10**8, 2, 0, "ring"),
    ],
)  # fmt: skip
def test_choice(count: int, n: int, rtt_us: int, expected: str) -> None:
    shape = ffi.new("struct pc_op_shape *", {"count": count, "dtype": FLOAT})
    assert ALGORITHMS[lib.pc_algorithm_choose(shape, n, rtt_us, ffi.NULL)] == expected


@pytest.mark.parametrize("collective", range(9), ids=NAMES)
def test_what_is_chosen_fits(collective: int) -> None:
    for count in (0, 1, 1000, 10**5, 10**7, 10**9):
        for n in (2, 3, 8, 64):
            for rtt_us in (0, 100, 100_000):
                shape = ffi.new("struct pc_op_shape *", {"count": count, "dtype": FLOAT, "collective": collective})
                assert lib.pc_algorithm_fits(shape, lib.pc_algorithm_choose(shape, n, rtt_us, ffi.NULL))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=ALGORITHMS.get)
def test_every_count_is_covered_once(algorithm: int) -> None:
    for n in range(1, 34):
        for count in range(101):
            at = 0
            for chunk in Plan(ALL_REDUCE, algorithm, n, n - 1, count).chunks:
                assert chunk["own"] == chunk["out"] == at
                at += chunk["elems"]
            assert at == count


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=ALGORITHMS.get)
@pytest.mark.parametrize(("codec", "block"), [(18, 256), (19, 32), (22, 4096)])
def test_borders_lie_between_blocks_of_a_codec(codec: int, block: int, algorithm: int) -> None:
    for n in (1, 2, 3, 5, 8):
        for count in (0, 1, block, block * n - 1, 300_007):
            plans = [Plan(ALL_REDUCE, algorithm, n, rank, count, codec=(codec, block)) for rank in range(n)]
            assert all(covers(result, count) for result in execute(plans))
            for chunk in plans[0].chunks:
                assert chunk["own"] % block == 0 or chunk["elems"] == 0
                assert chunk["segment_elems"] % block == 0
                # As it is, with its headers, a segment fits into its staging memory.
                made = ffi.new("struct pc_codec *", {"kind": codec, "block": block})
                assert lib.pc_codec_bytes_max(made, FLOAT, chunk["segment_elems"]) <= 256 << 10


def test_contributions_keep_near_their_final_values() -> None:
    """A few segments and what is on the way meanwhile; far away, all that there is room for."""

    def ahead(rtt_us: int, n: int = 2, what: int = ALL_REDUCE, algorithm: int = 3, codec: int = 18) -> int:
        coded = (codec, 256 if codec else 0)
        return int(Plan(what, algorithm, n, 0, 10_000_000, codec=coded, rtt_us=rtt_us).ahead)

    assert [ahead(0, n) for n in (1, 2, 5)] == [0, 4, 16]
    assert ahead(1000) > 4 + 1000 * 4000 // (64 << 10)
    assert ahead(2000) == 0
    assert [ahead(0, algorithm=algorithm) for algorithm in (1, 2)] == [0, 0]
    assert [ahead(0, what=what) for what in (REDUCE, REDUCE_SCATTER)] == [0, 0]
    assert ahead(0, codec=0) == 0


def test_codecs_go_by_few_hops() -> None:
    for count in (1, 1000, 10_000_000):
        for n in (2, 4, 16):
            for rtt_us in (0, 50_000):
                shape = ffi.new(
                    "struct pc_op_shape *", {"count": count, "dtype": FLOAT, "codec": 18, "codec_block": 256}
                )
                assert ALGORITHMS[lib.pc_algorithm_choose(shape, n, rtt_us, ffi.NULL)] == "direct"
                shape.codec, shape.codec_block = 22, 4096
                assert ALGORITHMS[lib.pc_algorithm_choose(shape, n, rtt_us, ffi.NULL)] == "exchange"
                assert not lib.pc_algorithm_fits(shape, 1)
