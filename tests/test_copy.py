"""Copies that are not memcpy: every alignment and length, and not a byte beside."""

import numpy as np
import pytest
from c_level import load

lib = load(
    """
    void pc_copy_past_cache(void *to, const void *from, size_t len_bytes);
    void pc_copy_anyhow(void *to, const void *from, size_t len_bytes);
    """,
    only=("base", "bytes", "math"),
)


@pytest.mark.parametrize("name", ["pc_copy_past_cache", "pc_copy_anyhow"])
@pytest.mark.parametrize("to_offset", [0, 1, 15, 63])
@pytest.mark.parametrize("from_offset", [0, 3, 32])
def test_copy(name: str, to_offset: int, from_offset: int) -> None:
    source = np.random.default_rng(7).integers(0, 256, 20_000, np.uint8)
    for length in (0, 1, 63, 64, 65, 127, 128, 1000, 4096, 16_385):
        to = np.full(20_000, 0xC3, np.uint8)
        getattr(lib, name)(
            lib.ffi.cast("void *", to.ctypes.data + to_offset),
            lib.ffi.cast("void *", source.ctypes.data + from_offset),
            length,
        )
        assert np.array_equal(to[to_offset : to_offset + length], source[from_offset : from_offset + length])
        assert (to[:to_offset] == 0xC3).all()
        assert (to[to_offset + length :] == 0xC3).all()
