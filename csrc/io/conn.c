/*
 * The data path. Reading: ask the stream where bytes go, read there, tell the machine, carry out what it wants - so a
 * segment is forwarded before the next one is read. A read that came short means an empty socket: the next attempt is
 * left to the poll. Writing: at once from where the action is carried out, and only what the socket refuses waits for
 * the poll. Both give way to others after a budget. Nothing here allocates.
 *
 * With a crew (crew.h) each wait for the gate can bring anything: that the connection has ended, or been closed. Its memory
 * stays as long as it has users.
 *
 * Closing: when bytes of ours may still be on their way, close() on a socket with unread input would send a reset that
 * destroys them. So the connection lingers: it ends its sending side and reads into scrap, for a bounded time and
 * amount, until the other end closes too.
 */
#define _DEFAULT_SOURCE 1
#include "io/conn.h"

#include "base/checked.h"
#include "base/log.h"
#include "io/crew.h"
#include "io/shm.h"
#include "io/tcp_info.h"
#include "plan/chunk_plan.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

enum { BUDGET_BYTES = 1 << 20, LINGER_BYTES = 256 << 10, SCRAP_BYTES = 16 << 10, MEASURED_BYTES = 1 << 20 };
#define LINGER_NS (500 * PC_NS_PER_MS)

static void on_ready(void *owner, int status, int events);

struct pc_conn *pc_conn_create(struct pc_loop *loop, struct pc_stream *stream, const struct pc_transport *transport) {
    struct pc_conn *conn = pc_calloc(1, sizeof *conn);
    struct pc_watch *watch = conn != NULL ? pc_watch_create(&loop->uv, transport->fd, on_ready, conn) : NULL;
    if (watch == NULL) {
        struct pc_transport unused = *transport;
        free(conn);
        unused.ops->close(&unused);
        return NULL;
    }
    conn->loop = loop;
    conn->stream = stream;
    conn->transport = *transport;
    conn->watch = watch;
    conn->state = PC_CONN_OPEN;
    conn->events = UV_READABLE;
    pc_list_append(&loop->conns, &conn->node);
    pc_watch_set(watch, conn->events);
    stream->driver = conn;
    stream->rtt_us = pc_tcp_info(transport->fd).rtt_us;
    stream->shared_memory = pc_transport_is_shm(transport);
    pc_sock_settle(transport->fd, &loop->config.sock, stream->rtt_us);
    return conn;
}

/* Whether the descriptor only tells that the other end has done something; see transport.h. */
static bool is_woken(const struct pc_conn *conn) {
    return conn->transport.ops->woken != NULL;
}

static void poll_for(struct pc_conn *conn, int event, bool wanted) {
    const int events = wanted ? conn->events | event : conn->events & ~event;
    if (events == conn->events) return;
    conn->events = events;
    if (conn->crew != NULL) pc_crew_arm(conn->crew, conn);
    else pc_watch_set(conn->watch, events);
}

/* A descriptor that is closed while a thread uses it could be another connection's by then. */
static void wait_for_threads(struct pc_conn *conn) {
    if (conn->crew != NULL) pc_crew_wait(conn->crew, conn);
}

static void leave_crew(struct pc_conn *conn) {
    if (conn->crew == NULL) return;
    pc_crew_drop(conn->crew, conn);
    if (conn->stream != NULL) conn->stream->recall = NULL;
}

static void release_socket(struct pc_conn *conn) {
    leave_crew(conn);
    pc_watch_destroy(conn->watch);
    pc_alarm_destroy(conn->alarm);
    conn->watch = NULL;
    conn->alarm = NULL;
    if (conn->transport.fd >= 0) conn->transport.ops->close(&conn->transport);
}

/* The memory stays until no callback of this connection can be on the stack. */
static void bury(struct pc_conn *conn) {
    wait_for_threads(conn);
    release_socket(conn);
    if (conn->stream != NULL) conn->stream->driver = NULL;
    conn->stream = NULL;
    conn->state = PC_CONN_DEAD;
    pc_list_remove(&conn->node);
    pc_list_append(&conn->loop->dead_conns, &conn->node);
}

