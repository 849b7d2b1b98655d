/*
 * K4: the simulated world: a virtual clock, processes that run the production machines, and TCP connections between them
 * as byte streams that are split anywhere, stalled, cut, half-open or deaf in one direction. Everything is drawn from one
 * seed, so equal options give equal runs. A driver like io/, beside it; neither knows the other.
 */
#ifndef PC_WORLD_H
#define PC_WORLD_H

#include "proto/master.h"
#include "proto/member.h"

enum { PC_WORLD_PROCESSES_MAX = 72 };

struct pc_world;
struct pc_process;

/* What a process asks of the user program that it runs, and of the checks. */
struct pc_world_hooks {
    void (*completed)(void *context, struct pc_process *process, struct pc_call *call);
    void (*after_event)(void *context, struct pc_process *process);
    void (*alarm)(void *context, uint32_t what, uint32_t which);
    void *context;
};

struct pc_process {
    struct pc_world *world;
    uint32_t slot; /* 0: the master */
    bool alive;
    struct pc_machine *machine;
    struct pc_master *master;
    struct pc_member *member;
    uint64_t paused_until_ns;
    uint64_t tick_ns; /* scheduled */
};

/* io_threads: as with several of them, bytes of links move while a machine hears of other things. */
struct pc_world *pc_world_create(uint64_t seed, bool io_threads, const struct pc_world_hooks *hooks);
void pc_world_destroy(struct pc_world *world);
uint64_t pc_world_now(const struct pc_world *world);
uint64_t pc_world_random(struct pc_world *world);
/* Uniform in [0, below). */
uint64_t pc_world_below(struct pc_world *world, uint64_t below);
uint64_t pc_world_events(const struct pc_world *world);
uint64_t pc_world_hash(const struct pc_world *world);
struct pc_random pc_world_random_source(struct pc_world *world);

/* A process with a machine; slot 0 is the master. NULL: no memory. */
struct pc_process *pc_world_start(struct pc_world *world, uint32_t slot, uint32_t group);
struct pc_process *pc_world_process(struct pc_world *world, uint32_t slot);
/* Calls hooks.alarm(what, which) at that time. */
void pc_world_alarm(struct pc_world *world, uint64_t at_ns, uint32_t what, uint32_t which);
/* Has the machine of process do what the event just fed to it asks for. */
void pc_world_settle(struct pc_process *process);
void pc_world_post(struct pc_process *process, struct pc_call *call);

/* The process ends. silent: its host is gone, nobody gets a FIN. */
void pc_world_crash(struct pc_process *process, bool silent);
void pc_world_pause(struct pc_process *process, uint64_t duration_ns);
/* Cuts one connection of a and b, chosen by chance; bytes under way are lost. */
void pc_world_cut(struct pc_world *world, uint32_t a, uint32_t b);
/* From a to b nothing arrives for that long (0: for ever): a stall, or a one-way partition. */
void pc_world_deafen(struct pc_world *world, uint32_t a, uint32_t b, uint64_t duration_ns);

/* Runs until nothing is left, until_ns has come, or stop is set. */
void pc_world_run(struct pc_world *world, uint64_t until_ns, const bool *stop);

#endif
