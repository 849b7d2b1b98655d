/*
 * Groups of some members of a peer group, in an order of their own: made by a joint call of the whole peer group, told
 * to their members by an epoch, broken for good by the loss of one of them, forgotten when nobody is left who uses them.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"
#include "proto/mutant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool pc_master_listed(const struct pc_group *subset, uint64_t id) {
    return pc_ids_hold(subset->ids, subset->n, id) && !pc_ids_hold(subset->left, subset->left_count, id);
}

uint64_t pc_master_who_left(const struct pc_group *group, const struct pc_op_key *key) {
    for (size_t i = 0; i < group->left_count; i++) {
        const uint64_t id = group->left[i];
        if (key->channel == 0 || pc_channel_source(key->channel) == id || pc_channel_target(key->channel) == id) return id;
    }
    return 0;
}

/* Making -------------------------------------------------------------------------------------------------------- */

void pc_master_list_ids(const uint64_t *ids, size_t count, char *out, size_t out_bytes) {
    size_t used = (size_t)snprintf(out, out_bytes, "[");
    for (size_t i = 0; i < count; i++) {
        if (used + 32 > out_bytes) {
            (void)snprintf(out + used, out_bytes - used, ", ...");
            break;
        }
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%llu", i > 0 ? ", " : "", (unsigned long long)ids[i]);
    }
    used = strlen(out);
    (void)snprintf(out + used, out_bytes - used, "]");
}

static bool same_list(const struct pc_peer *a, const struct pc_peer *b) {
    return a->wanted_count == b->wanted_count &&
           (a->wanted_count == 0 || memcmp(a->wanted, b->wanted, a->wanted_count * sizeof *a->wanted) == 0);
}

static void describe_mismatch(const struct pc_peer *a, const struct pc_peer *b, pc_error *error) {
    char first[300], second[300];
    pc_master_list_ids(a->wanted, a->wanted_count, first, sizeof first);
    pc_master_list_ids(b->wanted, b->wanted_count, second, sizeof second);
    error->peer_id = b->id;
    pc_error_set(error, pcclMismatch, "new_group: peer %llu asked for a group of the peers %s, peer %llu for %s",
                 (unsigned long long)a->id, first, (unsigned long long)b->id, second);
    pc_error_hint(error, "all peers must call it with the same list, those that are not in it too");
}

/* Why no group can be made of what all have asked for alike. */
static void check_list(struct pc_master *master, const struct pc_group *group, const struct pc_peer *asking,
                       pc_error *error) {
    if (asking->wanted_count == 0) {
        pc_error_set(error, pcclInvalidArgument, "new_group: a group of nobody");
        return;
    }
    for (size_t i = 0; i < asking->wanted_count; i++) {
        const uint64_t id = asking->wanted[i];
        const struct pc_peer *peer = pc_master_find(master, id);
        if (pc_ids_hold(asking->wanted, i, id)) {
            pc_error_set(error, pcclInvalidArgument, "new_group: peer %llu is listed twice", (unsigned long long)id);
            return;
        }
        if (peer != NULL && pc_master_in_group(peer, group)) continue;
        error->peer_id = id;
        pc_error_set(error, pcclRankConnectionLost, "new_group: peer %llu is no member of the peer group",
                     (unsigned long long)id);
        pc_error_hint(error, "it may have been lost since the list was made: make the list anew");
        return;
    }
    if (master->subset_count < PC_SUBSETS_MAX) return;
    pc_error_set(error, pcclInvalidUsage, "new_group: there are %d groups already", PC_SUBSETS_MAX);
    pc_error_hint(error, "destroy those that are not used any more");
}

static struct pc_group *make(struct pc_master *master, const struct pc_group *group, const struct pc_peer *asking) {
    struct pc_group *subset = pc_calloc(1, sizeof *subset);
    if (subset == NULL) return NULL;
    pc_list_append(&master->groups, &subset->node);
    master->subset_count++;
    subset->number = group->number;
    subset->subset = ++master->next_subset;
    void *ids = NULL, *ring = NULL;
    const bool made = pc_grow(&ids, &subset->ids_capacity, asking->wanted_count, sizeof *subset->ids) &&
                      pc_grow(&ring, &subset->ring_capacity, asking->wanted_count, sizeof *subset->ring);
    subset->ids = ids;
    subset->ring = ring;
    if (!made) {
        pc_master_free_group(master, subset);
        return NULL;
    }
    subset->n = asking->wanted_count;
    memcpy(subset->ids, asking->wanted, subset->n * sizeof *subset->ids);
    return subset;
}

