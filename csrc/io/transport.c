/*
 * TCP as a transport: readv and sendmsg on a non-blocking socket. MSG_NOSIGNAL, because a library must not let SIGPIPE
 * end its user; where that flag is missing the socket carries SO_NOSIGPIPE (sock.c).
 */
#define _DEFAULT_SOURCE 1
#include "io/transport.h"

#include "io/sock.h"

#include <assert.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

static_assert(sizeof(struct pc_span) == sizeof(struct iovec), "spans are handed to the kernel as they are");
static_assert(offsetof(struct pc_span, data) == offsetof(struct iovec, iov_base), "spans are laid out like iovec");
static_assert(offsetof(struct pc_span, len_bytes) == offsetof(struct iovec, iov_len), "spans are laid out like iovec");

/* struct msghdr wants a pointer to non-const, which the kernel only reads. */
union spans {
    const struct pc_span *in;
    struct iovec *out;
};

static ptrdiff_t tcp_read(struct pc_transport *transport, const struct pc_span *spans, int count) {
    const union spans iov = {.in = spans};
    ptrdiff_t len;
    do {
        len = count == 1 ? recv(transport->fd, spans[0].data, spans[0].len_bytes, 0)
                         : readv(transport->fd, iov.out, count);
    } while (len < 0 && errno == EINTR);
    return len;
}

static ptrdiff_t tcp_write(struct pc_transport *transport, const struct pc_span *spans, int count) {
    const union spans iov = {.in = spans};
    struct msghdr message = {.msg_iov = iov.out};
    message.msg_iovlen = (__typeof__(message.msg_iovlen))count;
    ptrdiff_t len;
    do {
        len = sendmsg(transport->fd, &message, MSG_NOSIGNAL);
    } while (len < 0 && errno == EINTR);
    return len;
}

static void tcp_finish(struct pc_transport *transport) {
    (void)shutdown(transport->fd, SHUT_WR);
}

static void tcp_close(struct pc_transport *transport) {
    pc_sock_close(transport->fd);
    transport->fd = -1;
}

void pc_transport_tcp(struct pc_transport *transport, int fd) {
    static const struct pc_transport_ops tcp = {
        .name = "tcp",
        .read = tcp_read,
        .write = tcp_write,
        .finish = tcp_finish,
        .close = tcp_close,
    };
    *transport = (struct pc_transport){.ops = &tcp, .fd = fd};
}
