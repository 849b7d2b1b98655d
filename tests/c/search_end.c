/*
 * The loop with a machine that does nothing but ask for a search. One that would last for ever: the loop ends, before or
 * while it runs. One that is short: its answer comes. Prints what came; exits with 1 where it is not what was expected.
 */
#define _DEFAULT_SOURCE 1
#include "io/loop.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MEMBERS = 40 };

static atomic_uint answers;

static uint64_t never(const struct pc_machine *machine) {
    (void)machine;
    return UINT64_MAX;
}

static const struct pc_machine_ops ops = {.deadline = never};

static void on_searched(void *user, struct pc_ring_job *job) {
    (void)user;
    printf("found %d\n", job->found);
    pc_ring_job_destroy(job);
    atomic_fetch_add(&answers, 1);
}

struct question {
    struct pc_command command;
    struct pc_ring_job *job;
};

static void ask(struct pc_loop *loop, struct pc_command *command, uint64_t now_ns) {
    (void)now_ns;
    pc_actions_add(&loop->machine->actions, PC_ACTION_SEARCH)->job = ((struct question *)(void *)command)->job;
}

static struct pc_ring_job *make_job(uint64_t budget) {
    static uint64_t bandwidth[MEMBERS * MEMBERS], latency_ns[MEMBERS * MEMBERS];
    for (uint64_t i = 0; i < MEMBERS * MEMBERS; i++) {
        bandwidth[i] = 1;
        latency_ns[i] = i * 7919 % 104729;
    }
    return pc_ring_job_create(&(struct pc_ring_request){.n = MEMBERS, .bandwidth = bandwidth, .latency_ns = latency_ns}, budget);
}

/* How many answers have come when the loop is gone. */
static unsigned run(uint64_t budget, unsigned wait_ms, unsigned wanted) {
    static const struct pc_loop_events events = {.searched = on_searched};
    struct pc_machine machine = {.ops = &ops, .name = "asker"};
    const struct pc_loop_config config = {.thread_name = "asker", .machine = &machine, .events = &events};
    pc_error error = {0};
    struct pc_loop *loop = pc_loop_create(&config, &error);
    struct question question = {{.run = ask}, make_job(budget)};
    if (loop == NULL || question.job == NULL || pc_loop_start(loop, &error) != pcclSuccess) exit(2);
    atomic_store(&answers, 0);
    (void)pc_loop_post(loop, &question.command, false);
    (void)usleep(wait_ms * 1000);
    while (atomic_load(&answers) < wanted) (void)usleep(1000);
    pc_loop_destroy(loop);
    pc_actions_fini(&machine.actions);
    return atomic_load(&answers);
}

int main(void) {
    const unsigned none = run(UINT64_MAX, 0, 0) + run(UINT64_MAX, 100, 0), one = run(100000, 0, 1);
    printf("%u unfinished, %u finished\n", none, one);
    return none == 0 && one == 1 ? 0 : 1;
}
