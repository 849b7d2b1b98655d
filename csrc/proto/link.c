/* Links: stripes, proofs, queues. Decides nothing: what a lost link means is the member's and the master's affair. */
#include "proto/link.h"

#include "base/checked.h"
#include "math/digest.h"
#include "plan/cost.h"

#include <stdlib.h>
#include <string.h>

struct pc_link *pc_link_create(uint64_t peer) {
    struct pc_link *link = pc_calloc(1, sizeof *link);
    if (link == NULL) return NULL;
    link->peer = peer;
    link->state = PC_LINK_DOWN;
    pc_list_init(&link->node);
    pc_list_init(&link->urgent);
    pc_list_init(&link->normal);
    return link;
}

static void recycle_all(struct pc_list *queue, struct pc_tx_pool *pool) {
    struct pc_list *node;
    while ((node = pc_list_pop(queue)) != NULL) pc_tx_recycle(pool, PC_LIST_ENTRY(node, struct pc_tx, node));
}

void pc_link_destroy(struct pc_link *link, struct pc_tx_pool *pool) {
    recycle_all(&link->urgent, pool);
    recycle_all(&link->normal, pool);
    pc_list_remove(&link->node);
    free(link);
}

static void set_cookies(struct pc_list *queue, uint32_t cookie) {
    for (struct pc_list *node = queue->next; node != queue; node = node->next) {
        pc_tx_set_cookie(PC_LIST_ENTRY(node, struct pc_tx, node), cookie);
    }
}

/* Of owner; NULL: of all. */
static uint64_t eager_in(const struct pc_list *queue, const void *owner) {
    uint64_t bytes = 0;
    for (const struct pc_list *node = queue->next; node != queue; node = node->next) {
        const struct pc_tx *tx = PC_LIST_ENTRY(node, const struct pc_tx, node);
        if (owner == NULL || tx->owner == owner) bytes += tx->eager_bytes;
    }
    return bytes;
}

void pc_link_renew(struct pc_link *link, const struct pc_peer_intro *intro, uint32_t own_stripes) {
    link->generation = intro->generation;
    link->dialer = intro->dial != 0;
    link->state = link->dialer ? PC_LINK_DIALING : PC_LINK_EXPECTED;
    link->stripes = (uint32_t)pc_max_u64(own_stripes, intro->stripes);
    if (link->stripes > PC_STRIPES_MAX) link->stripes = PC_STRIPES_MAX;
    link->stripes_up = 0;
    link->retry_ns = 0;
    /* What was on its way is gone, and what waits here is no more of this generation. */
    link->eager_out_bytes = eager_in(&link->urgent, NULL) + eager_in(&link->normal, NULL);
    link->eager_taken_bytes = 0;
    memcpy(link->token, intro->token, sizeof link->token);
    link->cookie = (uint32_t)pc_digest64(link->token, sizeof link->token) | 1;
    set_cookies(&link->urgent, link->cookie);
    set_cookies(&link->normal, link->cookie);
    link->address_count = (uint32_t)pc_min_u64(intro->addresses.count, PC_ADDRESSES_MAX);
    if (link->address_count > 0) {
        memcpy(link->addresses, intro->addresses.items, link->address_count * sizeof link->addresses[0]);
    }
}

void pc_link_proof(const struct pc_link *link, bool by_dialer, uint64_t dialer, uint64_t answerer, uint32_t stripe,
                   uint8_t proof[PC_PROOF_BYTES]) {
    uint8_t words[24];
    pc_bytes_put(words, dialer, 8);
    pc_bytes_put(words + 8, answerer, 8);
    pc_bytes_put(words + 16, link->generation, 4);
    pc_bytes_put(words + 20, stripe, 4);
    const struct pc_auth_part part = {words, sizeof words};
    (void)pc_auth_proof(link->token, sizeof link->token, by_dialer ? "pccl link dial 1" : "pccl link answer 1", &part,
                        1, proof);
}

