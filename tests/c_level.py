"""The C core as a library for tests: every symbol visible, no event loop, loaded with cffi in ABI mode.

`load(cdef)` compiles what changed since the last time (into build/c_level, which is not under version control) and
opens the result. `only` takes some of the layers, so that a test of kernels needs neither machines nor simulator;
`extra` is C source compiled beside them, for what a header defines inline.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cffi  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "c_level"
# The drivers need libuv and sockets; what they drive needs neither.
LEFT_OUT = frozenset({"io", "api"})
PACKAGES = ("libxxhash", "libcrypto")
FLAGS = ("-std=c11", "-g", "-O2", "-Wall", "-Wextra", "-Wconversion", "-ffp-contract=off", "-fPIC")
# Kernels are tested as they are shipped: at this level the compiler makes vector code of them.
LAYER_FLAGS = {"math": ("-O3", "-fno-math-errno")}


class BuildError(Exception):
    """The compiler refused; the text is what it printed."""


@cache
def _pkg_config(what: str) -> tuple[str, ...]:
    done = subprocess.run(["pkg-config", what, *PACKAGES], capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One builder at a time: test processes that run in parallel share the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prerequisites(depfile: Path) -> list[Path]:
    """The files a make rule written by the compiler names after its target."""
    words = depfile.read_text().replace("\\\n", " ").split()
    return [Path(word) for word in words[1:]]


def _stale(target: Path, depfile: Path) -> bool:
    if not target.exists() or not depfile.exists():
        return True
    built = target.stat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns >= built for path in _prerequisites(depfile))


def _flags(layer: str) -> tuple[str, ...]:
    return (*FLAGS, *LAYER_FLAGS.get(layer, ()), f"-I{CSRC}", *_pkg_config("--cflags"))


def _compile(source: Path, layer: str) -> Path:
    flags = _flags(layer)
    name = hashlib.sha256(repr((str(source), flags)).encode()).hexdigest()[:16]
    target = CACHE / f"{source.stem}-{name}.o"
    depfile = target.with_suffix(".d")
    if _stale(target, depfile):
        target.unlink(missing_ok=True)
        _run(["gcc", *flags, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)])
    return target


def _sources(only: Sequence[str] | None) -> list[Path]:
    found = []
    for path in sorted(CSRC.glob("*/*.c")):
        layer = path.parent.name
        if layer not in LEFT_OUT and (only is None or layer in only):
            found.append(path)
    return found


def _link(objects: Sequence[Path]) -> Path:
    # A changed object gets a library of another name: a process never sees one that it has open overwritten.
    stamp = repr([(str(path), path.stat().st_mtime_ns) for path in objects])
    library = CACHE / f"libpccl_test-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        _run(["gcc", "-shared", *map(str, objects), *_pkg_config("--libs"), "-lm", "-o", str(unfinished)])
        unfinished.rename(library)
    return library


def build(only: Sequence[str] | None = None, extra: str = "") -> Path:
    """The library's path, after compiling what is out of date."""
    with _locked():
        objects = [_compile(path, path.parent.name) for path in _sources(only)]
        if extra:
            source = CACHE / f"extra-{hashlib.sha256(extra.encode()).hexdigest()[:16]}.c"
            if not source.exists():
                source.write_text(extra)
            objects.append(_compile(source, "extra"))
        return _link(objects)


class Library:
    """An open library: `lib.ffi`, and its functions as attributes."""

    def __init__(self, cdef: str, path: Path) -> None:
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(cdef)
        self._functions: Any = self.ffi.dlopen(str(path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)


def load(cdef: str, only: Sequence[str] | None = None, extra: str = "") -> Library:
    """Builds and opens; cdef holds the prototypes that the test calls."""
    return Library(cdef, build(only, extra))
