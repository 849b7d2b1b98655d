/* Bounded reading and writing of little-endian integers. Pure; no message knowledge. */
#include "bytes/cursor.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

void pc_bytes_put(uint8_t *out, uint64_t value, unsigned width_bytes) {
    for (unsigned i = 0; i < width_bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

uint64_t pc_bytes_get(const uint8_t *in, unsigned width_bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < width_bytes; i++) value |= (uint64_t)in[i] << (8 * i);
    return value;
}

const uint8_t *pc_cursor_take(struct pc_cursor *cursor, size_t len_bytes) {
    if (cursor->failed || cursor->left < len_bytes) {
        cursor->failed = true;
        return NULL;
    }
    const uint8_t *taken = cursor->at;
    cursor->at += len_bytes;
    cursor->left -= len_bytes;
    return taken;
}

uint64_t pc_cursor_uint(struct pc_cursor *cursor, unsigned width_bytes) {
    const uint8_t *bytes = pc_cursor_take(cursor, width_bytes);
    return bytes == NULL ? 0 : pc_bytes_get(bytes, width_bytes);
}

static uint8_t *writer_room(struct pc_writer *writer, size_t len_bytes) {
    size_t end = 0;
    void *data = writer->data;
    if (writer->failed || pc_add_overflows(writer->len, len_bytes, &end) ||
        !pc_grow(&data, &writer->capacity, end, 1)) {
        writer->failed = true;
        return NULL;
    }
    writer->data = data;
    uint8_t *room = writer->data + writer->len;
    writer->len = end;
    return room;
}

void pc_writer_bytes(struct pc_writer *writer, const void *data, size_t len_bytes) {
    if (len_bytes == 0) return;
    uint8_t *room = writer_room(writer, len_bytes);
    if (room != NULL) memcpy(room, data, len_bytes);
}

void pc_writer_uint(struct pc_writer *writer, uint64_t value, unsigned width_bytes) {
    uint8_t *room = writer_room(writer, width_bytes);
    if (room != NULL) pc_bytes_put(room, value, width_bytes);
}

void pc_writer_fini(struct pc_writer *writer) {
    free(writer->data);
    *writer = (struct pc_writer){0};
}
