/*
 * The driver's side of every machine: actions, reading and writing, dialing, ends of connections. A machine is called
 * only from events of the clock, never from within its own actions.
 */
#include "sim/net.h"

#include "base/checked.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { READS_MAX = 64, CRUMB_BYTES = 48 };
#define DIAL_TIMEOUT_NS (2 * PC_NS_PER_S)
#define NEVER UINT64_MAX

static void read_end(void *owner, void *subject, uint64_t value);
static void wake_end(void *owner, void *subject, uint64_t value);

static size_t index_of(const struct pc_end *end) {
    return end == &end->wire->ends[0] ? 0 : 1;
}

static struct pc_end *other_end(const struct pc_end *end) {
    return &end->wire->ends[1 - index_of(end)];
}

static struct pc_pipe *pipe_out(const struct pc_end *end) {
    return &end->wire->pipes[index_of(end)];
}

static struct pc_pipe *pipe_in(const struct pc_end *end) {
    return &end->wire->pipes[1 - index_of(end)];
}

/* Time and distance --------------------------------------------------------------------------------------------- */

uint64_t pc_net_now(const struct pc_host *host) {
    return host->net->clock->now_ns + host->skew_ns;
}

uint64_t pc_net_latency(const struct pc_net *net, const struct pc_host *a, const struct pc_host *b) {
    const uint64_t pair = pc_chance_mix((uint64_t)a->index + b->index, (uint64_t)a->index * b->index);
    return net->latency_ns + net->latency_ns * (pair % 200) / 100;
}

static uint64_t jitter(struct pc_net *net) {
    const uint64_t most_ns = pc_chance_percent(&net->chance, 2) ? net->latency_ns * 8 : net->latency_ns / 4;
    return pc_chance_below(&net->chance, most_ns + 1);
}

/* Until when nothing gets from one host to another. */
static uint64_t parted_until(const struct pc_net *net, const struct pc_host *from, const struct pc_host *to) {
    uint64_t until_ns = 0;
    for (int i = 0; i < PC_PARTITIONS_MAX; i++) {
        const struct pc_partition *partition = &net->partitions[i];
        if (partition->until_ns <= net->clock->now_ns) continue;
        const uint8_t a = partition->side[from->index], b = partition->side[to->index];
        const bool apart = (a == 1 && b == 2) || (a == 2 && b == 1 && !partition->one_way);
        if (apart) until_ns = pc_max_u64(until_ns, partition->until_ns);
    }
    return until_ns;
}

/* Log of frames ------------------------------------------------------------------------------------------------- */

static void log_frame(const struct pc_end *end) {
    struct pc_frame frame;
    const struct pc_message_info *info = NULL;
    if (pc_frame_open(end->head, &frame) == pcclSuccess) info = pc_message_info(frame.type);
    if (info == NULL) return;
    pc_trace_line(end->net->trace, "%u -> %u: %s, %u + %u bytes", end->host->index, other_end(end)->host->index,
                  info->schema->name, frame.meta_len, frame.bulk_len);
}

static void follow_frames(struct pc_end *end, const uint8_t *data, size_t len_bytes) {
    while (len_bytes > 0) {
        if (end->frame_left > 0) {
            const size_t skip = pc_min_size(len_bytes, (size_t)end->frame_left);
            end->frame_left -= skip;
            data += skip;
            len_bytes -= skip;
            continue;
        }
        end->head[end->head_have++] = *data++;
        len_bytes--;
        if (end->head_have < PC_FRAME_BYTES) continue;
        end->head_have = 0;
        end->frame_left = pc_bytes_get(end->head + 8, 4) + pc_bytes_get(end->head + 12, 4);
        log_frame(end);
    }
}

/* Writing ------------------------------------------------------------------------------------------------------- */

static void read_at(struct pc_end *end, uint64_t at_ns) {
    if (at_ns >= end->read_ns) return;
    end->read_ns = at_ns;
    pc_clock_at(end->net->clock, at_ns, read_end, end->net, end, at_ns);
}

