/*
 * The conversation with the master: handshake, introductions, epochs, results of calls. What may come in which phase is
 * checked in one place (expected()); anything else is a protocol error and costs the connection.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/member_state.h"

#include <stdio.h>
#include <string.h>

void pc_member_tell_master(struct pc_member *member, uint8_t type, const void *message) {
    if (member->control == NULL || member->control->closing) return;
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, PC_FRAME_MAGIC, type, message, NULL, 0, false);
    if (tx == NULL) {
        pc_member_no_memory(member, "no memory for a message to the master");
        return;
    }
    pc_list_append(&member->control->queue, &tx->node);
    pc_stream_wake(member->control, &member->machine.actions);
}

/* Handshake ----------------------------------------------------------------------------------------------------- */

void pc_member_say_hello(struct pc_member *member) {
    member->heard = 0;
    member->config.random.fill(member->config.random.state, member->nonce, sizeof member->nonce);
    struct pc_msg_hello hello = {
        .version_min = PC_PROTOCOL_VERSION,
        .version_max = PC_PROTOCOL_VERSION,
        .purpose = PC_PURPOSE_PEER,
        .build = pc_text_of("pccl"),
    };
    memcpy(hello.nonce, member->nonce, sizeof hello.nonce);
    pc_member_tell_master(member, PC_MSG_HELLO, &hello);
}

static pc_status on_challenge(struct pc_member *member, const struct pc_msg_challenge *challenge) {
    pc_error *error = &member->control->error;
    if (challenge->version != PC_PROTOCOL_VERSION) {
        return pc_error_set(error, pcclRefused, "the master speaks protocol version %u, this peer %u",
                            challenge->version, PC_PROTOCOL_VERSION);
    }
    const bool keyed = member->config.run_key_len > 0;
    if (keyed != (challenge->keyed != 0)) {
        pc_error_hint(error, "give the master and all peers the same file in PCCL_RUN_KEY_FILE, or none of them one");
        return pc_error_set(error, pcclRefused, keyed ? "this peer has a run key, but the master has none"
                                                      : "the master wants a run key, and this peer has none");
    }
    const struct pc_auth_part parts[2] = {{member->nonce, 16}, {challenge->nonce, 16}};
    uint8_t proof[PC_PROOF_BYTES];
    (void)pc_auth_proof(member->run_key, member->config.run_key_len, "pccl master 1", parts, 2, proof);
    if (!pc_auth_equal(proof, challenge->proof)) {
        pc_error_hint(error, "compare the files that PCCL_RUN_KEY_FILE names on both ends");
        return pc_error_set(error, pcclRefused, "the master's run key is not this peer's");
    }
    struct pc_msg_auth auth = {
        .group = member->config.group,
        .stripes = member->config.stripes,
        .observer = member->config.observer,
        .pid = member->config.pid,
        .host = pc_text_of(member->config.host),
        .addresses = {member->addresses, member->address_count},
    };
    memcpy(auth.incarnation, member->incarnation, sizeof auth.incarnation);
    (void)pc_auth_proof(member->run_key, member->config.run_key_len, "pccl peer 1", parts, 2, auth.proof);
    member->phase = PC_MEMBER_WELCOME;
    pc_member_tell_master(member, PC_MSG_AUTH, &auth);
    return pcclSuccess;
}

static void on_welcome(struct pc_member *member, const struct pc_msg_welcome *welcome, uint64_t now_ns) {
    member->id = welcome->id;
    memcpy(member->run, welcome->run, sizeof member->run);
    member->epoch.incarnation = welcome->incarnation;
    member->control->meta_max = PC_META_MAX_CONTROL;
    if (welcome->heartbeat_ms > 0) member->heartbeat_ns = welcome->heartbeat_ms * PC_NS_PER_MS;
    member->control_beat_ns = now_ns;
    member->phase = PC_MEMBER_JOINING;
    PC_LOG(pcclLogInfo, "%s: registered as peer %llu", member->machine.name, (unsigned long long)member->id);
}

/* Refused before admission or evicted after it: the record says why, and it is the last message. */
static pc_status on_refusal(struct pc_member *member, const struct pc_msg_refuse *refuse, pc_status fallback) {
    pc_error_from_wire(&refuse->error, &member->control->error);
    if (member->control->error.code == pcclSuccess) member->control->error.code = fallback;
    return member->control->error.code;
}

