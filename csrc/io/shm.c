/*
 * The accepting end makes the memory, seals its size and sends its descriptor with a greeting; the dialling end checks
 * user, greeting, seals and size before it maps anything. Afterwards the socket carries only single bytes, the bells that
 * wake an end which sleeps, and its end is the end of the other process: a writer that was killed cannot hang a reader.
 * What is in the ring at that moment is still read.
 *
 * Copies are made and published in pieces, so that the other end works on one piece while this one copies the next. The
 * ring holds several segments: an end that is interrupted in a smaller one soon stops the other, and every stop costs two
 * wake-ups, which is more than the nearer cache of a smaller ring brings.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* memfd_create, accept4, struct ucred */
#endif
#include "io/shm.h"

#include "base/checked.h"
#include "io/fork.h"
#include "io/pipe.h"
#include "io/sock.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    RING_BYTES = 1 << 20,
    RING_MIN_BYTES = 64 << 10,
    RING_MAX_BYTES = 16 << 20,
    PIECE_BYTES = 32 << 10,
    HEADER_BYTES = 4096,
    LISTEN_BACKLOG = 256,
    SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
};

/* Version of what the memory holds. */
static const char greeting[8] = {'p', 'c', 'c', 'l', 's', 'h', 'm', '1'};

/* The beginning of the memory: the direction from the dialling end, then the other one. Two rings follow. */
struct header {
    struct pc_pipe_shared directions[2];
};

static_assert(sizeof(struct header) <= HEADER_BYTES, "the header has its place before the rings");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "no lock is shared with another process");

struct shm {
    void *memory;
    size_t len_bytes;
    struct pc_pipe rx, tx;
    bool ended; /* the other end has gone, or will write no more */
};

/* Moving bytes -------------------------------------------------------------------------------------------------- */

