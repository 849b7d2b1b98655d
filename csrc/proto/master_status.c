/* The report for `pccl status`: JSON text, made here so that every client shows the same. Read only. */
#include "base/log.h"
#include "proto/master_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(struct pc_writer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct pc_writer *out, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    const int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len > 0) pc_writer_bytes(out, text, (size_t)len < sizeof text ? (size_t)len : sizeof text - 1);
}

/* A JSON string. Texts of peers have no control characters (pc_text_copy); quotes and backslashes are escaped. */
static void put_text(struct pc_writer *out, const char *text) {
    put(out, "\"");
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') pc_writer_bytes(out, "\\", 1);
        pc_writer_bytes(out, text, 1);
    }
    put(out, "\"");
}

static const char *stall_name(const struct pc_stall *stall) {
    return stall->kind == PC_CALL_COLLECTIVE ? pc_collective_name(stall->collective) : pc_call_name(stall->kind);
}

/* What peer is in, as far as the master knows: joint calls, and what it has been blocked in for a while. */
static const char *call_of(const struct pc_peer *peer) {
    if (peer->call != PC_CALL_NONE) return pc_call_name(peer->call);
    if (peer->vote_count > 0) return pc_call_name(PC_CALL_END_STEP);
    return peer->stall_count > 0 ? stall_name(&peer->stalls[0]) : NULL;
}

static void put_peers(struct pc_writer *out, struct pc_master *master, bool members, uint64_t now_ns) {
    bool first = true;
    PC_EACH_PEER(master, peer) {
        const bool member = peer->state == PC_PEER_MEMBER;
        if (member != members || peer->state == PC_PEER_GONE) continue;
        uint32_t rank = 0;
        PC_EACH_PEER(master, other) rank += pc_master_votes(other) && other->group == peer->group && other->id < peer->id;
        char place[16] = "null";
        if (member) (void)snprintf(place, sizeof place, "%u", rank);
        put(out, "%s{\"id\":%llu,\"group\":%u,\"rank\":%s,\"observer\":%s,\"pid\":%llu,\"address\":", first ? "" : ",",
            (unsigned long long)peer->id, peer->group, place, peer->observer ? "true" : "false",
            (unsigned long long)peer->pid);
        put_text(out, peer->address_text);
        put(out, ",\"host\":");
        put_text(out, peer->host);
        const uint64_t heard_ns = peer->stream != NULL ? peer->stream->heard_ns : peer->lost_ns;
        put(out, ",\"last_heard_ms\":%llu,\"call\":", (unsigned long long)((now_ns - heard_ns) / PC_NS_PER_MS));
        const char *call = call_of(peer);
        put(out, call == NULL ? "null}" : "\"%s\"}", call);
        first = false;
    }
}

/* What is known of one operation at one peer. */
struct sighting {
    struct pc_op_key key;
    uint64_t id;
    bool done; /* it has said so; else it has said that it is in it, when something was stuck last */
};

struct sightings {
    struct sighting *items;
    size_t count;
};

static int compare_u64(uint64_t a, uint64_t b) {
    return (a > b) - (a < b);
}

/* By operation, then by peer, with the better news first. */
static int compare_sightings(const void *left, const void *right) {
    const struct sighting *a = left, *b = right;
    int order = compare_u64(a->key.group, b->key.group);
    if (order == 0) order = compare_u64(a->key.subset, b->key.subset);
    if (order == 0) order = compare_u64(a->key.epoch, b->key.epoch);
    if (order == 0) order = compare_u64(a->key.channel, b->key.channel);
    if (order == 0) order = compare_u64(a->key.tag, b->key.tag);
    if (order == 0) order = compare_u64(a->key.seq, b->key.seq);
    if (order == 0) order = compare_u64(a->id, b->id);
    return order != 0 ? order : (int)b->done - (int)a->done;
}

