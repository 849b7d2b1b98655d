"""Digests against the xxhash package and published values, the same at every SIMD level."""

from __future__ import annotations

import c_level
import numpy as np
import pytest

xxhash = pytest.importorskip("xxhash")

lib = c_level.load(
    """
    int pc_simd_level(void);
    int pc_simd_force_level(int level);
    uint64_t pc_digest64(const void *data, size_t len_bytes);
    void pc_digest128(const void *data, size_t len_bytes, uint8_t *out);
    size_t pc_digest_block_count(size_t len_bytes);
    void pc_digest_blocks(const void *data, size_t len_bytes, uint8_t *blocks, uint8_t *tensor_out);
    """,
    only=("base", "bytes", "math"),
)
ffi = lib.ffi
BLOCK = 4 << 20
BEST = int(lib.pc_simd_force_level(-1))
LEVELS = range(BEST + 1)
# Each border at which XXH3 changes its way of working, and both sides of it.
SIZES = sorted({0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 255, 256, 511, 512, 1023, 1024, 1025, 4096, 100_003})


def pattern(len_bytes: int) -> bytes:
    return np.random.default_rng(len_bytes).bytes(len_bytes)


def digest128(data: bytes) -> bytes:
    out = ffi.new("uint8_t[16]")
    lib.pc_digest128(data, len(data), out)
    return bytes(ffi.buffer(out))


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> object:
    assert lib.pc_simd_force_level(request.param) == request.param
    yield request.param
    lib.pc_simd_force_level(-1)


@pytest.mark.parametrize("size", SIZES)
def test_digests_are_xxh3(level: int, size: int) -> None:
    data = pattern(size)
    assert lib.pc_digest64(data, size) == xxhash.xxh3_64_intdigest(data)
    assert digest128(data) == xxhash.xxh3_128_digest(data)


def test_published_values_of_nothing(level: int) -> None:
    assert lib.pc_digest64(b"", 0) == 0x2D06800538D394C2
    assert digest128(b"").hex() == "99aa06d3014798d86001c324468d497f"


def test_unaligned_input(level: int) -> None:
    data = pattern(70_000)
    whole = ffi.from_buffer(data)
    for offset in range(1, 65, 7):
        assert lib.pc_digest64(whole + offset, len(data) - offset) == xxhash.xxh3_64_intdigest(data[offset:])


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 77])
def test_blocks(level: int, size: int) -> None:
    data = pattern(size)
    count = -(-size // BLOCK)
    assert lib.pc_digest_block_count(size) == count
    blocks = ffi.new("uint8_t[]", 16 * count + 1)
    blocks[16 * count] = 0xA5
    tensor = ffi.new("uint8_t[16]")
    lib.pc_digest_blocks(data, size, blocks, tensor)
    expected = b"".join(xxhash.xxh3_128_digest(data[i * BLOCK : (i + 1) * BLOCK]) for i in range(count))
    assert bytes(ffi.buffer(blocks))[: 16 * count] == expected
    assert blocks[16 * count] == 0xA5
    assert bytes(ffi.buffer(tensor)) == xxhash.xxh3_128_digest(expected)


def test_block_count_does_not_overflow() -> None:
    assert lib.pc_digest_block_count(2**64 - 1) == 2**42


def test_level_is_never_above_the_machine() -> None:
    assert lib.pc_simd_force_level(99) == BEST
    assert lib.pc_simd_force_level(0) == 0
    assert lib.pc_simd_level() == 0
    assert lib.pc_simd_force_level(-1) == BEST
