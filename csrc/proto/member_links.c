/*
 * Links of a member: dialing, answering, proofs, heartbeats, loss. A lost link is reported, never judged here. Stripes
 * that are not attached yet carry the link as their subject too, so that their failure is the link's.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/member_state.h"

#include <string.h>

enum { RETRY_MS = 200 };

struct pc_link *pc_member_link(const struct pc_member *member, uint64_t peer) {
    for (struct pc_list *node = member->links.next; node != &member->links; node = node->next) {
        struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        if (link->peer == peer) return link;
    }
    return NULL;
}

static void dial(struct pc_member *member, struct pc_link *link, uint64_t now_ns) {
    link->state = PC_LINK_DIALING;
    link->retry_ns = 0;
    for (uint32_t i = 0; i < link->stripes; i++) {
        struct pc_stream *stream = pc_member_stream(member, PC_ROLE_STRIPE, now_ns);
        if (stream == NULL) {
            link->retry_ns = now_ns + RETRY_MS * PC_NS_PER_MS;
            return;
        }
        stream->subject = link;
        stream->stripe = i;
        link->streams[i] = stream;
        if (link->address_count > 0) stream->remote = link->addresses[0];
        struct pc_action *action = pc_actions_add(&member->machine.actions, PC_ACTION_DIAL);
        action->stream = stream;
        action->address_count = link->address_count;
        memcpy(action->addresses, link->addresses, sizeof link->addresses);
    }
}

void pc_member_stripe_opened(struct pc_member *member, struct pc_stream *stream, bool loopback, uint64_t now_ns) {
    (void)now_ns;
    struct pc_link *link = stream->subject;
    link->digest = !loopback;
    struct pc_msg_link_hello hello = {
        .version = PC_PROTOCOL_VERSION,
        .from = member->id,
        .to = link->peer,
        .generation = link->generation,
        .stripe = (uint16_t)stream->stripe,
        .stripes = (uint16_t)link->stripes,
    };
    pc_link_proof(link, true, member->id, link->peer, stream->stripe, hello.proof);
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, PC_FRAME_MAGIC, PC_MSG_LINK_HELLO, &hello, NULL, 0, false);
    if (tx == NULL) return; /* the handshake deadline ends it */
    pc_list_append(&stream->queue, &tx->node);
    pc_stream_wake(stream, &member->machine.actions);
}

static void close_streams(struct pc_member *member, struct pc_link *link) {
    for (uint32_t i = 0; i < PC_STRIPES_MAX; i++) {
        if (link->streams[i] == NULL) continue;
        pc_stream_close(link->streams[i], false, &member->machine.actions);
        link->streams[i] = NULL;
    }
    link->stripes_up = 0;
}

void pc_member_link_drop(struct pc_member *member, struct pc_link *link) {
    close_streams(member, link);
    pc_member_ops_unhold(member, link);
    pc_link_destroy(link, &member->tx_pool);
}

void pc_member_link_lost(struct pc_member *member, struct pc_link *link, const pc_error *error, uint64_t now_ns) {
    if (link->state == PC_LINK_DOWN) return;
    const bool was_up = link->state == PC_LINK_UP;
    PC_LOG(was_up ? pcclLogInfo : pcclLogDebug, "%s: link to peer %llu lost: %s", member->machine.name,
           (unsigned long long)link->peer, error->message);
    close_streams(member, link);
    /* One that was never up can still come: the other end dials again. */
    link->state = !was_up && !link->dialer ? PC_LINK_EXPECTED : PC_LINK_DOWN;
    if (was_up) member->stats.links_lost++;
    /* A link that never was is dialed again and again, until the master gives up on it; a lost one only on its word. */
    if (!was_up && link->dialer) link->retry_ns = now_ns + RETRY_MS * PC_NS_PER_MS;
    pc_error report = *error;
    report.peer_id = link->peer;
    const struct pc_msg_link_down down = {link->peer, link->generation, pc_error_to_wire(&report)};
    pc_member_tell_master(member, PC_MSG_LINK_DOWN, &down);
}

