/*
 * K4: more threads for the data of links (PCCL_NTHREADS), where there are cores for them. They wait for the connections of
 * all links together; whoever wakes takes one through the loop's gate, and leaves the gate while the system copies. So the
 * copies of different connections, and of both directions of one, run side by side, while machine, streams and connections
 * belong to one thread at a time as ever. What a machine takes back from a connection whose bytes are moving it calls back
 * first (pc_stream.recall).
 *
 * Dials, closes and timers stay with the loop's own thread, which libuv belongs to.
 */
#ifndef PC_CREW_H
#define PC_CREW_H

#include "io/conn.h"

/* Not started. NULL with the error set. */
struct pc_crew *pc_crew_create(struct pc_loop *loop, uint32_t threads, pc_error *error);
/* Before the loop's own thread. 0, or why not. */
int pc_crew_start(struct pc_crew *crew);
/* Inside the gate, which is left meanwhile: the threads end. */
void pc_crew_stop(struct pc_crew *crew);
/* Of a stopped one; accepts NULL. */
void pc_crew_destroy(struct pc_crew *crew);

/* Whether the calling thread is of a crew: it leaves to the loop's own what only that may do. */
bool pc_crew_thread(void);

/* The rest inside the gate. */
/* From now on the crew serves conn, an open one. Without memory all stays as it is. */
void pc_crew_adopt(struct pc_crew *crew, struct pc_conn *conn);
/* No event of conn comes any more. */
void pc_crew_drop(struct pc_crew *crew, struct pc_conn *conn);
/* What conn->events says is waited for, but neither direction in which a thread is at work. */
void pc_crew_arm(struct pc_crew *crew, struct pc_conn *conn);
/* Until no thread moves bytes of conn; others pass the gate meanwhile. */
void pc_crew_wait(struct pc_crew *crew, const struct pc_conn *conn);
/* A thread has moved bytes, and passed the gate again. */
void pc_crew_returned(struct pc_crew *crew);

#endif
