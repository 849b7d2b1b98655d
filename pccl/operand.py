"""What a caller may pass as a tensor, seen as memory: NumPy arrays (of ml_dtypes' bfloat16 too), torch tensors on the
CPU, DLPack objects, and any object with the buffer protocol. Whatever cannot be used is refused here, before anything
is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pccl._buffer import Buffer
from pccl.errors import InvalidArgumentError, unusable_buffer
from pccl.types import DataType

_DLPACK_CPU = 1
_DLPACK_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
_DLPACK_NAMES = {f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)} - {"float8"}
_RAW_BITS = {DataType.BFLOAT16: (DataType.UINT16, DataType.INT16), DataType.FLOAT16: (DataType.UINT16, DataType.INT16)}


class Operand(NamedTuple):
    """Contiguous CPU memory of one known data type, and the object that keeps it alive."""

    buffer: Buffer
    datatype: DataType
    count_elems: int


def operand(tensor: Any, name: str, func_name: str, *, writable: bool) -> Operand:
    """The memory of ``tensor``; UnusableBufferError, naming the argument ``name``, if it cannot be used."""
    try:
        if isinstance(tensor, np.ndarray):
            return _of_numpy(tensor, name, func_name, writable)
        if _is_torch(tensor):
            return _of_torch(tensor, name, func_name)
        if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
            return _of_dlpack(tensor, name, func_name, writable)
        return _of_buffer(tensor, name, func_name, writable)
    except InvalidArgumentError as error:
        if error.func_name == "DataType":
            raise unusable_buffer(func_name, f"{name}: {error.record.message}", hint=error.record.hint) from None
        raise


def kind_of(tensor: Any) -> str:
    """'bool', 'complex', or '' for what the core's data types name."""
    if isinstance(tensor, np.ndarray):
        return {"b": "bool", "c": "complex"}.get(tensor.dtype.kind, "")
    name = str(getattr(tensor, "dtype", None))
    return "bool" if name == "torch.bool" else "complex" if name.startswith("torch.complex") else ""


def plain_tensor(tensor: Any, name: str, func_name: str) -> Any:
    """The same memory in a type that the core knows: a bool is a byte, a complex number two floats."""
    kind = kind_of(tensor)
    if kind == "":
        return tensor
    if isinstance(tensor, np.ndarray):
        if not tensor.flags.c_contiguous:
            raise _not_contiguous(name, func_name, "numpy.ascontiguousarray makes a contiguous copy")
        flat = tensor.reshape(-1)
        return flat.view(np.uint8 if kind == "bool" else flat.real.dtype)
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise unusable_buffer(func_name, f"{name} is not a plain dense tensor (layout {tensor.layout})")
    if tensor.is_conj():
        raise unusable_buffer(func_name, f"{name} is conjugated lazily", hint="use tensor.resolve_conj()")
    return tensor.view(torch.uint8) if kind == "bool" else torch.view_as_real(tensor)


def pair(send: Any, recv: Any, func_name: str, count: int | None, datatype: DataType | None) -> tuple[Operand, Operand]:
    """Both sides of a reduce. ``recv`` None or ``send`` itself: in place. A given ``datatype`` must be that of the
    memory; 16-bit integers pass as the bits of a 16-bit float, for programs whose arrays cannot say bfloat16."""
    in_place = recv is None or recv is send
    out = operand(send if in_place else recv, "send" if in_place else "recv", func_name, writable=True)
    source = out if in_place else operand(send, "send", func_name, writable=False)
    if source.datatype != out.datatype:
        raise unusable_buffer(func_name, f"send is {source.datatype.name}, recv is {out.datatype.name}")
    if source.count_elems != out.count_elems:
        raise unusable_buffer(func_name, f"send has {source.count_elems} elements, recv has {out.count_elems}")
    if count is not None and source.count_elems != count:
        raise unusable_buffer(func_name, f"the descriptor says {count} elements, the buffers have {source.count_elems}")
    if datatype is not None and source.datatype != datatype:
        if source.datatype not in _RAW_BITS.get(datatype, ()):
            raise unusable_buffer(
                func_name, f"the descriptor says {datatype.name}, the buffers are {source.datatype.name}"
            )
        source, out = source._replace(datatype=datatype), out._replace(datatype=datatype)
    start, other = source.buffer.address, out.buffer.address
    if start != other and start < other + out.buffer.nbytes and other < start + source.buffer.nbytes:
        raise unusable_buffer(
            func_name,
            "send and recv overlap partially",
            hint="pass the same buffer (or no recv) to reduce in place, else memory that does not overlap",
        )
    return source, out