void pc_master_create_subset(struct pc_master *master, const struct pc_group *group) {
    const struct pc_peer *first = NULL, *other = NULL;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        if (first == NULL) first = peer;
        if (other == NULL && !same_list(first, peer)) other = peer;
    }
    if (first == NULL) return;
    pc_error error = {0};
    if (other != NULL) describe_mismatch(first, other, &error);
    else check_list(master, group, first, &error);
    const struct pc_group *subset = error.code == pcclSuccess ? make(master, group, first) : NULL;
    if (error.code == pcclSuccess && subset == NULL) pc_error_set(&error, pcclNoMemory, "the master has no memory for a group");
    const uint32_t number = subset != NULL ? subset->subset : 0;
    if (subset != NULL) pc_master_flip(master, false); /* the epoch tells its members, and may end it at once */
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        const bool in = pc_ids_hold(peer->wanted, peer->wanted_count, peer->id);
        pc_master_answer(master, peer, in ? number : 0, number != 0 ? NULL : &error);
    }
    pc_master_moved(master, group, NULL);
}

/* Ending -------------------------------------------------------------------------------------------------------- */

void pc_master_free_group(struct pc_master *master, struct pc_group *group) {
    if (group->subset != 0) {
        master->subset_count--;
        pc_master_forget_owed(master, group->subset);
    }
    pc_list_remove(&group->node);
    pc_master_drop_search(group);
    free(group->ids);
    free(group->ring);
    free(group->links);
    free(group->left);
    free(group);
}

void pc_master_leave_subset(struct pc_master *master, const struct pc_peer *peer, uint32_t number) {
    const struct pc_op_key key = {.group = peer->group, .subset = number};
    struct pc_group *subset = number == 0 ? NULL : pc_master_group_of(master, &key);
    if (subset == NULL || !pc_master_in_group(peer, subset)) return;
    void *left = subset->left;
    if (!pc_grow(&left, &subset->left_capacity, subset->left_count + 1, sizeof *subset->left)) return;
    subset->left = left;
    subset->left[subset->left_count++] = peer->id;
    PC_EACH_PEER(master, other) {
        if (pc_master_in_group(other, subset)) return;
    }
    pc_master_forget_ops(master, subset);
    pc_master_free_group(master, subset);
}

/* Members have no link to each other, and no ring leads round it. */
static void blame_link(const struct pc_master *master, struct pc_group *subset) {
    for (size_t i = 0; i < master->pair_count; i++) {
        const struct pc_pair *pair = &master->pairs[i];
        if (!pair->bad || !pc_master_listed(subset, pair->low) || !pc_master_listed(subset, pair->high)) continue;
        subset->cause = (pc_error){.peer_id = pair->high};
        pc_error_set(&subset->cause, pcclRankConnectionLost, "the link between peer %llu and peer %llu was lost twice",
                     (unsigned long long)pair->low, (unsigned long long)pair->high);
        return;
    }
}

bool pc_master_plan_subset(struct pc_master *master, struct pc_group *subset) {
    for (size_t i = 0; i < subset->n && !subset->broken; i++) {
        const struct pc_peer *peer = pc_master_find(master, subset->ids[i]);
        if ((peer != NULL && pc_master_votes(peer)) || !pc_master_listed(subset, subset->ids[i])) continue;
        subset->broken = true;
        subset->lost = subset->ids[i];
    }
    PC_EACH_PEER(master, peer) {
        if (!PC_MUTANT(PC_MUTANT_FOREIGN_DEATH) || peer->state != PC_PEER_GONE || subset->broken) continue;
        subset->broken = true;
        subset->lost = peer->id;
    }
    if (subset->broken) return true;
    if (subset->epoch != 0 && !subset->flushing && !subset->replan) return false;
    const uint32_t n = (uint32_t)subset->n;
    bool changed = false;
    subset->broken = !pc_master_order_ring(master, subset, subset->ids, n, subset->ring, &changed);
    if (subset->broken) blame_link(master, subset);
    subset->rtt_us = pc_master_longest_rtt(master, subset->ids, n);
    return true;
}

void pc_master_cause(struct pc_master *master, const struct pc_group *group, pc_error *cause) {
    *cause = group->cause;
    if (!group->broken) return;
    const struct pc_peer *lost = group->lost == 0 ? NULL : pc_master_find(master, group->lost);
    const pc_error *why = lost != NULL ? &lost->why : &group->cause;
    char list[200];
    pc_master_list_ids(group->ids, group->n, list, sizeof list);
    *cause = *why;
    cause->code = pcclSuccess; /* set anew, with another text */
    cause->hint[0] = '\0';
    pc_error_set(cause, pcclRankConnectionLost, "the group of the peers %s is broken: %s", list, why->message);
    pc_error_hint(cause, "make a new group of those that are left (new_group, pcclCreateGroup)");
}
