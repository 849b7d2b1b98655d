"""The collectives beside all_reduce, and steps. ``Communicator`` and ``Group`` inherit them.

Tensors are what all_reduce takes: NumPy arrays, torch tensors on the CPU, DLPack objects, buffers; here of bool and
complex types too. A *block* is what belongs to one rank; buffers of blocks hold them by rank, packed. With
``async_op=True`` a call returns a ``CollectiveHandle`` at once; operations in flight are told apart by their tags. Use
tags again once their operations are done: a group can use 2**20 different ones in an epoch. ``codec``, the same at all:
how floating-point values travel (see ``Codec``). What is only moved is encoded once, by the member that has it;
wherever that member receives it too, in place or not, it takes over what the others decode.
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np

from pccl.arguments import choice, flag, milliseconds, number, real, sequence
from pccl.codec import Codec, Native, native_codec
from pccl.errors import PCCLError, invalid_argument, unusable_buffer
from pccl.handle import AsyncReduceHandle, CollectiveHandle
from pccl.operand import Operand, kind_of, operand, pair, plain_tensor
from pccl.types import Algorithm, Collective, DataType, ReduceOp, Result

if TYPE_CHECKING:
    from pccl._buffer import Buffer
    from pccl._comm import Comm
    from pccl._request import Request

_RANK_ANY = 2**32 - 1
_BOOL_OPS = {
    ReduceOp.SUM: ReduceOp.MAX,
    ReduceOp.MAX: ReduceOp.MAX,
    ReduceOp.BOR: ReduceOp.MAX,
    ReduceOp.PROD: ReduceOp.MIN,
    ReduceOp.MIN: ReduceOp.MIN,
    ReduceOp.BAND: ReduceOp.MIN,
    ReduceOp.BXOR: ReduceOp.BXOR,
}


def _elements_each(tensor: Any) -> int:
    """Of the plain memory, for one of the tensor's."""
    return 2 if kind_of(tensor) == "complex" else 1


def block_counts(
    counts: Sequence[int] | None, func_name: str, *, name: str = "counts", each: int = 1
) -> list[int] | None:
    """Elements of each block, ``each`` times."""
    if counts is None:
        return None
    listed = sequence(counts, name, func_name, "a list of whole numbers")
    return [number(count, f"each of {name}", func_name, 2**63 - 1) * each for count in listed]


def plain_tensors(
    send: Any, recv: Any, op: ReduceOp | None, func_name: str, name: str | None = None
) -> tuple[Any, Any, ReduceOp]:
    """The same memory and reduction in types that the core knows. ``op`` None: nothing is reduced. ``name``: of the
    argument that both are, or that one is; None: send and recv."""
    kinds = {kind_of(tensor) for tensor in (send, recv) if tensor is not None}
    if len(kinds) > 1:
        raise unusable_buffer(func_name, "send and recv have different data types")
    kind = kinds.pop() if kinds else ""
    plain = ReduceOp.SUM if op is None else op
    if kind == "":
        return send, recv, plain
    if kind == "bool" and op is not None:
        if op not in _BOOL_OPS:
            raise invalid_argument(func_name, f"{op.name.lower()} is not defined for bool")
        plain = _BOOL_OPS[op]
    if kind == "complex" and op not in (None, ReduceOp.SUM, ReduceOp.AVG):
        raise invalid_argument(func_name, f"{plain.name.lower()} is not defined for complex numbers")
    source = None if send is None else plain_tensor(send, name or "send", func_name)
    out = source if recv is send else None if recv is None else plain_tensor(recv, name or "recv", func_name)
    return source, out, plain


def plain_operands(
    send: Any, recv: Any, op: ReduceOp | None, func_name: str, name: str | None = None
) -> tuple[Operand | None, Operand | None, ReduceOp]:
    """Memory to send from and to receive into."""
    send, recv, plain = plain_tensors(send, recv, op, func_name, name)
    source = None if send is None else operand(send, name or "send", func_name, writable=False)
    out = None if recv is None else operand(recv, name or "recv", func_name, writable=True)
    if source is not None and out is not None and source.datatype != out.datatype:
        raise unusable_buffer(func_name, f"send is {source.datatype.name}, recv is {out.datatype.name}")
    return source, out, plain


