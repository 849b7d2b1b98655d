/*
 * A collective as a pure machine; see collective.h for memory and chunk_plan.h for who sends what to whom. Belongs to an
 * operation of a member, runs on its thread, calls back only from within start, received and sent.
 */
#include "proto/collective.h"

#include "base/checked.h"
#include "bytes/dtype.h"
#include "math/copy.h"
#include "proto/mutant.h"
#include "proto/result.h"

#include <assert.h>
#include <string.h>

/* A segment of a chunk that is being combined; inputs that came before their turn wait. */
struct pc_merge {
    uint32_t next; /* input whose turn it is */
    struct pc_value acc;
};

struct input {
    struct pc_value value;
    bool here;
};

struct pc_chunk_state {
    uint64_t seen_at, saved_at; /* first bit */
    struct pc_merge *merges; /* a segment each; NULL: at most one input comes from another member */
    struct input *inputs; /* input_count for each segment */
};

static bool test_bit(const uint8_t *bits, uint64_t index) {
    return (bits[index / 8] >> (index % 8) & 1) != 0;
}

static void set_bit(uint8_t *bits, uint64_t index) {
    bits[index / 8] = (uint8_t)(bits[index / 8] | 1u << (index % 8));
}

static struct pc_chunk_state *state_of(const struct pc_collective *c, const struct pc_chunk *chunk) {
    return &c->states[chunk - c->plan.chunks];
}

static uint32_t input_rank(const struct pc_collective *c, const struct pc_chunk *chunk, uint32_t input) {
    return c->plan.ranks[chunk->inputs_at + input];
}

static const uint8_t *own_place(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range) {
    return c->send + (chunk->own_elem + range.first_elem) * c->plan.elem_bytes;
}

/* So large that nobody finds its final value in the cache: with less, the caller may. */
static bool is_cold(const struct pc_collective *c, const struct pc_chunk *chunk) {
    enum { COLD_BYTES = 4 << 20 };
    return chunk->elems * c->plan.elem_bytes >= COLD_BYTES;
}

/* Whether combinations of chunk can wait outside the pool. */
static bool can_move(const struct pc_collective *c, const struct pc_chunk *chunk) {
    return chunk->kept && chunk->from != PC_RANK_NONE && !pc_collective_widens(c) && !pc_collective_codes(c) &&
           pc_chunk_remote_inputs(&c->plan, chunk) == 1;
}

/* Life ---------------------------------------------------------------------------------------------------------- */

static void count_traffic(struct pc_collective *c) {
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        const struct pc_chunk *chunk = &c->plan.chunks[i];
        const uint64_t in = pc_chunk_remote_inputs(&c->plan, chunk) + (chunk->from != PC_RANK_NONE);
        const uint64_t out = (chunk->up != PC_RANK_NONE) + chunk->copy_count + chunk->down_count;
        c->receives_left += in * chunk->segments;
        c->sends_left += out * chunk->segments;
    }
}

/* Sizes first, then places: the tables share one buffer, whose size the plan tells. */
struct layout {
    uint64_t seen_bits, saved_bits, merges, inputs;
};

static void lay_out(struct pc_collective *c, struct layout *layout, struct pc_merge *merges, struct input *inputs) {
    *layout = (struct layout){0};
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        const struct pc_chunk *chunk = &c->plan.chunks[i];
        const bool merging = pc_chunk_remote_inputs(&c->plan, chunk) > 1;
        if (c->states != NULL) {
            c->states[i] = (struct pc_chunk_state){
                .seen_at = layout->seen_bits,
                .saved_at = layout->saved_bits,
                .merges = merging ? merges + layout->merges : NULL,
                .inputs = merging ? inputs + layout->inputs : NULL,
            };
        }
        layout->seen_bits += (uint64_t)chunk->segments * (chunk->input_count + 1);
        layout->saved_bits += chunk->segments;
        if (merging) {
            layout->merges += chunk->segments;
            layout->inputs += (uint64_t)chunk->segments * chunk->input_count;
        }
    }
}

static uint64_t out_elems(const struct pc_collective *c) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        const struct pc_chunk *chunk = &c->plan.chunks[i];
        if (chunk->kept) end = pc_max_u64(end, chunk->out_elem + chunk->elems);
    }
    return end;
}

