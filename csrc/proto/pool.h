/*
 * K3: memory that a communicator keeps for reuse, so that the steady state of an operation allocates nothing: segments of
 * one size, last used first (they are still in the cache), and a few large buffers.
 */
#ifndef PC_POOL_H
#define PC_POOL_H

#include <stddef.h>
#include <stdint.h>

enum { PC_POOL_SEGMENTS_MAX = 64, PC_POOL_BUFFERS_MAX = 8 };

struct pc_pool {
    uint8_t *idle_segments[PC_POOL_SEGMENTS_MAX];
    uint32_t idle_count, segment_count;
    struct {
        uint8_t *data;
        size_t capacity;
    } buffers[PC_POOL_BUFFERS_MAX];
    size_t kept_bytes;
};

/* A segment of PC_SEGMENT_MAX_BYTES; NULL when all PC_POOL_SEGMENTS_MAX are out or there is no memory. */
uint8_t *pc_pool_take_segment(struct pc_pool *pool);
void pc_pool_give_segment(struct pc_pool *pool, uint8_t *segment);
/* At least len_bytes; *capacity tells how many, and goes back with it. NULL: no memory. */
uint8_t *pc_pool_take_buffer(struct pc_pool *pool, size_t len_bytes, size_t *capacity);
void pc_pool_give_buffer(struct pc_pool *pool, uint8_t *buffer, size_t capacity);
void pc_pool_fini(struct pc_pool *pool);

#endif
