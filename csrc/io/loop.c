/*
 * The loop: thread, commands, the machine's deadline, its actions.
 *
 * Commands gather in a list under a mutex and are announced by one async handle; the list is taken whole. The deadline
 * is looked at once per turn, right before polling, and the timer only moved when it must go off earlier: one that goes
 * off too early costs a look, moving it at every event would cost more.
 */
#define _DEFAULT_SOURCE 1
#include "io/loop.h"

#include "base/checked.h"
#include "base/log.h"
#include "io/conn.h"
#include "io/crew.h"
#include "io/dial.h"
#include "io/listener.h"
#include "io/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#define AWAKE_NS (PC_NS_PER_MS / 2) /* so long a caller waits for his call without sleeping */
#define KEPT_NS (PC_NS_PER_MS * 2) /* so long only a thread that computes keeps a processor that was left to it */
#define CROWDED_NS (PC_NS_PER_MS * 100) /* so long nobody stays awake after that */
enum { DESCRIPTORS_NEEDED = 8 }; /* of a loop, and of libuv's own in the first one */
#define THICK_NS (PC_NS_PER_MS * 1) /* between events that come thick and fast */

uint64_t pc_loop_now(void) {
    return uv_hrtime();
}

/* Actions ------------------------------------------------------------------------------------------------------- */

static void close_stream(struct pc_loop *loop, struct pc_stream *stream) {
    if (stream->driver != NULL) pc_conn_close(stream->driver);
    else (void)pc_dial_cancel(loop, stream);
    pc_stream_destroy(stream);
}

static void run_write(struct pc_stream *stream) {
    struct pc_conn *conn = stream->driver;
    /* A blocked one goes on by itself; one that still dials is written to by a later action. */
    if (conn != NULL && !conn->write_blocked) pc_conn_write(conn);
}

static void run_dial(struct pc_loop *loop, const struct pc_action *action) {
    struct pc_address addresses[PC_ADDRESSES_MAX];
    const uint32_t count = action->address_count;
    struct pc_stream *stream = action->stream;
    const uint64_t id = action->id;
    const bool back = action->kind == PC_ACTION_DIAL_BACK;
    memcpy(addresses, action->addresses, sizeof addresses);
    if (back) pc_dial_back(loop, id, addresses, count);
    else pc_dial_stream(loop, stream, addresses, count);
}

static void search(uv_work_t *work) {
    struct pc_ring_job *job = work->data;
    pc_ring_job_run(job);
}

static void on_searched(uv_work_t *work, int status) {
    struct pc_loop *loop = PC_LIST_ENTRY(work, struct pc_loop, search_work);
    struct pc_ring_job *job = loop->search;
    pc_gate_enter(&loop->gate);
    loop->search = NULL;
    if (loop->closed || status != 0) {
        pc_ring_job_destroy(job);
    } else {
        loop->config.events->searched(loop->config.user, job);
        pc_loop_drain(loop);
    }
    pc_gate_leave(&loop->gate);
}

/* The machine asks for one at a time. */
static void run_search(struct pc_loop *loop, struct pc_ring_job *job) {
    loop->search_work.data = job;
    loop->search = job;
    if (!loop->closed && uv_queue_work(&loop->uv, &loop->search_work, search, on_searched) == 0) return;
    loop->search = NULL;
    pc_ring_job_destroy(job);
}

/* It ends within milliseconds, or does not begin: the thread of the loop can wait for that. */
static void stop_search(struct pc_loop *loop) {
    if (loop->search == NULL) return;
    atomic_store(&loop->search->stop, true);
    (void)uv_cancel((uv_req_t *)&loop->search_work);
}

/* The action is invalid as soon as the machine hears of anything. */
static void run_action(struct pc_loop *loop, const struct pc_action *action) {
    switch (action->kind) {
    case PC_ACTION_WRITE: run_write(action->stream); break;
    case PC_ACTION_COMPLETE:
        if (loop->config.events->complete != NULL) loop->config.events->complete(loop->config.user, action->call);
        break;
    case PC_ACTION_CLOSE: close_stream(loop, action->stream); break;
    case PC_ACTION_DIAL:
    case PC_ACTION_DIAL_BACK: run_dial(loop, action); break;
    case PC_ACTION_SEARCH: run_search(loop, action->job); break;
    }
}

