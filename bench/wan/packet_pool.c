/*
 * The memory of the emulator, allocated once. One thread. Free slots form a stack, so that light traffic keeps using the
 * same few, which stay in the cache; a slot that was never used costs address space only.
 */
#include "packet_pool.h"

#include <assert.h>
#include <stdlib.h>

bool wan_pool_init(struct wan_pool *pool, uint32_t count, uint32_t slot_bytes) {
    *pool = (struct wan_pool){.slot_bytes = slot_bytes, .count = count, .free = count == 0 ? WAN_NO_PACKET : 0};
    pool->bytes = calloc(count, slot_bytes);
    pool->packets = calloc(count, sizeof *pool->packets);
    if (pool->bytes == NULL || pool->packets == NULL) {
        wan_pool_fini(pool);
        return false;
    }
    for (uint32_t i = 0; i < count; i++) pool->packets[i].next = i + 1 < count ? i + 1 : WAN_NO_PACKET;
    return true;
}

void wan_pool_fini(struct wan_pool *pool) {
    free(pool->bytes);
    free(pool->packets);
    *pool = (struct wan_pool){.free = WAN_NO_PACKET};
}

uint32_t wan_pool_take(struct wan_pool *pool) {
    const uint32_t index = pool->free;
    if (index == WAN_NO_PACKET) return index;
    pool->free = pool->packets[index].next;
    pool->held++;
    if (pool->held > pool->held_max) pool->held_max = pool->held;
    return index;
}

void wan_pool_give(struct wan_pool *pool, uint32_t index) {
    assert(index < pool->count && pool->held > 0);
    pool->packets[index].next = pool->free;
    pool->free = index;
    pool->held--;
}

void wan_queue_init(struct wan_queue *queue) {
    queue->first = queue->last = WAN_NO_PACKET;
}

void wan_queue_append(struct wan_queue *queue, struct wan_pool *pool, uint32_t index) {
    assert(queue->first == WAN_NO_PACKET || pool->packets[queue->last].due_ns <= pool->packets[index].due_ns);
    pool->packets[index].next = WAN_NO_PACKET;
    if (queue->first == WAN_NO_PACKET) queue->first = index;
    else pool->packets[queue->last].next = index;
    queue->last = index;
}

uint32_t wan_queue_pop(struct wan_queue *queue, const struct wan_pool *pool) {
    const uint32_t index = queue->first;
    assert(index != WAN_NO_PACKET);
    queue->first = pool->packets[index].next;
    return index;
}
