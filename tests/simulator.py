"""Builds the machines and the simulator into a library, whole or with one mutant, and runs schedules in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("base", "bytes", "wire", "math", "plan", "proto", "sim")
CDEF = """
typedef struct {
    uint64_t seed; uint32_t peers_min, peers_max, ops; bool faults, io_threads, trace; uint64_t crash_event;
    uint32_t crash_peer;
} pcclSimOptions_t;
typedef struct {
    bool ok; uint32_t peers; uint64_t events, ops_committed, ops_aborted, epochs, virtual_ns; uint64_t trace_hash;
    char verdict[512]; char *log;
} pcclSimReport_t;
int pcclSimRun(const pcclSimOptions_t *options, pcclSimReport_t *report_out);
void free(void *memory);
"""


def build(mutant: int | None = None) -> Path:
    """The library, compiled when a source is newer than it."""
    defines = [] if mutant is None else [f"-DPCCL_MUTANT={mutant}"]
    return compile_to(f"libsim-{mutant or 'whole'}.so", ["-fPIC", "-shared", *defines])


def compile_to(name: str, flags: list[str], *drivers: Path, layers: Sequence[str] = LAYERS) -> Path:
    """Compiles the machines and the simulator with drivers and flags to build/simulator/name."""
    sources = [path for layer in layers for path in sorted((ROOT / "csrc" / layer).glob("*.c"))] + list(drivers)
    library = ROOT / "build" / "simulator" / name
    newest = max(
        path.stat().st_mtime
        for path in [*(ROOT / "csrc").rglob("*.[ch]"), *(ROOT / "tests" / "c").glob("*.h"), *drivers]
    )
    if library.exists() and library.stat().st_mtime > newest:
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    libraries = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libcrypto", "libxxhash"], check=True, capture_output=True, text=True
    ).stdout.split()
    partial = library.with_suffix(f".{os.getpid()}")  # test processes may build it at the same time
    command = ["cc", "-std=c11", "-O1", "-g", "-ffp-contract=off", "-pthread", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, *flags, *map(str, sources), "-o", str(partial), *libraries, "-lm"], check=True)
    partial.replace(library)
    return library


class Simulator:
    def __init__(self, mutant: int | None = None) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(CDEF)
        self.library: Any = self.ffi.dlopen(str(build(mutant)))

    def run(
        self, seed: int, low: int, high: int, ops: int, faults: bool = True, trace: bool = False,
        crash: tuple[int, int] = (0, 0), io_threads: bool = False,
    ) -> Any:  # fmt: skip
        """``crash``: after which event, and which peer, counted from 1; event 0: none."""
        options = self.ffi.new("pcclSimOptions_t *", [seed, low, high, ops, faults, io_threads, trace, *crash])
        report = self.ffi.new("pcclSimReport_t *")
        assert self.library.pcclSimRun(options, report) == 0
        return report

    def verdict(self, report: Any) -> str:
        return bytes(self.ffi.string(report.verdict)).decode()

    def log(self, report: Any) -> str:
        text = bytes(self.ffi.string(report.log)).decode()
        self.library.free(report.log)
        return text
