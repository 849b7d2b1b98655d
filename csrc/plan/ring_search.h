/* K2: a ring through all members that uses only edges of a given bandwidth, or the proof that there is none. */
#ifndef PC_RING_SEARCH_H
#define PC_RING_SEARCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pc_ring_found { PC_RING_IMPOSSIBLE, PC_RING_UNDECIDED, PC_RING_FOUND };

struct pc_ring_join {
    uint32_t from, to, start, end; /* the edge, and the ends of the path that it made */
};

struct pc_ring_search {
    uint32_t n, words; /* of a row of bits */
    uint64_t *out, *in; /* edges left: bit j of row i of out, and bit i of row j of in */
    uint32_t *out_degree, *in_degree;
    uint32_t *next, *prev; /* edges chosen */
    uint32_t *far; /* of either end of a path of chosen edges: the other end */
    uint32_t *removed; /* edges i * n + j in the order in which they went */
    struct pc_ring_join *joins; /* likewise those chosen */
    uint32_t *queue; /* 2 * member + side: nothing left to choose there */
    uint64_t *seen; /* a row */
    uint32_t removed_count, join_count, queue_count;
    bool failed;
    uint64_t budget, seed;
    const atomic_bool *stop; /* as in struct pc_ring_request */
};

size_t pc_ring_search_bytes(uint32_t n);
void pc_ring_search_init(struct pc_ring_search *search, uint32_t n, void *memory);

/*
 * Whether the edges of at least this bandwidth might hold a ring: cheap, and right when it says no. A larger bandwidth
 * never turns a no into a maybe.
 */
bool pc_ring_search_plausible(struct pc_ring_search *search, const uint64_t *bandwidth, uint64_t least);
/*
 * Searches for one, taking what it uses from *budget. Found: writes order, beginning with 0. seed 0 prefers ascending
 * members; others only vary where it begins.
 */
enum pc_ring_found pc_ring_search_run(struct pc_ring_search *search, const uint64_t *bandwidth, uint64_t least,
                                      uint64_t *budget, uint32_t *order);

#endif
