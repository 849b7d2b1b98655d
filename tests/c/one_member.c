/*
 * One member alone with the ends of its links in the hand of the test, which says what no sound peer would, or more than
 * one would, or takes memory away. The argument says which test.
 */
#include "proto/operation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN = 1, PEER = 2, OTHER = 3, MEMBERS = 3, EPOCH = 5, AHEAD = 4000 };
static const uint64_t now_ns = PC_NS_PER_S;

static struct pc_member *member;
static struct pc_tx_pool pool;
static uint64_t completed, failed;
static long allocations_left = -1; /* from which on there is no memory; negative: there is */

void *__real_malloc(size_t len_bytes);
void *__real_calloc(size_t count, size_t len_bytes);
void *__wrap_malloc(size_t len_bytes);
void *__wrap_calloc(size_t count, size_t len_bytes);

static bool none_left(void) {
    if (allocations_left > 0) allocations_left--;
    return allocations_left == 0;
}

void *__wrap_malloc(size_t len_bytes) {
    return none_left() ? NULL : __real_malloc(len_bytes);
}

void *__wrap_calloc(size_t count, size_t len_bytes) {
    return none_left() ? NULL : __real_calloc(count, len_bytes);
}

static void fill(void *state, void *out, size_t len_bytes) {
    (void)state;
    memset(out, 7, len_bytes);
}

static void write_all(struct pc_stream *stream) {
    struct pc_span spans[PC_TX_SPANS_MAX];
    int count = 0;
    while (!stream->closing && (count = pc_stream_tx_spans(stream, spans, now_ns)) > 0) {
        size_t len_bytes = 0;
        for (int i = 0; i < count; i++) len_bytes += spans[i].len_bytes;
        member->machine.ops->sent(&member->machine, stream, len_bytes, now_ns);
    }
    stream->write_wanted = false;
}

static void carry_out(void) {
    const struct pc_action *action;
    while ((action = pc_actions_next(&member->machine.actions)) != NULL) {
        if (action->kind == PC_ACTION_WRITE) write_all(action->stream);
        if (action->kind == PC_ACTION_CLOSE) pc_stream_destroy(action->stream);
        if (action->kind != PC_ACTION_COMPLETE) continue;
        completed++;
        failed += action->call->outcome.error.code != pcclSuccess;
    }
}

static struct pc_link *add_link(uint64_t peer) {
    struct pc_link *link = pc_link_create(peer);
    struct pc_stream *stream = pc_member_stream(member, PC_ROLE_STRIPE, now_ns);
    link->generation = 1;
    link->stripes = 1;
    link->cookie = (uint32_t)peer;
    stream->open = true;
    pc_list_append(&member->links, &link->node);
    pc_link_attach(link, stream, 0, now_ns);
    return link;
}

static void start(void) {
    const struct pc_member_config config = {.name = "member", .stripes = 1, .op_timeout_ns = 60 * PC_NS_PER_S,
                                            .dead_timeout_ns = 5 * PC_NS_PER_S, .handshake_timeout_ns = 5 * PC_NS_PER_S,
                                            .random = {fill, NULL}, .staging_bytes = 1 << 20};
    member = pc_member_create(&config, now_ns);
    member->phase = PC_MEMBER_MEMBER;
    member->id = OWN;
    member->epoch.number = member->group.epoch = EPOCH;
    member->group.n = MEMBERS;
    member->group.rank = OWN - 1;
    member->group.ids = calloc(MEMBERS, sizeof *member->group.ids);
    member->group.ring = calloc(MEMBERS, sizeof *member->group.ring);
    for (uint32_t rank = 0; rank < MEMBERS; rank++) {
        member->group.ids[rank] = rank + 1;
        member->group.ring[rank] = rank;
    }
    completed = failed = 0;
    pc_tx_pool_init(&pool);
}

static void end(void) {
    pc_member_destroy(member);
    pc_tx_pool_fini(&pool);
}

static void put(struct pc_stream *stream, const uint8_t *bytes, size_t len_bytes) {
    while (len_bytes > 0) {
        struct pc_span spans[PC_RX_SPANS_MAX];
        if (pc_stream_rx_spans(stream, spans) == 0) return;
        const size_t part = len_bytes < spans[0].len_bytes ? len_bytes : spans[0].len_bytes;
        memcpy(spans[0].data, bytes, part);
        member->machine.ops->received(&member->machine, stream, part, now_ns);
        bytes += part;
        len_bytes -= part;
    }
}