/* A bell that finds the socket full is not missing: there are others before it. */
static void ring_bell(const struct pc_transport *transport) {
    (void)send(transport->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void shm_woken(struct pc_transport *transport) {
    struct shm *shm = transport->state;
    char bells[64];
    ptrdiff_t len;
    do {
        len = recv(transport->fd, bells, sizeof bells, MSG_DONTWAIT);
    } while (len < 0 && errno == EINTR);
    shm->ended |= len == 0 || (len < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

/* Where in a list of spans the copying is. */
struct progress {
    const struct pc_span *spans;
    int count;
    bool cold; /* the first span is */
    size_t skip; /* of the first span */
    size_t done;
};

typedef ptrdiff_t (*copy_function)(struct pc_pipe *pipe, uint8_t *data, size_t len_bytes, bool cold);

static ptrdiff_t put(struct pc_pipe *pipe, uint8_t *data, size_t len_bytes, bool cold) {
    (void)cold;
    return pc_pipe_put(pipe, data, len_bytes);
}

static ptrdiff_t get(struct pc_pipe *pipe, uint8_t *data, size_t len_bytes, bool cold) {
    return pc_pipe_get(pipe, data, len_bytes, cold);
}

/* Copies at most a piece, over span borders; short when the ring is full or empty. -1: the pipe is broken. */
static ptrdiff_t copy_piece(struct pc_pipe *pipe, copy_function copy, struct progress *at) {
    size_t moved = 0;
    while (at->count > 0 && moved < PIECE_BYTES) {
        const size_t want = pc_min_size(at->spans->len_bytes - at->skip, PIECE_BYTES - moved);
        const ptrdiff_t len = copy(pipe, (uint8_t *)at->spans->data + at->skip, want, at->cold);
        if (len < 0) return -1;
        moved += (size_t)len;
        at->skip += (size_t)len;
        if (at->skip == at->spans->len_bytes) {
            at->spans++;
            at->count--;
            at->skip = 0;
            at->cold = false;
        }
        if ((size_t)len < want) break;
    }
    at->done += moved;
    return (ptrdiff_t)moved;
}

/* Until all is copied or the ring stops it; false: broken. */
static bool copy_all(struct pc_transport *transport, struct pc_pipe *pipe, copy_function copy, struct progress *at) {
    while (at->count > 0) {
        const ptrdiff_t len = copy_piece(pipe, copy, at);
        if (len < 0) return false;
        if (len == 0) return true;
        const bool wake = copy == put ? pc_pipe_publish_written(pipe) : pc_pipe_publish_taken(pipe);
        if (wake) ring_bell(transport);
    }
    return true;
}

static ptrdiff_t broken(void) {
    errno = EPROTO;
    return -1;
}

static ptrdiff_t shm_read(struct pc_transport *transport, const struct pc_span *spans, int count) {
    struct shm *shm = transport->state;
    struct progress at = {.spans = spans, .count = count, .cold = transport->cold};
    if (!copy_all(transport, &shm->rx, get, &at)) return broken();
    if (at.done > 0) return (ptrdiff_t)at.done;
    if (shm->ended) return 0;
    if (pc_pipe_reader_may_sleep(&shm->rx)) {
        errno = EAGAIN;
        return -1;
    }
    /* What has just been seen must be there. */
    return copy_all(transport, &shm->rx, get, &at) && at.done > 0 ? (ptrdiff_t)at.done : broken();
}

static ptrdiff_t shm_write(struct pc_transport *transport, const struct pc_span *spans, int count) {
    struct shm *shm = transport->state;
    struct progress at = {.spans = spans, .count = count};
    bool room_seen = false;
    for (;;) {
        const size_t before = at.done;
        if (!copy_all(transport, &shm->tx, put, &at)) return broken();
        if (at.count == 0) return (ptrdiff_t)at.done;
        if (room_seen && at.done == before) return broken(); /* room that is not there */
        if (pc_pipe_writer_may_sleep(&shm->tx)) break;
        room_seen = true;
    }
    if (at.done > 0) return (ptrdiff_t)at.done;
    errno = EAGAIN;
    return -1;
}

static void shm_finish(struct pc_transport *transport) {
    (void)shutdown(transport->fd, SHUT_WR);
}

static void shm_close(struct pc_transport *transport) {
    struct shm *shm = transport->state;
    (void)munmap(shm->memory, shm->len_bytes);
    free(shm);
    transport->state = NULL;
    pc_sock_close(transport->fd);
    transport->fd = -1;
}

static const struct pc_transport_ops ops = {
    .name = "shm",
    .read = shm_read,
    .write = shm_write,
    .woken = shm_woken,
    .finish = shm_finish,
    .close = shm_close,
};

bool pc_transport_is_shm(const struct pc_transport *transport) {
    return transport->ops == &ops;
}

/* Memory -------------------------------------------------------------------------------------------------------- */

/* Maps the memory of descriptor, whose size is sealed. */
static int map(int memory_fd, size_t len_bytes, int end, struct pc_transport *transport) {
    struct shm *shm = pc_calloc(1, sizeof *shm);
    if (shm == NULL) return ENOMEM;
    shm->memory = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    if (shm->memory == MAP_FAILED) {
        const int failure = errno;
        free(shm);
        return failure;
    }
    /* A child of this process has no business there. */
    (void)madvise(shm->memory, len_bytes, MADV_DONTFORK);
    shm->len_bytes = len_bytes;
    const size_t ring_bytes = (len_bytes - HEADER_BYTES) / 2;
    struct header *header = shm->memory;
    uint8_t *rings = (uint8_t *)shm->memory + HEADER_BYTES;
    pc_pipe_init(end == 0 ? &shm->tx : &shm->rx, &header->directions[0], rings, ring_bytes);
    pc_pipe_init(end == 0 ? &shm->rx : &shm->tx, &header->directions[1], rings + ring_bytes, ring_bytes);
    transport->ops = &ops;
    transport->state = shm;
    return 0;
}

static int make(struct pc_transport *transport, int *memory_fd_out) {
    const size_t len_bytes = HEADER_BYTES + 2 * (size_t)RING_BYTES;
    /* Beyond the limit ftruncate would raise SIGXFSZ, which ends processes. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < len_bytes) return EFBIG;
    const int memory_fd = memfd_create("pccl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory_fd < 0) return errno;
    int failure = ftruncate(memory_fd, (off_t)len_bytes) != 0 || fcntl(memory_fd, F_ADD_SEALS, SEALS) != 0 ? errno : 0;
    if (failure == 0) failure = map(memory_fd, len_bytes, 1, transport);
    if (failure != 0) {
        (void)close(memory_fd);
        return failure;
    }
    /* Nobody has looked yet, so both ends want to be woken by the first byte. */
    struct shm *shm = transport->state;
    (void)pc_pipe_reader_may_sleep(&shm->rx);
    (void)pc_pipe_reader_may_sleep(&shm->tx);
    *memory_fd_out = memory_fd;
    return 0;
}

/* A sealed size cannot change any more, so no access can lie beyond the memory. */
static int check(int memory_fd, size_t *len_bytes) {
    struct stat about;
    const int seals = fcntl(memory_fd, F_GET_SEALS);
    const int needed = F_SEAL_SHRINK | F_SEAL_GROW;
    if (seals < 0 || (seals & needed) != needed || fstat(memory_fd, &about) != 0) return EPROTO;
    if (about.st_size < HEADER_BYTES + 2 * RING_MIN_BYTES || about.st_size > HEADER_BYTES + 2 * RING_MAX_BYTES) {
        return EPROTO;
    }
    *len_bytes = (size_t)about.st_size;
    return (*len_bytes - HEADER_BYTES) % (2 * 64) == 0 ? 0 : EPROTO;
}

/* Sockets ------------------------------------------------------------------------------------------------------- */

/* Abstract names belong to the network namespace, as ports do. */
static socklen_t name_of(uint16_t port, struct sockaddr_un *name) {
    memset(name, 0, sizeof *name);
    name->sun_family = AF_UNIX;
    const int len = snprintf(name->sun_path + 1, sizeof name->sun_path - 1, "pccl-%u", (unsigned)port);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
}

static int open_socket(void) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || (pc_fork_prepare() && pc_fork_track(fd))) return fd;
    (void)close(fd);
    errno = ENOMEM;
    return -1;
}

static int close_keeping_errno(int fd) {
    const int failure = errno;
    pc_sock_close(fd);
    errno = failure;
    return -1;
}

/* Names can be taken by any user of the host; memory is shared only with processes of one's own. */
static bool same_user(int fd) {
    struct ucred user;
    socklen_t len_bytes = sizeof user;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &user, &len_bytes) == 0 && user.uid == geteuid();
}

int pc_shm_listen(uint16_t port) {
    struct sockaddr_un name;
    const socklen_t len_bytes = name_of(port, &name);
    const int fd = open_socket();
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&name, len_bytes) != 0 || listen(fd, LISTEN_BACKLOG) != 0) {
        return close_keeping_errno(fd);
    }
    return fd;
}

