/*
 * K3: the master: decides membership and verdicts, orders joint calls; never on the data path. docs/protocol.md has its
 * state table. All state belongs to the thread of its driver.
 */
#ifndef PC_MASTER_H
#define PC_MASTER_H

#include "proto/machine.h"

struct pc_master_config {
    char name[24];
    uint8_t run[16];
    uint64_t incarnation;
    const uint8_t *run_key; /* copied */
    size_t run_key_len;
    uint64_t dead_timeout_ns, join_timeout_ns, handshake_timeout_ns;
    uint32_t probe_bytes; /* that two members send each other at most when their link is measured */
    uint64_t search_steps; /* budget of PC_ACTION_SEARCH; 0: none is asked for */
    struct pc_random random;
};

struct pc_master;

struct pc_master *pc_master_create(const struct pc_master_config *config, uint64_t now_ns);
void pc_master_destroy(struct pc_master *master);
struct pc_machine *pc_master_machine(struct pc_master *master);

/* Answer to PC_ACTION_DIAL_BACK: sys_errno 0, or why none of the addresses took a connection. */
void pc_master_dialed_back(struct pc_master *master, uint64_t id, int sys_errno, uint64_t now_ns);
/* Answer to PC_ACTION_SEARCH; takes job back. */
void pc_master_searched(struct pc_master *master, struct pc_ring_job *job);
/* Tells all peers that it ends; their calls end with an error that names it. */
void pc_master_shutdown(struct pc_master *master, uint64_t now_ns);

/* For the simulator's law checks: the current epoch number and its members. */
uint64_t pc_master_epoch(const struct pc_master *master);
uint32_t pc_master_member_count(const struct pc_master *master);

#endif
