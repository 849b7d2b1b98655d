/*
 * K5, private to api/: a communicator. The member machine and all that touches it belong to the loop's thread; what
 * callers' threads see is under one mutex: requests, and a snapshot of the member list that is renewed before a call
 * returns. The memory lives as long as the user's handle or any request does.
 */
#ifndef PC_COMMUNICATOR_H
#define PC_COMMUNICATOR_H

#include "api/config.h"
#include "api/failure.h"
#include "api/callers.h"
#include "io/loop.h"
#include "proto/member.h"

struct pc_snapshot {
    bool connected;
    pc_error lost; /* else: why it is out of the run */
    uint64_t id, epoch, group_epoch, incarnation;
    int global_size, group_size, groups, largest_group;
    pcclMember_t *members;
    size_t member_count, member_capacity;
    struct pc_group_view *subsets; /* groups made of some members, this peer among them */
    size_t subset_count, subset_capacity;
};

enum { PC_OPEN_TAG_BUCKETS = 256 };

struct pcclComm_t {
    uint64_t generation; /* of the process that made it */
    struct pc_settings settings;

    pthread_mutex_t lock; /* of the next group */
    pthread_cond_t any_done; /* any request of one who waits for several; or the last runner has gone */
    uint32_t any_waiters;
    struct pc_callers callers;
    uint32_t refs; /* the handle, and each request in use */
    uint32_t open; /* requests that the machine has */
    uint32_t runners; /* threads that are about to run the loop, or do */
    bool connecting, was_connected, destroying;
    struct pc_list active, idle; /* requests */
    uint32_t reduces_open; /* collectives unfinished, or asynchronous and not awaited */
    struct pc_list tags[PC_OPEN_TAG_BUCKETS]; /* the same, by tag */
    uint32_t *steps; /* groups whose collectives belong to a step now */
    size_t step_count, step_capacity;
    struct pc_snapshot view;
    struct pc_loop *loop; /* NULL until the first connect */

    /* The loop's thread, once that runs. */
    struct pc_member *member;
    uint16_t port;
    bool dual_stack; /* the listener takes IPv6 too */
    struct pcclRequest_t *connect; /* being resolved */
    struct pc_resolve *resolve;
    struct pc_address advertised[PC_ADDRESSES_MAX]; /* of PCCL_ADVERTISE */
    uint32_t advertised_count;
};

/* The checks that every call makes first. */
pcclResult_t pc_comm_check(const pcclComm_t *comm, const char *phase);
/* Also: connected, now or before. */
pcclResult_t pc_comm_check_connected(const pcclComm_t *comm, const char *phase);
/* Also: now. Fails with the error that ended the run for it. */
pcclResult_t pc_comm_check_in_run(const pcclComm_t *comm, const char *phase);

/* Starts listener and thread, unless they run. */
pc_status pc_comm_start(pcclComm_t *comm, pc_error *error);
/* On the loop's thread: the CONNECT request, through name resolution to the machine. */
void pc_comm_connect(pcclComm_t *comm, struct pcclRequest_t *request, uint64_t now_ns);
/* On the loop's thread: true if the request was still being resolved; then it is completed by the caller. */
bool pc_comm_connect_cancel(pcclComm_t *comm, struct pcclRequest_t *request);
/* On the loop's thread, under lock: renews the snapshot, and the part of it that changes without an epoch. */
void pc_comm_renew_view(pcclComm_t *comm);
void pc_comm_renew_subsets(pcclComm_t *comm);
/* Runs function on the loop's thread and waits for it; false: the loop isn't there. */
bool pc_comm_run(pcclComm_t *comm, void (*function)(pcclComm_t *comm, void *argument, uint64_t now_ns), void *argument);

/* With lock held; the one that drops the last reference unlocks and frees. */
void pc_comm_unref_unlock(pcclComm_t *comm);

/* A const handle of PCCL's interface: the functions promise the user's view of it, not ours. */
static inline pcclComm_t *pc_comm_of(const pcclComm_t *comm) {
    union {
        const pcclComm_t *in;
        pcclComm_t *out;
    } handle = {.in = comm};
    return handle.out;
}

#endif
