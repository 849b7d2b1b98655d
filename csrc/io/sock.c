/*
 * Sockets and their options. An option that a platform lacks is left out; one that the system refuses is not worth the
 * connection, except a congestion control that the user named: its name is checked once, before anything is opened.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* accept4 */
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE 1
#endif
#include "io/sock.h"

#include "io/fork.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

enum { LISTEN_BACKLOG = 1024, KEEPALIVE_IDLE_S = 2, KEEPALIVE_INTERVAL_S = 1, KEEPALIVE_PROBES = 3 };
enum {
    NEAR_US = 2000, /* a round trip within a data centre */
    NOTSENT_BYTES = 128 << 10
};

/* Addresses ----------------------------------------------------------------------------------------------------- */

socklen_t pc_sock_to_system(const struct pc_address *address, struct sockaddr_storage *out) {
    memset(out, 0, sizeof *out);
    if (address->family == 4) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(address->port)};
        memcpy(&in.sin_addr, address->ip, 4);
        memcpy(out, &in, sizeof in);
        return sizeof in;
    }
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(address->port)};
    in6.sin6_scope_id = address->scope;
    memcpy(&in6.sin6_addr, address->ip, 16);
    memcpy(out, &in6, sizeof in6);
    return sizeof in6;
}

bool pc_sock_from_system(const struct sockaddr *in, struct pc_address *address) {
    memset(address, 0, sizeof *address);
    if (in->sa_family == AF_INET) {
        struct sockaddr_in in4;
        memcpy(&in4, in, sizeof in4);
        address->family = 4;
        address->port = ntohs(in4.sin_port);
        memcpy(address->ip, &in4.sin_addr, 4);
        return true;
    }
    if (in->sa_family != AF_INET6) return false;
    struct sockaddr_in6 in6;
    memcpy(&in6, in, sizeof in6);
    address->port = ntohs(in6.sin6_port);
    if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr)) {
        address->family = 4;
        memcpy(address->ip, (const uint8_t *)&in6.sin6_addr + 12, 4);
        return true;
    }
    address->family = 6;
    memcpy(address->ip, &in6.sin6_addr, 16);
    address->scope = in6.sin6_scope_id;
    return true;
}

bool pc_address_is_any(const struct pc_address *address) {
    static const uint8_t zero[16] = {0};
    return memcmp(address->ip, zero, address->family == 4 ? 4 : 16) == 0;
}

bool pc_address_is_link_local(const struct pc_address *address) {
    const uint8_t *ip = address->ip;
    return address->family == 4 ? ip[0] == 169 && ip[1] == 254 : ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

bool pc_address_same_host(const struct pc_address *a, const struct pc_address *b) {
    return a->family == b->family && memcmp(a->ip, b->ip, a->family == 4 ? 4 : 16) == 0;
}

static bool socket_address(int fd, int (*get)(int, struct sockaddr *, socklen_t *), struct pc_address *address) {
    struct sockaddr_storage storage = {0};
    socklen_t len_bytes = sizeof storage;
    return get(fd, (struct sockaddr *)&storage, &len_bytes) == 0 &&
           pc_sock_from_system((struct sockaddr *)&storage, address);
}

/* The C library declares these two with argument types of its own in some modes. */
static int get_local(int fd, struct sockaddr *out, socklen_t *len_bytes) {
    return getsockname(fd, out, len_bytes);
}

static int get_remote(int fd, struct sockaddr *out, socklen_t *len_bytes) {
    return getpeername(fd, out, len_bytes);
}

bool pc_sock_local_address(int fd, struct pc_address *address) {
    return socket_address(fd, get_local, address);
}

bool pc_sock_remote_address(int fd, struct pc_address *address) {
    return socket_address(fd, get_remote, address);
}

/* Options ------------------------------------------------------------------------------------------------------- */

static int set_int(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value) == 0 ? 0 : errno;
}

static int set_flags(int fd) {
    const int status = fcntl(fd, F_GETFL);
    if (status < 0 || fcntl(fd, F_SETFL, status | O_NONBLOCK) < 0) return errno;
    return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? errno : 0;
}

static int set_congestion(int fd, const char *name) {
#ifdef TCP_CONGESTION
    return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name)) == 0 ? 0 : errno;
