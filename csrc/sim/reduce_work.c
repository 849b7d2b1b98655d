/*
 * What the programs reduce in the whole group: the calls, and what must be true of their results. Which calls a step has
 * is a pure function of the seed, the step and the tag, so that all programs make the same ones.
 */
#include "sim/workload_state.h"

#include "base/checked.h"
#include "math/codec.h"
#include "math/digest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Draws --------------------------------------------------------------------------------------------------------- */

static uint32_t tags_of(const struct pc_workload *workload, uint64_t step) {
    return 1 + (uint32_t)(pc_workload_mix(workload->config.seed, step, 1) % TAGS_MAX);
}

static uint64_t count_of(const struct pc_workload *workload, uint64_t step, uint32_t tag) {
    const uint64_t draw = pc_workload_mix(workload->config.seed, step, 100 + tag);
    if (draw % 16 == 0) return draw / 16 % 4; /* none, or fewer than peers */
    if (draw % 32 == 1) return 9000 + draw / 32 % 60000; /* beyond the eager part, and beyond a segment */
    return 1 + draw / 32 % 300;
}

static bool in_place_of(const struct pc_workload *workload, uint64_t step, uint32_t tag) {
    return pc_workload_mix(workload->config.seed, step, 200 + tag) % 4 != 0;
}

static uint8_t algorithm_of(const struct pc_workload *workload, uint64_t step, uint32_t tag) {
    return (uint8_t)(pc_workload_mix(workload->config.seed, step, 400 + tag) % PC_ALGORITHM_COUNT);
}

/*
 * float64 that travels encoded, so finely that whole numbers can be told apart in the sums. With more peers the bits that
 * name the participants would leave no room for that.
 */
static bool coded(const struct pc_workload *workload, uint64_t step, uint32_t tag) {
    return workload->config.peers <= 32 && pc_workload_mix(workload->config.seed, step, 600 + tag) % 8 == 0;
}

/* Reductions of this step of the program return when they are complete, and are voted on together. */
static bool voted_on(const struct pc_workload *workload, uint64_t step) {
    return pc_workload_mix(workload->config.seed, step, 500) % 3 == 0;
}

/* A user error now and then: one peer calls with another count. All must be told, and the retry must work. */
static bool wrong_call(const struct pc_workload *workload, uint64_t step, uint32_t tag) {
    return count_of(workload, step, tag) > 1 && pc_workload_mix(workload->config.seed, step, 300 + tag) % 64 == 0;
}

/* Data ---------------------------------------------------------------------------------------------------------- */

static int64_t number_at(const struct reduction *reduction, const int64_t *data, uint64_t i) {
    if (reduction->call.shape.codec == pcclQuantNone) return data[i];
    double number;
    memcpy(&number, &data[i], sizeof number);
    return llround(number);
}

static void fill(const struct pc_workload *workload, struct program *program, struct reduction *reduction, uint32_t tag) {
    const bool as_double = coded(workload, program->step, tag);
    const uint64_t count = count_of(workload, program->step, tag);
    for (uint64_t i = 0; i < count; i++) {
        const int64_t value = pc_workload_value(program->slot, program->step, tag, i);
        const double number = (double)value;
        memcpy(&reduction->send[i], as_double ? (const void *)&number : (const void *)&value, sizeof value);
    }
}

static bool unchanged(const struct program *program, const struct reduction *reduction, uint32_t tag, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (number_at(reduction, reduction->send, i) != pc_workload_value(program->slot, program->step, tag, i)) return false;
    }
    return true;
}

bool pc_reductions_unchanged(const struct pc_workload *workload, const struct program *program) {
    for (uint32_t tag = 0; tag < program->reduction_count; tag++) {
        const struct reduction *reduction = &program->reductions[tag];
        const uint64_t count = count_of(workload, program->step, tag);
        if (!reduction->in_place && !unchanged(program, reduction, tag, count)) return false;
    }
    return true;
}

