"""Reduction kernels against NumPy: every type, operator and SIMD level, and the same bytes from each level."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import c_level
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]

HALF_SOURCE = """
#include "math/half.h"
#include <stddef.h>
void widen_f16(const uint16_t *in, float *out, size_t n) { for (; n > 0; n--) *out++ = pc_half_widen_f16(*in++); }
void widen_bf16(const uint16_t *in, float *out, size_t n) { for (; n > 0; n--) *out++ = pc_half_widen_bf16(*in++); }
void narrow_f16(const float *in, uint16_t *out, size_t n) { for (; n > 0; n--) *out++ = pc_half_narrow_f16(*in++); }
void narrow_bf16(const float *in, uint16_t *out, size_t n) { for (; n > 0; n--) *out++ = pc_half_narrow_bf16(*in++); }
#if defined(__x86_64__)
#include <immintrin.h>
/* No compiler that we use can ask for F16C by name in every version; all processors with AVX2 have it. */
int has_f16c(void) { return __builtin_cpu_supports("avx2") != 0; }
__attribute__((target("avx,f16c"))) void machine_widen_f16(const uint16_t *in, float *out, size_t n) {
    for (; n > 0; n--) *out++ = _cvtsh_ss(*in++);
}
__attribute__((target("avx,f16c"))) void machine_narrow_f16(const float *in, uint16_t *out, size_t n) {
    for (; n > 0; n--) *out++ = _cvtss_sh(*in++, 0);
}
#endif
"""

CDEF = """
int pc_reduce_level(void);
int pc_reduce_force_level(int level);
void pc_reduce_accumulate(int dtype, int op, void *acc, const void *own, size_t count);
void pc_reduce_finish(int dtype, int op, void *out, const void *acc, const void *own, size_t count,
                      uint64_t total_weight);
void pc_reduce_narrow(int dtype, int op, void *out, const void *acc, size_t count, uint64_t total_weight);
void pc_reduce_scale(int dtype, void *acc, size_t count, double factor);
void pc_reduce_widen(int dtype, void *acc, const void *own, size_t count);
void widen_f16(const uint16_t *in, float *out, size_t n);
void widen_bf16(const uint16_t *in, float *out, size_t n);
void narrow_f16(const float *in, uint16_t *out, size_t n);
void narrow_bf16(const float *in, uint16_t *out, size_t n);
int has_f16c(void);
void machine_widen_f16(const uint16_t *in, float *out, size_t n);
void machine_narrow_f16(const float *in, uint16_t *out, size_t n);
"""

lib = c_level.load(CDEF, only=("base", "bytes", "math"), extra=HALF_SOURCE)
ffi = lib.ffi
BEST = int(lib.pc_reduce_force_level(-1))
F16C = platform.machine() == "x86_64" and bool(lib.has_f16c())

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [
    np.dtype(name) for name in ("uint8", "int8", "int16", "uint16", "uint32", "int32", "uint64", "int64", "float16")
] + [BF16, np.dtype("float32"), np.dtype("float64")]
OPS = ("sum", "avg", "prod", "max", "min", "band", "bor", "bxor")
BITWISE = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
SIZES = (0, 1, 3, 7, 64, 1000, 1037)
OFFSETS = ((0, 0, 0), (1, 3, 5), (2, 2, 2), (7, 0, 1))
NAN_BITS = {
    np.dtype("float16"): 0x7E00,
    BF16: 0x7FC0,
    np.dtype("float32"): 0x7FC00000,
    np.dtype("float64"): 0x7FF8000000000000,
}
GUARD = b"\xc3" * 64


def is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu"


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype("float32") if dtype.itemsize == 2 and not is_integer(dtype) else dtype


def bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


def sample(dtype: np.dtype[Any], count: int, seed: int) -> Array:
    """Half plain numbers, half arbitrary bits: of a float these are NaNs with payloads, infinities, subnormals."""
    rng = np.random.default_rng([seed, count, dtype.num])
    wild = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)
    if is_integer(dtype):
        return wild
    with np.errstate(all="ignore"):
        plain = rng.normal(0, 100, count).astype(dtype)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], np.float64).astype(dtype)
    small = np.array([1, 2, 3], f"u{dtype.itemsize}").view(dtype)
    special = np.concatenate([special, small, -small])[rng.integers(0, len(special) + 6, count)]
    kind = rng.integers(0, 4, count)
    return np.where(kind < 2, plain, np.where(kind == 2, wild, special))


class Buffer:
    """An array's bytes at a chosen distance from an aligned address, between guards."""

    def __init__(self, array: Array, offset: int) -> None:
        self.dtype, self.len_bytes, self.start = array.dtype, array.nbytes, len(GUARD) + offset
        self.memory = bytearray(GUARD + b"\xc3" * offset + array.tobytes() + GUARD)
        self.pointer = ffi.from_buffer(self.memory) + self.start

    def read(self) -> Array:
        end = self.start + self.len_bytes
        assert self.memory[: self.start] == b"\xc3" * self.start
        assert self.memory[end:] == GUARD
        return np.frombuffer(bytes(self.memory[self.start : end]), self.dtype)


