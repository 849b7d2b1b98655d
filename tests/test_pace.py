"""The bound on how fast a connection sends."""

from __future__ import annotations

import c_level

lib = c_level.load(
    """
    struct pc_pace_counters { uint64_t sent_bytes, again_bytes, acked_bytes, busy_us; };
    struct pc_pace { struct pc_pace_counters before; uint64_t bytes_per_s; };
    uint64_t pc_pace_next(struct pc_pace *pace, const struct pc_pace_counters *now);
    """,
    only=("base",),
    extra='#include "io/pace.c"',
)
ffi = lib.ffi
MB = 1_000_000


class Connection:
    def __init__(self) -> None:
        self.pace = ffi.new("struct pc_pace *")
        self.now = ffi.new("struct pc_pace_counters *")

    def after(self, acked: int, again: int = 0, busy_s: float = 1.0) -> int:
        """The bound in MB/s when so much more was delivered and sent again, in MB, in so much more time."""
        self.now.sent_bytes += (acked + again) * MB
        self.now.again_bytes += again * MB
        self.now.acked_bytes += acked * MB
        self.now.busy_us += int(busy_s * 1e6)
        return int(lib.pc_pace_next(self.pace, self.now)) // MB


def test_only_losses_bound_and_without_them_the_bound_goes() -> None:
    connection = Connection()
    assert connection.after(80) == 0
    assert connection.after(80, again=8) == 90
    bounds = [connection.after(80) for _ in range(11)]
    assert bounds[:4] == [101, 113, 128, 144]
    assert bounds[-2:] == [292, 0]
    assert connection.after(80) == 0


def test_a_bound_follows_what_is_reached() -> None:
    connection = Connection()
    for reached in (80, 80, 60, 20, 20):
        bound = connection.after(reached, again=reached // 5)
        assert reached * 9 // 8 - 1 <= bound <= reached * 5 // 4


def test_losses_by_chance_do_not_hold_a_connection_down() -> None:
    """A line that loses a tenth whatever is sent: from 20 MB/s, its rate when that was bounded, to 90."""
    connection, line, rates = Connection(), 20, []
    for _ in range(30):
        bound = connection.after(line, again=line // 9)
        line = min(90, bound)
        rates.append(line)
    assert rates == sorted(rates)
    assert rates[-1] == 90


def test_who_sends_little_is_not_held_back() -> None:
    """Operations that wait for round trips: the average says nothing of the line."""
    connection = Connection()
    assert [connection.after(3, again=1) for _ in range(5)] == [0] * 5
    assert connection.after(80, again=8) == 90
    bounds = [connection.after(3, again=1) for _ in range(5)]
    assert bounds == [0] * 5


def test_a_short_time_says_nothing() -> None:
    connection = Connection()
    assert connection.after(10, again=5, busy_s=0.3) == 0
    assert connection.after(20, again=5, busy_s=0.3) == 56
