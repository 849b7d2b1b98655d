"""What arrives encoded, at the machine of one collective: whose fault it is, whatever the order in which it comes; and
what a member sends before it.
"""

from __future__ import annotations

import itertools

import c_level
import pytest

# Rank 2 of three, in a direct all-reduce: the root of chunk 2, which adds what ranks 0 and 1 send in this order.
ROOT = r"""
#include "proto/collective.h"

#include <math.h>
#include <string.h>

enum { COUNT = 3 * 1024 };

static pc_status emit(void *context, const struct pc_emission *emission) {
    (void)context, (void)emission;
    return pcclSuccess;
}

static void consumed(void *context, uint32_t rank, uint8_t kind, uint32_t elems) {
    (void)context, (void)rank, (void)kind, (void)elems;
}

static int arrive(struct pc_collective *c, uint32_t from, bool good) {
    uint8_t bytes[4 * 4 + 1024] = {0}; /* headers and codes of blocks of 256 */
    const float raw = NAN; /* such a block's elements would have to follow */
    if (!good) memcpy(bytes, &raw, sizeof raw);
    struct pc_arrival arrival = {.from = from, .chunk = 2, .kind = PC_DATA_PARTIAL, .chunk_elems = 1024, .weight = 1,
                                 .len_bytes = sizeof bytes};
    const pc_status status = pc_collective_sink(c, &arrival);
    if (status != pcclSuccess) return (int)status;
    memcpy(arrival.data, bytes, sizeof bytes);
    return (int)pc_collective_received(c, &arrival);
}

void pc_test_arrivals(const uint32_t *from, uint32_t liar, int *statuses) {
    static const uint32_t ring[] = {0, 1, 2};
    static float send[COUNT], recv[COUNT];
    const struct pc_op_shape shape = {.count = COUNT, .dtype = pcclFloat, .redop = pcclSum, .collective = PC_ALL_REDUCE,
                                      .algorithm = PC_ALGORITHM_DIRECT, .codec = pcclQuantInt8, .codec_block = 256};
    struct pc_pool pool = {0};
    struct pc_collective c;
    const struct pc_collective_config config = {.request = {.shape = &shape, .n = 3, .rank = 2,
                                                            .ring = ring, .count = COUNT},
                                                .send = send, .recv = recv, .weight = 1, .scale = 1, .pool = &pool,
                                                .user = {emit, consumed, NULL}};
    statuses[0] = statuses[1] = -1;
    if (pc_collective_init(&c, &config) == pcclSuccess && pc_collective_start(&c) == pcclSuccess) {
        for (int i = 0; i < 2; i++) statuses[i] = arrive(&c, from[i], from[i] != liar);
    }
    pc_collective_fini(&c);
    pc_pool_fini(&pool);
}

/* Rank 0 of two: how many contributions it starts, and how many more with each final value that comes back. */
static pc_status count_contributions(void *context, const struct pc_emission *emission) {
    *(uint32_t *)context += emission->kind == PC_DATA_PARTIAL;
    return pcclSuccess;
}

int pc_test_ahead(uint64_t weight, uint32_t finals, uint32_t *started, uint32_t *segments, uint32_t *ahead) {
    static const uint32_t ring[] = {0, 1};
    enum { FLOATS = 1 << 20 };
    static float send[FLOATS], recv[FLOATS];
    static uint8_t bytes[1 << 18]; /* all zero: headers and codes of zeros */
    const struct pc_op_shape shape = {.count = FLOATS, .dtype = pcclFloat, .redop = pcclSum, .codec = pcclQuantInt8,
                                      .codec_block = 256, .collective = PC_ALL_REDUCE,
                                      .algorithm = PC_ALGORITHM_DIRECT};
    struct pc_pool pool = {0};
    struct pc_collective c;
    uint32_t count = 0;
    const struct pc_collective_config config = {.request = {.shape = &shape, .n = 2, .ring = ring, .count = FLOATS},
                                                .send = send, .recv = recv, .weight = weight, .scale = 1, .pool = &pool,
                                                .user = {count_contributions, consumed, &count}};
    int status = (int)pc_collective_init(&c, &config);
    if (status == pcclSuccess) status = (int)pc_collective_start(&c);
    *segments = c.plan.chunks[1].segments;
    *ahead = c.plan.ahead;
    started[0] = count;
    for (uint32_t segment = 0; segment < finals && status == pcclSuccess; segment++) {
        const uint32_t elems = pc_chunk_segment(&c.plan.chunks[1], segment).elems;
        struct pc_arrival arrival = {.from = 1, .chunk = 1, .segment = segment, .kind = PC_DATA_FINAL,
                                     .chunk_elems = FLOATS / 2, .weight = 1,
                                     .len_bytes = (uint32_t)pc_codec_bytes(&c.plan.codec, pcclFloat, elems)};
        status = (int)pc_collective_sink(&c, &arrival);
        if (status != pcclSuccess) break;
        memcpy(arrival.data, bytes, arrival.len_bytes);
        status = (int)pc_collective_received(&c, &arrival);
        started[segment + 1] = count;
    }
    pc_collective_fini(&c);
    pc_pool_fini(&pool);
    return status;
}
"""
lib = c_level.load(
    """
    void pc_test_arrivals(const uint32_t *from, uint32_t liar, int *statuses);
    int pc_test_ahead(uint64_t weight, uint32_t finals, uint32_t *started, uint32_t *segments, uint32_t *ahead);
    """,
    only=("base", "bytes", "wire", "math", "plan", "proto"),
    extra=ROOT,
)
SUCCESS, PROTOCOL_ERROR, NOBODY = 0, 72, 9


@pytest.mark.parametrize("liar", [0, 1, NOBODY])
@pytest.mark.parametrize("order", list(itertools.permutations([0, 1])), ids=str)
def test_who_sent_it_is_to_blame(order: tuple[int, int], liar: int) -> None:
    statuses = lib.ffi.new("int[2]")
    lib.pc_test_arrivals(lib.ffi.new("uint32_t[2]", order), liar, statuses)
    assert list(statuses) == [PROTOCOL_ERROR if rank == liar else SUCCESS for rank in order]


def test_a_contribution_is_out_until_its_final_value_is_here() -> None:
    started, segments, ahead = lib.ffi.new("uint32_t[9]"), lib.ffi.new("uint32_t *"), lib.ffi.new("uint32_t *")
    assert lib.pc_test_ahead(1, 8, started, segments, ahead) == SUCCESS
    assert (segments[0], ahead[0]) == (11, 4)
    assert list(started) == [min(4 + finals, 11) for finals in range(9)]
    assert lib.pc_test_ahead(0, 8, started, segments, ahead) == SUCCESS
    assert list(started) == [11] * 9  # without a payload: nothing is encoded, and nothing waits
