/* Both wrappers: the handle is the object's first use and its last, freed by libuv's close callback. */
#define _DEFAULT_SOURCE 1
#include "io/watch.h"

#include "base/checked.h"
#include "io/gate.h"

#include <stdlib.h>

struct pc_watch {
    uv_poll_t poll;
    pc_watch_ready ready;
    void *owner;
    int events;
};

static void free_watch(uv_handle_t *handle) {
    free(handle->data);
}

static void on_poll(uv_poll_t *poll, int status, int events) {
    struct pc_watch *watch = poll->data;
    struct pc_gate *gate = poll->loop->data;
    pc_gate_enter(gate);
    if (status < 0) watch->events = 0;
    watch->ready(watch->owner, status, events);
    pc_gate_leave(gate);
}

struct pc_watch *pc_watch_create(uv_loop_t *loop, int fd, pc_watch_ready ready, void *owner) {
    struct pc_watch *watch = pc_calloc(1, sizeof *watch);
    if (watch == NULL) return NULL;
    if (uv_poll_init(loop, &watch->poll, fd) != 0) {
        free(watch);
        return NULL;
    }
    watch->poll.data = watch;
    watch->ready = ready;
    watch->owner = owner;
    return watch;
}

void pc_watch_set(struct pc_watch *watch, int events) {
    if (watch->events == events) return;
    watch->events = events;
    if (events == 0) (void)uv_poll_stop(&watch->poll);
    else (void)uv_poll_start(&watch->poll, events, on_poll);
}

void pc_watch_destroy(struct pc_watch *watch) {
    if (watch != NULL) uv_close((uv_handle_t *)&watch->poll, free_watch);
}

struct pc_alarm {
    uv_timer_t timer;
    pc_alarm_due due;
    void *owner;
};

static void free_alarm(uv_handle_t *handle) {
    free(handle->data);
}

static void on_timer(uv_timer_t *timer) {
    struct pc_alarm *alarm = timer->data;
    struct pc_gate *gate = timer->loop->data;
    pc_gate_enter(gate);
    alarm->due(alarm->owner);
    pc_gate_leave(gate);
}

struct pc_alarm *pc_alarm_create(uv_loop_t *loop, pc_alarm_due due, void *owner) {
    struct pc_alarm *alarm = pc_calloc(1, sizeof *alarm);
    if (alarm == NULL) return NULL;
    if (uv_timer_init(loop, &alarm->timer) != 0) {
        free(alarm);
        return NULL;
    }
    alarm->timer.data = alarm;
    alarm->due = due;
    alarm->owner = owner;
    return alarm;
}

void pc_alarm_set(struct pc_alarm *alarm, uint64_t delay_ns) {
    const uint64_t ms = delay_ns / 1000000u + (delay_ns % 1000000u != 0 ? 1 : 0);
    (void)uv_timer_start(&alarm->timer, on_timer, ms, 0);
}

void pc_alarm_stop(struct pc_alarm *alarm) {
    (void)uv_timer_stop(&alarm->timer);
}

void pc_alarm_destroy(struct pc_alarm *alarm) {
    if (alarm != NULL) uv_close((uv_handle_t *)&alarm->timer, free_alarm);
}
