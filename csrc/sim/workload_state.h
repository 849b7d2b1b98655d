/*
 * K4, private to the workload: the programs and what the laws remember of them.
 */
#ifndef PC_WORKLOAD_STATE_H
#define PC_WORKLOAD_STATE_H

#include "sim/operation_work.h"
#include "sim/workload.h"

enum {
    TAGS_MAX = 3,
    SUBSETS_MAX = 2, /* groups of some members that a program has at a time */
    SUBSET_NUMBERS_MAX = 512,
    STATE_ELEMS = 24,
    ATTEMPTS_MAX = 24,
    ALONE_MAX = 8,
    EPOCHS_MAX = 512,
    CALL_LIMIT_S = 90,
    RUN_LIMIT_S = 900
};

/* Named by what is waited for. */
enum program_state { WAIT_START, WAIT_CONNECT, WAIT_PENDING, WAIT_UPDATE, WAIT_SYNC, WAIT_OPTIMIZE, WAIT_GROUP, WAIT_OPERATIONS,
                     WAIT_DELAY, FINISHED };

/* A group of some members, and what the program does in it in this step of its own. */
struct subset {
    uint32_t number; /* 0: none */
    struct member_list members;
    uint64_t ids[PC_WORLD_PROCESSES_MAX];
    struct operation work;
    bool working; /* in this step */
    bool rested, voted, failed;
    struct pc_call vote; /* cast while that of the whole, or another's, is out */
    bool voting;
};

struct program {
    struct pc_process *process;
    uint32_t slot;
    enum program_state state, after_delay;
    struct pc_call call;
    bool call_out, topology_changed, left, killed;
    uint64_t step, epoch, waiting_ns;
    struct member_list members; /* of the whole, at the end of the last event */
    struct operation operations[TAGS_MAX];
    uint32_t operation_count;
    bool in_step, step_failed, voting, voted; /* step consistency: one vote on all of its operations */
    bool late; /* it rests before its first attempt at the step */
    struct subset subsets[SUBSETS_MAX];
    struct pc_id_item asked[PC_WORLD_PROCESSES_MAX]; /* in WAIT_GROUP */
    struct member_list asked_members;
    uint32_t asked_count;
    uint32_t alone; /* times that it has waited for others to join */
    uint64_t grouped_step, spoiled_step; /* 1 + the step for which a group was made last, or asked for wrongly */
    int64_t state_data[STATE_ELEMS], state_step;
    struct pc_tensor tensors[2];
    bool state_spoiled;
};

/* One attempt of one operation of the program, as its participants saw it. */
struct attempt {
    uint64_t posted, winners, losers; /* slots */
    uint64_t digest, winner_slots; /* of what the winners hold, and with whom they did it */
    uint64_t looked_at, slots; /* a result that was found right, with these */
};

struct pc_workload {
    struct pc_workload_config config;
    struct pc_world *world;
    struct program programs[PC_WORLD_PROCESSES_MAX];
    uint32_t program_count;
    struct attempt *attempts; /* [step][tag][attempt]; tags from TAGS_MAX: of subsets */
    uint64_t subset_lists[SUBSET_NUMBERS_MAX]; /* digest of the list that each number stands for */
    uint64_t epoch_lists[EPOCHS_MAX];
    uint64_t committed, aborted, furthest_step;
    bool stop, broken;
    bool crashed; /* config.crash_event has come */
    bool disturbed; /* by faults: without them no link may be lost */
    bool cut_off; /* somebody could not hear the master, or the master him, for a while */
    char verdict[512];
};

/* A law broke. The first one is kept, and ends the run. */
void pc_workload_violate(struct pc_workload *workload, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A draw that is the same for all programs. */
uint64_t pc_workload_mix(uint64_t a, uint64_t b, uint64_t c);
struct attempt *pc_workload_attempt(struct pc_workload *workload, uint64_t step, uint32_t tag, uint32_t attempt);
void pc_workload_post(struct pc_workload *workload, struct program *program, struct pc_call *call);
/* The program is out of the run, by its own error: it ends. */
bool pc_workload_expelled(pc_status code);
void pc_workload_give_up(struct program *program);
/* Does nothing for a while, as user code would, then goes on. */
void pc_workload_rest(struct pc_workload *workload, const struct program *program);
/* Goes on with what the program's step still lacks. */
void pc_workload_go_on(struct pc_workload *workload, struct program *program);
/* Those that take part in the whole group, and since when, as program's machine knows it now. */
void pc_program_members(const struct program *program, struct member_list *members);
uint64_t pc_program_group_epoch(const struct program *program);

/* group_work.c -------------------------------------------------------------------------------------------------- */
/* What the program does in this step in its subsets, and in the whole group. */
void pc_group_start(struct pc_workload *workload, struct program *program);
void pc_group_ended(struct pc_workload *workload, struct program *program, struct operation *op);
/* Operations that were to be posted later are posted now. */
void pc_group_rested(struct pc_workload *workload, struct program *program);
bool pc_group_all_done(const struct program *program);
void pc_group_vote(struct pc_workload *workload, struct program *program);
void pc_group_voted(struct pc_workload *workload, struct program *program);
/* The time limit of the program's vote on its next attempt; 0: the usual one. Now and then it gives up early. */
uint64_t pc_group_vote_limit(const struct pc_workload *workload, const struct program *program, const struct operation *op);
/* Nobody has written to the memory of an operation since it ended. */
bool pc_group_untouched(const struct program *program);
void pc_group_free(struct program *program);

/* subset_work.c ------------------------------------------------------------------------------------------------- */
/* Whether all programs make a group before the operations of this step; then the call is out. */
bool pc_subset_make(struct pc_workload *workload, struct program *program);
/* The call has ended. True: there is a group; false: the step begins anew, for all alike. */
bool pc_subset_made(struct pc_workload *workload, struct program *program);
/* Posts what the program does in its groups in this step. */
void pc_subset_start(struct pc_workload *workload, struct program *program);
void pc_subset_ended(struct pc_workload *workload, struct program *program, struct subset *subset);
bool pc_subset_all_done(const struct program *program);
/* Votes on the steps of groups that are complete here. */
void pc_subset_vote(struct pc_workload *workload, struct program *program);
void pc_subset_voted(struct pc_workload *workload, struct program *program, struct subset *subset);
bool pc_subset_all_voted(const struct program *program);
bool pc_subset_untouched(const struct program *program);
void pc_subset_free(struct program *program);

#endif