void pc_conn_reap(struct pc_loop *loop) {
    for (struct pc_list *node = loop->dead_conns.next, *next; node != &loop->dead_conns; node = next) {
        next = node->next;
        struct pc_conn *conn = PC_LIST_ENTRY(node, struct pc_conn, node);
        if (conn->users > 0) continue;
        pc_list_remove(node);
        free(conn);
    }
}

static void end(struct pc_conn *conn, int sys_errno) {
    if (conn->state != PC_CONN_OPEN) return;
    struct pc_loop *loop = conn->loop;
    conn->state = PC_CONN_ENDED;
    wait_for_threads(conn);
    if (conn->state != PC_CONN_ENDED) return;
    release_socket(conn);
    if (conn->stream->closing) return;
    loop->machine->ops->closed(loop->machine, conn->stream, sys_errno, pc_loop_now());
}

/* Moving bytes -------------------------------------------------------------------------------------------------- */

typedef ptrdiff_t (*pc_move)(struct pc_transport *transport, const struct pc_span *spans, int count);

/* Outside the gate where a crew serves the connection. errno is that of the transport. */
static ptrdiff_t move(struct pc_conn *conn, bool *busy, pc_move how, const struct pc_span *spans, int count) {
    struct pc_crew *crew = conn->crew;
    if (crew == NULL) return how(&conn->transport, spans, count);
    *busy = true;
    atomic_fetch_add_explicit(&conn->moving, 1, memory_order_relaxed);
    pc_gate_leave(&conn->loop->gate);
    const ptrdiff_t len = how(&conn->transport, spans, count);
    const int sys_errno = errno;
    atomic_fetch_sub_explicit(&conn->moving, 1, memory_order_release);
    pc_gate_enter(&conn->loop->gate);
    *busy = false;
    pc_crew_returned(crew);
    errno = sys_errno;
    return len;
}

/* From within the machine: inside the gate, where nothing new can begin. As long as one call of the system takes. */
static void recall(struct pc_stream *stream) {
    const struct pc_conn *conn = stream->driver;
    while (atomic_load_explicit(&conn->moving, memory_order_acquire) > 0) (void)sched_yield();
}

/* A connection that has become one of a link's. */
static void join_crew(struct pc_conn *conn) {
    struct pc_crew *crew = conn->loop->crew;
    if (crew == NULL || conn->crew != NULL || conn->state != PC_CONN_OPEN || conn->stream->closing || is_woken(conn) ||
        conn->stream->shared[0] == NULL) {
        return;
    }
    pc_crew_adopt(crew, conn);
    if (conn->crew == NULL) return;
    pc_watch_destroy(conn->watch);
    conn->watch = NULL;
    conn->stream->recall = recall;
    pc_crew_arm(crew, conn);
}

/* Reading ------------------------------------------------------------------------------------------------------- */

static size_t spans_len(const struct pc_span *spans, int count) {
    size_t len = 0;
    for (int i = 0; i < count; i++) len += spans[i].len_bytes;
    return len;
}

/* Returns the bytes read if there may be more that nobody will tell of, else 0. drain: carry out actions in between. */
static size_t read_once(struct pc_conn *conn, bool drain) {
    struct pc_loop *loop = conn->loop;
    struct pc_span spans[PC_RX_SPANS_MAX];
    const int count = pc_stream_rx_spans(conn->stream, spans);
    if (count == 0) {
        /* Broken: the machine knows and will close it. Polling on would spin. */
        poll_for(conn, UV_READABLE, false);
        return 0;
    }
    conn->transport.cold = pc_stream_rx_cold(conn->stream);
    const ptrdiff_t len = move(conn, &conn->reading, conn->transport.ops->read, spans, count);
    if (conn->state != PC_CONN_OPEN && len <= 0) return 0;
    if (len < 0) {
        const bool broken = errno != EAGAIN && errno != EWOULDBLOCK;
        if (broken || conn->write_errno != 0) end(conn, broken ? errno : conn->write_errno);
        return 0;
    }
    if (len == 0) {
        end(conn, conn->write_errno);
        return 0;
    }
    loop->machine->ops->received(loop->machine, conn->stream, (size_t)len, pc_loop_now());
    if (drain) pc_loop_drain(loop);
    return is_woken(conn) || (size_t)len == spans_len(spans, count) ? (size_t)len : 0;
}

