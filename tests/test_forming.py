"""Frames of groups that this member does not know yet: whoever names a wrong one harms itself alone."""

import c_level

lib = c_level.load(
    """
    void pc_test_member(_Bool asking, uint32_t newest);
    int pc_test_frame(uint64_t from, uint32_t subset, uint64_t epoch);
    int pc_test_drop(void);
    """,
    only=("base", "bytes", "wire", "math", "plan", "proto"),
    extra="""
    #include "proto/member_state.h"

    void pc_test_member(_Bool asking, uint32_t newest);
    int pc_test_frame(uint64_t from, uint32_t subset, uint64_t epoch);
    int pc_test_drop(void);

    static struct pc_member member;
    static struct pc_call call;

    void pc_test_member(_Bool asking, uint32_t newest) {
        member = (struct pc_member){.newest_subset = newest};
        member.epoch.number = 5;
        call = (struct pc_call){.kind = PC_CALL_CREATE_GROUP};
        pc_list_init(&member.groups);
        pc_list_init(&member.forming);
        pc_list_init(&member.calls);
        if (asking) pc_list_append(&member.calls, &call.node);
    }

    int pc_test_frame(uint64_t from, uint32_t subset, uint64_t epoch) {
        const struct pc_op_key key = {.subset = subset, .epoch = epoch};
        struct pc_member_group *group = NULL;
        const pc_status status = pc_member_group_of(&member, &key, from, &group);
        if (status != pcclSuccess) return status == pcclProtocolError ? -1 : -2;
        return group == NULL ? 0 : (int)group->subset;
    }

    int pc_test_drop(void) {
        int count = 0;
        for (struct pc_list *node = member.forming.next; node != &member.forming; node = node->next) count++;
        pc_member_drop_forming(&member);
        return count;
    }
    """,
)

REFUSED, NOWHERE = -1, 0


def test_each_member_can_name_one() -> None:
    lib.pc_test_member(True, 3)
    assert lib.pc_test_frame(7, 9, 6) == 9  # wrong, and first
    assert lib.pc_test_frame(8, 4, 6) == 4  # right all the same
    assert lib.pc_test_frame(6, 4, 6) == 4
    assert lib.pc_test_frame(7, 9, 6) == 9
    assert lib.pc_test_frame(7, 4, 6) == REFUSED
    assert lib.pc_test_frame(7, 10, 6) == REFUSED
    assert lib.pc_test_frame(6, 4, 6) == 4
    assert lib.pc_test_drop() == 2


def test_nobody_can_without_a_call() -> None:
    lib.pc_test_member(False, 3)
    assert lib.pc_test_frame(7, 4, 6) == REFUSED
    assert lib.pc_test_drop() == 0


def test_what_is_over_comes_too_late() -> None:
    lib.pc_test_member(True, 3)
    assert lib.pc_test_frame(7, 3, 5) == NOWHERE
    assert lib.pc_test_frame(7, 4, 5) == REFUSED  # no group of an older epoch is unknown
    assert lib.pc_test_drop() == 0
