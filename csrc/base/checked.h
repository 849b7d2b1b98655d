/* K0: arithmetic that reports overflow, and memory that reports failure. */
#ifndef PC_CHECKED_H
#define PC_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool pc_mul_overflows(size_t a, size_t b, size_t *product) {
    return __builtin_mul_overflow(a, b, product);
}

static inline bool pc_add_overflows(size_t a, size_t b, size_t *sum) {
    return __builtin_add_overflow(a, b, sum);
}

static inline size_t pc_min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline uint64_t pc_min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline uint64_t pc_max_u64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* Zeroed memory for count elements of size bytes; NULL if there is none or the product overflows. */
void *pc_calloc(size_t count, size_t size);

/*
 * Grows *items (elements of size bytes, *capacity of them) to hold at least want. Returns false, changing nothing, when
 * there is no memory.
 */
bool pc_grow(void **items, size_t *capacity, size_t want, size_t size);

#endif
