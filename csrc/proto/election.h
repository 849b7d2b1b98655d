/*
 * K3: which content a shared-state synchronisation ends with, and who moves what. A pure function of what the members of
 * a group offered; docs/protocol.md states the rules.
 */
#ifndef PC_ELECTION_H
#define PC_ELECTION_H

#include "wire/message.h"

struct pc_voter {
    uint64_t id;
    bool standing; /* took part in the group's last successful synchronisation */
    const struct pc_msg_sync_offer *offer;
    /* Decided: */
    bool kicked;
    char reason[256]; /* if kicked */
    enum pc_sync_role role;
    uint64_t source;
    uint32_t *keys; /* indices that differ and are to be received; from the arena */
    uint32_t key_count;
};

struct pc_election {
    uint64_t expected; /* in: revision that the group expects; 0: none yet */
    uint64_t revision; /* out: of the elected content */
    struct pc_voter *voters; /* by id */
    uint32_t count;
    uint32_t winner; /* out: a voter that has the elected content; UINT32_MAX: nobody is left */
};

pc_status pc_election_run(struct pc_election *election, struct pc_arena *arena);

#endif