static void tell_up(struct pc_member *member, const struct pc_link *link) {
    const struct pc_msg_link_up up = {link->peer, link->generation, link->streams[0]->rtt_us, pc_link_rate(link)};
    pc_member_tell_master(member, PC_MSG_LINK_UP, &up);
}

void pc_member_report_links(struct pc_member *member) {
    for (struct pc_list *node = member->links.next; node != &member->links; node = node->next) {
        const struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        if (link->state == PC_LINK_UP) tell_up(member, link);
    }
}

static void link_up(struct pc_member *member, struct pc_link *link) {
    PC_LOG(pcclLogDebug, "%s: link to peer %llu up, generation %u, %u stripes", member->machine.name,
           (unsigned long long)link->peer, link->generation, link->stripes);
    tell_up(member, link);
    pc_link_wake(link, &member->machine.actions);
}

/* Answering ----------------------------------------------------------------------------------------------------- */

/* A proved hello makes the connection a stripe. Before the introduction has arrived it waits, unread. */
static pc_status answer(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_link_hello *hello,
                        uint64_t now_ns) {
    struct pc_link *link = pc_member_link(member, hello->from);
    if (link == NULL || link->state != PC_LINK_EXPECTED || link->generation != hello->generation) {
        return pc_error_set(&stream->error, pcclRefused, "a hello of peer %llu that is not expected",
                            (unsigned long long)hello->from);
    }
    uint8_t proof[PC_PROOF_BYTES];
    pc_link_proof(link, true, hello->from, member->id, hello->stripe, proof);
    const bool sound = hello->to == member->id && hello->stripes >= 1 && hello->stripes <= PC_STRIPES_MAX &&
                       hello->stripe < hello->stripes && link->streams[hello->stripe] == NULL &&
                       (link->stripes_up == 0 || link->stripes == hello->stripes);
    if (!sound || !pc_auth_equal(proof, hello->proof)) {
        return pc_error_set(&stream->error, pcclRefused, "a hello without proof that it is peer %llu",
                            (unsigned long long)hello->from);
    }
    struct pc_msg_link_ack ack;
    pc_link_proof(link, false, hello->from, member->id, hello->stripe, ack.proof);
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, PC_FRAME_MAGIC, PC_MSG_LINK_ACK, &ack, NULL, 0, false);
    if (tx == NULL) return pcclNoMemory;
    pc_list_remove(&stream->node);
    member->inbound_count--;
    stream->role = PC_ROLE_STRIPE;
    link->stripes = hello->stripes;
    link->digest = !pc_address_is_loopback(&stream->remote);
    pc_list_append(&stream->queue, &tx->node);
    pc_link_attach(link, stream, hello->stripe, now_ns);
    pc_stream_wake(stream, &member->machine.actions);
    if (link->state == PC_LINK_UP) link_up(member, link);
    return pcclSuccess;
}

static pc_status on_hello(struct pc_member *member, struct pc_stream *stream, struct pc_cursor meta,
                          uint64_t now_ns) {
    struct pc_msg_link_hello hello;
    PC_TRY(pc_schema_decode(pc_message_info(PC_MSG_LINK_HELLO)->schema, meta, &member->arena, &hello));
    if (hello.version != PC_PROTOCOL_VERSION) {
        return pc_error_set(&stream->error, pcclRefused, "a link hello of protocol version %u", hello.version);
    }
    const struct pc_link *link = pc_member_link(member, hello.from);
    const bool early = link == NULL || link->generation < hello.generation;
    if (!early) return answer(member, stream, &hello, now_ns);
    /* The newcomer was faster than the master's introduction. Its frame is kept; the deadline of a hello goes on. */
    struct pc_msg_link_hello *kept = pc_calloc(1, sizeof *kept);
    if (kept == NULL) return pcclNoMemory;
    *kept = hello;
    if (stream->early != NULL) return pcclProtocolError;
    stream->early = kept;
    return pcclSuccess;
}

