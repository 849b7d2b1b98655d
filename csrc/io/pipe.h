/*
 * K4: one direction of a connection through shared memory: a ring of bytes with one writer and one reader, each in its
 * own process. Nothing here waits: an end that is to sleep says so in the shared header, and the other end is told when
 * it must be woken. How it is woken is the caller's affair.
 */
#ifndef PC_PIPE_H
#define PC_PIPE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In shared memory, all zero in the beginning. Positions count bytes and never wrap. */
struct pc_pipe_shared {
    _Alignas(64) _Atomic uint64_t written; /* the writer's */
    _Atomic uint64_t base; /* the writer's: the position whose byte is the ring's first */
    _Alignas(64) _Atomic uint64_t taken; /* the reader's */
    /* Set by the end that goes to sleep, cleared by the one that wakes it, or by itself if it stays awake. */
    _Alignas(64) _Atomic uint32_t reader_sleeps;
    _Alignas(64) _Atomic uint32_t writer_sleeps;
};

/* One end's view. Its own position is private: what the other end could do to the shared copy does not matter. */
struct pc_pipe {
    struct pc_pipe_shared *shared;
    uint8_t *data;
    size_t size_bytes;
    uint64_t written, base, taken; /* own positions, and the other end's as last seen */
};

void pc_pipe_init(struct pc_pipe *pipe, struct pc_pipe_shared *shared, uint8_t *data, size_t size_bytes);

/*
 * Bytes that were copied, up to len_bytes: less means full or empty. -1: the other end's position cannot be true, and the
 * pipe is of no use any more. The other end sees them after pc_pipe_publish_*.
 */
ptrdiff_t pc_pipe_put(struct pc_pipe *pipe, const void *data, size_t len_bytes);
/* cold: data need not pass the cache. */
ptrdiff_t pc_pipe_get(struct pc_pipe *pipe, void *data, size_t len_bytes, bool cold);

/* True, once: the other end sleeps and has enough to do to be woken. */
bool pc_pipe_publish_written(struct pc_pipe *pipe);
bool pc_pipe_publish_taken(struct pc_pipe *pipe);

/* Before sleeping: false if there is something to do by now. After true the other end wakes this one when there is. */
bool pc_pipe_reader_may_sleep(struct pc_pipe *pipe);
bool pc_pipe_writer_may_sleep(struct pc_pipe *pipe);

#endif
