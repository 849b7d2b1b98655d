/*
 * K4: how the bytes of one connection move. The rest of the driver knows only these operations, so that TCP and shared
 * memory stand side by side, and TLS can join them.
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
    /*
     * NULL: the descriptor is readable while there is something to read, and writable while there is room. Else it is
     * readable when the other end has done something; it is to be called first then, and afterwards both directions are
     * tried. Only an end that has read until EAGAIN, or whose write came short, is woken again. Such a descriptor is always
     * writable.
     */
    void (*woken)(struct pc_transport *transport);
    /* Nothing more will be written: the other end reads what is under way, then the end. */
    void (*finish)(struct pc_transport *transport);
    void (*close)(struct pc_transport *transport);
};

struct pc_transport {
    const struct pc_transport_ops *ops;
    int fd; /* to be polled; -1: closed */
    bool cold; /* the memory of the next read's first span is not read again soon */
    void *state; /* the transport's own */
};

/* Takes over a connected, non-blocking socket. */
void pc_transport_tcp(struct pc_transport *transport, int fd);

#endif