static void answer_early(struct pc_member *member, uint64_t peer, uint64_t now_ns) {
    for (struct pc_list *node = member->inbound.next, *next; node != &member->inbound; node = next) {
        next = node->next;
        struct pc_stream *stream = PC_LIST_ENTRY(node, struct pc_stream, node);
        const struct pc_msg_link_hello *hello = stream->early;
        if (hello == NULL || hello->from != peer) continue;
        const pc_status status = answer(member, stream, hello, now_ns);
        if (status == pcclSuccess) continue;
        pc_error_set(&stream->error, status, "the hello of peer %llu was refused", (unsigned long long)peer);
        pc_member_break(member, stream, &stream->error, now_ns);
    }
}

void pc_member_introduce(struct pc_member *member, const struct pc_peer_intro *intro, uint64_t now_ns) {
    struct pc_link *link = pc_member_link(member, intro->id);
    if (intro->stripes == 0) { /* that peer has gone before it became a member */
        if (link != NULL) pc_member_link_drop(member, link);
        return;
    }
    if (link == NULL) {
        link = pc_link_create(intro->id);
        if (link == NULL) return;
        pc_list_append(&member->links, &link->node);
    }
    close_streams(member, link);
    pc_link_renew(link, intro, member->config.stripes);
    if (link->dialer) {
        dial(member, link, now_ns);
    } else {
        answer_early(member, intro->id, now_ns);
    }
}

/* Frames -------------------------------------------------------------------------------------------------------- */

static pc_status on_ack(struct pc_member *member, struct pc_stream *stream, struct pc_cursor meta, uint64_t now_ns) {
    struct pc_link *link = stream->subject;
    struct pc_msg_link_ack ack;
    PC_TRY(pc_schema_decode(pc_message_info(PC_MSG_LINK_ACK)->schema, meta, &member->arena, &ack));
    uint8_t proof[PC_PROOF_BYTES];
    pc_link_proof(link, false, member->id, link->peer, stream->stripe, proof);
    if (stream->shared[0] != NULL || !pc_auth_equal(proof, ack.proof)) return pcclProtocolError;
    pc_link_attach(link, stream, stream->stripe, now_ns);
    if (link->state == PC_LINK_UP) link_up(member, link);
    return pcclSuccess;
}

union link_message {
    struct pc_msg_data data;
    struct pc_msg_ready ready;
    struct pc_msg_eager_taken taken;
    struct pc_msg_state_ref ref;
    struct pc_msg_probe_data probe;
    struct pc_msg_probe_ack ack;
    uint8_t room[PC_MESSAGE_STRUCT_MAX];
};

pc_status pc_member_link_frame(struct pc_member *member, struct pc_stream *stream, const struct pc_frame *frame,
                               struct pc_cursor meta, uint64_t now_ns) {
    if (stream->role == PC_ROLE_INBOUND) {
        return frame->type == PC_MSG_LINK_HELLO ? on_hello(member, stream, meta, now_ns) : pcclProtocolError;
    }
    struct pc_link *link = stream->subject;
    if (frame->type == PC_MSG_LINK_ACK) return on_ack(member, stream, meta, now_ns);
    if (stream->shared[0] == NULL) return pcclProtocolError; /* not proved yet */
    const struct pc_message_info *info = pc_message_info(frame->type);
    union link_message message;
    PC_TRY(pc_schema_decode(info->schema, meta, &member->arena, &message));
    switch (frame->type) {
    case PC_MSG_DATA: return pc_member_data(member, stream, &message.data, frame->bulk_len, now_ns);
    case PC_MSG_READY: return pc_member_ready(member, stream, &message.ready, now_ns);
    case PC_MSG_EAGER_TAKEN: pc_member_eager_taken(link, &message.taken); return pcclSuccess;
    case PC_MSG_PROBE_DATA: return pc_member_probe_data(member, stream, &message.probe, frame->bulk_len);
    case PC_MSG_PROBE_ACK: pc_member_probe_ack(member, link, &message.ack, now_ns); return pcclSuccess;
    case PC_MSG_DIGESTS_WANT:
    case PC_MSG_DIGESTS:
    case PC_MSG_BLOCK_WANT:
    case PC_MSG_BLOCK: return pc_member_sync_frame(member, stream, frame, &message.ref);
    default: return pcclProtocolError;
    }
}

