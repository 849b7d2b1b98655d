/*
 * The master's machine: life, driver events, timers. The contract is in master.h, the parts in master_state.h. Every
 * event ends in finish(): verdicts that gathered go out together, joint calls are looked at once.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct pc_master *master_of(struct pc_machine *machine) {
    return (struct pc_master *)(void *)machine; /* its first member */
}

bool pc_master_votes(const struct pc_peer *peer) {
    return peer->state == PC_PEER_MEMBER && !peer->observer;
}

struct pc_peer *pc_master_find(struct pc_master *master, uint64_t id) {
    PC_EACH_PEER(master, peer) {
        if (peer->id == id) return peer;
    }
    return NULL;
}

void pc_master_name_peer(const struct pc_peer *peer, char *out, size_t out_bytes) {
    (void)snprintf(out, out_bytes, "peer %llu (%s, pid %llu on %s)", (unsigned long long)peer->id, peer->address_text,
                   (unsigned long long)peer->pid, peer->host);
}

void pc_master_tell(struct pc_master *master, struct pc_peer *peer, uint8_t type, const void *message) {
    if (peer->stream == NULL || peer->stream->closing) return;
    struct pc_tx *tx = pc_tx_create(&master->tx_pool, PC_FRAME_MAGIC, type, message, NULL, 0, false);
    if (tx == NULL) {
        /* It misses a message: better that it knows. The closed connection leads to its removal. */
        pc_stream_close(peer->stream, false, &master->machine.actions);
        peer->stream = NULL;
        return;
    }
    peer->told += type != PC_MSG_HEARTBEAT;
    pc_list_append(&peer->stream->queue, &tx->node);
    pc_stream_wake(peer->stream, &master->machine.actions);
}

void pc_master_free_peer(struct pc_master *master, struct pc_peer *peer) {
    if (peer->state <= PC_PEER_STATUS) master->unproved_count--;
    if (peer->stream != NULL) pc_stream_close(peer->stream, true, &master->machine.actions);
    pc_list_remove(&peer->node);
    pc_arena_reset(&peer->offer_arena);
    free(peer->offer_bytes);
    free(peer->started);
    free(peer->wanted);
    free(peer->answers);
    free(peer->votes);
    free(peer->owed);
    free(peer->flushed);
    free(peer);
}

void pc_master_refuse(struct pc_master *master, struct pc_peer *peer, const pc_error *error) {
    PC_LOG(peer->id == 0 ? pcclLogDebug : pcclLogInfo, "%s: refused: %s", master->machine.name, error->message);
    const struct pc_msg_refuse message = {pc_error_to_wire(error)};
    pc_master_tell(master, peer, PC_MSG_REFUSE, &message);
    if (peer->id != 0) pc_master_forget_pairs(master, peer->id);
    pc_master_free_peer(master, peer);
}

static void finish(struct pc_master *master, uint64_t now_ns) {
    pc_master_send_commits(master);
    pc_master_try_flip(master);
    pc_master_evaluate(master, now_ns);
    pc_arena_reset(&master->arena);
}

/* Messages ------------------------------------------------------------------------------------------------------ */

union peer_message {
    struct pc_msg_link_up up;
    struct pc_msg_link_down down;
    struct pc_msg_call call;
    struct pc_msg_call_cancel cancel;
    struct pc_msg_done done;
    struct pc_msg_op_fail fail;
    struct pc_msg_state state;
    struct pc_msg_goodbye goodbye;
    struct pc_msg_stalled stalled;
    struct pc_msg_posted posted;
    struct pc_msg_sync_ready ready;
    struct pc_msg_leave_group leave;
    struct pc_msg_probed probed;
    uint8_t room[PC_MESSAGE_STRUCT_MAX];
};

