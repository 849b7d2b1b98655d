/*
 * The production machines with a thread each and socket pairs between them, for the sanitizers: real concurrency and real
 * partial reads and writes, without the event loop. A master and three peers join, all-reduce, vote, synchronise; one
 * peer's sockets close in the middle of an operation, and the others go on.
 *
 * Threads share an inbox each (connections that come in, calls to be posted) under its mutex, and completions under one;
 * a call and its buffers belong to the main thread until it is posted and again when it has ended.
 */
#include "proto/master.h"
#include "proto/member.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PEERS = 3, NODES = PEERS + 1, CONNS_MAX = 64, INBOX_MAX = 256, ROUNDS = 150, ELEMS_MAX = 60000, TAGS = 2 };

struct conn {
    int fd;
    bool blocked; /* has bytes that the socket did not take */
    struct pc_stream *stream;
};

struct arrival {
    int fd; /* a connection from node from, or -1: a call */
    int from;
    struct pc_call *call;
};

struct node {
    int slot;
    pthread_t thread;
    struct pc_machine *machine;
    struct pc_master *master;
    struct pc_member *member;
    struct conn conns[CONNS_MAX];
    int conn_count;
    /* Answers to dials, for after the event in hand. */
    struct pc_stream *dialed[CONNS_MAX];
    int dialed_fds[CONNS_MAX];
    int dialed_count;
    uint64_t dialed_back[CONNS_MAX];
    int dialed_back_count;

    pthread_mutex_t lock; /* of the rest */
    struct arrival inbox[INBOX_MAX];
    int inbox_count;
    bool stop, gone;
    int wake[2];
};

static struct node nodes[NODES];
static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_changed = PTHREAD_COND_INITIALIZER;

static void fail(const char *what) {
    (void)fprintf(stderr, "socketpairs: %s\n", what);
    _exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * PC_NS_PER_S + (uint64_t)time.tv_nsec;
}

static struct pc_address address_of(int slot) {
    return (struct pc_address){.family = 4, .port = 1, .ip = {10, 0, 0, (uint8_t)slot}};
}

static void fill_random(void *state, void *out, size_t len_bytes) {
    (void)state;
    if (getrandom(out, len_bytes, 0) != (ssize_t)len_bytes) fail("getrandom");
}

/* Between threads ----------------------------------------------------------------------------------------------- */

/* False: that node takes nothing any more. */
static bool deliver(struct node *to, struct arrival arrival) {
    (void)pthread_mutex_lock(&to->lock);
    const bool taken = !to->gone;
    if (taken && to->inbox_count == INBOX_MAX) fail("an inbox is full");
    if (taken) to->inbox[to->inbox_count++] = arrival;
    (void)pthread_mutex_unlock(&to->lock);
    if (taken && write(to->wake[1], "", 1) != 1) fail("wake");
    return taken;
}

/* True: the thread is to end. */
static bool take_inbox(struct node *node, struct arrival *taken, int *count) {
    char scrap[INBOX_MAX];
    while (read(node->wake[0], scrap, sizeof scrap) == (ssize_t)sizeof scrap) continue;
    (void)pthread_mutex_lock(&node->lock);
    *count = node->inbox_count;
    memcpy(taken, node->inbox, (size_t)*count * sizeof *taken);
    node->inbox_count = 0;
    const bool stop = node->stop;
    (void)pthread_mutex_unlock(&node->lock);
    return stop;
}

/* A driver ------------------------------------------------------------------------------------------------------ */

static void add_conn(struct node *node, int fd, struct pc_stream *stream) {
    if (node->conn_count == CONNS_MAX) fail("too many connections");
    node->conns[node->conn_count++] = (struct conn){fd, false, stream};
}

static struct conn *conn_of(struct node *node, const struct pc_stream *stream) {
    for (int i = 0; i < node->conn_count; i++) {
        if (node->conns[i].stream == stream) return &node->conns[i];
    }
    return NULL;
}