static pc_status make_tables(struct pc_collective *c, uint8_t *plan_memory, size_t plan_bytes) {
    struct layout layout;
    lay_out(c, &layout, NULL, NULL);
    const size_t states = plan_bytes, merges = states + c->plan.chunk_count * sizeof *c->states;
    const size_t inputs = merges + layout.merges * sizeof(struct pc_merge);
    const size_t seen = inputs + layout.inputs * sizeof(struct input), saved = seen + layout.seen_bits / 8 + 1;
    const size_t total = saved + layout.saved_bits / 8 + 1;
    if (total > c->memory_capacity) {
        size_t capacity = 0;
        uint8_t *larger = pc_pool_take_buffer(c->pool, total, &capacity);
        if (larger == NULL) return pcclNoMemory;
        memcpy(larger, plan_memory, plan_bytes);
        c->plan.chunks = (struct pc_chunk *)(void *)larger;
        c->plan.ranks = (uint32_t *)(void *)(larger + ((uint8_t *)c->plan.ranks - plan_memory));
        pc_pool_give_buffer(c->pool, c->memory, c->memory_capacity);
        c->memory = larger;
        c->memory_capacity = capacity;
    }
    memset(c->memory + states, 0, total - states);
    c->states = (struct pc_chunk_state *)(void *)(c->memory + states);
    c->seen = c->memory + seen;
    c->saved = c->memory + saved;
    lay_out(c, &layout, (struct pc_merge *)(void *)(c->memory + merges), (struct input *)(void *)(c->memory + inputs));
    return pcclSuccess;
}

pc_status pc_collective_init(struct pc_collective *c, const struct pc_collective_config *config) {
    const struct pc_op_shape *shape = config->request.shape;
    *c = (struct pc_collective){
        .user = config->user,
        .dtype = (pcclDataType_t)shape->dtype,
        .redop = (pcclRedOp_t)shape->redop,
        .reduces = pc_collective_reduces(shape->collective),
        .undo = config->undo,
        .weight = config->weight,
        .scale = config->scale,
        .feedback = config->feedback,
        .seed = config->seed,
        .send = config->send,
        .recv = config->recv,
        .pool = config->pool,
    };
    pc_list_init(&c->segments);
    const size_t plan_bytes = (pc_chunk_plan_bytes(config->request.n) + 15) / 16 * 16;
    c->memory = pc_pool_take_buffer(c->pool, plan_bytes + 4096, &c->memory_capacity);
    if (c->memory == NULL) return pcclNoMemory;
    PC_TRY(pc_chunk_plan_init(&c->plan, &config->request, c->memory));
    c->plan.codec.stochastic = config->stochastic;
    c->plan.codec.finite_only = config->finite_only;
    PC_TRY(make_tables(c, c->memory, plan_bytes));
    count_traffic(c);
    const uint64_t undo_elems = c->undo ? out_elems(c) : 0;
    if (undo_elems > 0) {
        c->shadow = pc_pool_take_buffer(c->pool, (size_t)(undo_elems * c->plan.elem_bytes), &c->shadow_capacity);
        if (c->shadow == NULL) return pcclNoMemory;
    }
    if (c->feedback.residual != NULL && c->weight > 0 && shape->count > 0) {
        c->residual = pc_pool_take_buffer(c->pool, (size_t)(shape->count * c->plan.acc_bytes), &c->residual_capacity);
        if (c->residual == NULL) return pcclNoMemory;
    }
    return pcclSuccess;
}

void pc_collective_fini(struct pc_collective *c) {
    if (c->pool == NULL) return;
    struct pc_list *node;
    while ((node = pc_list_pop(&c->segments)) != NULL) {
        pc_pool_give_segment(c->pool, PC_LIST_ENTRY(node, struct pc_segment, node));
    }
    pc_pool_give_buffer(c->pool, c->memory, c->memory_capacity);
    pc_pool_give_buffer(c->pool, c->shadow, c->shadow_capacity);
    pc_pool_give_buffer(c->pool, c->residual, c->residual_capacity);
    memset(c, 0, sizeof *c);
}

/* Staging ------------------------------------------------------------------------------------------------------- */

