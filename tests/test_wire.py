"""Every message of the protocol, from the table itself: round trips, every truncation, every mutated byte; frames.

Messages are made by an encoder of this file from the schemas' field lists, so that C's own decoder and encoder are both
checked against something else.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from c_level import CSRC, load
from hypothesis import given, settings
from hypothesis import strategies as st

lib = load(
    """
    struct pc_text { const char *data; uint32_t len_bytes; };
    struct pc_array { void *items; uint32_t count; };
    struct pc_schema;
    struct pc_field { int kind; uint32_t offset; const struct pc_schema *sub; const char *name; };
    struct pc_schema { const char *name; const struct pc_field *fields; uint32_t field_count, struct_bytes; };
    struct pc_message_info { uint8_t type; bool bulk; const struct pc_schema *schema; };
    extern const struct pc_message_info pc_messages[];
    struct pc_cursor { const uint8_t *at; size_t left; bool failed; };
    struct pc_writer { uint8_t *data; size_t len, capacity; bool failed; };
    struct pc_arena { void *blocks; };
    struct pc_frame { uint32_t cookie; uint8_t type, flags; uint32_t meta_len, bulk_len; uint64_t bulk_digest; };
    int pc_schema_decode(const struct pc_schema *schema, struct pc_cursor input, struct pc_arena *arena, void *message);
    void pc_schema_encode(const struct pc_schema *schema, const void *message, struct pc_writer *writer);
    void pc_writer_fini(struct pc_writer *writer);
    void pc_arena_reset(struct pc_arena *arena);
    void pc_frame_seal(const struct pc_frame *frame, uint8_t *head_and_meta);
    int pc_frame_open(const uint8_t *head, struct pc_frame *frame);
    bool pc_frame_intact(uint8_t *head_and_meta, uint32_t meta_len);
    """,
    only=("base", "bytes", "wire", "math"),
)
ffi = lib.ffi
U8, U16, U32, U64, BYTES16, TEXT, LIST, STRUCT = range(8)
WIDTHS = {U8: 1, U16: 2, U32: 4, U64: 8}
STRUCT_MAX = 512
Value = Any


def messages() -> dict[int, Any]:
    found = {}
    table = lib.pc_messages
    index = 0
    while table[index].schema != ffi.NULL:
        found[table[index].type] = table[index].schema
        index += 1
    return found


MESSAGES = messages()
NAMES = {type_: ffi.string(schema.name).decode() for type_, schema in MESSAGES.items()}


def fields(schema: Any) -> list[Any]:
    return [schema.fields[i] for i in range(schema.field_count)]


def draw(schema: Any, rng: random.Random, depth: int = 0) -> list[Value]:
    """A value for each field of a message of this schema."""
    values: list[Value] = []
    for field in fields(schema):
        if field.kind in WIDTHS:
            values.append(
                rng.choice([0, 1, rng.getrandbits(8 * WIDTHS[field.kind]), 2 ** (8 * WIDTHS[field.kind]) - 1])
            )
        elif field.kind == BYTES16:
            values.append(rng.randbytes(16))
        elif field.kind == TEXT:
            values.append(rng.randbytes(rng.choice([0, 1, 7, 40])))
        elif field.kind == LIST:
            values.append([draw(field.sub, rng, depth + 1) for _ in range(rng.choice([0, 1, 3]) if depth < 2 else 0)])
        else:
            values.append(draw(field.sub, rng, depth))
    return values


def draw_empty(schema: Any) -> list[Value]:
    """The shortest message: all numbers 0, all texts and lists empty."""
    empty = {BYTES16: bytes(16), TEXT: b"", LIST: []}
    return [draw_empty(field.sub) if field.kind == STRUCT else empty.get(field.kind, 0) for field in fields(schema)]


def encode(schema: Any, values: list[Value]) -> bytes:
    out = b""
    for field, value in zip(fields(schema), values, strict=True):
        if field.kind in WIDTHS:
            out += value.to_bytes(WIDTHS[field.kind], "little")
        elif field.kind == BYTES16:
            out += value
        elif field.kind == TEXT:
            out += len(value).to_bytes(4, "little") + value
        elif field.kind == LIST:
            out += len(value).to_bytes(4, "little") + b"".join(encode(field.sub, item) for item in value)
        else:
            out += encode(field.sub, value)
    return out


def read(schema: Any, memory: Any) -> list[Value]:
    """The values in a decoded structure."""
    values: list[Value] = []
    for field in fields(schema):
        at = memory + field.offset
        if field.kind in WIDTHS:
            values.append(int.from_bytes(ffi.buffer(at, WIDTHS[field.kind]), "little"))
        elif field.kind == BYTES16:
            values.append(bytes(ffi.buffer(at, 16)))
        elif field.kind == TEXT:
            text = ffi.cast("struct pc_text *", at)
            values.append(bytes(ffi.buffer(text.data, text.len_bytes)) if text.len_bytes else b"")
        elif field.kind == LIST:
            array = ffi.cast("struct pc_array *", at)
            items = ffi.cast("uint8_t *", array.items)
            values.append([read(field.sub, items + i * field.sub.struct_bytes) for i in range(array.count)])
        else:
            values.append(read(field.sub, at))
    return values


class Decoded:
    """A message decoded from memory that ends exactly where the input ends."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self.schema = schema
        self.input = ffi.new("uint8_t[]", len(data))
        ffi.buffer(self.input)[:] = data
        self.memory = ffi.new("uint8_t[]", STRUCT_MAX)
        self.arena = ffi.new("struct pc_arena *")
        self.status = lib.pc_schema_decode(schema, (self.input, len(data), False), self.arena, self.memory)

    def values(self) -> list[Value]:
        return read(self.schema, self.memory)

    def again(self) -> bytes:
        writer = ffi.new("struct pc_writer *")
        lib.pc_schema_encode(self.schema, self.memory, writer)
        data = bytes(ffi.buffer(writer.data, writer.len)) if writer.len else b""
        lib.pc_writer_fini(writer)
        return data

    def __enter__(self) -> Decoded:
        return self

    def __exit__(self, *_: object) -> None:
        lib.pc_arena_reset(self.arena)


