"""Numbers in sixteen bits: exact where small, close everywhere, in order."""

from __future__ import annotations

import c_level
from hypothesis import given
from hypothesis import strategies as st

lib = c_level.load(
    "uint16_t pack(uint32_t value); uint32_t unpack(uint16_t code);",
    only=("base",),
    extra="""
    #include "bytes/log16.h"
    uint16_t pack(uint32_t value);
    uint32_t unpack(uint16_t code);
    uint16_t pack(uint32_t value) { return pc_log16_of(value); }
    uint32_t unpack(uint16_t code) { return pc_log16_value(code); }
    """,
)
NUMBERS = st.integers(0, 2**32 - 1) | st.integers(0, 32).map(lambda shift: max((1 << shift) - 1, 0))


def test_small_numbers_are_exact():
    assert [lib.unpack(lib.pack(value)) for value in range(2049)] == list(range(2049))
    assert lib.unpack(lib.pack(2049)) == 2048


@given(NUMBERS)
def test_close_and_from_below(value):
    back = lib.unpack(lib.pack(value))
    assert value * 1023 / 1024 <= back <= value
    assert lib.pack(back) == lib.pack(value)


@given(NUMBERS, NUMBERS)
def test_order_is_kept(a, b):
    assert (lib.pack(a) <= lib.pack(b)) or a > b


def test_any_code_is_a_number():
    values = [lib.unpack(code) for code in range(1 << 16)]
    assert values == sorted(values)
    assert values[-1] == 2**32 - 1
