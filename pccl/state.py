"""The shared state: named tensors with a revision that all peers of a group hold alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pccl.arguments import flag, instance, number, sequence, text
from pccl.errors import invalid_argument, unusable_buffer
from pccl.operand import Operand, operand, plain_tensor
from pccl.types import DataType, DeviceType


class TensorInfo:
    """One named tensor of a shared state. Holds a reference to the tensor, whose memory a synchronisation may write."""

    __slots__ = ("_datatype", "_numel", "allow_content_inequality", "name", "tensor")

    def __init__(self, tensor: Any, name: str, *, allow_content_inequality: bool = False) -> None:
        if not text(name, "name", "TensorInfo"):
            raise invalid_argument("TensorInfo", "name must not be empty")
        made = self._memory(tensor, name, "TensorInfo")
        self._datatype, self._numel = made.datatype, made.count_elems
        self.tensor = tensor
        self.name = name
        self.allow_content_inequality = flag(allow_content_inequality, "allow_content_inequality", "TensorInfo")

    @classmethod
    def from_torch(cls, tensor: Any, name: str, *, allow_content_inequality: bool = False) -> TensorInfo:
        return cls(tensor, name, allow_content_inequality=allow_content_inequality)

    @classmethod
    def from_numpy(cls, tensor: Any, name: str, *, allow_content_inequality: bool = False) -> TensorInfo:
        return cls(tensor, name, allow_content_inequality=allow_content_inequality)

    @staticmethod
    def _memory(tensor: Any, name: str, func_name: str) -> Operand:
        what = f"tensor {name!r}"
        return operand(plain_tensor(tensor, what, func_name), what, func_name, writable=True)

    @property
    def datatype(self) -> DataType:
        """Of the memory: a bool is a byte there, a complex number two floats."""
        return self._datatype

    @property
    def device_type(self) -> DeviceType:
        return DeviceType.CPU

    @property
    def numel(self) -> int:
        """Of ``datatype``."""
        return self._numel

    @property
    def operand(self) -> Operand:
        """The tensor's memory, which may be another than before (``parameter.data = ...``). Raises UnusableBufferError
        if the tensor is not what it was when this was made."""
        now = self._memory(self.tensor, self.name, "sync_shared_state")
        if (now.datatype, now.count_elems) != (self._datatype, self._numel):
            raise unusable_buffer(
                "sync_shared_state",
                f"tensor {self.name!r} had {self._numel} elements of {self._datatype.name} when its TensorInfo was "
                f"made, and has {now.count_elems} of {now.datatype.name} now",
                hint="make a new TensorInfo for it, at all peers",
            )
        return now

    def __repr__(self) -> str:
        return f"TensorInfo({self.name!r}, {self.datatype.name}, {self.numel} elements)"


class SharedState:
    """Tensors and their revision. After a synchronisation ``revision`` is the elected one; the program raises it when
    it has changed the tensors."""

    def __init__(self, tensor_infos: Iterable[TensorInfo]) -> None:
        infos = sequence(tensor_infos, "tensor_infos", "SharedState", "a list of TensorInfo")
        self._infos = tuple(instance(info, TensorInfo, "each of tensor_infos", "SharedState") for info in infos)
        if not self._infos:
            raise invalid_argument("SharedState", "a shared state needs at least one tensor")
        seen: set[str] = set()
        for info in self._infos:
            if info.name in seen:
                raise invalid_argument("SharedState", f"two tensors have the name {info.name!r}")
            seen.add(info.name)
        self._revision = 0

    @property
    def revision(self) -> int:
        return self._revision

    @revision.setter
    def revision(self, value: int) -> None:
        self._revision = number(value, "revision", "SharedState", 2**64 - 1)

    def push_revision(self) -> None:
        self.revision += 1

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return f"SharedState(revision={self._revision}, {list(self._infos)!r})"