/* A send of 8 bytes of a step, from one member to another. */
static struct pc_op_shape shape_of_send(void) {
    return (struct pc_op_shape){.collective = PC_SEND_RECV, .dtype = pcclUint8, .consistency = PC_STEP,
                                .algorithm = PC_ALGORITHM_DIRECT};
}

static void arrive(struct pc_link *link, struct pc_msg_data data) {
    static const uint8_t payload[8] = {0};
    data.shape = shape_of_send();
    data.weight = 1;
    data.elems = sizeof payload;
    data.kind = PC_DATA_FINAL;
    data.eager = 1;
    struct pc_stream *stream = link->streams[0];
    struct pc_tx *tx = pc_tx_create(&pool, link->cookie, PC_MSG_DATA, &data, payload, sizeof payload, false);
    uint8_t bytes[PC_META_MAX_LINK];
    memcpy(bytes, tx->head.data, tx->head.len);
    memcpy(bytes + tx->head.len, payload, sizeof payload);
    put(stream, bytes, tx->head.len + sizeof payload);
    pc_tx_recycle(&pool, tx);
    carry_out();
}

static struct pc_msg_data sent(uint64_t tag, uint64_t seq) {
    return (struct pc_msg_data){.key = {EPOCH, tag, seq, pc_channel(PEER, OWN), 0, 0}, .chunk = PEER - 1};
}

static void receive(struct pc_call *call, uint64_t tag, uint32_t source) {
    static uint8_t out[8];
    *call = (struct pc_call){.kind = PC_CALL_COLLECTIVE, .recv = out, .tag = tag, .weight = 1, .scale = 1,
                             .shape = shape_of_send(), .count = sizeof out, .source = source, .target = OWN - 1};
    pc_member_post(member, call, now_ns);
    carry_out();
}

static void report(const struct pc_link *link) {
    (void)printf("link %s, %llu completed, %llu failed, %zu held\n", link->state == PC_LINK_UP ? "up" : "down",
                 (unsigned long long)completed, (unsigned long long)failed, (size_t)link->held_bytes);
}

/* Tests --------------------------------------------------------------------------------------------------------- */

static struct pc_call calls[AHEAD];

/* Receives from anybody, each with its own tag, and then what was sent; then the other way round. */
static void many(void) {
    for (int called_first = 0; called_first < 2; called_first++) {
        start();
        struct pc_link *link = add_link(PEER);
        for (uint64_t tag = 0; tag < AHEAD && called_first == 1; tag++) receive(&calls[tag], tag, PC_RANK_NONE);
        for (uint64_t tag = 0; tag < AHEAD; tag++) arrive(link, sent(tag, 0));
        for (uint64_t tag = 0; tag < AHEAD && called_first == 0; tag++) receive(&calls[tag], tag, PC_RANK_NONE);
        report(link);
        end();
    }
}

/* Frames of one tag that come in the wrong order are found all the same. */
static void order(void) {
    static const uint64_t seqs[] = {3, 0, 4, 1, 2};
    start();
    struct pc_link *link = add_link(PEER);
    for (int i = 0; i < 5; i++) arrive(link, sent(9, seqs[i]));
    for (int i = 0; i < 5; i++) receive(&calls[i], 9, i % 2 == 0 ? PC_RANK_NONE : PEER - 1);
    report(link);
    end();
}

/* A member speaks for another: it loses its link, and no receive waits for what the other has not sent. */
static void foreign(void) {
    start();
    struct pc_link *link = add_link(PEER), *other = add_link(OTHER);
    arrive(link, (struct pc_msg_data){.key = {EPOCH, 9, 0, pc_channel(OTHER, OWN), 0, 0}, .chunk = OTHER - 1});
    report(link);
    receive(&calls[0], 9, PC_RANK_NONE);
    arrive(other, (struct pc_msg_data){.key = {EPOCH, 9, 0, pc_channel(OTHER, OWN), 0, 0}, .chunk = OTHER - 1});
    report(other);
    end();
}

/* A frame that cannot be right is found out only by the call: that is its sender's fault, not the call's. */
static void wrong(void) {
    start();
    struct pc_link *link = add_link(PEER);
    struct pc_msg_data data = sent(9, 0);
    data.chunk = 77;
    arrive(link, data);
    receive(&calls[0], 9, PEER - 1);
    report(link);
    end();
}

