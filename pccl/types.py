"""The enums and plain records of the interface. Values are those of pccl.h."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np


class Result(IntEnum):
    """Result codes. 0 to 12 are PCCL 1.0's."""

    SUCCESS = 0
    NOT_INITIALIZED = 1
    INTERNAL_ERROR = 2
    INVALID_ARGUMENT = 3
    INVALID_USAGE = 4
    TOO_FEW_PEERS = 5
    MASTER_CONNECTION_FAILED = 6
    RANK_CONNECTION_FAILED = 7
    RANK_CONNECTION_LOST = 8
    NO_SHARED_STATE_AVAILABLE = 9
    PENDING_ASYNC_OPS = 10
    UPDATE_TOPOLOGY_FAILED = 11
    TOPOLOGY_OPTIMIZATION_FAILED = 12
    TIMEOUT = 64
    IN_PROGRESS = 65
    EVICTED = 66
    OUTCOME_UNKNOWN = 67
    MISMATCH = 68
    DEADLOCK = 69
    CANCELLED = 70
    REFUSED = 71
    PROTOCOL_ERROR = 72
    NO_MEMORY = 73
    SYSTEM_ERROR = 74
    FORKED = 75
    STEP_ABORTED = 76
    NOT_ENCODABLE = 77


class ReduceOp(IntEnum):
    """AVG divides the sum once, at the end, by the number of peers that took part; on integers it truncates to 0.
    BAND, BOR and BXOR are for integers."""

    SUM = 0
    AVG = 1
    PROD = 2
    MAX = 3
    MIN = 4
    BAND = 5
    BOR = 6
    BXOR = 7


class Collective(IntEnum):
    ALL_REDUCE = 0
    BROADCAST = 1
    REDUCE = 2
    ALL_GATHER = 3
    REDUCE_SCATTER = 4
    GATHER = 5
    SCATTER = 6
    ALL_TO_ALL = 7
    SEND = 8
    RECV = 9
    BARRIER = 10


class Algorithm(IntEnum):
    """RING: round the ring, for large payloads. TREE: two binary trees, for small ones among many. DIRECT: each member
    owns a share, two hops, for long links. EXCHANGE: everything to everybody, one hop, for tiny ones among few."""

    AUTO = 0
    RING = 1
    TREE = 2
    DIRECT = 3
    EXCHANGE = 4


class Attribute(IntEnum):
    GLOBAL_WORLD_SIZE = 1
    LOCAL_WORLD_SIZE = 2
    NUM_DISTINCT_PEER_GROUPS = 3
    LARGEST_PEER_GROUP_WORLD_SIZE = 4


class SharedStateSyncStrategy(IntEnum):
    ENFORCE_POPULAR = 0
    RECEIVE_ONLY = 1
    SEND_ONLY = 2


class DeviceType(IntEnum):
    CPU = 0
    CUDA = 1


class DistributionHint(IntEnum):
    NONE = 0
    NORMAL = 1
    UNIFORM = 2


class QuantizationAlgorithm(IntEnum):
    NONE = 0
    MIN_MAX = 1
    ZERO_POINT_SCALE = 2
    BF16 = 16
    FP16 = 17
    INT8 = 18
    INT4 = 19
    FP8_E4M3 = 20
    E3M0 = 21
    TOP_K = 22
    INT_SUM = 23


class DataType(IntEnum):
    UINT8 = 0
    INT8 = 1
    INT16 = 2
    UINT16 = 3
    UINT32 = 4
    INT32 = 5
    UINT64 = 6
    INT64 = 7
    FLOAT16 = 8
    BFLOAT16 = 9
    FLOAT = 10
    DOUBLE = 11

    @property
    def itemsize(self) -> int:
        return _ITEMSIZE[self]

    @classmethod
    def from_numpy_dtype(cls, dtype: Any) -> DataType:
        """Also knows the bfloat16 of ml_dtypes. Only native byte order."""
        try:
            dtype = np.dtype(dtype)
        except (TypeError, ValueError):
            raise _unsupported(f"{dtype!r}, which is no NumPy dtype,") from None
        found = _of_numpy_dtype(dtype)
        if found is None:
            raise _unsupported(f"NumPy dtype {dtype!r}")
        return found

    def to_numpy_dtype(self) -> np.dtype[Any]:
        if self is DataType.BFLOAT16:
            try:
                import ml_dtypes
            except ImportError:
                raise _unsupported(
                    "NumPy has no bfloat16 of its own (pip install ml_dtypes); DataType.BFLOAT16"
                ) from None
            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype(_NUMPY_NAME[self])

    @classmethod
    def from_torch_dtype(cls, dtype: Any) -> DataType:
        found = _FROM_TORCH.get(str(dtype))
        if found is None:
            raise _unsupported(f"torch dtype {dtype}")
        return found

    def to_torch_dtype(self) -> Any:
        torch = sys.modules.get("torch")
        if torch is None:
            import torch  # type: ignore[no-redef]
        return getattr(torch, _TORCH_NAME[self])


_NUMPY_NAME = {
    DataType.UINT8: "uint8",
    DataType.INT8: "int8",
    DataType.INT16: "int16",
    DataType.UINT16: "uint16",
    DataType.UINT32: "uint32",
    DataType.INT32: "int32",
    DataType.UINT64: "uint64",
    DataType.INT64: "int64",
    DataType.FLOAT16: "float16",
    DataType.BFLOAT16: "bfloat16",
    DataType.FLOAT: "float32",
    DataType.DOUBLE: "float64",
}
_TORCH_NAME = _NUMPY_NAME
_FROM_NUMPY = {name: dtype for dtype, name in _NUMPY_NAME.items()}
_FROM_TORCH = {f"torch.{name}": dtype for dtype, name in _TORCH_NAME.items()}
_ITEMSIZE = {dtype: int(name.strip("abcdefghijklmnopqrstuvwxyz")) // 8 for dtype, name in _NUMPY_NAME.items()}


@lru_cache(maxsize=64)
def _of_numpy_dtype(dtype: np.dtype[Any]) -> DataType | None:
    """NumPy makes a dtype's name anew each time, which takes longer than the rest of a call's preparation."""
    return _FROM_NUMPY.get(dtype.name) if dtype.isnative else None


def _unsupported(what: str) -> Exception:
    from pccl.errors import invalid_argument

    names = ", ".join(_FROM_NUMPY)
    return invalid_argument("DataType", f"{what} is not supported", hint=f"supported: {names}")


@dataclass
class ReduceInfo:
    """What an all-reduce did. ``local_world_size`` peers took part: the divisor of AVG. Bytes are payload."""

    local_world_size: int
    tx_bytes: int
    rx_bytes: int


@dataclass
class SharedStateSyncInfo:
    tx_bytes: int
    rx_bytes: int


@dataclass
class ReduceOperandDescriptor:
    datatype: DataType
    distribution_hint: DistributionHint = DistributionHint.NONE


@dataclass
class QuantizationOptions:
    quantized_datatype: DataType = DataType.UINT8
    algorithm: QuantizationAlgorithm = QuantizationAlgorithm.MIN_MAX


@dataclass
class ReduceDescriptor:
    count: int
    op: ReduceOp
    tag: int
    operand_descriptor: ReduceOperandDescriptor
    quantization_options: QuantizationOptions


@dataclass(frozen=True)
class Member:
    """A member of the current epoch. ``rank`` is its index in its group; None for an observer."""

    id: int
    rank: int | None
    peer_group: int
    address: str
    is_observer: bool
    is_self: bool