static size_t put_spans(struct pc_end *end, const struct pc_span *spans, int count, size_t room) {
    struct pc_net *net = end->net;
    struct pc_pipe *pipe = pipe_out(end);
    const uint64_t at_ns = net->clock->now_ns + pc_net_latency(net, end->host, other_end(end)->host) + jitter(net);
    size_t done = 0;
    for (int i = 0; i < count && room > 0; i++) {
        const size_t len = pc_min_size(room, spans[i].len_bytes);
        if (!pc_pipe_put(pipe, spans[i].data, len, at_ns)) net->failed = true;
        if (net->trace->wanted) follow_frames(end, spans[i].data, len);
        done += len;
        room -= len;
    }
    if (pc_pipe_next(pipe) != NEVER) read_at(other_end(end), pc_pipe_next(pipe));
    return done;
}

static size_t spans_len(const struct pc_span *spans, int count) {
    size_t len = 0;
    for (int i = 0; i < count; i++) len += spans[i].len_bytes;
    return len;
}

static void wake_at(struct pc_end *end, uint64_t at_ns) {
    if (end->wake_due) return;
    end->wake_due = true;
    pc_clock_at(end->net->clock, at_ns, wake_end, end->net, end, 0);
}

static bool usable(const struct pc_end *end) {
    return end->stream != NULL && !end->stream->closing && !end->told;
}

static void write_end(struct pc_end *end) {
    struct pc_net *net = end->net;
    while (usable(end)) {
        struct pc_span spans[PC_TX_SPANS_MAX];
        const int count = pc_stream_tx_spans(end->stream, spans, pc_net_now(end->host));
        end->blocked = false;
        if (count == 0) {
            end->stream->write_wanted = false;
            return;
        }
        size_t room = pc_pipe_room(pipe_out(end));
        const bool cut = room > 1 && pc_chance_percent(&net->chance, net->short_write_percent);
        if (cut) room = 1 + pc_chance_below(&net->chance, pc_min_size(room, 4096));
        const size_t done = put_spans(end, spans, count, room), wanted = spans_len(spans, count);
        if (done > 0) end->host->machine->ops->sent(end->host->machine, end->stream, done, pc_net_now(end->host));
        if (done == wanted) continue;
        end->blocked = true;
        if (cut) wake_at(end, net->clock->now_ns + pc_chance_below(&net->chance, 20000));
        return;
    }
}

/* There is room again. */
static void wake_end(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_end *end = subject;
    (void)value;
    end->wake_due = false;
    if (!usable(end) || end->host->machine == NULL) return;
    if (end->host->paused_until_ns > net->clock->now_ns) {
        wake_at(end, end->host->paused_until_ns);
        return;
    }
    pc_trace_event(net->trace, 1, end->host->index);
    write_end(end);
    pc_net_settle(end->host);
}

/* Reading ------------------------------------------------------------------------------------------------------- */

static void tell_end(struct pc_end *end, int sys_errno) {
    if (end->stream == NULL || end->told || end->host->machine == NULL) return;
    end->told = true;
    struct pc_machine *machine = end->host->machine;
    pc_trace_line(end->net->trace, "%u hears that its connection to %u is over: %s", end->host->index,
                  other_end(end)->host->index, sys_errno == 0 ? "closed" : strerror(sys_errno));
    machine->ops->closed(machine, end->stream, sys_errno, pc_net_now(end->host));
    pc_net_settle(end->host);
}

/* One read of at most most bytes. Returns what it took. */
static size_t read_once(struct pc_end *end, size_t most) {
    struct pc_pipe *pipe = pipe_in(end);
    struct pc_span spans[PC_RX_SPANS_MAX];
    const int count = pc_stream_rx_spans(end->stream, spans);
    size_t len = pc_min_size(pipe->ready, spans_len(spans, count));
    if (len > most) len = most;
    if (len == 0) return 0;
    size_t left = len;
    for (int i = 0; i < count && left > 0; i++) {
        const size_t part = pc_min_size(left, spans[i].len_bytes);
        pc_pipe_take(pipe, spans[i].data, part);
        left -= part;
    }
    struct pc_machine *machine = end->host->machine;
    pc_trace_event(end->net->trace, pc_chance_mix(2, end->host->index), len);
    machine->ops->received(machine, end->stream, len, pc_net_now(end->host));
    pc_net_settle(end->host);
    return len;
}

