/*
 * K4, private to the workload: one operation of a program. What it is, is drawn from the seed alike at all programs
 * (operation_draw.c). Its memory at one peer, and what must be in there afterwards, are formulas (oracle.c). Its life is
 * the same in the whole group and in groups of some members (operation_work.c).
 */
#ifndef PC_OPERATION_WORK_H
#define PC_OPERATION_WORK_H

#include "plan/chunk_plan.h"
#include "sim/world.h"

struct pc_workload;
struct program;

/* Slots of a group's members, by rank. */
struct member_list {
    uint32_t n, rank; /* rank: the own one */
    uint8_t slots[PC_WORLD_PROCESSES_MAX];
};

/*
 * What slot 1 does wrong at its first attempt, or second. All must be told, and the next attempt must work. It leaves the step without
 * the operation, DESERTS: and votes against it, FORGETS: and for it.
 */
enum blunder { NO_BLUNDER, WRONG_COUNT, IMPATIENT, DESERTS, FORGETS };

struct operation_draw {
    pcclCollective_t kind; /* SEND: between two members each; RECV: one receives from anybody what all others send to it */
    uint8_t algorithm;
    pcclQuantizationAlgorithm_t codec;
    bool average, weighted, uneven, in_place;
    enum blunder blunder;
    uint64_t count; /* elements: of the payload, or of the least block */
    uint64_t bits; /* choose root, partners, sizes of blocks */
    uint32_t places; /* members that partners are chosen from */
};

struct operation {
    struct pc_call call;
    struct operation_draw draw;
    uint64_t step;
    uint32_t tag; /* of the program: others of its operations have others, also in other groups */
    uint32_t group; /* 0: the whole */
    uint32_t slot; /* this peer's */
    bool in_step, idle, done; /* idle: this peer has no part in it */
    bool forgotten; /* it has, and left it out */
    uint32_t times, round; /* how often a send of a step is posted, one after the other, and how often it was */
    bool rests; /* who receives it calls later */
    uint32_t attempt;
    uint32_t again; /* posts that ended so that it goes on, but not as another attempt of all */
    struct member_list members; /* when it was posted; once it has succeeded: those that took part */
    uint64_t group_epoch; /* of members */
    uint32_t root, source, target; /* ranks; PC_RANK_NONE: nobody, or anybody */
    uint64_t base; /* draw.count, or what this peer takes it for */
    uint64_t got; /* slots that a receive from anybody needs not wait for any more */
    uint64_t concerned; /* slots that must agree on the outcome */
    uint64_t counts[PC_WORLD_PROCESSES_MAX], recv_counts[PC_WORLD_PROCESSES_MAX];
    uint64_t *memory; /* send and receive buffer, with guards between */
    size_t memory_elems;
    uint64_t *send, *recv;
    uint64_t send_elems, recv_elems;
    bool in_place, undo;
    uint64_t outside; /* digest of what lies outside of the receive buffer, which never changes */
    uint64_t digest; /* of memory, when the call had ended */
};

/* operation_draw.c ----------------------------------------------------------------------------------------------- */
/* What tag is in this step of the program; tags from TAGS_MAX: of groups of so many members. */
struct operation_draw pc_operation_draw(const struct pc_workload *workload, uint64_t step, uint32_t tag, uint32_t places);
/* "all_reduce", ...: as in pccl.h, and "coded all_reduce" */
void pc_operation_name(const struct operation_draw *draw, char *out, size_t out_bytes);

/* oracle.c ------------------------------------------------------------------------------------------------------- */
/* Finds the part of this peer among members, and gives it memory: inputs, and marks where results come. */
void pc_oracle_prepare(struct operation *op);
void pc_oracle_free(struct operation *op);
/* The sum of the weights of members. */
uint64_t pc_oracle_weight(const struct operation *op, const struct member_list *members);
uint64_t pc_oracle_own_weight(const struct operation *op);
/* Nothing was written but to the receive buffer. Without success, inputs in there are as they were too. */
bool pc_oracle_kept(const struct operation *op, bool success);
/* Nobody has written to the memory since the call ended. */
bool pc_oracle_untouched(const struct operation *op);
/* Its call has succeeded: every element at this peer is right, for those that took part. */
void pc_oracle_check(struct pc_workload *workload, struct operation *op);
/* And it counts: what others that have succeeded hold of it, and with whom, is the same. */
void pc_oracle_compare(struct pc_workload *workload, const struct operation *op);

/* operation_work.c ----------------------------------------------------------------------------------------------- */
/* This peer does now what it does wrong. */
bool pc_operation_miscounts(const struct operation *op);
bool pc_operation_deserts(const struct operation *op);

enum operation_end { OPERATION_DONE, OPERATION_AGAIN, OPERATION_BROKEN, OPERATION_OUT };

/* Does what this peer has to do now. members: of the group that it is in. */
void pc_operation_post(struct pc_workload *workload, struct program *program, struct operation *op,
                       const struct member_list *members);
/* Its call has ended. AGAIN: it must be posted again; BROKEN: its group is; OUT: this program is. */
enum operation_end pc_operation_ended(struct pc_workload *workload, struct program *program, struct operation *op);
/* It has rested, and calls now. */
void pc_operation_rested(struct pc_workload *workload, struct program *program, struct operation *op);
/* The step that it is part of has been voted on. False: it was aborted too often. */
bool pc_operation_voted(struct pc_workload *workload, struct operation *op, bool commit);

#endif