static struct pc_segment *segment_of(uint8_t *data) {
    return (struct pc_segment *)(void *)(data - offsetof(struct pc_segment, data));
}

/* Sending ------------------------------------------------------------------------------------------------------- */

static pc_status emit(struct pc_collective *c, const struct pc_chunk *chunk, struct pc_emission *emission) {
    emission->chunk = chunk->number;
    emission->chunk_elems = chunk->elems;
    c->tx_bytes += emission->len_bytes;
    return c->user.emit(c->user.context, emission);
}

/* value, encoded if there is a codec, to one member. */
static pc_status emit_partial(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, uint32_t to,
                              struct pc_value *value) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    if (pc_collective_codes(c)) PC_TRY(pc_value_encode(c, chunk, segment, value));
    const uint32_t elem = value->wide ? c->plan.acc_bytes : c->plan.elem_bytes;
    struct pc_emission emission = {
        .to = to,
        .segment = segment,
        .kind = PC_DATA_PARTIAL,
        .forwarded = chunk->up != PC_RANK_NONE && pc_chunk_remote_inputs(&c->plan, chunk) > 0,
        .weight = value->weight,
        .elems = range.elems,
        .staged = value->segment,
    };
    if (value->segment != NULL && !emission.forwarded && !value->segment->contribution) {
        value->segment->contribution = true;
        c->staged_out++;
    }
    if (value->weight > 0) {
        emission.bulk = value->data;
        emission.len_bytes = value->coded_bytes > 0 ? value->coded_bytes : range.elems * elem;
    }
    return emit(c, chunk, &emission);
}

/* value, in the form in which it travels, to all that get the final value from here. It is used up. */
static pc_status emit_final(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                            const struct pc_value *value) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    if (value->segment != NULL) value->segment->holders += chunk->down_count;
    for (uint32_t i = 0; i < chunk->down_count; i++) {
        struct pc_emission emission = {
            .to = c->plan.ranks[chunk->down_at + i],
            .segment = segment,
            .kind = PC_DATA_FINAL,
            .forwarded = chunk->from != PC_RANK_NONE,
            .weight = value->weight,
            .elems = range.elems,
            .len_bytes = value->coded_bytes > 0 ? value->coded_bytes : range.elems * c->plan.elem_bytes,
            .bulk = value->data,
            .staged = value->segment,
        };
        PC_TRY(emit(c, chunk, &emission));
    }
    pc_value_give(c, value->segment);
    return pcclSuccess;
}

/* Combining ----------------------------------------------------------------------------------------------------- */

/* What the place of a segment had is in the shadow. */
static void mark_saved(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    if (c->undo) set_bit(c->saved, state_of(c, chunk)->saved_at + segment);
}

/* The kernels finish with an operand that nobody has widened, or with none. */
static pc_status finish(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *acc,
                        struct pc_value *last) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    if (pc_collective_widens(c) || pc_collective_codes(c) || last->weight == 0) {
        PC_TRY(pc_value_make_accumulator(c, acc, range.elems));
    }
    if (pc_collective_codes(c) || (pc_collective_widens(c) && last->wide)) {
        PC_TRY(pc_value_absorb(c, acc, *last, range.elems));
        *last = (struct pc_value){0};
    }
    pc_result_finish(c, chunk, range, acc, last);
    mark_saved(c, chunk, segment);
    return pcclSuccess;
}

static pc_status finish_coded(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                              struct pc_value *acc, struct pc_value *last, struct pc_value *result) {
    const uint32_t elems = pc_chunk_segment(chunk, segment).elems;
    const bool adds = c->redop == pcclSum || c->redop == pcclAvg;
    if (last->coded_bytes > 0 && !adds) PC_TRY(pc_value_make_accumulator(c, last, elems));
    PC_TRY(pc_value_take_for(c, acc, elems, result));
    result->weight = acc->weight + last->weight;
    const pc_status status = pc_result_encode(c, chunk, segment, acc, last, result);
    mark_saved(c, chunk, segment);
    return status;
}

