/*
 * K4: non-blocking TCP sockets with the options this library wants on every one of them: TCP_NODELAY, keepalive, user
 * timeout, close-on-exec, congestion control. IPv4 and IPv6; an IPv6 listener on :: takes IPv4 as well.
 */
#ifndef PC_SOCK_H
#define PC_SOCK_H

#include "wire/message.h"

#include <sys/socket.h>

struct pc_sock_options {
    uint32_t user_timeout_ms; /* bytes unacknowledged for longer end the connection; 0: the system's */
    char congestion[16]; /* empty: chosen by where the other end is; "system": left alone; else a name */
};

/* Socket addresses to ours and back. IPv4 inside IPv6 becomes IPv4. Back: false for another family. */
socklen_t pc_sock_to_system(const struct pc_address *address, struct sockaddr_storage *out);
bool pc_sock_from_system(const struct sockaddr *in, struct pc_address *address);

bool pc_address_is_any(const struct pc_address *address);
bool pc_address_is_link_local(const struct pc_address *address);
bool pc_address_same_host(const struct pc_address *a, const struct pc_address *b);

/*
 * Listens at address with the first free port of port_min to port_max (both 0: the system's choice). bound gets the
 * port. The error names address, port and reason.
 */
pc_status pc_sock_listen(const struct pc_address *address, uint16_t port_min, uint16_t port_max, int *fd_out,
                         struct pc_address *bound, pc_error *error);
/* :: with IPv4 where the host has IPv6, else 0.0.0.0. */
struct pc_address pc_sock_any(void);

/* Whether what is sent there stays on this host. */
bool pc_sock_is_own_host(const struct pc_address *address);

/* Begins to connect: 0 (connected), EINPROGRESS, or the error; with the first two *fd_out is the socket. */
int pc_sock_dial(const struct pc_address *to, const struct pc_sock_options *options, int *fd_out);
/* After a dial became writable: 0 or why it failed. A socket connected to itself counts as refused. */
int pc_sock_dialed(int fd);
/* A new connection, or -1 with errno. */
int pc_sock_accept(int listener, const struct pc_sock_options *options, struct pc_address *from);

bool pc_sock_local_address(int fd, struct pc_address *address);
bool pc_sock_remote_address(int fd, struct pc_address *address);
/* After connecting: what depends on the way to the other end. */
void pc_sock_settle(int fd, const struct pc_sock_options *options, uint32_t rtt_us);
/* Sends no faster than that, where the system can bound it; 0: as fast as it may. */
void pc_sock_pace(int fd, uint64_t bytes_per_s);
int pc_sock_error(int fd);
void pc_sock_close(int fd);

/* Whether the host would take this name for TCP; 0 or the errno. */
int pc_sock_check_congestion(const char *name);

#endif
