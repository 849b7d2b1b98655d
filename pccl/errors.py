"""Exceptions. Each also derives from the builtin that a caller would expect, and carries an error record.

PCCLError
├── NotInitializedError          (RuntimeError)
├── InternalError                (RuntimeError)
├── InvalidArgumentError         (ValueError)
│   └── UnusableBufferError      read-only, non-contiguous, overlapping, wrong device, dtype or size
├── InvalidUsageError            (RuntimeError)
│   ├── PendingAsyncOpsError
│   └── ForkedError              the handle belongs to the parent process
├── TooFewPeersError             (RuntimeError)
├── StepAbortedError             (RuntimeError)
├── NotEncodableError            (ValueError)
├── MasterConnectionFailedError  (ConnectionError)
├── RankConnectionFailedError    (ConnectionError)
├── RankConnectionLostError      (ConnectionError)
├── EvictedError                 (ConnectionError)
├── RefusedError                 (ConnectionError)
├── ProtocolError                (ConnectionError)
├── NoSharedStateAvailableError  (LookupError)
├── TopologyError                (RuntimeError)
├── OperationTimeoutError        (TimeoutError)
├── InProgressError              (TimeoutError)  a wait's own time limit passed; the operation goes on
├── OutcomeUnknownError          (RuntimeError)
├── MismatchError                (ValueError)    the peers' descriptors differ
├── DeadlockError                (RuntimeError)  all peers wait in calls that cannot match
├── OperationCancelledError      (RuntimeError)
├── NoMemoryError                (MemoryError)
└── SystemCallError              (OSError)
"""

from __future__ import annotations

import errno as _errno
from dataclasses import dataclass

from pccl.types import Result

__all__ = [
    "DeadlockError",
    "ErrorRecord",
    "EvictedError",
    "ForkedError",
    "InProgressError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidUsageError",
    "MasterConnectionFailedError",
    "MismatchError",
    "NoMemoryError",
    "NoSharedStateAvailableError",
    "NotEncodableError",
    "NotInitializedError",
    "OperationCancelledError",
    "OperationTimeoutError",
    "OutcomeUnknownError",
    "PCCLError",
    "PendingAsyncOpsError",
    "ProtocolError",
    "RankConnectionFailedError",
    "RankConnectionLostError",
    "RefusedError",
    "StepAbortedError",
    "SystemCallError",
    "TooFewPeersError",
    "TopologyError",
    "UnusableBufferError",
]


@dataclass(frozen=True)
class ErrorRecord:
    """What went wrong, where and why. Fields that do not apply are 0 or empty."""

    code: int
    errno: int = 0
    peer_id: int = 0
    peer_address: str = ""
    phase: str = ""
    epoch: int = 0
    tag: int = 0
    seq: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    last_heard_ms: int = 0
    message: str = ""
    hint: str = ""

    def details(self) -> str:
        """Who, where, epoch, operation, bytes, age and cause, without the message."""
        parts = []
        if self.peer_id or self.peer_address:
            who = f"peer {self.peer_id}" if self.peer_id else "the other end"
            parts.append(f"{who} at {self.peer_address}" if self.peer_address else who)
        if self.phase:
            parts.append(f"in {self.phase}")
        if self.epoch:
            parts.append(f"epoch {self.epoch}")
        if self.tag or self.seq:
            parts.append(f"op tag {self.tag} seq {self.seq}")
        if self.bytes_total:
            parts.append(f"{self.bytes_done} of {self.bytes_total} bytes done")
        if self.last_heard_ms:
            parts.append(f"last heard {self.last_heard_ms} ms ago")
        if self.errno:
            parts.append(_errno.errorcode.get(self.errno, f"errno {self.errno}"))
        return ", ".join(parts)


class PCCLError(Exception):
    """A call failed. ``result`` is the code, ``record`` says who, where and why."""

    result: Result | int
    func_name: str
    record: ErrorRecord

    def __init__(self, result: Result | int, func_name: str, record: ErrorRecord | None = None) -> None:
        # The base's __init__ is left out on purpose: OSError's would read the arguments as an errno and its text.
        code = _as_result(result)
        self.args = (code, func_name, record)
        self.result = code
        self.func_name = func_name
        self.record = record if record is not None else ErrorRecord(code=int(code))

    def __str__(self) -> str:
        name = self.result.name if isinstance(self.result, Result) else f"code {self.result}"
        what = self.record.message or _text_of(int(self.result))
        details = self.record.details()
        where = f" ({details})" if details else ""
        hint = f". Hint: {self.record.hint}" if self.record.hint else ""
        return f"{self.func_name}: {name}: {what}{where}{hint}"


class _SystemPCCLError(PCCLError, OSError):
    """The base of those that derive from OSError: fills its ``errno``."""

    def __init__(self, result: Result | int, func_name: str, record: ErrorRecord | None = None) -> None:
        super().__init__(result, func_name, record)
        self.errno = self.record.errno or None


