/*
 * Asking a master for its state: a blocking conversation of a few frames on the caller's thread, bounded as a whole.
 * Towards the master it is HELLO, AUTH if there is a run key, STATUS; back come CHALLENGE and STATUS_REPLY, or REFUSE.
 */
#define _DEFAULT_SOURCE 1
#include "api/config.h"
#include "api/failure.h"
#include "base/checked.h"
#include "ccoip.h"
#include "io/loop.h"
#include "io/random.h"
#include "io/transport.h"
#include "io/wait.h"
#include "math/auth.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

static const char phase[] = "query_status";

struct query {
    struct pc_transport transport;
    uint64_t deadline_ns;
    const uint8_t *key;
    size_t key_len;
    char where[64];
    struct pc_arena arena;
    uint8_t *frame; /* the last one received: header and meta */
    struct pc_frame head;
    pc_error error;
};

static const char *hint_for(pc_status code) {
    switch (code) {
    case pcclMasterConnectionFailed: return "check that a master runs there and is reachable from here";
    case pcclTimeout: return "a host that is down or a firewall answers nothing; or another program listens there";
    case pcclProtocolError: return "another program listens there, or another release of pccl";
    case pcclRefused: return "PCCL_RUN_KEY_FILE must name the key of that run";
    default: return NULL;
    }
}

static pc_status fail(struct query *query, pc_status code, const char *what) {
    const char *hint = hint_for(code);
    pc_text_copy(query->error.peer_address, sizeof query->error.peer_address, pc_text_of(query->where));
    if (hint != NULL) pc_error_hint(&query->error, "%s", hint);
    return pc_error_set(&query->error, code, "the master at %s: %s", query->where, what);
}

static pc_status fail_of_system(struct query *query, pc_status code, int sys_errno) {
    query->error.sys_errno = sys_errno;
    return fail(query, code, strerror(sys_errno));
}

static pc_status wait_for(struct query *query, short events) {
    for (;;) {
        const uint64_t now_ns = pc_loop_now();
        if (now_ns >= query->deadline_ns) return fail(query, pcclTimeout, "no answer in time");
        struct pollfd poll_fd = {.fd = query->transport.fd, .events = events};
        const uint64_t left_ms = (query->deadline_ns - now_ns) / PC_NS_PER_MS + 1;
        const int ready = poll(&poll_fd, 1, (int)pc_min_u64(left_ms, 1000));
        if (ready > 0) return pcclSuccess;
        if (ready < 0 && errno != EINTR) return fail_of_system(query, pcclSystemError, errno);
    }
}

static pc_status dial(struct query *query, const char *master) {
    struct pc_endpoint endpoint;
    struct pc_address addresses[PC_ADDRESSES_MAX];
    const struct pc_sock_options options = {0};
    PC_TRY(pc_endpoint_parse(master, CCOIP_PROTOCOL_PORT_MASTER, &endpoint, &query->error));
    const uint32_t count = pc_endpoint_lookup(&endpoint, addresses, PC_ADDRESSES_MAX, &query->error);
    if (count == 0) return query->error.code;
    int failure = 0;
    for (uint32_t i = 0; i < count; i++) {
        int fd = -1;
        pc_address_format(&addresses[i], query->where, sizeof query->where);
        failure = pc_sock_dial(&addresses[i], &options, &fd);
        if (failure != 0 && failure != EINPROGRESS) continue;
        pc_transport_tcp(&query->transport, fd);
        if (failure == EINPROGRESS) {
            PC_TRY(wait_for(query, POLLOUT));
            failure = pc_sock_dialed(fd);
        }
        if (failure == 0) return pcclSuccess;
        query->transport.ops->close(&query->transport);
    }
    return fail_of_system(query, pcclMasterConnectionFailed, failure);
}

static pc_status move(struct query *query, uint8_t *data, size_t len_bytes, bool out) {
    while (len_bytes > 0) {
        const struct pc_span span = {data, len_bytes};
        const ptrdiff_t len = out ? query->transport.ops->write(&query->transport, &span, 1)
                                  : query->transport.ops->read(&query->transport, &span, 1);
        if (len == 0) return fail(query, pcclMasterConnectionFailed, "connection closed");
        if (len < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            return fail_of_system(query, pcclMasterConnectionFailed, errno);
        }
        if (len < 0) PC_TRY(wait_for(query, out ? POLLOUT : POLLIN));
        else data += len, len_bytes -= (size_t)len;
    }
    return pcclSuccess;
}

static pc_status send_message(struct query *query, uint8_t type, const void *message) {
    static const uint8_t blank[PC_FRAME_BYTES] = {0};
    struct pc_writer writer = {0};
    pc_writer_bytes(&writer, blank, sizeof blank);
    pc_schema_encode(pc_message_info(type)->schema, message, &writer);
    pc_status status = writer.failed ? fail(query, pcclNoMemory, "no memory") : pcclSuccess;
    if (status == pcclSuccess) {
        const struct pc_frame frame = {
            .cookie = PC_FRAME_MAGIC, .type = type, .meta_len = (uint32_t)(writer.len - PC_FRAME_BYTES)};
        pc_frame_seal(&frame, writer.data);
        status = move(query, writer.data, writer.len, true);
    }
    pc_writer_fini(&writer);
    return status;
}

