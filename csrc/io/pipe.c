/*
 * The ring. Positions are published with release and read with acquire, so that bytes are there before they are counted
 * and gone before their place is used again.
 *
 * Sleeping is a question of who looks last. An end sets its flag and then looks at the other's position; the other
 * publishes its position and then looks at the flag. Both have a full fence in between, so at least one of them sees what
 * the other did. A writer is woken when half of the ring is free, not for every piece: the reader goes on until the ring
 * is empty, so that always comes.
 *
 * A ring that is empty begins again at its first byte, once some bytes have gone by: little traffic stays in few pages and
 * few lines of the cache. The base can only move when the reader has published that it took everything, so it belongs to
 * all bytes that a reader sees with it.
 *
 * The header can be written by a process that means ill. What the other end says is its position, which counts only if it
 * leaves between none and all of the ring filled, and the base, which is taken modulo the ring. Flags can at worst cost
 * wake-ups.
 */
#include "io/pipe.h"

#include "base/checked.h"
#include "math/copy.h"

void pc_pipe_init(struct pc_pipe *pipe, struct pc_pipe_shared *shared, uint8_t *data, size_t size_bytes) {
    *pipe = (struct pc_pipe){.shared = shared, .data = data, .size_bytes = size_bytes};
}

static bool possible(const struct pc_pipe *pipe) {
    return pipe->written - pipe->taken <= pipe->size_bytes;
}

static size_t room(const struct pc_pipe *pipe) {
    return pipe->size_bytes - (size_t)(pipe->written - pipe->taken);
}

static size_t filled(const struct pc_pipe *pipe) {
    return (size_t)(pipe->written - pipe->taken);
}

/* A stream of payload goes on: looking for an empty ring at each piece would cost more than it brings. */
enum { LITTLE_BYTES = 4 << 10 };

static size_t place(const struct pc_pipe *pipe, uint64_t position) {
    return (size_t)((position - pipe->base) % pipe->size_bytes);
}

static void see_taken(struct pc_pipe *pipe) {
    pipe->taken = atomic_load_explicit(&pipe->shared->taken, memory_order_acquire);
}

static void see_written(struct pc_pipe *pipe) {
    pipe->written = atomic_load_explicit(&pipe->shared->written, memory_order_acquire);
    pipe->base = atomic_load_explicit(&pipe->shared->base, memory_order_relaxed);
}

static void begin_again(struct pc_pipe *pipe) {
    see_taken(pipe);
    if (pipe->taken != pipe->written) return;
    pipe->base = pipe->written;
    atomic_store_explicit(&pipe->shared->base, pipe->base, memory_order_relaxed);
}

ptrdiff_t pc_pipe_put(struct pc_pipe *pipe, const void *data, size_t len_bytes) {
    if (len_bytes < LITTLE_BYTES && pipe->written - pipe->base >= pipe->size_bytes / 16) begin_again(pipe);
    if (room(pipe) < len_bytes) see_taken(pipe);
    if (!possible(pipe)) return -1;
    const size_t len = pc_min_size(len_bytes, room(pipe));
    const size_t at = place(pipe, pipe->written);
    const size_t first = pc_min_size(len, pipe->size_bytes - at);
    pc_copy_anyhow(pipe->data + at, data, first);
    if (len > first) pc_copy_anyhow(pipe->data, (const uint8_t *)data + first, len - first);
    pipe->written += len;
    return (ptrdiff_t)len;
}

ptrdiff_t pc_pipe_get(struct pc_pipe *pipe, void *data, size_t len_bytes, bool cold) {
    void (*const copy)(void *, const void *, size_t) = cold ? pc_copy_past_cache : pc_copy_anyhow;
    if (filled(pipe) < len_bytes) see_written(pipe);
    if (!possible(pipe)) return -1;
    const size_t len = pc_min_size(len_bytes, filled(pipe));
    const size_t at = place(pipe, pipe->taken);
    const size_t first = pc_min_size(len, pipe->size_bytes - at);
    copy(data, pipe->data + at, first);
    if (len > first) copy((uint8_t *)data + first, pipe->data, len - first);
    pipe->taken += len;
    return (ptrdiff_t)len;
}

/* Takes the flag back, so that one sleep is ended by one wake-up. */
static bool take_flag(_Atomic uint32_t *flag) {
    return atomic_load_explicit(flag, memory_order_relaxed) != 0 &&
           atomic_exchange_explicit(flag, 0, memory_order_relaxed) != 0;
}

bool pc_pipe_publish_written(struct pc_pipe *pipe) {
    atomic_store_explicit(&pipe->shared->written, pipe->written, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    return take_flag(&pipe->shared->reader_sleeps);
}

bool pc_pipe_publish_taken(struct pc_pipe *pipe) {
    atomic_store_explicit(&pipe->shared->taken, pipe->taken, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&pipe->shared->writer_sleeps, memory_order_relaxed) == 0) return false;
    see_written(pipe);
    return possible(pipe) && room(pipe) >= pipe->size_bytes / 2 && take_flag(&pipe->shared->writer_sleeps);
}

bool pc_pipe_reader_may_sleep(struct pc_pipe *pipe) {
    atomic_store_explicit(&pipe->shared->reader_sleeps, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    see_written(pipe);
    if (pipe->written == pipe->taken) return true;
    atomic_store_explicit(&pipe->shared->reader_sleeps, 0, memory_order_relaxed);
    return false;
}

bool pc_pipe_writer_may_sleep(struct pc_pipe *pipe) {
    atomic_store_explicit(&pipe->shared->writer_sleeps, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    see_taken(pipe);
    if (possible(pipe) && room(pipe) < pipe->size_bytes / 2) return true;
    atomic_store_explicit(&pipe->shared->writer_sleeps, 0, memory_order_relaxed);
    return false;
}