/* A thread of the crew leaves to the loop's own what needs libuv, and with it all that follows. */
static bool is_mine(struct pc_loop *loop) {
    const struct pc_action *action = pc_actions_first(&loop->machine->actions);
    if (action == NULL || !pc_crew_thread()) return action != NULL;
    const struct pc_conn *conn = action->kind == PC_ACTION_WRITE ? action->stream->driver : NULL;
    if (action->kind == PC_ACTION_COMPLETE || (conn != NULL && conn->crew != NULL)) return true;
    (void)uv_async_send(&loop->wake);
    return false;
}

void pc_loop_drain(struct pc_loop *loop) {
    static _Thread_local bool draining;
    if (draining) return;
    draining = true;
    while (is_mine(loop)) run_action(loop, pc_actions_next(&loop->machine->actions));
    draining = false;
    if (loop->machine->actions.failed && !atomic_exchange(&loop->close_wanted, true)) {
        if (loop->config.events->failed != NULL) loop->config.events->failed(loop->config.user);
        (void)uv_async_send(&loop->wake);
    }
}

/* The machine's clock ------------------------------------------------------------------------------------------- */

static void on_deadline(void *owner) {
    struct pc_loop *loop = owner;
    const uint64_t now_ns = pc_loop_now();
    loop->alarm_ns = UINT64_MAX;
    if (now_ns < loop->machine->ops->deadline(loop->machine)) return;
    if (loop->config.events->before_tick != NULL) loop->config.events->before_tick(loop->config.user, now_ns);
    loop->machine->ops->tick(loop->machine, now_ns);
    pc_loop_drain(loop);
}

static void before_poll(uv_prepare_t *prepare) {
    struct pc_loop *loop = prepare->data;
    pc_gate_enter(&loop->gate);
    pc_conn_reap(loop);
    const uint64_t deadline_ns = loop->machine->ops->deadline(loop->machine);
    if (!loop->closed && deadline_ns < loop->alarm_ns) {
        const uint64_t now_ns = pc_loop_now();
        loop->alarm_ns = deadline_ns;
        pc_alarm_set(loop->alarm, deadline_ns > now_ns ? deadline_ns - now_ns : 0);
    }
    pc_gate_leave(&loop->gate);
}

/* Commands ------------------------------------------------------------------------------------------------------ */

static struct pc_command *take_commands(struct pc_loop *loop) {
    (void)pthread_mutex_lock(&loop->lock);
    struct pc_command *first = loop->first;
    loop->first = NULL;
    loop->last = &loop->first;
    (void)pthread_mutex_unlock(&loop->lock);
    return first;
}

static void run_commands(struct pc_loop *loop) {
    struct pc_command *command = take_commands(loop);
    while (command != NULL) {
        struct pc_command *next = command->next;
        loop->resting = false;
        command->run(loop, command, pc_loop_now());
        pc_loop_drain(loop);
        command = next;
    }
}

static void close_handle(uv_handle_t *handle, void *unused) {
    (void)unused;
    if (!uv_is_closing(handle)) uv_close(handle, NULL);
}

/*
 * From here on no command is taken: pc_loop_post says so. Commands that came before it all run. Handles that free
 * themselves are closed by their owners, the two embedded ones here.
 */
static void shut(struct pc_loop *loop) {
    if (loop->closed) return;
    loop->closed = true;
    (void)pthread_mutex_lock(&loop->lock);
    loop->has_ended = true;
    (void)pthread_mutex_unlock(&loop->lock);
    if (loop->crew != NULL) pc_crew_stop(loop->crew);
    run_commands(loop);
    if (loop->config.events->closing != NULL) loop->config.events->closing(loop->config.user, pc_loop_now());
    pc_loop_drain(loop);
    stop_search(loop);
    pc_listener_destroy_all(loop);
    pc_dial_cancel_all(loop);
    pc_conn_close_all(loop);
    pc_alarm_destroy(loop->alarm);
    pc_alarm_destroy(loop->slice);
    loop->alarm = loop->slice = NULL;
    close_handle((uv_handle_t *)&loop->wake, NULL);
    close_handle((uv_handle_t *)&loop->prepare, NULL);
}

