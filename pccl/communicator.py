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
from pccl.arguments import choice, flag, instance, milliseconds, number, optional_text, refusal, sequence
from pccl.codec import Codec, native_codec
from pccl.collectives import Collectives
from pccl.config import parse_address
from pccl.errors import PCCLError, invalid_argument, invalid_usage
from pccl.group import Group
from pccl.handle import AsyncReduceHandle
from pccl.operand import pair
from pccl.state import SharedState
from pccl.types import (
    Algorithm,
    Attribute,
    Collective,
    DataType,
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
        count, datatype = _described(descriptor, "ReduceOpDescriptor")
        pair(send, recv, "ReduceOpDescriptor", count, datatype)
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
        low, high = _ports_of(port_range, where)
        self._lives = 0
        self._core = Comm(
            master,
            peer_group=number(peer_group, "peer_group", where, 2**32 - 1),
            connections=number(p2p_connection_pool_size, "p2p_connection_pool_size", where, 1024),
            advertise=optional_text(advertise, "advertise", where),
            ifname=optional_text(ifname, "ifname", where),
            port_min=low,
            port_max=high,
            run_key=run_key,
            dead_timeout_ms=milliseconds(dead_timeout, "dead_timeout", where),
            op_timeout_ms=milliseconds(op_timeout, "op_timeout", where),
            connect_timeout_ms=milliseconds(connect_timeout, "connect_timeout", where),
            congestion=optional_text(congestion, "congestion", where),
            observer=flag(observer, "observer", where),
        )
        self._op_timeout_s = self._core.op_timeout_ms / 1000

    # ---------------------------------------------------------------------------------------------------- membership --

    def connect(self, n_attempts: int = 5) -> None:
        """Join the run; returns when the existing members have accepted this peer. An attempt fails at once where no
        master listens, and after ``connect_timeout`` where nobody answers; a second passes before the next. Raises what
        the last one failed with."""
        n_attempts = number(n_attempts, "n_attempts", "connect", 2**63 - 1, first=1)
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
        wanted = sequence(ranks, "ranks", "new_group", "a list of ranks")
        listed = [number(rank, "each of ranks", "new_group", 2**32 - 1) for rank in wanted]
        own_group = self._own_group()
        if not own_group:
            self._core.check_in_run()
        ids = {rank: id_ for id_, rank, _, _, _, _ in own_group}
        unknown = [rank for rank in listed if rank not in ids]
        if unknown:
            raise invalid_argument("new_group", f"there is no rank {unknown[0]} in a group of {len(ids)}")
        members = tuple(ids[rank] for rank in listed)
        request = self._finish(self._core.start_create_group(array("Q", members)))
        return Group(self, request.group, members, next((id_ for id_, *_, is_self, _ in own_group if is_self), 0))

    def get_attribute(self, attribute: Attribute) -> int:
        return self._core.get_attribute(int(choice(attribute, Attribute, "attribute", "get_attribute")))

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
        retry = flag(retry, "retry", "all_reduce")
        if retry:
            self._check_no_step("all_reduce")
        limit_ms = milliseconds(op_timeout, "op_timeout", "all_reduce")
        datatype = _datatype_of(operand_descriptor, "all_reduce")
        deadline = time.monotonic() + (limit_ms / 1000 if limit_ms else self._op_timeout_s)
        limit = op_timeout
        while True:
            handle = self._start_all_reduce(
                send, recv, op=op, tag=tag, codec=native_codec(codec, quantization_options, "all_reduce"),
                residual=residual, weight=weight, scale=scale, algorithm=algorithm, op_timeout=limit,
                datatype=datatype, awaited=True,
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
            datatype=_datatype_of(operand_descriptor, "all_reduce"),
        )  # fmt: skip

    def all_reduce_multiple_with_retry(
        self, descriptors: Iterable[ReduceOpDescriptor], *, max_in_flight: int = 4
    ) -> ReduceInfo:
        """Reduce many buffers, at most ``max_in_flight`` at once, and never more than 1024. Those that lose a peer are
        done again with the survivors; raises TooFewPeersError when there are none. The time limit of an operation
        counts from the last one that succeeded."""
        where = "all_reduce_multiple_with_retry"
        max_in_flight = min(number(max_in_flight, "max_in_flight", where, 2**63 - 1, first=1), _WINDOW_MAX)
        self._check_no_step(where)
        waiting = deque(sequence(descriptors, "descriptors", where, "a list of ReduceOpDescriptor"))
        places: dict[int, int] = {}
        for place, item in enumerate(waiting):
            descriptor = instance(item, ReduceOpDescriptor, "each of descriptors", where).descriptor
            tag = number(descriptor.tag, "descriptor.tag", where, 2**64 - 1)
            if places.setdefault(tag, place) != place:
                raise invalid_argument(where, f"descriptors {places[tag]} and {place} have the same tag")
        flying: deque[tuple[ReduceOpDescriptor, AsyncReduceHandle]] = deque()
        total = ReduceInfo(self.world_size, 0, 0)
        deadline = time.monotonic() + self._op_timeout_s
        try:
            while waiting or flying:
                while waiting and len(flying) < max_in_flight:
                    item = waiting.popleft()
                    left = max(0.001, deadline - time.monotonic())
                    flying.append((item, self._start_descriptor(item, left)))
                item, handle = flying.popleft()
                _, status, info = handle.wait()
                total.tx_bytes += info.tx_bytes
                total.rx_bytes += info.rx_bytes
                if status in _RETRYABLE and time.monotonic() < deadline:
                    waiting.appendleft(item)
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
        """Make the group's tensors equal. Joint call of the group. Sets the state's revision to the elected one.

        Each synchronisation expects the revision after that of the last one, as in PCCL 1.0. Done again without
        ``push_revision`` it lifts the revision by one all the same, also where nothing differs and nothing moves: take
        the revision from the state after it, and count steps elsewhere. A peer with a higher one is kicked.
        """
        instance(shared_state, SharedState, "shared_state", "sync_shared_state")
        chosen = choice(strategy, SharedStateSyncStrategy, "strategy", "sync_shared_state")
        tensors = [
            (info.name, info.operand.buffer, info.numel, int(info.datatype), info.allow_content_inequality)
            for info in shared_state
        ]
        request = self._finish(self._core.start_sync_shared_state(shared_state.revision, tensors, int(chosen)))
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
        where, descriptor = "all_reduce_multiple_with_retry", item.descriptor
        count, datatype = _described(descriptor, where)
        source, out = pair(item.send, item.recv, where, count, datatype)
        op = choice(descriptor.op, ReduceOp, "descriptor.op", where)
        codec = native_codec(None, descriptor.quantization_options, where)
        request = self._request(
            Collective.ALL_REDUCE, source, out, source.count_elems, op=op, tag=descriptor.tag, codec=codec,
            op_timeout=op_timeout,
        )  # fmt: skip
        return AsyncReduceHandle(request, Collective.ALL_REDUCE, None)


def _ports_of(port_range: Any, func_name: str) -> tuple[int, int]:
    """(0, 0): not said."""
    if port_range is None:
        return 0, 0
    wanted = "(first, last), numbers from 0 to 65535"
    listed = sequence(port_range, "port_range", func_name, wanted)
    ports = [number(port, "each of port_range", func_name, 65535) for port in listed]
    if len(ports) != 2 or ports[0] > ports[1]:
        raise refusal(func_name, "port_range", wanted, port_range)
    return ports[0], ports[1]


def _datatype_of(described: ReduceOperandDescriptor | None, func_name: str) -> DataType | None:
    if described is None:
        return None
    instance(described, ReduceOperandDescriptor, "operand_descriptor", func_name)
    return choice(described.datatype, DataType, "operand_descriptor.datatype", func_name)


def _described(descriptor: ReduceDescriptor, func_name: str) -> tuple[int, DataType | None]:
    """Elements and data type."""
    instance(descriptor, ReduceDescriptor, "descriptor", func_name)
    count = number(descriptor.count, "descriptor.count", func_name, 2**63 - 1)
    return count, _datatype_of(descriptor.operand_descriptor, func_name)


def _gave_up(error: PCCLError, attempts: int, seconds: float) -> PCCLError:
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    record = replace(error.record, message=f"{error.record.message} ({tries} in {seconds:.1f} s)")
    return type(error)(error.result, error.func_name, record)
