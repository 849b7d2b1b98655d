from array import array

from pccl._buffer import Buffer
from pccl._request import Request

class Comm:
    def __init__(
        self,
        master: str,
        *,
        peer_group: int = 0,
        connections: int = 0,
        advertise: str | None = None,
        ifname: str | None = None,
        port_min: int = 0,
        port_max: int = 0,
        run_key: bytes | None = None,
        dead_timeout_ms: int = 0,
        op_timeout_ms: int = 0,
        connect_timeout_ms: int = 0,
        congestion: str | None = None,
        observer: bool = False,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def op_timeout_ms(self) -> int: ...
    def start_connect(self) -> Request: ...
    def start_update_topology(self) -> Request: ...
    def start_are_peers_pending(self) -> Request: ...
    def start_optimize_topology(self) -> Request: ...
    def start_collective(
        self,
        collective: int,
        send: Buffer | None,
        recv: Buffer | None,
        count: int,
        datatype: int,
        op: int,
        root: int,
        tag: int,
        counts: array[int] | None,
        recv_counts: array[int] | None,
        weight: int | None,
        scale: float | None,
        algorithm: int,
        codec: tuple[int, int, int, int, bool, bool, float] | None,
        residual: Buffer | None,
        timeout_ms: int,
        group: int,
        size: int,
        rank: int,
        awaited: bool,
    ) -> Request: ...
    def start_create_group(self, ids: array[int]) -> Request: ...
    def destroy_group(self, group: int) -> None: ...
    def begin_step(self, group: int) -> None: ...
    def start_end_step(self, group: int, commit: bool) -> Request: ...
    def start_sync_shared_state(
        self, revision: int, tensors: list[tuple[str, Buffer, int, int, bool]], strategy: int
    ) -> Request: ...
    def get_attribute(self, attribute: int) -> int: ...
    def check_in_run(self) -> None: ...
    def members(self) -> list[tuple[int, int | None, int, bool, bool, str]]: ...
    def stats(self) -> dict[str, int]: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