static void on_wake(uv_async_t *wake) {
    struct pc_loop *loop = wake->data;
    pc_gate_enter(&loop->gate);
    run_commands(loop);
    pc_loop_drain(loop); /* what a thread of the crew has left */
    if (atomic_load(&loop->close_wanted)) shut(loop);
    pc_gate_leave(&loop->gate);
}

bool pc_loop_post(struct pc_loop *loop, struct pc_command *command, bool awaited) {
    command->next = NULL;
    (void)pthread_mutex_lock(&loop->lock);
    const bool taken = !loop->has_ended;
    const bool runs = loop->turn.owner != PC_TURN_NOBODY;
    const bool first = loop->first == NULL;
    if (taken && !runs && !awaited) pc_turn_want(&loop->turn);
    if (taken) {
        *loop->last = command;
        loop->last = &command->next;
    }
    (void)pthread_mutex_unlock(&loop->lock);
    /* Without the lock, or the loop's thread would wake only to wait for it. */
    if (taken && first && runs) (void)uv_async_send(&loop->wake);
    return taken;
}

/* Turns --------------------------------------------------------------------------------------------------------- */

/*
 * To be woken takes tens of microseconds in a virtual machine, as long as a small collective. So whoever expects something
 * soon looks for it without sleeping, and gives way to every other thread that can run. One that computes keeps the
 * processor for milliseconds then, but would give it up at once to a thread that is woken: beside such threads everybody
 * sleeps.
 */
static void give_way(struct pc_loop *loop) {
    const uint64_t before_ns = pc_loop_now();
    (void)sched_yield();
    const uint64_t now_ns = pc_loop_now();
    if (now_ns - before_ns >= KEPT_NS) loop->crowded_ns = now_ns + CROWDED_NS;
}

void pc_loop_stir(struct pc_loop *loop) {
    if (loop->config.linger_ns == 0) return;
    const uint64_t now_ns = pc_loop_now();
    loop->thick = now_ns - loop->event_ns < THICK_NS;
    loop->event_ns = now_ns;
}

static bool lingers(const struct pc_loop *loop) {
    const uint64_t now_ns = pc_loop_now();
    return loop->thick && now_ns - loop->event_ns < loop->config.linger_ns && now_ns >= loop->crowded_ns;
}

void pc_loop_rest(struct pc_loop *loop) {
    if (loop->crew == NULL) loop->resting = true;
}

static void rest(struct pc_loop *loop) {
    loop->resting = false;
    (void)pthread_mutex_lock(&loop->lock);
    if (loop->first == NULL && !atomic_load(&loop->close_wanted)) pc_turn_rest(&loop->turn, &loop->lock);
    (void)pthread_mutex_unlock(&loop->lock);
    run_commands(loop);
}

static void on_slice(void *unused) {
    (void)unused;
}

static bool take_turn(struct pc_loop *loop) {
    (void)pthread_mutex_lock(&loop->lock);
    const bool taken = !loop->has_ended && pc_turn_take(&loop->turn);
    (void)pthread_mutex_unlock(&loop->lock);
    return taken;
}

static void give_turn(struct pc_loop *loop, bool rest) {
    (void)pthread_mutex_lock(&loop->lock);
    if (!rest || loop->first != NULL) pc_turn_want(&loop->turn);
    pc_turn_give(&loop->turn);
    (void)pthread_mutex_unlock(&loop->lock);
}

/* Looks at the network and the clock once at least: after a call that ends at once the next one may do so too. */
static void run_turn(struct pc_loop *loop, const bool *done, uint64_t deadline_ns) {
    loop->resting = false;
    run_commands(loop);
    uint64_t now_ns = pc_loop_now();
    const bool sleepy = loop->outlasted || now_ns < loop->crowded_ns;
    const uint64_t sleepy_ns = sleepy ? now_ns : now_ns + AWAKE_NS;
    if (!loop->closed && deadline_ns > now_ns && deadline_ns != UINT64_MAX) {
        uv_update_time(&loop->uv);
        /* libuv's clock has lost a fraction of a millisecond. */
        pc_alarm_set(loop->slice, deadline_ns - now_ns + PC_NS_PER_MS);
    }
    (void)uv_run(&loop->uv, UV_RUN_NOWAIT);
    for (now_ns = pc_loop_now(); !*done && !loop->closed && now_ns < deadline_ns; now_ns = pc_loop_now()) {
        const bool awake = now_ns < sleepy_ns;
        if (awake) give_way(loop);
        (void)uv_run(&loop->uv, awake ? UV_RUN_NOWAIT : UV_RUN_ONCE);
    }
    if (!loop->closed) pc_alarm_stop(loop->slice);
    loop->outlasted = !*done;
}

