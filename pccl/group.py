"""Groups of some members of a peer group, made by ``Communicator.new_group``."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pccl.codec import Codec, native_codec
from pccl.collectives import Collectives, Place
from pccl.errors import invalid_argument, invalid_usage
from pccl.handle import AsyncReduceHandle
from pccl.types import Algorithm, ReduceInfo, ReduceOp

if TYPE_CHECKING:
    from pccl.communicator import Communicator


class Group(Collectives):
    """Ranks are places in the list that it was made of. Its tags, steps and failures are its own: what happens in
    another group does not touch it, and it does not touch the others.

    When a member is lost, the group is broken: what is in flight or started later raises RankConnectionLostError. It
    ends with the connection, and with ``close``, which is local; as a context manager it closes on exit, and so does
    garbage collection when nothing of it is in flight.
    """

    def __init__(self, owner: Communicator, number: int, members: tuple[int, ...], own_id: int) -> None:
        self._owner = owner
        self._core = owner._core
        self._life = owner._lives
        self._number = number
        self._own_id = own_id
        self._closed = False
        self.members = members
        """Ids, by rank."""

    @property
    def is_member(self) -> bool:
        """Whether this peer is in it. If not, it can do nothing with the group."""
        return self._number != 0

    @property
    def world_size(self) -> int:
        return len(self.members)

    def _place(self) -> Place:
        if not self.is_member:
            raise invalid_argument("rank", "this peer is not in the group")
        return Place(len(self.members), self.members.index(self._own_id))

    def all_reduce(
        self, send: Any, recv: Any = None, *, op: ReduceOp | str = ReduceOp.SUM, tag: int = 0,
        codec: Codec | str | None = None, residual: Any = None, weight: int | None = None, scale: float | None = None,
        algorithm: Algorithm | str | None = None, op_timeout: float | None = None,
    ) -> ReduceInfo:  # fmt: skip
        """Reduce over the group. Without ``recv`` in place. The rest is as in Communicator.all_reduce."""
        info: ReduceInfo = self._start_all_reduce(
            send, recv, op=op, tag=tag, codec=native_codec(codec, None, "all_reduce"), residual=residual, weight=weight,
            scale=scale, algorithm=algorithm, op_timeout=op_timeout, awaited=True,
        ).result()  # fmt: skip
        return info

    def all_reduce_async(
        self, send: Any, recv: Any = None, *, op: ReduceOp | str = ReduceOp.SUM, tag: int = 0,
        codec: Codec | str | None = None, residual: Any = None, weight: int | None = None, scale: float | None = None,
        algorithm: Algorithm | str | None = None, op_timeout: float | None = None,
    ) -> AsyncReduceHandle:  # fmt: skip
        """Start an all-reduce; operations in flight are told apart by their tags."""
        return self._start_all_reduce(
            send, recv, op=op, tag=tag, codec=native_codec(codec, None, "all_reduce"), residual=residual, weight=weight,
            scale=scale, algorithm=algorithm, op_timeout=op_timeout,
        )  # fmt: skip

    def close(self) -> None:
        """Ends this peer's part in the group; no other peer is needed. The calls of the group must have ended. May be
        called twice."""
        if not self._closed and self.is_member and self._life == self._owner._lives:
            self._core.destroy_group(self._number)
        self._closed = True

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _group_number(self) -> int:
        if not self.is_member:
            raise invalid_usage("group", "this peer is not in the group")
        if self._closed or self._life != self._owner._lives:
            raise invalid_usage("group", "the group was closed, or made before this connection")
        return self._number