/* Takes what has arrived. Returns when to go on. */
static uint64_t read_ready(struct pc_end *end) {
    struct pc_net *net = end->net;
    struct pc_pipe *pipe = pipe_in(end);
    for (int reads = 0; reads < READS_MAX && usable(end) && pipe->ready > 0; reads++) {
        const bool split = pc_chance_percent(&net->chance, net->split_percent);
        const size_t bound = net->crumbs ? CRUMB_BYTES : pipe->ready;
        const size_t most = split ? 1 + pc_chance_below(&net->chance, bound) : SIZE_MAX;
        if (read_once(end, most) == 0) return NEVER;
        if (split && pc_chance_percent(&net->chance, 50)) break;
    }
    if (!usable(end)) return NEVER;
    return pipe->ready > 0 ? net->clock->now_ns + 1 + pc_chance_below(&net->chance, 20000) : pc_pipe_next(pipe);
}

static void read_end(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_end *end = subject, *writer = other_end(end);
    struct pc_pipe *pipe = pipe_in(end);
    if (end->read_ns != value) return; /* an earlier one has come in between */
    end->read_ns = NEVER;
    if (!usable(end) || end->host->machine == NULL || pipe->lost) return;
    uint64_t blocked_ns = pc_max_u64(end->host->paused_until_ns, pipe->stalled_until_ns);
    blocked_ns = pc_max_u64(blocked_ns, parted_until(net, writer->host, end->host));
    if (blocked_ns > net->clock->now_ns) {
        read_at(end, blocked_ns);
        return;
    }
    pc_pipe_arrive(pipe, net->clock->now_ns);
    const uint64_t next_ns = read_ready(end);
    if (writer->blocked && pc_pipe_room(pipe) > 0) {
        wake_at(writer, net->clock->now_ns + pc_net_latency(net, end->host, writer->host));
    }
    if (next_ns != NEVER) {
        read_at(end, next_ns);
    } else if (usable(end) && pipe->ended && pipe->ready == 0) {
        if (net->clock->now_ns >= pipe->last_ns) {
            tell_end(end, pipe->end_errno);
        } else {
            read_at(end, pipe->last_ns);
        }
    }
}

/* Ends of connections ------------------------------------------------------------------------------------------- */

/* Nothing more comes from end; the other one learns it at_ns, after what is under way. */
static void finish_pipe(struct pc_end *end, int sys_errno, uint64_t at_ns) {
    struct pc_pipe *out = pipe_out(end), *in = pipe_in(end);
    out->ended = true;
    out->end_errno = sys_errno;
    out->last_ns = pc_max_u64(out->last_ns, at_ns);
    in->drained = true;
    pc_pipe_fini(in);
    read_at(other_end(end), pc_min_u64(out->last_ns, pc_pipe_next(out)));
    if (other_end(end)->blocked) wake_at(other_end(end), at_ns);
}

static void release_end(struct pc_end *end) {
    end->stream = NULL;
    pc_list_remove(&end->node);
    end->net->open_ends--;
    if (other_end(end)->stream != NULL) return;
    pc_pipe_fini(pipe_in(end));
}

static void close_stream(struct pc_net *net, struct pc_host *host, struct pc_stream *stream) {
    struct pc_end *end = stream->driver;
    if (stream->rx_state == PC_RX_BROKEN && stream->error.code == pcclProtocolError) {
        net->events->refused(net->user, host, &stream->error);
    }
    if (!end->told && stream->open) {
        struct pc_span spans[PC_TX_SPANS_MAX];
        const int count = pc_stream_tx_spans(stream, spans, pc_net_now(host));
        if (count > 0) (void)put_spans(end, spans, count, pc_pipe_room(pipe_out(end)));
    }
    finish_pipe(end, 0, net->clock->now_ns + pc_net_latency(net, host, other_end(end)->host));
    release_end(end);
    pc_stream_destroy(stream);
}

static void reset_end(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_end *end = subject;
    if (end->host->machine == NULL) return;
    if (end->host->paused_until_ns > net->clock->now_ns) {
        pc_clock_at(net->clock, end->host->paused_until_ns, reset_end, net, end, value);
        return;
    }
    pc_trace_event(net->trace, 3, end->host->index);
    tell_end(end, (int)value);
}

/* Dialing ------------------------------------------------------------------------------------------------------- */

static void attach(struct pc_end *end, struct pc_stream *stream) {
    end->stream = stream;
    stream->driver = end;
    end->net->open_ends++;
    pc_list_append(&end->host->ends, &end->node);
}

