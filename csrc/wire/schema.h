/*
 * K2: messages described once. A schema lists the fields of a structure in wire order; the one encoder and the one
 * decoder walk it, so they cannot disagree. Decoding copies numbers, points strings into the input, and puts lists into
 * an arena whose size is bounded by the input's: a list is refused if its elements could not all be there.
 */
#ifndef PC_SCHEMA_H
#define PC_SCHEMA_H

#include "base/status.h"
#include "bytes/cursor.h"

enum pc_field_kind {
    PC_FIELD_U8,
    PC_FIELD_U16,
    PC_FIELD_U32,
    PC_FIELD_U64,
    PC_FIELD_BYTES16, /* uint8_t[16] */
    PC_FIELD_TEXT, /* struct pc_text */
    PC_FIELD_LIST, /* struct pc_array of sub */
    PC_FIELD_STRUCT /* sub, inline */
};

/* A string or byte string; not NUL-terminated. */
struct pc_text {
    const char *data;
    uint32_t len_bytes;
};

struct pc_array {
    void *items;
    uint32_t count;
};

struct pc_schema;

struct pc_field {
    enum pc_field_kind kind;
    uint32_t offset;
    const struct pc_schema *sub;
    const char *name;
};

struct pc_schema {
    const char *name;
    const struct pc_field *fields;
    uint32_t field_count;
    uint32_t struct_bytes;
};

/* Bump memory for decoded lists; everything is freed at once. A zeroed one is empty and valid. */
struct pc_arena {
    struct pc_arena_block *blocks;
};

void *pc_arena_alloc(struct pc_arena *arena, size_t count, size_t size);
void pc_arena_reset(struct pc_arena *arena);

void pc_schema_encode(const struct pc_schema *schema, const void *message, struct pc_writer *writer);
/* pcclProtocolError with *message zeroed when the input is short, long or malformed; pcclNoMemory likewise. */
pc_status pc_schema_decode(const struct pc_schema *schema, struct pc_cursor input, struct pc_arena *arena,
                           void *message);

struct pc_text pc_text_of(const char *string);
/* Copies into a fixed, NUL-terminated field, cutting what doesn't fit; control characters become '?'. */
void pc_text_copy(char *out, size_t out_bytes, struct pc_text text);

#endif
