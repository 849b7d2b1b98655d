/*
 * K4: the user programs of a simulated run, and the laws that their results must keep. Each peer runs the loop that PCCL
 * programs run: pending? update; synchronise when the topology changed; collectives, retried while there is somebody; next step.
 */
#ifndef PC_WORKLOAD_H
#define PC_WORKLOAD_H

#include "sim/world.h"

struct pc_workload;

struct pc_workload_config {
    uint64_t seed;
    uint32_t peers, ops;
    bool faults, io_threads;
    uint64_t crash_event; /* not 0: crash_peer crashes after this event */
    uint32_t crash_peer;
};

struct pc_workload *pc_workload_create(const struct pc_workload_config *config);
void pc_workload_destroy(struct pc_workload *workload);
/* Runs the schedule to its end. False: a law broke; verdict says which, where and when. */
bool pc_workload_run(struct pc_workload *workload, pcclSimReport_t *report);

#endif