/* The value of a segment is final here: acc op last. It goes to its place, and down from there. */
static pc_status conclude(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value acc,
                          struct pc_value last) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    if (acc.weight == 0) {
        acc = last;
        last = (struct pc_value){0};
    }
    if (acc.weight == 0) return pcclInvalidArgument;
    struct pc_value result = {.data = pc_result_place(c, chunk, range), .weight = acc.weight + last.weight};
    /* What stays with this member alone is not encoded. */
    if (pc_collective_codes(c) && chunk->down_count > 0 && range.elems > 0) {
        PC_TRY(finish_coded(c, chunk, segment, &acc, &last, &result));
    } else {
        PC_TRY(finish(c, chunk, segment, &acc, &last));
    }
    pc_value_give(c, acc.segment);
    pc_value_give(c, last.segment);
    return emit_final(c, chunk, segment, &result);
}

/* Combinations that must wait for the next member would fill the pool while that one is slow. */
static void make_room(struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                      struct pc_value *value) {
    if (value->segment == NULL || !pc_pool_scarce(c->pool) || !can_move(c, chunk)) return;
    uint8_t *place = c->undo ? pc_result_shadow(c, chunk, range) : pc_result_place(c, chunk, range);
    pc_copy_anyhow(place, value->data, (size_t)range.elems * c->plan.elem_bytes);
    pc_value_give(c, value->segment);
    value->data = place;
    value->segment = NULL;
}

/*
 * The own contribution as an input here. Where everybody combines the same inputs, they are the same at all: what the
 * others decode is taken here too. So it is with integer sums, which do not depend on who adds what.
 */
static pc_status own_input(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                           struct pc_value *value) {
    PC_TRY(pc_value_own(c, chunk, segment, value));
    const bool same = chunk->copy_count > 0 || c->plan.codec.kind == pcclQuantIntSum;
    return pc_collective_codes(c) && same ? pc_value_encode(c, chunk, segment, value) : pcclSuccess;
}

/* Takes inputs in their turn as long as they are here. */
static pc_status combine(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                         struct pc_merge *merge, const struct input *inputs) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    while (merge->next < chunk->input_count) {
        const uint32_t rank = input_rank(c, chunk, merge->next);
        struct pc_value value;
        if (rank == c->plan.rank) {
            PC_TRY(own_input(c, chunk, segment, &value));
        } else if (inputs != NULL && inputs[merge->next].here) {
            value = inputs[merge->next].value;
        } else {
            return pcclSuccess;
        }
        const bool last = ++merge->next == chunk->input_count;
        if (last && chunk->up == PC_RANK_NONE) return conclude(c, chunk, segment, merge->acc, value);
        PC_TRY(pc_value_absorb(c, &merge->acc, value, range.elems));
    }
    make_room(c, chunk, range, &merge->acc);
    return emit_partial(c, chunk, segment, chunk->up, &merge->acc);
}

/* Encoded once, here: this member takes over what the others will decode. */
static pc_status distribute_coded(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    struct pc_value value = {.data = own_place(c, chunk, range), .wide = !pc_collective_widens(c), .weight = 1};
    PC_TRY(pc_value_encode(c, chunk, segment, &value));
    value.segment->contribution = true;
    c->staged_out++;
    if (chunk->kept) {
        pc_result_decode(c, chunk, range, &value);
        mark_saved(c, chunk, segment);
    }
    return emit_final(c, chunk, segment, &value);
}

/* A block that only this member has: it goes to its place here, and from the caller's memory to the others. */
static pc_status distribute(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    const uint8_t *own = own_place(c, chunk, range);
    if (pc_collective_codes(c) && chunk->down_count > 0 && range.elems > 0) return distribute_coded(c, chunk, segment);
    if (chunk->kept && own != pc_result_place(c, chunk, range)) {
        void (*const copy)(void *, const void *, size_t) = is_cold(c, chunk) ? pc_copy_past_cache : pc_copy_anyhow;
        copy(pc_result_place(c, chunk, range), own, (size_t)range.elems * c->plan.elem_bytes);
    }
    const struct pc_value value = {.data = own, .weight = 1};
    return emit_final(c, chunk, segment, &value);
}

static uint64_t seen_bit(const struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, uint32_t slot) {
    return state_of(c, chunk)->seen_at + (uint64_t)segment * (chunk->input_count + 1) + slot;
}

