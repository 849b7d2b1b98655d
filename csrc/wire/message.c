/*
 * The schemas of all messages: one line a field, in wire order, the same for both directions. Changing a line changes
 * the protocol: raise PC_PROTOCOL_VERSION. Pure.
 */
#include "wire/message.h"

#include "bytes/dtype.h"
#include "math/codec.h"
#include "math/digest.h"

#include <stdio.h>
#include <string.h>

#define FIELD(type, member, kind) {kind, (uint32_t)offsetof(struct type, member), NULL, #member}
#define PART(type, member, kind, sub) {kind, (uint32_t)offsetof(struct type, member), &sub, #member}
#define SCHEMA(short_name)                                                                                             \
    static const struct pc_schema short_name##_schema = {                                                              \
        #short_name, short_name##_fields, sizeof short_name##_fields / sizeof short_name##_fields[0],                  \
        (uint32_t)sizeof(struct pc_##short_name)};

static const struct pc_field msg_empty_fields[] = {
    FIELD(pc_msg_empty, reserved, PC_FIELD_U8),
};
SCHEMA(msg_empty)

static const struct pc_field wire_error_fields[] = {
    FIELD(pc_wire_error, code, PC_FIELD_U32),
    FIELD(pc_wire_error, sys_errno, PC_FIELD_U32),
    FIELD(pc_wire_error, peer_id, PC_FIELD_U64),
    FIELD(pc_wire_error, epoch, PC_FIELD_U64),
    FIELD(pc_wire_error, tag, PC_FIELD_U64),
    FIELD(pc_wire_error, seq, PC_FIELD_U64),
    FIELD(pc_wire_error, bytes_done, PC_FIELD_U64),
    FIELD(pc_wire_error, bytes_total, PC_FIELD_U64),
    FIELD(pc_wire_error, last_heard_ms, PC_FIELD_U64),
    FIELD(pc_wire_error, peer_address, PC_FIELD_TEXT),
    FIELD(pc_wire_error, phase, PC_FIELD_TEXT),
    FIELD(pc_wire_error, message, PC_FIELD_TEXT),
    FIELD(pc_wire_error, hint, PC_FIELD_TEXT),
};
SCHEMA(wire_error)

static const struct pc_field msg_refuse_fields[] = {
    PART(pc_msg_refuse, error, PC_FIELD_STRUCT, wire_error_schema),
};
SCHEMA(msg_refuse)

static const struct pc_field msg_hello_fields[] = {
    FIELD(pc_msg_hello, version_min, PC_FIELD_U16),
    FIELD(pc_msg_hello, version_max, PC_FIELD_U16),
    FIELD(pc_msg_hello, features, PC_FIELD_U64),
    FIELD(pc_msg_hello, nonce, PC_FIELD_BYTES16),
    FIELD(pc_msg_hello, purpose, PC_FIELD_U8),
    FIELD(pc_msg_hello, build, PC_FIELD_TEXT),
};
SCHEMA(msg_hello)

static const struct pc_field address_fields[] = {
    FIELD(pc_address, family, PC_FIELD_U8),
    FIELD(pc_address, port, PC_FIELD_U16),
    FIELD(pc_address, ip, PC_FIELD_BYTES16),
    FIELD(pc_address, scope, PC_FIELD_U32),
};
SCHEMA(address)

static const struct pc_field msg_auth_fields[] = {
    FIELD(pc_msg_auth, proof, PC_FIELD_BYTES16),
    FIELD(pc_msg_auth, incarnation, PC_FIELD_BYTES16),
    FIELD(pc_msg_auth, group, PC_FIELD_U32),
    FIELD(pc_msg_auth, stripes, PC_FIELD_U32),
    FIELD(pc_msg_auth, observer, PC_FIELD_U8),
    FIELD(pc_msg_auth, pid, PC_FIELD_U64),
    FIELD(pc_msg_auth, host, PC_FIELD_TEXT),
    PART(pc_msg_auth, addresses, PC_FIELD_LIST, address_schema),
};
SCHEMA(msg_auth)

static const struct pc_field msg_link_up_fields[] = {
    FIELD(pc_msg_link_up, id, PC_FIELD_U64),
    FIELD(pc_msg_link_up, generation, PC_FIELD_U32),
    FIELD(pc_msg_link_up, rtt_us, PC_FIELD_U32),
    FIELD(pc_msg_link_up, bytes_per_ms, PC_FIELD_U32),
};
SCHEMA(msg_link_up)

static const struct pc_field msg_link_down_fields[] = {
    FIELD(pc_msg_link_down, id, PC_FIELD_U64),
    FIELD(pc_msg_link_down, generation, PC_FIELD_U32),
    PART(pc_msg_link_down, error, PC_FIELD_STRUCT, wire_error_schema),
};
SCHEMA(msg_link_down)

static const struct pc_field id_item_fields[] = {
    FIELD(pc_id_item, id, PC_FIELD_U64),
};
SCHEMA(id_item)

static const struct pc_field step_sum_fields[] = {
    FIELD(pc_step_sum, ops, PC_FIELD_U64),
    FIELD(pc_step_sum, digest, PC_FIELD_U64),
    FIELD(pc_step_sum, sends, PC_FIELD_U64),
    FIELD(pc_step_sum, receives, PC_FIELD_U64),
    FIELD(pc_step_sum, channels, PC_FIELD_U64),
};
SCHEMA(step_sum)

static const struct pc_field msg_call_fields[] = {
    FIELD(pc_msg_call, kind, PC_FIELD_U8),
    FIELD(pc_msg_call, serial, PC_FIELD_U64),
    FIELD(pc_msg_call, subset, PC_FIELD_U32),
    FIELD(pc_msg_call, value, PC_FIELD_U64),
    PART(pc_msg_call, step, PC_FIELD_STRUCT, step_sum_schema),
    PART(pc_msg_call, ids, PC_FIELD_LIST, id_item_schema),
};
SCHEMA(msg_call)

static const struct pc_field msg_call_cancel_fields[] = {
    FIELD(pc_msg_call_cancel, serial, PC_FIELD_U64),
};
SCHEMA(msg_call_cancel)

static const struct pc_field op_key_fields[] = {
    FIELD(pc_op_key, epoch, PC_FIELD_U64),
    FIELD(pc_op_key, tag, PC_FIELD_U64),
    FIELD(pc_op_key, seq, PC_FIELD_U64),
    FIELD(pc_op_key, channel, PC_FIELD_U64),
    FIELD(pc_op_key, group, PC_FIELD_U32),
    FIELD(pc_op_key, subset, PC_FIELD_U32),
};
SCHEMA(op_key)

static const struct pc_field done_fields[] = {
    PART(pc_done, key, PC_FIELD_STRUCT, op_key_schema),
    FIELD(pc_done, fingerprint, PC_FIELD_U64),
};
SCHEMA(done)

static const struct pc_field msg_done_fields[] = {
    PART(pc_msg_done, ops, PC_FIELD_LIST, done_schema),
};
SCHEMA(msg_done)

static const struct pc_field msg_op_fail_fields[] = {
    PART(pc_msg_op_fail, key, PC_FIELD_STRUCT, op_key_schema),
    FIELD(pc_msg_op_fail, in_step, PC_FIELD_U8),
    PART(pc_msg_op_fail, error, PC_FIELD_STRUCT, wire_error_schema),
};
SCHEMA(msg_op_fail)

static const struct pc_field op_state_fields[] = {
    PART(pc_op_state, key, PC_FIELD_STRUCT, op_key_schema),
    FIELD(pc_op_state, fingerprint, PC_FIELD_U64),
    FIELD(pc_op_state, done, PC_FIELD_U8),
};
SCHEMA(op_state)

static const struct pc_field msg_state_fields[] = {
    FIELD(pc_msg_state, epoch, PC_FIELD_U64),
    FIELD(pc_msg_state, subset, PC_FIELD_U32),
    FIELD(pc_msg_state, step_open, PC_FIELD_U8),
    PART(pc_msg_state, ops, PC_FIELD_LIST, op_state_schema),
};
SCHEMA(msg_state)

static const struct pc_field msg_leave_group_fields[] = {
    FIELD(pc_msg_leave_group, subset, PC_FIELD_U32),
};
SCHEMA(msg_leave_group)

static const struct pc_field msg_goodbye_fields[] = {
    FIELD(pc_msg_goodbye, reason, PC_FIELD_TEXT),
};
SCHEMA(msg_goodbye)

static const struct pc_field stall_fields[] = {
    FIELD(pc_stall, kind, PC_FIELD_U8),
    FIELD(pc_stall, collective, PC_FIELD_U8),
    FIELD(pc_stall, in_step, PC_FIELD_U8),
    PART(pc_stall, key, PC_FIELD_STRUCT, op_key_schema),
    FIELD(pc_stall, blocked_ms, PC_FIELD_U64),
};
SCHEMA(stall)

static const struct pc_field msg_stalled_fields[] = {
    FIELD(pc_msg_stalled, heard, PC_FIELD_U64),
    FIELD(pc_msg_stalled, threads_free, PC_FIELD_U8),
    PART(pc_msg_stalled, calls, PC_FIELD_LIST, stall_schema),
    PART(pc_msg_stalled, started, PC_FIELD_LIST, op_key_schema),
};
SCHEMA(msg_stalled)

static const struct pc_field msg_posted_fields[] = {
    PART(pc_msg_posted, keys, PC_FIELD_LIST, op_key_schema),
};
SCHEMA(msg_posted)

static const struct pc_field state_key_fields[] = {
    FIELD(pc_state_key, name, PC_FIELD_TEXT),
    FIELD(pc_state_key, dtype, PC_FIELD_U32),
    FIELD(pc_state_key, count, PC_FIELD_U64),
    FIELD(pc_state_key, may_differ, PC_FIELD_U8),
    FIELD(pc_state_key, digest, PC_FIELD_BYTES16),
};
SCHEMA(state_key)

static const struct pc_field msg_sync_offer_fields[] = {
    FIELD(pc_msg_sync_offer, serial, PC_FIELD_U64),
    FIELD(pc_msg_sync_offer, revision, PC_FIELD_U64),
    FIELD(pc_msg_sync_offer, strategy, PC_FIELD_U32),
    PART(pc_msg_sync_offer, keys, PC_FIELD_LIST, state_key_schema),
};
SCHEMA(msg_sync_offer)

static const struct pc_field msg_sync_ready_fields[] = {
    FIELD(pc_msg_sync_ready, sync_id, PC_FIELD_U64),
    PART(pc_msg_sync_ready, error, PC_FIELD_STRUCT, wire_error_schema),
};
SCHEMA(msg_sync_ready)

static const struct pc_field msg_challenge_fields[] = {
    FIELD(pc_msg_challenge, version, PC_FIELD_U16),
    FIELD(pc_msg_challenge, features, PC_FIELD_U64),
    FIELD(pc_msg_challenge, nonce, PC_FIELD_BYTES16),
    FIELD(pc_msg_challenge, proof, PC_FIELD_BYTES16),
    FIELD(pc_msg_challenge, keyed, PC_FIELD_U8),
};
SCHEMA(msg_challenge)

static const struct pc_field msg_welcome_fields[] = {
    FIELD(pc_msg_welcome, id, PC_FIELD_U64),
    FIELD(pc_msg_welcome, incarnation, PC_FIELD_U64),
    FIELD(pc_msg_welcome, run, PC_FIELD_BYTES16),
    FIELD(pc_msg_welcome, dead_timeout_ms, PC_FIELD_U32),
    FIELD(pc_msg_welcome, heartbeat_ms, PC_FIELD_U32),
};
SCHEMA(msg_welcome)

static const struct pc_field peer_intro_fields[] = {
    FIELD(pc_peer_intro, id, PC_FIELD_U64),
    FIELD(pc_peer_intro, group, PC_FIELD_U32),
    FIELD(pc_peer_intro, generation, PC_FIELD_U32),
    FIELD(pc_peer_intro, stripes, PC_FIELD_U32),
    FIELD(pc_peer_intro, dial, PC_FIELD_U8),
    FIELD(pc_peer_intro, token, PC_FIELD_BYTES16),
    PART(pc_peer_intro, addresses, PC_FIELD_LIST, address_schema),
};
SCHEMA(peer_intro)

static const struct pc_field msg_peers_fields[] = {
    PART(pc_msg_peers, peers, PC_FIELD_LIST, peer_intro_schema),
};
SCHEMA(msg_peers)

static const struct pc_field msg_call_result_fields[] = {
    FIELD(pc_msg_call_result, serial, PC_FIELD_U64),
    FIELD(pc_msg_call_result, value, PC_FIELD_U64),
    PART(pc_msg_call_result, error, PC_FIELD_STRUCT, wire_error_schema),
};
SCHEMA(msg_call_result)

static const struct pc_field verdict_fields[] = {
    PART(pc_verdict, key, PC_FIELD_STRUCT, op_key_schema),
    FIELD(pc_verdict, commit, PC_FIELD_U8),
};
SCHEMA(verdict)

static const struct pc_field msg_verdict_fields[] = {
    PART(pc_msg_verdict, ops, PC_FIELD_LIST, verdict_schema),
    FIELD(pc_msg_verdict, in_step, PC_FIELD_U8),
    PART(pc_msg_verdict, error, PC_FIELD_STRUCT, wire_error_schema),
};
SCHEMA(msg_verdict)

static const struct pc_field msg_freeze_fields[] = {
    FIELD(pc_msg_freeze, epoch, PC_FIELD_U64),
    FIELD(pc_msg_freeze, subset, PC_FIELD_U32),
};
SCHEMA(msg_freeze)

static const struct pc_field member_record_fields[] = {
    FIELD(pc_member_record, id, PC_FIELD_U64),
    FIELD(pc_member_record, group, PC_FIELD_U32),
    FIELD(pc_member_record, observer, PC_FIELD_U8),
    FIELD(pc_member_record, incarnation, PC_FIELD_BYTES16),
    PART(pc_member_record, address, PC_FIELD_STRUCT, address_schema),
};
SCHEMA(member_record)

static const struct pc_field index_item_fields[] = {
    FIELD(pc_index_item, index, PC_FIELD_U32),
};
SCHEMA(index_item)

static const struct pc_field link_item_fields[] = {
    FIELD(pc_link_item, rtt_us, PC_FIELD_U16),
    FIELD(pc_link_item, up, PC_FIELD_U16),
    FIELD(pc_link_item, down, PC_FIELD_U16),
};
SCHEMA(link_item)

static const struct pc_field group_record_fields[] = {
    FIELD(pc_group_record, group, PC_FIELD_U32),
    FIELD(pc_group_record, subset, PC_FIELD_U32),
    FIELD(pc_group_record, epoch, PC_FIELD_U64),
    PART(pc_group_record, members, PC_FIELD_LIST, id_item_schema),
    PART(pc_group_record, ring, PC_FIELD_LIST, index_item_schema),
    PART(pc_group_record, links, PC_FIELD_LIST, link_item_schema),
    FIELD(pc_group_record, rtt_us, PC_FIELD_U32),
    FIELD(pc_group_record, ring_only, PC_FIELD_U8),
    FIELD(pc_group_record, step_poisoned, PC_FIELD_U8),
    PART(pc_group_record, cause, PC_FIELD_STRUCT, wire_error_schema),
    FIELD(pc_group_record, broken, PC_FIELD_U8),
};
SCHEMA(group_record)

static const struct pc_field msg_epoch_fields[] = {
    FIELD(pc_msg_epoch, incarnation, PC_FIELD_U64),
    FIELD(pc_msg_epoch, number, PC_FIELD_U64),
    FIELD(pc_msg_epoch, topology_serial, PC_FIELD_U64),
    PART(pc_msg_epoch, members, PC_FIELD_LIST, member_record_schema),
    PART(pc_msg_epoch, groups, PC_FIELD_LIST, group_record_schema),
    PART(pc_msg_epoch, fates, PC_FIELD_LIST, verdict_schema),
};
SCHEMA(msg_epoch)

static const struct pc_field digest_item_fields[] = {
    FIELD(pc_digest_item, digest, PC_FIELD_BYTES16),
};
SCHEMA(digest_item)

static const struct pc_field msg_sync_plan_fields[] = {
    FIELD(pc_msg_sync_plan, serial, PC_FIELD_U64),
    FIELD(pc_msg_sync_plan, sync_id, PC_FIELD_U64),
    FIELD(pc_msg_sync_plan, revision, PC_FIELD_U64),
    FIELD(pc_msg_sync_plan, role, PC_FIELD_U8),
    FIELD(pc_msg_sync_plan, source, PC_FIELD_U64),
    PART(pc_msg_sync_plan, keys, PC_FIELD_LIST, index_item_schema),
    PART(pc_msg_sync_plan, digests, PC_FIELD_LIST, digest_item_schema),
};
SCHEMA(msg_sync_plan)

static const struct pc_field msg_status_reply_fields[] = {
    FIELD(pc_msg_status_reply, json, PC_FIELD_TEXT),
};
SCHEMA(msg_status_reply)

static const struct pc_field msg_link_hello_fields[] = {
    FIELD(pc_msg_link_hello, version, PC_FIELD_U16),
    FIELD(pc_msg_link_hello, from, PC_FIELD_U64),
    FIELD(pc_msg_link_hello, to, PC_FIELD_U64),
    FIELD(pc_msg_link_hello, generation, PC_FIELD_U32),
    FIELD(pc_msg_link_hello, stripe, PC_FIELD_U16),
    FIELD(pc_msg_link_hello, stripes, PC_FIELD_U16),
    FIELD(pc_msg_link_hello, proof, PC_FIELD_BYTES16),
};
SCHEMA(msg_link_hello)

static const struct pc_field msg_link_ack_fields[] = {
    FIELD(pc_msg_link_ack, proof, PC_FIELD_BYTES16),
};
SCHEMA(msg_link_ack)

static const struct pc_field op_shape_fields[] = {
    FIELD(pc_op_shape, count, PC_FIELD_U64),
    FIELD(pc_op_shape, layout, PC_FIELD_U64),
    FIELD(pc_op_shape, root, PC_FIELD_U32),
    FIELD(pc_op_shape, collective, PC_FIELD_U8),
    FIELD(pc_op_shape, dtype, PC_FIELD_U8),
    FIELD(pc_op_shape, redop, PC_FIELD_U8),
    FIELD(pc_op_shape, consistency, PC_FIELD_U8),
    FIELD(pc_op_shape, algorithm, PC_FIELD_U8),
    FIELD(pc_op_shape, codec, PC_FIELD_U8),
    FIELD(pc_op_shape, codec_bits, PC_FIELD_U8),
    FIELD(pc_op_shape, codec_block, PC_FIELD_U32),
};
SCHEMA(op_shape)

static const struct pc_field msg_data_fields[] = {
    PART(pc_msg_data, key, PC_FIELD_STRUCT, op_key_schema),
    PART(pc_msg_data, shape, PC_FIELD_STRUCT, op_shape_schema),
    FIELD(pc_msg_data, step, PC_FIELD_U64),
    FIELD(pc_msg_data, weight, PC_FIELD_U64),
    FIELD(pc_msg_data, elems, PC_FIELD_U64),
    FIELD(pc_msg_data, chunk, PC_FIELD_U32),
    FIELD(pc_msg_data, segment, PC_FIELD_U32),
    FIELD(pc_msg_data, kind, PC_FIELD_U8),
    FIELD(pc_msg_data, eager, PC_FIELD_U8),
};
SCHEMA(msg_data)

static const struct pc_field msg_ready_fields[] = {
    PART(pc_msg_ready, key, PC_FIELD_STRUCT, op_key_schema),
    PART(pc_msg_ready, shape, PC_FIELD_STRUCT, op_shape_schema),
    FIELD(pc_msg_ready, step, PC_FIELD_U64),
    FIELD(pc_msg_ready, weight, PC_FIELD_U64),
    FIELD(pc_msg_ready, credit, PC_FIELD_U64),
    FIELD(pc_msg_ready, final_credit, PC_FIELD_U64),
};
SCHEMA(msg_ready)

static const struct pc_field msg_eager_taken_fields[] = {
    FIELD(pc_msg_eager_taken, generation, PC_FIELD_U32),
    FIELD(pc_msg_eager_taken, bytes, PC_FIELD_U32),
};
SCHEMA(msg_eager_taken)

static const struct pc_field msg_probe_fields[] = {
    FIELD(pc_msg_probe, serial, PC_FIELD_U64),
    FIELD(pc_msg_probe, id, PC_FIELD_U64),
    FIELD(pc_msg_probe, most_bytes, PC_FIELD_U32),
};
SCHEMA(msg_probe)

static const struct pc_field msg_probed_fields[] = {
    FIELD(pc_msg_probed, serial, PC_FIELD_U64),
    FIELD(pc_msg_probed, id, PC_FIELD_U64),
    FIELD(pc_msg_probed, bytes_per_ms, PC_FIELD_U32),
};
SCHEMA(msg_probed)

static const struct pc_field msg_probe_data_fields[] = {
    FIELD(pc_msg_probe_data, serial, PC_FIELD_U64),
    FIELD(pc_msg_probe_data, burst_bytes, PC_FIELD_U32),
};
SCHEMA(msg_probe_data)

static const struct pc_field msg_probe_ack_fields[] = {
    FIELD(pc_msg_probe_ack, serial, PC_FIELD_U64),
    FIELD(pc_msg_probe_ack, elapsed_ns, PC_FIELD_U64),
    FIELD(pc_msg_probe_ack, burst_bytes, PC_FIELD_U32),
    FIELD(pc_msg_probe_ack, timed_bytes, PC_FIELD_U32),
};
SCHEMA(msg_probe_ack)

static const struct pc_field msg_state_ref_fields[] = {
    FIELD(pc_msg_state_ref, sync_id, PC_FIELD_U64),
    FIELD(pc_msg_state_ref, key, PC_FIELD_U32),
    FIELD(pc_msg_state_ref, block, PC_FIELD_U32),
};
SCHEMA(msg_state_ref)

const struct pc_message_info pc_messages[] = {
    {PC_MSG_HEARTBEAT, false, &msg_empty_schema},
    {PC_MSG_REFUSE, false, &msg_refuse_schema},
    {PC_MSG_HELLO, false, &msg_hello_schema},
    {PC_MSG_AUTH, false, &msg_auth_schema},
    {PC_MSG_LINK_UP, false, &msg_link_up_schema},
    {PC_MSG_LINK_DOWN, false, &msg_link_down_schema},
    {PC_MSG_CALL, false, &msg_call_schema},
    {PC_MSG_CALL_CANCEL, false, &msg_call_cancel_schema},
    {PC_MSG_DONE, false, &msg_done_schema},
    {PC_MSG_OP_FAIL, false, &msg_op_fail_schema},
    {PC_MSG_STATE, false, &msg_state_schema},
    {PC_MSG_GOODBYE, false, &msg_goodbye_schema},
    {PC_MSG_STALLED, false, &msg_stalled_schema},
    {PC_MSG_SYNC_OFFER, false, &msg_sync_offer_schema},
    {PC_MSG_SYNC_READY, false, &msg_sync_ready_schema},
    {PC_MSG_STATUS, false, &msg_empty_schema},
    {PC_MSG_LEAVE_GROUP, false, &msg_leave_group_schema},
    {PC_MSG_POSTED, false, &msg_posted_schema},
    {PC_MSG_ASK_POSTED, false, &msg_posted_schema},
    {PC_MSG_CHALLENGE, false, &msg_challenge_schema},
    {PC_MSG_WELCOME, false, &msg_welcome_schema},
    {PC_MSG_PEERS, false, &msg_peers_schema},
    {PC_MSG_CALL_RESULT, false, &msg_call_result_schema},
    {PC_MSG_VERDICT, false, &msg_verdict_schema},
    {PC_MSG_FREEZE, false, &msg_freeze_schema},
    {PC_MSG_EPOCH, false, &msg_epoch_schema},
    {PC_MSG_EVICT, false, &msg_refuse_schema},
    {PC_MSG_SYNC_PLAN, false, &msg_sync_plan_schema},
    {PC_MSG_STATUS_REPLY, false, &msg_status_reply_schema},
    {PC_MSG_LINK_HELLO, false, &msg_link_hello_schema},
    {PC_MSG_LINK_ACK, false, &msg_link_ack_schema},
    {PC_MSG_DATA, true, &msg_data_schema},
    {PC_MSG_READY, false, &msg_ready_schema},
    {PC_MSG_DIGESTS_WANT, false, &msg_state_ref_schema},
    {PC_MSG_DIGESTS, true, &msg_state_ref_schema},
    {PC_MSG_BLOCK_WANT, false, &msg_state_ref_schema},
    {PC_MSG_BLOCK, true, &msg_state_ref_schema},
    {PC_MSG_PROBED, false, &msg_probed_schema},
    {PC_MSG_PROBE, false, &msg_probe_schema},
    {PC_MSG_PROBE_DATA, true, &msg_probe_data_schema},
    {PC_MSG_PROBE_ACK, false, &msg_probe_ack_schema},
    {PC_MSG_EAGER_TAKEN, false, &msg_eager_taken_schema},
    {0, false, NULL},
};

const struct pc_message_info *pc_message_info(uint8_t type) {
    for (const struct pc_message_info *info = pc_messages; info->schema != NULL; info++) {
        if (info->type == type) return info;
    }
    return NULL;
}

const char *pc_call_name(uint32_t kind) {
    switch (kind) {
    case PC_CALL_CONNECT: return "connect";
    case PC_CALL_UPDATE_TOPOLOGY: return "update_topology";
    case PC_CALL_PEERS_PENDING: return "are_peers_pending";
    case PC_CALL_OPTIMIZE_TOPOLOGY: return "optimize_topology";
    case PC_CALL_SYNC_STATE: return "sync_shared_state";
    case PC_CALL_COLLECTIVE: return "a collective";
    case PC_CALL_LEAVE: return "leave";
    case PC_CALL_END_STEP: return "the end of a step";
    case PC_CALL_CREATE_GROUP: return "new_group";
    default: return "no call";
    }
}

const char *pc_collective_name(uint32_t collective) {
    static const char *const names[PC_COLLECTIVE_COUNT] = {
        [PC_ALL_REDUCE] = "all_reduce",         [PC_BROADCAST] = "broadcast", [PC_REDUCE] = "reduce",
        [PC_ALL_GATHER] = "all_gather",         [PC_GATHER] = "gather",       [PC_SCATTER] = "scatter",
        [PC_REDUCE_SCATTER] = "reduce_scatter", [PC_ALL_TO_ALL] = "all_to_all", [PC_SEND_RECV] = "send/recv",
        [PC_BARRIER] = "barrier",
    };
    const bool known = collective < PC_COLLECTIVE_COUNT && names[collective] != NULL;
    return known ? names[collective] : "an unknown collective";
}

struct pc_wire_error pc_error_to_wire(const pc_error *error) {
    return (struct pc_wire_error){
        .code = (uint32_t)error->code,
        .sys_errno = (uint32_t)error->sys_errno,
        .peer_id = error->peer_id,
        .epoch = error->epoch,
        .tag = error->tag,
        .seq = error->seq,
        .bytes_done = error->bytes_done,
        .bytes_total = error->bytes_total,
        .last_heard_ms = error->last_heard_ms,
        .peer_address = pc_text_of(error->peer_address),
        .phase = pc_text_of(error->phase),
        .message = pc_text_of(error->message),
        .hint = pc_text_of(error->hint),
    };
}

void pc_error_from_wire(const struct pc_wire_error *wire, pc_error *error) {
    memset(error, 0, sizeof *error);
    error->code = (pcclResult_t)wire->code;
    error->sys_errno = (int32_t)wire->sys_errno;
    error->peer_id = wire->peer_id;
    error->epoch = wire->epoch;
    error->tag = wire->tag;
    error->seq = wire->seq;
    error->bytes_done = wire->bytes_done;
    error->bytes_total = wire->bytes_total;
    error->last_heard_ms = wire->last_heard_ms;
    pc_text_copy(error->peer_address, sizeof error->peer_address, wire->peer_address);
    pc_text_copy(error->phase, sizeof error->phase, wire->phase);
    pc_text_copy(error->message, sizeof error->message, wire->message);
    pc_text_copy(error->hint, sizeof error->hint, wire->hint);
}

/* RFC 5952: the longest run of zero groups becomes "::". */
static void format_ipv6(const uint8_t ip[16], char *out, size_t out_bytes) {
    int best = -1, best_len = 1;
    for (int i = 0; i < 8; i++) {
        int len = 0;
        while (i + len < 8 && ip[2 * (i + len)] == 0 && ip[2 * (i + len) + 1] == 0) len++;
        if (len > best_len) {
            best = i;
            best_len = len;
        }
    }
    size_t used = 0;
    for (int i = 0; i < 8 && used < out_bytes; i++) {
        if (i == best) {
            used += (size_t)snprintf(out + used, out_bytes - used, i == 0 ? "::" : ":");
            i += best_len - 1;
        } else {
            const unsigned part = (unsigned)ip[2 * i] << 8 | ip[2 * i + 1];
            used += (size_t)snprintf(out + used, out_bytes - used, "%x%s", part, i == 7 ? "" : ":");
        }
    }
}

void pc_address_format(const struct pc_address *address, char *out, size_t out_bytes) {
    const uint8_t *ip = address->ip;
    if (address->family == 4) {
        (void)snprintf(out, out_bytes, "%u.%u.%u.%u:%u", ip[0], ip[1], ip[2], ip[3], address->port);
        return;
    }
    char text[48] = "";
    format_ipv6(ip, text, sizeof text);
    (void)snprintf(out, out_bytes, "[%s]:%u", text, address->port);
}

bool pc_address_is_loopback(const struct pc_address *address) {
    static const uint8_t ipv6[16] = {[15] = 1}, mapped[13] = {[10] = 0xff, [11] = 0xff, [12] = 127};
    if (address->family == 4) return address->ip[0] == 127;
    return memcmp(address->ip, ipv6, sizeof ipv6) == 0 || memcmp(address->ip, mapped, sizeof mapped) == 0;
}

bool pc_op_key_equal(const struct pc_op_key *a, const struct pc_op_key *b) {
    return a->epoch == b->epoch && a->tag == b->tag && a->seq == b->seq && a->channel == b->channel &&
           a->group == b->group && a->subset == b->subset;
}

bool pc_op_shape_equal(const struct pc_op_shape *a, const struct pc_op_shape *b) {
    return a->count == b->count && a->layout == b->layout && a->root == b->root && a->collective == b->collective &&
           a->dtype == b->dtype && a->redop == b->redop && a->consistency == b->consistency &&
           a->algorithm == b->algorithm && a->codec == b->codec && a->codec_bits == b->codec_bits &&
           a->codec_block == b->codec_block;
}

bool pc_collective_has_root(uint32_t collective) {
    return collective == PC_BROADCAST || collective == PC_REDUCE || collective == PC_GATHER || collective == PC_SCATTER;
}

bool pc_collective_reduces(uint32_t collective) {
    return collective == PC_ALL_REDUCE || collective == PC_REDUCE || collective == PC_REDUCE_SCATTER || collective == PC_BARRIER;
}

void pc_op_shape_format(const struct pc_op_shape *shape, char *out, size_t out_bytes) {
    static const char *const algorithms[PC_ALGORITHM_COUNT] = {"", " by ring", " by tree", " directly", " by exchange"};
    char root[32] = "", codec[48] = "", count[32] = "";
    if (pc_collective_has_root(shape->collective)) (void)snprintf(root, sizeof root, " with root %u", shape->root);
    if (shape->codec != pcclQuantNone) {
        (void)snprintf(codec, sizeof codec, " as %s in blocks of %u", pc_codec_name(shape->codec), shape->codec_block);
        if (shape->codec == pcclQuantIntSum) {
            (void)snprintf(codec, sizeof codec, " as %s of 2^%d in blocks of %u", pc_codec_name(shape->codec),
                           shape->codec_bits - PC_CODEC_EXPONENT_BIAS, shape->codec_block);
        } else if (shape->codec_bits != 0) {
            (void)snprintf(codec, sizeof codec, " as %s of %u bits in blocks of %u", pc_codec_name(shape->codec),
                           shape->codec_bits, shape->codec_block);
        }
    }
    /* How much it is not all know of these. */
    if (shape->collective < PC_GATHER) (void)snprintf(count, sizeof count, "%llu x ", (unsigned long long)shape->count);
    const bool combines = pc_collective_reduces(shape->collective) && shape->collective != PC_BARRIER;
    const char *op = combines ? pc_redop_name((pcclRedOp_t)shape->redop) : "";
    const char *dtype = shape->collective != PC_BARRIER ? pc_dtype_name((pcclDataType_t)shape->dtype) : "";
    (void)snprintf(out, out_bytes, "%s%s%s%s%s%s%s%s%s%s%s", pc_collective_name(shape->collective), *dtype != 0 ? ": " : "",
                   op, combines ? " of " : "", count, dtype, codec, root, shape->layout != 0 ? " in blocks" : "",
                   shape->consistency == PC_STEP ? ", in a step" : "",
                   shape->algorithm < PC_ALGORITHM_COUNT ? algorithms[shape->algorithm] : "");
}

uint64_t pc_op_shape_fingerprint(const struct pc_op_shape *shape) {
    uint8_t bytes[31];
    pc_bytes_put(bytes, shape->count, 8);
    pc_bytes_put(bytes + 8, shape->layout, 8);
    pc_bytes_put(bytes + 16, shape->root, 4);
    bytes[20] = shape->collective;
    bytes[21] = shape->dtype;
    bytes[22] = shape->redop;
    bytes[23] = shape->consistency;
    bytes[24] = shape->algorithm;
    bytes[25] = shape->codec;
    bytes[26] = shape->codec_bits;
    pc_bytes_put(bytes + 27, shape->codec_block, 4);
    return pc_digest64(bytes, sizeof bytes) | 1;
}