static ssize_t put(int fd, struct pc_span *spans, int count) {
    struct msghdr message = {.msg_iov = (struct iovec *)(void *)spans, .msg_iovlen = (size_t)count};
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void write_some(struct node *node, struct pc_stream *stream) {
    struct conn *conn = conn_of(node, stream);
    struct pc_span spans[PC_TX_SPANS_MAX];
    while (conn != NULL && !stream->closing) {
        const int count = pc_stream_tx_spans(stream, spans, now());
        conn->blocked = count > 0;
        if (count == 0) {
            stream->write_wanted = false;
            return;
        }
        const ssize_t sent = put(conn->fd, spans, count);
        node->machine->ops->sent(node->machine, stream, sent > 0 ? (size_t)sent : 0, now());
        if (sent <= 0) return; /* full, or broken: then reading tells */
        conn = conn_of(node, stream);
    }
}

static void close_stream(struct node *node, struct pc_stream *stream) {
    struct conn *conn = conn_of(node, stream);
    if (conn != NULL) {
        struct pc_span spans[PC_TX_SPANS_MAX];
        const int count = pc_stream_tx_spans(stream, spans, now());
        if (count > 0) (void)put(conn->fd, spans, count);
        (void)close(conn->fd);
        *conn = node->conns[--node->conn_count];
    }
    for (int i = 0; i < node->dialed_count; i++) {
        if (node->dialed[i] == stream) node->dialed[i] = NULL;
    }
    pc_stream_destroy(stream);
}

static void dial(struct node *node, const struct pc_action *action) {
    const int target = action->address_count == 0 ? 0 : action->addresses[0].ip[3];
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) != 0) fail("socketpair");
    if (!deliver(&nodes[target], (struct arrival){fds[1], node->slot, NULL})) {
        (void)close(fds[0]);
        (void)close(fds[1]);
        fds[0] = -1;
    }
    node->dialed[node->dialed_count] = action->stream;
    node->dialed_fds[node->dialed_count++] = fds[0];
}

static void complete(struct pc_call *call) {
    (void)pthread_mutex_lock(&done_lock);
    *(bool *)call->user = true;
    (void)pthread_cond_broadcast(&done_changed);
    (void)pthread_mutex_unlock(&done_lock);
}

static void carry_out(struct node *node) {
    const struct pc_action *action;
    while ((action = pc_actions_next(&node->machine->actions)) != NULL) {
        switch (action->kind) {
        case PC_ACTION_DIAL: dial(node, action); break;
        case PC_ACTION_WRITE: write_some(node, action->stream); break;
        case PC_ACTION_CLOSE: close_stream(node, action->stream); break;
        case PC_ACTION_COMPLETE: complete(action->call); break;
        case PC_ACTION_DIAL_BACK: node->dialed_back[node->dialed_back_count++] = action->id; break;
        case PC_ACTION_SEARCH: fail("a search that was not asked for"); break;
        }
    }
}

static void answer_dials(struct node *node) {
    while (node->dialed_count > 0) {
        struct pc_stream *stream = node->dialed[--node->dialed_count];
        const int fd = node->dialed_fds[node->dialed_count];
        if (stream == NULL) {
            if (fd >= 0) (void)close(fd);
        } else if (fd < 0) {
            node->machine->ops->closed(node->machine, stream, ECONNREFUSED, now());
        } else {
            add_conn(node, fd, stream);
            node->machine->ops->opened(node->machine, stream, false, now());
        }
        carry_out(node);
    }
    while (node->dialed_back_count > 0) {
        pc_master_dialed_back(node->master, node->dialed_back[--node->dialed_back_count], 0, now());
        carry_out(node);
    }
}

static void read_some(struct node *node, struct pc_stream *stream) {
    for (int turn = 0; turn < 8; turn++) {
        const struct conn *conn = conn_of(node, stream);
        struct pc_span spans[PC_RX_SPANS_MAX];
        if (conn == NULL || stream->closing) return;
        const int count = pc_stream_rx_spans(stream, spans);
        if (count == 0) return;
        struct msghdr message = {.msg_iov = (struct iovec *)(void *)spans, .msg_iovlen = (size_t)count};
        const ssize_t got = recvmsg(conn->fd, &message, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got > 0) node->machine->ops->received(node->machine, stream, (size_t)got, now());
        else node->machine->ops->closed(node->machine, stream, got < 0 ? errno : 0, now());
        carry_out(node);
        if (got <= 0) return;
    }
}