def _is_torch(tensor: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def _not_contiguous(name: str, func_name: str, remedy: str) -> InvalidArgumentError:
    return unusable_buffer(func_name, f"{name} is not contiguous in memory", hint=remedy)


def _read_only(name: str, func_name: str) -> InvalidArgumentError:
    return unusable_buffer(func_name, f"{name} is read-only and would be written to")


def _of_numpy(array: np.ndarray[Any, Any], name: str, func_name: str, writable: bool) -> Operand:
    datatype = DataType.from_numpy_dtype(array.dtype)
    flags = array.flags
    if not flags.c_contiguous:
        raise _not_contiguous(name, func_name, "numpy.ascontiguousarray makes a contiguous copy")
    if writable and not flags.writeable:
        raise _read_only(name, func_name)
    address: int = array.__array_interface__["data"][0]
    return Operand(Buffer.at(address, array.nbytes, array), datatype, array.size)


def _of_torch(tensor: Any, name: str, func_name: str) -> Operand:
    if tensor.device.type != "cpu":
        raise unusable_buffer(
            func_name, f"{name} is on device {tensor.device}; only CPU tensors are supported", hint="use tensor.cpu()"
        )
    if str(tensor.layout) != "torch.strided" or tensor.is_conj() or tensor.is_neg():
        raise unusable_buffer(func_name, f"{name} is not a plain dense tensor (layout {tensor.layout})")
    datatype = DataType.from_torch_dtype(tensor.dtype)
    if not tensor.is_contiguous():
        raise _not_contiguous(name, func_name, "tensor.contiguous() makes a contiguous copy")
    count = tensor.numel()
    # The storage, which stays where it is also when the tensor gets another one (tensor.data = ...).
    storage = tensor.untyped_storage()
    return Operand(Buffer.at(tensor.data_ptr(), count * datatype.itemsize, storage), datatype, count)


def _of_dlpack(tensor: Any, name: str, func_name: str, writable: bool) -> Operand:
    device, _ = tensor.__dlpack_device__()
    if device != _DLPACK_CPU:
        raise unusable_buffer(func_name, f"{name} is on DLPack device type {int(device)}; only CPU memory is supported")
    try:
        capsule = _exported(tensor.__dlpack__)
    except BufferError as error:
        raise unusable_buffer(func_name, f"{name}: {error}") from error
    buffer, code, bits, count, contiguous, read_only = Buffer.of_dlpack(capsule)
    kind = _DLPACK_CODES.get(code)
    if kind == "bfloat" and bits == 16:
        datatype = DataType.BFLOAT16
    elif f"{kind}{bits}" in _DLPACK_NAMES:
        datatype = DataType.from_numpy_dtype(f"{kind}{bits}")
    else:
        raise unusable_buffer(func_name, f"{name} has DLPack type code {code} with {bits} bits, which is not supported")
    if not contiguous:
        raise _not_contiguous(name, func_name, "make a contiguous copy")
    if writable and read_only:
        raise _read_only(name, func_name)
    return Operand(buffer, datatype, count)


def _exported(export: Callable[..., Any]) -> Any:
    try:
        return export(max_version=(1, 0))
    except TypeError:
        return export()


def _of_buffer(exporter: Any, name: str, func_name: str, writable: bool) -> Operand:
    try:
        view = memoryview(exporter)
    except TypeError:
        raise unusable_buffer(
            func_name,
            f"{name} is a {type(exporter).__name__}, which has no memory to use",
            hint="pass a NumPy array, a torch tensor on the CPU, a DLPack object or a buffer",
        ) from None
    with view:
        try:
            datatype = DataType.from_numpy_dtype(np.dtype(view.format))
        except TypeError:
            raise unusable_buffer(func_name, f"{name} has the unknown buffer format {view.format!r}") from None
        if not view.c_contiguous:
            raise _not_contiguous(name, func_name, "make a contiguous copy")
        if writable and view.readonly:
            raise _read_only(name, func_name)
        count = view.nbytes // view.itemsize
    return Operand(Buffer.of_object(exporter, writable), datatype, count)
