/*
 * K3, private to collective.c: a value on its way through a collective, in whatever form and memory it is, and what can
 * be done to it. Forms: the operands' type, the accumulator's ("wide"), or encoded.
 */
#ifndef PC_PROTO_VALUE_H
#define PC_PROTO_VALUE_H

#include "proto/collective.h"

/* Something to be combined: the sum of contributions whose weights add up to weight. 0: nothing. */
struct pc_value {
    const uint8_t *data;
    struct pc_segment *segment; /* that holds data; NULL: the caller's memory */
    bool wide; /* in the accumulator's type, not in the operands' */
    uint32_t coded_bytes; /* not 0: it is encoded, in so many bytes */
    uint64_t weight;
};

/* Whether partial results are of another type than operands. */
static inline bool pc_collective_widens(const struct pc_collective *c) {
    return c->plan.acc_bytes != c->plan.elem_bytes;
}

static inline bool pc_collective_codes(const struct pc_collective *c) {
    return c->plan.codec.kind != pcclQuantNone;
}

/* Staging memory with one holder. origin: who sent what it will hold, and waits for its credit. NULL: no memory. */
struct pc_segment *pc_value_take(struct pc_collective *c, uint32_t origin, uint32_t elems);
/* One holder less; the last one gives it back. NULL is fine. */
void pc_value_give(struct pc_collective *c, struct pc_segment *segment);

/* The own contribution to a segment of chunk, scaled, with what feedback adds to it. */
pc_status pc_value_own(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *value);
/* Encodes value. What coding loses of it goes into this peer's residual. final: it is a result, for averages divided. */
pc_status pc_value_encode(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *value,
                          bool final);
/* Moves value to staging memory of its own, in the accumulator's type, unless it is there. */
pc_status pc_value_make_accumulator(struct pc_collective *c, struct pc_value *value, uint32_t elems);
/* acc = acc op value; value is used up. */
pc_status pc_value_absorb(struct pc_collective *c, struct pc_value *acc, struct pc_value value, uint32_t elems);
/* Whether what has arrived encoded can be decoded. */
bool pc_value_intact(const struct pc_collective *c, const struct pc_arrival *arrival, uint32_t elems);
/* Decodes a final value to out, as operands. value stays. */
pc_status pc_value_decode(struct pc_collective *c, uint8_t *out, const struct pc_value *value, uint32_t elems);

#endif