def reference(op: str, acc: Array, own: Array, world_size: int) -> Array:
    """In the accumulator's type, by NumPy."""
    wide = own.astype(acc.dtype)
    with np.errstate(all="ignore"):
        if op in BITWISE:
            return np.asarray(BITWISE[op](acc, wide))
        if op == "prod":
            return np.asarray(acc * wide)
        if op in ("min", "max"):
            found = np.minimum(acc, wide) if op == "min" else np.maximum(acc, wide)
            # NumPy leaves open which of two zeros it returns; ours is the accumulated one.
            return np.asarray(np.where(acc == wide, acc, found))
        total = np.asarray(acc + wide)
        if op == "sum":
            return total
        if not is_integer(acc.dtype):
            return np.asarray(total / acc.dtype.type(world_size))
        exact = [abs(int(x)) // world_size * (-1 if x < 0 else 1) for x in total]
        return np.array(exact, acc.dtype)


def assert_same(got: Array, expected: Array) -> None:
    assert got.dtype == expected.dtype
    if not is_integer(got.dtype):
        nan = np.isnan(expected)
        assert set(bits(got[nan]).tolist()) <= {NAN_BITS[got.dtype]}
        got, expected = got[~nan], expected[~nan]
    np.testing.assert_array_equal(bits(got), bits(expected))


@pytest.fixture(params=range(BEST + 1))
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    assert lib.pc_reduce_force_level(request.param) == request.param
    yield request.param
    lib.pc_reduce_force_level(-1)


PAIRS = [(dtype, op) for dtype in DTYPES for op in OPS if op not in BITWISE or is_integer(dtype)]
for_each_pair = pytest.mark.parametrize(("dtype", "op"), PAIRS, ids=lambda value: str(value))


def inputs(dtype: np.dtype[Any], count: int) -> tuple[Array, Array]:
    return sample(accumulator(dtype), count, 1), sample(dtype, count, 2)


@for_each_pair
def test_accumulate(level: int, dtype: np.dtype[Any], op: str) -> None:
    for count in SIZES:
        acc, own = inputs(dtype, count)
        expected = reference("sum" if op == "avg" else op, acc, own, 1)
        for acc_offset, own_offset, _ in OFFSETS:
            to, source = Buffer(acc, acc_offset), Buffer(own, own_offset)
            lib.pc_reduce_accumulate(DTYPES.index(dtype), OPS.index(op), to.pointer, source.pointer, count)
            assert_same(to.read(), expected)
            assert source.read().tobytes() == own.tobytes()


@for_each_pair
def test_finish(level: int, dtype: np.dtype[Any], op: str) -> None:
    for count in SIZES:
        acc, own = inputs(dtype, count)
        for world_size in (1, 3, 300) if op == "avg" else (3,):
            with np.errstate(all="ignore"):
                expected = reference(op, acc, own, world_size).astype(dtype)
            for acc_offset, own_offset, out_offset in OFFSETS:
                source, mine = Buffer(acc, acc_offset), Buffer(own, own_offset)
                to = Buffer(np.zeros(count, dtype), out_offset)
                args = (source.pointer, mine.pointer, count, world_size)
                lib.pc_reduce_finish(DTYPES.index(dtype), OPS.index(op), to.pointer, *args)
                assert_same(to.read(), expected)
                assert source.read().tobytes() == acc.tobytes()
                assert mine.read().tobytes() == own.tobytes()
                lib.pc_reduce_finish(DTYPES.index(dtype), OPS.index(op), mine.pointer, *args)
                assert_same(mine.read(), expected)


@for_each_pair
def test_every_level_gives_the_same_bytes(dtype: np.dtype[Any], op: str) -> None:
    """Also of two NaNs with different payloads, where the processor's answer depends on the order of operands."""
    count = 5003
    acc, own = inputs(dtype, count)
    seen = set()
    for level in range(BEST + 1):
        assert lib.pc_reduce_force_level(level) == level
        partial, final = Buffer(acc, 1), Buffer(own, 3)
        lib.pc_reduce_accumulate(DTYPES.index(dtype), OPS.index(op), partial.pointer, final.pointer, count)
        args = (partial.pointer, final.pointer, count, 7)
        lib.pc_reduce_finish(DTYPES.index(dtype), OPS.index(op), final.pointer, *args)
        seen.add(partial.read().tobytes() + final.read().tobytes())
    lib.pc_reduce_force_level(-1)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [d for d in DTYPES if accumulator(d) == d], ids=str)
