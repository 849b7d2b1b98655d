"""The communicator: a peer's handle on a run. Blocking calls wait in slices, so that Ctrl-C works at any time."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from pccl._comm import Comm
from pccl.codec import Codec, native_codec
from pccl.collectives import Collectives, reduce_op
from pccl.config import milliseconds, parse_address
from pccl.errors import PCCLError, invalid_argument, invalid_usage
from pccl.group import Group
from pccl.handle import AsyncReduceHandle
from pccl.operand import pair
from pccl.state import SharedState
from pccl.types import (
    Algorithm,
    Attribute,
    Collective,
    Member,
    QuantizationOptions,
    ReduceDescriptor,
    ReduceInfo,
    ReduceOp,
    ReduceOperandDescriptor,
    Result,
    SharedStateSyncInfo,
    SharedStateSyncStrategy,
)

_RECONNECT_PAUSE_S = 1.0
_WINDOW_MAX = 1024  # beyond, more in flight bring nothing, and all of a communicator's are limited
_RETRYABLE = frozenset({Result.RANK_CONNECTION_LOST, Result.RANK_CONNECTION_FAILED})
_FINAL = frozenset({Result.REFUSED, Result.EVICTED})


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


class Communicator(Collectives):
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
        low, high = port_range or (0, 0)
        if not 0 <= low <= high <= 65535:
            raise invalid_argument(where, f"port_range must be (first, last), not {port_range!r}")
        self._lives = 0
        self._core = Comm(
            master,
            peer_group=peer_group,
            connections=p2p_connection_pool_size,
            advertise=advertise,
            ifname=ifname,
            port_min=low,
            port_max=high,
            run_key=run_key,
            dead_timeout_ms=milliseconds(dead_timeout, "dead_timeout"),
            op_timeout_ms=milliseconds(op_timeout, "op_timeout"),
            connect_timeout_ms=milliseconds(connect_timeout, "connect_timeout"),
            congestion=congestion,
            observer=observer,
        )
        self._op_timeout_s = self._core.op_timeout_ms / 1000

    # ---------------------------------------------------------------------------------------------------- membership --

    def connect(self, n_attempts: int = 5) -> None:
        """Join the run; returns when the existing members have accepted this peer. An attempt fails at once where no
        master listens, and after ``connect_timeout`` where nobody answers; a second passes before the next. Raises what
        the last one failed with."""
        if n_attempts < 1:
            raise invalid_argument("connect", f"n_attempts must be at least 1, not {n_attempts!r}")
        start = time.monotonic()
        for attempt in range(1, n_attempts + 1):
            try:
                self._finish(self._core.start_connect())
            except PCCLError as error:
                if not isinstance(error, ConnectionError | TimeoutError) or error.result in _FINAL:
                    raise
                if attempt == n_attempts:
                    raise _gave_up(error, attempt, time.monotonic() - start) from None
                time.sleep(_RECONNECT_PAUSE_S)
            else:
                self._lives += 1
                return

    def update_topology(self) -> None:
        """Admit the peers that are pending. Joint call of all peers."""
        self._finish(self._core.start_update_topology())

    def are_peers_pending(self) -> bool:
        """Whether newcomers wait for admission. Joint call of all peers."""
        return self._finish(self._core.start_are_peers_pending()).pending

    def optimize_topology(self) -> None:
        """Plan anew from the round trips that the links show now: the order of the ring where links are long, and what
        ``algorithm="auto"`` chooses. Joint call of all peers."""
        self._finish(self._core.start_optimize_topology())

    def new_group(self, ranks: Sequence[int]) -> Group:
        """A group of the members that have these ranks here, ranked in the order of the list. Joint call of the peer
        group with the same list at all; those that are not in it take part in the call alone. Raises MismatchError at
        all when lists differ; RankConnectionLostError when one of the list is lost meanwhile."""
        own_group = self._own_group()
        if not own_group:
            self._core.check_in_run()
        ids = {rank: id_ for id_, rank, _, _, _, _ in own_group}
        unknown = [rank for rank in ranks if rank not in ids]
        if unknown:
            raise invalid_argument("new_group", f"there is no rank {unknown[0]} in a group of {len(ids)}")
        members = tuple(ids[rank] for rank in ranks)
        request = self._finish(self._core.start_create_group(array("Q", members)))
        return Group(self, request.group, members, next((id_ for id_, *_, is_self, _ in own_group if is_self), 0))

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

    def stats(self) -> dict[str, Any]:
        """Counters of this peer: operations, bytes, lost links, memory. ``algorithm`` says how the last collective was
        carried out, ``reason`` what decided that."""
        stats: dict[str, Any] = self._core.stats()
        algorithm, chosen = Algorithm(stats.pop("last_algorithm")).name.lower(), stats.pop("last_chosen")
        size, peers = stats.pop("last_bytes"), stats.pop("last_peers")
        if peers == 0:
            return {**stats, "algorithm": None, "reason": "no collective was started"}
        asked = "chosen" if chosen else "asked for"
        reason = f"{asked}: {size} bytes among {peers} peers, longest round trip {stats['rtt_us'] / 1000:.3g} ms"
        return {**stats, "algorithm": algorithm, "reason": reason}

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
        codec: Codec | str | None = None,
        residual: Any = None,
        weight: int | None = None,
        scale: float | None = None,
        algorithm: Algorithm | str | None = None,
        op_timeout: float | None = None,
        retry: bool = False,
    ) -> ReduceInfo:
        """Reduce over the group. Without ``recv`` in place. With ``retry``, an operation that lost a peer is done again
        with the survivors, as long as there are two and within the operation's time limit.

        ``weight``: AVG gives sum(weight * x) / sum(weight); 0 leaves this peer's contribution out, for every ``op``,
        and its content is never read. ``scale``: SUM adds scale * x. Both are for floating-point types, except for the
        weights 0 and 1.

        ``codec``: how the payload travels, for floating-point types ("int8", ``Codec(...)``). ``residual``, for error
        feedback: an array of as many elements, float64 for float64 and else float32, zeros at first, that keeps what
        coding left out of this peer's contributions, to be added to the next one. It changes only when the operation
        succeeds; of a step, when the operation is complete here.

        Raises, beside what every collective does: NotEncodableError (``Codec.nonfinite``).
        """
        if retry:
            self._check_no_step("all_reduce")
        limit_ms = milliseconds(op_timeout, "op_timeout")
        deadline = time.monotonic() + (limit_ms / 1000 if limit_ms else self._op_timeout_s)
        limit = op_timeout
        while True:
            handle = self._start_all_reduce(
                send, recv, op=op, tag=tag, codec=native_codec(codec, quantization_options, "all_reduce"),
                residual=residual, weight=weight, scale=scale, algorithm=algorithm, op_timeout=limit,
                datatype=operand_descriptor.datatype if operand_descriptor is not None else None, awaited=True,
            )  # fmt: skip
            try:
                info: ReduceInfo = handle.result()
                return info
            except ConnectionError as error:
                retryable = isinstance(error, PCCLError) and error.result in _RETRYABLE
                limit = deadline - time.monotonic()
                if not retry or not retryable or limit <= 0:
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
        codec: Codec | str | None = None,
        residual: Any = None,
        weight: int | None = None,
        scale: float | None = None,
        algorithm: Algorithm | str | None = None,
        op_timeout: float | None = None,
    ) -> AsyncReduceHandle:
        """Start an all-reduce; operations in flight are told apart by their tags."""
        return self._start_all_reduce(
            send, recv, op=op, tag=tag, codec=native_codec(codec, quantization_options, "all_reduce"),
            residual=residual, weight=weight, scale=scale, algorithm=algorithm, op_timeout=op_timeout,
            datatype=operand_descriptor.datatype if operand_descriptor is not None else None,
        )  # fmt: skip

    def all_reduce_multiple_with_retry(
        self, descriptors: Iterable[ReduceOpDescriptor], *, max_in_flight: int = 4
    ) -> ReduceInfo:
        """Reduce many buffers, at most ``max_in_flight`` at once, and never more than 1024. Those that lose a peer are
        done again with the survivors; raises TooFewPeersError when there are none. The time limit of an operation
        counts from the last one that succeeded."""
        if max_in_flight < 1:
            raise invalid_argument(
                "all_reduce_multiple_with_retry", f"max_in_flight must be 1 or more: {max_in_flight}"
            )
        max_in_flight = min(max_in_flight, _WINDOW_MAX)
        self._check_no_step("all_reduce_multiple_with_retry")
        waiting = deque(descriptors)
        places: dict[int, int] = {}
        for place, item in enumerate(waiting):
            if places.setdefault(item.descriptor.tag, place) != place:
                raise invalid_argument(
                    "all_reduce_multiple_with_retry",
                    f"descriptors {places[item.descriptor.tag]} and {place} have the same tag",
                )
        flying: deque[tuple[ReduceOpDescriptor, AsyncReduceHandle]] = deque()
        total = ReduceInfo(self.world_size, 0, 0)
        deadline = time.monotonic() + self._op_timeout_s
        try:
            while waiting or flying:
                while waiting and len(flying) < max_in_flight:
                    descriptor = waiting.popleft()
                    left = max(0.001, deadline - time.monotonic())
                    flying.append((descriptor, self._start_descriptor(descriptor, left)))
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

    def _check_no_step(self, func_name: str) -> None:
        if self._step is not None:
            raise invalid_usage(
                func_name,
                "a step is open: nothing of it can be done again but all of it",
                hint="do the step again when it raises StepAbortedError, and leave out retry",
            )

    def sync_shared_state(
        self,
        shared_state: SharedState,
        strategy: SharedStateSyncStrategy = SharedStateSyncStrategy.ENFORCE_POPULAR,
    ) -> SharedStateSyncInfo:
        """Make the group's tensors equal. Joint call of the group. Sets the state's revision to the elected one."""
        tensors = [
            (info.name, info.operand.buffer, info.numel, int(info.datatype), info.allow_content_inequality)
            for info in shared_state
        ]
        if strategy not in list(SharedStateSyncStrategy):
            raise invalid_argument("sync_shared_state", f"unknown strategy {strategy!r}")
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
        try:
            self._core.check_in_run()
        except PCCLError:
            self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------- internals --

    def _own_group(self) -> list[tuple[int, int | None, int, bool, bool, str]]:
        members = self._core.members()
        own = next((group for _, _, group, _, is_self, _ in members if is_self), None)
        return [member for member in members if member[2] == own and member[1] is not None]

    def _start_descriptor(self, item: ReduceOpDescriptor, op_timeout: float) -> AsyncReduceHandle:
        descriptor = item.descriptor
        operand = descriptor.operand_descriptor
        source, out = pair(item.send, item.recv, "all_reduce_multiple_with_retry", descriptor.count, operand.datatype)
        op = reduce_op(descriptor.op)
        codec = native_codec(None, descriptor.quantization_options, "all_reduce_multiple_with_retry")
        request = self._request(
            Collective.ALL_REDUCE, source, out, source.count_elems, op=op, tag=descriptor.tag, codec=codec,
            op_timeout=op_timeout,
        )  # fmt: skip
        return AsyncReduceHandle(request, Collective.ALL_REDUCE, None)


def _gave_up(error: PCCLError, attempts: int, seconds: float) -> PCCLError:
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    record = replace(error.record, message=f"{error.record.message} ({tries} in {seconds:.1f} s)")
    return type(error)(error.result, error.func_name, record)
