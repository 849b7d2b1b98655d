/*
 * K2: who owns what of a buffer in the direct algorithm: each member a contiguous share, as large as its bandwidth allows
 * in proportion to the others'.
 */
#ifndef PC_SHARE_PLAN_H
#define PC_SHARE_PLAN_H

#include <stdint.h>

struct pc_share_request {
    uint32_t n; /* members, at least 1 */
    const uint64_t *weights; /* n of them; 0: owns nothing; all 0, or NULL: all alike */
    uint64_t count_elems;
    uint32_t block_elems; /* of the codec, at least 1: no block has two owners */
};

/* Writes n + 1 borders: member i owns elements borders[i] to borders[i + 1]. Shares may be empty. */
void pc_share_plan(const struct pc_share_request *request, uint64_t *borders);

#endif
