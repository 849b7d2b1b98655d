"""Configuration from the environment: one table, from which `pccl env` and the documentation are made.

An argument wins over the environment, the environment over the default. The environment is read when a communicator or
a master is created, never at import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pccl.errors import invalid_argument

LOG_LEVELS = {
    "off": 0,
    "none": 0,
    "fatal": 1,
    "error": 2,
    "err": 2,
    "warn": 3,
    "warning": 3,
    "info": 4,
    "debug": 5,
    "trace": 6,
}

_MAX_MS = 2**32 - 1


class Variable(NamedTuple):
    """One environment variable. ``kind`` is how its text is read: level, text, seconds, count, ports, path."""

    name: str
    kind: str
    default: str
    meaning: str


VARIABLES: tuple[Variable, ...] = (
    Variable("PCCL_ADVERTISE", "text", "found out", "host or host:port at which other peers reach this one"),
    Variable(
        "PCCL_ALGO", "text", "auto", "algorithm of collectives: auto, ring, tree, direct, exchange; the same at all"
    ),
    Variable("PCCL_CFLAGS", "text", "", "extra compiler flags for libpccl, when it is built"),
    Variable(
        "PCCL_CONGESTION",
        "text",
        "chosen per link",
        "TCP congestion control: a name such as cubic, or system for the system's own",
    ),
    Variable(
        "PCCL_CONNECT_TIMEOUT", "seconds", "5", "one attempt of connecting, up to the registration with the master"
    ),
    Variable("PCCL_DEAD_TIMEOUT", "seconds", "5", "silence after which a peer or the master counts as dead"),
    Variable("PCCL_DEBUG_FILE", "path", "standard error", "file that log lines are appended to: %h host, %p process"),
    Variable("PCCL_JOIN_TIMEOUT", "seconds", "1800", "master: how long a newcomer may wait for admission"),
    Variable("PCCL_LOG_LEVEL", "level", "warn", "off (or none), fatal, error (or err), warn, info, debug, trace"),
    Variable("PCCL_NCONNS", "count", "chosen", "TCP connections per pair of peers"),
    Variable(
        "PCCL_NTHREADS", "count", "1", "threads that move large payloads, where there are cores to spare (1 to 16)"
    ),
    Variable("PCCL_OP_TIMEOUT", "seconds", "1800", "how long a call may wait for a peer that is alive"),
    Variable("PCCL_PORT_RANGE", "ports", "the system's choice", "ports to listen in, as first-last"),
    Variable("PCCL_RUN_KEY_FILE", "path", "none", "file with the secret that all peers and the master of a run share"),
    Variable("PCCL_SHM", "text", "1", "1: peers of one host exchange data through shared memory; 0: through TCP"),
    Variable(
        "PCCL_SOCKET_IFNAME",
        "text",
        "any",
        "network interfaces to use: prefixes separated by commas, =exact names, or ^excluded ones",
    ),
)


@dataclass(frozen=True)
class Settings:
    """What the environment says; None: nothing. Times are milliseconds, 0: the default."""

    advertise: str | None = None
    ifname: str | None = None
    congestion: str | None = None
    connections: int = 0
    port_range: tuple[int, int] | None = None
    run_key: bytes | None = None
    dead_timeout_ms: int = 0
    op_timeout_ms: int = 0
    connect_timeout_ms: int = 0
    join_timeout_ms: int = 0
    log_level: int | None = None
    debug_file: str | None = None


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the table's variables. A value that cannot be read is an InvalidArgumentError that names its variable."""
    env = os.environ if environ is None else environ

    def get(name: str) -> str | None:
        return env.get(name) or None

    connections = get("PCCL_NCONNS")
    ports = get("PCCL_PORT_RANGE")
    key_file = get("PCCL_RUN_KEY_FILE")
    level = get("PCCL_LOG_LEVEL")
    return Settings(
        advertise=get("PCCL_ADVERTISE"),
        ifname=get("PCCL_SOCKET_IFNAME"),
        congestion=get("PCCL_CONGESTION"),
        connections=_count("PCCL_NCONNS", connections) if connections else 0,
        port_range=parse_port_range(ports, "PCCL_PORT_RANGE") if ports else None,
        run_key=read_run_key(key_file) if key_file else None,
        dead_timeout_ms=_seconds("PCCL_DEAD_TIMEOUT", get("PCCL_DEAD_TIMEOUT")),
        op_timeout_ms=_seconds("PCCL_OP_TIMEOUT", get("PCCL_OP_TIMEOUT")),
        connect_timeout_ms=_seconds("PCCL_CONNECT_TIMEOUT", get("PCCL_CONNECT_TIMEOUT")),
        join_timeout_ms=_seconds("PCCL_JOIN_TIMEOUT", get("PCCL_JOIN_TIMEOUT")),
        log_level=_level("PCCL_LOG_LEVEL", level) if level else None,
        debug_file=get("PCCL_DEBUG_FILE"),
    )


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Each PCCL_* variable that the table lacks, with the nearest name that it has."""
    known = [variable.name for variable in VARIABLES]
    unknown = sorted(name for name in environ if name.startswith("PCCL_") and name not in known)
    if not unknown:
        return []
    from difflib import get_close_matches

    return [(name, next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), None)) for name in unknown]


_applied = False


def startup() -> Settings:
    """The settings for a new handle. The first time in a process it also opens the log. The core warns of unknown names
    there, for C programs and for this one alike."""
    global _applied
    settings = from_environment()
    if not _applied:
        _applied = True
        if settings.debug_file is not None:
            from pccl import _core

            level = LOG_LEVELS["warn"] if settings.log_level is None else settings.log_level
            _core.set_log(level, expand_path(settings.debug_file))
    return settings


def expand_path(path: str) -> str:
    """%h becomes the host's name and %p the process id."""
    if "%h" in path:
        import socket

        path = path.replace("%h", socket.gethostname())
    return path.replace("%p", str(os.getpid()))


