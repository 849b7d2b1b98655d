"""One member among peers that break the rules, run far ahead, or leave it without memory; under AddressSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulator import LAYERS, compile_to
from test_sanitizers import DRIVERS, run


@pytest.fixture(scope="module")
def one_member() -> Path:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wl,--wrap=malloc", "-Wl,--wrap=calloc"]
    layers = tuple(layer for layer in LAYERS if layer != "sim")
    return compile_to("one-member", flags, DRIVERS / "one_member.c", layers=layers)


def test_thousands_of_receives_from_anybody(one_member: Path) -> None:
    """Each arrival was compared with each call and each tag: the I/O thread was busy with 4,000 for minutes."""
    assert run(one_member, "many") == 2 * "link up, 4000 completed, 0 failed, 0 held\n"


def test_operations_of_a_tag_begun_in_any_order(one_member: Path) -> None:
    assert run(one_member, "order") == "link up, 5 completed, 0 failed, 0 held\n"


def test_a_member_that_speaks_for_another_loses_its_link(one_member: Path) -> None:
    """It was believed: a receive from anybody then waited for the other."""
    alone, afterwards = run(one_member, "foreign").splitlines()
    assert alone == "link down, 0 completed, 0 failed, 0 held"
    assert afterwards == "link up, 1 completed, 0 failed, 0 held"


def test_a_wrong_frame_before_the_call_costs_its_sender_the_link(one_member: Path) -> None:
    """It failed the call, and its sender could go on like that."""
    assert run(one_member, "wrong") == "link down, 0 completed, 0 failed, 0 held\n"


def test_nothing_is_left_of_epochs_that_never_come(one_member: Path) -> None:
    """Their operations outlived the link over which they were begun."""
    assert run(one_member, "never") == "link up, 0 completed, 0 failed, 26400 held\n0 tags\n"


def test_a_tag_beyond_those_there_can_be_is_told_as_that(one_member: Path) -> None:
    """It was called a lack of memory."""
    before, refusal, afterwards, from_another = run(one_member, "tags").splitlines()
    assert before == "link up, 1 completed, 0 failed, 0 held"
    assert refusal == (
        "INVALID_USAGE: too many different tags in one epoch of the group (1048576); "
        "use tags again once their operations are done, as with tag % 1000"
    )
    assert afterwards == "link up, 3 completed, 1 failed, 0 held"
    assert from_another == "link down, 3 completed, 1 failed, 0 held"


def test_frames_that_a_stripe_returns_wake_the_others(one_member: Path) -> None:
    """They had found the queue empty, and slept until something new was sent."""
    assert run(one_member, "returned") == "woken\n"


def test_no_memory_for_a_word_to_the_master(one_member: Path) -> None:
    """The member left the run in the middle of an event, and the link in hand was gone."""
    assert run(one_member, "memory") == "in 1, out some\n"