static void add_done(struct sightings *list, const struct pc_pending_op *op) {
    for (size_t i = 0; i < op->done_count; i++) list->items[list->count++] = (struct sighting){op->key, op->done[i], true};
}

static void add_started(struct sightings *list, const struct pc_master *master, const struct pc_peer *peer) {
    for (size_t i = 0; i < peer->started_count; i++) {
        const struct pc_op_key *key = &peer->started[i];
        const struct pc_group *group = pc_master_group_of(master, key);
        if (group == NULL || group->epoch != key->epoch || !pc_master_takes_part(peer, group, key)) continue;
        list->items[list->count++] = (struct sighting){*key, peer->id, false};
    }
}

/* Operations in flight: some peer is done with it, or was in it when it told last what it waits for. */
static struct sightings sightings_of(struct pc_master *master) {
    size_t most = 0;
    for (int i = 0; i < PC_OP_BUCKETS; i++) {
        for (struct pc_list *node = master->ops[i].next; node != &master->ops[i]; node = node->next) {
            most += PC_LIST_ENTRY(node, const struct pc_pending_op, node)->done_count;
        }
    }
    PC_EACH_PEER(master, peer) most += peer->started_count;
    struct sightings list = {pc_arena_alloc(&master->arena, most, sizeof(struct sighting)), 0};
    if (list.items == NULL) return list;
    for (int i = 0; i < PC_OP_BUCKETS; i++) {
        for (struct pc_list *node = master->ops[i].next; node != &master->ops[i]; node = node->next) {
            add_done(&list, PC_LIST_ENTRY(node, const struct pc_pending_op, node));
        }
    }
    PC_EACH_PEER(master, peer) add_started(&list, master, peer);
    qsort(list.items, list.count, sizeof *list.items, compare_sightings);
    return list;
}

/* Ids of those that are done, or of those that have just begun, of the sightings of one operation. */
static void put_sighted(struct pc_writer *out, const struct sighting *op, size_t count, bool done) {
    bool first = true;
    for (size_t i = 0; i < count; i++) {
        const bool better_known = i > 0 && op[i - 1].id == op[i].id;
        if (op[i].done != done || better_known) continue;
        put(out, "%s%llu", first ? "" : ",", (unsigned long long)op[i].id);
        first = false;
    }
}

static void put_op(struct pc_writer *out, struct pc_master *master, const struct sighting *op, size_t count) {
    put(out, "{\"group\":%u,\"subset\":%u,\"tag\":%llu,\"seq\":%llu,\"done\":[", op->key.group, op->key.subset,
        (unsigned long long)op->key.tag, (unsigned long long)op->key.seq);
    put_sighted(out, op, count, true);
    put(out, "],\"started\":[");
    put_sighted(out, op, count, false);
    put(out, "],\"waiting\":[");
    bool first_id = true;
    const struct pc_group *group = pc_master_group_of(master, &op->key);
    PC_EACH_PEER(master, peer) {
        bool done = group == NULL || !pc_master_takes_part(peer, group, &op->key);
        for (size_t i = 0; i < count && !done; i++) done = op[i].done && op[i].id == peer->id;
        if (done) continue;
        put(out, "%s%llu", first_id ? "" : ",", (unsigned long long)peer->id);
        first_id = false;
    }
    put(out, "]}");
}

static void put_ops(struct pc_writer *out, struct pc_master *master) {
    const struct sightings list = sightings_of(master);
    for (size_t first = 0, end; first < list.count; first = end) {
        end = first + 1;
        while (end < list.count && pc_op_key_equal(&list.items[first].key, &list.items[end].key)) end++;
        if (first > 0) put(out, ",");
        put_op(out, master, &list.items[first], end - first);
    }
}