/* Operations of epochs that never come go with the link over which they were begun. */
static void never(void) {
    start();
    struct pc_link *link = add_link(PEER);
    for (uint64_t tag = 0; tag < 100; tag++) {
        struct pc_msg_data data = sent(tag, 0);
        data.key.epoch = UINT64_MAX;
        arrive(link, data);
    }
    report(link);
    pc_member_link_drop(member, link);
    member->group.epoch++;
    pc_member_ops_flip(member, &member->group, &(pc_error){0});
    (void)printf("%u tags\n", member->group.tag_count);
    carry_out();
    end();
}

/* All the tags that there can be, then one more, here and from another member; the others go on. */
static void tags(void) {
    start();
    struct pc_link *link = add_link(PEER);
    for (uint64_t tag = 1; tag < PC_TAGS_MAX; tag++) (void)pc_op_tag(&member->group, tag, 0, true);
    arrive(link, sent(7, 0));
    receive(&calls[0], 7, PEER - 1);
    report(link);
    receive(&calls[1], PC_TAGS_MAX, PEER - 1);
    const pc_error *error = &calls[1].outcome.error;
    (void)printf("%s: %s; %s\n", pc_status_name(error->code), error->message, error->hint);
    arrive(link, sent(7, 1));
    receive(&calls[2], 7, PEER - 1);
    report(link);
    arrive(link, sent(PC_TAGS_MAX, 0));
    report(link);
    end();
}

/* A link comes up: however little memory there is, the member is in the run or out of it afterwards. */
static void memory(void) {
    int in = 0, out = 0;
    for (long enough = 1; in == 0; enough++) {
        start();
        member->control = pc_member_stream(member, PC_ROLE_CONTROL, now_ns);
        member->control->open = true;
        struct pc_link *link = pc_link_create(PEER);
        pc_list_append(&member->links, &link->node);
        link->state = PC_LINK_EXPECTED;
        link->generation = 1;
        struct pc_msg_link_hello hello = {.version = PC_PROTOCOL_VERSION, .from = PEER, .to = OWN, .generation = 1, .stripes = 1};
        pc_link_proof(link, true, PEER, OWN, 0, hello.proof);
        struct pc_tx *tx = pc_tx_create(&pool, PC_FRAME_MAGIC, PC_MSG_LINK_HELLO, &hello, NULL, 0, false);
        struct pc_stream *stream = member->machine.ops->accept(&member->machine, &(struct pc_address){.family = 4}, now_ns);
        allocations_left = enough;
        put(stream, tx->head.data, tx->head.len);
        in += allocations_left > 0;
        out += member->phase == PC_MEMBER_LOST;
        allocations_left = -1;
        pc_tx_recycle(&pool, tx);
        carry_out();
        end();
    }
    (void)printf("in %d, out %s\n", in, out > 0 ? "some" : "none");
}

/* A thread has all frames of a link, another stripe finds none; then the first one gets nothing accepted. */
static void returned(void) {
    start();
    struct pc_link *link = add_link(1);
    struct pc_stream *other = pc_member_stream(member, PC_ROLE_STRIPE, now_ns);
    struct pc_span spans[PC_TX_SPANS_MAX];
    const struct pc_msg_empty beat = {0};
    link->stripes = 2;
    other->open = true;
    pc_link_attach(link, other, 1, now_ns);
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_HEARTBEAT, &beat, NULL, 0, false);
    if (tx == NULL) exit(1);
    pc_link_send(link, tx, false, &member->machine.actions);
    while (pc_actions_next(&member->machine.actions) != NULL) continue;
    if (pc_stream_tx_spans(link->streams[0], spans, now_ns) == 0) exit(1);
    if (pc_stream_tx_spans(other, spans, now_ns) != 0) exit(1);
    other->write_wanted = false;
    member->machine.ops->sent(&member->machine, link->streams[0], 0, now_ns);
    bool woken = false;
    const struct pc_action *action;
    while ((action = pc_actions_next(&member->machine.actions)) != NULL) {
        woken |= action->kind == PC_ACTION_WRITE && action->stream == other;
    }
    (void)printf("%s\n", woken ? "woken" : "asleep");
    end();
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {{"many", many}, {"order", order}, {"foreign", foreign}, {"wrong", wrong}, {"never", never}, {"memory", memory},
                 {"tags", tags}, {"returned", returned}};
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc != 2 || strcmp(argv[1], tests[i].name) != 0) continue;
        tests[i].run();
        return 0;
    }
    return 2;
}
