"""A master within this process."""

from __future__ import annotations

from types import TracebackType

from pccl._master import Master
from pccl.arguments import milliseconds, patience
from pccl.config import parse_address


class MasterNode:
    """The master of a run: decides who is a member; never on the path of the data. Listens as soon as it is created.

    Garbage collection waits until the master has ended, so that a script which only starts one stays alive; Ctrl-C ends
    it. As a context manager it runs on entry, and ends on exit.
    """

    def __init__(
        self,
        listen_address: str = "0.0.0.0:48148",
        *,
        run_key: bytes | None = None,
        dead_timeout: float | None = None,
        join_timeout: float | None = None,
    ) -> None:
        self._core = Master(
            parse_address(listen_address, "MasterNode"),
            run_key=run_key,
            dead_timeout_ms=milliseconds(dead_timeout, "dead_timeout", "MasterNode"),
            join_timeout_ms=milliseconds(join_timeout, "join_timeout", "MasterNode"),
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._core.port

    def run(self) -> None:
        """Start; returns at once."""
        self._core.run()

    def interrupt(self) -> None:
        """Ask it to end; returns at once."""
        self._core.interrupt()

    def wait(self, timeout: float | None = None) -> bool:
        """True when it has ended, False when ``timeout`` seconds passed first."""
        return self._core.wait(patience(timeout, "wait"))

    def close(self) -> None:
        """End it and free everything. May be called twice."""
        self._core.close()

    def __enter__(self) -> MasterNode:
        self.run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.outlive()
