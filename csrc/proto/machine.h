/*
 * K3: what every machine shows its driver. A driver (the event loop or the simulator) feeds events with the time, then
 * carries out the actions that have gathered, in order. Machines never block, read no clock and know no socket.
 *
 * Streams: a machine creates one to dial (PC_ACTION_DIAL) or when the driver accepted a connection (ops->accept). The
 * driver answers a dial with ops->opened or ops->closed. After ops->closed, or for its own reasons, the machine emits
 * PC_ACTION_CLOSE exactly once for each stream; the driver then closes the socket and calls pc_stream_destroy.
 */
#ifndef PC_MACHINE_H
#define PC_MACHINE_H

#include "plan/ring_job.h"
#include "proto/stream.h"

enum pc_action_kind {
    PC_ACTION_DIAL, /* connect stream to one of addresses, tried in order; none given: to the master */
    PC_ACTION_WRITE, /* stream has bytes: call tx_spans until it gives none */
    PC_ACTION_CLOSE, /* flush what the socket takes at once, close it, destroy stream */
    PC_ACTION_COMPLETE, /* call is over: its error and outcome are set, its buffers are the caller's again */
    PC_ACTION_DIAL_BACK, /* master: check that peer id accepts connections at addresses; answer with dialed_back */
    PC_ACTION_SEARCH /* master: pc_ring_job_run(job) beside the machine; give it back with searched, or destroy it */
};

struct pc_action {
    enum pc_action_kind kind;
    struct pc_stream *stream;
    struct pc_call *call;
    struct pc_ring_job *job; /* the driver's from now on */
    uint64_t id;
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t address_count;
};

struct pc_actions {
    struct pc_action *items;
    size_t head, count, capacity;
    bool failed; /* no memory: the driver ends the machine */
};

/* The one that pc_actions_next would give. */
const struct pc_action *pc_actions_first(struct pc_actions *actions);
/* The next action, valid until the next event; NULL: none. */
const struct pc_action *pc_actions_next(struct pc_actions *actions);
struct pc_action *pc_actions_add(struct pc_actions *actions, enum pc_action_kind kind);
void pc_actions_fini(struct pc_actions *actions);

struct pc_machine;

struct pc_machine_ops {
    /* A connection came in. NULL: refuse it. */
    struct pc_stream *(*accept)(struct pc_machine *machine, const struct pc_address *from, uint64_t now_ns);
    /* A dial succeeded; stream->remote says where to. loopback: payload need not be digested. */
    void (*opened)(struct pc_machine *machine, struct pc_stream *stream, bool loopback, uint64_t now_ns);
    /* A dial failed, or the connection ended (sys_errno 0: the other end closed it). */
    void (*closed)(struct pc_machine *machine, struct pc_stream *stream, int sys_errno, uint64_t now_ns);
    void (*received)(struct pc_machine *machine, struct pc_stream *stream, size_t len_bytes, uint64_t now_ns);
    void (*sent)(struct pc_machine *machine, struct pc_stream *stream, size_t len_bytes, uint64_t now_ns);
    /* When tick is due; UINT64_MAX: never. Changes with every event. */
    uint64_t (*deadline)(const struct pc_machine *machine);
    void (*tick)(struct pc_machine *machine, uint64_t now_ns);
};

/* The first member of every machine. */
struct pc_machine {
    const struct pc_machine_ops *ops;
    struct pc_actions actions;
    char name[24]; /* in log lines */
};

/* Randomness is an argument. */
struct pc_random {
    void (*fill)(void *state, void *out, size_t len_bytes);
    void *state;
};

/* How long two members measure their link: so long, or so many round trips. */
enum { PC_PROBE_MS = 250, PC_PROBE_TRIPS = 8 };

#define PC_NS_PER_MS 1000000ull
#define PC_NS_PER_S 1000000000ull

#endif