static bool usable(const struct pc_conn *conn) {
    return conn->state == PC_CONN_OPEN && !conn->stream->closing;
}

/* Another thread that reads finds what there is to be found. */
static bool readable(const struct pc_conn *conn) {
    return usable(conn) && !conn->reading;
}

static bool writable(const struct pc_conn *conn) {
    return usable(conn) && !conn->writing;
}

static void read_some(struct pc_conn *conn) {
    size_t moved = 0;
    while (readable(conn) && moved < BUDGET_BYTES) {
        const size_t len = read_once(conn, true);
        if (len == 0) return;
        moved += len;
    }
    /* Others first. A descriptor that is always writable brings this connection back. */
    conn->read_due = is_woken(conn) && readable(conn);
    if (conn->read_due) poll_for(conn, UV_WRITABLE, true);
}

/* Writing ------------------------------------------------------------------------------------------------------- */

/*
 * What the other end said before it went is still in the socket (the reason of a refusal, a goodbye), and tells more
 * than the error of a write.
 */
static void read_last_words(struct pc_conn *conn, int sys_errno) {
    size_t moved = 0;
    while (readable(conn) && moved < BUDGET_BYTES) {
        const size_t len = read_once(conn, false);
        if (len == 0) break;
        moved += len;
    }
    if (readable(conn)) end(conn, sys_errno);
}

static void write_some(struct pc_conn *conn) {
    struct pc_loop *loop = conn->loop;
    size_t moved = 0;
    bool full = false;
    while (writable(conn) && moved < BUDGET_BYTES) {
        struct pc_span spans[PC_TX_SPANS_MAX];
        const int count = pc_stream_tx_spans(conn->stream, spans, pc_loop_now());
        if (count == 0) {
            conn->stream->write_wanted = false;
            conn->write_blocked = false;
            poll_for(conn, UV_WRITABLE, conn->read_due);
            return;
        }
        const ptrdiff_t len = move(conn, &conn->writing, conn->transport.ops->write, spans, count);
        const int sys_errno = len < 0 ? errno : 0;
        loop->machine->ops->sent(loop->machine, conn->stream, len > 0 ? (size_t)len : 0, pc_loop_now());
        if (len < 0 && sys_errno != EAGAIN && sys_errno != EWOULDBLOCK) {
            if (conn->reading) conn->write_errno = sys_errno; /* that thread ends it when there is no more to read */
            else read_last_words(conn, sys_errno);
            return;
        }
        if (len < (ptrdiff_t)spans_len(spans, count)) {
            full = true;
            break;
        }
        moved += (size_t)len;
    }
    if (!writable(conn)) return;
    conn->write_blocked = true;
    if (!full || !is_woken(conn)) poll_for(conn, UV_WRITABLE, true);
}

void pc_conn_write(struct pc_conn *conn) {
    conn->users++;
    write_some(conn);
    if (usable(conn) && conn->crew != NULL) pc_crew_arm(conn->crew, conn);
    conn->users--;
}

/* Ending -------------------------------------------------------------------------------------------------------- */

static void linger_over(void *owner) {
    bury(owner);
}

