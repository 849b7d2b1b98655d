/*
 * K4: how the bytes of one connection move. The rest of the driver knows only these four operations, so that TLS and
 * shared memory can stand beside TCP without a change elsewhere.
 */
#ifndef PC_TRANSPORT_H
#define PC_TRANSPORT_H

#include "proto/stream.h"

#include <stddef.h>

struct pc_transport;

struct pc_transport_ops {
    const char *name;
    /* Bytes moved; -1 with errno (EAGAIN: none now). Reading gives 0 at the other end's end. Neither blocks. */
    ptrdiff_t (*read)(struct pc_transport *transport, const struct pc_span *spans, int count);
    ptrdiff_t (*write)(struct pc_transport *transport, const struct pc_span *spans, int count);
    /* Nothing more will be written: the other end reads what is under way, then the end. */
    void (*finish)(struct pc_transport *transport);
    void (*close)(struct pc_transport *transport);
};

struct pc_transport {
    const struct pc_transport_ops *ops;
    int fd; /* to be polled; -1: closed */
};

/* Takes over a connected, non-blocking socket. */
void pc_transport_tcp(struct pc_transport *transport, int fd);

#endif