/* Posting ------------------------------------------------------------------------------------------------------- */

static void post_reduction(struct pc_workload *workload, struct program *program, uint32_t tag) {
    struct reduction *reduction = &program->reductions[tag];
    const uint64_t count = count_of(workload, program->step, tag);
    memset(&reduction->call, 0, sizeof reduction->call);
    reduction->call.kind = PC_CALL_COLLECTIVE;
    reduction->call.tag = tag;
    reduction->call.shape = (struct pc_op_shape){.count = count,
                                                  .dtype = pcclInt64,
                                                  .redop = pcclSum,
                                                  .consistency = program->in_step ? PC_STEP : PC_STRICT,
                                                  .algorithm = algorithm_of(workload, program->step, tag)};
    if (coded(workload, program->step, tag)) {
        reduction->call.shape.dtype = pcclDouble;
        reduction->call.shape.codec = pcclQuantMinMax;
        reduction->call.shape.codec_bits = 64;
        reduction->call.shape.codec_block = PC_CODEC_BLOCK_MIN;
    }
    const bool wrong = !program->in_step && reduction->attempt == 0 && program->slot == 1 && wrong_call(workload, program->step, tag);
    if (wrong) reduction->call.shape.count = count - 1;
    reduction->call.send = reduction->send;
    reduction->call.recv = reduction->in_place ? reduction->send : reduction->recv;
    reduction->call.undo = reduction->in_place;
    reduction->call.weight = 1;
    reduction->call.scale = 1.0;
    reduction->done = false;
    pc_workload_post(workload, program, &reduction->call);
}

void pc_reductions_free(struct program *program) {
    for (uint32_t tag = 0; tag < program->reduction_count; tag++) {
        free(program->reductions[tag].send);
        free(program->reductions[tag].recv);
    }
    program->reduction_count = 0;
}

static void post_reductions(struct pc_workload *workload, struct program *program) {
    program->state = WAIT_REDUCE;
    program->step_failed = false;
    const uint64_t turn = pc_world_random(workload->world);
    for (uint32_t i = 0; i < program->reduction_count && program->state == WAIT_REDUCE; i++) {
        post_reduction(workload, program, (uint32_t)((i + turn) % program->reduction_count));
    }
}

void pc_reductions_start(struct pc_workload *workload, struct program *program) {
    pc_subset_free(program);
    pc_reductions_free(program);
    program->in_step = voted_on(workload, program->step);
    program->voted = false;
    program->reduction_count = tags_of(workload, program->step);
    memset(program->reductions, 0, sizeof program->reductions);
    for (uint32_t tag = 0; tag < program->reduction_count; tag++) {
        struct reduction *reduction = &program->reductions[tag];
        const uint64_t count = count_of(workload, program->step, tag);
        reduction->in_place = in_place_of(workload, program->step, tag);
        reduction->send = malloc(count * sizeof(int64_t) + 8);
        reduction->recv = malloc(count * sizeof(int64_t) + 8);
        fill(workload, program, reduction, tag);
    }
    program->state = WAIT_REDUCE;
    pc_subset_start(workload, program);
    if (program->state == WAIT_REDUCE) post_reductions(workload, program);
}

/* Results ------------------------------------------------------------------------------------------------------- */

