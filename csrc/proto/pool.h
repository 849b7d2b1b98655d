/*
 * K3: memory that a communicator keeps for reuse, so that the steady state of an operation allocates nothing: segments of
 * one size, last used first (they are still in the cache), and a few large buffers.
 */
#ifndef PC_POOL_H
#define PC_POOL_H

#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>

enum { PC_POOL_SEGMENTS_KEPT = 64, PC_POOL_BUFFERS_MAX = 8 };

/* Staging memory for one segment of a payload, PC_SEGMENT_MAX_BYTES, aligned for vectors. */
struct pc_segment {
    struct pc_list node; /* its owner's */
    uint32_t origin, elems; /* its owner's: who sent what it holds */
    uint32_t holders; /* its owner's: how many still need it */
    uint8_t kind; /* its owner's: in which form that came */
    bool contribution; /* its owner's: it holds a contribution on its way out */
    _Alignas(64) uint8_t data[];
};

/* Where large buffers come from is an argument; left zero, they come from malloc. */
struct pc_memory {
    void *(*take)(size_t len_bytes);
    void (*give)(void *data, size_t len_bytes);
};

struct pc_pool {
    struct pc_memory memory;
    struct pc_segment *idle_segments[PC_POOL_SEGMENTS_KEPT];
    uint32_t idle_count, out_count;
    struct {
        uint8_t *data;
        size_t capacity;
    } buffers[PC_POOL_BUFFERS_MAX];
    size_t kept_bytes;
};

/* NULL: no memory. More than are kept can be out; see pc_pool_scarce. */
struct pc_segment *pc_pool_take_segment(struct pc_pool *pool);
void pc_pool_give_segment(struct pc_pool *pool, struct pc_segment *segment);
/* So many segments are out that what can lie elsewhere should. */
bool pc_pool_scarce(const struct pc_pool *pool);
/* At least len_bytes; *capacity tells how many, and goes back with it. NULL: no memory. */
uint8_t *pc_pool_take_buffer(struct pc_pool *pool, size_t len_bytes, size_t *capacity);
void pc_pool_give_buffer(struct pc_pool *pool, uint8_t *buffer, size_t capacity);
void pc_pool_fini(struct pc_pool *pool);

#endif