union rights {
    char room[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static int send_memory(int fd, int memory_fd) {
    union rights rights = {.room = {0}};
    struct iovec bytes = {.iov_len = sizeof greeting};
    char copy[sizeof greeting];
    memcpy(copy, greeting, sizeof copy);
    bytes.iov_base = copy;
    struct msghdr message = {
        .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = rights.room, .msg_controllen = sizeof rights.room};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof memory_fd);
    memcpy(CMSG_DATA(part), &memory_fd, sizeof memory_fd);
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ptrdiff_t)sizeof greeting ? 0 : EPIPE;
}

int pc_shm_accept(int listener, struct pc_transport *transport) {
    const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return -1;
    if (!pc_fork_track(fd)) {
        (void)close(fd);
        errno = ENOMEM;
        return -1;
    }
    int memory_fd = -1;
    int failure = same_user(fd) ? make(transport, &memory_fd) : EACCES;
    if (failure != 0) {
        pc_sock_close(fd);
        errno = failure;
        return -1;
    }
    transport->fd = fd;
    failure = send_memory(fd, memory_fd);
    (void)close(memory_fd);
    if (failure == 0) return 0;
    shm_close(transport);
    errno = failure;
    return -1;
}

int pc_shm_dial(uint16_t port) {
    struct sockaddr_un name;
    const socklen_t len_bytes = name_of(port, &name);
    const int fd = open_socket();
    if (fd < 0) return -1;
    return connect(fd, (struct sockaddr *)&name, len_bytes) == 0 ? fd : close_keeping_errno(fd);
}

/* The descriptor that came with the greeting; -1: none, or no greeting. */
static int receive_memory(int fd) {
    union rights rights = {.room = {0}};
    char bytes[sizeof greeting];
    struct iovec room = {.iov_base = bytes, .iov_len = sizeof bytes};
    struct msghdr message = {
        .msg_iov = &room, .msg_iovlen = 1, .msg_control = rights.room, .msg_controllen = sizeof rights.room};
    const ptrdiff_t len = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const struct cmsghdr *part = len > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    int memory_fd = -1;
    if (part != NULL && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS &&
        part->cmsg_len == CMSG_LEN(sizeof memory_fd)) {
        memcpy(&memory_fd, CMSG_DATA(part), sizeof memory_fd);
    }
    if (len == (ptrdiff_t)sizeof greeting && memcmp(bytes, greeting, sizeof greeting) == 0) return memory_fd;
    if (memory_fd >= 0) (void)close(memory_fd);
    return -1;
}

int pc_shm_dialed(int fd, struct pc_transport *transport) {
    if (!same_user(fd)) return EACCES;
    const int memory_fd = receive_memory(fd);
    if (memory_fd < 0) return EPROTO;
    size_t len_bytes = 0;
    int failure = check(memory_fd, &len_bytes);
    if (failure == 0) failure = map(memory_fd, len_bytes, 0, transport);
    (void)close(memory_fd);
    if (failure == 0) transport->fd = fd;
    return failure;
}

#else

int pc_shm_listen(uint16_t port) {
    (void)port;
    errno = ENOTSUP;
    return -1;
}

int pc_shm_accept(int listener, struct pc_transport *transport) {
    (void)listener;
    (void)transport;
    errno = ENOTSUP;
    return -1;
}

int pc_shm_dial(uint16_t port) {
    (void)port;
    errno = ENOTSUP;
    return -1;
}

int pc_shm_dialed(int fd, struct pc_transport *transport) {
    (void)fd;
    (void)transport;
    return ENOTSUP;
}

bool pc_transport_is_shm(const struct pc_transport *transport) {
    (void)transport;
    return false;
}

#endif