static void on_goodbye(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_goodbye *goodbye,
                       uint64_t now_ns) {
    pc_error why = {.peer_id = peer->id};
    char name[224], reason[128];
    pc_master_name_peer(peer, name, sizeof name);
    pc_text_copy(reason, sizeof reason, goodbye->reason);
    pc_error_set(&why, pcclRankConnectionLost, "%s said goodbye: %s", name, reason);
    pc_master_remove(master, peer, &why, false, now_ns);
}

static pc_status handle(struct pc_master *master, struct pc_peer *peer, uint8_t type, const union peer_message *message,
                        uint64_t now_ns) {
    if (type == PC_MSG_GOODBYE) {
        on_goodbye(master, peer, &message->goodbye, now_ns);
        return pcclSuccess;
    }
    if (type == PC_MSG_LINK_UP) {
        pc_master_link_up(master, peer, &message->up);
        return pcclSuccess;
    }
    if (type == PC_MSG_LINK_DOWN) {
        pc_master_link_down(master, peer, &message->down, now_ns);
        return pcclSuccess;
    }
    if (peer->state != PC_PEER_MEMBER) return pcclProtocolError;
    switch (type) {
    case PC_MSG_CALL: pc_master_call(master, peer, &message->call, now_ns); return pcclSuccess;
    case PC_MSG_CALL_CANCEL: pc_master_call_cancel(master, peer, &message->cancel, now_ns); return pcclSuccess;
    case PC_MSG_DONE: pc_master_done(master, peer, &message->done, now_ns); return pcclSuccess;
    case PC_MSG_OP_FAIL: pc_master_op_fail(master, peer, &message->fail); return pcclSuccess;
    case PC_MSG_STATE: pc_master_state(master, peer, &message->state); return pcclSuccess;
    case PC_MSG_STALLED: return pc_master_stalled(peer, &message->stalled);
    case PC_MSG_POSTED: return pc_master_posted(peer, &message->posted);
    case PC_MSG_LEAVE_GROUP: pc_master_leave_subset(master, peer, message->leave.subset); return pcclSuccess;
    case PC_MSG_PROBED: pc_master_probed(master, peer, &message->probed); return pcclSuccess;
    case PC_MSG_SYNC_READY: pc_master_sync_ready(master, peer, &message->ready); return pcclSuccess;
    default: return pcclProtocolError;
    }
}

static pc_status on_frame(void *machine, struct pc_stream *stream, const struct pc_frame *frame,
                          struct pc_cursor meta) {
    struct pc_master *master = machine;
    struct pc_peer *peer = stream->subject;
    const uint64_t now_ns = stream->heard_ns;
    if (peer->state < PC_PEER_DIAL_BACK) return pc_master_handshake(master, peer, frame->type, meta, now_ns);
    if (frame->type == PC_MSG_HEARTBEAT || peer->state == PC_PEER_GONE) return pcclSuccess;
    if (frame->type == PC_MSG_SYNC_OFFER) {
        return peer->state == PC_PEER_MEMBER ? pc_master_sync_offer(master, peer, frame, meta, now_ns)
                                             : pcclProtocolError;
    }
    union peer_message message;
    PC_TRY(pc_schema_decode(pc_message_info(frame->type)->schema, meta, &master->arena, &message));
    return handle(master, peer, frame->type, &message, now_ns);
}

static pc_status on_bulk(void *machine, struct pc_stream *stream) {
    (void)machine;
    (void)stream;
    return pcclProtocolError; /* no message to the master has one */
}

static void on_sent(void *machine, struct pc_stream *stream, struct pc_tx *tx) {
    (void)machine;
    (void)stream;
    (void)tx;
}

const struct pc_stream_owner pc_master_stream_owner = {on_frame, on_bulk, on_sent};

/* Driver events ------------------------------------------------------------------------------------------------- */

static bool same_ip(const struct pc_address *a, const struct pc_address *b) {
    return a->family == b->family && memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}