void pc_link_attach(struct pc_link *link, struct pc_stream *stream, uint32_t stripe, uint64_t now_ns) {
    link->streams[stripe] = stream;
    link->stripes_up++;
    link->beat_ns = now_ns;
    stream->subject = link;
    stream->stripe = stripe;
    stream->cookie_in = stream->cookie_out = link->cookie;
    stream->meta_max = PC_META_MAX_LINK;
    stream->shared[0] = &link->urgent;
    stream->shared[1] = &link->normal;
    stream->heard_ns = now_ns;
    if (link->stripes_up == link->stripes) link->state = PC_LINK_UP;
}

void pc_stream_wake(struct pc_stream *stream, struct pc_actions *actions) {
    if (!stream->open || stream->closing || stream->write_wanted || !pc_stream_tx_pending(stream)) return;
    stream->write_wanted = true;
    pc_actions_add(actions, PC_ACTION_WRITE)->stream = stream;
}

void pc_stream_close(struct pc_stream *stream, bool flush, struct pc_actions *actions) {
    if (stream->closing) return;
    stream->closing = true;
    stream->subject = NULL;
    pc_list_remove(&stream->node);
    pc_stream_leave(stream, flush);
    pc_actions_add(actions, PC_ACTION_CLOSE)->stream = stream;
}

void pc_link_wake(struct pc_link *link, struct pc_actions *actions) {
    if (link->state != PC_LINK_UP) return;
    for (uint32_t i = 0; i < link->stripes; i++) {
        if (link->streams[i] != NULL) pc_stream_wake(link->streams[i], actions);
    }
}

void pc_link_send(struct pc_link *link, struct pc_tx *tx, bool urgent, struct pc_actions *actions) {
    pc_tx_set_cookie(tx, link->cookie); /* one that waited for READY may be older than the link's generation */
    pc_list_append(urgent ? &link->urgent : &link->normal, &tx->node);
    pc_link_wake(link, actions);
}

pc_status pc_link_forget(struct pc_link *link, struct pc_tx_pool *pool, const void *owner) {
    const uint64_t unsent = eager_in(&link->urgent, owner) + eager_in(&link->normal, owner);
    link->eager_out_bytes -= pc_min_u64(unsent, link->eager_out_bytes);
    pc_tx_queue_forget(&link->urgent, pool, owner);
    pc_tx_queue_forget(&link->normal, pool, owner);
    pc_status worst = pcclSuccess;
    for (uint32_t i = 0; i < link->stripes; i++) {
        if (link->streams[i] == NULL) continue;
        const pc_status status = pc_stream_forget(link->streams[i], owner);
        if (status != pcclSuccess) worst = status;
    }
    return worst;
}

void pc_link_beat(struct pc_link *link, struct pc_tx_pool *pool, struct pc_actions *actions) {
    const struct pc_msg_empty beat = {0};
    for (uint32_t i = 0; i < link->stripes; i++) {
        struct pc_stream *stream = link->streams[i];
        struct pc_tx *tx =
            stream == NULL ? NULL : pc_tx_create(pool, link->cookie, PC_MSG_HEARTBEAT, &beat, NULL, 0, false);
        if (tx == NULL) continue;
        pc_list_append(&stream->queue, &tx->node);
        pc_stream_wake(stream, actions);
    }
}

uint64_t pc_link_heard_ns(const struct pc_link *link) {
    uint64_t heard = UINT64_MAX;
    for (uint32_t i = 0; i < link->stripes; i++) {
        if (link->streams[i] != NULL) heard = pc_min_u64(heard, link->streams[i]->heard_ns);
    }
    return heard == UINT64_MAX ? 0 : heard;
}

uint32_t pc_link_rate(const struct pc_link *link) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < link->stripes; i++) {
        const struct pc_stream *stream = link->streams[i];
        if (stream == NULL || (stream->bytes_per_ms == 0 && !stream->shared_memory)) return 0;
        sum += stream->shared_memory ? PC_FAST_BYTES_PER_MS : stream->bytes_per_ms;
    }
    return (uint32_t)pc_min_u64(sum, UINT32_MAX);
}

bool pc_link_stuck_since(const struct pc_link *link, uint64_t before_ns) {
    for (uint32_t i = 0; i < link->stripes; i++) {
        const struct pc_stream *stream = link->streams[i];
        if (stream != NULL && stream->offered_bytes > 0 && stream->progressed_ns < before_ns) return true;
    }
    return false;
}
