"""Numbers, sizes and names of element types and operators."""

from __future__ import annotations

import c_level
import numpy as np
import pytest

NAMES = (
    "uint8",
    "int8",
    "int16",
    "uint16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)
OPS = ("sum", "avg", "prod", "max", "min", "band", "bor", "bxor")

lib = c_level.load(
    """
    bool pc_dtype_valid(uint32_t dtype);
    bool pc_redop_valid(uint32_t redop);
    size_t pc_dtype_bytes(int dtype);
    const char *pc_dtype_name(int dtype);
    const char *pc_redop_name(int redop);
    int pc_dtype_accumulator(int dtype);
    """,
    only=("base", "bytes", "math"),
)


def text(pointer: object) -> str:
    found = lib.ffi.string(pointer)
    assert isinstance(found, bytes)
    return found.decode()


@pytest.mark.parametrize("number", range(12))
def test_dtype_table(number: int) -> None:
    name = NAMES[number]
    assert lib.pc_dtype_valid(number)
    assert text(lib.pc_dtype_name(number)) == name
    assert lib.pc_dtype_bytes(number) == (2 if name == "bfloat16" else np.dtype(name).itemsize)
    assert lib.pc_dtype_accumulator(number) == (10 if name in ("float16", "bfloat16") else number)


@pytest.mark.parametrize("number", range(5))
def test_redop_table(number: int) -> None:
    assert lib.pc_redop_valid(number)
    assert text(lib.pc_redop_name(number)) == OPS[number]


@pytest.mark.parametrize("number", [12, 13, 255, 2**31 - 1])
def test_unknown_dtype(number: int) -> None:
    assert not lib.pc_dtype_valid(number)
    assert lib.pc_dtype_bytes(number) == 0
    assert text(lib.pc_dtype_name(number)) == "unknown"


@pytest.mark.parametrize("number", [8, 9, 255, 2**31 - 1])
def test_unknown_redop(number: int) -> None:
    assert not lib.pc_redop_valid(number)
    assert text(lib.pc_redop_name(number)) == "unknown"


def test_validity_takes_the_whole_word() -> None:
    assert not lib.pc_dtype_valid(2**32 - 1)
    assert not lib.pc_redop_valid(2**32 - 1)
    assert not lib.pc_dtype_valid(2**31)