def test_the_table_names_each_message_once() -> None:
    header = (CSRC / "wire" / "message.h").read_text()
    named = [int(value) for value in re.findall(r"^    PC_MSG_\w+ = (\d+)", header, re.MULTILINE)]
    assert sorted(named) == sorted(MESSAGES)
    assert len(named) >= 34
    assert all(schema.struct_bytes <= STRUCT_MAX for schema in MESSAGES.values())


@pytest.mark.parametrize("type_", MESSAGES, ids=NAMES.get)
def test_round_trip(type_: int) -> None:
    schema = MESSAGES[type_]
    for seed in range(30):
        values = draw(schema, random.Random(seed))
        data = encode(schema, values)
        with Decoded(schema, data) as message:
            assert message.status == 0
            assert message.values() == values
            assert message.again() == data


@pytest.mark.parametrize("type_", MESSAGES, ids=NAMES.get)
def test_every_truncation_and_every_longer_one_is_refused(type_: int) -> None:
    schema = MESSAGES[type_]
    data = encode(schema, draw(schema, random.Random(1)))
    for length in range(len(data)):
        with Decoded(schema, data[:length]) as message:
            assert message.status != 0, f"{length} of {len(data)} bytes"
    with Decoded(schema, data + b"\0") as message:
        assert message.status != 0


