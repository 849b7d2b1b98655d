/*
 * The election of the shared state's content. Steps, in this order: strategies that don't mix; the revision; who may be a
 * candidate; the winner by (expected revision, votes, longest standing); keys that don't fit; who receives what from whom.
 */
#include "proto/election.h"

#include "bytes/dtype.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum strategy { ENFORCE_POPULAR = 0, RECEIVE_ONLY = 1, SEND_ONLY = 2 };

static void kick(struct pc_voter *voter, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void kick(struct pc_voter *voter, const char *format, ...) {
    if (voter->kicked) return;
    voter->kicked = true;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(voter->reason, sizeof voter->reason, format, args);
    va_end(args);
}

static const struct pc_state_key *key_of(const struct pc_voter *voter, uint32_t index) {
    return (const struct pc_state_key *)voter->offer->keys.items + index;
}

static uint32_t count_strategy(const struct pc_election *election, enum strategy strategy) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < election->count; i++) {
        if (!election->voters[i].kicked && election->voters[i].offer->strategy == (uint32_t)strategy) count++;
    }
    return count;
}

static uint32_t count_left(const struct pc_election *election) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < election->count; i++) count += !election->voters[i].kicked;
    return count;
}

static void check_strategies(struct pc_election *election) {
    const bool enforced = count_strategy(election, ENFORCE_POPULAR) > 0;
    for (uint32_t i = 0; i < election->count; i++) {
        struct pc_voter *voter = &election->voters[i];
        if (voter->offer->strategy > SEND_ONLY) {
            kick(voter, "unknown synchronisation strategy %u", voter->offer->strategy);
        } else if (enforced && voter->offer->strategy != ENFORCE_POPULAR) {
            kick(voter, "others of the group enforce the popular content, so this peer may not choose to only %s",
                 voter->offer->strategy == RECEIVE_ONLY ? "receive" : "send");
        }
    }
    /* Alone in the group there is nothing to receive, and no reason to fail. */
    if (election->count < 2 || count_strategy(election, RECEIVE_ONLY) < count_left(election)) return;
    for (uint32_t i = 0; i < election->count; i++) {
        kick(&election->voters[i], "all peers of the group only receive, so nobody offers a content");
    }
}

/*
 * The revision that counts. Alone it is one's own. A new run takes the highest one offered by a peer that could send it.
 * Later it is the expected one, unless all that were in the last synchronisation have moved on together by the same number
 * of steps.
 */
static uint64_t choose_revision(const struct pc_election *election) {
    if (election->count == 1) return election->voters[0].offer->revision;
    uint64_t highest = 0, ahead = 0;
    bool together = true, any_standing = false;
    for (uint32_t i = 0; i < election->count; i++) {
        const struct pc_voter *voter = &election->voters[i];
        if (voter->kicked) continue;
        const uint64_t revision = voter->offer->revision;
        if (voter->offer->strategy != RECEIVE_ONLY && revision > highest) highest = revision;
        if (!voter->standing) continue;
        if (any_standing && ahead != revision) together = false;
        any_standing = true;
        ahead = revision;
    }
    if (election->expected == 0) return highest;
    return together && ahead > election->expected ? ahead : election->expected;
}

static void check_revisions(struct pc_election *election) {
    for (uint32_t i = 0; i < election->count; i++) {
        struct pc_voter *voter = &election->voters[i];
        const uint64_t revision = voter->offer->revision;
        if (revision > election->revision) {
            kick(voter, "it offers revision %llu, but the group expects %llu", (unsigned long long)revision,
                 (unsigned long long)election->revision);
        } else if (revision < election->revision && voter->offer->strategy == SEND_ONLY) {
            kick(voter, "it only sends, but its revision %llu is behind the group's %llu", (unsigned long long)revision,
                 (unsigned long long)election->revision);
        }
    }
}

static bool same_key(const struct pc_state_key *a, const struct pc_state_key *b) {
    return a->name.len_bytes == b->name.len_bytes && memcmp(a->name.data, b->name.data, a->name.len_bytes) == 0 &&
           a->dtype == b->dtype && a->count == b->count && a->may_differ == b->may_differ;
}

static bool same_content(const struct pc_voter *a, const struct pc_voter *b) {
    if (a->offer->keys.count != b->offer->keys.count) return false;
    for (uint32_t i = 0; i < a->offer->keys.count; i++) {
        const struct pc_state_key *left = key_of(a, i), *right = key_of(b, i);
        if (!same_key(left, right)) return false;
        if (!left->may_differ && memcmp(left->digest, right->digest, sizeof left->digest) != 0) return false;
    }
    return true;
}

static bool is_candidate(const struct pc_election *election, const struct pc_voter *voter) {
    if (voter->kicked) return false;
    if (election->count == 1) return true;
    if (voter->offer->strategy == RECEIVE_ONLY) return false;
    return count_strategy(election, SEND_ONLY) == 0 || voter->offer->strategy == SEND_ONLY;
}

