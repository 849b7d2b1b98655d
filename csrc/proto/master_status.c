/* The report for `pccl status`: JSON text, made here so that every client shows the same. Read only. */
#include "base/log.h"
#include "proto/master_state.h"

#include <stdarg.h>
#include <stdio.h>
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

static void put_op(struct pc_writer *out, struct pc_master *master, const struct pc_pending_op *op, bool first) {
    put(out, "%s{\"group\":%u,\"subset\":%u,\"tag\":%llu,\"seq\":%llu,\"done\":[", first ? "" : ",", op->key.group, op->key.subset,
        (unsigned long long)op->key.tag, (unsigned long long)op->key.seq);
    for (size_t i = 0; i < op->done_count; i++) put(out, "%s%llu", i > 0 ? "," : "", (unsigned long long)op->done[i]);
    put(out, "],\"waiting\":[");
    bool first_id = true;
    const struct pc_group *group = pc_master_group_of(master, &op->key);
    PC_EACH_PEER(master, peer) {
        bool done = group == NULL || !pc_master_takes_part(peer, group, &op->key);
        for (size_t i = 0; i < op->done_count && !done; i++) done = op->done[i] == peer->id;
        if (done) continue;
        put(out, "%s%llu", first_id ? "" : ",", (unsigned long long)peer->id);
        first_id = false;
    }
    put(out, "]}");
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
    bool first = true;
    for (int i = 0; i < PC_OP_BUCKETS; i++) {
        for (struct pc_list *node = master->ops[i].next; node != &master->ops[i]; node = node->next) {
            put_op(&out, master, PC_LIST_ENTRY(node, struct pc_pending_op, node), first);
            first = false;
        }
    }
    put(&out, "],\"waits\":[");
    put_waits(&out, master);
    put(&out, "]}");
    const struct pc_text json = {(const char *)out.data, out.failed ? 0 : (uint32_t)out.len};
    pc_master_tell(master, peer, PC_MSG_STATUS_REPLY, &(struct pc_msg_status_reply){json});
    pc_writer_fini(&out);
}
