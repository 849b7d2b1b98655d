/*
 * Measuring a link, when the master asks for it. The sender sends bursts, each twice as large as the one before; the
 * receiver says how long it took from the first frame of a burst to the last. By then the connection has acknowledged as
 * much as the next burst has, so that it goes out in one flight. The last ones count: in smaller ones the receiver's own
 * delays weigh more. The sender ends when it knows enough or has spent its time or bytes, and tells the master. Nobody
 * waits for a link that is lost meanwhile: the master has a deadline.
 */
#include "base/checked.h"
#include "plan/cost.h"
#include "proto/member_state.h"

#include <stdlib.h>

enum {
    FIRST_BYTES = 8 << 10, /* fits into the first flight of a connection */
    FRAME_BYTES = 64 << 10,
    FRAMES_MIN = 4, /* of a burst: the first one only starts the clock */
    ALIKE_BURSTS = 2, /* one may have been held up */
    SURE_BYTES = 1 << 20 /* a burst that shows that the link is fast */
};

/* Bursts that take as long, and go no faster than those before, by a quarter or more: the link is the limit. */
#define ENOUGH_NS (20 * PC_NS_PER_MS)

static void end(struct pc_member *member) {
    struct pc_member_probe *probe = &member->probe;
    const uint32_t bytes_per_ms = (uint32_t)pc_max_u64(probe->bytes_per_ms, probe->bytes_per_ms_before);
    const struct pc_msg_probed message = {probe->serial, probe->peer, bytes_per_ms};
    pc_member_tell_master(member, PC_MSG_PROBED, &message);
    probe->serial = 0;
}

static void send_burst(struct pc_member *member, struct pc_link *link) {
    static const uint8_t nothing[FRAME_BYTES];
    struct pc_member_probe *probe = &member->probe;
    const struct pc_msg_probe_data message = {probe->serial, probe->burst_bytes};
    const uint32_t frame = (uint32_t)pc_min_u64(probe->burst_bytes / FRAMES_MIN, FRAME_BYTES);
    for (uint32_t at = 0; at < probe->burst_bytes; at += frame) {
        struct pc_tx *tx =
            pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_PROBE_DATA, &message, nothing, frame, false);
        if (tx == NULL) {
            end(member);
            return;
        }
        pc_link_send(link, tx, false, &member->machine.actions);
    }
    probe->sent_bytes += probe->burst_bytes;
}

void pc_member_probe(struct pc_member *member, const struct pc_msg_probe *message, uint64_t now_ns) {
    struct pc_link *link = pc_member_link(member, message->id);
    member->probe.serial = message->serial;
    member->probe.peer = message->id;
    member->probe.most_bytes = message->most_bytes;
    member->probe.begun_ns = now_ns;
    member->probe.bytes_per_ms = member->probe.bytes_per_ms_before = 0;
    member->probe.alike = 0;
    member->probe.sent_bytes = 0;
    member->probe.burst_bytes = FIRST_BYTES;
    if (link == NULL || link->state != PC_LINK_UP) {
        end(member);
    } else if (link->streams[0]->shared_memory) {
        member->probe.bytes_per_ms = PC_FAST_BYTES_PER_MS;
        end(member);
    } else {
        send_burst(member, link);
    }
}

static bool knows_enough(const struct pc_member_probe *probe, uint64_t rtt_ns, uint64_t now_ns) {
    const uint64_t budget_ns = pc_max_u64(PC_PROBE_MS * PC_NS_PER_MS, PC_PROBE_TRIPS * rtt_ns);
    if (now_ns - probe->begun_ns >= budget_ns) return true;
    if (probe->sent_bytes + 2 * (uint64_t)probe->burst_bytes > probe->most_bytes) return true;
    if (probe->burst_bytes >= SURE_BYTES && probe->bytes_per_ms >= PC_FAST_BYTES_PER_MS) return true;
    return probe->alike >= ALIKE_BURSTS;
}

void pc_member_probe_ack(struct pc_member *member, struct pc_link *link, const struct pc_msg_probe_ack *ack,
                         uint64_t now_ns) {
    struct pc_member_probe *probe = &member->probe;
    if (probe->serial == 0 || ack->serial != probe->serial || link->peer != probe->peer) return;
    if (link->state != PC_LINK_UP) return; /* lost meanwhile, and not all of its connections are there again */
    if (ack->burst_bytes != probe->burst_bytes) return;
    const uint64_t bytes = pc_min_u64(ack->timed_bytes, ack->burst_bytes), rtt_ns = link->streams[0]->rtt_us * 1000ull;
    const uint64_t rate = bytes * PC_NS_PER_MS / pc_max_u64(ack->elapsed_ns, 1);
    probe->bytes_per_ms_before = probe->bytes_per_ms;
    probe->bytes_per_ms = (uint32_t)pc_min_u64(rate, UINT32_MAX);
    const bool faster = 4 * (uint64_t)probe->bytes_per_ms > 5 * (uint64_t)probe->bytes_per_ms_before;
    probe->alike = faster || ack->elapsed_ns < ENOUGH_NS ? 0 : probe->alike + 1;
    if (knows_enough(probe, rtt_ns, now_ns)) {
        end(member);
    } else {
        probe->burst_bytes *= 2;
        send_burst(member, link);
    }
}

/* Receiving ----------------------------------------------------------------------------------------------------- */

pc_status pc_member_probe_data(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_probe_data *data,
                               uint32_t bulk_len) {
    struct pc_member_probe *probe = &member->probe;
    /* Bursts are answered, so they must cost their sender more than the answer costs this peer. */
    if (bulk_len < FIRST_BYTES / FRAMES_MIN || bulk_len > FRAME_BYTES || data->burst_bytes < FIRST_BYTES) {
        return pcclProtocolError;
    }
    if (probe->scrap == NULL) probe->scrap = malloc(FRAME_BYTES);
    if (probe->scrap == NULL) return pcclNoMemory;
    stream->sink = (struct pc_sink){
        .data = probe->scrap, .owner = probe, .weight = data->serial, .chunk = data->burst_bytes};
    return pcclSuccess;
}

void pc_member_probe_arrived(struct pc_member *member, struct pc_stream *stream, uint64_t now_ns) {
    struct pc_member_probe *probe = &member->probe;
    struct pc_link *link = stream->subject;
    const struct pc_sink sink = stream->sink;
    stream->sink = (struct pc_sink){0};
    if (probe->in_serial != sink.weight || probe->in_peer != link->peer || probe->in_burst_bytes != sink.chunk) {
        probe->in_serial = sink.weight;
        probe->in_peer = link->peer;
        probe->in_burst_bytes = sink.chunk;
        probe->in_bytes = probe->in_timed_bytes = 0;
        probe->in_first_ns = now_ns;
    } else {
        probe->in_timed_bytes += stream->frame.bulk_len;
    }
    const bool over = probe->in_bytes >= sink.chunk;
    probe->in_bytes += stream->frame.bulk_len;
    if (over || probe->in_bytes < sink.chunk) return;
    const struct pc_msg_probe_ack ack = {sink.weight, now_ns - probe->in_first_ns, sink.chunk,
                                         (uint32_t)probe->in_timed_bytes};
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_PROBE_ACK, &ack, NULL, 0, false);
    if (tx != NULL) pc_link_send(link, tx, true, &member->machine.actions);
}