#else
    (void)fd;
    (void)name;
    return ENOPROTOOPT;
#endif
}

/*
 * The system's default may be made for wide-area links; its pacing and its model of the path only cost where the round
 * trip is tens of microseconds.
 */
void pc_sock_settle(int fd, const struct pc_sock_options *options, uint32_t rtt_us) {
    if (options->congestion[0] == '\0' && rtt_us > 0 && rtt_us < NEAR_US) (void)set_congestion(fd, "reno");
}

void pc_sock_pace(int fd, uint64_t bytes_per_s) {
#ifdef SO_MAX_PACING_RATE
    const uint32_t rate = bytes_per_s == 0 || bytes_per_s >= UINT32_MAX ? UINT32_MAX : (uint32_t)bytes_per_s;
    (void)setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate);
#else
    (void)fd;
    (void)bytes_per_s;
#endif
}

static void set_options(int fd, const struct pc_sock_options *options) {
    (void)set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
#ifdef TCP_NOTSENT_LOWAT
    /* What the network cannot take yet stays here, where a faster stripe of the link can take it. */
    (void)set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_BYTES);
#endif
    (void)set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
#elif defined(TCP_KEEPALIVE)
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPALIVE, KEEPALIVE_IDLE_S);
#endif
#ifdef TCP_KEEPINTVL
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    (void)set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
#endif
#ifdef TCP_USER_TIMEOUT
    if (options->user_timeout_ms > 0) {
        (void)set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)options->user_timeout_ms);
    }
#endif
#ifdef SO_NOSIGPIPE
    (void)set_int(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
    if (options->congestion[0] != '\0' && strcmp(options->congestion, "system") != 0) {
        (void)set_congestion(fd, options->congestion);
    }
}

static int open_socket(uint8_t family, int *fd_out) {
#ifdef SOCK_CLOEXEC
    const int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
#else
    const int type = SOCK_STREAM;
#endif
    const int fd = socket(family == 4 ? AF_INET : AF_INET6, type, 0);
    if (fd < 0) return errno;
    int failure = type == SOCK_STREAM ? set_flags(fd) : 0;
    if (failure == 0 && !(pc_fork_prepare() && pc_fork_track(fd))) failure = ENOMEM;
    if (failure != 0) {
        (void)close(fd);
        return failure;
    }
    *fd_out = fd;
    return 0;
}

void pc_sock_close(int fd) {
    if (fd < 0) return;
    /* Untracked first: afterwards the number may belong to somebody else. */
    pc_fork_untrack(fd);
    (void)close(fd);
}

int pc_sock_error(int fd) {
    int value = 0;
    socklen_t len_bytes = sizeof value;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &len_bytes) == 0 ? value : errno;
}

int pc_sock_check_congestion(const char *name) {
    int fd = -1;
    int failure = open_socket(4, &fd);
    if (failure != 0) failure = open_socket(6, &fd);
    if (failure != 0) return failure;
    failure = set_congestion(fd, name);
    pc_sock_close(fd);
    return failure;
}

/* Listening ----------------------------------------------------------------------------------------------------- */

struct pc_address pc_sock_any(void) {
    int fd = -1;
    struct pc_address any = {.family = 6};
    struct sockaddr_storage storage;
    const socklen_t len_bytes = pc_sock_to_system(&any, &storage);
    if (open_socket(6, &fd) != 0) return (struct pc_address){.family = 4};
    const bool usable = bind(fd, (struct sockaddr *)&storage, len_bytes) == 0;
    pc_sock_close(fd);
    if (!usable) any.family = 4;
    return any;
}

static int try_listen(const struct pc_address *address, int *fd_out, struct pc_address *bound) {
    int fd = -1, failure = open_socket(address->family, &fd);
    if (failure != 0) return failure;
    struct sockaddr_storage storage;
    const socklen_t len_bytes = pc_sock_to_system(address, &storage);
    (void)set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (address->family == 6 && pc_address_is_any(address)) (void)set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    if (bind(fd, (struct sockaddr *)&storage, len_bytes) != 0 || listen(fd, LISTEN_BACKLOG) != 0) failure = errno;
    else if (!pc_sock_local_address(fd, bound)) failure = EADDRNOTAVAIL;
    if (failure != 0) {
        pc_sock_close(fd);
        return failure;
    }
    *fd_out = fd;
    return 0;
}