def _given(memory: Operand | None, name: str, func_name: str) -> Operand:
    if memory is None:
        raise unusable_buffer(func_name, f"{name} is None")
    return memory


def _like(tensor: Any, shape: tuple[int, ...] | None, func_name: str, *, blocks: int = 0) -> Any:
    """New memory of the same type and another shape; None: of the tensor's, or so many times that."""
    torch = sys.modules.get("torch")
    if not isinstance(tensor, np.ndarray) and (torch is None or not isinstance(tensor, torch.Tensor)):
        raise unusable_buffer(func_name, "pass recv: memory can be made only for NumPy arrays and torch tensors")
    if shape is None:
        shape = (blocks, *tensor.shape) if blocks else tuple(tensor.shape)
    return np.empty(shape, tensor.dtype) if isinstance(tensor, np.ndarray) else tensor.new_empty(shape)


_Handle = TypeVar("_Handle", bound=CollectiveHandle)


class Place(NamedTuple):
    """Where a peer stands in a group."""

    size: int
    rank: int


class Step:
    """A step in progress. ``committed`` is None until it has ended."""

    def __init__(self, owner: Collectives) -> None:
        self._owner = owner
        self._group = 0
        self.handles: list[CollectiveHandle] = []
        self.committed: bool | None = None

    def __enter__(self) -> Step:
        self._group = self._owner._group_number()
        self._owner._core.begin_step(self._group)
        self._owner._step = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.committed = False
        failure = None
        try:
            if error is None:
                failure = self._settle()
            else:
                self._give_up()
        except BaseException:  # an interrupt: the others are told, as they are of one in the block
            self._give_up()
            with contextlib.suppress(PCCLError):
                self._vote(False)
            raise
        try:
            self._vote(error is None and failure is None)
        except PCCLError as aborted:
            if error is not None and not isinstance(error, PCCLError):
                return  # the block's own says more than what came of it
            if aborted.result != Result.STEP_ABORTED:
                raise
            raise aborted from error or failure
        else:
            self.committed = True

    def _vote(self, commit: bool) -> None:
        self._owner._step = None
        self._owner._finish(self._owner._core.start_end_step(self._group, commit))

    def _settle(self) -> PCCLError | None:
        """Waits for what is in flight; the first failure."""
        first: PCCLError | None = None
        for handle in self.handles:
            try:
                handle.result()
            except PCCLError as error:
                first = first or error
        return first

    def _give_up(self) -> None:
        """Ends what is in flight: it may wait for what this peer would have done in the rest of the block."""
        for handle in self.handles:
            handle.cancel()


