/*
 * Measuring all links of the groups, while everybody is in optimize_topology: in rounds in which nobody is in two pairs.
 * A round ends when all of its pairs have reported, or are gone, or at its deadline; what comes later still counts.
 */
#include "base/checked.h"
#include "base/log.h"
#include "plan/cost.h"
#include "plan/tournament.h"
#include "proto/master_state.h"

#include <stdlib.h>

enum { LATE_MS = 750 /* for the last burst to arrive, over a slow link */ };

static bool present(struct pc_master *master, uint64_t id) {
    const struct pc_peer *peer = pc_master_find(master, id);
    return peer != NULL && pc_master_votes(peer) && peer->stream != NULL;
}

static void add_round(struct pc_master *master, const struct pc_group *group, uint32_t round) {
    struct pc_probe *probe = &master->probe;
    const uint32_t n = (uint32_t)group->n;
    if (group->subset != 0 || n > PC_COST_MEMBERS_MAX || round >= pc_tournament_rounds(n)) return;
    for (uint32_t rank = 0; rank < n; rank++) {
        const uint32_t partner = pc_tournament_partner(n, round, rank);
        void *items = probe->pairs;
        if (partner == n || partner < rank) continue;
        if (!pc_grow(&items, &probe->capacity, probe->count + 1, sizeof *probe->pairs)) return; /* not measured */
        probe->pairs = items;
        probe->pairs[probe->count++] =
            (struct pc_probe_pair){.ids = {group->ids[rank], group->ids[partner]}, .round = round, .waited = {true, true}};
    }
}

/* The pairs of all rounds: who they are is settled now, whoever leaves meanwhile. */
static void begin(struct pc_master *master) {
    struct pc_probe *probe = &master->probe;
    probe->count = 0;
    for (uint32_t round = 0; round < pc_tournament_rounds(PC_COST_MEMBERS_MAX); round++) {
        for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
            add_round(master, PC_LIST_ENTRY(node, struct pc_group, node), round);
        }
    }
    probe->active = true;
    probe->first = probe->end = 0;
}

static void ask(struct pc_master *master, struct pc_probe_pair *pair) {
    if (!present(master, pair->ids[0]) || !present(master, pair->ids[1])) {
        pair->waited[0] = pair->waited[1] = false;
        return;
    }
    for (uint32_t i = 0; i < 2; i++) {
        const struct pc_msg_probe message = {pair->serial, pair->ids[1 - i], master->config.probe_bytes};
        pc_master_tell(master, pc_master_find(master, pair->ids[i]), PC_MSG_PROBE, &message);
    }
}

static void next_round(struct pc_master *master, uint64_t now_ns) {
    struct pc_probe *probe = &master->probe;
    uint64_t longest_us = 0;
    probe->first = probe->end;
    for (; probe->end < probe->count && probe->pairs[probe->end].round == probe->pairs[probe->first].round; probe->end++) {
        struct pc_probe_pair *pair = &probe->pairs[probe->end];
        const struct pc_pair *links = pc_master_pair(master, pair->ids[0], pair->ids[1], false);
        if (links != NULL) longest_us = pc_max_u64(longest_us, links->measured_us);
        pair->serial = ++master->next_probe;
        ask(master, pair);
    }
    const uint64_t budget_ns = pc_max_u64(PC_PROBE_MS * PC_NS_PER_MS, PC_PROBE_TRIPS * longest_us * 1000);
    probe->deadline_ns = now_ns + 2 * budget_ns + LATE_MS * PC_NS_PER_MS;
}

static bool round_is_over(struct pc_master *master, uint64_t now_ns) {
    const struct pc_probe *probe = &master->probe;
    if (now_ns >= probe->deadline_ns) return true;
    for (size_t i = probe->first; i < probe->end; i++) {
        const struct pc_probe_pair *pair = &probe->pairs[i];
        const bool both = present(master, pair->ids[0]) && present(master, pair->ids[1]);
        if (both && (pair->waited[0] || pair->waited[1])) return false;
    }
    return true;
}

bool pc_master_probe(struct pc_master *master, uint64_t now_ns) {
    struct pc_probe *probe = &master->probe;
    if (!probe->active) begin(master);
    while (round_is_over(master, now_ns)) {
        if (probe->end == probe->count) {
            probe->active = false;
            return true;
        }
        next_round(master, now_ns);
    }
    return false;
}

void pc_master_probed(struct pc_master *master, const struct pc_peer *peer, const struct pc_msg_probed *probed) {
    struct pc_probe *probe = &master->probe;
    struct pc_pair *links = pc_master_pair(master, peer->id, probed->id, false);
    PC_LOG(pcclLogDebug, "%s: from peer %llu to peer %llu: %u bytes per ms", master->machine.name,
           (unsigned long long)peer->id, (unsigned long long)probed->id, probed->bytes_per_ms);
    if (links != NULL && probed->bytes_per_ms > 0) {
        links->measured_rate[peer->id == links->low ? 0 : 1] = probed->bytes_per_ms;
    }
    for (size_t i = probe->first; i < probe->end && probe->active; i++) {
        struct pc_probe_pair *pair = &probe->pairs[i];
        for (uint32_t k = 0; k < 2 && pair->serial == probed->serial; k++) {
            if (pair->ids[k] == peer->id) pair->waited[k] = false;
        }
    }
}