pc_status pc_sock_listen(const struct pc_address *address, uint16_t port_min, uint16_t port_max, int *fd_out,
                         struct pc_address *bound, pc_error *error) {
    struct pc_address at = *address;
    int failure = 0;
    for (uint32_t port = port_min; port <= port_max; port++) {
        at.port = (uint16_t)port;
        failure = try_listen(&at, fd_out, bound);
        if (failure == 0) return pcclSuccess;
        if (failure != EADDRINUSE && failure != EACCES) break;
    }
    char where[64];
    at.port = port_min;
    pc_address_format(&at, where, sizeof where);
    if (error != NULL && error->code == pcclSuccess) error->sys_errno = failure;
    if (port_max > port_min) {
        return pc_error_set(error, pcclSystemError, "cannot listen at %s nor at any port up to %u: %s", where,
                            (unsigned)port_max, strerror(failure));
    }
    return pc_error_set(error, pcclSystemError, "cannot listen at %s: %s", where, strerror(failure));
}

/* Connecting ---------------------------------------------------------------------------------------------------- */

int pc_sock_dial(const struct pc_address *to, const struct pc_sock_options *options, int *fd_out) {
    int fd = -1;
    int failure = open_socket(to->family, &fd);
    if (failure != 0) return failure;
    struct sockaddr_storage storage;
    const socklen_t len_bytes = pc_sock_to_system(to, &storage);
    set_options(fd, options);
    failure = connect(fd, (struct sockaddr *)&storage, len_bytes) == 0 ? 0 : errno;
    if (failure == EINTR) failure = EINPROGRESS;
    if (failure == 0) failure = pc_sock_dialed(fd);
    if (failure != 0 && failure != EINPROGRESS) {
        pc_sock_close(fd);
        return failure;
    }
    *fd_out = fd;
    return failure;
}

/* The system answers with the source that it would use: for an address of its own, that same address. */
bool pc_sock_is_own_host(const struct pc_address *address) {
    if (pc_address_is_loopback(address)) return true;
    const int fd = socket(address->family == 4 ? AF_INET : AF_INET6, SOCK_DGRAM, 0);
    if (fd < 0) return false;
    struct sockaddr_storage storage;
    const socklen_t len_bytes = pc_sock_to_system(address, &storage);
    struct pc_address local;
    const bool own = set_flags(fd) == 0 && connect(fd, (struct sockaddr *)&storage, len_bytes) == 0 &&
                     pc_sock_local_address(fd, &local) && pc_address_same_host(&local, address);
    (void)close(fd);
    return own;
}

int pc_sock_dialed(int fd) {
    const int failure = pc_sock_error(fd);
    if (failure != 0) return failure;
    /*
     * A dial to a port of this host where nobody listens can pick that very port as its own and meet itself, by TCP's
     * simultaneous open. Retrying dials find this sooner or later.
     */
    struct pc_address local, remote;
    if (!pc_sock_remote_address(fd, &remote)) return ENOTCONN;
    if (pc_sock_local_address(fd, &local) && local.port == remote.port && pc_address_same_host(&local, &remote)) {
        return ECONNREFUSED;
    }
    return 0;
}

int pc_sock_accept(int listener, const struct pc_sock_options *options, struct pc_address *from) {
    struct sockaddr_storage storage = {0};
    socklen_t len_bytes = sizeof storage;
    int failure = 0;
#ifdef __linux__
    const int fd = accept4(listener, (struct sockaddr *)&storage, &len_bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
    const int fd = accept(listener, (struct sockaddr *)&storage, &len_bytes);
    if (fd >= 0) failure = set_flags(fd);
#endif
    if (fd < 0) return -1;
    if (failure == 0 && !pc_sock_from_system((struct sockaddr *)&storage, from)) failure = ECONNABORTED;
    if (failure == 0 && !pc_fork_track(fd)) failure = ENOMEM;
    if (failure != 0) {
        (void)close(fd);
        errno = failure;
        return -1;
    }
    set_options(fd, options);
    return fd;
}