/* The next frame that is not a heartbeat, in query->frame. */
static pc_status receive(struct query *query) {
    do {
        uint8_t head[PC_FRAME_BYTES];
        PC_TRY(move(query, head, sizeof head, false));
        if (pc_frame_open(head, &query->head) != pcclSuccess || query->head.cookie != PC_FRAME_MAGIC ||
            query->head.meta_len > PC_META_MAX_CONTROL || query->head.bulk_len != 0) {
            return fail(query, pcclProtocolError, "this is no pccl master");
        }
        uint8_t *frame = realloc(query->frame, (size_t)PC_FRAME_BYTES + query->head.meta_len);
        if (frame == NULL) return fail(query, pcclNoMemory, "no memory");
        query->frame = frame;
        memcpy(frame, head, sizeof head);
        PC_TRY(move(query, frame + PC_FRAME_BYTES, query->head.meta_len, false));
        if (!pc_frame_intact(frame, query->head.meta_len)) return fail(query, pcclProtocolError, "a damaged answer");
    } while (query->head.type == PC_MSG_HEARTBEAT);
    return pcclSuccess;
}

static pc_status expect(struct query *query, uint8_t type, void *message) {
    PC_TRY(receive(query));
    const struct pc_cursor meta = pc_cursor_of(query->frame + PC_FRAME_BYTES, query->head.meta_len);
    if (query->head.type == PC_MSG_REFUSE) {
        struct pc_msg_refuse refuse;
        PC_TRY(pc_schema_decode(pc_message_info(PC_MSG_REFUSE)->schema, meta, &query->arena, &refuse));
        pc_error_from_wire(&refuse.error, &query->error);
        return pc_error_set(&query->error, pcclRefused, "the master at %s refused", query->where);
    }
    if (query->head.type != type) return fail(query, pcclProtocolError, "an unexpected answer");
    const pc_status status = pc_schema_decode(pc_message_info(type)->schema, meta, &query->arena, message);
    return status == pcclSuccess ? status : fail(query, status, "a malformed answer");
}

static pc_status prove(struct query *query, const uint8_t nonce[16], const struct pc_msg_challenge *challenge) {
    const struct pc_auth_part parts[2] = {{nonce, 16}, {challenge->nonce, 16}};
    uint8_t proof[PC_PROOF_BYTES];
    if (challenge->keyed != 0 && query->key_len == 0) return fail(query, pcclRefused, "it wants a run key");
    if (query->key_len == 0) return pcclSuccess;
    if (!pc_auth_proof(query->key, query->key_len, "pccl master 1", parts, 2, proof)) {
        return fail(query, pcclInternalError, "no proof could be computed");
    }
    if (!pc_auth_equal(proof, challenge->proof)) return fail(query, pcclRefused, "its run key is another one");
    struct pc_msg_auth auth = {.stripes = 1};
    if (!pc_auth_proof(query->key, query->key_len, "pccl peer 1", parts, 2, auth.proof)) {
        return fail(query, pcclInternalError, "no proof could be computed");
    }
    return send_message(query, PC_MSG_AUTH, &auth);
}

static pc_status converse(struct query *query, char **json_out) {
    struct pc_msg_hello hello = {
        .version_min = PC_PROTOCOL_VERSION, .version_max = PC_PROTOCOL_VERSION, .purpose = PC_PURPOSE_STATUS};
    struct pc_msg_challenge challenge;
    struct pc_msg_status_reply reply;
    const struct pc_msg_empty ask = {0};
    if (!pc_random_fill(hello.nonce, sizeof hello.nonce)) return fail(query, pcclSystemError, "no random numbers");
    PC_TRY(send_message(query, PC_MSG_HELLO, &hello));
    PC_TRY(expect(query, PC_MSG_CHALLENGE, &challenge));
    PC_TRY(prove(query, hello.nonce, &challenge));
    PC_TRY(send_message(query, PC_MSG_STATUS, &ask));
    PC_TRY(expect(query, PC_MSG_STATUS_REPLY, &reply));
    char *json = malloc((size_t)reply.json.len_bytes + 1);
    if (json == NULL) return fail(query, pcclNoMemory, "no memory");
    if (reply.json.len_bytes > 0) memcpy(json, reply.json.data, reply.json.len_bytes);
    json[reply.json.len_bytes] = '\0';
    *json_out = json;
    return pcclSuccess;
}

pcclResult_t pcclQueryStatus(const char *master, const uint8_t *run_key, size_t run_key_len, uint32_t timeout_ms,
                             char **json_out) {
    PC_REQUIRE(phase, master);
    PC_REQUIRE(phase, json_out);
    *json_out = NULL;
    struct pc_settings settings;
    const pcclMasterOptions_t options = {.run_key = run_key, .run_key_len = run_key_len};
    struct query query = {.transport = {.fd = -1}};
    if (pc_settings_of_master(&options, &settings, &query.error) != pcclSuccess) {
        return pc_fail_with(phase, &query.error);
    }
    query.deadline_ns = pc_wait_deadline((timeout_ms != 0 ? timeout_ms : PC_DEFAULT_CONNECT_MS) * PC_NS_PER_MS);
    query.key = settings.run_key;
    query.key_len = settings.run_key_len;
    pc_status status = dial(&query, master);
    if (status == pcclSuccess) status = converse(&query, json_out);
    if (query.transport.fd >= 0) query.transport.ops->close(&query.transport);
    free(query.frame);
    pc_arena_reset(&query.arena);
    pc_settings_fini(&settings);
    if (status == pcclSuccess) return pcclSuccess;
    if (query.error.code == pcclSuccess) (void)fail(&query, status, "a malformed answer");
    return pc_fail_with(phase, &query.error);
}