/* Epochs -------------------------------------------------------------------------------------------------------- */

static bool is_member_id(const struct pc_msg_epoch *message, uint64_t id) {
    const struct pc_member_record *records = message->members.items;
    for (uint32_t i = 0; i < message->members.count; i++) {
        if (records[i].id == id) return true;
    }
    return false;
}

static void drop_removed_links(struct pc_member *member, const struct pc_msg_epoch *message) {
    for (size_t i = 0; i < member->epoch.member_count; i++) {
        const uint64_t id = member->epoch.members[i].id;
        if (is_member_id(message, id)) continue;
        struct pc_link *link = pc_member_link(member, id);
        if (link != NULL) pc_member_link_drop(member, link);
    }
}

static pc_status copy_members(struct pc_member *member, const struct pc_msg_epoch *message) {
    struct pc_member_epoch *epoch = &member->epoch;
    void *items = epoch->members;
    if (!pc_grow(&items, &epoch->member_capacity, message->members.count, sizeof *epoch->members)) return pcclNoMemory;
    epoch->members = items;
    if (message->members.count > 0) {
        memcpy(epoch->members, message->members.items, message->members.count * sizeof *epoch->members);
    }
    epoch->member_count = message->members.count;
    return pcclSuccess;
}

static void finish_admission(struct pc_member *member, const struct pc_msg_epoch *message) {
    if (member->phase == PC_MEMBER_JOINING) member->phase = PC_MEMBER_MEMBER;
    for (struct pc_list *node = member->calls.next, *next; node != &member->calls; node = next) {
        next = node->next;
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        const bool answered = call->serial != 0 && call->serial == message->topology_serial;
        if (call->kind == PC_CALL_CONNECT || answered) pc_member_complete(member, call, NULL);
    }
}

static void cause_of(const struct pc_msg_epoch *message, uint32_t subset, pc_error *cause) {
    const struct pc_group_record *records = message->groups.items;
    *cause = (pc_error){0};
    for (uint32_t i = 0; i < message->groups.count; i++) {
        if (records[i].subset == subset) pc_error_from_wire(&records[i].cause, cause);
    }
}

static pc_status on_epoch(struct pc_member *member, const struct pc_msg_epoch *message, uint64_t now_ns) {
    if (message->incarnation != member->epoch.incarnation || message->number <= member->epoch.number ||
        !is_member_id(message, member->id)) {
        return pcclProtocolError;
    }
    const struct pc_verdict *fates = message->fates.items;
    for (uint32_t i = 0; i < message->fates.count; i++) {
        pc_error cause;
        cause_of(message, fates[i].key.subset, &cause);
        pc_member_verdict(member, &fates[i], &cause, false, now_ns);
    }
    drop_removed_links(member, message);
    PC_TRY(copy_members(member, message));
    member->epoch.number = message->number;
    PC_LOG(pcclLogInfo, "%s: epoch %llu, %u members", member->machine.name, (unsigned long long)message->number,
           message->members.count);
    PC_TRY(pc_member_update_groups(member, message));
    finish_admission(member, message);
    pc_member_start_queued(member, now_ns);
    return pcclSuccess;
}

/* Results ------------------------------------------------------------------------------------------------------- */

static struct pc_call *find_call(const struct pc_member *member, uint64_t serial) {
    for (struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (call->serial == serial && serial != 0) return call;
    }
    return NULL;
}

static void end_step(struct pc_member *member, const struct pc_call *call, bool next_failed, pc_error *error) {
    struct pc_member_group *group = pc_member_group(member, call->group);
    if (group == NULL) return;
    /* This end knows best why. */
    const pc_error *cause = &group->step_poison;
    if (error->code == pcclRankConnectionLost && group->broken.code != pcclSuccess) {
        *error = group->broken;
    } else if (error->code == pcclStepAborted && cause->code != pcclSuccess && cause->code != pcclStepAborted) {
        error->code = pcclSuccess; /* or it would keep its message */
        pc_error_set(error, pcclStepAborted, "the step was aborted: %s: %s", pc_status_name(cause->code), cause->message);
    }
    pc_member_end_step(group);
    if (next_failed) group->step_poison = *error;
}

