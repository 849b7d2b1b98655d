"""The table of environment variables, from which `pccl env` and the documentation are made, and addresses.

An argument wins over the environment, the environment over the default. The core reads the environment, when a
communicator or a master is created, never at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pccl.errors import invalid_argument


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


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Each PCCL_* variable that the table lacks, with the nearest name that it has."""
    known = [variable.name for variable in VARIABLES]
    unknown = sorted(name for name in environ if name.startswith("PCCL_") and name not in known)
    if not unknown:
        return []
    from difflib import get_close_matches

    return [(name, next(iter(get_close_matches(name, known, n=1, cutoff=0.5)), None)) for name in unknown]


def parse_address(address: str, func_name: str, *, default_port: int | None = 48148) -> str:
    """Check "host:port", "1.2.3.4:port" or "[::1]:port"; returns it with its port."""
    host, port_text = _split_address(address) if isinstance(address, str) else ("", None)
    if port_text is None and default_port is not None:
        port_text = str(default_port)
    port = int(port_text) if port_text is not None and port_text.isascii() and port_text.isdigit() else -1
    if not host or any(c.isspace() or not c.isprintable() for c in host) or not 0 <= port <= 65535:
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