/* A slow flood must not keep honest peers out: the oldest unproved connection makes room for the newest. */
static void make_room(struct pc_master *master, const struct pc_address *from) {
    uint32_t same = 0;
    struct pc_peer *oldest_same = NULL;
    for (struct pc_list *node = master->unproved.next; node != &master->unproved; node = node->next) {
        struct pc_peer *peer = PC_LIST_ENTRY(node, struct pc_peer, node);
        if (!same_ip(&peer->stream->remote, from)) continue;
        if (oldest_same == NULL) oldest_same = peer;
        same++;
    }
    if (same >= PC_UNPROVED_MAX_PER_IP && !pc_address_is_loopback(from)) {
        pc_master_free_peer(master, oldest_same);
    } else if (master->unproved_count >= PC_UNPROVED_MAX) {
        pc_master_free_peer(master, PC_LIST_ENTRY(master->unproved.next, struct pc_peer, node));
    }
}

static struct pc_stream *op_accept(struct pc_machine *machine, const struct pc_address *from, uint64_t now_ns) {
    struct pc_master *master = master_of(machine);
    if (master->ending) return NULL;
    make_room(master, from);
    struct pc_stream *stream = pc_stream_create(&pc_master_stream_owner, master, &master->tx_pool, now_ns);
    struct pc_peer *peer = pc_calloc(1, sizeof *peer);
    if (stream == NULL || peer == NULL) {
        pc_stream_destroy(stream);
        free(peer);
        return NULL;
    }
    stream->remote = *from;
    stream->open = true;
    stream->subject = peer;
    peer->stream = stream;
    peer->registered_ns = now_ns;
    pc_address_format(from, peer->address_text, sizeof peer->address_text);
    pc_list_append(&master->unproved, &peer->node);
    master->unproved_count++;
    return stream;
}

static void op_opened(struct pc_machine *machine, struct pc_stream *stream, bool loopback, uint64_t now_ns) {
    (void)machine;
    (void)stream;
    (void)loopback;
    (void)now_ns; /* the master dials nobody but to see whether it can */
}

/* Some other end of a link has seen it go, or there is no link to see: then the process is gone, not just its control. */
static bool corroborated(struct pc_master *master, const struct pc_peer *peer) {
    uint32_t links = 0;
    for (size_t i = 0; i < master->pair_count; i++) {
        const struct pc_pair *pair = &master->pairs[i];
        if (pair->low != peer->id && pair->high != peer->id) continue;
        links++;
        if ((pair->down & (pair->low == peer->id ? 2 : 1)) != 0) return true;
    }
    return links == 0;
}

static void control_lost(struct pc_master *master, struct pc_peer *peer, int sys_errno, const char *what,
                         uint64_t now_ns) {
    peer->stream = NULL;
    peer->lost_ns = now_ns;
    peer->why.sys_errno = sys_errno;
    peer->why.peer_id = peer->id;
    char name[224];
    pc_master_name_peer(peer, name, sizeof name);
    pc_text_copy(peer->why.peer_address, sizeof peer->why.peer_address, pc_text_of(peer->address_text));
    pc_error_set(&peer->why, pcclRankConnectionLost, "%s is gone: %s", name, what);
    if (peer->state < PC_PEER_MEMBER) {
        if (peer->id != 0) pc_master_forget_pairs(master, peer->id);
        pc_master_free_peer(master, peer);
    } else if (peer->state == PC_PEER_MEMBER && corroborated(master, peer)) {
        const pc_error why = peer->why;
        pc_master_remove(master, peer, &why, false, now_ns);
    }
}

static void op_closed(struct pc_machine *machine, struct pc_stream *stream, int sys_errno, uint64_t now_ns) {
    struct pc_master *master = master_of(machine);
    struct pc_peer *peer = stream->subject;
    if (stream->closing) return;
    pc_stream_close(stream, false, &machine->actions);
    if (peer != NULL) control_lost(master, peer, sys_errno, "its connection to the master closed", now_ns);
    finish(master, now_ns);
}

