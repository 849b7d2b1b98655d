/* K2: the order of the members of a group in its ring. */
#ifndef PC_RING_ORDER_H
#define PC_RING_ORDER_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Orders members (ids ascending in, ring order out) so that no two neighbours are a bad pair; pairs holds bad_count
 * pairs of ids. Keeps the order by id when nothing forbids it. Returns false when there is no such ring.
 */
bool pc_ring_order(uint64_t *ids, uint32_t n, const uint64_t (*bad_pairs)[2], uint32_t bad_count);

#endif
