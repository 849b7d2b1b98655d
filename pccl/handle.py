"""Operations in flight."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from pccl.arguments import patience
from pccl.types import Collective, ReduceInfo, Result

if TYPE_CHECKING:
    import asyncio

    from pccl._request import Request


class CollectiveHandle:
    """A collective in flight; also an awaitable. The operation keeps its buffers alive; dropping the handle does not
    end it."""

    def __init__(self, request: Request, collective: Collective, result: Any) -> None:
        self._request = request
        self._collective = collective
        self._result = result

    @property
    def info(self) -> ReduceInfo:
        """How many took part, and bytes of payload sent and received; of an operation that has ended."""
        return ReduceInfo(*self._request.reduce_info)

    def result(self, timeout: float | None = None) -> Any:
        """What the blocking call returns, or raises. Raises InProgressError when ``timeout`` seconds passed first; the
        operation goes on."""
        self._request.wait(patience(timeout, "result"))
        self._request.check()
        return self._value()

    def done(self) -> bool:
        return self._request.done()

    def cancel(self) -> None:
        """Ends the operation, here and at the other peers; returns when nobody touches the buffers any more."""
        self._request.close()

    def _value(self) -> Any:
        return self._request.source if self._collective == Collective.RECV else self._result

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._request.done():
            yield from self._wait_in_thread()
        self._request.check()
        return self._value()

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


class AsyncReduceHandle(CollectiveHandle):
    """An all-reduce in flight, as PCCL has it: ``wait`` returns a tuple. ``result`` and awaiting give a ReduceInfo."""

    def wait(self, timeout: float | None = None) -> tuple[bool, int, ReduceInfo]:
        """(is_success, status, info), again and again. Raises InProgressError when ``timeout`` seconds passed first;
        the operation goes on."""
        if not self._request.wait(patience(timeout, "wait")):
            self._request.check()
        code = self._request.code
        return code == Result.SUCCESS, code, self.info

    def _value(self) -> ReduceInfo:
        return self.info