uint64_t pc_workload_check_sum(struct pc_workload *workload, struct program *program, const struct reduction *reduction,
                               uint32_t tag, uint64_t count) {
    const int64_t *data = reduction->call.recv;
    const uint32_t world = reduction->call.outcome.reduce.local_world_size;
    struct attempt *attempt = pc_workload_attempt(workload, program->step, tag, reduction->attempt);
    const uint64_t digest = pc_digest64(data, count * sizeof *data);
    const bool first = attempt->winners == 0;
    if (!first && (attempt->digest != digest || attempt->world != world)) {
        pc_workload_violate(workload, "L3: step %llu tag %u: peer %u holds other bytes than its peers",
                            (unsigned long long)program->step, tag, program->slot);
    }
    attempt->digest = digest;
    attempt->world = world;
    attempt->winners |= 1ull << (program->slot - 1);
    if (count == 0) return 0;
    const uint64_t mask = (uint64_t)number_at(reduction, data, 0);
    if ((uint32_t)__builtin_popcountll(mask) != world || (mask >> (program->slot - 1) & 1) == 0) {
        pc_workload_violate(workload, "L5: step %llu tag %u: peer %u was told of %u participants, the data has %d",
                            (unsigned long long)program->step, tag, program->slot, world, __builtin_popcountll(mask));
    }
    /* The first winner's bytes were looked at; these are the same. */
    for (uint64_t i = 1; i < count && first; i++) {
        int64_t sum = 0;
        for (uint64_t left = mask; left != 0; left &= left - 1) {
            sum += pc_workload_value(1 + (uint32_t)__builtin_ctzll(left), program->step, tag, i);
        }
        if (sum == number_at(reduction, data, i)) continue;
        pc_workload_violate(workload, "L3: step %llu tag %u: element %llu at peer %u is wrong",
                            (unsigned long long)program->step, tag, (unsigned long long)i, program->slot);
        break;
    }
    return mask;
}

static void check_result(struct pc_workload *workload, struct program *program, uint32_t tag) {
    const uint64_t count = count_of(workload, program->step, tag);
    (void)pc_workload_check_sum(workload, program, &program->reductions[tag], tag, count);
}

/* Winners and losers of one attempt: only those that were expelled may see it otherwise. */
void pc_workload_check_agreement(struct pc_workload *workload, const struct program *program,
                                 const struct reduction *reduction, uint32_t tag) {
    const struct attempt *attempt = pc_workload_attempt(workload, program->step, tag, reduction->attempt);
    if (attempt->winners == 0 || attempt->losers == 0) return;
    pc_workload_violate(workload, "L2: step %llu tag %u attempt %u: success at peers %llx, failure at %llx",
                        (unsigned long long)program->step, tag, reduction->attempt,
                        (unsigned long long)attempt->winners, (unsigned long long)attempt->losers);
}

static void check_agreement(struct pc_workload *workload, const struct program *program, uint32_t tag) {
    pc_workload_check_agreement(workload, program, &program->reductions[tag], tag);
}

bool pc_reductions_done(const struct program *program) {
    for (uint32_t i = 0; i < program->reduction_count; i++) {
        if (!program->reductions[i].done) return false;
    }
    return true;
}

/* Of a step: what it came to is checked when it has been voted on. */
static void on_reduced_in_step(struct pc_workload *workload, struct program *program, struct reduction *reduction) {
    const pc_status code = reduction->call.outcome.error.code;
    if (pc_workload_expelled(code)) {
        pc_workload_give_up(program);
        return;
    }
    if (code != pcclSuccess && code != pcclTooFewPeers && code != pcclRankConnectionLost) {
        pc_workload_violate(workload, "L7: unexpected %s in a step at peer %u: %s", pc_status_name(code), program->slot,
                reduction->call.outcome.error.message);
    }
    program->step_failed |= code == pcclRankConnectionLost;
    reduction->done = true;
    pc_workload_go_on(workload, program);
}

void pc_reductions_vote(struct pc_workload *workload, struct program *program) {
    memset(&program->call, 0, sizeof program->call);
    program->call.kind = PC_CALL_END_STEP;
    program->call.vote = !program->step_failed;
    program->state = WAIT_VOTE;
    program->call_out = true;
    pc_workload_post(workload, program, &program->call);
}