static void op_received(struct pc_machine *machine, struct pc_stream *stream, size_t len_bytes, uint64_t now_ns) {
    struct pc_master *master = master_of(machine);
    if (stream->closing) return;
    const pc_status status = pc_stream_received(stream, len_bytes, now_ns);
    if (status != pcclSuccess && !stream->closing) {
        struct pc_peer *peer = stream->subject;
        const bool member = peer->state >= PC_PEER_MEMBER;
        PC_LOG(member ? pcclLogWarn : pcclLogDebug, "%s: %s", master->machine.name, stream->error.message);
        const struct pc_msg_refuse message = {pc_error_to_wire(&stream->error)};
        pc_master_tell(master, peer, member ? PC_MSG_EVICT : PC_MSG_REFUSE, &message);
        if (!stream->closing) pc_stream_close(stream, true, &machine->actions);
        control_lost(master, peer, 0, stream->error.message, now_ns);
    }
    finish(master, now_ns);
}

static void op_sent(struct pc_machine *machine, struct pc_stream *stream, size_t len_bytes, uint64_t now_ns) {
    (void)machine;
    (void)pc_stream_sent(stream, len_bytes, now_ns);
}

static uint64_t op_deadline(const struct pc_machine *machine) {
    return ((const struct pc_master *)(const void *)machine)->tick_ns;
}

static void forgive_lateness(struct pc_master *master, uint64_t now_ns) {
    if (now_ns < master->tick_ns + 200 * PC_NS_PER_MS) return;
    const uint64_t late_ns = now_ns - master->tick_ns;
    PC_EACH_PEER(master, peer) {
        if (peer->stream != NULL) peer->stream->heard_ns = pc_min_u64(peer->stream->heard_ns + late_ns, now_ns);
        peer->lost_ns = peer->stream == NULL ? pc_min_u64(peer->lost_ns + late_ns, now_ns) : 0;
    }
    PC_EACH_PEER(master, frozen) frozen->freeze_due_ns += late_ns;
}

static void tick_peer(struct pc_master *master, struct pc_peer *peer, uint64_t now_ns) {
    if (peer->state == PC_PEER_GONE) return;
    if (peer->stream == NULL) {
        if (peer->state != PC_PEER_MEMBER || now_ns - peer->lost_ns < PC_CORROBORATE_MS * PC_NS_PER_MS) return;
        const pc_error why = peer->why;
        pc_master_remove(master, peer, &why, false, now_ns);
        return;
    }
    const uint64_t silent_ns = now_ns - peer->stream->heard_ns;
    if (silent_ns > master->config.dead_timeout_ns) {
        pc_error why = {.peer_id = peer->id, .last_heard_ms = silent_ns / PC_NS_PER_MS};
        char name[224];
        pc_master_name_peer(peer, name, sizeof name);
        pc_text_copy(why.peer_address, sizeof why.peer_address, pc_text_of(peer->address_text));
        pc_error_set(&why, pcclRankConnectionLost, "%s has been silent for %llu ms and counts as dead", name,
                     (unsigned long long)why.last_heard_ms);
        pc_error_hint(&why, "stopped process, dead host or broken network; a higher dead timeout waits longer");
        pc_master_remove(master, peer, &why, true, now_ns);
        return;
    }
    if (now_ns >= peer->beat_ns) {
        peer->beat_ns = now_ns + pc_min_u64(PC_NS_PER_S, master->config.dead_timeout_ns / 5);
        pc_master_tell(master, peer, PC_MSG_HEARTBEAT, &(struct pc_msg_empty){0});
    }
}

static void op_tick(struct pc_machine *machine, uint64_t now_ns) {
    struct pc_master *master = master_of(machine);
    forgive_lateness(master, now_ns);
    for (struct pc_list *node = master->unproved.next, *next; node != &master->unproved; node = next) {
        next = node->next;
        struct pc_peer *peer = PC_LIST_ENTRY(node, struct pc_peer, node);
        if (now_ns - peer->registered_ns > master->config.handshake_timeout_ns) pc_master_free_peer(master, peer);
    }
    PC_EACH_PEER(master, peer) tick_peer(master, peer, now_ns);
    pc_master_join_tick(master, now_ns);
    pc_master_flush_tick(master, now_ns);
    finish(master, now_ns);
    master->tick_ns = now_ns + 50 * PC_NS_PER_MS;
}

