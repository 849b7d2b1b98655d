"""Stripes of a link: a faster one takes more of what waits, and a slow one holds back little."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import c_level
import numpy as np
import pytest
from cluster import Cluster

lib = c_level.load(
    """
    void stripes_init(void);
    void stripes_fini(void);
    size_t stripes_queue(uint32_t bulk_len, bool answered);
    size_t stripes_offer(int stripe, uint64_t now_ns);
    bool stripes_accept(int stripe, size_t len_bytes, uint64_t now_ns);
    bool stripes_stuck_since(uint64_t before_ns);
    """,
    only=("base", "bytes", "wire", "math", "plan", "proto"),
    extra="""
#include "proto/link.h"

static uint8_t bulk[1 << 16];
static struct pc_tx_pool pool;
static struct pc_link *both;
static struct pc_stream *streams[2];

static struct pc_tx *make(uint32_t bulk_len) {
    const struct pc_msg_data message = {0};
    return pc_tx_create(&pool, 0, PC_MSG_DATA, &message, bulk, bulk_len, false);
}

/* What follows from a frame goes first, as a forwarded segment does. */
static void answer(void *machine, struct pc_stream *stream, struct pc_tx *tx) {
    (void)machine;
    (void)stream;
    pc_list_append(&both->urgent, &make(tx->bulk_len)->node);
}

void stripes_init(void) {
    static const struct pc_stream_owner owner = {.sent = answer};
    pc_tx_pool_init(&pool);
    both = pc_link_create(1);
    both->stripes = 2;
    for (uint32_t i = 0; i < 2; i++) {
        streams[i] = pc_stream_create(&owner, NULL, &pool, 0);
        pc_link_attach(both, streams[i], i, 0);
    }
}

void stripes_fini(void) {
    for (int i = 0; i < 2; i++) pc_stream_destroy(streams[i]);
    pc_link_destroy(both, &pool);
    pc_tx_pool_fini(&pool);
}

/* Returns the length of the frame. */
size_t stripes_queue(uint32_t bulk_len, bool answered) {
    struct pc_tx *tx = make(bulk_len);
    tx->owner = answered ? &pool : NULL;
    pc_list_append(&both->normal, &tx->node);
    return tx->head.len + bulk_len;
}

size_t stripes_offer(int stripe, uint64_t now_ns) {
    struct pc_span spans[PC_TX_SPANS_MAX];
    const int count = pc_stream_tx_spans(streams[stripe], spans, now_ns);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += spans[i].len_bytes;
    return bytes;
}

bool stripes_accept(int stripe, size_t len_bytes, uint64_t now_ns) {
    return pc_stream_sent(streams[stripe], len_bytes, now_ns);
}

bool stripes_stuck_since(uint64_t before_ns) {
    return pc_link_stuck_since(both, before_ns);
}
""",
)


@pytest.fixture
def stripes() -> Iterator[Any]:
    """A link of two stripes, 0 and 1."""
    lib.stripes_init()
    yield lib
    lib.stripes_fini()


def test_a_refused_frame_is_taken_by_another_stripe(stripes: Any) -> None:
    first, second, third = (stripes.stripes_queue(len_bytes, False) for len_bytes in (1000, 2000, 3000))
    assert stripes.stripes_offer(0, 1) == first + second + third
    assert stripes.stripes_offer(1, 1) == 0  # they are with the other one, until it has its answer
    assert stripes.stripes_accept(0, 0, 1)  # others are to be woken
    assert stripes.stripes_offer(1, 1) == first + second + third
    assert stripes.stripes_accept(1, first + 10, 1)
    assert stripes.stripes_offer(0, 2) == third
    stripes.stripes_accept(0, 0, 2)
    assert stripes.stripes_offer(1, 2) == second - 10 + third
    stripes.stripes_accept(1, 5, 2)
    assert stripes.stripes_offer(0, 3) == third
    assert not stripes.stripes_accept(0, third, 3)
    assert stripes.stripes_offer(1, 3) == second - 15
    stripes.stripes_accept(1, second - 15, 3)
    assert [stripes.stripes_offer(stripe, 4) for stripe in (0, 1)] == [0, 0]


def test_what_follows_from_a_frame_does_not_part_those_that_left_with_it(stripes: Any) -> None:
    first, second = stripes.stripes_queue(1000, True), stripes.stripes_queue(2000, False)
    assert stripes.stripes_offer(0, 1) == first + second
    stripes.stripes_accept(0, first + 10, 1)
    assert stripes.stripes_offer(1, 1) == first  # the answer is as long as what it answers
    stripes.stripes_accept(1, 0, 1)
    assert stripes.stripes_offer(0, 1) == second - 10 + first


def test_a_stripe_that_takes_nothing_is_stuck(stripes: Any) -> None:
    """Also when others have taken what it was offered; its own connection holds bytes that do not move."""
    frame = stripes.stripes_queue(1000, False)
    assert not stripes.stripes_stuck_since(100)
    for now in (5, 7):
        stripes.stripes_offer(0, now)
        stripes.stripes_accept(0, 0, now)
    assert [stripes.stripes_stuck_since(before) for before in (5, 6)] == [False, True]
    stripes.stripes_offer(1, 8)
    stripes.stripes_accept(1, frame, 8)
    assert stripes.stripes_stuck_since(6)
    assert stripes.stripes_offer(0, 9) == 0
    assert not stripes.stripes_stuck_since(100)


# ------------------------------------------------------------------------------------------------ through slow paths --

RATE = 10e6
COUNT = 8_000_000


def timed_sum(peer, count):
    x = np.ones(count, np.float32)
    start = time.monotonic()
    peer.comm.all_reduce(x)
    took = time.monotonic() - start
    return took, bool((x == 2).all())


def through(peers: Any, rates: list[float]) -> tuple[float, dict[str, list[int]]]:
    """How long a sum takes over stripes of these rates, and what each has carried in each direction."""
    links = peers[0].proxy.connections(peers[1].pid)
    for link, rate in zip(links, rates, strict=True):
        link.narrow(rate)
    answers = Cluster.call(peers, timed_sum, count=COUNT)
    assert all(right for _, right in answers)
    carried = {way: [link.gates[way].passed_bytes for link in links] for way in ("up", "down")}
    assert all(sum(carried[way]) > 4 * COUNT for way in carried)
    return max(took for took, _ in answers), carried


@pytest.mark.parametrize("slow", [0, 3])
def test_a_slow_stripe_takes_little_and_holds_back_little(slow: int) -> None:
    """One of four has a tenth of the others' rate: these do the work, with at least 70 % of what they could do."""
    with Cluster(PCCL_SHM="0") as cluster:
        peers = [cluster.spawn_behind_proxy(), cluster.spawn()]
        cluster.join_in_order(peers, p2p_connection_pool_size=4)
        through(peers, [RATE] * 4)
        shares = []
        while len(shares) < 3 and max(shares, default=0) < 0.7:  # a busy machine slows down the one or the other
            even_s, _ = through(peers, [RATE] * 4)
            uneven_s, carried = through(peers, [RATE / 10 if stripe == slow else RATE for stripe in range(4)])
            shares.append(even_s / uneven_s / 0.75)
            for way, parts in carried.items():
                assert 3 * parts[slow] < min(parts[:slow] + parts[slow + 1 :]), (way, parts)
        assert max(shares) >= 0.7, shares