static void read_scrap(struct pc_conn *conn) {
    char scrap[SCRAP_BYTES];
    const struct pc_span span = {scrap, sizeof scrap};
    for (;;) {
        const ptrdiff_t len = conn->transport.ops->read(&conn->transport, &span, 1);
        if (len < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        conn->drained_bytes += len > 0 ? (size_t)len : 0;
        if (len <= 0 || conn->drained_bytes > LINGER_BYTES) {
            bury(conn);
            return;
        }
    }
}

/*
 * The system measures real traffic; reading its figures now and then costs nothing. What little traffic shows of the
 * bandwidth is worth nothing either.
 */
static void measure(struct pc_conn *conn) {
    const uint64_t now_ns = pc_loop_now();
    if (now_ns - conn->measured_ns < PC_NS_PER_S) return;
    conn->measured_ns = now_ns;
    const struct pc_tcp_info info = pc_tcp_info(conn->transport.fd);
    conn->stream->rtt_us = info.rtt_us;
    if (conn->stream->tx_bytes - conn->measured_bytes >= MEASURED_BYTES) conn->stream->bytes_per_ms = info.bytes_per_ms;
    conn->measured_bytes = conn->stream->tx_bytes;
    if (info.rtt_us < PC_FAR_US) return;
    const uint64_t pace_before = conn->pace.bytes_per_s, pace = pc_pace_next(&conn->pace, &info.pace);
    if (pace != pace_before) pc_sock_pace(conn->transport.fd, pace);
}

void pc_conn_ready(struct pc_conn *conn, int events) {
    struct pc_loop *loop = conn->loop;
    conn->users++;
    if (conn->state == PC_CONN_OPEN) measure(conn);
    if ((events & UV_WRITABLE) != 0) {
        conn->write_blocked = false;
        write_some(conn);
        pc_loop_drain(loop);
    }
    if ((events & ~UV_WRITABLE) != 0) read_some(conn);
    pc_loop_drain(loop);
    if (usable(conn) && conn->crew != NULL) pc_crew_arm(conn->crew, conn);
    conn->users--;
}

static void on_ready(void *owner, int status, int events) {
    struct pc_conn *conn = owner;
    pc_loop_stir(conn->loop);
    if (status == 0 && is_woken(conn)) {
        conn->transport.ops->woken(&conn->transport);
        conn->read_due = false;
        poll_for(conn, UV_WRITABLE, false);
        events = UV_READABLE | (conn->write_blocked ? UV_WRITABLE : 0);
    }
    if (conn->state == PC_CONN_LINGERING) {
        if (status < 0) bury(conn);
        else read_scrap(conn);
    } else if (conn->state == PC_CONN_OPEN && status < 0) {
        /* libuv has stopped the watch because of an error condition, which the socket tells. */
        const int sys_errno = pc_sock_error(conn->transport.fd);
        conn->events = 0;
        read_last_words(conn, sys_errno != 0 ? sys_errno : EIO);
    } else {
        pc_conn_ready(conn, events);
        join_crew(conn);
    }
    pc_loop_drain(conn->loop);
}

void pc_conn_close(struct pc_conn *conn) {
    bool linger = false;
    wait_for_threads(conn);
    if (conn->state == PC_CONN_OPEN) {
        struct pc_span spans[PC_TX_SPANS_MAX];
        const int count = pc_stream_tx_spans(conn->stream, spans, pc_loop_now());
        if (count > 0) (void)conn->transport.ops->write(&conn->transport, spans, count);
        linger = conn->stream->tx_bytes > 0 || count > 0;
    }
    const bool served = conn->crew != NULL;
    leave_crew(conn);
    conn->stream->driver = NULL;
    conn->stream = NULL;
    if (linger && served) conn->watch = pc_watch_create(&conn->loop->uv, conn->transport.fd, on_ready, conn);
    conn->alarm = linger && conn->watch != NULL ? pc_alarm_create(&conn->loop->uv, linger_over, conn) : NULL;
    if (conn->alarm == NULL) {
        bury(conn);
        return;
    }
    conn->state = PC_CONN_LINGERING;
    conn->transport.ops->finish(&conn->transport);
    pc_alarm_set(conn->alarm, LINGER_NS);
    conn->events = UV_READABLE;
    pc_watch_set(conn->watch, conn->events);
}

void pc_conn_close_all(struct pc_loop *loop) {
    while (!pc_list_empty(&loop->conns)) bury(PC_LIST_ENTRY(loop->conns.next, struct pc_conn, node));
}
