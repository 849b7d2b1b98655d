/*
 * Clock, processes and byte streams of the simulation. One heap of events, ordered by time and then by order of creation,
 * so a run is a function of its seed. Memory is reused within a world; a world lives for one schedule.
 */
#include "sim/world.h"

#include "base/checked.h"
#include "base/log.h"
#include "math/digest.h"

#include <stdlib.h>
#include <string.h>

enum event_kind {
    EVENT_DELIVER,
    EVENT_TICK,
    EVENT_ALARM,
    EVENT_DIALED,
    EVENT_CLOSED,
    EVENT_DIAL_BACK,
    EVENT_SEARCHED,
    EVENT_MOVED
};

struct event {
    uint64_t at_ns, order;
    enum event_kind kind;
    uint32_t a, b;
};

struct end {
    uint32_t slot;
    struct pc_stream *stream; /* NULL: closed on this side */
    struct port *port;
};

/* Memory of a stream that an I/O thread has: bytes move at the end of that time, or when the stream calls them back. */
struct loan {
    bool out, moved;
    struct pc_span spans[PC_TX_SPANS_MAX];
    int count;
    size_t most_bytes, moved_bytes;
};

/* What a stream knows its driver by. */
struct port {
    struct pc_world *world;
    uint32_t connection, side;
    struct loan rx, tx;
};

/* Bytes from one end to the other. */
struct pipe {
    uint8_t *bytes;
    size_t at, len;
    uint64_t last_ns; /* arrival of what was written last: order is kept */
    uint64_t deaf_until_ns;
    bool scheduled, blocked, ending;
};

struct connection {
    struct end ends[2];
    struct pipe pipes[2]; /* [i]: from end i */
    bool dialing;
};

enum { PIPE_BYTES = 64 << 10 };

struct pc_world {
    struct pc_world_hooks hooks;
    uint64_t now_ns, order, events, hash, state;
    uint32_t rtt_us, staging_bytes;
    bool rated; /* bandwidths are told too */
    bool io_threads; /* bytes of links move while machines hear of other things */
    struct event *heap;
    size_t count, capacity;
    struct pc_process processes[PC_WORLD_PROCESSES_MAX];
    struct connection *connections;
    size_t connection_count, connection_capacity;
    struct pc_ring_job *search; /* of the master, answered already; NULL: none */
};