def milliseconds(seconds: float | None, name: str) -> int:
    """A time limit in milliseconds, at least 1; 0 for None, the default."""
    if seconds is None:
        return 0
    try:
        positive = seconds > 0
    except TypeError:
        positive = False
    if not positive:
        raise invalid_argument("config", f"{name} must be a time above 0 seconds, not {seconds!r}")
    return max(1, round(min(seconds * 1000, _MAX_MS)))


def parse_port_range(text: str, name: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        low, high = int(first), int(last if dash else first)
    except ValueError:
        low = high = 0
    if not 1 <= low <= high <= 65535:
        raise invalid_argument("config", f"{name} must be a range of ports such as 40000-40100, not {text!r}")
    return low, high


def read_run_key(path: str) -> bytes:
    """The content of a key file without the line end that an editor adds."""
    try:
        with open(path, "rb") as file:
            key = file.read().rstrip(b"\r\n")
    except OSError as error:
        raise invalid_argument("config", f"PCCL_RUN_KEY_FILE: {error}") from error
    if not key:
        raise invalid_argument("config", f"PCCL_RUN_KEY_FILE: {path} is empty")
    return key


def parse_address(address: str, func_name: str, *, default_port: int | None = 48148) -> str:
    """Check "host:port", "1.2.3.4:port" or "[::1]:port"; returns it with its port."""
    host, port_text = _split_address(address)
    if port_text is None and default_port is not None:
        port_text = str(default_port)
    port = int(port_text) if port_text is not None and port_text.isascii() and port_text.isdigit() else -1
    if not host or any(c.isspace() for c in host) or not 0 <= port <= 65535:
        raise invalid_argument(
            func_name, f"{address!r} is not an address", hint="write host:port, 1.2.3.4:port or [::1]:port"
        )
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split_address(address: str) -> tuple[str, str | None]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", None
        return host, rest[1:] if rest else None
    if address.count(":") > 1:
        return address, None
    host, colon, port = address.partition(":")
    return host, port if colon else None


def _seconds(name: str, text: str | None) -> int:
    if text is None:
        return 0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise invalid_argument("config", f"{name} must be a time in seconds above 0, not {text!r}")
    return milliseconds(value, name)


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 64:
        raise invalid_argument("config", f"{name} must be a number from 1 to 64, not {text!r}")
    return int(text)


def _level(name: str, text: str) -> int:
    level = LOG_LEVELS.get(text.lower())
    if level is None:
        raise invalid_argument("config", f"{name} must be one of {', '.join(LOG_LEVELS)}, not {text!r}")
    return level