static struct pc_wire *make_wire(struct pc_net *net, struct pc_host *from, struct pc_host *to) {
    struct pc_wire *wire = pc_calloc(1, sizeof *wire);
    if (wire == NULL) {
        net->failed = true;
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        wire->ends[i].net = net;
        wire->ends[i].wire = wire;
        wire->ends[i].host = i == 0 ? from : to;
        wire->ends[i].read_ns = NEVER;
        wire->pipes[i].limit_bytes = net->limit_bytes;
    }
    pc_list_append(&net->wires, &wire->node);
    return wire;
}

static struct pc_host *find_host(struct pc_net *net, const struct pc_address *address) {
    for (uint32_t i = 0; i < net->host_count; i++) {
        const struct pc_address *own = &net->hosts[i]->address;
        if (own->port == address->port && memcmp(own->ip, address->ip, sizeof own->ip) == 0) return net->hosts[i];
    }
    return NULL;
}

/* The connection has been made; the process may take it later. */
static void accept_end(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_end *end = subject;
    struct pc_host *host = end->host;
    (void)value;
    if (host->machine == NULL) return;
    if (host->paused_until_ns > net->clock->now_ns) {
        pc_clock_at(net->clock, host->paused_until_ns, accept_end, net, end, 0);
        return;
    }
    struct pc_address from = other_end(end)->host->address;
    from.port = (uint16_t)(from.port + 20000);
    pc_trace_event(net->trace, 4, host->index);
    struct pc_stream *stream = host->machine->ops->accept(host->machine, &from, pc_net_now(host));
    if (stream == NULL) {
        finish_pipe(end, ECONNRESET, net->clock->now_ns + pc_net_latency(net, host, other_end(end)->host));
    } else {
        attach(end, stream);
        read_at(end, net->clock->now_ns + 1);
    }
    pc_net_settle(host);
}

static void open_end(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_end *end = subject;
    struct pc_host *host = end->host;
    if (!usable(end) || host->machine == NULL) return;
    if (host->paused_until_ns > net->clock->now_ns) {
        pc_clock_at(net->clock, host->paused_until_ns, open_end, net, end, value);
        return;
    }
    pc_trace_event(net->trace, 5, host->index);
    if (value != 0) {
        tell_end(end, (int)value);
        return;
    }
    host->machine->ops->opened(host->machine, end->stream, net->loopback, pc_net_now(host));
    read_at(end, net->clock->now_ns + 1);
    pc_net_settle(host);
}

/* What a dial comes to: 0, or the error; and when the first packet arrives. */
static int reach(struct pc_net *net, const struct pc_host *from, const struct pc_host *to, uint64_t *arrival_ns) {
    const uint64_t now_ns = net->clock->now_ns;
    *arrival_ns = now_ns + (to == NULL ? 0 : pc_net_latency(net, from, to) + jitter(net));
    if (to == NULL) return EHOSTUNREACH;
    const bool unlucky = net->dial_fail_until_ns > now_ns && pc_chance_percent(&net->chance, net->dial_fail_percent);
    if (unlucky) return ECONNREFUSED;
    const uint64_t parted_ns = pc_max_u64(parted_until(net, from, to), parted_until(net, to, from));
    if ((to->machine == NULL && to->silent) || parted_ns > now_ns + DIAL_TIMEOUT_NS) {
        *arrival_ns = now_ns + DIAL_TIMEOUT_NS;
        return ETIMEDOUT;
    }
    *arrival_ns = pc_max_u64(*arrival_ns, parted_ns);
    return to->machine == NULL ? ECONNREFUSED : 0;
}

static void dial(struct pc_host *host, struct pc_stream *stream, const struct pc_address *addresses, uint32_t count) {
    struct pc_net *net = host->net;
    struct pc_host *to = count == 0 ? net->hosts[0] : find_host(net, &addresses[0]);
    struct pc_wire *wire = make_wire(net, host, to == NULL ? net->hosts[0] : to);
    if (wire == NULL) return;
    stream->remote = wire->ends[1].host->address;
    attach(&wire->ends[0], stream);
    uint64_t arrival_ns = 0;
    const int failure = reach(net, host, to, &arrival_ns);
    if (failure == 0) pc_clock_at(net->clock, arrival_ns, accept_end, net, &wire->ends[1], 0);
    const uint64_t back_ns = to == NULL ? 1000 : pc_net_latency(net, host, to);
    pc_clock_at(net->clock, arrival_ns + back_ns, open_end, net, &wire->ends[0], (uint64_t)failure);
}