static void put_subsets(struct pc_writer *out, const struct pc_master *master) {
    bool first = true;
    for (const struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        const struct pc_group *group = PC_LIST_ENTRY(node, const struct pc_group, node);
        if (group->subset == 0) continue;
        put(out, "%s{\"group\":%u,\"subset\":%u,\"members\":[", first ? "" : ",", group->number, group->subset);
        for (size_t i = 0; i < group->n; i++) put(out, "%s%llu", i > 0 ? "," : "", (unsigned long long)group->ids[i]);
        put(out, "]}");
        first = false;
    }
}

static bool missing(const struct pc_master *master, const struct pc_peer *other, const struct pc_peer *peer, const struct pc_stall *stall) {
    if (other == peer || !pc_master_votes(other)) return false;
    if (stall->kind != PC_CALL_COLLECTIVE) {
        const bool everybody = stall->kind == PC_CALL_UPDATE_TOPOLOGY || stall->kind == PC_CALL_PEERS_PENDING ||
                               stall->kind == PC_CALL_OPTIMIZE_TOPOLOGY;
        const struct pc_group *group = pc_master_group_of_peer(master, peer, stall->key.subset);
        const bool concerned = everybody || (group != NULL && pc_master_in_group(other, group));
        const bool there = stall->kind == PC_CALL_END_STEP ? pc_master_vote_of(other, stall->key.subset) != NULL
                                                           : other->call == stall->kind;
        return concerned && !there;
    }
    const struct pc_group *group = pc_master_group_of(master, &stall->key);
    if (group == NULL) return false;
    if (stall->key.channel == pc_channel_to(peer->id)) return pc_master_in_group(other, group); /* anybody would do */
    if (!pc_master_takes_part(other, group, &stall->key)) return false;
    for (size_t i = 0; i < other->started_count; i++) {
        if (pc_op_key_equal(&other->started[i], &stall->key)) return false;
    }
    return true;
}

static void put_waits(struct pc_writer *out, struct pc_master *master) {
    bool first = true;
    PC_EACH_PEER(master, peer) {
        for (uint32_t i = 0; i < peer->stall_count && peer->state == PC_PEER_MEMBER; i++) {
            const struct pc_stall *stall = &peer->stalls[i];
            char tag[24] = "null";
            if (stall->kind == PC_CALL_COLLECTIVE) {
                (void)snprintf(tag, sizeof tag, "%llu", (unsigned long long)stall->key.tag);
            }
            put(out, "%s{\"peer\":%llu,\"call\":\"%s\",\"tag\":%s,\"since_ms\":%llu,\"for\":[", first ? "" : ",",
                (unsigned long long)peer->id, stall_name(stall), tag, (unsigned long long)stall->blocked_ms);
            bool first_id = true;
            PC_EACH_PEER(master, other) {
                if (!missing(master, other, peer, stall)) continue;
                put(out, "%s%llu", first_id ? "" : ",", (unsigned long long)other->id);
                first_id = false;
            }
            put(out, "]}");
            first = false;
        }
    }
}

void pc_master_status(struct pc_master *master, struct pc_peer *peer, uint64_t now_ns) {
    struct pc_writer out = {0};
    put(&out, "{\"run\":\"");
    for (size_t i = 0; i < sizeof master->config.run; i++) put(&out, "%02x", master->config.run[i]);
    put(&out, "\",\"incarnation\":%llu,\"epoch\":%llu,\"members\":[", (unsigned long long)master->config.incarnation,
        (unsigned long long)master->epoch);
    put_peers(&out, master, true, now_ns);
    put(&out, "],\"pending\":[");
    put_peers(&out, master, false, now_ns);
    put(&out, "],\"subsets\":[");
    put_subsets(&out, master);
    put(&out, "],\"ops\":[");
    put_ops(&out, master);
    put(&out, "],\"waits\":[");
    put_waits(&out, master);
    put(&out, "]}");
    const struct pc_text json = {(const char *)out.data, out.failed ? 0 : (uint32_t)out.len};
    pc_master_tell(master, peer, PC_MSG_STATUS_REPLY, &(struct pc_msg_status_reply){json});
    pc_writer_fini(&out);
}
