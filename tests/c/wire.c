/*
 * Every message of the table, encoded and then decoded whole, cut short, changed, and with lengths that claim more than
 * there is. Input and structure are blocks of exactly their size, so that a build with sanitizers sees any step beyond.
 * What decodes must encode to the same bytes.
 */
#include "bytes/cursor.h"
#include "wire/frame.h"
#include "wire/message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGES_EACH = 8, TEXT_MAX = 20, ITEMS_MAX = 3, DEPTH_MAX = 2 };

static uint64_t state = 1;
static uint64_t decodings;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t draw(uint64_t below) {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (z ^ (z >> 31)) % below;
}

static void fail(const struct pc_schema *schema, const char *what, size_t at) {
    (void)fprintf(stderr, "%s: %s at %zu\n", schema->name, what, at);
    exit(1);
}

static void fill_random(void *out, size_t len_bytes) {
    uint8_t *bytes = out;
    for (size_t i = 0; i < len_bytes; i++) bytes[i] = (uint8_t)draw(256);
}

static void draw_message(const struct pc_schema *schema, char *message, struct pc_arena *arena, int depth) {
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct pc_field *field = &schema->fields[i];
        char *at = message + field->offset;
        switch (field->kind) {
        case PC_FIELD_U8: fill_random(at, 1); break;
        case PC_FIELD_U16: fill_random(at, 2); break;
        case PC_FIELD_U32: fill_random(at, 4); break;
        case PC_FIELD_U64: fill_random(at, 8); break;
        case PC_FIELD_BYTES16: fill_random(at, 16); break;
        case PC_FIELD_TEXT: {
            const struct pc_text text = {pc_arena_alloc(arena, TEXT_MAX, 1), (uint32_t)draw(TEXT_MAX)};
            memcpy(at, &text, sizeof text);
            break;
        }
        case PC_FIELD_LIST: {
            const uint32_t count = depth == DEPTH_MAX ? 0 : (uint32_t)draw(ITEMS_MAX + 1);
            const struct pc_array list = {pc_arena_alloc(arena, count, field->sub->struct_bytes), count};
            for (uint32_t k = 0; k < count; k++) {
                draw_message(field->sub, (char *)list.items + k * field->sub->struct_bytes, arena, depth + 1);
            }
            memcpy(at, &list, sizeof list);
            break;
        }
        case PC_FIELD_STRUCT: draw_message(field->sub, at, arena, depth); break;
        }
    }
}

/* Whether these bytes are taken for a message. */
static bool decodes(const struct pc_schema *schema, const uint8_t *bytes, size_t len_bytes) {
    decodings++;
    uint8_t *input = malloc(len_bytes);
    void *message = malloc(schema->struct_bytes);
    if (input == NULL || message == NULL) abort();
    memcpy(input, bytes, len_bytes);
    struct pc_arena arena = {0};
    const bool taken = pc_schema_decode(schema, pc_cursor_of(input, len_bytes), &arena, message) == pcclSuccess;
    if (taken) {
        struct pc_writer again = {0};
        pc_schema_encode(schema, message, &again);
        const bool same = again.len == len_bytes && memcmp(again.data, bytes, len_bytes) == 0;
        if (!same) fail(schema, "another encoding", len_bytes);
        pc_writer_fini(&again);
    }
    pc_arena_reset(&arena);
    free(message);
    free(input);
    return taken;
}

static void check(const struct pc_schema *schema, uint8_t *bytes, size_t len_bytes) {
    if (!decodes(schema, bytes, len_bytes)) fail(schema, "refused", len_bytes);
    for (size_t len = 0; len < len_bytes; len++) {
        if (decodes(schema, bytes, len)) fail(schema, "taken although cut", len);
    }
    for (size_t at = 0; at < len_bytes; at++) {
        const uint8_t kept = bytes[at];
        for (unsigned flip = 1; flip < 256; flip = 3 * flip + 1) {
            bytes[at] = (uint8_t)(kept ^ flip);
            (void)decodes(schema, bytes, len_bytes);
        }
        bytes[at] = kept;
    }
    for (size_t at = 0; at + 4 <= len_bytes; at++) {
        const uint64_t kept = pc_bytes_get(bytes + at, 4), left = len_bytes - at - 4;
        const uint64_t claims[] = {left, left + 1, INT32_MAX, UINT32_MAX};
        for (size_t i = 0; i < sizeof claims / sizeof claims[0]; i++) {
            pc_bytes_put(bytes + at, claims[i], 4);
            (void)decodes(schema, bytes, len_bytes);
        }
        pc_bytes_put(bytes + at, kept, 4);
    }
}

static void check_message(const struct pc_schema *schema) {
    struct pc_arena arena = {0};
    char *message = pc_arena_alloc(&arena, 1, schema->struct_bytes);
    draw_message(schema, message, &arena, 0);
    struct pc_writer encoded = {0};
    pc_schema_encode(schema, message, &encoded);
    if (encoded.failed) abort();
    check(schema, encoded.data, encoded.len);
    pc_writer_fini(&encoded);
    pc_arena_reset(&arena);
}

static void check_frame(uint32_t meta_len) {
    uint8_t *bytes = malloc(PC_FRAME_BYTES + meta_len);
    if (bytes == NULL) abort();
    fill_random(bytes, PC_FRAME_BYTES + meta_len);
    const struct pc_frame sealed = {PC_FRAME_MAGIC, PC_MSG_DATA, PC_FRAME_BULK_DIGEST, meta_len, 7, draw(UINT64_MAX)};
    pc_frame_seal(&sealed, bytes);
    struct pc_frame opened;
    const bool read = pc_frame_open(bytes, &opened) == pcclSuccess && opened.meta_len == meta_len;
    if (!read || !pc_frame_intact(bytes, meta_len)) {
        (void)fprintf(stderr, "a frame with %u bytes of meta\n", meta_len);
        exit(1);
    }
    free(bytes);
}

int main(void) {
    unsigned messages = 0;
    for (; pc_messages[messages].schema != NULL; messages++) {
        for (int i = 0; i < MESSAGES_EACH; i++) check_message(pc_messages[messages].schema);
    }
    for (uint32_t meta_len = 0; meta_len < 300; meta_len++) check_frame(meta_len);
    (void)printf("%u messages, %llu decodings\n", messages, (unsigned long long)decodings);
    return 0;
}