void pc_loop_run_until(struct pc_loop *loop, const bool *done, uint64_t deadline_ns) {
    fenv_t environment;
    int cancellable;
    if (!take_turn(loop)) return;
    /* A thread that ends in here would leave the loop to nobody. */
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancellable);
    /* All members compute with the same rounding, and keep subnormal numbers, whatever their callers do. */
    (void)fegetenv(&environment);
    (void)fesetenv(FE_DFL_ENV);
    run_turn(loop, done, deadline_ns);
    (void)fesetenv(&environment);
    /* One whose time is over, but not his call, comes again. */
    give_turn(loop, !loop->closed && (loop->resting || !*done));
    (void)pthread_setcancelstate(cancellable, NULL);
}

/* Life ---------------------------------------------------------------------------------------------------------- */

static void free_loop(struct pc_loop *loop) {
    if (loop->uv_ready) (void)uv_loop_close(&loop->uv);
    pc_crew_destroy(loop->crew);
    (void)pthread_mutex_destroy(&loop->gate.lock);
    (void)pthread_mutex_destroy(&loop->lock);
    (void)pthread_cond_destroy(&loop->changed);
    pc_turn_fini(&loop->turn);
    free(loop);
}

/*
 * A name lookup that is still with the resolver keeps uv_run from returning, for as long as the resolver pleases. The
 * sockets are closed by then; whoever waits is let go first, and the thread frees the loop itself if nobody waits on.
 */
static void *run_thread(void *argument) {
    struct pc_loop *loop = argument;
#if defined(__linux__)
    (void)prctl(PR_SET_NAME, loop->config.thread_name, 0, 0, 0);
#endif
    (void)fesetenv(FE_DFL_ENV);
    while (!loop->closed || loop->search != NULL) {
        const bool awake = lingers(loop);
        if (awake) give_way(loop);
        (void)uv_run(&loop->uv, awake ? UV_RUN_NOWAIT : UV_RUN_ONCE);
        if (loop->resting) rest(loop);
    }
    pc_conn_reap(loop);
    if (loop->config.events->ended != NULL) loop->config.events->ended(loop->config.user);
    /* The closed handles need a turn; after it only a lookup can be left. */
    const bool busy = uv_run(&loop->uv, UV_RUN_NOWAIT) != 0;
    (void)pthread_mutex_lock(&loop->lock);
    if (!busy) loop->thread_gone = true;
    loop->abandoned = busy;
    (void)pthread_cond_broadcast(&loop->changed);
    (void)pthread_mutex_unlock(&loop->lock);
    if (!busy) return NULL;
    (void)uv_run(&loop->uv, UV_RUN_DEFAULT);
    (void)pthread_mutex_lock(&loop->lock);
    const bool mine = loop->thread_gone;
    loop->thread_gone = true;
    (void)pthread_mutex_unlock(&loop->lock);
    if (mine) free_loop(loop);
    return NULL;
}

/* libuv ends the process when it finds none for its own use. */
static int check_descriptors(void) {
    int taken[DESCRIPTORS_NEEDED], count = 0, failure = 0;
    while (count < DESCRIPTORS_NEEDED && failure == 0) {
        taken[count] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (taken[count] < 0) failure = -errno;
        else count++;
    }
    while (count > 0) (void)close(taken[--count]);
    return failure;
}

