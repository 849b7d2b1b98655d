/*
 * K3, private to collective.c: the final value of a segment, made where all inputs are and brought to its place in the
 * caller's buffer. Piece by piece, so that each element is read from memory and written there once, whatever is done with
 * it between.
 */
#ifndef PC_PROTO_RESULT_H
#define PC_PROTO_RESULT_H

#include "proto/value.h"

/* Where the final value of a range of chunk goes, and where an abort finds what was there. */
uint8_t *pc_result_place(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range);
uint8_t *pc_result_shadow(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range);

/* All that follows keeps what it overwrites in the shadow, if there is one: after it, that has all of the range. */
void pc_result_save(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range);
/*
 * acc op last, divided for averages, comes to its place. acc is of the operands' type, or wide in its segment; last as the
 * caller has it, or of weight 0.
 */
void pc_result_finish(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                      const struct pc_value *acc, const struct pc_value *last);
/*
 * acc op last, divided for averages, is encoded to coded->data, and what that decodes to comes to its place, as it does at
 * all other members. Sets coded->coded_bytes. What coding loses goes into this peer's residual. last is not encoded,
 * unless it is a sum that is made. pcclNotEncodable: a block cannot be coded, and that is an error.
 */
pc_status pc_result_encode(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                           const struct pc_value *acc, const struct pc_value *last, struct pc_value *coded);
/* An encoded final value comes to its place. */
void pc_result_decode(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                      const struct pc_value *coded);

#endif