static void take_arrivals(struct node *node, const struct arrival *arrivals, int count) {
    for (int i = 0; i < count; i++) {
        if (arrivals[i].fd < 0) {
            pc_member_post(node->member, arrivals[i].call, now());
        } else {
            const struct pc_address from = address_of(arrivals[i].from);
            struct pc_stream *stream = node->machine->ops->accept(node->machine, &from, now());
            if (stream != NULL) add_conn(node, arrivals[i].fd, stream);
            else (void)close(arrivals[i].fd);
        }
        carry_out(node);
        answer_dials(node);
    }
}

static void wait_for_events(struct node *node) {
    struct pollfd fds[CONNS_MAX + 1] = {{node->wake[0], POLLIN, 0}};
    struct pc_stream *streams[CONNS_MAX];
    const int count = node->conn_count;
    for (int i = 0; i < count; i++) {
        const short events = (short)(POLLIN | (node->conns[i].blocked ? POLLOUT : 0));
        fds[i + 1] = (struct pollfd){node->conns[i].fd, events, 0};
        streams[i] = node->conns[i].stream;
    }
    const uint64_t deadline = node->machine->ops->deadline(node->machine), at = now();
    const uint64_t left_ms = deadline <= at ? 0 : (deadline - at < PC_NS_PER_S ? deadline - at : PC_NS_PER_S) / PC_NS_PER_MS + 1;
    if (poll(fds, (nfds_t)(count + 1), (int)left_ms) < 0 && errno != EINTR) fail("poll");
    for (int i = 0; i < count; i++) {
        if ((fds[i + 1].revents & POLLOUT) != 0 && conn_of(node, streams[i]) != NULL) write_some(node, streams[i]);
        carry_out(node);
        if ((fds[i + 1].revents & ~POLLOUT) != 0 && conn_of(node, streams[i]) != NULL) read_some(node, streams[i]);
        answer_dials(node);
    }
}

static void *run(void *argument) {
    struct node *node = argument;
    struct arrival arrivals[INBOX_MAX];
    int count = 0;
    while (!take_inbox(node, arrivals, &count)) {
        take_arrivals(node, arrivals, count);
        wait_for_events(node);
        if (now() >= node->machine->ops->deadline(node->machine)) {
            node->machine->ops->tick(node->machine, now());
            carry_out(node);
            answer_dials(node);
        }
    }
    (void)pthread_mutex_lock(&node->lock);
    node->gone = true;
    for (int i = 0; i < node->inbox_count; i++) {
        if (node->inbox[i].fd >= 0) (void)close(node->inbox[i].fd);
    }
    (void)pthread_mutex_unlock(&node->lock);
    for (int i = 0; i < count; i++) {
        if (arrivals[i].fd >= 0) (void)close(arrivals[i].fd);
    }
    for (int i = 0; i < node->conn_count; i++) (void)close(node->conns[i].fd);
    pc_member_destroy(node->member);
    pc_master_destroy(node->master);
    return NULL;
}

/* Life of the threads ------------------------------------------------------------------------------------------- */

static void make_machine(struct node *node) {
    if (node->slot == 0) {
        const struct pc_master_config config = {.name = "master",
                                                .incarnation = 1,
                                                .dead_timeout_ns = 5 * PC_NS_PER_S,
                                                .join_timeout_ns = 60 * PC_NS_PER_S,
                                                .handshake_timeout_ns = 5 * PC_NS_PER_S,
                                                .random = {fill_random, NULL}};
        node->master = pc_master_create(&config, now());
        if (node->master == NULL) fail("no master");
        node->machine = pc_master_machine(node->master);
        return;
    }
    const struct pc_member_config config = {.name = "peer",
                                            .stripes = 2,
                                            .host = "here",
                                            .pid = (uint64_t)node->slot,
                                            .dead_timeout_ns = 5 * PC_NS_PER_S,
                                            .op_timeout_ns = 60 * PC_NS_PER_S,
                                            .handshake_timeout_ns = 5 * PC_NS_PER_S,
                                            .random = {fill_random, NULL}};
    node->member = pc_member_create(&config, now());
    if (node->member == NULL) fail("no member");
    node->machine = pc_member_machine(node->member);
    const struct pc_address address = address_of(node->slot);
    pc_member_set_addresses(node->member, &address, 1);
}