struct pc_loop *pc_loop_create(const struct pc_loop_config *config, pc_error *error) {
    struct pc_loop *loop = pc_calloc(1, sizeof *loop);
    if (loop == NULL) goto no_memory;
    loop->config = *config;
    loop->machine = config->machine;
    loop->last = &loop->first;
    loop->alarm_ns = UINT64_MAX;
    pc_list_init(&loop->conns);
    pc_list_init(&loop->dials);
    pc_list_init(&loop->listeners);
    pc_list_init(&loop->dead_conns);
    if (pthread_mutex_init(&loop->lock, NULL) != 0 || pthread_mutex_init(&loop->gate.lock, NULL) != 0 ||
        !pc_wait_init(&loop->changed) || !pc_turn_init(&loop->turn)) {
        goto no_memory;
    }
    const int shortage = check_descriptors();
    const int failure = shortage != 0 ? shortage : uv_loop_init(&loop->uv);
    if (failure != 0) {
        error->sys_errno = -failure;
        (void)pc_error_set(error, pcclSystemError, "cannot create an event loop: %s", uv_strerror(failure));
        if (failure == UV_EMFILE) pc_error_hint(error, "raise the limit of open files (ulimit -n)");
        free(loop);
        return NULL;
    }
    loop->uv_ready = true;
    loop->uv.data = &loop->gate;
    (void)uv_async_init(&loop->uv, &loop->wake, on_wake);
    (void)uv_prepare_init(&loop->uv, &loop->prepare);
    loop->wake.data = loop;
    loop->prepare.data = loop;
    (void)uv_prepare_start(&loop->prepare, before_poll);
    loop->alarm = pc_alarm_create(&loop->uv, on_deadline, loop);
    loop->slice = pc_alarm_create(&loop->uv, on_slice, loop);
    if (loop->alarm == NULL || loop->slice == NULL) {
        (void)pc_error_set(error, pcclNoMemory, "no memory for an event loop");
        pc_loop_destroy(loop);
        return NULL;
    }
    if (config->threads <= 1) return loop;
    loop->crew = pc_crew_create(loop, config->threads, error);
    loop->gate.guarded = loop->crew != NULL;
    if (loop->crew != NULL) return loop;
    pc_loop_destroy(loop);
    return NULL;
no_memory:
    (void)pc_error_set(error, pcclNoMemory, "no memory for an event loop");
    free(loop);
    return NULL;
}

pc_status pc_loop_listen(struct pc_loop *loop, int fd) {
    return pc_listener_create(loop, fd);
}

pc_status pc_loop_start(struct pc_loop *loop, pc_error *error) {
    sigset_t all, before;
    /* The user's signal handlers run on the user's threads. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = loop->crew != NULL ? pc_crew_start(loop->crew) : 0;
    if (failure == 0) failure = pthread_create(&loop->thread, NULL, run_thread, loop);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure != 0) {
        if (error != NULL) error->sys_errno = failure;
        return pc_error_set(error, pcclSystemError, "cannot start a thread: %s", strerror(failure));
    }
    loop->started = true;
    return pcclSuccess;
}

void pc_loop_close(struct pc_loop *loop) {
    atomic_store(&loop->close_wanted, true);
    (void)uv_async_send(&loop->wake);
}

static bool over(const struct pc_loop *loop) {
    return !loop->started || loop->thread_gone || loop->abandoned;
}

bool pc_loop_wait(struct pc_loop *loop, uint64_t timeout_ns) {
    const uint64_t deadline_ns = pc_wait_deadline(timeout_ns);
    (void)pthread_mutex_lock(&loop->lock);
    bool in_time = true;
    while (!over(loop) && in_time) in_time = pc_wait_until(&loop->changed, &loop->lock, deadline_ns);
    const bool ended = over(loop);
    (void)pthread_mutex_unlock(&loop->lock);
    return ended;
}

void pc_loop_destroy(struct pc_loop *loop) {
    if (loop == NULL) return;
    if (!loop->started) {
        pc_gate_enter(&loop->gate);
        shut(loop);
        pc_gate_leave(&loop->gate);
        (void)uv_run(&loop->uv, UV_RUN_NOWAIT);
        free_loop(loop);
        return;
    }
    pc_loop_close(loop);
    (void)pc_loop_wait(loop, UINT64_MAX);
    (void)pthread_mutex_lock(&loop->lock);
    const bool join = loop->thread_gone;
    loop->thread_gone = true;
    (void)pthread_mutex_unlock(&loop->lock);
    if (join) {
        (void)pthread_join(loop->thread, NULL);
        free_loop(loop);
    } else {
        (void)pthread_detach(loop->thread);
    }
}

void pc_loop_set_master(struct pc_loop *loop, const struct pc_address *addresses, uint32_t count) {
    loop->master_count = count < PC_ADDRESSES_MAX ? count : PC_ADDRESSES_MAX;
    memcpy(loop->master, addresses, loop->master_count * sizeof *addresses);
}
