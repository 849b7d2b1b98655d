"""The machines under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; no suppressions."""

from __future__ import annotations

import subprocess
from pathlib import Path

from simulator import compile_to

DRIVERS = Path(__file__).resolve().parent / "c"


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_no_memory_error_no_leak_no_undefined_behaviour() -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = compile_to("schedules-address", flags, DRIVERS / "schedules.c")
    assert run(program, "1", "150", "6", "12") == "150 schedules\n"


def test_no_race_between_threads() -> None:
    program = compile_to("schedules-thread", ["-fsanitize=thread"], DRIVERS / "schedules_threads.c")
    assert run(program, "12") == "3 threads\n"
