/* Frames held by the emulator: a fixed number of slots, taken and given back in O(1), and queues threaded through them. */
#ifndef WAN_PACKET_POOL_H
#define WAN_PACKET_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define WAN_NO_PACKET UINT32_MAX

struct wan_packet {
    uint64_t due_ns;  /* when its last bit leaves the queue that holds it */
    uint64_t span_ns; /* by so much its first segment is due earlier */
    uint32_t next;    /* in its queue, or in the list of free slots */
    uint32_t len_bytes;
};

struct wan_pool {
    uint8_t *bytes;
    struct wan_packet *packets;
    uint32_t slot_bytes, count;
    uint32_t free; /* first free slot */
    uint32_t held, held_max;
};

/* First in, first out; due times never decrease from first to last. */
struct wan_queue {
    uint32_t first, last;
};

bool wan_pool_init(struct wan_pool *pool, uint32_t count, uint32_t slot_bytes);
void wan_pool_fini(struct wan_pool *pool);

/* A slot of the caller's own, or WAN_NO_PACKET when all are held. */
uint32_t wan_pool_take(struct wan_pool *pool);
void wan_pool_give(struct wan_pool *pool, uint32_t index);

static inline uint8_t *wan_pool_bytes(const struct wan_pool *pool, uint32_t index) {
    return pool->bytes + (uint64_t)index * pool->slot_bytes;
}

void wan_queue_init(struct wan_queue *queue);
void wan_queue_append(struct wan_queue *queue, struct wan_pool *pool, uint32_t index);
/* The first packet, which the queue must have. */
uint32_t wan_queue_pop(struct wan_queue *queue, const struct wan_pool *pool);

/* UINT64_MAX for an empty queue. */
static inline uint64_t wan_queue_due_ns(const struct wan_queue *queue, const struct wan_pool *pool) {
    return queue->first == WAN_NO_PACKET ? UINT64_MAX : pool->packets[queue->first].due_ns;
}

#endif