static const struct pc_machine_ops master_ops = {
    op_accept, op_opened, op_closed, op_received, op_sent, op_deadline, op_tick,
};

/* Life ---------------------------------------------------------------------------------------------------------- */

struct pc_master *pc_master_create(const struct pc_master_config *config, uint64_t now_ns) {
    struct pc_master *master = pc_calloc(1, sizeof *master);
    if (master == NULL) return NULL;
    master->config = *config;
    if (config->run_key_len > 0) {
        master->run_key = malloc(config->run_key_len);
        if (master->run_key == NULL) {
            free(master);
            return NULL;
        }
        memcpy(master->run_key, config->run_key, config->run_key_len);
    }
    config->random.fill(config->random.state, master->secret, sizeof master->secret);
    master->machine.ops = &master_ops;
    memcpy(master->machine.name, config->name, sizeof master->machine.name);
    pc_list_init(&master->peers);
    pc_list_init(&master->unproved);
    pc_list_init(&master->groups);
    pc_list_init(&master->spare_ops);
    for (int i = 0; i < PC_OP_BUCKETS; i++) pc_list_init(&master->ops[i]);
    pc_tx_pool_init(&master->tx_pool);
    master->tick_ns = now_ns + 50 * PC_NS_PER_MS;
    return master;
}

void pc_master_destroy(struct pc_master *master) {
    if (master == NULL) return;
    PC_EACH_PEER(master, peer) pc_master_free_peer(master, peer);
    while (!pc_list_empty(&master->unproved)) {
        pc_master_free_peer(master, PC_LIST_ENTRY(master->unproved.next, struct pc_peer, node));
    }
    while (!pc_list_empty(&master->groups)) {
        pc_master_free_group(master, PC_LIST_ENTRY(master->groups.next, struct pc_group, node));
    }
    const struct pc_action *action;
    while ((action = pc_actions_next(&master->machine.actions)) != NULL) {
        if (action->kind == PC_ACTION_CLOSE) pc_stream_destroy(action->stream);
        pc_ring_job_destroy(action->job);
    }
    pc_master_ops_fini(master);
    pc_actions_fini(&master->machine.actions);
    pc_tx_pool_fini(&master->tx_pool);
    pc_arena_reset(&master->arena);
    free(master->pairs);
    free(master->probe.pairs);
    free(master->run_key);
    free(master);
}

struct pc_machine *pc_master_machine(struct pc_master *master) {
    return &master->machine;
}

void pc_master_shutdown(struct pc_master *master, uint64_t now_ns) {
    pc_error why = {0};
    pc_error_set(&why, pcclMasterConnectionFailed, "the master is shutting down");
    pc_error_hint(&why, "start a master again and connect to it");
    const struct pc_msg_refuse message = {pc_error_to_wire(&why)};
    master->ending = true;
    PC_EACH_PEER(master, peer) {
        pc_master_tell(master, peer, peer->state >= PC_PEER_MEMBER ? PC_MSG_EVICT : PC_MSG_REFUSE, &message);
        if (peer->stream != NULL) pc_stream_close(peer->stream, true, &master->machine.actions);
        peer->stream = NULL;
        peer->lost_ns = now_ns;
    }
}

uint64_t pc_master_epoch(const struct pc_master *master) {
    return master->epoch;
}

uint32_t pc_master_member_count(const struct pc_master *master) {
    uint32_t count = 0;
    for (struct pc_list *node = master->peers.next; node != &master->peers; node = node->next) {
        count += PC_LIST_ENTRY(node, struct pc_peer, node)->state == PC_PEER_MEMBER;
    }
    return count;
}
