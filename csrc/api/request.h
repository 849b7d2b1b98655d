/*
 * K5, private to api/: one call of a user on its way through the loop and back. Requests are kept by their communicator
 * and used again, so the steady state of a collective allocates nothing.
 *
 * References: one of the starter, one of the machine until completion, one of each queued command. done is set once,
 * under the communicator's lock, after which only the outcome is read.
 */
#ifndef PC_REQUEST_H
#define PC_REQUEST_H

#include "api/communicator.h"

struct pcclRequest_t {
    struct pc_list node; /* active or idle */
    struct pc_list tag_node; /* of an open_reduce: in its bucket of tags */
    struct pc_list *ended; /* where it goes when it is done, of one who waits for several; NULL: nobody does */
    struct pc_list ended_node;
    pcclComm_t *comm;
    pthread_cond_t finished;
    struct pc_command post, cancel;
    struct pc_call call;
    uint32_t refs;
    uint32_t waiters;
    uint64_t waited_ns; /* when the last wait ended */
    bool posted, done, cancel_queued;
    bool open_reduce; /* counted in reduces_open, and its tag is taken */
    size_t place; /* of a batch: index of the descriptor */
    bool asynchronous, claimed; /* started by pcclAllReduceAsync; somebody awaits it */
};

/* A blank request of this kind, not posted, with the starter's reference; NULL: no memory. */
struct pcclRequest_t *pc_request_create(pcclComm_t *comm, enum pc_call_kind kind);
/* Gives back one that was never posted. */
void pc_request_drop(struct pcclRequest_t *request);
/* Gives it to the machine. Completes in any case. awaited: the caller waits for it next. */
void pc_request_post(struct pcclRequest_t *request, bool awaited);
/* Until done, or timeout_ns passed; UINT64_MAX: for ever. */
bool pc_request_wait(struct pcclRequest_t *request, uint64_t timeout_ns);
/* Gives back the starter's reference; cancels and waits if it isn't done. */
void pc_request_release(struct pcclRequest_t *request);
/* Completes soon. */
void pc_request_cancel(struct pcclRequest_t *request);
/* Posts, waits, copies the outcome, releases; records a failure. */
pcclResult_t pc_request_run(struct pcclRequest_t *request, pcclOutcome_t *outcome);

/* On the loop's thread: the machine's COMPLETE, or the driver's own failure with call->outcome set. */
void pc_request_complete(struct pcclRequest_t *request);
/* On the loop's thread, before a tick: which calls somebody waits in. */
void pc_request_mark_waiting(pcclComm_t *comm, uint64_t now_ns);
/* On the loop's thread, at its end: whatever the machine still held. */
void pc_request_complete_all(pcclComm_t *comm, const pc_error *error);

/* With the communicator's lock held. The open_reduces with this tag, of any group, are all in it. */
struct pc_list *pc_request_tags(pcclComm_t *comm, uint64_t tag);
/* Likewise. Collectives of a group that are unfinished, or asynchronous and not awaited. */
uint32_t pc_request_open_in(const pcclComm_t *comm, uint32_t group);
/* Likewise. Whether collectives of a group that start now belong to a step. */
bool pc_step_is_open(const pcclComm_t *comm, uint32_t group);
/* Whether a call that changes who is there, or the state that all share, may start: nothing is in flight, no step open. */
pcclResult_t pc_request_check_idle(pcclComm_t *comm, const char *phase);

/* Checks arguments and takes the tag, then makes a request. */
struct pc_collective_start {
    pcclCollectiveArgs_t args;
    const char *phase; /* NULL: the name of the collective */
    bool asynchronous; /* it keeps its tag until it is awaited */
};
pcclResult_t pc_collective_start_call(pcclComm_t *comm, const struct pc_collective_start *start,
                                      struct pcclRequest_t **request_out);

#endif
