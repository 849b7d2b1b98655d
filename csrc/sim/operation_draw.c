/*
 * Which operations the programs do: pure functions of seed, step and tag, so that all programs do the same ones.
 */
#include "sim/workload_state.h"

#include <stdio.h>

struct variant {
    pcclCollective_t kind;
    uint8_t algorithm;
    bool coded;
};

/* Each collective with each of its algorithms, plain and encoded. */
static const struct variant VARIANTS[] = {
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_RING, false},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_TREE, false},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_EXCHANGE, false},
    {PCCL_COLLECTIVE_BROADCAST, PC_ALGORITHM_RING, false},
    {PCCL_COLLECTIVE_BROADCAST, PC_ALGORITHM_TREE, false},
    {PCCL_COLLECTIVE_BROADCAST, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_REDUCE, PC_ALGORITHM_RING, false},
    {PCCL_COLLECTIVE_REDUCE, PC_ALGORITHM_TREE, false},
    {PCCL_COLLECTIVE_REDUCE, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_ALL_GATHER, PC_ALGORITHM_RING, false},
    {PCCL_COLLECTIVE_ALL_GATHER, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_REDUCE_SCATTER, PC_ALGORITHM_RING, false},
    {PCCL_COLLECTIVE_REDUCE_SCATTER, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_GATHER, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_SCATTER, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_ALL_TO_ALL, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_SEND, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_RECV, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_BARRIER, PC_ALGORITHM_RING, false},
    {PCCL_COLLECTIVE_BARRIER, PC_ALGORITHM_TREE, false},
    {PCCL_COLLECTIVE_BARRIER, PC_ALGORITHM_DIRECT, false},
    {PCCL_COLLECTIVE_BARRIER, PC_ALGORITHM_EXCHANGE, false},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_RING, true},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_TREE, true},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_ALL_REDUCE, PC_ALGORITHM_EXCHANGE, true},
    {PCCL_COLLECTIVE_REDUCE, PC_ALGORITHM_RING, true},
    {PCCL_COLLECTIVE_REDUCE, PC_ALGORITHM_TREE, true},
    {PCCL_COLLECTIVE_REDUCE, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_REDUCE_SCATTER, PC_ALGORITHM_RING, true},
    {PCCL_COLLECTIVE_REDUCE_SCATTER, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_BROADCAST, PC_ALGORITHM_RING, true},
    {PCCL_COLLECTIVE_BROADCAST, PC_ALGORITHM_TREE, true},
    {PCCL_COLLECTIVE_BROADCAST, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_ALL_GATHER, PC_ALGORITHM_RING, true},
    {PCCL_COLLECTIVE_ALL_GATHER, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_GATHER, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_SCATTER, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_ALL_TO_ALL, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_SEND, PC_ALGORITHM_DIRECT, true},
    {PCCL_COLLECTIVE_RECV, PC_ALGORITHM_DIRECT, true},
};

enum { VARIANT_COUNT = sizeof VARIANTS / sizeof VARIANTS[0], SHORT_STEPS = 2 };

/* Takes a draw below limit from bits. */
static uint64_t take(uint64_t *bits, uint64_t limit) {
    const uint64_t value = *bits % limit;
    *bits /= limit;
    return value;
}

static bool has_blocks(pcclCollective_t kind) {
    return kind >= PCCL_COLLECTIVE_ALL_GATHER && kind <= PCCL_COLLECTIVE_ALL_TO_ALL;
}

static uint64_t draw_count(uint64_t bits, bool part) {
    if (bits % 16 == 0) return bits / 16 % 4; /* none, or fewer than peers */
    if (bits % (part ? 64 : 32) == 1) return 9000 + bits / 64 % 60000; /* beyond the eager part, and beyond a segment */
    return 1 + bits / 64 % 300;
}

/*
 * The first operation of each step goes through all variants from seed to seed, so that programs of two steps have had
 * them all after VARIANT_COUNT / 2 seeds, whatever the number of peers. The others are drawn.
 */
static struct variant draw_variant(const struct pc_workload *workload, uint64_t step, uint32_t tag, uint64_t *bits) {
    const uint64_t any = take(bits, VARIANT_COUNT);
    const bool free_choice = take(bits, 4) == 0;
    if (tag == 0) return VARIANTS[(workload->config.seed * SHORT_STEPS + step) % VARIANT_COUNT];
    struct variant variant = VARIANTS[any];
    if (free_choice) variant.algorithm = PC_ALGORITHM_AUTO;
    return variant;
}

struct operation_draw pc_operation_draw(const struct pc_workload *workload, uint64_t step, uint32_t tag, uint32_t places) {
    const uint64_t seed = workload->config.seed;
    uint64_t bits = pc_workload_mix(seed, step, 400 + tag);
    const struct variant variant = draw_variant(workload, step, tag, &bits);
    struct operation_draw draw = {.kind = variant.kind, .algorithm = variant.algorithm, .places = places};
    const bool reduces = draw.kind != PCCL_COLLECTIVE_BARRIER && pc_collective_reduces((uint32_t)draw.kind);
    /*
     * Encoded numbers, and averages, are float64, so fine that whole numbers can be told apart in the sums. With more
     * peers the bits that name the participants would leave no room for that, and sums none in 16 bits.
     */
    const bool few = workload->config.peers <= 16;
    const bool shortest = take(&bits, 2) == 0;
    draw.in_place = take(&bits, 4) != 0;
    draw.uneven = take(&bits, 2) == 0;
    const uint64_t weights = take(&bits, 8);
    draw.weighted = reduces && weights < 3;
    draw.average = draw.weighted && weights == 0 && few;
    if (variant.coded && few) draw.codec = shortest && !draw.average ? pcclQuantIntSum : pcclQuantMinMax;
    const uint64_t blunder = take(&bits, 64);
    draw.count = draw_count(pc_workload_mix(seed, step, 100 + tag), tag >= TAGS_MAX);
    if (has_blocks(draw.kind)) draw.count /= places;
    if (draw.kind == PCCL_COLLECTIVE_BARRIER) draw.count = 0;
    if (blunder == 0 && draw.count > 1) draw.blunder = WRONG_COUNT;
    if (blunder == 1) draw.blunder = IMPATIENT;
    if (blunder > 61) draw.blunder = DESERTS;
    else if (blunder > 59) draw.blunder = FORGETS;
    draw.bits = pc_workload_mix(seed, step, 200 + tag);
    return draw;
}

void pc_operation_name(const struct operation_draw *draw, char *out, size_t out_bytes) {
    static const char *const one_way[] = {"send", "recv from any", "barrier"};
    const bool collective = draw->kind < PCCL_COLLECTIVE_SEND;
    const char *name = collective ? pc_collective_name((uint32_t)draw->kind) : one_way[draw->kind - PCCL_COLLECTIVE_SEND];
    (void)snprintf(out, out_bytes, "%s%s", draw->codec != pcclQuantNone ? "coded " : "", name);
}
