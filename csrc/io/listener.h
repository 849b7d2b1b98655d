/* K4: a listening socket: hands connections to the machine, and keeps calm when descriptors run out. */
#ifndef PC_LISTENER_H
#define PC_LISTENER_H

#include "io/loop.h"

/* Takes over the socket, even on failure. With shared memory in the loop's configuration it is offered beside TCP. */
pc_status pc_listener_create(struct pc_loop *loop, int fd);
void pc_listener_destroy_all(struct pc_loop *loop);

#endif
