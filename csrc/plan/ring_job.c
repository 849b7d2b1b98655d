/* Job, matrices and order are one allocation. The budget is no part of the question, for it says nothing of the links. */
#include "plan/ring_job.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

struct pc_ring_job *pc_ring_job_create(const struct pc_ring_request *request, uint64_t budget) {
    const size_t cells = (size_t)request->n * request->n;
    struct pc_ring_job *job = pc_calloc(1, sizeof *job + 2 * cells * sizeof(uint64_t) + request->n * sizeof(uint32_t));
    if (job == NULL) return NULL;
    uint64_t *bandwidth = (uint64_t *)(void *)(job + 1), *latency_ns = bandwidth + cells;
    memcpy(bandwidth, request->bandwidth, cells * sizeof *bandwidth);
    if (request->latency_ns != NULL) memcpy(latency_ns, request->latency_ns, cells * sizeof *latency_ns);
    job->order = (uint32_t *)(void *)(latency_ns + cells);
    job->request = (struct pc_ring_request){
        .n = request->n,
        .bandwidth = bandwidth,
        .latency_ns = request->latency_ns != NULL ? latency_ns : NULL,
        .budget = budget,
        .stop = &job->stop,
    };
    return job;
}

void pc_ring_job_destroy(struct pc_ring_job *job) {
    free(job);
}

void pc_ring_job_run(struct pc_ring_job *job) {
    void *memory = pc_calloc(1, pc_ring_order_bytes(job->request.n));
    job->found = memory != NULL && pc_ring_order(&job->request, job->order, &job->quality, memory);
    free(memory);
}

bool pc_ring_job_asks(const struct pc_ring_job *job, const struct pc_ring_request *request) {
    const struct pc_ring_request *own = &job->request;
    const size_t len_bytes = (size_t)own->n * own->n * sizeof(uint64_t);
    if (own->n != request->n || (own->latency_ns == NULL) != (request->latency_ns == NULL)) return false;
    if (memcmp(own->bandwidth, request->bandwidth, len_bytes) != 0) return false;
    return own->latency_ns == NULL || memcmp(own->latency_ns, request->latency_ns, len_bytes) == 0;
}

bool pc_ring_job_exact(const struct pc_ring_job *job) {
    return job->request.n <= PC_RING_EXACT_MAX || (job->quality.widest && job->request.latency_ns == NULL);
}
