/*
 * K2: a question about a ring that can be handed to another thread, with its answer: it has copies of what it asks about.
 * One owner at a time; only stop may be set by others meanwhile.
 */
#ifndef PC_RING_JOB_H
#define PC_RING_JOB_H

#include "plan/ring_order.h"

struct pc_ring_job {
    uint64_t serial; /* the asker's */
    struct pc_ring_request request;
    struct pc_ring_quality quality; /* of order, if found */
    uint32_t *order;
    bool found;
    atomic_bool stop; /* ends it soon, with what it has found by then */
};

/* Of the same members and links, with a budget of its own. NULL: no memory. */
struct pc_ring_job *pc_ring_job_create(const struct pc_ring_request *request, uint64_t budget);
/* Accepts NULL. */
void pc_ring_job_destroy(struct pc_ring_job *job);
/* Takes the memory of the search for as long as it lasts; without any, nothing is found. */
void pc_ring_job_run(struct pc_ring_job *job);
/* Whether request is about the same links. */
bool pc_ring_job_asks(const struct pc_ring_job *job, const struct pc_ring_request *request);
/* Proved that there is no better ring. */
bool pc_ring_job_exact(const struct pc_ring_job *job);

#endif
