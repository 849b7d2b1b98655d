/*
 * K1: the bounded read cursor and the writer; all integers little-endian. The only code that touches raw wire bytes.
 * A read past the end sets failed and gives zero; callers check failed once, after the last read.
 */
#ifndef PC_CURSOR_H
#define PC_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pc_cursor {
    const uint8_t *at;
    size_t left;
    bool failed;
};

static inline struct pc_cursor pc_cursor_of(const void *data, size_t len_bytes) {
    return (struct pc_cursor){.at = data, .left = len_bytes, .failed = false};
}

/* The next len_bytes of the input, not copied; NULL (and failed) if there are fewer. */
const uint8_t *pc_cursor_take(struct pc_cursor *cursor, size_t len_bytes);
/* Unsigned integer of width 1, 2, 4 or 8 bytes. */
uint64_t pc_cursor_uint(struct pc_cursor *cursor, unsigned width_bytes);

/* Writes into memory that it grows itself; failed means that there was no memory. fini accepts zeroed memory. */
struct pc_writer {
    uint8_t *data;
    size_t len, capacity;
    bool failed;
};

void pc_writer_bytes(struct pc_writer *writer, const void *data, size_t len_bytes);
void pc_writer_uint(struct pc_writer *writer, uint64_t value, unsigned width_bytes);
void pc_writer_fini(struct pc_writer *writer);

/* One integer at a known place, for fixed headers. */
void pc_bytes_put(uint8_t *out, uint64_t value, unsigned width_bytes);
uint64_t pc_bytes_get(const uint8_t *in, unsigned width_bytes);

#endif
