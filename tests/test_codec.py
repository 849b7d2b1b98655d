"""Codecs: known errors, the same bytes at every SIMD level, golden bytes, and what cannot be coded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import c_level
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

Array = npt.NDArray[Any]

CDEF = """
struct pc_codec { uint8_t kind, bits; bool stochastic, finite_only; uint32_t block; };
struct pc_codec pc_codec_make(uint8_t kind, uint8_t bits, uint32_t block);
bool pc_codec_valid(const struct pc_codec *codec);
const char *pc_codec_name(uint8_t kind);
size_t pc_codec_bytes(const struct pc_codec *codec, int dtype, size_t count);
size_t pc_codec_bytes_max(const struct pc_codec *codec, int dtype, size_t count);
size_t pc_codec_encode(const struct pc_codec *codec, int dtype, void *out, const void *in, size_t count, uint32_t seed);
bool pc_codec_intact(const struct pc_codec *codec, int dtype, const void *in, size_t len_bytes, size_t count);
void pc_codec_decode(const struct pc_codec *codec, int dtype, void *out, const void *base, const void *in,
                     size_t len_bytes, size_t count);
struct pc_codec_walk {
    const struct pc_codec *codec; int dtype; size_t at, count; uint8_t *header, *codes, *raw, *end;
};
void pc_codec_walk_init(struct pc_codec_walk *walk, const struct pc_codec *codec, int dtype, const void *coded,
                        size_t len_bytes, size_t count);