class Collectives:
    """Everything here is a joint call of the group unless it says otherwise: all members make the same calls with a
    tag, in the same order for that tag. Ranks count the group's members by their ids, from 0.

    Raises: TooFewPeersError in a group of one; RankConnectionLostError when a peer is lost, or when the group has
    changed since its size was read; MismatchError at all members when their calls differ; StepAbortedError at the end
    of a step.
    """

    _core: Comm
    _step: Step | None = None

    @staticmethod
    def _finish(request: Request) -> Request:
        request.wait()
        request.check()
        return request

    @property
    def world_size(self) -> int:
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """This peer's rank in its group, in the current epoch."""
        return self._place().rank

    def _place(self) -> Place:
        """Size and rank of one moment: another epoch may begin between two looks."""
        members = self._core.members()
        for _, rank, group, _, is_self, _ in members:
            if is_self and rank is not None:
                return Place(sum(each[1] is not None and each[2] == group for each in members), rank)
        self._core.check_in_run()
        raise invalid_argument("rank", "this peer has no rank: it is an observer")

    def _group_number(self) -> int:
        """What the core knows the group by; 0: the peer group."""
        return 0

    def step(self) -> Step:
        """Step consistency: in ``with comm.step() as s:`` operations return when they are complete here, without the
        verdict of all, and leaving the block votes on all of them at once. ``s.committed`` tells the result; a step
        that failed anywhere raises StepAbortedError everywhere, with the cause as ``__cause__`` where it failed, and in
        the message. The first failure makes what is in flight or started later in the step fail at once. Buffers
        reduced in place in a failed step are not restored. An exception in the block ends what is in flight, and aborts
        the step for all. So it is when not all peers have made the same collective calls in it, or what was sent in it
        was not received in it."""
        return Step(self)

    # --------------------------------------------------------------------------------------------------- one to all --

    def broadcast(
        self, tensor: Any, *, root: int = 0, tag: int = 0, algorithm: Algorithm | str | None = None,
        codec: Codec | str | None = None, op_timeout: float | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        """``tensor`` of ``root``, to ``tensor`` of all. Returns it."""
        out = _given(plain_operands(None, tensor, None, "broadcast", "tensor")[1], "tensor", "broadcast")
        return self._start(
            Collective.BROADCAST, None, out, out.count_elems, result=tensor, root=root, tag=tag, algorithm=algorithm,
            codec=codec, op_timeout=op_timeout, async_op=async_op,
        )  # fmt: skip

    def scatter(
        self, send: Any, recv: Any, *, root: int = 0, tag: int = 0, counts: Sequence[int] | None = None,
        codec: Codec | str | None = None, op_timeout: float | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        """The blocks of ``send`` at ``root``, one to ``recv`` of each. Elsewhere ``send`` is None. ``counts``, at root:
        elements of each block, where they differ."""
        place = self._place()
        source, into, _ = plain_operands(send, recv, None, "scatter")
        out = _given(into, "recv", "scatter")
        counts = block_counts(counts, "scatter", each=_elements_each(recv))
        if source is not None:
            self._check_blocks("scatter", "send", source, out.count_elems, counts, place)
        return self._start(
            Collective.SCATTER, source, out, out.count_elems, result=recv, root=root, tag=tag, counts=counts,
            codec=codec, place=place, op_timeout=op_timeout,
            async_op=async_op,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------------------- all to one --

    def reduce(
        self, send: Any, recv: Any = None, *, root: int = 0, op: ReduceOp | str = ReduceOp.SUM, tag: int = 0,
        weight: int | None = None, scale: float | None = None, algorithm: Algorithm | str | None = None,
        codec: Codec | str | None = None, op_timeout: float | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        """``send`` of all, combined, to ``recv`` of ``root``: in place without it. Returns the result at root, else
        None."""
        place = self._place()
        at_root = place.rank == number(root, "root", "reduce", _RANK_ANY)
        out_tensor = (send if recv is None else recv) if at_root else None
        chosen = choice(op, ReduceOp, "op", "reduce")
        given, out, plain = plain_operands(send, out_tensor, chosen, "reduce")
        source = _given(given, "send", "reduce")
        return self._start(
            Collective.REDUCE, source, out, source.count_elems, result=out_tensor, root=root, op=plain, tag=tag,
            weight=weight, scale=scale, algorithm=algorithm, codec=codec, place=place, op_timeout=op_timeout,
            async_op=async_op,
        )  # fmt: skip

    def gather(
        self, send: Any, recv: Any = None, *, root: int = 0, tag: int = 0, counts: Sequence[int] | None = None,
        codec: Codec | str | None = None, op_timeout: float | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        """``send`` of each, to the blocks of ``recv`` at ``root``, which is made there if it is None: of shape
        (world size, *send.shape). ``counts``, at root: elements of each block, where they differ. Returns recv at root,
        else None."""
        place = self._place()
        if place.rank != number(root, "root", "gather", _RANK_ANY):
            recv = None
        elif recv is None:
            recv = self._make_blocks(send, counts, "gather", place)
        given, out, _ = plain_operands(send, recv, None, "gather")
        source = _given(given, "send", "gather")
        counts = block_counts(counts, "gather", each=_elements_each(send))
        if out is not None:
            self._check_blocks("gather", "recv", out, source.count_elems, counts, place)
        return self._start(
            Collective.GATHER, source, out, source.count_elems, result=recv, root=root, tag=tag,
            counts=counts if out is not None else None, codec=codec, place=place, op_timeout=op_timeout,
            async_op=async_op,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------------------- all to all --

    def all_gather(
        self, send: Any, recv: Any = None, *, tag: int = 0, counts: Sequence[int] | None = None,
        algorithm: Algorithm | str | None = None, codec: Codec | str | None = None, op_timeout: float | None = None,
        async_op: bool = False,
    ) -> Any:  # fmt: skip
        """``send`` of each, to the blocks of ``recv`` of all, which is made if it is None: of shape
        (world size, *send.shape). ``counts``, the same at all: elements of each block, where they differ. Returns
        recv."""
        place = self._place()
        if recv is None:
            recv = self._make_blocks(send, counts, "all_gather", place)
        given, into, _ = plain_operands(send, recv, None, "all_gather")
        source, out = _given(given, "send", "all_gather"), _given(into, "recv", "all_gather")
        counts = block_counts(counts, "all_gather", each=_elements_each(send))
        self._check_blocks("all_gather", "recv", out, source.count_elems, counts, place)
        return self._start(
            Collective.ALL_GATHER, source, out, source.count_elems, result=recv, tag=tag, counts=counts,
            algorithm=algorithm, codec=codec, place=place, op_timeout=op_timeout,
            async_op=async_op,
        )  # fmt: skip

    def reduce_scatter(
        self, send: Any, recv: Any, *, op: ReduceOp | str = ReduceOp.SUM, tag: int = 0,
        counts: Sequence[int] | None = None, weight: int | None = None, scale: float | None = None,
        algorithm: Algorithm | str | None = None,
        codec: Codec | str | None = None, op_timeout: float | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        """The blocks of ``send`` of all, combined, each to ``recv`` of its rank. ``counts``, the same at all: elements
        of each block, where they differ. Returns recv."""
        place = self._place()
        chosen = choice(op, ReduceOp, "op", "reduce_scatter")
        given, into, plain = plain_operands(send, recv, chosen, "reduce_scatter")
        source, out = _given(given, "send", "reduce_scatter"), _given(into, "recv", "reduce_scatter")
        counts = block_counts(counts, "reduce_scatter", each=_elements_each(send))
        self._check_blocks("reduce_scatter", "send", source, out.count_elems, counts, place)
        return self._start(
            Collective.REDUCE_SCATTER, source, out, out.count_elems, result=recv, op=plain, tag=tag, counts=counts,
            weight=weight, scale=scale, algorithm=algorithm, codec=codec, place=place, op_timeout=op_timeout,
            async_op=async_op,
        )  # fmt: skip

    def all_to_all(
        self, send: Any, recv: Any = None, *, tag: int = 0, counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None, codec: Codec | str | None = None, op_timeout: float | None = None,
        async_op: bool = False,
    ) -> Any:  # fmt: skip
        """Block i of ``send`` to rank i, whose blocks of ``recv`` come from all ranks. ``counts`` and ``recv_counts``:
        elements that go to each rank and that come from each, where they differ. Returns recv."""
        if (counts is None) != (recv_counts is None):
            raise invalid_argument("all_to_all", "pass both counts and recv_counts, or neither")
        if recv is None:
            sizes = block_counts(recv_counts, "all_to_all", name="recv_counts")
            recv = _like(send, None if sizes is None else (sum(sizes),), "all_to_all")
        given, into, _ = plain_operands(send, recv, None, "all_to_all")
        source, out = _given(given, "send", "all_to_all"), _given(into, "recv", "all_to_all")
        each = _elements_each(send)
        counts = block_counts(counts, "all_to_all", each=each)
        recv_counts = block_counts(recv_counts, "all_to_all", name="recv_counts", each=each)
        place = self._place()
        block = source.count_elems // (place.size * each) * each
        own = block if counts is None else None
        self._check_blocks("all_to_all", "send", source, own, counts, place)
        self._check_blocks("all_to_all", "recv", out, own, recv_counts, place)
        return self._start(
            Collective.ALL_TO_ALL, source, out, block, result=recv, tag=tag, counts=counts, recv_counts=recv_counts,
            codec=codec, place=place, op_timeout=op_timeout,
            async_op=async_op,
        )  # fmt: skip

    def barrier(self, *, tag: int = 0, op_timeout: float | None = None, async_op: bool = False) -> Any:
        """Returns when all members have called it."""
        return self._start(
            Collective.BARRIER, None, None, 0, result=None, tag=tag, op_timeout=op_timeout, async_op=async_op
        )

    def all_reduce_coalesced(
        self, tensors: Sequence[Any], *, op: ReduceOp | str = ReduceOp.SUM, tag: int = 0, weight: int | None = None,
        algorithm: Algorithm | str | None = None, op_timeout: float | None = None,
    ) -> list[Any]:  # fmt: skip
        """Reduces each of ``tensors`` in place, all in flight at once. Tensor i has the tag ``tag + i * 2**48``."""
        where = "all_reduce_coalesced"
        tag = number(tag, "tag", where, 2**48 - 1)
        chosen = choice(op, ReduceOp, "op", where)
        handles = []
        with contextlib.ExitStack() as pending:
            for index, tensor in enumerate(sequence(tensors, "tensors", where, "a list of tensors")):
                given, _, plain = plain_operands(tensor, tensor, chosen, where, f"tensor {index}")
                source = _given(given, f"tensor {index}", where)
                handle = self._start(
                    Collective.ALL_REDUCE, source, source, source.count_elems, result=tensor, op=plain,
                    tag=tag + index * 2**48, weight=weight, algorithm=algorithm, op_timeout=op_timeout, async_op=True,
                )  # fmt: skip
                pending.callback(handle.cancel)
                handles.append(handle)
            return [handle.result() for handle in handles]

    # --------------------------------------------------------------------------------------------------- one to one --

    def send(
        self, tensor: Any, to: int, *, tag: int = 0, codec: Codec | str | None = None, op_timeout: float | None = None,
        async_op: bool = False,
    ) -> Any:  # fmt: skip
        """``tensor`` to rank ``to``, which receives it with the same tag. No other member takes part."""
        source = _given(plain_operands(tensor, None, None, "send", "tensor")[0], "tensor", "send")
        root = number(to, "to", "send", _RANK_ANY)
        return self._start(
            Collective.SEND, source, None, source.count_elems, result=None, root=root, tag=tag, codec=codec,
            op_timeout=op_timeout, async_op=async_op,
        )  # fmt: skip

    @overload
    def recv(
        self, tensor: Any, source: int | None = None, *, tag: int = 0, codec: Codec | str | None = None,
        op_timeout: float | None = None, async_op: Literal[False] = False,
    ) -> int: ...  # fmt: skip
    @overload
    def recv(
        self, tensor: Any, source: int | None = None, *, tag: int = 0, codec: Codec | str | None = None,
        op_timeout: float | None = None, async_op: Literal[True],
    ) -> CollectiveHandle: ...  # fmt: skip
    def recv(
        self, tensor: Any, source: int | None = None, *, tag: int = 0, codec: Codec | str | None = None,
        op_timeout: float | None = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        """Into ``tensor`` what rank ``source`` sends with this tag, or whoever sends first (None). Returns the sender's
        rank.

        After a failure, a time limit for instance, a receive from ``source`` is over at both ends: the send that it was
        waiting for fails too, whenever it comes. One from whoever sends first has no other end yet: what comes later is
        for the next receive.
        """
        out = _given(plain_operands(None, tensor, None, "recv", "tensor")[1], "tensor", "recv")
        root = _RANK_ANY if source is None else number(source, "source", "recv", _RANK_ANY)
        return self._start(
            Collective.RECV, None, out, out.count_elems, result=None, root=root, tag=tag, codec=codec,
            op_timeout=op_timeout, async_op=async_op,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- internals --

    def _check_blocks(
        self, func_name: str, name: str, blocks: Operand, own_elems: int | None, counts: Sequence[int] | None,
        place: Place,
    ) -> None:  # fmt: skip
        """``blocks``, the argument ``name``, has a block of each rank, the other buffer the own one, of ``own_elems``;
        None where both have blocks."""
        size, rank = place
        if counts is not None and len(counts) != size:
            raise invalid_argument(func_name, f"{len(counts)} counts for a group of {size}")
        if counts is not None and own_elems is not None and counts[rank] != own_elems:
            other = "recv" if name == "send" else "send"
            raise unusable_buffer(
                func_name, f"{other} has {own_elems} elements, the count of rank {rank} is {counts[rank]}"
            )
        expected = sum(counts) if counts is not None else (own_elems or 0) * size
        if blocks.count_elems != expected:
            what = "the counts add up to" if counts is not None else f"{size} blocks of {own_elems} elements are"
            raise unusable_buffer(func_name, f"{name} has {blocks.count_elems} elements, {what} {expected}")

    def _make_blocks(self, send: Any, counts: Sequence[int] | None, func_name: str, place: Place) -> Any:
        sizes = block_counts(counts, func_name)
        return _like(send, None if sizes is None else (sum(sizes),), func_name, blocks=place.size)

    def _start(
        self,
        collective: Collective,
        source: Operand | None,
        out: Operand | None,
        count: int,
        *,
        result: Any,
        root: int = 0,
        op: ReduceOp = ReduceOp.SUM,
        tag: int = 0,
        counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None,
        weight: int | None = None,
        scale: float | None = None,
        algorithm: Algorithm | str | None = None,
        codec: Codec | str | None = None,
        place: Place | None = None,
        op_timeout: float | None = None,
        async_op: bool = False,
    ) -> Any:
        name = collective.name.lower()
        async_op = flag(async_op, "async_op", name)
        request = self._request(
            collective, source, out, count, root=root, op=op, tag=tag, counts=counts, recv_counts=recv_counts,
            weight=weight, scale=scale, algorithm=algorithm, codec=native_codec(codec, None, name),
            place=place, op_timeout=op_timeout, awaited=not async_op,
        )  # fmt: skip
        try:
            handle = self._held(CollectiveHandle(request, collective, result), not async_op)
            return handle if async_op else handle.result()
        except BaseException:  # what it has come to, or an interrupt, of which nobody else would know what it has left
            request.close()
            raise

    def _start_all_reduce(
        self,
        send: Any,
        recv: Any,
        *,
        op: ReduceOp | str,
        tag: int,
        codec: Native | None,
        residual: Any,
        weight: int | None,
        scale: float | None,
        algorithm: Algorithm | str | None,
        op_timeout: float | None,
        datatype: DataType | None = None,
        awaited: bool = False,
    ) -> AsyncReduceHandle:
        send, recv, plain = plain_tensors(send, recv, choice(op, ReduceOp, "op", "all_reduce"), "all_reduce")
        source, out = pair(send, recv, "all_reduce", None, datatype)
        request = self._request(
            Collective.ALL_REDUCE, source, out, source.count_elems, op=plain, tag=tag, weight=weight, scale=scale,
            algorithm=algorithm, codec=codec, residual=_residual_of(residual, source), op_timeout=op_timeout,
            awaited=awaited,
        )  # fmt: skip
        try:
            return self._held(AsyncReduceHandle(request, Collective.ALL_REDUCE, None), awaited)
        except BaseException:  # an interrupt, as in _start
            request.close()
            raise

    def _held(self, handle: _Handle, awaited: bool) -> _Handle:
        if self._step is not None:
            self._step.handles.append(handle)
        if not awaited:
            handle._request.keep()
        return handle

    def _request(
        self,
        collective: Collective,
        source: Operand | None,
        out: Operand | None,
        count: int,
        *,
        root: int = 0,
        op: ReduceOp = ReduceOp.SUM,
        tag: int = 0,
        counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None,
        weight: int | None = None,
        scale: float | None = None,
        algorithm: Algorithm | str | None = None,
        codec: Native | None = None,
        residual: Buffer | None = None,
        place: Place | None = None,
        op_timeout: float | None = None,
        awaited: bool = False,
    ) -> Request:
        """``place``: what buffers, counts and root are made for; None: they fit any group."""
        name = collective.name.lower()
        memory = source if source is not None else out
        return self._core.start_collective(
            int(collective),
            None if source is None else source.buffer,
            None if out is None else out.buffer,
            count,
            int(DataType.UINT8 if memory is None else memory.datatype),
            int(op),
            number(root, "root", name, _RANK_ANY),
            number(tag, "tag", name, 2**64 - 1),
            None if counts is None else array("Q", counts),
            None if recv_counts is None else array("Q", recv_counts),
            None if weight is None else number(weight, "weight", name, 2**48),
            None if scale is None else real(scale, "scale", name),
            int(Algorithm.AUTO if algorithm is None else choice(algorithm, Algorithm, "algorithm", name)),
            codec,
            residual,
            milliseconds(op_timeout, "op_timeout", name),
            self._group_number(),
            *(place or (0, 0)),
            awaited,
        )


def _residual_of(residual: Any, source: Operand) -> Buffer | None:
    if residual is None:
        return None
    memory = operand(residual, "residual", "all_reduce", writable=True)
    datatype = DataType.DOUBLE if source.datatype == DataType.DOUBLE else DataType.FLOAT
    if memory.datatype != datatype or memory.count_elems != source.count_elems:
        raise unusable_buffer(
            "all_reduce",
            f"residual is {memory.count_elems} x {memory.datatype.name}, not {source.count_elems} x {datatype.name}",
        )
    return memory.buffer
