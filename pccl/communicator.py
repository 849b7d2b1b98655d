"""The communicator: a peer's handle on a run. Blocking calls wait in slices, so that Ctrl-C works at any time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pccl import _core
from pccl.config import milliseconds, parse_address, startup
from pccl.errors import PCCLError, invalid_argument
from pccl.operand import Operand, pair
from pccl.state import SharedState
from pccl.types import (
    Attribute,
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

if TYPE_CHECKING:
    import asyncio

_RECONNECT_PAUSE_S = 1.0
_OP_TIMEOUT_S = 1800.0
_RETRYABLE = frozenset({Result.RANK_CONNECTION_LOST, Result.RANK_CONNECTION_FAILED})


class ReduceOpDescriptor:
    """One operation of ``all_reduce_multiple_with_retry``."""

    __slots__ = ("descriptor", "recv", "send")

    def __init__(self, send: Any, recv: Any, descriptor: ReduceDescriptor) -> None:
        pair(send, recv, "ReduceOpDescriptor", descriptor.count, descriptor.operand_descriptor.datatype)
        self.send = send
        self.recv = recv
        self.descriptor = descriptor

    @classmethod
    def from_torch(cls, send: Any, recv: Any, descriptor: ReduceDescriptor) -> ReduceOpDescriptor:
        return cls(send, recv, descriptor)

    @classmethod
    def from_numpy(cls, send: Any, recv: Any, descriptor: ReduceDescriptor) -> ReduceOpDescriptor:
        return cls(send, recv, descriptor)


class AsyncReduceHandle:
    """An all-reduce in flight. The operation keeps its buffers alive; dropping the handle does not end it."""

    def __init__(self, request: _core.Request) -> None:
        self._request = request

    def wait(self, timeout: float | None = None) -> tuple[bool, int, ReduceInfo]:
        """(is_success, status, info), again and again. Raises InProgressError when ``timeout`` seconds passed first;
        the operation goes on."""
        if not self._request.wait(timeout):
            self._request.check()
        code = self._request.code
        return code == Result.SUCCESS, code, ReduceInfo(*self._request.reduce_info)

    def result(self, timeout: float | None = None) -> ReduceInfo:
        """Like ``wait``, but raises what the operation failed with."""
        info = self.wait(timeout)[2]
        self._request.check()
        return info

    def done(self) -> bool:
        return self._request.done()

    def cancel(self) -> None:
        """Ends the operation, here and at the other peers; returns when nobody touches the buffers any more."""
        self._request.close()

    def __await__(self) -> Generator[Any, None, ReduceInfo]:
        if not self._request.done():
            yield from self._wait_in_thread()
        self._request.check()
        return ReduceInfo(*self._request.reduce_info)

    def _wait_in_thread(self) -> Generator[Any, None, None]:
        """One thread per pending await: the loop's own executor is small and belongs to the program."""
        import asyncio

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        threading.Thread(target=self._wait_then_notify, args=(loop, ended), daemon=True).start()
        try:
            yield from ended
        except asyncio.CancelledError:
            self._request.close()
            raise

    def _wait_then_notify(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        self._request.wait()

        def notify() -> None:
            if not ended.done():
                ended.set_result(None)

        with contextlib.suppress(RuntimeError):  # the loop may have been closed meanwhile
            loop.call_soon_threadsafe(notify)


class Communicator:
    """A peer of the run that ``address`` ("host:port", "1.2.3.4:port", "[::1]:port") is the master of.

    Times are seconds. What is None comes from the environment (`pccl env`), else from the default. As a context manager
    it connects on entry and leaves the run on exit.
    """

    def __init__(
        self,
        address: str,
        peer_group: int = 0,
        p2p_connection_pool_size: int = 0,
        *,
        advertise: str | None = None,
        ifname: str | None = None,
        port_range: tuple[int, int] | None = None,
        run_key: bytes | None = None,
        dead_timeout: float | None = None,
        op_timeout: float | None = None,
        connect_timeout: float | None = None,
        congestion: str | None = None,
        observer: bool = False,
    ) -> None:
        where = "Communicator"
        master = parse_address(address, where)
        if not 0 <= peer_group < 2**32:
            raise invalid_argument(where, f"peer_group must be a number from 0 to 2**32 - 1, not {peer_group!r}")
        if not 0 <= p2p_connection_pool_size <= 1024:
            raise invalid_argument(
                where, f"p2p_connection_pool_size must be 0 to 1024, not {p2p_connection_pool_size!r}"
            )
        settings = startup()
        low, high = port_range or settings.port_range or (0, 0)
        if not 0 <= low <= high <= 65535:
            raise invalid_argument(where, f"port_range must be (first, last), not {port_range!r}")
        op_timeout_ms = milliseconds(op_timeout, "op_timeout") or settings.op_timeout_ms
        self._op_timeout_s = op_timeout_ms / 1000 if op_timeout_ms else _OP_TIMEOUT_S
        self._connected = False
        self._core = _core.Comm(
            master,
            peer_group=peer_group,
            connections=p2p_connection_pool_size or settings.connections,
            advertise=advertise if advertise is not None else settings.advertise,
            ifname=ifname if ifname is not None else settings.ifname,
            port_min=low,
            port_max=high,
            run_key=run_key if run_key is not None else settings.run_key,
            dead_timeout_ms=milliseconds(dead_timeout, "dead_timeout") or settings.dead_timeout_ms,
            op_timeout_ms=op_timeout_ms,
            connect_timeout_ms=milliseconds(connect_timeout, "connect_timeout") or settings.connect_timeout_ms,
            congestion=congestion if congestion is not None else settings.congestion,
            observer=observer,
        )

    # ---------------------------------------------------------------------------------------------------- membership --

    def connect(self, n_attempts: int = 5) -> None:
        """Join the run; returns when the existing members have accepted this peer. Pauses a second between attempts and
        raises what the last one failed with."""
        if n_attempts < 1:
            raise invalid_argument("connect", f"n_attempts must be at least 1, not {n_attempts!r}")
        for attempt in range(1, n_attempts + 1):
            try:
                self._finish(self._core.start_connect())
            except (ConnectionError, TimeoutError) as error:
                refused = isinstance(error, PCCLError) and error.result in (Result.REFUSED, Result.EVICTED)
                if attempt == n_attempts or refused:
                    raise
                time.sleep(_RECONNECT_PAUSE_S)
            else:
                self._connected = True
                return

    def update_topology(self) -> None:
        """Admit the peers that are pending. Joint call of all peers."""
        self._finish(self._core.start_update_topology())

    def are_peers_pending(self) -> bool:
        """Whether newcomers wait for admission. Joint call of all peers."""
        return self._finish(self._core.start_are_peers_pending()).pending

    def optimize_topology(self) -> None:
        """Find a better order of the peers. Joint call of all peers."""
        self._finish(self._core.start_optimize_topology())

    def get_attribute(self, attribute: Attribute) -> int:
        return self._core.get_attribute(int(attribute))

    @property
    def world_size(self) -> int:
        """Members of this peer's group."""
        return self._core.get_attribute(int(Attribute.LOCAL_WORLD_SIZE))

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of the current epoch, of all groups."""
        return tuple(
            Member(id=id_, rank=rank, peer_group=group, address=address, is_observer=observer, is_self=self_)
            for id_, rank, group, observer, self_, address in self._core.members()
        )

    @property
    def epoch(self) -> int:
        return self._core.stats()["epoch"]

    def stats(self) -> dict[str, int]:
        """Counters of this peer: operations, bytes, lost links, memory."""
        return self._core.stats()

    # ---------------------------------------------------------------------------------------------------- operations --

    def all_reduce(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: ReduceOp | str = ReduceOp.SUM,
        tag: int = 0,
        operand_descriptor: ReduceOperandDescriptor | None = None,
        quantization_options: QuantizationOptions | None = None,
        op_timeout: float | None = None,
        retry: bool = False,
    ) -> ReduceInfo:
        """Reduce over the group. Without ``recv`` in place. With ``retry``, an operation that lost a peer is done again
        with the survivors, as long as there are two and within the operation's time limit."""
        deadline = time.monotonic() + (op_timeout if op_timeout is not None else self._op_timeout_s)
        while True:
            handle = self.all_reduce_async(
                send,
                recv,
                op=op,
                tag=tag,
                operand_descriptor=operand_descriptor,
                quantization_options=quantization_options,
                op_timeout=op_timeout,
            )
            try:
                return handle.result()
            except ConnectionError as error:
                retryable = isinstance(error, PCCLError) and error.result in _RETRYABLE
                if not retry or not retryable or time.monotonic() >= deadline:
                    raise

    def all_reduce_async(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: ReduceOp | str = ReduceOp.SUM,
        tag: int = 0,
        operand_descriptor: ReduceOperandDescriptor | None = None,
        quantization_options: QuantizationOptions | None = None,
        op_timeout: float | None = None,
    ) -> AsyncReduceHandle:
        """Start an all-reduce; operations in flight are told apart by their tags."""
        datatype = operand_descriptor.datatype if operand_descriptor is not None else None
        hint = operand_descriptor.distribution_hint if operand_descriptor is not None else DistributionHint.NONE
        source, out = pair(send, recv, "all_reduce", None, datatype)
        return self._start(source, out, _reduce_op(op), tag, hint, quantization_options, op_timeout)

    def all_reduce_multiple_with_retry(
        self, descriptors: Iterable[ReduceOpDescriptor], *, max_in_flight: int = 4
    ) -> ReduceInfo:
        """Reduce many buffers, at most ``max_in_flight`` at once. Those that lose a peer are done again with the
        survivors; raises TooFewPeersError when there are none. The time limit of an operation counts from the last one
        that succeeded."""
        if max_in_flight < 1:
            raise invalid_argument(
                "all_reduce_multiple_with_retry", f"max_in_flight must be 1 or more: {max_in_flight}"
            )
        waiting = deque(descriptors)
        flying: deque[tuple[ReduceOpDescriptor, AsyncReduceHandle]] = deque()
        total = ReduceInfo(self.world_size, 0, 0)
        deadline = time.monotonic() + self._op_timeout_s
        try:
            while waiting or flying:
                while waiting and len(flying) < max_in_flight:
                    descriptor = waiting.popleft()
                    flying.append((descriptor, self._start_descriptor(descriptor)))
                descriptor, handle = flying.popleft()
                _, status, info = handle.wait()
                total.tx_bytes += info.tx_bytes
                total.rx_bytes += info.rx_bytes
                if status in _RETRYABLE and time.monotonic() < deadline:
                    waiting.appendleft(descriptor)
                    continue
                handle.result()
                deadline = time.monotonic() + self._op_timeout_s
                total.local_world_size = info.local_world_size
        finally:
            for _, handle in flying:
                handle.cancel()
        return total

    def sync_shared_state(
        self,
        shared_state: SharedState,
        strategy: SharedStateSyncStrategy = SharedStateSyncStrategy.ENFORCE_POPULAR,
    ) -> SharedStateSyncInfo:
        """Make the group's tensors equal. Joint call of the group. Sets the state's revision to the elected one."""
        tensors = [
            (
                info.name,
                info.operand.buffer,
                info.operand.count_elems,
                int(info.datatype),
                info.allow_content_inequality,
            )
            for info in shared_state
        ]
        request = self._finish(self._core.start_sync_shared_state(shared_state.revision, tensors, int(strategy)))
        tx_bytes, rx_bytes, revision = request.sync_info
        shared_state.revision = revision
        return SharedStateSyncInfo(tx_bytes, rx_bytes)

    # ----------------------------------------------------------------------------------------------------------- end --

    def abort(self) -> None:
        """Fail every call of this communicator at once and leave the run. From any thread; needs no other peer."""
        self._core.abort()

    def close(self) -> None:
        """Leave the run. Operations in flight are cancelled. May be called twice."""
        self._core.close()

    destroy = close

    def __enter__(self) -> Communicator:
        if not self._connected:
            self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------- internals --

    @staticmethod
    def _finish(request: _core.Request) -> _core.Request:
        request.wait()
        request.check()
        return request

    def _start(
        self,
        source: Operand,
        out: Operand,
        op: ReduceOp,
        tag: int,
        hint: DistributionHint,
        quantization: QuantizationOptions | None,
        op_timeout: float | None,
    ) -> AsyncReduceHandle:
        if not 0 <= tag < 2**64:
            raise invalid_argument("all_reduce", f"tag must be a number from 0 to 2**64 - 1, not {tag!r}")
        datatype = source.datatype
        request = self._core.start_all_reduce(
            source.buffer,
            out.buffer,
            source.count_elems,
            int(datatype),
            int(op),
            tag,
            int(hint),
            int(datatype if quantization is None else quantization.quantized_datatype),
            int(QuantizationAlgorithm.NONE if quantization is None else quantization.algorithm),
            milliseconds(op_timeout, "op_timeout"),
        )
        return AsyncReduceHandle(request)

    def _start_descriptor(self, item: ReduceOpDescriptor) -> AsyncReduceHandle:
        descriptor = item.descriptor
        operand = descriptor.operand_descriptor
        source, out = pair(item.send, item.recv, "all_reduce_multiple_with_retry", descriptor.count, operand.datatype)
        return self._start(
            source,
            out,
            _reduce_op(descriptor.op),
            descriptor.tag,
            operand.distribution_hint,
            descriptor.quantization_options,
            None,
        )


def _reduce_op(op: ReduceOp | str) -> ReduceOp:
    if isinstance(op, str):
        found = ReduceOp.__members__.get(op.upper())
        if found is None:
            names = ", ".join(name.lower() for name in ReduceOp.__members__)
            raise invalid_argument("all_reduce", f"unknown operation {op!r}", hint=f"one of {names}")
        return found
    return ReduceOp(op)
