"""Proofs against Python's own HMAC."""

from __future__ import annotations

import hmac

import c_level
import pytest

lib = c_level.load(
    """
    struct pc_auth_part { const void *data; size_t len_bytes; };
    bool pc_auth_proof(const uint8_t *key, size_t key_len, const char *label, const struct pc_auth_part *parts,
                       size_t part_count, uint8_t *proof);
    bool pc_auth_equal(const uint8_t *a, const uint8_t *b);
    """,
    only=("base", "bytes", "math"),
)
ffi = lib.ffi


def proof(key: bytes | None, label: bytes, parts: list[bytes]) -> tuple[bool, bytes]:
    keep = [ffi.new("uint8_t[]", part) if part else ffi.NULL for part in parts]
    array = ffi.new("struct pc_auth_part[]", max(len(parts), 1))
    for i, part in enumerate(parts):
        array[i].data, array[i].len_bytes = keep[i], len(part)
    out = ffi.new("uint8_t[16]", b"\xee" * 16)
    key_data = ffi.NULL if key is None else ffi.new("uint8_t[]", key)
    done = lib.pc_auth_proof(key_data, len(key or b""), label, array, len(parts), out)
    return bool(done), bytes(ffi.buffer(out))


def expected(key: bytes, label: bytes, parts: list[bytes]) -> bytes:
    message = label + b"\0" + b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hmac.digest(key, message, "sha256")[:16]


PARTS: list[list[bytes]] = [
    [],
    [b""],
    [b"", b""],
    [b"abc"],
    [b"ab", b"c"],
    [bytes(range(256)) * 300, b"\0", b"tail"],
    [bytes([i]) * i for i in range(8)],
]


@pytest.mark.parametrize("parts", PARTS, ids=range(len(PARTS)))
@pytest.mark.parametrize("key", [b"", b"k", bytes(32), bytes(range(64)), b"long key" * 40], ids=len)
@pytest.mark.parametrize("label", [b"", b"member hello"])
def test_proof_is_hmac_sha256(key: bytes, label: bytes, parts: list[bytes]) -> None:
    assert proof(key, label, parts) == (True, expected(key, label, parts))


def test_rfc4231_case_2_cut_to_128_bits() -> None:
    # The test vector's message has no 0 in it, so this checks the oracle; the oracle checks the library above.
    assert hmac.digest(b"Jefe", b"what do ya want for nothing?", "sha256")[:16].hex() == (
        "5bdcc146bf60754e6a042426089575c7"
    )


def test_no_key_at_all() -> None:
    assert proof(None, b"x", [b"y"]) == (True, expected(b"", b"x", [b"y"]))


def test_borders_between_parts_count() -> None:
    made = {proof(b"key", label, parts)[1] for label in (b"a", b"ab") for parts in PARTS}
    assert len(made) == 2 * len(PARTS)


def test_too_many_parts_fail_with_a_zero_proof() -> None:
    assert proof(b"key", b"x", [b"a"] * 9) == (False, bytes(16))


@pytest.mark.parametrize("position", range(16))
def test_equal_sees_every_byte(position: int) -> None:
    a = bytes(range(16))
    b = bytearray(a)
    assert lib.pc_auth_equal(a, bytes(b))
    b[position] ^= 0x80
    assert not lib.pc_auth_equal(a, bytes(b))