/* A group that the caller gave up before it was made is destroyed: nobody would ever use it. */
static void take_group(struct pc_member *member, struct pc_call *call, const struct pc_msg_call_result *result,
                       pc_error *error) {
    pc_member_drop_forming(member);
    if (error->code != pcclSuccess) return;
    call->outcome.group = (uint32_t)result->value;
    if (!call->cancelled) return;
    pc_error ignored = {0};
    if (call->outcome.group != 0) (void)pc_member_destroy_group(member, call->outcome.group, &ignored);
    *error = call->outcome.error;
}

/* A call that was given up keeps the record that says so; what the master knows of it goes along. */
static void keep_own(const pc_error *own, pc_error *error) {
    char why[sizeof error->message] = "";
    if (error->code != pcclCancelled) pc_text_copy(why, sizeof why, pc_text_of(error->message));
    const uint64_t peer_id = error->peer_id;
    *error = *own;
    const size_t used = strlen(error->message);
    if (why[0] != '\0') (void)snprintf(error->message + used, sizeof error->message - used, ": %s", why);
    if (error->peer_id == 0) error->peer_id = peer_id;
}

static void on_call_result(struct pc_member *member, const struct pc_msg_call_result *result, uint64_t now_ns) {
    struct pc_call *call = find_call(member, result->serial);
    if (call == NULL) return;
    pc_error error;
    pc_error_from_wire(&result->error, &error);
    if (call->kind == PC_CALL_END_STEP) end_step(member, call, result->value != 0, &error);
    if (error.code != pcclSuccess && call->outcome.error.code != pcclSuccess) keep_own(&call->outcome.error, &error);
    if (call->kind == PC_CALL_SYNC_STATE) pc_member_sync_end(member, error.code == pcclSuccess);
    if (call->kind == PC_CALL_CREATE_GROUP) take_group(member, call, result, &error);
    if (error.code == pcclSuccess) {
        if (call->kind == PC_CALL_PEERS_PENDING) call->outcome.pending = result->value != 0;
        if (call->kind == PC_CALL_SYNC_STATE) call->outcome.revision = result->value;
        pc_member_complete(member, call, NULL);
    } else {
        pc_member_complete(member, call, &error);
    }
    pc_member_start_queued(member, now_ns);
}

static void on_freeze(struct pc_member *member, const struct pc_msg_freeze *freeze) {
    struct pc_member_group *group = pc_member_group(member, freeze->subset);
    if (group != NULL) group->frozen = true;
    pc_member_report_state(member, group, freeze);
}

static void on_verdicts(struct pc_member *member, const struct pc_msg_verdict *message, uint64_t now_ns) {
    pc_error error;
    pc_error_from_wire(&message->error, &error);
    const struct pc_verdict *verdicts = message->ops.items;
    for (uint32_t i = 0; i < message->ops.count; i++) pc_member_verdict(member, &verdicts[i], &error, message->in_step != 0, now_ns);
}

/* Dispatch ------------------------------------------------------------------------------------------------------ */

static bool expected(const struct pc_member *member, uint8_t type) {
    switch (type) {
    case PC_MSG_REFUSE: return member->phase != PC_MEMBER_MEMBER;
    case PC_MSG_CHALLENGE: return member->phase == PC_MEMBER_CHALLENGE;
    case PC_MSG_WELCOME: return member->phase == PC_MEMBER_WELCOME;
    case PC_MSG_PEERS:
    case PC_MSG_EPOCH:
    case PC_MSG_EVICT: return member->phase == PC_MEMBER_JOINING || member->phase == PC_MEMBER_MEMBER;
    case PC_MSG_CALL_RESULT:
    case PC_MSG_VERDICT:
    case PC_MSG_FREEZE:
    case PC_MSG_PROBE:
    case PC_MSG_ASK_POSTED:
    case PC_MSG_SYNC_PLAN: return member->phase == PC_MEMBER_MEMBER;
    default: return false;
    }
}

union control_message {
    struct pc_msg_refuse refuse;
    struct pc_msg_challenge challenge;
    struct pc_msg_welcome welcome;
    struct pc_msg_peers peers;
    struct pc_msg_epoch epoch;
    struct pc_msg_call_result result;
    struct pc_msg_verdict verdict;
    struct pc_msg_freeze freeze;
    struct pc_msg_sync_plan plan;
    struct pc_msg_probe probe;
    struct pc_msg_posted asked;
    uint8_t room[PC_MESSAGE_STRUCT_MAX];
};