static void answer_dial_back(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_host *master = net->hosts[0];
    (void)subject;
    if (master->machine == NULL) return;
    if (master->paused_until_ns > net->clock->now_ns) {
        pc_clock_at(net->clock, master->paused_until_ns, answer_dial_back, net, NULL, value);
        return;
    }
    pc_trace_event(net->trace, 6, value);
    net->events->dialed_back(net->user, value >> 16, (int)(value & 0xffff));
    pc_net_settle(master);
}

static void dial_back(struct pc_host *host, uint64_t id, const struct pc_address *addresses) {
    struct pc_net *net = host->net;
    struct pc_host *to = find_host(net, &addresses[0]);
    uint64_t arrival_ns = 0;
    const int failure = reach(net, host, to, &arrival_ns);
    struct pc_wire *wire = failure == 0 ? make_wire(net, host, to) : NULL;
    if (wire != NULL) {
        wire->pipes[0].ended = wire->pipes[1].drained = true;
        pc_clock_at(net->clock, arrival_ns, accept_end, net, &wire->ends[1], 0);
    }
    const uint64_t back_ns = to == NULL ? 1000 : pc_net_latency(net, host, to);
    pc_clock_at(net->clock, arrival_ns + back_ns, answer_dial_back, net, NULL, id << 16 | (uint64_t)failure);
}

/* Actions ------------------------------------------------------------------------------------------------------- */

static void run_action(struct pc_host *host, const struct pc_action *queued) {
    const struct pc_action action = *queued; /* the queue may move */
    switch (action.kind) {
    case PC_ACTION_WRITE: {
        struct pc_end *end = action.stream->driver;
        if (end != NULL && !end->blocked) write_end(end);
        break;
    }
    case PC_ACTION_CLOSE: close_stream(host->net, host, action.stream); break;
    case PC_ACTION_COMPLETE: host->net->events->complete(host->net->user, host, action.call); break;
    case PC_ACTION_DIAL: dial(host, action.stream, action.addresses, action.address_count); break;
    case PC_ACTION_DIAL_BACK: dial_back(host, action.id, action.addresses); break;
    }
}

static void tick_host(void *owner, void *subject, uint64_t value) {
    struct pc_net *net = owner;
    struct pc_host *host = subject;
    if (host->machine == NULL || host->tick_ns != value) return;
    if (host->paused_until_ns > net->clock->now_ns) {
        host->tick_ns = host->paused_until_ns;
        pc_clock_at(net->clock, host->tick_ns, tick_host, net, host, host->tick_ns);
        return;
    }
    host->tick_ns = NEVER;
    if (pc_net_now(host) >= host->machine->ops->deadline(host->machine)) {
        pc_trace_event(net->trace, 7, host->index);
        host->machine->ops->tick(host->machine, pc_net_now(host));
    }
    pc_net_settle(host);
}

void pc_net_settle(struct pc_host *host) {
    struct pc_net *net = host->net;
    const struct pc_action *action;
    while (host->machine != NULL && (action = pc_actions_next(&host->machine->actions)) != NULL) {
        run_action(host, action);
        if (host->doom_actions == 0 || --host->doom_actions > 0) continue;
        net->events->doomed(net->user, host);
        return;
    }
    if (host->machine == NULL) return;
    if (host->machine->actions.failed) net->failed = true;
    net->events->observe(net->user, host);
    const uint64_t deadline_ns = host->machine->ops->deadline(host->machine);
    if (deadline_ns == NEVER) return;
    const uint64_t due_ns = pc_max_u64(deadline_ns, host->skew_ns) - host->skew_ns;
    if (due_ns >= host->tick_ns) return;
    host->tick_ns = due_ns;
    pc_clock_at(net->clock, due_ns, tick_host, net, host, due_ns);
}

/* Faults -------------------------------------------------------------------------------------------------------- */

void pc_net_end(struct pc_host *host, bool silent) {
    struct pc_net *net = host->net;
    host->machine = NULL;
    host->silent = silent;
    struct pc_list *node;
    while (!pc_list_empty(&host->ends)) {
        node = host->ends.next;
        struct pc_end *end = PC_LIST_ENTRY(node, struct pc_end, node);
        if (silent) {
            end->wire->pipes[0].lost = end->wire->pipes[1].lost = true;
        } else {
            /* The kernel closes one socket after the other; those with unread bytes are reset. */
            const bool reset = pc_chance_percent(&net->chance, 50);
            const uint64_t delay_ns = pc_chance_below(&net->chance, 20 * PC_NS_PER_MS);
            if (reset) pc_pipe_clear(pipe_out(end));
            finish_pipe(end, reset ? ECONNRESET : 0,
                        net->clock->now_ns + delay_ns + pc_net_latency(net, host, other_end(end)->host));
        }
        release_end(end);
    }
}

