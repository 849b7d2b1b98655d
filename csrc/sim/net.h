/*
 * K4: the simulated network: processes (hosts) that run one machine each, connections between them, and what can go wrong
 * with both. It plays the driver of proto/machine.h and keeps that contract.
 */
#ifndef PC_NET_H
#define PC_NET_H

#include "proto/machine.h"
#include "sim/chance.h"
#include "sim/pipe.h"
#include "sim/trace.h"

enum { PC_HOSTS_MAX = 160, PC_PARTITIONS_MAX = 4 };

struct pc_wire;
struct pc_net;

/* One end of a connection. */
struct pc_end {
    struct pc_list node; /* in its host */
    struct pc_net *net;
    struct pc_wire *wire;
    struct pc_host *host;
    struct pc_stream *stream; /* NULL: not accepted yet, or closed */
    bool told; /* the machine knows that the connection is over */
    bool blocked; /* the pipe is full */
    bool wake_due;
    uint64_t read_ns; /* when it reads next */
    uint8_t head[PC_FRAME_BYTES]; /* for the log: header of the frame that is being sent */
    uint32_t head_have;
    uint64_t frame_left;
};

/* pipes[i] leads from ends[i] to the other one. ends[0] has dialed. */
struct pc_wire {
    struct pc_list node;
    struct pc_end ends[2];
    struct pc_pipe pipes[2];
};

struct pc_host {
    uint32_t index; /* 0: the master */
    struct pc_net *net;
    struct pc_machine *machine; /* NULL: the process has ended */
    void *owner;
    struct pc_address address;
    bool silent; /* it ended without a sign, or the host went with it */
    uint64_t skew_ns; /* its clock runs ahead by this */
    uint64_t paused_until_ns, paused_sum_ns;
    uint64_t tick_ns;
    struct pc_list ends;
    uint32_t doom_actions; /* the process ends after so many more actions; 0: it does not */
    bool doomed;
};

struct pc_partition {
    uint8_t side[PC_HOSTS_MAX]; /* 1 and 2 do not hear each other */
    uint64_t until_ns;
    bool one_way; /* only 1 is not heard by 2 */
};

struct pc_net_events {
    void (*complete)(void *user, struct pc_host *host, struct pc_call *call);
    /* After each event of a machine. */
    void (*observe)(void *user, struct pc_host *host);
    /* A machine refused bytes of another as malformed. */
    void (*refused)(void *user, struct pc_host *host, const pc_error *error);
    void (*dialed_back)(void *user, uint64_t id, int sys_errno);
    /* The process of host has come to its doom: it is to be ended by pc_net_end. */
    void (*doomed)(void *user, struct pc_host *host);
};

struct pc_net {
    struct pc_clock *clock;
    struct pc_trace *trace;
    struct pc_chance chance;
    const struct pc_net_events *events;
    void *user;
    struct pc_host *hosts[PC_HOSTS_MAX];
    uint32_t host_count;
    struct pc_list wires;
    uint64_t latency_ns;
    size_t limit_bytes; /* of a socket buffer */
    uint32_t split_percent, short_write_percent;
    bool crumbs; /* when split, then into crumbs */
    bool loopback;
    struct pc_partition partitions[PC_PARTITIONS_MAX];
    uint32_t dial_fail_percent;
    uint64_t dial_fail_until_ns;
    uint64_t open_ends;
    bool failed; /* no memory */
};

void pc_net_init(struct pc_net *net, struct pc_clock *clock, struct pc_trace *trace, uint64_t seed);
void pc_net_fini(struct pc_net *net);

/* A new process; NULL: no memory, or PC_HOSTS_MAX. The machine is set by the caller, which then calls pc_net_settle. */
struct pc_host *pc_net_host(struct pc_net *net, void *owner);
uint64_t pc_net_now(const struct pc_host *host);
uint64_t pc_net_latency(const struct pc_net *net, const struct pc_host *a, const struct pc_host *b);
/* Carries out the actions of a machine after an event that did not come from here. */
void pc_net_settle(struct pc_host *host);

/* Faults. */
/* The process ends: its machine is forgotten here, and then to be destroyed by the owner. silent: nobody is told. */
void pc_net_end(struct pc_host *host, bool silent);
void pc_net_pause(struct pc_host *host, uint64_t for_ns);
/* A connection of host, to the master or not; NULL: there is none. */
struct pc_wire *pc_net_pick(struct pc_host *host, bool to_master);
void pc_net_stall(struct pc_wire *wire, bool first, bool second, uint64_t for_ns);
/* Bytes under way are lost; each end learns of it after its delay, or never (UINT64_MAX). */
void pc_net_cut(struct pc_wire *wire, const uint64_t delays_ns[2]);
/* side as in struct pc_partition. */
void pc_net_part(struct pc_net *net, const uint8_t side[PC_HOSTS_MAX], bool one_way, uint64_t for_ns);

#endif