@pytest.mark.parametrize("type_", MESSAGES, ids=NAMES.get)
def test_a_mutated_byte_is_refused_or_means_something_else(type_: int) -> None:
    schema = MESSAGES[type_]
    rng = random.Random(2)
    data = encode(schema, draw(schema, rng))
    for at in range(len(data)):
        for flip in (1, 0x80, rng.randrange(1, 256)):
            mutated = bytearray(data)
            mutated[at] ^= flip
            with Decoded(schema, bytes(mutated)) as message:
                assert message.status != 0 or message.again() == bytes(mutated)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=300))
def test_any_bytes(type_: int, data: bytes) -> None:
    with Decoded(MESSAGES[type_], data) as message:
        assert message.status != 0 or message.again() == data


@pytest.mark.parametrize("type_", MESSAGES, ids=NAMES.get)
def test_lengths_that_claim_too_much(type_: int) -> None:
    """A list or text of 2^32 - 1 elements is refused before memory is taken for it."""
    schema = MESSAGES[type_]
    if not any(field.kind in (LIST, TEXT) for field in fields(schema)):
        return
    values = draw(schema, random.Random(3))
    before = b""
    for field, value in zip(fields(schema), values, strict=True):
        if field.kind in (LIST, TEXT):
            with Decoded(schema, before + b"\xff\xff\xff\xff" + bytes(50)) as message:
                assert message.status != 0
        one = ffi.new("struct pc_schema *", [schema.name, ffi.addressof(field), 1, schema.struct_bytes])
        before += encode(one[0], [value])


@pytest.mark.parametrize("type_", MESSAGES, ids=NAMES.get)
def test_a_list_takes_no_memory_unless_its_elements_can_be_there(type_: int) -> None:
    """As many elements as bytes are left: more than would fit, unless they took one byte each."""
    schema = MESSAGES[type_]
    lists = [i for i, field in enumerate(fields(schema)) if field.kind == LIST]
    if not lists:
        return
    values = draw(schema, random.Random(4))
    values[lists[0]] = []
    first = fields(schema)[lists[0]]
    one = ffi.new("struct pc_schema *", [schema.name, schema.fields, lists[0] + 1, schema.struct_bytes])
    head = encode(one[0], values[: lists[0] + 1])[:-4]
    least = len(encode(first.sub, draw_empty(first.sub)))
    assert least > 1
    for count in (100, 100 // least + 1):
        with Decoded(schema, head + count.to_bytes(4, "little") + bytes(100)) as message:
            assert message.status != 0
            assert message.arena.blocks == ffi.NULL
    fits = 100 // least
    with Decoded(schema, head + fits.to_bytes(4, "little") + bytes(100)) as message:
        assert message.arena.blocks != ffi.NULL


FRAME = {"cookie": 0x4C434350, "type": 66, "flags": 1, "meta_len": 40, "bulk_len": 1 << 20, "bulk_digest": 2**64 - 5}


def sealed(meta: bytes) -> Any:
    memory = ffi.new("uint8_t[]", 32 + len(meta))
    ffi.buffer(memory)[32:] = meta
    lib.pc_frame_seal(ffi.new("struct pc_frame *", {**FRAME, "meta_len": len(meta)}), memory)
    return memory


def test_a_frame_header_is_read_as_it_was_written() -> None:
    memory, frame = sealed(bytes(range(40))), ffi.new("struct pc_frame *")
    assert lib.pc_frame_open(memory, frame) == 0
    assert {name: getattr(frame, name) for name in FRAME} == FRAME
    assert lib.pc_frame_intact(memory, 40)


def test_every_changed_byte_of_header_and_meta_is_seen() -> None:
    memory = sealed(bytes(range(40)))
    for at in range(72):
        for flip in (1, 0x10, 0x80):
            memory[at] ^= flip
            frame = ffi.new("struct pc_frame *")
            opened = lib.pc_frame_open(memory, frame) == 0 and frame.meta_len == 40
            assert not (opened and lib.pc_frame_intact(memory, 40)), f"byte {at}"
            memory[at] ^= flip
    assert lib.pc_frame_intact(memory, 40)
