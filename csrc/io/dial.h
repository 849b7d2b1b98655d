/*
 * K4: connecting. The addresses are tried in order, each with its share of the time that is left; the first that
 * connects is the answer. A dial to the master begins again from the front until its time is over: a master that isn't
 * up yet is the normal case when a whole run starts at once.
 */
#ifndef PC_DIAL_H
#define PC_DIAL_H

#include "io/loop.h"

struct pc_dial;

/* PC_ACTION_DIAL: answers with the machine's opened or closed. No addresses: to the master. */
void pc_dial_stream(struct pc_loop *loop, struct pc_stream *stream, const struct pc_address *addresses, uint32_t count);
/* PC_ACTION_DIAL_BACK: connects, disconnects, answers with the event dialed_back. */
void pc_dial_back(struct pc_loop *loop, uint64_t id, const struct pc_address *addresses, uint32_t count);
/* The machine gave up the stream: true if there was a dial for it, which is gone now. */
bool pc_dial_cancel(struct pc_loop *loop, const struct pc_stream *stream);
void pc_dial_cancel_all(struct pc_loop *loop);

#endif