static void start_nodes(void) {
    for (int slot = 0; slot < NODES; slot++) {
        struct node *node = &nodes[slot];
        node->slot = slot;
        if (pipe(node->wake) != 0 || fcntl(node->wake[0], F_SETFL, O_NONBLOCK) != 0) fail("pipe");
        (void)pthread_mutex_init(&node->lock, NULL);
        make_machine(node);
    }
    for (int slot = 0; slot < NODES; slot++) {
        if (pthread_create(&nodes[slot].thread, NULL, run, &nodes[slot]) != 0) fail("pthread_create");
    }
}

static void end_node(int slot) {
    struct node *node = &nodes[slot];
    (void)pthread_mutex_lock(&node->lock);
    node->stop = true;
    (void)pthread_mutex_unlock(&node->lock);
    if (write(node->wake[1], "", 1) != 1) fail("wake");
    if (pthread_join(node->thread, NULL) != 0) fail("pthread_join");
    (void)close(node->wake[0]);
    (void)close(node->wake[1]);
}

/* A user -------------------------------------------------------------------------------------------------------- */

struct request {
    struct pc_call call;
    bool done; /* under done_lock */
};

static void post(int slot, struct request *request, enum pc_call_kind kind) {
    request->call.kind = kind;
    request->call.user = &request->done;
    request->done = false;
    if (!deliver(&nodes[slot], (struct arrival){-1, 0, &request->call})) fail("a call to a peer that is gone");
}

static pc_status wait_for(struct request *request) {
    (void)pthread_mutex_lock(&done_lock);
    while (!request->done) (void)pthread_cond_wait(&done_changed, &done_lock);
    (void)pthread_mutex_unlock(&done_lock);
    return request->call.outcome.error.code;
}

/* The same joint call of peers 1 to count; the status of peer 1. */
static pc_status joint(int count, enum pc_call_kind kind, bool *pending) {
    static struct request requests[NODES];
    memset(requests, 0, sizeof requests);
    for (int slot = 1; slot <= count; slot++) {
        requests[slot].call.vote = true;
        post(slot, &requests[slot], kind);
    }
    for (int slot = 1; slot <= count; slot++) {
        if (wait_for(&requests[slot]) != requests[1].call.outcome.error.code) fail("peers disagree on a joint call");
    }
    if (pending != NULL) *pending = requests[1].call.outcome.pending;
    return requests[1].call.outcome.error.code;
}

static void join_all(void) {
    for (int slot = 1; slot <= PEERS; slot++) {
        static struct request connect[NODES];
        memset(&connect[slot], 0, sizeof connect[slot]);
        post(slot, &connect[slot], PC_CALL_CONNECT);
        bool pending = slot == 1; /* the first one is a member at once */
        while (!pending) {
            if (joint(slot - 1, PC_CALL_PEERS_PENDING, &pending) != pcclSuccess) fail("are_peers_pending");
        }
        if (slot > 1 && joint(slot - 1, PC_CALL_UPDATE_TOPOLOGY, NULL) != pcclSuccess) fail("update_topology");
        if (wait_for(&connect[slot]) != pcclSuccess) fail(connect[slot].call.outcome.error.message);
    }
}

static int64_t send_data[NODES][TAGS][ELEMS_MAX], recv_data[NODES][TAGS][ELEMS_MAX];
static struct request reductions[NODES][TAGS];

static int64_t value(int slot, int round, uint64_t i) {
    return (int64_t)((uint64_t)slot * 1000003 + (uint64_t)round * 31 + i * 7);
}

static void post_reduce(int slot, int tag, int round, uint64_t count, bool in_step) {
    struct request *request = &reductions[slot][tag];
    memset(request, 0, sizeof *request);
    const bool in_place = round % 2 == 0;
    for (uint64_t i = 0; i < count; i++) send_data[slot][tag][i] = value(slot, round, i);
    request->call.send = send_data[slot][tag];
    request->call.recv = in_place ? send_data[slot][tag] : recv_data[slot][tag];
    request->call.undo = in_place;
    request->call.weight = 1;
    request->call.scale = 1.0;
    request->call.tag = (uint64_t)tag;
    request->call.shape = (struct pc_op_shape){.count = count,
                                               .dtype = pcclInt64,
                                               .redop = pcclSum,
                                               .consistency = in_step ? PC_STEP : PC_STRICT,
                                               .algorithm = (uint8_t)(round % PC_ALGORITHM_COUNT)};
    post(slot, request, PC_CALL_COLLECTIVE);
}

