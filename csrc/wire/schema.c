/*
 * The encoder and the decoder of schema-described messages. Pure functions of their arguments. Wire form: integers
 * little-endian, texts as u32 length and bytes, lists as u32 count and elements, structures in place.
 */
#include "wire/schema.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 4, ARENA_BLOCK_BYTES = 4096 };

struct pc_arena_block {
    struct pc_arena_block *next;
    size_t used, capacity;
    max_align_t data[];
};

void *pc_arena_alloc(struct pc_arena *arena, size_t count, size_t size) {
    size_t bytes = 0, padded = 0, total = 0;
    if (pc_mul_overflows(count, size, &bytes) || pc_add_overflows(bytes, sizeof(max_align_t) - 1, &padded)) return NULL;
    padded -= padded % sizeof(max_align_t);
    struct pc_arena_block *block = arena->blocks;
    if (block == NULL || block->capacity - block->used < padded) {
        size_t capacity = padded > ARENA_BLOCK_BYTES ? padded : ARENA_BLOCK_BYTES;
        if (pc_add_overflows(sizeof *block, capacity, &total)) return NULL;
        block = malloc(total);
        if (block == NULL) return NULL;
        block->next = arena->blocks;
        block->used = 0;
        block->capacity = capacity;
        arena->blocks = block;
    }
    void *memory = (char *)block->data + block->used;
    block->used += padded;
    memset(memory, 0, bytes);
    return memory;
}

void pc_arena_reset(struct pc_arena *arena) {
    while (arena->blocks != NULL) {
        struct pc_arena_block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
}

static unsigned int_width(enum pc_field_kind kind) {
    switch (kind) {
    case PC_FIELD_U8: return 1;
    case PC_FIELD_U16: return 2;
    case PC_FIELD_U32: return 4;
    case PC_FIELD_U64: return 8;
    case PC_FIELD_BYTES16:
    case PC_FIELD_TEXT:
    case PC_FIELD_LIST:
    case PC_FIELD_STRUCT: break;
    }
    return 0;
}

static uint64_t load_int(const void *at, unsigned width) {
    uint8_t u8 = 0;
    uint16_t u16 = 0;
    uint32_t u32 = 0;
    uint64_t u64 = 0;
    switch (width) {
    case 1: memcpy(&u8, at, 1); return u8;
    case 2: memcpy(&u16, at, 2); return u16;
    case 4: memcpy(&u32, at, 4); return u32;
    default: memcpy(&u64, at, 8); return u64;
    }
}

static void store_int(void *at, unsigned width, uint64_t value) {
    const uint8_t u8 = (uint8_t)value;
    const uint16_t u16 = (uint16_t)value;
    const uint32_t u32 = (uint32_t)value;
    switch (width) {
    case 1: memcpy(at, &u8, 1); return;
    case 2: memcpy(at, &u16, 2); return;
    case 4: memcpy(at, &u32, 4); return;
    default: memcpy(at, &value, 8); return;
    }
}

void pc_schema_encode(const struct pc_schema *schema, const void *message, struct pc_writer *writer) {
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct pc_field *field = &schema->fields[i];
        const char *at = (const char *)message + field->offset;
        const unsigned width = int_width(field->kind);
        if (width != 0) {
            pc_writer_uint(writer, load_int(at, width), width);
        } else if (field->kind == PC_FIELD_BYTES16) {
            pc_writer_bytes(writer, at, 16);
        } else if (field->kind == PC_FIELD_TEXT) {
            struct pc_text text;
            memcpy(&text, at, sizeof text);
            pc_writer_uint(writer, text.len_bytes, 4);
            pc_writer_bytes(writer, text.data, text.len_bytes);
        } else if (field->kind == PC_FIELD_STRUCT) {
            pc_schema_encode(field->sub, at, writer);
        } else {
            struct pc_array list;
            memcpy(&list, at, sizeof list);
            pc_writer_uint(writer, list.count, 4);
            for (uint32_t k = 0; k < list.count; k++) {
                pc_schema_encode(field->sub, (const char *)list.items + (size_t)k * field->sub->struct_bytes, writer);
            }
        }
    }
}