static pc_status handle(struct pc_member *member, uint8_t type, const union control_message *message,
                        uint64_t now_ns) {
    switch (type) {
    case PC_MSG_REFUSE: return on_refusal(member, &message->refuse, pcclRefused);
    case PC_MSG_EVICT: return on_refusal(member, &message->refuse, pcclEvicted);
    case PC_MSG_CHALLENGE: return on_challenge(member, &message->challenge);
    case PC_MSG_WELCOME: on_welcome(member, &message->welcome, now_ns); return pcclSuccess;
    case PC_MSG_PEERS: {
        const struct pc_peer_intro *peers = message->peers.peers.items;
        for (uint32_t i = 0; i < message->peers.peers.count; i++) pc_member_introduce(member, &peers[i], now_ns);
        return pcclSuccess;
    }
    case PC_MSG_EPOCH: return on_epoch(member, &message->epoch, now_ns);
    case PC_MSG_CALL_RESULT: on_call_result(member, &message->result, now_ns); return pcclSuccess;
    case PC_MSG_VERDICT: on_verdicts(member, &message->verdict, now_ns); return pcclSuccess;
    case PC_MSG_FREEZE: on_freeze(member, &message->freeze); return pcclSuccess;
    case PC_MSG_PROBE: pc_member_probe(member, &message->probe, now_ns); return pcclSuccess;
    case PC_MSG_ASK_POSTED: return pc_member_report_posted(member, &message->asked);
    case PC_MSG_SYNC_PLAN: return pc_member_sync_plan(member, &message->plan);
    default: return pcclProtocolError;
    }
}

pc_status pc_member_control_frame(struct pc_member *member, const struct pc_frame *frame, struct pc_cursor meta,
                                  uint64_t now_ns) {
    const struct pc_message_info *info = pc_message_info(frame->type);
    if (!expected(member, frame->type)) {
        return pc_error_set(&member->control->error, pcclProtocolError, "the master sent %s when that is not expected",
                            info->schema->name);
    }
    PC_LOG(pcclLogTrace, "%s: from master: %s", member->machine.name, info->schema->name);
    member->heard++;
    union control_message message;
    PC_TRY(pc_schema_decode(info->schema, meta, &member->arena, &message));
    return handle(member, frame->type, &message, now_ns);
}

/* Timers -------------------------------------------------------------------------------------------------------- */

void pc_member_control_tick(struct pc_member *member, uint64_t now_ns) {
    struct pc_stream *control = member->control;
    const uint64_t silent_ns = now_ns - control->heard_ns;
    const bool admitted = member->phase >= PC_MEMBER_JOINING;
    const bool late = admitted ? silent_ns > member->dead_timeout_ns
                               : now_ns - control->opened_ns > member->config.handshake_timeout_ns;
    if (late) {
        pc_error error = {.last_heard_ms = silent_ns / PC_NS_PER_MS};
        pc_address_format(&control->remote, error.peer_address, sizeof error.peer_address);
        if (member->phase == PC_MEMBER_WELCOME) {
            /* It answers, so it lives: what it waits for is its own connection to this peer. */
            pc_error_set(&error, pcclMasterConnectionFailed,
                         "the master at %s has not registered this peer within %llu ms: it tries to connect back to it first",
                         error.peer_address, (unsigned long long)(member->config.handshake_timeout_ns / PC_NS_PER_MS));
            pc_error_hint(&error, "open this peer's port to the master and the other hosts (firewall, NAT), or set "
                                  "PCCL_ADVERTISE to an address at which they reach it");
        } else {
            pc_error_set(&error, pcclMasterConnectionFailed, "the master at %s has been silent for %llu ms",
                         error.peer_address, (unsigned long long)error.last_heard_ms);
            pc_error_hint(&error, "check the master's process and the network to it; connect again to join as a newcomer");
        }
        pc_member_lose(member, &error, false);
        return;
    }
    if (admitted && now_ns >= member->control_beat_ns) {
        member->control_beat_ns = now_ns + member->heartbeat_ns;
        pc_member_tell_master(member, PC_MSG_HEARTBEAT, &(struct pc_msg_empty){0});
    }
}
