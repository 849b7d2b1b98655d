/*
 * K4: libuv handles that free themselves. libuv closes a handle one turn of the loop later; what owned it is often gone
 * by then. A watch or an alarm is one heap object whose destroy returns at once and whose callback never runs again.
 * Callbacks run inside the gate that the data of the uv_loop_t points to.
 */
#ifndef PC_WATCH_H
#define PC_WATCH_H

#include <stdint.h>
#include <uv.h>

/* A descriptor. events: UV_READABLE, UV_WRITABLE; status: 0 or a libuv error (then the watch is idle). */
struct pc_watch;
typedef void (*pc_watch_ready)(void *owner, int status, int events);

/* NULL: no memory, or the descriptor can't be polled. */
struct pc_watch *pc_watch_create(uv_loop_t *loop, int fd, pc_watch_ready ready, void *owner);
/* What to wait for; 0: nothing. */
void pc_watch_set(struct pc_watch *watch, int events);
/* Before the descriptor is closed. */
void pc_watch_destroy(struct pc_watch *watch);

/* A timer that goes off once. */
struct pc_alarm;
typedef void (*pc_alarm_due)(void *owner);

struct pc_alarm *pc_alarm_create(uv_loop_t *loop, pc_alarm_due due, void *owner);
/* In delay_ns, rounded up to milliseconds; replaces what was set. */
void pc_alarm_set(struct pc_alarm *alarm, uint64_t delay_ns);
void pc_alarm_stop(struct pc_alarm *alarm);
void pc_alarm_destroy(struct pc_alarm *alarm);

#endif
