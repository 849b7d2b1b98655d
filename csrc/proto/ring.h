/*
 * K3: one ring all-reduce at one member. Told which segments have come and gone; says where the next one goes and which
 * can be sent. Keeps what it overwrites in the caller's buffer until the verdict: abort restores exactly that.
 *
 * Memory: partial results live in segments of the pool. When those are out they go to the place of the segment in the
 * receive buffer (out of place) or in the shadow. The shadow, as large as the buffer, exists in place (undo) and for
 * 16-bit floats (partials are float32). A range of it is used first for a partial result and only then for undo: the
 * final value of a range arrives here only after its partial has gone all the way round.
 */
#ifndef PC_RING_H
#define PC_RING_H

#include "plan/ring_plan.h"
#include "proto/pool.h"

/* A segment is ready to be sent in round; bulk stays valid until pc_ring_sent or pc_ring_fini. */
typedef pc_status (*pc_ring_emit)(void *context, uint32_t round, uint32_t segment, uint64_t first_elem,
                                  const uint8_t *bulk, uint32_t len_bytes);

struct pc_ring {
    struct pc_ring_plan plan;
    uint32_t position;
    pcclDataType_t dtype;
    pcclRedOp_t redop;
    const uint8_t *send;
    uint8_t *recv;
    bool in_place;
    struct pc_pool *pool;
    uint8_t *shadow;
    size_t shadow_capacity;
    uint8_t *seen; /* bit per (round, segment): has a destination or has arrived */
    uint8_t *saved; /* bit per (chunk, segment): undo copy is in the shadow */
    size_t bits_capacity;
    uint8_t *taken[PC_POOL_SEGMENTS_MAX]; /* segments of the pool that this operation holds */
    uint32_t taken_count;
    uint64_t receives_left, sends_left;
    uint64_t tx_bytes, rx_bytes;
    pc_ring_emit emit;
    void *emit_context;
};

struct pc_ring_config {
    const struct pc_op_shape *shape;
    uint32_t n, position;
    const void *send;
    void *recv;
    struct pc_pool *pool;
    pc_ring_emit emit;
    void *emit_context;
};

/* pcclNoMemory or pcclInvalidArgument leave a ring that fini accepts. */
pc_status pc_ring_init(struct pc_ring *ring, const struct pc_ring_config *config);
/* Emits what needs no input. */
pc_status pc_ring_start(struct pc_ring *ring);
/* Where an arriving segment goes. pcclProtocolError: no such segment, wrong length, or a second time. */
pc_status pc_ring_sink(struct pc_ring *ring, uint32_t round, uint32_t segment, uint32_t len_bytes, uint8_t **data);
/* It has arrived there. Emits what follows from it. */
pc_status pc_ring_received(struct pc_ring *ring, uint32_t round, uint32_t segment, uint8_t *data);
/* The segment emitted with bulk has left. */
void pc_ring_sent(struct pc_ring *ring, const uint8_t *bulk);
/* Everything has come and gone: the result is complete here. */
bool pc_ring_complete(const struct pc_ring *ring);
/* Gives the caller's buffer its content from before (in place). Nothing may be in flight any more. */
void pc_ring_undo(struct pc_ring *ring);
void pc_ring_fini(struct pc_ring *ring);

#endif
