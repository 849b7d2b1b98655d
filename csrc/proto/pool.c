/* Reuse of segments and large buffers. Belongs to one machine, so it needs no lock. */
#include "proto/pool.h"

#include "base/checked.h"
#include "plan/chunk_plan.h"

#include <stdlib.h>

enum { SEGMENT_BYTES = sizeof(struct pc_segment) + PC_SEGMENT_MAX_BYTES };

enum { LARGE_BYTES = 1 << 20 };

static uint8_t *take_memory(const struct pc_pool *pool, size_t len_bytes) {
    return len_bytes < LARGE_BYTES || pool->memory.take == NULL ? malloc(len_bytes) : pool->memory.take(len_bytes);
}

static void give_memory(const struct pc_pool *pool, uint8_t *data, size_t len_bytes) {
    if (len_bytes < LARGE_BYTES || pool->memory.give == NULL) {
        free(data);
    } else if (data != NULL) {
        pool->memory.give(data, len_bytes);
    }
}

/* Gives back all that is kept. False: there was nothing. */
static bool trim(struct pc_pool *pool) {
    const bool any = pool->kept_bytes > 0;
    while (pool->idle_count > 0) free(pool->idle_segments[--pool->idle_count]);
    for (int i = 0; i < PC_POOL_BUFFERS_MAX; i++) {
        give_memory(pool, pool->buffers[i].data, pool->buffers[i].capacity);
        pool->buffers[i].data = NULL;
    }
    pool->kept_bytes = 0;
    return any;
}

struct pc_segment *pc_pool_take_segment(struct pc_pool *pool) {
    struct pc_segment *segment = NULL;
    if (pool->idle_count > 0) {
        segment = pool->idle_segments[--pool->idle_count];
        pool->kept_bytes -= SEGMENT_BYTES;
    } else {
        segment = aligned_alloc(_Alignof(struct pc_segment), SEGMENT_BYTES);
        if (segment == NULL && trim(pool)) segment = aligned_alloc(_Alignof(struct pc_segment), SEGMENT_BYTES);
        if (segment == NULL) return NULL;
    }
    pool->out_count++;
    return segment;
}

void pc_pool_give_segment(struct pc_pool *pool, struct pc_segment *segment) {
    pool->out_count--;
    if (pool->idle_count == PC_POOL_SEGMENTS_KEPT) {
        free(segment);
        return;
    }
    pool->idle_segments[pool->idle_count++] = segment;
    pool->kept_bytes += SEGMENT_BYTES;
}

bool pc_pool_scarce(const struct pc_pool *pool) {
    return pool->out_count >= PC_POOL_SEGMENTS_KEPT / 2;
}

/* Eighths of a power of two: sizes that differ a little share a buffer, and at most an eighth is wasted. */
static size_t rounded(size_t len_bytes) {
    size_t step = 4096;
    while (step * 8 < len_bytes && step < SIZE_MAX / 16) step *= 2;
    size_t padded = 0;
    if (pc_add_overflows(len_bytes, step - 1, &padded)) return len_bytes;
    return padded / step * step;
}

uint8_t *pc_pool_take_buffer(struct pc_pool *pool, size_t len_bytes, size_t *capacity) {
    const size_t want = rounded(len_bytes == 0 ? 1 : len_bytes);
    for (int i = 0; i < PC_POOL_BUFFERS_MAX; i++) {
        if (pool->buffers[i].data == NULL || pool->buffers[i].capacity != want) continue;
        uint8_t *data = pool->buffers[i].data;
        pool->buffers[i].data = NULL;
        pool->kept_bytes -= want;
        *capacity = want;
        return data;
    }
    *capacity = want;
    uint8_t *data = take_memory(pool, want);
    return data != NULL || !trim(pool) ? data : take_memory(pool, want);
}

void pc_pool_give_buffer(struct pc_pool *pool, uint8_t *buffer, size_t capacity) {
    if (buffer == NULL) return;
    int smallest = 0;
    for (int i = 0; i < PC_POOL_BUFFERS_MAX; i++) {
        if (pool->buffers[i].data == NULL) {
            smallest = i;
            break;
        }
        if (pool->buffers[i].capacity < pool->buffers[smallest].capacity) smallest = i;
    }
    if (pool->buffers[smallest].data != NULL) {
        pool->kept_bytes -= pool->buffers[smallest].capacity;
        give_memory(pool, pool->buffers[smallest].data, pool->buffers[smallest].capacity);
    }
    pool->buffers[smallest].data = buffer;
    pool->buffers[smallest].capacity = capacity;
    pool->kept_bytes += capacity;
}

void pc_pool_fini(struct pc_pool *pool) {
    (void)trim(pool);
    *pool = (struct pc_pool){.memory = pool->memory};
}
