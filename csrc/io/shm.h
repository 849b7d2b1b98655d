/*
 * K4: shared memory as the transport between two peers of one host. Who listens on a TCP port also listens on a local
 * socket named after that port; who dials an address of its own host tries that socket first. Hellos and proofs pass as
 * over TCP. Where the system lacks what this needs, listening and dialling fail and TCP is used.
 */
#ifndef PC_SHM_H
#define PC_SHM_H

#include "io/transport.h"

/* The listening socket of the peer that listens on TCP port; -1 with errno. */
int pc_shm_listen(uint16_t port);
/* A new connection: 0, or -1 with errno; EAGAIN: none now. Other failures are of that one connection, which is gone. */
int pc_shm_accept(int listener, struct pc_transport *transport);

/* Begins to connect; -1 with errno. When the socket is readable, the other end has answered. */
int pc_shm_dial(uint16_t port);
/* Takes the answer. 0, and the transport has taken over the socket; or the errno, and it is still the caller's. */
int pc_shm_dialed(int fd, struct pc_transport *transport);

bool pc_transport_is_shm(const struct pc_transport *transport);

#endif