void pc_reductions_voted(struct pc_workload *workload, struct program *program) {
    const pc_status code = program->call.outcome.error.code;
    if (pc_workload_expelled(code)) {
        pc_workload_give_up(program);
        return;
    }
    if (code != pcclSuccess && code != pcclStepAborted) {
        pc_workload_violate(workload, "L7: unexpected %s of a vote at peer %u: %s", pc_status_name(code), program->slot,
                program->call.outcome.error.message);
        return;
    }
    for (uint32_t tag = 0; tag < program->reduction_count; tag++) {
        struct reduction *reduction = &program->reductions[tag];
        struct attempt *attempt = pc_workload_attempt(workload, program->step, tag, reduction->attempt);
        if (code == pcclSuccess && reduction->call.outcome.error.code == pcclSuccess) {
            workload->committed++;
            check_result(workload, program, tag);
        } else if (code == pcclStepAborted) {
            workload->aborted++;
            attempt->losers |= 1ull << (program->slot - 1);
            fill(workload, program, reduction, tag);
        }
        check_agreement(workload, program, tag);
        if (code == pcclStepAborted && ++reduction->attempt == ATTEMPTS_MAX) {
            pc_workload_violate(workload, "L1: step %llu was aborted %u times at peer %u", (unsigned long long)program->step,
                    ATTEMPTS_MAX, program->slot);
            return;
        }
    }
    program->voted = code == pcclSuccess;
    if (program->voted) {
        program->state = WAIT_REDUCE;
        pc_workload_go_on(workload, program);
    } else {
        post_reductions(workload, program);
    }
}

void pc_reduction_ended(struct pc_workload *workload, struct program *program, struct reduction *reduction) {
    const uint32_t tag = (uint32_t)(reduction - program->reductions);
    const uint64_t count = count_of(workload, program->step, tag);
    const pc_status code = reduction->call.outcome.error.code;
    if (program->in_step) {
        on_reduced_in_step(workload, program, reduction);
        return;
    }
    if (code == pcclSuccess) {
        workload->committed++;
        check_result(workload, program, tag);
        check_agreement(workload, program, tag);
        reduction->done = true;
    } else {
        workload->aborted++;
        if (reduction->in_place && !unchanged(program, reduction, tag, count)) {
            pc_workload_violate(workload, "L2: step %llu tag %u: the buffer of peer %u is not as before after %s",
                    (unsigned long long)program->step, tag, program->slot, pc_status_name(code));
        }
        if (reduction->call.outcome.error.message[0] == '\0') {
            pc_workload_violate(workload, "L7: %s without a message at peer %u", pc_status_name(code), program->slot);
        }
        if (pc_workload_expelled(code)) {
            pc_workload_give_up(program);
            return;
        }
        if (code == pcclTooFewPeers) {
            reduction->done = true; /* alone: its own values are the result */
        } else if (code == pcclRankConnectionLost || code == pcclMismatch) {
            if (code == pcclMismatch && !wrong_call(workload, program->step, tag)) {
                pc_workload_violate(workload, "L4: peer %u got a mismatch where all calls match: %s", program->slot,
                        reduction->call.outcome.error.message);
            }
            if (!workload->disturbed && strstr(reduction->call.outcome.error.message, "the link between") != NULL) {
                pc_workload_violate(workload, "L1: without a fault: %s", reduction->call.outcome.error.message);
            }
            pc_workload_attempt(workload, program->step, tag, reduction->attempt)->losers |= 1ull << (program->slot - 1);
            check_agreement(workload, program, tag);
            if (++reduction->attempt == ATTEMPTS_MAX) {
                pc_workload_violate(workload, "L1: step %llu tag %u failed %u times at peer %u", (unsigned long long)program->step, tag,
                        ATTEMPTS_MAX, program->slot);
                return;
            }
            post_reduction(workload, program, tag);
            return;
        } else {
            pc_workload_violate(workload, "L7: unexpected %s at peer %u: %s", pc_status_name(code), program->slot,
                    reduction->call.outcome.error.message);
            return;
        }
    }
    pc_workload_go_on(workload, program);
}
