/*
 * K3: one peer of a run: control connection to the master, links to the other members, operations, shared state.
 * docs/protocol.md has its state table. All state belongs to the thread of its driver.
 */
#ifndef PC_MEMBER_H
#define PC_MEMBER_H

#include "proto/call.h"
#include "proto/machine.h"
#include "proto/pool.h"

struct pc_member_config {
    char name[24];
    uint32_t group;
    uint32_t stripes; /* connections per link that this peer asks for, 1 to PC_STRIPES_MAX */
    bool observer;
    const uint8_t *run_key; /* copied */
    size_t run_key_len;
    char host[64];
    uint64_t pid;
    uint64_t dead_timeout_ns, op_timeout_ns, handshake_timeout_ns;
    struct pc_random random;
    struct pc_memory memory;
    uint32_t staging_bytes; /* of values that wait here, for one operation; at least what a member needs; the same at all */
};

struct pc_member;

/* NULL: no memory. */
struct pc_member *pc_member_create(const struct pc_member_config *config, uint64_t now_ns);
/* Destroys what it holds, streams included; the driver has closed their sockets. Posted calls are not completed. */
void pc_member_destroy(struct pc_member *member);
struct pc_machine *pc_member_machine(struct pc_member *member);

/* Where links are accepted; before the control stream's opened event. */
void pc_member_set_addresses(struct pc_member *member, const struct pc_address *addresses, uint32_t count);

/* Completes by PC_ACTION_COMPLETE, possibly at once. */
void pc_member_post(struct pc_member *member, struct pc_call *call, uint64_t now_ns);
/* The call completes soon, with pcclCancelled unless its outcome was decided already. */
void pc_member_cancel(struct pc_member *member, struct pc_call *call, uint64_t now_ns);
/* Completes every call with code at once, says goodbye and closes all connections. */
void pc_member_abort(struct pc_member *member, pc_status code, const char *why, uint64_t now_ns);

/* The committed member list as this peer sees it. Valid until the next event. */
struct pc_member_view {
    bool connected; /* member of an epoch */
    uint64_t id, epoch, incarnation;
    uint64_t group_epoch; /* in which the members of this peer's group last changed */
    const struct pc_member_record *members;
    uint32_t member_count;
    const pc_error *lost; /* why it is out of the run; code 0: it has not been in one, or is in it */
};
void pc_member_view(const struct pc_member *member, struct pc_member_view *view);
/* A group of some members that this peer is in. */
struct pc_group_view {
    uint32_t number, n, rank;
};
/* Writes at most room of them; returns how many there are. */
uint32_t pc_member_groups(const struct pc_member *member, struct pc_group_view *out, uint32_t room);
/* Ends this peer's part in a group; other calls of it must have ended. */
pc_status pc_member_destroy_group(struct pc_member *member, uint32_t number, pc_error *error);
/* Members of group that are not observers. */
uint32_t pc_member_world_size(const struct pc_member *member, uint32_t group);
/* Threads of the caller, other than those that wait in its calls, may make more: it does not count as blocked. */
void pc_member_set_threads_free(struct pc_member *member, bool free);
/* All-reduces posted and not completed. */
uint32_t pc_member_ops_in_flight(const struct pc_member *member);
void pc_member_stats(const struct pc_member *member, pcclStats_t *stats);

#endif