/* The least that a structure takes on the wire: its texts and lists empty. Every schema has a field, so never 0. */
static size_t least_bytes(const struct pc_schema *schema) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct pc_field *field = &schema->fields[i];
        switch (field->kind) {
        case PC_FIELD_BYTES16: bytes += 16; break;
        case PC_FIELD_TEXT:
        case PC_FIELD_LIST: bytes += 4; break;
        case PC_FIELD_STRUCT: bytes += least_bytes(field->sub); break;
        case PC_FIELD_U8:
        case PC_FIELD_U16:
        case PC_FIELD_U32:
        case PC_FIELD_U64: bytes += int_width(field->kind); break;
        }
    }
    return bytes;
}

static pc_status decode_fields(const struct pc_schema *schema, struct pc_cursor *input, struct pc_arena *arena,
                               void *message, int depth);

static pc_status decode_list(const struct pc_schema *sub, struct pc_cursor *input, struct pc_arena *arena, void *at,
                             int depth) {
    const uint64_t count = pc_cursor_uint(input, 4);
    /* No more elements than there can be, so the message bounds the memory, before any is taken. */
    if (input->failed || count > input->left / least_bytes(sub)) return pcclProtocolError;
    struct pc_array list = {.items = pc_arena_alloc(arena, count, sub->struct_bytes), .count = (uint32_t)count};
    if (list.items == NULL) return pcclNoMemory;
    for (uint64_t k = 0; k < count; k++) {
        PC_TRY(decode_fields(sub, input, arena, (char *)list.items + k * sub->struct_bytes, depth + 1));
    }
    memcpy(at, &list, sizeof list);
    return pcclSuccess;
}

static pc_status decode_fields(const struct pc_schema *schema, struct pc_cursor *input, struct pc_arena *arena,
                               void *message, int depth) {
    if (depth > DEPTH_MAX) return pcclProtocolError;
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct pc_field *field = &schema->fields[i];
        char *at = (char *)message + field->offset;
        const unsigned width = int_width(field->kind);
        if (width != 0) {
            store_int(at, width, pc_cursor_uint(input, width));
        } else if (field->kind == PC_FIELD_BYTES16) {
            const uint8_t *bytes = pc_cursor_take(input, 16);
            if (bytes != NULL) memcpy(at, bytes, 16);
        } else if (field->kind == PC_FIELD_TEXT) {
            struct pc_text text = {.len_bytes = (uint32_t)pc_cursor_uint(input, 4)};
            text.data = (const char *)pc_cursor_take(input, text.len_bytes);
            if (text.data != NULL) memcpy(at, &text, sizeof text);
        } else if (field->kind == PC_FIELD_STRUCT) {
            PC_TRY(decode_fields(field->sub, input, arena, at, depth + 1));
        } else {
            PC_TRY(decode_list(field->sub, input, arena, at, depth));
        }
        if (input->failed) return pcclProtocolError;
    }
    return pcclSuccess;
}

pc_status pc_schema_decode(const struct pc_schema *schema, struct pc_cursor input, struct pc_arena *arena,
                           void *message) {
    memset(message, 0, schema->struct_bytes);
    pc_status status = decode_fields(schema, &input, arena, message, 0);
    if (status == pcclSuccess && input.left != 0) status = pcclProtocolError;
    if (status != pcclSuccess) memset(message, 0, schema->struct_bytes);
    return status;
}

struct pc_text pc_text_of(const char *string) {
    return (struct pc_text){.data = string, .len_bytes = string == NULL ? 0 : (uint32_t)strlen(string)};
}

void pc_text_copy(char *out, size_t out_bytes, struct pc_text text) {
    size_t len = pc_min_size(text.len_bytes, out_bytes - 1);
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)text.data[i];
        out[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    out[len] = '\0';
}