class NotInitializedError(PCCLError, RuntimeError):
    pass


class InternalError(PCCLError, RuntimeError):
    pass


class InvalidArgumentError(PCCLError, ValueError):
    pass


class UnusableBufferError(InvalidArgumentError):
    pass


class InvalidUsageError(PCCLError, RuntimeError):
    pass


class PendingAsyncOpsError(InvalidUsageError):
    pass


class ForkedError(InvalidUsageError):
    pass


class TooFewPeersError(PCCLError, RuntimeError):
    pass


class StepAbortedError(PCCLError, RuntimeError):
    pass


class NotEncodableError(PCCLError, ValueError):
    pass


class MasterConnectionFailedError(_SystemPCCLError, ConnectionError):
    pass


class RankConnectionFailedError(_SystemPCCLError, ConnectionError):
    pass


class RankConnectionLostError(_SystemPCCLError, ConnectionError):
    pass


class EvictedError(_SystemPCCLError, ConnectionError):
    pass


class RefusedError(_SystemPCCLError, ConnectionError):
    pass


class ProtocolError(_SystemPCCLError, ConnectionError):
    pass


class NoSharedStateAvailableError(PCCLError, LookupError):
    pass


class TopologyError(PCCLError, RuntimeError):
    pass


class OperationTimeoutError(_SystemPCCLError, TimeoutError):
    pass


class InProgressError(_SystemPCCLError, TimeoutError):
    pass


class OutcomeUnknownError(PCCLError, RuntimeError):
    pass


class MismatchError(PCCLError, ValueError):
    pass


class DeadlockError(PCCLError, RuntimeError):
    pass


class OperationCancelledError(PCCLError, RuntimeError):
    pass


class NoMemoryError(PCCLError, MemoryError):
    pass


class SystemCallError(_SystemPCCLError):
    pass


_CLASS_OF: dict[int, type[PCCLError]] = {
    Result.NOT_INITIALIZED: NotInitializedError,
    Result.INTERNAL_ERROR: InternalError,
    Result.INVALID_ARGUMENT: InvalidArgumentError,
    Result.INVALID_USAGE: InvalidUsageError,
    Result.TOO_FEW_PEERS: TooFewPeersError,
    Result.MASTER_CONNECTION_FAILED: MasterConnectionFailedError,
    Result.RANK_CONNECTION_FAILED: RankConnectionFailedError,
    Result.RANK_CONNECTION_LOST: RankConnectionLostError,
    Result.NO_SHARED_STATE_AVAILABLE: NoSharedStateAvailableError,
    Result.PENDING_ASYNC_OPS: PendingAsyncOpsError,
    Result.UPDATE_TOPOLOGY_FAILED: TopologyError,
    Result.TOPOLOGY_OPTIMIZATION_FAILED: TopologyError,
    Result.TIMEOUT: OperationTimeoutError,
    Result.IN_PROGRESS: InProgressError,
    Result.EVICTED: EvictedError,
    Result.OUTCOME_UNKNOWN: OutcomeUnknownError,
    Result.MISMATCH: MismatchError,
    Result.DEADLOCK: DeadlockError,
    Result.CANCELLED: OperationCancelledError,
    Result.REFUSED: RefusedError,
    Result.PROTOCOL_ERROR: ProtocolError,
    Result.NO_MEMORY: NoMemoryError,
    Result.SYSTEM_ERROR: SystemCallError,
    Result.FORKED: ForkedError,
    Result.STEP_ABORTED: StepAbortedError,
    Result.NOT_ENCODABLE: NotEncodableError,
}


def _as_result(code: int) -> Result | int:
    try:
        return Result(code)
    except ValueError:
        return code


def _text_of(code: int) -> str:
    from pccl import _core

    return _core.result_text(code)


def error_from(code: int, func_name: str, record: ErrorRecord | None = None) -> PCCLError:
    """The exception of the class that belongs to a code."""
    return _CLASS_OF.get(code, PCCLError)(code, func_name, record)


def invalid_argument(func_name: str, message: str, *, hint: str = "") -> InvalidArgumentError:
    record = ErrorRecord(code=Result.INVALID_ARGUMENT, message=message, hint=hint)
    return InvalidArgumentError(Result.INVALID_ARGUMENT, func_name, record)


def invalid_usage(func_name: str, message: str, *, hint: str = "") -> InvalidUsageError:
    record = ErrorRecord(code=Result.INVALID_USAGE, message=message, hint=hint)
    return InvalidUsageError(Result.INVALID_USAGE, func_name, record)


def unusable_buffer(func_name: str, message: str, *, hint: str = "") -> UnusableBufferError:
    record = ErrorRecord(code=Result.INVALID_ARGUMENT, message=message, hint=hint)
    return UnusableBufferError(Result.INVALID_ARGUMENT, func_name, record)
