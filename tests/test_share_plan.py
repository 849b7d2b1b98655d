"""Shares against the formula in Python's integers: every element once, whole blocks, in proportion to the weights."""

from __future__ import annotations

import itertools

import c_level
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

lib = c_level.load(
    """
    struct pc_share_request { uint32_t n; const uint64_t *weights; uint64_t count_elems; uint32_t block_elems; };
    void pc_share_plan(const struct pc_share_request *request, uint64_t *borders);
    """,
    only=("base", "bytes", "math", "plan", "wire"),
)
ffi = lib.ffi
UINT64_MAX = (1 << 64) - 1
CANARY = 0xC0FFEE


def borders_of(count: int, weights: list[int] | int, block: int = 1) -> list[int]:
    """weights: a list, or the number of members when there are none."""
    n = weights if isinstance(weights, int) else len(weights)
    array = ffi.NULL if isinstance(weights, int) else ffi.new("uint64_t[]", weights)
    request = ffi.new("struct pc_share_request *", {"n": n, "count_elems": count, "block_elems": block})
    request.weights = array
    borders = ffi.new("uint64_t[]", [CANARY] * (n + 2))
    lib.pc_share_plan(request, borders)
    assert borders[n + 1] == CANARY
    return list(borders)[: n + 1]


def sizes_of(*arguments) -> list[int]:
    borders = borders_of(*arguments)
    return [after - before for before, after in itertools.pairwise(borders)]


weights_lists = st.lists(st.one_of(st.just(0), st.integers(0, 10), st.integers(0, UINT64_MAX)), min_size=1, max_size=40)
counts = st.one_of(st.integers(0, 100), st.integers(0, UINT64_MAX))
blocks = st.one_of(st.sampled_from([1, 2, 64, 256, 4096]), st.integers(1, (1 << 32) - 1))


@settings(max_examples=400, deadline=None)
@given(counts, weights_lists, blocks)
@example(UINT64_MAX, [UINT64_MAX] * 40, 1)
@example(UINT64_MAX, [0, UINT64_MAX, 1, 0], 4096)
@example(UINT64_MAX, [1, 0], (1 << 32) - 1)
def test_borders_are_the_formula(count, weights, block):
    total = sum(weights)
    due = weights if total > 0 else [1] * len(weights)
    count_blocks = -(-count // block)
    borders = borders_of(count, weights, block)
    assert borders == [min(count, block * (count_blocks * sum(due[:i]) // sum(due))) for i in range(len(weights) + 1)]
    # What follows from it, told in words.
    assert (borders[0], borders[-1]) == (0, count)
    assert borders == sorted(borders)
    for i, weight in enumerate(due):
        size = borders[i + 1] - borders[i]
        assert borders[i] % block == 0 or borders[i] == count
        assert weight > 0 or size == 0
        assert abs(size * sum(due) - count * weight) <= 2 * block * sum(due)


@pytest.mark.parametrize("n", range(1, 20))
def test_alike_means_even(n):
    for count in range(60):
        expected = sizes_of(count, n)
        assert max(expected) - min(expected) <= 1
        assert expected == sizes_of(count, [0] * n) == sizes_of(count, [7] * n) == sizes_of(count, [UINT64_MAX] * n)


def test_in_proportion():
    assert sizes_of(1000, [1, 2, 5, 2]) == [100, 200, 500, 200]
    assert sizes_of(1 << 40, [10**9, 3 * 10**9]) == [1 << 38, 3 << 38]
    assert sizes_of(1 << 60, [1 << 62, 1 << 63, 1 << 62, 0]) == [1 << 58, 1 << 59, 1 << 58, 0]


def test_blocks_stay_whole():
    assert sizes_of(1000, [1, 1, 1], 256) == [256, 256, 488]
    assert sizes_of(1000, [1, 1, 0], 256) == [512, 488, 0]
    assert sizes_of(100, [1, 1, 1, 1], 256) == [0, 0, 0, 100]
    assert sizes_of(0, [1, 1], 256) == [0, 0]
