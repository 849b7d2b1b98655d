"""Measuring of links, at one member: what comes when it should not."""

from __future__ import annotations

import c_level

ACK = r"""
#include "proto/member_state.h"

#include <stdlib.h>

/* An answer to the burst that is under way, on the second connection of a link whose first one is not there. */
uint64_t pc_test_early_ack(void) {
    struct pc_member *member = calloc(1, sizeof *member);
    struct pc_link *link = calloc(1, sizeof *link);
    member->probe.serial = 5;
    member->probe.peer = link->peer = 2;
    member->probe.burst_bytes = 8192;
    link->state = PC_LINK_DOWN;
    const struct pc_msg_probe_ack ack = {.serial = 5, .elapsed_ns = 1, .burst_bytes = 8192, .timed_bytes = 8192};
    pc_member_probe_ack(member, link, &ack, 1);
    const uint64_t burst_bytes = member->probe.burst_bytes;
    free(link);
    free(member);
    return burst_bytes;
}
"""
lib = c_level.load(
    "uint64_t pc_test_early_ack(void);", only=("base", "bytes", "wire", "math", "plan", "proto"), extra=ACK
)


def test_an_answer_over_a_link_that_is_not_up_changes_nothing() -> None:
    assert lib.pc_test_early_ack() == 8192