/* Every tag of a round at peers 1 to count, until it has succeeded. */
static void reduce(int count, int round) {
    static const uint64_t sizes[] = {0, 1, 100, 3000, 20000, ELEMS_MAX};
    const uint64_t elems = sizes[round % 6];
    const bool in_step = round % 3 == 0;
    for (int attempt = 0;; attempt++) {
        bool failed = false;
        if (attempt == 10) fail("an all-reduce failed ten times");
        for (int slot = 1; slot <= count; slot++) {
            for (int tag = 0; tag < TAGS; tag++) post_reduce(slot, tag, round, elems, in_step);
        }
        for (int slot = 1; slot <= count; slot++) {
            for (int tag = 0; tag < TAGS; tag++) failed |= wait_for(&reductions[slot][tag]) != pcclSuccess;
        }
        if (in_step) failed |= joint(count, PC_CALL_END_STEP, NULL) != pcclSuccess;
        if (!failed) break;
    }
    for (int slot = 1; slot <= count; slot++) {
        for (int tag = 0; tag < TAGS; tag++) {
            const int64_t *data = reductions[slot][tag].call.recv;
            for (uint64_t i = 0; i < elems; i++) {
                int64_t sum = 0;
                for (int other = 1; other <= count; other++) sum += value(other, round, i);
                if (data[i] != sum) fail("a wrong sum");
            }
        }
    }
}

static int64_t state[NODES][1000];

static void synchronise(int count) {
    static struct request requests[NODES];
    static struct pc_tensor tensors[NODES];
    memset(requests, 0, sizeof requests);
    for (int slot = 1; slot <= count; slot++) {
        for (int i = 0; i < 1000; i++) state[slot][i] = slot == 2 ? -i : i;
        tensors[slot] = (struct pc_tensor){.name = "state", .data = (uint8_t *)state[slot], .count = 1000,
                                           .len_bytes = sizeof state[slot], .dtype = pcclInt64};
        requests[slot].call.tensors = &tensors[slot];
        requests[slot].call.tensor_count = 1;
        requests[slot].call.revision = 1;
        if (pc_call_prepare_sync(&requests[slot].call) != pcclSuccess) fail("prepare");
        post(slot, &requests[slot], PC_CALL_SYNC_STATE);
    }
    for (int slot = 1; slot <= count; slot++) {
        if (wait_for(&requests[slot]) != pcclSuccess) fail(requests[slot].call.outcome.error.message);
        pc_call_fini_sync(&requests[slot].call);
        if (memcmp(state[slot], state[1], sizeof state[1]) != 0) fail("the states differ");
    }
}

int main(void) {
    start_nodes();
    join_all();
    synchronise(PEERS);
    for (int round = 0; round < ROUNDS; round++) reduce(PEERS, round);
    /* The last peer goes in the middle of operations of the two others. */
    for (int tag = 0; tag < TAGS; tag++) {
        for (int slot = 1; slot <= PEERS; slot++) post_reduce(slot, tag, 5, ELEMS_MAX, false);
    }
    end_node(PEERS);
    for (int tag = 0; tag < TAGS; tag++) {
        for (int slot = 1; slot < PEERS; slot++) {
            const pc_status status = wait_for(&reductions[slot][tag]);
            if (status != pcclSuccess && status != pcclRankConnectionLost) fail("an unexpected error after a death");
        }
    }
    for (int round = 0; round < ROUNDS; round++) reduce(PEERS - 1, round);
    if (joint(PEERS - 1, PC_CALL_LEAVE, NULL) != pcclSuccess) fail("leave");
    for (int slot = 0; slot < PEERS; slot++) end_node(slot);
    (void)printf("%d threads, %d rounds\n", NODES, 2 * ROUNDS);
    return 0;
}