/*
 * Everybody combines this chunk itself. The copies are staged: the result may overwrite the contribution first. Once for
 * each segment.
 */
static pc_status emit_copies(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    uint32_t own = 0;
    while (input_rank(c, chunk, own) != c->plan.rank) own++;
    if (test_bit(c->seen, seen_bit(c, chunk, segment, own))) return pcclSuccess;
    set_bit(c->seen, seen_bit(c, chunk, segment, own));
    struct pc_value value;
    PC_TRY(pc_value_own(c, chunk, segment, &value));
    if (pc_collective_codes(c)) PC_TRY(pc_value_encode(c, chunk, segment, &value));
    if (value.weight > 0 && value.segment == NULL) {
        value.segment = pc_value_take(c, c->plan.rank, range.elems);
        if (value.segment == NULL) return pcclNoMemory;
        pc_copy_anyhow(value.segment->data, value.data, (size_t)range.elems * c->plan.elem_bytes);
        value.data = value.segment->data;
    }
    if (value.segment != NULL) value.segment->holders = chunk->copy_count;
    for (uint32_t i = 0; i < chunk->copy_count; i++) {
        PC_TRY(emit_partial(c, chunk, segment, c->plan.ranks[chunk->copies_at + i], &value));
    }
    return pcclSuccess;
}

static pc_status start_segment(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    if (!c->reduces) return distribute(c, chunk, segment);
    if (chunk->copy_count > 0) PC_TRY(emit_copies(c, chunk, segment));
    if (pc_chunk_remote_inputs(&c->plan, chunk) > 0) return pcclSuccess;
    struct pc_merge merge = {0};
    return combine(c, chunk, segment, &merge, NULL);
}

/*
 * Contributions that leave from staging memory are started a few at a time, in step for all chunks. Enough of them that
 * each member gets its next one while others wait for credit: of the lowest segment that is not combined everywhere there
 * are n - 1, and that one always has credit. Where plan.ahead counts, one is out until its final value is here: the
 * lowest segment that is not final everywhere is then the one that all can start.
 */
static bool may_start(const struct pc_collective *c) {
    return c->staged_out < (c->plan.ahead > 0 ? c->plan.ahead : 2 * c->plan.n);
}

static pc_status start_some(struct pc_collective *c) {
    uint32_t segments = 0;
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        if (c->plan.chunks[i].segments > segments) segments = c->plan.chunks[i].segments;
    }
    for (; c->start_segment < segments; c->start_segment++) {
        while (c->start_chunk < c->plan.chunk_count && may_start(c)) {
            /* Own rank first: members begin with different chunks, so that nobody gets everything at first. */
            const struct pc_chunk *chunk = &c->plan.chunks[(c->plan.rank + c->start_chunk++) % c->plan.chunk_count];
            if (chunk->input_count == 0 || c->start_segment >= chunk->segments) continue;
            PC_TRY(start_segment(c, chunk, c->start_segment));
        }
        if (c->start_chunk < c->plan.chunk_count) return pcclSuccess;
        c->start_chunk = 0;
    }
    return pcclSuccess;
}

pc_status pc_collective_start(struct pc_collective *c) {
    return start_some(c);
}

/* Receiving ----------------------------------------------------------------------------------------------------- */

static bool find_input(const struct pc_collective *c, const struct pc_chunk *chunk, uint32_t rank, uint32_t *input) {
    if (rank == c->plan.rank) return false;
    for (*input = 0; *input < chunk->input_count; (*input)++) {
        if (input_rank(c, chunk, *input) == rank) return true;
    }
    return false;
}

static bool length_fits(const struct pc_collective *c, const struct pc_arrival *arrival, uint32_t elems) {
    if (arrival->weight > c->plan.n * PC_WEIGHT_MAX) return false;
    if (pc_collective_codes(c) && elems > 0 && arrival->weight > 0) {
        const pcclDataType_t dtype = pc_dtype_accumulator(c->dtype);
        return arrival->len_bytes >= pc_codec_bytes(&c->plan.codec, dtype, elems) &&
               arrival->len_bytes <= pc_codec_bytes_max(&c->plan.codec, dtype, elems);
    }
    if (arrival->kind == PC_DATA_FINAL) return arrival->len_bytes == elems * c->plan.elem_bytes;
    if (arrival->weight == 0) return arrival->len_bytes == 0;
    return arrival->len_bytes == elems * c->plan.elem_bytes || arrival->len_bytes == elems * c->plan.acc_bytes;
}