bool pc_codec_walk_encode(struct pc_codec_walk *walk, const void *in, size_t count, uint32_t seed);
void pc_codec_walk_decode(struct pc_codec_walk *walk, void *out, const void *base, size_t count);
void pc_codec_walk_left_out(struct pc_codec_walk *walk, void *values, size_t count);
int pc_reduce_force_level(int level);
"""

lib = c_level.load(CDEF, only=("base", "bytes", "math"))
ffi = lib.ffi
BEST = int(lib.pc_reduce_force_level(-1))

MIN_MAX, ZERO_POINT, BF16, FP16, INT8, INT4, E4M3, E3M0, TOP_K, INT_SUM = 1, 2, 16, 17, 18, 19, 20, 21, 22, 23
STEPS = [(kind, bits) for kind in (MIN_MAX, ZERO_POINT) for bits in (8, 16, 32, 64)]
EXPONENT = 128  # of int_sum, as it is kept: 0
ALL = [*STEPS, *((kind, 0) for kind in range(BF16, TOP_K + 1)), (INT_SUM, EXPONENT - 10)]
DTYPES = {np.dtype("float32"): 10, np.dtype("float64"): 11}
# Relative L2 error on normal data: (kind, bits, block) -> nearest, stochastic. Derived from the step sizes and the
# expected peaks of blocks; the same figures as in public comparisons of these formats.
ERRORS = {
    (BF16, 0, 0): (1.662e-3, 2.348e-3),
    (FP16, 0, 0): (2.08e-4, None),
    (INT8, 0, 256): (6.96e-3, 9.84e-3),
    (INT8, 0, 32): (5.35e-3, None),
    (INT8, 0, 1024): (7.85e-3, None),
    (INT8, 0, 4096): (8.66e-3, None),
    (MIN_MAX, 8, 256): (6.41e-3, None),
    (MIN_MAX, 16, 4096): (3.2e-5, None),
    (E4M3, 0, 256): (2.61e-2, None),
    (INT4, 0, 128): (0.1174, 0.166),
    (INT4, 0, 32): (0.0970, None),
    (INT4, 0, 1024): (0.1425, None),
    (E3M0, 0, 128): (0.1924, 0.278),
    (TOP_K, 0, 0): (0.938, None),
}


@pytest.fixture(autouse=True)
def best_level() -> Iterator[None]:
    yield
    lib.pc_reduce_force_level(-1)


def codec(kind: int, bits: int = 0, block: int = 0, *, stochastic: bool = False, finite_only: bool = False) -> Any:
    made = ffi.new("struct pc_codec *", lib.pc_codec_make(kind, bits, block))
    made.stochastic, made.finite_only = stochastic, finite_only
    assert lib.pc_codec_valid(made)
    return made


def encode(c: Any, data: Array, seed: int = 1) -> bytes:
    dtype = DTYPES[data.dtype]
    out = ffi.new("uint8_t[]", lib.pc_codec_bytes_max(c, dtype, data.size) + 1)
    used = lib.pc_codec_encode(c, dtype, out, ffi.from_buffer(data), data.size, seed)
    assert used <= lib.pc_codec_bytes_max(c, dtype, data.size)
    assert used == 0 or used >= lib.pc_codec_bytes(c, dtype, data.size)
    return bytes(ffi.buffer(out, used))


def decode(c: Any, coded: bytes, count: int, dtype: str = "float32", add_to: Array | None = None) -> Array | None:
    out = np.full(count, 7, dtype) if add_to is None else add_to.copy()
    if not lib.pc_codec_intact(c, DTYPES[out.dtype], ffi.from_buffer(coded), len(coded), count):
        return None
    base = ffi.NULL if add_to is None else ffi.from_buffer(add_to)
    lib.pc_codec_decode(c, DTYPES[out.dtype], ffi.from_buffer(out), base, ffi.from_buffer(coded), len(coded), count)
    return out


def round_trip(c: Any, data: Array, seed: int = 1) -> Array:
    out = decode(c, encode(c, data, seed), data.size, str(data.dtype))
    assert out is not None
    return out


def relative_error(got: Array, wanted: Array) -> float:
    return float(np.linalg.norm(got.astype("f8") - wanted) / np.linalg.norm(wanted.astype("f8")))


def normal(count: int, seed: int = 5, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


@pytest.mark.parametrize(("which", "expected"), list(ERRORS.items()), ids=str)
def test_error_is_the_known_one(which: tuple[int, int, int], expected: tuple[float, float | None]) -> None:
    data = normal(1 << 20)
    assert relative_error(round_trip(codec(*which), data), data) == pytest.approx(expected[0], rel=0.03)
    if expected[1] is not None:
        c = codec(*which, stochastic=True)
        assert relative_error(round_trip(c, data), data) == pytest.approx(expected[1], rel=0.03)


@pytest.mark.parametrize(("kind", "bits"), [pair for pair in ALL if pair[0] != TOP_K])
def test_stochastic_rounding_has_no_bias(kind: int, bits: int) -> None:
    data = normal(1 << 18)
    got = round_trip(codec(kind, bits, stochastic=True), data)
    error = got.astype("f8") - data
    assert abs(error.mean()) < 4 * max(error.std(), 1e-12) / np.sqrt(data.size)
    if error.std() > 1e-6:  # else the codes are as fine as the elements
        other = round_trip(codec(kind, bits, stochastic=True), data, seed=2)
        assert not np.array_equal(got, other)
    assert np.array_equal(got, round_trip(codec(kind, bits, stochastic=True), data))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_levels_make_the_same_bytes(kind: int, bits: int, dtype: str, stochastic: bool) -> None:
    c = codec(kind, bits, stochastic=stochastic)
    for count in (0, 1, 2, 31, 127, 128, 129, 255, 257, 4095, 4096, 4097, 12_345):
        data = normal(count, count, dtype) * np.float32(10) ** (count % 7)
        if count > 200:
            data[count // 2] = np.nan
            data[7] = np.inf
        made = set()
        for level in range(BEST + 1):
            lib.pc_reduce_force_level(level)
            coded = encode(c, data)
            plain = decode(c, coded, count, dtype)
            assert plain is not None
            base = normal(count, 3, dtype)
            added = decode(c, coded, count, dtype, base)
            assert added is not None
            with np.errstate(all="ignore"):
                assert np.array_equal(added, base + plain, equal_nan=True)
            made.add((coded, plain.tobytes()))
        assert len(made) == 1


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_pieces_are_as_good_as_the_whole(kind: int, bits: int, dtype: str, stochastic: bool) -> None:
    """Each piece is decoded, in place over what is added to it, as soon as it is encoded."""
    c = codec(kind, bits, stochastic=stochastic)
    block, number = int(c.block), DTYPES[np.dtype(dtype)]
    count = 6 * block + block // 3
    data, base = normal(count, 3, dtype), normal(count, 4, dtype)
    data[block + 1], data[-1] = np.nan, -np.inf
    whole = encode(c, data)
    memory = np.zeros(lib.pc_codec_bytes_max(c, number, count), "u1")
    at = ffi.from_buffer("uint8_t[]", memory)
    writer, reader, again = (ffi.new("struct pc_codec_walk *") for _ in range(3))
    for walk in (writer, reader, again):
        lib.pc_codec_walk_init(walk, c, number, at, 0, count)
    added, lost = base.copy(), data.copy()
    for first in range(0, count, 2 * block):
        part = slice(first, min(first + 2 * block, count))
        to, short = ffi.from_buffer(added[part]), part.stop - first
        assert lib.pc_codec_walk_encode(writer, ffi.from_buffer(data[part]), short, 1)
        reader.end = again.end = writer.end
        lib.pc_codec_walk_decode(reader, to, to, short)
        lib.pc_codec_walk_left_out(again, ffi.from_buffer(lost[part]), short)
    assert writer.at == reader.at == again.at == count
    assert memory[: writer.end - at].tobytes() == whole
    plain = decode(c, whole, count, dtype)
    assert plain is not None
    with np.errstate(invalid="ignore"):
        assert np.array_equal(added, base + plain, equal_nan=True)
        assert np.array_equal(lost, np.where(np.isfinite(data - plain), data - plain, 0))


GOLDEN = {
    (MIN_MAX, 8): "ff15632f1293a749",
    (MIN_MAX, 16): "4015979a5bc6bc56",
    (MIN_MAX, 32): "6af2bc774bfe779f",
    (MIN_MAX, 64): "7ecbe178c269c51e",
    (ZERO_POINT, 8): "9341af2b0542c146",
    (ZERO_POINT, 16): "ebd15f7b41b81948",
    (ZERO_POINT, 32): "6e689b80a2e84437",
    (ZERO_POINT, 64): "7ecbe178c269c51e",
    (BF16, 0): "e6d319ba3c58ca2e",
    (FP16, 0): "23784e60bca97716",
    (INT8, 0): "61bc829b4dea08f7",
    (INT4, 0): "5df113a42d4aaf1c",
    (E4M3, 0): "e8ff4f672574c4ee",
    (E3M0, 0): "f14507611b1ac27f",
    (TOP_K, 0): "876d6cd8201291d8",
    (INT_SUM, 118): "1df09b790d05d7c1",
}


def test_golden_bytes() -> None:
    """Encoded bytes of fixed data: a build whose compiler or processor rounds in another way is found out."""
    index = np.arange(5000, dtype="float32")
    data = ((index * 37 % 1001) - 500) * np.float32(0.0078125) * (1 + index % 3)
    made = {pair: hashlib.blake2b(encode(codec(*pair), data), digest_size=8).hexdigest() for pair in ALL}
    assert made == GOLDEN


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_any_alignment(kind: int, bits: int, offset: int) -> None:
    data = normal(1000)
    moved = np.zeros(4100, "u1")
    moved[offset : offset + 4000] = data.view("u1")
    c = codec(kind, bits)
    size = lib.pc_codec_bytes_max(c, 10, 1000)
    out, back = np.zeros(size + 8, "u1"), np.zeros(4100, "u1")
    to = ffi.cast("uint8_t *", out.ctypes.data + offset)
    used = lib.pc_codec_encode(c, 10, to, ffi.cast("void *", moved.ctypes.data + offset), 1000, 1)
    assert out[offset : offset + used].tobytes() == encode(c, data)
    assert (out[:offset] == 0).all()
    lib.pc_codec_decode(c, 10, ffi.cast("void *", back.ctypes.data + offset), ffi.NULL, to, used, 1000)
    assert back[offset : offset + 4000].tobytes() == round_trip(c, data).tobytes()
    assert (back[offset + 4000 :] == 0).all()


@pytest.mark.parametrize(("kind", "wanted"), [(BF16, ml_dtypes.bfloat16), (FP16, np.float16)])
def test_16_bit_floats_are_the_standard_ones(kind: int, wanted: Any) -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, np.uint32)
    data = bits.view("float32")
    limit = 65500 if kind == FP16 else 3.3e38
    data = data[np.isfinite(data) & (np.abs(data) < limit)].copy()
    assert np.array_equal(round_trip(codec(kind), data).view("u4"), data.astype(wanted).astype("float32").view("u4"))


def test_e4m3_is_the_standard_one() -> None:
    data = normal(100_000) * np.float32(np.exp(np.linspace(-8, 3, 100_000)))
    c = codec(E4M3, 0, 32)
    got = round_trip(c, data)
    for at in range(0, 32 * 200, 32):
        part = data[at : at + 32]
        peak = np.abs(part).max()
        scaled = (part * (np.float32(448) / peak)).astype(ml_dtypes.float8_e4m3fn).astype("float32")
        assert np.array_equal(got[at : at + 32], scaled * (peak / np.float32(448)))


def test_e3m0_takes_the_nearest_level() -> None:
    data = normal(12_800)
    got = round_trip(codec(E3M0), data)
    levels = np.concatenate([[0], 2.0 ** np.arange(-6, 1)])
    levels = np.concatenate([-levels, levels])
    for at in range(0, data.size, 128):
        part = data[at : at + 128].astype("f8")
        peak = np.abs(part).max()
        distance = np.abs(part[:, None] - levels * peak).min(axis=1)
        assert np.allclose(np.abs(got[at : at + 128] - part), distance, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "bits"), STEPS)
def test_steps_are_right_for_every_range(kind: int, bits: int, dtype: str) -> None:
    uniform = np.random.default_rng(2).random(8192).astype(dtype)
    c = codec(kind, bits)
    steps = 2.0 ** min(bits, 53) - 1
    for data in (uniform, uniform + 10, -uniform - 10, uniform - 0.5, uniform * 1e-20, uniform * 1e30):
        got = round_trip(c, data)
        unit = float(np.ptp(data)) / steps
        # Half a step; at the ends of a range with 0 in it another half; and the roundings of the type.
        slack = 4 * np.finfo(dtype).eps * float(np.abs(data).max())
        assert float(np.abs(got - data).max()) <= unit * (1.001 if kind == ZERO_POINT else 0.501) + slack
    for constant in (0.3, -7.25, 0.0, 42.0):
        data = np.full(1000, constant, dtype)
        assert np.array_equal(round_trip(c, data), data)


def test_zero_point_keeps_zeros() -> None:
    data = normal(10_000)
    data[::3] = 0
    got = round_trip(codec(ZERO_POINT, 8), data)
    assert (got[::3] == 0).all()
    assert (round_trip(codec(MIN_MAX, 8), data)[::3] != 0).any()


@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_what_cannot_be_coded_travels_as_it_is(kind: int, bits: int) -> None:
    c = codec(kind, bits)
    block = c.block
    data = normal(5 * block + block // 2)
    bad = {1: np.nan, 3: -np.inf, 5: np.inf}
    for at, value in bad.items():
        data[at * block + 3] = value
    got = round_trip(c, data)
    clean = data.copy()
    for at in bad:
        part = slice(at * block, (at + 1) * block)
        assert np.array_equal(got[part].view("u4"), data[part].view("u4"))
        clean[part] = 0
    others = np.concatenate([np.arange(at * block, (at + 1) * block) for at in (0, 2, 4)])
    assert np.array_equal(got[others], round_trip(c, clean)[others])
    strict = codec(kind, bits, finite_only=True)
    assert encode(strict, data) == b""
    assert encode(strict, clean) == encode(c, clean)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(FP16, 65520.0), (FP16, 1e9), (BF16, 3.4e38), (E3M0, 2e38), (INT8, 3e38), (MIN_MAX, 3e38), (ZERO_POINT, 3e38)],
)
def test_a_range_beyond_the_codec_travels_as_it_is(kind: int, value: float) -> None:
    data = normal(1000)
    data[10], data[11] = value, -value
    c = codec(kind, 8 if kind in (MIN_MAX, ZERO_POINT) else 0)
    assert np.array_equal(round_trip(c, data)[: c.block], data[: c.block])


def test_float64_beyond_float32() -> None:
    data = normal(512, dtype="float64")
    data[3] = 1e300
    got = round_trip(codec(INT8), data)
    assert np.array_equal(got[:256], data[:256])
    assert relative_error(got[256:], data[256:]) < 0.009
    assert np.array_equal(round_trip(codec(MIN_MAX, 64), data)[3:4], data[3:4])


def test_tiny_blocks_are_zero() -> None:
    for kind in (INT8, INT4, E4M3, E3M0):
        data = np.full(300, 1e-38, "float32")
        data[:20] = 1e-42
        assert (round_trip(codec(kind), data) == 0).all()


def test_top_k_takes_the_largest() -> None:
    data = normal(3 * 4096 + 130)
    data[4096:8192] = 0.5  # ties: the first ones
    got = round_trip(codec(TOP_K), data)
    for at in range(0, data.size, 4096):
        part, out = data[at : at + 4096], got[at : at + 4096]
        wanted = np.sort(np.argsort(-np.abs(part), kind="stable")[: (part.size + 63) // 64])
        assert np.array_equal(np.flatnonzero(out), wanted)
        assert np.array_equal(np.sign(out[wanted]), np.sign(part[wanted]))
        assert np.abs(out[wanted]).sum() == pytest.approx(np.abs(part[wanted]).sum(), rel=1e-5)
        assert len(set(np.abs(out[wanted]).tolist())) <= 2


def test_int_sum_adds_exactly() -> None:
    """Whatever the order and however often a sum is coded again on its way."""
    c = codec(INT_SUM, EXPONENT - 8)
    parts = [round_trip(c, normal(5000, seed)) for seed in range(8)]
    for seed, part in enumerate(parts):
        assert np.array_equal(part, np.rint(normal(5000, seed) * 256) / 256)
    by_ring = parts[0]
    for part in parts[1:]:
        by_ring = round_trip(c, by_ring + part)
    assert np.array_equal(by_ring, np.sum(np.array(parts, "f8"), axis=0))
    assert np.array_equal(round_trip(c, np.full(100, 127.99609375, "float32")), np.full(100, 127.99609375, "float32"))
    assert np.array_equal(round_trip(c, np.full(100, 1000.1, "float32")), np.full(100, 1000.1, "float32"))
    assert encode(codec(INT_SUM, EXPONENT - 8, finite_only=True), np.full(100, 1000.1, "float32")) == b""


def test_a_sum_of_64_members_is_as_good_as_one() -> None:
    """Direct: each contribution is coded once, and the sum once."""
    c = codec(INT8)
    values = [normal(1 << 15, seed) for seed in range(64)]
    total = values[63].copy()
    for value in values[:63]:
        added = decode(c, encode(c, value), value.size, add_to=total)
        assert added is not None
        total = added
    assert relative_error(round_trip(c, total), np.sum(np.array(values, "f8"), axis=0)) <= 0.011


def test_sizes_on_the_wire() -> None:
    sizes = {pair: 8 * lib.pc_codec_bytes(codec(*pair), 10, 1 << 20) / (1 << 20) for pair in ALL}
    assert sizes[INT8, 0] == 8.125
    assert sizes[INT4, 0] == sizes[E3M0, 0] == 4.25
    assert sizes[E4M3, 0] == 8.125
    assert sizes[MIN_MAX, 8] == 8.25
    assert sizes[BF16, 0] == pytest.approx(16, rel=1e-3)
    assert sizes[TOP_K, 0] == pytest.approx(0.234, rel=1e-2)


@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_truncated_and_mutated_bytes(kind: int, bits: int) -> None:
    data = normal(700)
    data[5] = np.nan
    c = codec(kind, bits, 0 if kind == TOP_K else 128)
    coded = encode(c, data)
    for length in range(len(coded)):
        assert decode(c, coded[:length], data.size) is None
    assert decode(c, coded + b"\0", data.size) is None
    random = np.random.default_rng(9)
    for _ in range(300):  # whatever they are: numbers or a refusal, and no byte is read or written beside
        wrong = bytearray(coded)
        wrong[int(random.integers(len(wrong)))] ^= 1 << int(random.integers(8))
        decode(c, bytes(wrong), data.size)


def test_nothing_finite_is_rounded_to_infinity() -> None:
    for kind, largest in ((BF16, np.uint32(0x7F7F7FFF).view("f4")), (FP16, np.float32(65519))):
        data = np.full(64, largest, "f4")
        for seed in range(20):
            for stochastic in (False, True):
                out = round_trip(codec(kind, stochastic=stochastic), data, seed)
                assert np.isfinite(out).all()
                assert relative_error(out, data) < 2**-8


def test_no_such_codec() -> None:
    for kind, bits, block in [
        (3, 0, 0),
        (INT8, 8, 0),
        (MIN_MAX, 0, 0),
        (MIN_MAX, 24, 0),
        (INT8, 0, 100),
        (INT8, 0, 16),
    ]:
        assert not lib.pc_codec_valid(ffi.new("struct pc_codec *", lib.pc_codec_make(kind, bits, block)))
    assert not lib.pc_codec_valid(ffi.new("struct pc_codec *", lib.pc_codec_make(INT8, 0, 8192)))
    assert not lib.pc_codec_valid(ffi.new("struct pc_codec *", lib.pc_codec_make(TOP_K, 0, 128)))
    assert not lib.pc_codec_valid(ffi.new("struct pc_codec *", lib.pc_codec_make(INT_SUM, EXPONENT + 101, 0)))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([pair for pair in ALL if pair[0] != TOP_K]),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=300),
)
def test_no_element_is_off_by_more_than_its_step(pair: tuple[int, int], values: list[float]) -> None:
    data = np.array(values, "float32")
    got = round_trip(codec(*pair), data).astype("f8")
    peak = float(np.abs(data).max())
    step = {INT8: 1 / 127, INT4: 1 / 7, E4M3: 1 / 14, E3M0: 1 / 2, BF16: 1 / 256, FP16: 1 / 2048,
            INT_SUM: 2.0**-10 / max(peak, 2.0**-100)}.get(pair[0], 2 / 255)  # fmt: skip
    assert float(np.abs(got - data).max()) <= peak * step + 1e-6 * peak + 2.0**-24 + 2.0**-84
