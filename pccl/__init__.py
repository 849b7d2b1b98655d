"""Fault-tolerant collective communication: peers join, die and leave while they all-reduce.

`Communicator` is a peer, `MasterNode` a master, `SharedState` what all peers hold alike. Importing has no side effects
and needs NumPy only.
"""

from pccl import cuda
from pccl.codec import Codec
from pccl.collectives import Step
from pccl.communicator import Communicator, ReduceOpDescriptor
from pccl.errors import (
    DeadlockError,
    ErrorRecord,
    EvictedError,
    ForkedError,
    InProgressError,
    InternalError,
    InvalidArgumentError,
    InvalidUsageError,
    MasterConnectionFailedError,
    MismatchError,
    NoMemoryError,
    NoSharedStateAvailableError,
    NotEncodableError,
    NotInitializedError,
    OperationCancelledError,
    OperationTimeoutError,
    OutcomeUnknownError,
    PCCLError,
    PendingAsyncOpsError,
    ProtocolError,
    RankConnectionFailedError,
    RankConnectionLostError,
    RefusedError,
    StepAbortedError,
    SystemCallError,
    TooFewPeersError,
    TopologyError,
    UnusableBufferError,
)
from pccl.group import Group
from pccl.handle import AsyncReduceHandle, CollectiveHandle
from pccl.master_node import MasterNode
from pccl.paths import get_include, get_library_dir
from pccl.state import SharedState, TensorInfo
from pccl.types import (
    Algorithm,
    Attribute,
    DataType,
    DeviceType,
    DistributionHint,
    Member,
    QuantizationAlgorithm,
    QuantizationOptions,
    ReduceDescriptor,
    ReduceInfo,
    ReduceOp,
    ReduceOperandDescriptor,
    Result,
    SharedStateSyncInfo,
    SharedStateSyncStrategy,
)

__all__ = [
    "Algorithm",
    "AsyncReduceHandle",
    "Attribute",
    "Codec",
    "CollectiveHandle",
    "Communicator",
    "DataType",
    "DeadlockError",
    "DeviceType",
    "DistributionHint",
    "ErrorRecord",
    "EvictedError",
    "ForkedError",
    "Group",
    "InProgressError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidUsageError",
    "MasterConnectionFailedError",
    "MasterNode",
    "Member",
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
    "QuantizationAlgorithm",
    "QuantizationOptions",
    "RankConnectionFailedError",
    "RankConnectionLostError",
    "ReduceDescriptor",
    "ReduceInfo",
    "ReduceOp",
    "ReduceOpDescriptor",
    "ReduceOperandDescriptor",
    "RefusedError",
    "Result",
    "SharedState",
    "SharedStateSyncInfo",
    "SharedStateSyncStrategy",
    "Step",
    "StepAbortedError",
    "SystemCallError",
    "TensorInfo",
    "TooFewPeersError",
    "TopologyError",
    "UnusableBufferError",
    "cuda",
    "get_include",
    "get_library_dir",
]

__version__ = "0.1.0"