pc_status pc_collective_sink(struct pc_collective *c, struct pc_arrival *arrival) {
    const struct pc_chunk *chunk = pc_chunk_find(&c->plan, arrival->chunk);
    arrival->data = NULL;
    arrival->cold = false;
    if (chunk == NULL) return pcclProtocolError;
    const bool final = arrival->kind == PC_DATA_FINAL;
    uint32_t slot = chunk->input_count;
    if (final ? chunk->from != arrival->from : !find_input(c, chunk, arrival->from, &slot)) return pcclProtocolError;
    if (arrival->chunk_elems != chunk->elems) return pcclMismatch;
    if (arrival->segment >= chunk->segments) return pcclProtocolError;
    const struct pc_range range = pc_chunk_segment(chunk, arrival->segment);
    const uint64_t bit = seen_bit(c, chunk, arrival->segment, slot);
    arrival->elems = range.elems;
    if (!length_fits(c, arrival, range.elems) || test_bit(c->seen, bit)) return pcclProtocolError;
    set_bit(c->seen, bit);
    if (arrival->len_bytes == 0) return pcclSuccess;
    if (final && !pc_collective_codes(c)) {
        pc_result_save(c, chunk, range);
        mark_saved(c, chunk, arrival->segment);
        arrival->data = pc_result_place(c, chunk, range);
        arrival->cold = chunk->down_count == 0 && is_cold(c, chunk);
        return pcclSuccess;
    }
    struct pc_segment *segment = pc_value_take(c, arrival->from, range.elems);
    if (segment == NULL) return pcclNoMemory;
    segment->kind = arrival->kind;
    arrival->data = segment->data;
    return pcclSuccess;
}

static pc_status received_partial(struct pc_collective *c, const struct pc_chunk *chunk,
                                  const struct pc_arrival *arrival) {
    const uint32_t elems = pc_chunk_segment(chunk, arrival->segment).elems;
    struct pc_value value = {.weight = arrival->weight};
    if (arrival->data != NULL) {
        value.data = arrival->data;
        value.segment = segment_of(arrival->data);
        if (pc_collective_codes(c)) value.coded_bytes = arrival->len_bytes;
        else value.wide = arrival->len_bytes == elems * c->plan.acc_bytes;
    } else {
        c->user.consumed(c->user.context, arrival->from, PC_DATA_PARTIAL, elems);
    }
    /* The result may overwrite the own contribution, which the others need too. */
    if (chunk->copy_count > 0) PC_TRY(emit_copies(c, chunk, arrival->segment));
    const struct pc_chunk_state *state = state_of(c, chunk);
    uint32_t slot = 0;
    (void)find_input(c, chunk, arrival->from, &slot);
    if (state->merges == NULL) {
        struct input inputs[2] = {{.here = false}};
        assert(chunk->input_count <= 2);
        inputs[slot] = (struct input){value, true};
        struct pc_merge merge = {0};
        return combine(c, chunk, arrival->segment, &merge, inputs);
    }
    struct input *inputs = state->inputs + (uint64_t)arrival->segment * chunk->input_count;
    inputs[slot] = (struct input){value, true};
    struct pc_merge *merge = &state->merges[arrival->segment];
    if (merge->next == slot || input_rank(c, chunk, merge->next) == c->plan.rank) {
        return combine(c, chunk, arrival->segment, merge, inputs);
    }
    return pcclSuccess;
}

