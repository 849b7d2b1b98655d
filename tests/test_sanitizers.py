"""The machines under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; no suppressions."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from simulator import LAYERS, compile_to

DRIVERS = Path(__file__).resolve().parent / "c"
FLAGS: dict[str, list[str]] = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def in_builds(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "flags"), [(name, FLAGS[name]) for name in names])


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def pkg_config(*arguments: str) -> str:
    return subprocess.run(["pkg-config", *arguments], check=True, capture_output=True, text=True).stdout


def compile_with_loop(name: str, flags: list[str], driver: str, *more: str) -> Path:
    layers = (*(layer for layer in LAYERS if layer != "sim"), *more)
    libuv = ["-Wl,--no-as-needed", *shlex.split(pkg_config("--cflags", "--libs", "libuv"))]
    return compile_to(name, ["-D_GNU_SOURCE=1", *flags, *libuv], DRIVERS / driver, layers=layers)


def test_no_memory_error_no_leak_no_undefined_behaviour() -> None:
    program = compile_to("schedules-address", FLAGS["address"], DRIVERS / "schedules.c")
    assert run(program, "1", "150", "6", "12") == "150 schedules\n"


def test_no_decoder_leaves_its_input() -> None:
    program = compile_to("wire-address", FLAGS["address"], DRIVERS / "wire.c", layers=("base", "bytes", "wire", "math"))
    messages, decodings = map(int, re.findall(r"(\d+) (?:messages|decodings)", run(program)))
    assert messages >= 34
    assert decodings > 1000 * messages


def test_no_race_between_threads() -> None:
    program = compile_to("schedules-thread", FLAGS["thread"], DRIVERS / "schedules_threads.c")
    assert run(program, "12") == "3 threads\n"


@in_builds("plain", "address", "thread")
def test_threads_and_sockets(name: str, flags: list[str]) -> None:
    """A thread for each machine and socket pairs between them: partial reads and writes as a kernel makes them."""
    program = compile_to(f"socketpairs-{name}", flags, DRIVERS / "socketpairs.c")
    assert run(program) == "4 threads, 300 rounds\n"


@in_builds("address", "thread")
def test_a_loop_whose_machine_has_a_search_running_ends(name: str, flags: list[str]) -> None:
    """Neither a search that never ends by itself nor one that has not begun holds it up, or is left behind."""
    program = compile_with_loop(f"search-end-{name}", flags, "search_end.c", "io")
    assert run(program) == "found 1\n0 unfinished, 1 finished\n"


@in_builds("plain", "address", "thread")
def test_callers_and_the_own_thread_take_turns_at_running_a_loop(name: str, flags: list[str]) -> None:
    program = compile_with_loop(f"turns-{name}", flags, "turns.c", "io", "api")
    assert run(program) == "0 wrong, 1 cut off\n"


@in_builds("plain", "address", "thread")
def test_several_io_threads_share_a_machine(name: str, flags: list[str]) -> None:
    program = compile_with_loop(f"io-threads-{name}", flags, "io_threads.c", "io", "api")
    assert run(program) == "0 wrong, some cancelled, 2 cut off\n"


def test_a_thread_whose_memory_is_not_called_back_is_noticed() -> None:
    """Mutant 14 of csrc/proto/mutant.h: results seldom show its window of microseconds, ThreadSanitizer does."""
    program = compile_with_loop(
        "io-threads-mutant", [*FLAGS["thread"], "-DPCCL_MUTANT=14"], "io_threads.c", "io", "api"
    )
    try:
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return  # what was destroyed keeps it from its end
    assert done.returncode != 0
