/* K4: an open connection: a machine's stream on a transport. Moves bytes, and reports the end. */
#ifndef PC_CONN_H
#define PC_CONN_H

#include "io/loop.h"
#include "io/pace.h"
#include "io/transport.h"

enum pc_conn_state {
    PC_CONN_OPEN,
    PC_CONN_ENDED, /* the machine was told and has not given up the stream yet */
    PC_CONN_LINGERING, /* no stream any more; reads until the other end has seen our end */
    PC_CONN_DEAD /* waits to be freed */
};

struct pc_conn {
    struct pc_list node;
    struct pc_loop *loop;
    struct pc_stream *stream;
    struct pc_transport transport;
    struct pc_watch *watch;
    struct pc_alarm *alarm; /* while lingering */
    enum pc_conn_state state;
    int events;
    struct pc_crew *crew; /* that serves it; NULL: watch does */
    uint64_t slot; /* the crew's name for it */
    int armed; /* of events, with the crew */
    bool reading, writing; /* a thread of the crew does, until it has passed the gate again and told how many bytes moved */
    atomic_uint moving; /* threads for which the system has memory of the stream now */
    uint32_t users; /* calls in which a thread is that passes the gate meanwhile */
    bool write_blocked;
    int write_errno; /* of a write that failed beside a read; 0: none */
    bool read_due; /* there is more to read, and the descriptor does not say so */
    uint64_t measured_ns, measured_bytes; /* the last look at what TCP has measured: when, and bytes sent until then */
    struct pc_pace pace;
    size_t drained_bytes; /* while lingering */
};

/* Takes over the transport, even on failure; sets stream->driver. NULL: no memory. */
struct pc_conn *pc_conn_create(struct pc_loop *loop, struct pc_stream *stream, const struct pc_transport *transport);
/* Writes until there is nothing left or the transport takes no more. */
void pc_conn_write(struct pc_conn *conn);
/* PC_ACTION_CLOSE. The stream is the caller's to destroy. */
void pc_conn_close(struct pc_conn *conn);
/* At once and without manners; streams stay the machine's. */
void pc_conn_close_all(struct pc_loop *loop);
/* The descriptor is ready for events. */
void pc_conn_ready(struct pc_conn *conn, int events);
/* Frees those that are dead. Not from within a connection's own callback. */
void pc_conn_reap(struct pc_loop *loop);

#endif
