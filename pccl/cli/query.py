"""Asks a master for its state. What a newer master adds is passed on, what an older one lacks reads as empty."""

from __future__ import annotations

import json
import threading
from typing import Any

from pccl import _core
from pccl.arguments import milliseconds
from pccl.config import parse_address
from pccl.errors import ErrorRecord, ProtocolError
from pccl.types import Result

Status = dict[str, Any]


def query(master: str, timeout: float) -> Status:
    text = _ask(parse_address(master, "status"), milliseconds(timeout, "timeout", "status"))
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        record = ErrorRecord(code=Result.PROTOCOL_ERROR, message=f"the answer of {master} is not a JSON object")
        raise ProtocolError(Result.PROTOCOL_ERROR, "status", record)
    return status


def _ask(address: str, timeout_ms: int) -> str:
    """The question runs on a thread of its own, so that Ctrl-C is heard while a name is resolved or nobody answers. It
    is left behind then, and ends with its time limit or with the process."""
    answers: list[str] = []
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(_core.query_status(address, timeout_ms))
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=ask, name="pccl-query", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def rows(status: Status, key: str) -> list[dict[str, Any]]:
    """The dicts in the list ``key``; nothing if there is no such list."""
    value = status.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def field(row: dict[str, Any], key: str, missing: str = "-") -> str:
    value = row.get(key)
    if value is None or value == "":
        return missing
    if isinstance(value, list):
        return " ".join(map(str, value)) or missing
    return str(value)


def seconds(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return f"{value / 1000:.1f} s" if isinstance(value, int | float) else "-"


def wait_lines(status: Status) -> list[str]:
    """Who waits for whom, one sentence each."""
    members = {row.get("id"): row for row in rows(status, "members")}

    def who(peer: Any) -> str:
        address = field(members.get(peer, {}), "address", "")
        return f"peer {peer} ({address})" if address else f"peer {peer}"

    lines = []
    for wait in rows(status, "waits"):
        targets = wait.get("for")
        names = ", ".join(map(who, targets)) if isinstance(targets, list) and targets else "nobody known"
        tag = f" tag {wait['tag']}" if wait.get("tag") is not None else ""
        lines.append(
            f"{who(wait.get('peer'))} in {field(wait, 'call')}{tag} waits for {names} since {seconds(wait, 'since_ms')}"
        )
    return lines
