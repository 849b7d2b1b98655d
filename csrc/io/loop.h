/*
 * K4: what drives one machine. One thread at a time runs it (see turn.h; with a crew see crew.h) and owns the machine, its
 * streams and all sockets; everybody else talks to it through commands. After each event it carries out the machine's
 * actions before anything else happens, so nothing waits for a turn of the loop but what waits for the network or the clock.
 *
 * Life: create, listen, start; then close (asks; any thread, even a signal handler) and join; destroy. "On the loop's
 * thread" means the one that runs it: there the events happen.
 */
#ifndef PC_LOOP_H
#define PC_LOOP_H

#include "io/gate.h"
#include "io/sock.h"
#include "io/turn.h"
#include "io/watch.h"
#include "proto/call.h"
#include "proto/machine.h"

#include <pthread.h>
#include <stdatomic.h>

enum { PC_LOOP_THREADS_MAX = 16 };

struct pc_loop;
struct pc_crew;

/* Work for the loop's thread. The poster owns the memory until run is called; run may free it. In order of posting. */
struct pc_command {
    struct pc_command *next;
    void (*run)(struct pc_loop *loop, struct pc_command *command, uint64_t now_ns);
};

struct pc_loop_events {
    /* PC_ACTION_COMPLETE. */
    void (*complete)(void *user, struct pc_call *call);
    /* Before each tick of the machine. */
    void (*before_tick)(void *user, uint64_t now_ns);
    /* The stream to the master has connected from this local address; the machine is told next. */
    void (*master_reached)(void *user, const struct pc_address *local, uint64_t now_ns);
    /* The answer to PC_ACTION_DIAL_BACK. */
    void (*dialed_back)(void *user, uint64_t id, int sys_errno, uint64_t now_ns);
    /* The answer to PC_ACTION_SEARCH, for user to take. */
    void (*searched)(void *user, struct pc_ring_job *job);
    /* close was called: the last chance of the machine; its actions are carried out once more. */
    void (*closing)(void *user, uint64_t now_ns);
    /* No memory for actions: the machine can't go on. closing follows. */
    void (*failed)(void *user);
    /* The last thing that happens on the thread: all sockets are closed. */
    void (*ended)(void *user);
};

struct pc_loop_config {
    const char *thread_name; /* up to 15 characters */
    struct pc_machine *machine;
    const struct pc_loop_events *events; /* any of them NULL: not wanted */
    void *user;
    struct pc_sock_options sock;
    uint64_t dial_timeout_ns; /* of one DIAL over all its addresses */
    uint32_t threads; /* for the data of links, up to PC_LOOP_THREADS_MAX; 0 or 1: only the own one */
    bool shared_memory; /* dials to other members of this host try it, and listeners offer it */
    /* How long the own thread looks for more before it sleeps, where events come thick and fast; 0: not at all. */
    uint64_t linger_ns;
};

struct pc_loop {
    uv_loop_t uv; /* its data: the gate */
    struct pc_gate gate;
    struct pc_crew *crew; /* NULL: none */
    uv_async_t wake;
    uv_prepare_t prepare;
    struct pc_loop_config config;
    struct pc_machine *machine;
    pthread_t thread;
    bool uv_ready, started, closed;

    pthread_mutex_t lock; /* of the next group */
    pthread_cond_t changed;
    struct pc_command *first, **last;
    struct pc_turn turn;
    bool has_ended, abandoned, thread_gone;
    atomic_bool close_wanted;

    bool resting; /* the own thread is to rest, or the caller that runs the loop leaves nothing to be done */
    struct pc_alarm *slice; /* the end of a caller's turn */
    struct pc_alarm *alarm; /* the machine's deadline */
    uint64_t alarm_ns; /* when it goes off; UINT64_MAX: it is not set */
    uint64_t event_ns; /* the last of a connection, if the own thread lingers */
    bool thick; /* it came soon after the one before */
    uint64_t crowded_ns; /* until then nobody stays awake */
    bool outlasted; /* the last caller that ran the loop left before his call had ended */
    struct pc_list conns, dials, listeners, dead_conns;
    struct pc_ring_job *search; /* with a thread of libuv's pool; NULL: none */
    uv_work_t search_work;

    struct pc_address master[PC_ADDRESSES_MAX];
    uint32_t master_count;
    bool beside_master; /* the master was reached through loopback */
};

/* Monotonic. */
uint64_t pc_loop_now(void);

/* NULL with the error set. The machine stays the caller's, to be destroyed after join. */
struct pc_loop *pc_loop_create(const struct pc_loop_config *config, pc_error *error);
/* Before start, or on the loop's thread. Takes over the listening socket. */
pc_status pc_loop_listen(struct pc_loop *loop, int fd);
pc_status pc_loop_start(struct pc_loop *loop, pc_error *error);
/*
 * False, and nothing happens, after the loop has ended. awaited: the poster calls pc_loop_run_until next, so that nobody
 * else need be woken for it.
 */
bool pc_loop_post(struct pc_loop *loop, struct pc_command *command, bool awaited);
/*
 * Runs the loop on the calling thread until *done, which only what runs on the loop's thread sets, or deadline_ns. Returns
 * early, maybe at once, when another thread runs it or it ends.
 */
void pc_loop_run_until(struct pc_loop *loop, const bool *done, uint64_t deadline_ns);
/* On the loop's thread: somebody who waited goes on now, and nothing else is to be done until he comes again. */
void pc_loop_rest(struct pc_loop *loop);
void pc_loop_close(struct pc_loop *loop);
/* Waits at most timeout_ns (UINT64_MAX: for ever) until ended; false when the time is over. */
bool pc_loop_wait(struct pc_loop *loop, uint64_t timeout_ns);
/* Closes, waits, frees. Accepts one that was never started, and NULL. Not from the loop's own thread. */
void pc_loop_destroy(struct pc_loop *loop);

/* On the loop's thread: where a DIAL without addresses goes. */
void pc_loop_set_master(struct pc_loop *loop, const struct pc_address *addresses, uint32_t count);

/* For the parts of the driver: a connection has something to do. */
void pc_loop_stir(struct pc_loop *loop);
/* Carry out what the machine wants. Does nothing when called from within itself. Of a crew: as far as that may. */
void pc_loop_drain(struct pc_loop *loop);

#endif