def test_one_buffer_as_several_operands(level: int, dtype: np.dtype[Any]) -> None:
    own = sample(dtype, 1037, 3)
    for out_is_acc in (False, True):
        a, b = Buffer(own, 1), Buffer(own, 2)
        out = a if out_is_acc else b
        lib.pc_reduce_finish(DTYPES.index(dtype), 0, out.pointer, a.pointer, b.pointer, 1037, 1)
        assert_same(out.read(), reference("sum", own, own, 1))
    both = Buffer(own, 1)
    lib.pc_reduce_accumulate(DTYPES.index(dtype), 0, both.pointer, both.pointer, 1037)
    assert_same(both.read(), reference("sum", own, own, 1))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.kind == "i"], ids=str)
def test_average_truncates_toward_zero(level: int, dtype: np.dtype[Any]) -> None:
    info = np.iinfo(dtype)
    acc = np.array([-7, -1, -2, -3, 7, 2, info.min, info.max, info.min], dtype)
    own = np.array([0, 0, 0, 0, 0, 0, 0, 0, -1], dtype)
    to, source, mine = Buffer(acc, 0), Buffer(acc, 0), Buffer(own, 0)
    lib.pc_reduce_finish(DTYPES.index(dtype), 1, to.pointer, source.pointer, mine.pointer, len(acc), 3)
    # The last one wraps to the largest value before it is divided.
    expected = [-2, 0, 0, -1, 2, 0, -(-info.min // 3), info.max // 3, info.max // 3]
    assert to.read().tolist() == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 127, 128, 255, 256, 65_535, 65_536, 2**24 + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("dtype", [d for d in DTYPES if is_integer(d)], ids=str)
def test_integer_average_is_exact(level: int, dtype: np.dtype[Any], world_size: int) -> None:
    """Quotients are computed in floating point: around every multiple of the divisor is where they could be off."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(world_size)
    top = info.max // world_size
    multiples = [0, top, *(int(x) for x in rng.integers(0, min(top + 1, 2**62), 200))]
    near = {m * world_size + d for m in multiples for d in (-1, 0, 1)} | {info.min, info.min + 1, info.max}
    near |= {-x for x in near}
    acc = np.array(sorted(x for x in near if info.min <= x <= info.max), dtype)
    to, source, mine = Buffer(acc, 0), Buffer(acc, 0), Buffer(np.zeros_like(acc), 0)
    lib.pc_reduce_finish(DTYPES.index(dtype), 1, to.pointer, source.pointer, mine.pointer, len(acc), world_size)
    assert to.read().tolist() == [abs(int(x)) // world_size * (-1 if x < 0 else 1) for x in acc]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_widen(level: int, dtype: np.dtype[Any]) -> None:
    for count in SIZES:
        own = sample(dtype, count, 4)
        for acc_offset, own_offset, _ in OFFSETS:
            to, source = Buffer(np.zeros(count, accumulator(dtype)), acc_offset), Buffer(own, own_offset)
            lib.pc_reduce_widen(DTYPES.index(dtype), to.pointer, source.pointer, count)
            if accumulator(dtype) == dtype:
                assert to.read().tobytes() == own.tobytes()
            else:
                np.testing.assert_array_equal(bits(to.read()), widened_bits(bits(own), dtype))


def widened_bits(half: Array, dtype: np.dtype[Any]) -> Array:
    """NumPy's conversion; a NaN's payload moves up and its quiet bit is set."""
    with np.errstate(all="ignore"):
        value = half.view(dtype).astype(np.float32)
    shift = 13 if dtype == np.float16 else 16
    wide = half.astype(np.uint32)
    sign, payload = (wide & 0x8000) << 16, (wide << shift) & 0x7FFFFF
    return np.asarray(np.where(np.isnan(value), sign | 0x7FC00000 | payload, bits(value)))


ALL_HALVES = np.arange(65536, dtype=np.uint16)


@pytest.mark.parametrize("dtype", [np.dtype("float16"), BF16], ids=str)
def test_widen_every_half(level: int, dtype: np.dtype[Any]) -> None:
    to, source = Buffer(np.zeros(65536, np.float32), 0), Buffer(ALL_HALVES.view(dtype), 0)
    lib.pc_reduce_widen(DTYPES.index(dtype), to.pointer, source.pointer, 65536)
    np.testing.assert_array_equal(bits(to.read()), widened_bits(ALL_HALVES, dtype))


def borders(dtype: np.dtype[Any]) -> Array:
    """Each half, the middle between it and the next one, and the floats beside those; and a million random ones."""
    with np.errstate(all="ignore"):
        value = ALL_HALVES.view(dtype).astype(np.float32)
    first = bits(value).astype(np.int64)
    middle = first + (1 << 12 if dtype == np.float16 else 1 << 15)
    tiny = (np.arange(0, 2050, dtype=np.float64) / 2 * 2.0**-24).astype(np.float32)
    subnormal = np.concatenate([bits(tiny), bits(-tiny)]).astype(np.int64)
    near = np.concatenate([x + d for x in (first, middle, subnormal) for d in (-1, 0, 1)])
    random = np.random.default_rng(7).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    return np.concatenate([(near & 0xFFFFFFFF).astype(np.uint32), random]).view(np.float32)


def narrowed_bits(value: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        half = bits(value.astype(dtype))
    wide = bits(value)
    upper = (wide >> 16) & 0x8000 | 0x7E00 | (wide >> 13) & 0x3FF if dtype == np.float16 else wide >> 16 | 0x40
    return np.asarray(np.where(np.isnan(value), upper.astype(np.uint16), half))


@pytest.mark.parametrize("dtype", [np.dtype("float16"), BF16], ids=str)
def test_narrow_at_every_border(dtype: np.dtype[Any]) -> None:
    value = borders(dtype)
    out = np.zeros(len(value), np.uint16)
    narrow = lib.narrow_f16 if dtype == np.float16 else lib.narrow_bf16
    narrow(ffi.from_buffer("float[]", value), ffi.from_buffer("uint16_t[]", out), len(value))
    np.testing.assert_array_equal(out, narrowed_bits(value, dtype))


@pytest.mark.parametrize("dtype", [np.dtype("float16"), BF16], ids=str)
def test_finish_rounds_at_every_border(level: int, dtype: np.dtype[Any]) -> None:
    value = borders(dtype)
    # Adding -0 changes no number, so what is seen is the narrowing alone.
    to, source = Buffer(np.zeros(len(value), dtype), 0), Buffer(value, 0)
    zeros = Buffer(np.full(len(value), -0.0, dtype), 0)
    lib.pc_reduce_finish(DTYPES.index(dtype), 0, to.pointer, source.pointer, zeros.pointer, len(value), 1)
    with np.errstate(all="ignore"):
        assert_same(to.read(), value.astype(dtype))


@pytest.mark.skipif(not F16C, reason="no instruction to compare with")
def test_float16_is_what_the_processor_computes() -> None:
    ours, machines = np.zeros(65536, np.float32), np.zeros(65536, np.float32)
    halves = ffi.from_buffer("uint16_t[]", ALL_HALVES)
    lib.widen_f16(halves, ffi.from_buffer("float[]", ours), 65536)
    lib.machine_widen_f16(halves, ffi.from_buffer("float[]", machines), 65536)
    np.testing.assert_array_equal(bits(ours), bits(machines))
    value = borders(np.dtype("float16"))
    narrow, machine = np.zeros(len(value), np.uint16), np.zeros(len(value), np.uint16)
    floats = ffi.from_buffer("float[]", value)
    lib.narrow_f16(floats, ffi.from_buffer("uint16_t[]", narrow), len(value))
    lib.machine_narrow_f16(floats, ffi.from_buffer("uint16_t[]", machine), len(value))
    np.testing.assert_array_equal(narrow, machine)


def test_level_is_never_above_the_machine() -> None:
    assert lib.pc_reduce_force_level(99) == BEST
    assert lib.pc_reduce_force_level(0) == 0
    assert lib.pc_reduce_level() == 0
    assert lib.pc_reduce_force_level(-1) == BEST


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_narrow(dtype: np.dtype[Any]) -> None:
    for op, weight in (("sum", 5), ("max", 5), ("avg", 1), ("avg", 12)):
        acc, _ = inputs(dtype, 1000)
        to, source = Buffer(np.zeros(1000, dtype), 0), Buffer(acc, 0)
        lib.pc_reduce_narrow(DTYPES.index(dtype), OPS.index(op), to.pointer, source.pointer, 1000, weight)
        with np.errstate(all="ignore"):
            if op == "avg" and is_integer(dtype):
                expected = np.array([int(a) // weight if a >= 0 else -(-int(a) // weight) for a in acc], dtype)
            else:
                expected = (acc / acc.dtype.type(weight) if op == "avg" else acc).astype(dtype)
        assert_same(to.read(), expected)


@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype("float64")], ids=str)
def test_scale(dtype: np.dtype[Any]) -> None:
    data = sample(dtype, 1000, 3)
    to = Buffer(data, 4)
    lib.pc_reduce_scale(DTYPES.index(dtype), to.pointer, 1000, 0.3)
    with np.errstate(all="ignore"):
        expected = data * dtype.type(0.3)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(to.read()[~nan], expected[~nan])
    assert np.isnan(to.read()[nan]).all()