void pc_net_pause(struct pc_host *host, uint64_t for_ns) {
    const uint64_t until_ns = host->net->clock->now_ns + for_ns;
    if (until_ns <= host->paused_until_ns) return;
    host->paused_until_ns = until_ns;
    host->paused_sum_ns += for_ns;
}

struct pc_wire *pc_net_pick(struct pc_host *host, bool to_master) {
    uint64_t count = 0;
    struct pc_wire *chosen = NULL;
    for (struct pc_list *node = host->ends.next; node != &host->ends; node = node->next) {
        const struct pc_end *end = PC_LIST_ENTRY(node, struct pc_end, node);
        const bool fits = (other_end(end)->host->index == 0) == to_master && other_end(end)->stream != NULL;
        if (fits && pc_chance_below(&host->net->chance, ++count) == 0) chosen = end->wire;
    }
    return chosen;
}

void pc_net_stall(struct pc_wire *wire, bool first, bool second, uint64_t for_ns) {
    const uint64_t until_ns = wire->ends[0].net->clock->now_ns + for_ns;
    if (first) wire->pipes[0].stalled_until_ns = pc_max_u64(wire->pipes[0].stalled_until_ns, until_ns);
    if (second) wire->pipes[1].stalled_until_ns = pc_max_u64(wire->pipes[1].stalled_until_ns, until_ns);
}

void pc_net_cut(struct pc_wire *wire, const uint64_t delays_ns[2]) {
    for (int i = 0; i < 2; i++) {
        struct pc_end *end = &wire->ends[i];
        wire->pipes[i].lost = true;
        if (delays_ns[i] == NEVER) continue;
        pc_clock_at(end->net->clock, end->net->clock->now_ns + delays_ns[i], reset_end, end->net, end, ECONNRESET);
    }
}

void pc_net_part(struct pc_net *net, const uint8_t side[PC_HOSTS_MAX], bool one_way, uint64_t for_ns) {
    for (int i = 0; i < PC_PARTITIONS_MAX; i++) {
        struct pc_partition *partition = &net->partitions[i];
        if (partition->until_ns > net->clock->now_ns) continue;
        memcpy(partition->side, side, sizeof partition->side);
        partition->until_ns = net->clock->now_ns + for_ns;
        partition->one_way = one_way;
        return;
    }
}

/* Life ---------------------------------------------------------------------------------------------------------- */

void pc_net_init(struct pc_net *net, struct pc_clock *clock, struct pc_trace *trace, uint64_t seed) {
    memset(net, 0, sizeof *net);
    net->clock = clock;
    net->trace = trace;
    pc_chance_init(&net->chance, seed, 1);
    pc_list_init(&net->wires);
}

struct pc_host *pc_net_host(struct pc_net *net, void *owner) {
    struct pc_host *host = net->host_count < PC_HOSTS_MAX ? pc_calloc(1, sizeof *host) : NULL;
    if (host == NULL) return NULL;
    host->index = net->host_count;
    host->net = net;
    host->owner = owner;
    host->tick_ns = NEVER;
    host->skew_ns = PC_NS_PER_S + pc_chance_below(&net->chance, 1000 * PC_NS_PER_S);
    pc_list_init(&host->ends);
    const uint8_t near[4] = {127, 0, 0, 1};
    const uint8_t far[4] = {10, 0, (uint8_t)(host->index >> 4), (uint8_t)(host->index & 15)};
    host->address.family = 4;
    host->address.port = (uint16_t)(1000 + host->index);
    memcpy(host->address.ip, net->loopback ? near : far, 4);
    net->hosts[net->host_count++] = host;
    return host;
}

void pc_net_fini(struct pc_net *net) {
    struct pc_list *node;
    while ((node = pc_list_pop(&net->wires)) != NULL) {
        struct pc_wire *wire = PC_LIST_ENTRY(node, struct pc_wire, node);
        pc_pipe_fini(&wire->pipes[0]);
        pc_pipe_fini(&wire->pipes[1]);
        free(wire);
    }
    for (uint32_t i = 0; i < net->host_count; i++) free(net->hosts[i]);
    net->host_count = 0;
}
