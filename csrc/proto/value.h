/*
 * K3, private to collective.c and result.c: a value on its way through a collective, in whatever form and memory it is, and
 * what can be done to it. Forms: the operands' type, the accumulator's ("wide"), or encoded.
 */
#ifndef PC_PROTO_VALUE_H
#define PC_PROTO_VALUE_H

#include "bytes/dtype.h"
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

/* That of the accumulator. */
static inline pcclDataType_t pc_collective_wide_type(const struct pc_collective *c) {
    return pc_dtype_accumulator(c->dtype);
}

static inline bool pc_collective_codes(const struct pc_collective *c) {
    return c->plan.codec.kind != pcclQuantNone;
}

/* Staging memory with one holder. origin: who sent what it will hold, and waits for its credit. NULL: no memory. */
struct pc_segment *pc_value_take(struct pc_collective *c, uint32_t origin, uint32_t elems);
/* One holder less; the last one gives it back. NULL is fine. */
void pc_value_give(struct pc_collective *c, struct pc_segment *segment);

/*
 * Staging memory for value in another form, with value's weight. Credit follows the value: while it is in staging memory,
 * whoever sent it waits.
 */
pc_status pc_value_take_for(struct pc_collective *c, const struct pc_value *value, uint32_t elems, struct pc_value *other);

/* The own contribution to a segment of chunk, scaled, with what feedback adds to it. */
pc_status pc_value_own(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *value);
/* Encodes a value that is not final. What coding loses of it goes into this peer's residual. */
pc_status pc_value_encode(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                          struct pc_value *value);
/* Moves value to staging memory of its own, in the accumulator's type, unless it is there. */
pc_status pc_value_make_accumulator(struct pc_collective *c, struct pc_value *value, uint32_t elems);
/* acc = acc op value; value is used up. */
pc_status pc_value_absorb(struct pc_collective *c, struct pc_value *acc, struct pc_value value, uint32_t elems);
/* Whether what has arrived encoded can be decoded. */
bool pc_value_intact(const struct pc_collective *c, const struct pc_arrival *arrival, uint32_t elems);

/* Random bits for a segment. */
uint32_t pc_value_seed(const struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment);
/* A walk over value, which is encoded, or, if coded_bytes is 0, memory that will be. */
void pc_value_walk(const struct pc_collective *c, struct pc_codec_walk *walk, const struct pc_value *value,
                   uint32_t elems);
/*
 * residual = values - what they will be decoded to, for the range that is next in the walk; values are used up. divisor: of
 * a final value, for the residual is that of the sum; 0: it is not final.
 */
void pc_value_keep_residual(struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                            struct pc_codec_walk *coded, uint8_t *values, uint64_t divisor);

#endif