/* First by revision, then by votes of the same revision; voters are in order of id, so the longest standing wins ties. */
static void choose_winner(struct pc_election *election) {
    uint32_t best_votes = 0;
    election->winner = UINT32_MAX;
    for (uint32_t i = 0; i < election->count; i++) {
        const struct pc_voter *voter = &election->voters[i];
        if (!is_candidate(election, voter)) continue;
        uint32_t votes = 0;
        for (uint32_t k = 0; k < election->count; k++) {
            const struct pc_voter *other = &election->voters[k];
            votes += is_candidate(election, other) && other->offer->revision == voter->offer->revision &&
                     same_content(voter, other);
        }
        const uint64_t best_revision =
            election->winner == UINT32_MAX ? 0 : election->voters[election->winner].offer->revision;
        const bool newer = election->winner == UINT32_MAX || voter->offer->revision > best_revision;
        if (newer || (voter->offer->revision == best_revision && votes > best_votes)) {
            election->winner = i;
            best_votes = votes;
        }
    }
}

static const char *may_differ(const struct pc_state_key *key) {
    return key->may_differ ? ", may differ" : "";
}

static const char *dtype_name(const struct pc_state_key *key) {
    return pc_dtype_valid(key->dtype) ? pc_dtype_name((pcclDataType_t)key->dtype) : "an unknown type";
}

static void check_keys(struct pc_voter *voter, const struct pc_voter *winner) {
    const uint32_t count = winner->offer->keys.count;
    if (voter->offer->keys.count != count) {
        kick(voter, "it has %u tensors, the elected content of peer %llu has %u", voter->offer->keys.count,
             (unsigned long long)winner->id, count);
        return;
    }
    for (uint32_t i = 0; i < count && !voter->kicked; i++) {
        const struct pc_state_key *own = key_of(voter, i), *wanted = key_of(winner, i);
        if (same_key(own, wanted)) continue;
        kick(voter, "its tensor '%.*s' (%s, %llu elements%s) is not the elected '%.*s' (%s, %llu elements%s)",
             (int)own->name.len_bytes, own->name.data, dtype_name(own), (unsigned long long)own->count, may_differ(own),
             (int)wanted->name.len_bytes, wanted->name.data, dtype_name(wanted), (unsigned long long)wanted->count,
             may_differ(wanted));
    }
}

/* Keys that voter must receive. What may differ is given to a peer that is behind, and left alone otherwise. */
static pc_status find_differences(struct pc_voter *voter, const struct pc_voter *source, uint64_t revision,
                                  struct pc_arena *arena) {
    voter->keys = pc_arena_alloc(arena, voter->offer->keys.count, sizeof *voter->keys);
    if (voter->keys == NULL) return pcclNoMemory;
    const bool behind = voter->offer->revision < revision;
    for (uint32_t i = 0; i < voter->offer->keys.count; i++) {
        const struct pc_state_key *own = key_of(voter, i), *wanted = key_of(source, i);
        if (own->may_differ && !behind) continue;
        if (memcmp(own->digest, wanted->digest, sizeof own->digest) != 0) voter->keys[voter->key_count++] = i;
    }
    return pcclSuccess;
}

/* A holder has the winner's content at the winner's revision. Receivers take turns over the holders. */
static uint32_t next_holder(const struct pc_election *election, uint32_t after) {
    const struct pc_voter *winner = &election->voters[election->winner];
    for (uint32_t step = 1; step <= election->count; step++) {
        const uint32_t i = (after + step) % election->count;
        const struct pc_voter *voter = &election->voters[i];
        if (is_candidate(election, voter) && voter->offer->revision == winner->offer->revision &&
            same_content(voter, winner)) {
            return i;
        }
    }
    return election->winner;
}

static pc_status assign(struct pc_election *election, struct pc_arena *arena) {
    const struct pc_voter *winner = &election->voters[election->winner];
    uint32_t holder = election->count - 1;
    for (uint32_t i = 0; i < election->count; i++) {
        struct pc_voter *voter = &election->voters[i];
        if (voter == winner || voter->kicked) continue;
        check_keys(voter, winner);
        const bool holds = voter->offer->revision == winner->offer->revision && same_content(voter, winner);
        if (voter->kicked || holds) continue;
        const uint32_t candidate = next_holder(election, holder);
        PC_TRY(find_differences(voter, &election->voters[candidate], election->revision, arena));
        if (voter->key_count == 0) continue;
        if (voter->offer->strategy == SEND_ONLY) {
            kick(voter, "it only sends, but the content of peer %llu was elected", (unsigned long long)winner->id);
            continue;
        }
        holder = candidate;
        voter->role = PC_SYNC_RECEIVE;
        voter->source = election->voters[holder].id;
        election->voters[holder].role = PC_SYNC_SERVE;
    }
    return pcclSuccess;
}

pc_status pc_election_run(struct pc_election *election, struct pc_arena *arena) {
    election->winner = UINT32_MAX;
    check_strategies(election);
    election->revision = choose_revision(election);
    check_revisions(election);
    choose_winner(election);
    if (election->winner == UINT32_MAX) {
        for (uint32_t i = 0; i < election->count; i++) {
            kick(&election->voters[i], "no peer of the group offers a content that could be elected");
        }
        return pcclSuccess;
    }
    return assign(election, arena);
}