/* Chance -------------------------------------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014). */
uint64_t pc_world_random(struct pc_world *world) {
    uint64_t z = world->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t pc_world_below(struct pc_world *world, uint64_t below) {
    return below == 0 ? 0 : pc_world_random(world) % below;
}

static void fill_random(void *state, void *out, size_t len_bytes) {
    uint8_t *bytes = out;
    for (size_t i = 0; i < len_bytes; i++) bytes[i] = (uint8_t)pc_world_random(state);
}

struct pc_random pc_world_random_source(struct pc_world *world) {
    return (struct pc_random){fill_random, world};
}

/* Events -------------------------------------------------------------------------------------------------------- */

static bool before(const struct event *a, const struct event *b) {
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void push(struct pc_world *world, uint64_t at_ns, enum event_kind kind, uint32_t a, uint32_t b) {
    void *items = world->heap;
    if (!pc_grow(&items, &world->capacity, world->count + 1, sizeof *world->heap)) return;
    world->heap = items;
    const struct event event = {pc_max_u64(at_ns, world->now_ns), world->order++, kind, a, b};
    size_t i = world->count++;
    for (; i > 0 && before(&event, &world->heap[(i - 1) / 2]); i = (i - 1) / 2) world->heap[i] = world->heap[(i - 1) / 2];
    world->heap[i] = event;
}

static struct event pop(struct pc_world *world) {
    const struct event top = world->heap[0], last = world->heap[--world->count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= world->count) break;
        if (child + 1 < world->count && before(&world->heap[child + 1], &world->heap[child])) child++;
        if (!before(&world->heap[child], &last)) break;
        world->heap[i] = world->heap[child];
        i = child;
    }
    if (world->count > 0) world->heap[i] = last;
    return top;
}

void pc_world_alarm(struct pc_world *world, uint64_t at_ns, uint32_t what, uint32_t which) {
    push(world, at_ns, EVENT_ALARM, what, which);
}

/* Byte streams -------------------------------------------------------------------------------------------------- */

static void recall(struct pc_stream *stream);

static void bind(struct pc_world *world, uint32_t index, uint32_t side, struct pc_stream *stream) {
    struct end *end = &world->connections[index].ends[side];
    end->stream = stream;
    end->port = pc_calloc(1, sizeof *end->port);
    if (end->port == NULL) abort();
    *end->port = (struct port){.world = world, .connection = index, .side = side};
    stream->driver = end->port;
    stream->recall = recall;
}

static void schedule(struct pc_world *world, uint32_t index, uint32_t side) {
    struct pipe *pipe = &world->connections[index].pipes[side];
    if (pipe->scheduled) return;
    pipe->scheduled = true;
    const uint64_t latency_ns = 20000 + pc_world_below(world, 180000);
    const uint64_t at_ns = pc_max_u64(pc_max_u64(world->now_ns + latency_ns, pipe->last_ns), pipe->deaf_until_ns);
    pipe->last_ns = at_ns;
    push(world, at_ns, EVENT_DELIVER, index, side);
}

static size_t put(struct pipe *pipe, const struct pc_span *spans, int count) {
    size_t taken = 0;
    if (pipe->bytes == NULL) pipe->bytes = malloc(PIPE_BYTES);
    if (pipe->bytes == NULL) abort();
    if (pipe->at > 0) memmove(pipe->bytes, pipe->bytes + pipe->at, pipe->len);
    pipe->at = 0;
    for (int i = 0; i < count; i++) {
        const size_t len = pc_min_size(spans[i].len_bytes, PIPE_BYTES - pipe->len);
        memcpy(pipe->bytes + pipe->len, spans[i].data, len);
        pipe->len += len;
        taken += len;
    }
    return taken;
}

static size_t take(struct pipe *pipe, const struct pc_span *spans, int count, size_t most_bytes) {
    size_t moved = 0;
    most_bytes = pc_min_size(most_bytes, pipe->len);
    for (int i = 0; i < count && moved < most_bytes; i++) {
        const size_t len = pc_min_size(spans[i].len_bytes, most_bytes - moved);
        memcpy(spans[i].data, pipe->bytes + pipe->at, len);
        pipe->at += len;
        pipe->len -= len;
        moved += len;
    }
    return moved;
}

/* I/O threads --------------------------------------------------------------------------------------------------- */

static void move(struct port *port, struct loan *loan) {
    struct connection *connection = &port->world->connections[port->connection];
    if (!loan->out || loan->moved) return;
    loan->moved = true;
    loan->moved_bytes = loan == &port->tx ? put(&connection->pipes[port->side], loan->spans, loan->count)
                                          : take(&connection->pipes[1 - port->side], loan->spans, loan->count, loan->most_bytes);
    if (loan == &port->tx && loan->moved_bytes > 0) schedule(port->world, port->connection, port->side);
}

static void recall(struct pc_stream *stream) {
    struct port *port = stream->driver;
    move(port, &port->rx);
    move(port, &port->tx);
}

/* Sometimes, and only where production does: a link's data. False: the bytes are to be moved at once. */
static bool lend(struct port *port, struct loan *loan, const struct pc_stream *stream, const struct pc_span *spans,
                 int count, size_t most_bytes) {
    struct pc_world *world = port->world;
    if (!world->io_threads || stream->shared[0] == NULL || pc_world_below(world, 2) == 0) return false;
    *loan = (struct loan){.out = true, .count = count, .most_bytes = most_bytes};
    memcpy(loan->spans, spans, (size_t)count * sizeof *spans);
    push(world, world->now_ns + pc_world_below(world, 300000), EVENT_MOVED, port->connection,
         port->side << 1 | (loan == &port->tx ? 1u : 0u));
    return true;
}

/* Returns whether more may go now. A thread can have found the pipe full that has room again. */
static bool sent(struct port *port, struct pc_process *process, struct pc_stream *stream, size_t taken) {
    struct pc_world *world = port->world;
    process->machine->ops->sent(process->machine, stream, taken, world->now_ns);
    struct pipe *pipe = &world->connections[port->connection].pipes[port->side];
    pipe->blocked = taken == 0 && pipe->len == PIPE_BYTES;
    return !pipe->blocked;
}

/* Takes what the stream offers while the pipe has room. */
static void drain(struct pc_world *world, struct pc_process *process, struct pc_stream *stream) {
    struct port *port = stream->driver;
    while (!port->tx.out) {
        struct pc_span spans[PC_TX_SPANS_MAX];
        const int count = pc_stream_tx_spans(stream, spans, world->now_ns);
        if (count == 0) {
            stream->write_wanted = false;
            return;
        }
        if (lend(port, &port->tx, stream, spans, count, 0)) return;
        const size_t taken = put(&world->connections[port->connection].pipes[port->side], spans, count);
        if (taken > 0) schedule(world, port->connection, port->side);
        if (!sent(port, process, stream, taken)) return;
    }
}

static void end_of(struct pc_world *world, uint32_t index, uint32_t side, uint64_t at_ns) {
    push(world, at_ns, EVENT_CLOSED, index, side);
}

static void close_end(struct pc_world *world, struct pc_process *process, struct pc_stream *stream) {
    struct port *port = stream->driver;
    struct connection *connection = port != NULL ? &world->connections[port->connection] : NULL;
    if (connection != NULL && connection->ends[port->side].stream == stream) {
        const uint32_t index = port->connection, side = port->side;
        port->rx.out = false;
        if (port->tx.out) {
            port->tx.out = false;
            (void)sent(port, process, stream, port->tx.moved_bytes);
        }
        if (connection->ends[1 - side].stream != NULL && stream->open) drain(world, process, stream);
        connection->ends[side].stream = NULL;
        connection->pipes[side].ending = true;
        schedule(world, index, side);
    }
    pc_stream_destroy(stream);
}

/* What the machines are told of a connection: plans depend on it, delays do not. */
static void tell_measured(struct pc_world *world, struct pc_stream *stream, uint32_t from, uint32_t to) {
    const uint32_t ends[2] = {from, to}, pair[2] = {from < to ? from : to, from < to ? to : from};
    stream->rtt_us = world->rtt_us;
    /* Of so many members, the first ring found is seldom the best: those beyond are at different distances. */
    if (pair[1] > PC_RING_EXACT_MAX) stream->rtt_us += (uint32_t)(pc_digest64(pair, sizeof pair) % world->rtt_us);
    if (world->rated) stream->bytes_per_ms = 1000 + (uint32_t)(pc_digest64(ends, sizeof ends) % 100000);
}

static uint32_t new_connection(struct pc_world *world) {
    void *items = world->connections;
    if (world->connection_count == 0) world->connection_count = 1; /* index 0 stays unused: no driver pointer is NULL */
    if (!pc_grow(&items, &world->connection_capacity, world->connection_count + 1, sizeof *world->connections)) abort();
    world->connections = items;
    memset(&world->connections[world->connection_count], 0, sizeof *world->connections);
    return (uint32_t)world->connection_count++;
}

static struct pc_address address_of(uint32_t slot) {
    return (struct pc_address){.family = 4, .port = (uint16_t)(1000 + slot), .ip = {10, 0, 0, (uint8_t)slot}};
}

static void dial(struct pc_world *world, struct pc_process *process, const struct pc_action *action) {
    const uint32_t index = new_connection(world);
    struct connection *connection = &world->connections[index];
    connection->dialing = true;
    connection->ends[0].slot = process->slot;
    connection->ends[1].slot = action->address_count == 0 ? 0 : action->addresses[0].ip[3];
    bind(world, index, 0, action->stream);
    action->stream->remote = address_of(connection->ends[1].slot);
    push(world, world->now_ns + 50000 + pc_world_below(world, 300000), EVENT_DIALED, index, 0);
}

static void carry_out(struct pc_process *process, const struct pc_action *action) {
    struct pc_world *world = process->world;
    switch (action->kind) {
    case PC_ACTION_DIAL: dial(world, process, action); break;
    case PC_ACTION_WRITE: drain(world, process, action->stream); break;
    case PC_ACTION_CLOSE: close_end(world, process, action->stream); break;
    case PC_ACTION_COMPLETE: world->hooks.completed(world->hooks.context, process, action->call); break;
    case PC_ACTION_DIAL_BACK:
        push(world, world->now_ns + 200000, EVENT_DIAL_BACK, (uint32_t)action->id, action->addresses[0].ip[3]);
        break;
    case PC_ACTION_SEARCH:
        world->search = action->job;
        pc_ring_job_run(world->search);
        push(world, world->now_ns + pc_world_below(world, 200 * PC_NS_PER_MS), EVENT_SEARCHED, 0, 0);
        break;
    }
}

void pc_world_settle(struct pc_process *process) {
    const struct pc_action *next;
    while (process->alive && (next = pc_actions_next(&process->machine->actions)) != NULL) {
        const struct pc_action action = *next;
        carry_out(process, &action);
    }
    if (!process->alive) return;
    const uint64_t due_ns = process->machine->ops->deadline(process->machine);
    if (due_ns < process->tick_ns) {
        process->tick_ns = due_ns;
        push(process->world, due_ns, EVENT_TICK, process->slot, 0);
    }
    process->world->hooks.after_event(process->world->hooks.context, process);
}

void pc_world_post(struct pc_process *process, struct pc_call *call) {
    pc_member_post(process->member, call, process->world->now_ns);
}

/* Events of the world ------------------------------------------------------------------------------------------- */

static bool deferred(struct pc_world *world, const struct pc_process *process, const struct event *event) {
    if (process->paused_until_ns <= world->now_ns) return false;
    push(world, process->paused_until_ns, event->kind, event->a, event->b);
    return true;
}

/* False: the process has ended. */
static bool received(struct pc_world *world, struct pc_process *process, struct pc_stream *stream, size_t len_bytes) {
    world->hash = (world->hash ^ (len_bytes + process->slot)) * 0x100000001b3ull;
    process->machine->ops->received(process->machine, stream, len_bytes, world->now_ns);
    pc_world_settle(process);
    return process->alive;
}

/* From side from of a connection: goes on with what is left, and lets the sender go on. */
static void delivered(struct pc_world *world, uint32_t index, uint32_t from) {
    const struct connection *connection = &world->connections[index];
    struct pipe *pipe = &world->connections[index].pipes[from];
    if (pipe->len > 0) {
        schedule(world, index, from);
    } else if (pipe->ending) {
        end_of(world, index, from, world->now_ns + pc_world_below(world, 100000));
    }
    struct pc_stream *stream = connection->ends[from].stream;
    if (!pipe->blocked || stream == NULL) return;
    pipe->blocked = false;
    struct pc_process *sender = &world->processes[connection->ends[from].slot];
    drain(world, sender, stream);
    pc_world_settle(sender);
}

static void on_deliver(struct pc_world *world, const struct event *event) {
    struct connection *connection = &world->connections[event->a];
    struct pipe *pipe = &connection->pipes[event->b];
    const struct end *to = &connection->ends[1 - event->b];
    struct pc_process *process = &world->processes[to->slot];
    if (pipe->deaf_until_ns > world->now_ns) {
        if (pipe->deaf_until_ns != UINT64_MAX) push(world, pipe->deaf_until_ns, EVENT_DELIVER, event->a, event->b);
        return;
    }
    if (process->alive && to->stream != NULL && deferred(world, process, event)) return;
    pipe->scheduled = false;
    if (to->stream == NULL || !process->alive) {
        pipe->len = 0;
        return;
    }
    /* Split anywhere: mostly all that is there, sometimes a few bytes. */
    const size_t budget = pc_world_below(world, 4) == 0 ? 1 + pc_world_below(world, 200) : pipe->len;
    struct pc_span spans[PC_RX_SPANS_MAX];
    size_t left = pc_min_size(budget, pipe->len);
    while (left > 0 && to->stream != NULL) {
        const int count = pc_stream_rx_spans(to->stream, spans);
        if (count > 0 && lend(to->port, &to->port->rx, to->stream, spans, count, left)) {
            pipe->scheduled = true;
            return;
        }
        const size_t moved = take(pipe, spans, count, left);
        left -= moved;
        if (moved == 0) break;
        if (!received(world, process, to->stream, moved)) return;
        connection = &world->connections[event->a];
        pipe = &connection->pipes[event->b];
        to = &connection->ends[1 - event->b];
    }
    delivered(world, event->a, event->b);
}

/* An I/O thread is through. */
static void on_moved(struct pc_world *world, const struct event *event) {
    const uint32_t side = event->b >> 1;
    const bool tx = (event->b & 1) != 0;
    const struct end *end = &world->connections[event->a].ends[side];
    struct pc_process *process = &world->processes[end->slot];
    struct loan *loan = tx ? &end->port->tx : &end->port->rx;
    if (!loan->out || end->stream == NULL || !process->alive || deferred(world, process, event)) return;
    const bool before = loan->moved;
    move(end->port, loan);
    if (!before && pc_world_below(world, 2) == 0) {
        /* It waits for its turn to tell. The other end may have answered by then. */
        push(world, world->now_ns + pc_world_below(world, 500000), EVENT_MOVED, event->a, event->b);
        return;
    }
    loan->out = false;
    if (tx) {
        if (sent(end->port, process, end->stream, loan->moved_bytes)) drain(world, process, end->stream);
        pc_world_settle(process);
        return;
    }
    world->connections[event->a].pipes[1 - side].scheduled = false;
    if (loan->moved_bytes > 0 && !received(world, process, end->stream, loan->moved_bytes)) return;
    delivered(world, event->a, 1 - side);
}

/* The other end sees that side event->b has closed. */
static void on_closed(struct pc_world *world, const struct event *event) {
    const struct end *end = &world->connections[event->a].ends[1 - event->b];
    struct pc_process *process = &world->processes[end->slot];
    if (end->stream == NULL || !process->alive || deferred(world, process, event)) return;
    process->machine->ops->closed(process->machine, end->stream, 0, world->now_ns);
    pc_world_settle(process);
}

static void on_dialed(struct pc_world *world, const struct event *event) {
    struct connection *connection = &world->connections[event->a];
    struct pc_process *from = &world->processes[connection->ends[0].slot];
    struct pc_process *to = &world->processes[connection->ends[1].slot];
    if (!from->alive || connection->ends[0].stream == NULL || deferred(world, from, event)) return;
    struct pc_address address = address_of(from->slot);
    struct pc_stream *stream =
        to->alive && to->machine != NULL ? to->machine->ops->accept(to->machine, &address, world->now_ns) : NULL;
    connection = &world->connections[event->a];
    if (stream == NULL) {
        if (to->alive) pc_world_settle(to);
        from->machine->ops->closed(from->machine, world->connections[event->a].ends[0].stream, 111, world->now_ns);
    } else {
        bind(world, event->a, 1, stream);
        tell_measured(world, stream, to->slot, from->slot);
        pc_world_settle(to);
        if (world->connections[event->a].ends[0].stream != NULL) {
            tell_measured(world, world->connections[event->a].ends[0].stream, from->slot, to->slot);
            from->machine->ops->opened(from->machine, world->connections[event->a].ends[0].stream, false, world->now_ns);
        }
    }
    pc_world_settle(from);
}

static void on_dial_back(struct pc_world *world, const struct event *event) {
    struct pc_process *master = &world->processes[0];
    if (!master->alive || deferred(world, master, event)) return;
    const bool there = world->processes[event->b].alive;
    pc_master_dialed_back(master->master, event->a, there ? 0 : 111, world->now_ns);
    pc_world_settle(master);
}

static void on_searched(struct pc_world *world, const struct event *event) {
    struct pc_process *master = &world->processes[0];
    if (!master->alive || deferred(world, master, event)) return;
    struct pc_ring_job *job = world->search;
    world->search = NULL;
    pc_master_searched(master->master, job);
    pc_world_settle(master);
}

static void on_tick(struct pc_world *world, const struct event *event) {
    struct pc_process *process = &world->processes[event->a];
    if (!process->alive || deferred(world, process, event)) return;
    if (process->tick_ns > world->now_ns) return; /* an earlier one took its place */
    process->tick_ns = UINT64_MAX;
    if (process->machine->ops->deadline(process->machine) <= world->now_ns) {
        process->machine->ops->tick(process->machine, world->now_ns);
    }
    pc_world_settle(process);
}

void pc_world_run(struct pc_world *world, uint64_t until_ns, const bool *stop) {
    while (world->count > 0 && !*stop && world->heap[0].at_ns <= until_ns) {
        const struct event event = pop(world);
        world->now_ns = event.at_ns;
        world->events++;
        switch (event.kind) {
        case EVENT_DELIVER: on_deliver(world, &event); break;
        case EVENT_TICK: on_tick(world, &event); break;
        case EVENT_ALARM: world->hooks.alarm(world->hooks.context, event.a, event.b); break;
        case EVENT_DIALED: on_dialed(world, &event); break;
        case EVENT_CLOSED: on_closed(world, &event); break;
        case EVENT_DIAL_BACK: on_dial_back(world, &event); break;
        case EVENT_SEARCHED: on_searched(world, &event); break;
        case EVENT_MOVED: on_moved(world, &event); break;
        }
    }
}

/* Processes and faults ------------------------------------------------------------------------------------------ */

struct pc_process *pc_world_start(struct pc_world *world, uint32_t slot, uint32_t group) {
    struct pc_process *process = &world->processes[slot];
    memset(process, 0, sizeof *process);
    process->world = world;
    process->slot = slot;
    process->tick_ns = UINT64_MAX;
    if (slot == 0) {
        const struct pc_master_config config = {
            .name = "master",
            .incarnation = 1,
            .dead_timeout_ns = 5 * PC_NS_PER_S,
            .join_timeout_ns = 600 * PC_NS_PER_S,
            .probe_bytes = 64 << 10,
            .search_steps = PC_RING_BUDGET,
            .handshake_timeout_ns = 5 * PC_NS_PER_S,
            .random = pc_world_random_source(world),
        };
        process->master = pc_master_create(&config, world->now_ns);
        if (process->master == NULL) return NULL;
        process->machine = pc_master_machine(process->master);
    } else {
        struct pc_member_config config = {
            .staging_bytes = world->staging_bytes,
            .group = group,
            .stripes = 1 + (uint32_t)(pc_world_below(world, 4) == 0),
            .host = "sim",
            .pid = slot,
            .dead_timeout_ns = 5 * PC_NS_PER_S,
            .op_timeout_ns = 1800 * PC_NS_PER_S,
            .handshake_timeout_ns = 5 * PC_NS_PER_S,
            .random = pc_world_random_source(world),
        };
        memcpy(config.name, "peer 00", 8);
        config.name[5] = (char)('0' + slot / 10);
        config.name[6] = (char)('0' + slot % 10);
        process->member = pc_member_create(&config, world->now_ns);
        if (process->member == NULL) return NULL;
        process->machine = pc_member_machine(process->member);
        const struct pc_address address = address_of(slot);
        pc_member_set_addresses(process->member, &address, 1);
    }
    process->alive = true;
    pc_world_settle(process);
    return process;
}

struct pc_process *pc_world_process(struct pc_world *world, uint32_t slot) {
    return &world->processes[slot];
}

static void destroy_machine(struct pc_process *process) {
    process->alive = false;
    pc_member_destroy(process->member);
    pc_master_destroy(process->master);
    process->member = NULL;
    process->master = NULL;
    process->machine = NULL;
}

void pc_world_crash(struct pc_process *process, bool silent) {
    struct pc_world *world = process->world;
    for (uint32_t i = 1; i < world->connection_count; i++) {
        for (uint32_t side = 0; side < 2; side++) {
            struct end *end = &world->connections[i].ends[side];
            if (end->slot != process->slot || end->stream == NULL) continue;
            end->stream = NULL;
            if (silent) {
                world->connections[i].pipes[side].deaf_until_ns = UINT64_MAX;
                continue;
            }
            world->connections[i].pipes[side].ending = true;
            schedule(world, i, side);
        }
    }
    destroy_machine(process);
}

void pc_world_pause(struct pc_process *process, uint64_t duration_ns) {
    process->paused_until_ns = pc_max_u64(process->paused_until_ns, process->world->now_ns + duration_ns);
}

static bool between(const struct connection *connection, uint32_t a, uint32_t b) {
    const uint32_t x = connection->ends[0].slot, y = connection->ends[1].slot;
    return connection->ends[0].stream != NULL && connection->ends[1].stream != NULL &&
           ((x == a && y == b) || (x == b && y == a));
}

void pc_world_cut(struct pc_world *world, uint32_t a, uint32_t b) {
    for (uint32_t i = 1; i < world->connection_count; i++) {
        struct connection *connection = &world->connections[i];
        if (!between(connection, a, b) || pc_world_below(world, 3) == 0) continue;
        for (uint32_t side = 0; side < 2; side++) {
            connection->pipes[side].len = 0;
            end_of(world, i, side, world->now_ns + pc_world_below(world, 2 * PC_NS_PER_MS));
        }
        return;
    }
}

void pc_world_deafen(struct pc_world *world, uint32_t a, uint32_t b, uint64_t duration_ns) {
    for (uint32_t i = 1; i < world->connection_count; i++) {
        struct connection *connection = &world->connections[i];
        if (!between(connection, a, b)) continue;
        const uint32_t side = connection->ends[0].slot == a ? 0 : 1;
        connection->pipes[side].deaf_until_ns = duration_ns == 0 ? UINT64_MAX : world->now_ns + duration_ns;
    }
}

/* Life ---------------------------------------------------------------------------------------------------------- */

struct pc_world *pc_world_create(uint64_t seed, bool io_threads, const struct pc_world_hooks *hooks) {
    struct pc_world *world = pc_calloc(1, sizeof *world);
    if (world == NULL) return NULL;
    world->hooks = *hooks;
    world->state = pc_digest64(&seed, sizeof seed);
    world->rtt_us = seed % 2 == 0 ? 100 : 50000;
    world->staging_bytes = seed % 8 == 7 ? 16 << 20 : 1; /* mostly as little as may be: credit runs out all the time */
    world->rated = seed % 3 != 0;
    world->io_threads = io_threads;
    world->hash = 0xcbf29ce484222325ull;
    world->now_ns = PC_NS_PER_S;
    return world;
}

void pc_world_destroy(struct pc_world *world) {
    if (world == NULL) return;
    for (uint32_t slot = 0; slot < PC_WORLD_PROCESSES_MAX; slot++) {
        if (world->processes[slot].alive) destroy_machine(&world->processes[slot]);
    }
    for (uint32_t i = 1; i < world->connection_count; i++) {
        free(world->connections[i].pipes[0].bytes);
        free(world->connections[i].pipes[1].bytes);
        free(world->connections[i].ends[0].port);
        free(world->connections[i].ends[1].port);
    }
    pc_ring_job_destroy(world->search);
    free(world->connections);
    free(world->heap);
    free(world);
}

uint64_t pc_world_now(const struct pc_world *world) {
    return world->now_ns;
}

uint64_t pc_world_events(const struct pc_world *world) {
    return world->events;
}

uint64_t pc_world_hash(const struct pc_world *world) {
    return world->hash;
}