pc_status pc_collective_received(struct pc_collective *c, const struct pc_arrival *arrival) {
    const struct pc_chunk *chunk = pc_chunk_find(&c->plan, arrival->chunk);
    assert(c->receives_left > 0 && chunk != NULL);
    /* Looked at now: what waits for its turn would be decoded when another member's has come, and be blamed on that. */
    if (pc_collective_codes(c) && arrival->data != NULL &&
        !pc_value_intact(c, arrival, pc_chunk_segment(chunk, arrival->segment).elems)) {
        return pcclProtocolError;
    }
    c->receives_left--;
    c->rx_bytes += arrival->len_bytes;
    if (arrival->kind == PC_DATA_PARTIAL) return received_partial(c, chunk, arrival);
    struct pc_value value = {.data = arrival->data, .weight = arrival->weight};
    if (!pc_collective_codes(c) || arrival->data == NULL) return emit_final(c, chunk, arrival->segment, &value);
    value.segment = segment_of(arrival->data);
    value.coded_bytes = arrival->len_bytes;
    pc_result_decode(c, chunk, pc_chunk_segment(chunk, arrival->segment), &value);
    mark_saved(c, chunk, arrival->segment);
    PC_TRY(emit_final(c, chunk, arrival->segment, &value));
    if (c->plan.ahead == 0 || c->weight == 0) return pcclSuccess;
    c->staged_out--;
    return start_some(c);
}

pc_status pc_collective_sent(struct pc_collective *c, struct pc_segment *staged) {
    assert(c->sends_left > 0);
    c->sends_left--;
    const uint32_t before = c->staged_out;
    pc_value_give(c, staged);
    return c->staged_out < before ? start_some(c) : pcclSuccess;
}

bool pc_collective_complete(const struct pc_collective *c) {
    return c->receives_left == 0 && c->sends_left == 0;
}

uint64_t pc_collective_elems_from(const struct pc_collective *c, uint32_t rank, uint8_t kind, bool *staged) {
    uint64_t elems = 0;
    *staged = false;
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        const struct pc_chunk *chunk = &c->plan.chunks[i];
        const bool final = kind == PC_DATA_FINAL;
        uint32_t input = 0;
        if (final ? chunk->from != rank : !find_input(c, chunk, rank, &input)) continue;
        elems += chunk->elems;
        const bool waits = final ? pc_collective_codes(c) && chunk->down_count > 0 : !can_move(c, chunk);
        *staged |= chunk->elems > 0 && waits;
    }
    return elems;
}

static bool lists(const struct pc_collective *c, uint32_t at, uint32_t count, uint32_t rank) {
    for (uint32_t i = 0; i < count; i++) {
        if (c->plan.ranks[at + i] == rank) return true;
    }
    return false;
}

bool pc_collective_talks_to(const struct pc_collective *c, uint32_t rank) {
    if (rank == c->plan.rank) return false;
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        const struct pc_chunk *chunk = &c->plan.chunks[i];
        if (chunk->segments == 0) continue;
        if (chunk->up == rank || chunk->from == rank || lists(c, chunk->inputs_at, chunk->input_count, rank) ||
            lists(c, chunk->copies_at, chunk->copy_count, rank) || lists(c, chunk->down_at, chunk->down_count, rank)) {
            return true;
        }
    }
    return false;
}

uint64_t pc_collective_bytes_from(const struct pc_collective *c, uint32_t rank) {
    bool staged = false;
    const uint64_t bytes = pc_collective_elems_from(c, rank, PC_DATA_PARTIAL, &staged) * c->plan.acc_bytes;
    return bytes + pc_collective_elems_from(c, rank, PC_DATA_FINAL, &staged) * c->plan.elem_bytes;
}

void pc_collective_commit(struct pc_collective *c) {
    if (c->residual == NULL) return;
    uint64_t elems = 0;
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) elems += c->plan.chunks[i].elems;
    memcpy(c->feedback.residual, c->residual, (size_t)(elems * c->plan.acc_bytes));
}

void pc_collective_undo(struct pc_collective *c) {
    if (c->shadow == NULL || PC_MUTANT(PC_MUTANT_NO_UNDO)) return;
    for (uint32_t i = 0; i < c->plan.chunk_count; i++) {
        const struct pc_chunk *chunk = &c->plan.chunks[i];
        for (uint32_t segment = 0; segment < chunk->segments; segment++) {
            if (!test_bit(c->saved, c->states[i].saved_at + segment)) continue;
            const struct pc_range range = pc_chunk_segment(chunk, segment);
            memcpy(pc_result_place(c, chunk, range), pc_result_shadow(c, chunk, range),
                   (size_t)range.elems * c->plan.elem_bytes);
        }
    }
}