/* Timers -------------------------------------------------------------------------------------------------------- */

static void lose_silent(struct pc_member *member, struct pc_link *link, const char *what, uint64_t since_ns,
                        uint64_t now_ns) {
    pc_error error = {.peer_id = link->peer, .last_heard_ms = (now_ns - pc_link_heard_ns(link)) / PC_NS_PER_MS};
    if (link->address_count > 0) pc_address_format(&link->addresses[0], error.peer_address, sizeof error.peer_address);
    pc_error_set(&error, pcclRankConnectionLost, "the link to peer %llu %s for %llu ms", (unsigned long long)link->peer,
                 what, (unsigned long long)((now_ns - since_ns) / PC_NS_PER_MS));
    pc_member_link_lost(member, link, &error, now_ns);
}

/* The master hears of a dead peer sooner than its neighbours may judge the link: they wait a heartbeat longer. */
static void tick_link(struct pc_member *member, struct pc_link *link, uint64_t now_ns) {
    const uint64_t patience_ns = member->dead_timeout_ns + member->heartbeat_ns;
    if (link->state == PC_LINK_UP) {
        const uint64_t before_ns = now_ns > patience_ns ? now_ns - patience_ns : 0;
        const uint64_t heard_ns = pc_link_heard_ns(link);
        if (heard_ns < before_ns) {
            lose_silent(member, link, "has been silent", heard_ns, now_ns);
        } else if (pc_link_stuck_since(link, before_ns)) {
            lose_silent(member, link, "has taken no bytes", before_ns, now_ns);
        } else if (now_ns >= link->beat_ns) {
            link->beat_ns = now_ns + member->heartbeat_ns;
            pc_link_beat(link, &member->tx_pool, &member->machine.actions);
        }
    } else if (link->state == PC_LINK_DIALING && link->retry_ns == 0) {
        const struct pc_stream *first = link->streams[0];
        if (first != NULL && now_ns - first->opened_ns > member->config.handshake_timeout_ns) {
            lose_silent(member, link, "could not be made", first->opened_ns, now_ns);
        }
    } else if (link->retry_ns != 0 && now_ns >= link->retry_ns) {
        dial(member, link, now_ns);
    }
}

void pc_member_links_tick(struct pc_member *member, uint64_t now_ns) {
    for (struct pc_list *node = member->links.next, *next; node != &member->links; node = next) {
        next = node->next;
        tick_link(member, PC_LIST_ENTRY(node, struct pc_link, node), now_ns);
    }
    for (struct pc_list *node = member->inbound.next, *next; node != &member->inbound; node = next) {
        next = node->next;
        struct pc_stream *stream = PC_LIST_ENTRY(node, struct pc_stream, node);
        if (now_ns - stream->opened_ns <= member->config.handshake_timeout_ns) continue;
        pc_error error = {0};
        pc_error_set(&error, pcclTimeout, "no valid hello within the deadline");
        pc_member_break(member, stream, &error, now_ns);
    }
}

uint64_t pc_member_links_deadline(const struct pc_member *member) {
    uint64_t due = UINT64_MAX;
    for (struct pc_list *node = member->links.next; node != &member->links; node = node->next) {
        const struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        if (link->retry_ns != 0) due = pc_min_u64(due, link->retry_ns);
        if (link->state == PC_LINK_UP) due = pc_min_u64(due, link->beat_ns);
    }
    return due;
}
