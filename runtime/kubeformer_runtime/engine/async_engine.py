"""AsyncEngine: an EngineCore in a thread of its own, seen from an event loop.

    async with aclosing(engine.generate([request])) as deltas:      # leaving the block early aborts the request
        async for delta in deltas: ...

`batches` is the same with all that is there at once in one piece, for those who write it somewhere.

Requests and aborts go to the thread through a queue and take effect between two steps. What a step has to tell
comes back in one call to the event loop. A consumer that falls too far behind loses its requests. If a step fails,
the engine is dead: every request ends with EngineDeadError, and so does every later one.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from kubeformer_runtime.engine.core import Delta, EngineCore, Request, StepOutput, StepStats
from kubeformer_runtime.engine.sampling_params import ParameterError

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BACKLOG = 16384  # deltas that wait for one consumer


class EngineDeadError(RuntimeError):
    """The engine's thread has ended; only a new process helps."""


class BacklogError(RuntimeError):
    """A consumer fell too far behind; its requests are aborted."""


class AsyncEngine:
    """Start it inside a running event loop; `close` ends the thread."""

    def __init__(
        self, core: EngineCore, on_step: Callable[[StepStats], None] | None = None, *, max_backlog: int = MAX_BACKLOG
    ) -> None:
        """`on_step` is called in the event loop after each step."""
        self.core = core
        self._max_backlog = max_backlog
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Delta | Exception]] = {}
        self._calls: set[asyncio.Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._death: BaseException | None = None

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._death is None and self._thread.is_alive()

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._streams)

    @property
    def num_calls(self) -> int:
        """Calls (see `call`) that have not returned yet."""
        return len(self._calls)

    @property
    def request_ids(self) -> list[str]:
        """Ids of requests that are not finished."""
        return list(self._streams)

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End what is running and stop the thread."""
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[Delta]:
        """`batches`, one delta at a time."""
        async with contextlib.aclosing(self.batches(requests)) as batches:
            async for batch in batches:
                for delta in batch:
                    yield delta

    async def batches(self, requests: Sequence[Request]) -> AsyncGenerator[list[Delta]]:
        """Deltas of all choices of all requests as they come; each choice's last one has a finish reason.

        Raises:
            ParameterError: a request can never run; then none does.
            EngineDeadError: the engine broke, now or earlier.
            BacklogError: the caller did not take what came.
        """
        for request in requests:
            self.core.check(request)
        if not self.alive:
            raise EngineDeadError("the engine has stopped")
        stream: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        for request in requests:
            self._streams[request.request_id] = stream
        self._inbox.put(partial(self._add, requests))
        open_choices = sum(request.params.n for request in requests)
        try:
            while open_choices:
                items = [await stream.get()]
                while not stream.empty():
                    items.append(stream.get_nowait())
                batch = [item for item in items if not isinstance(item, Exception)]
                open_choices -= sum(delta.finish_reason is not None for delta in batch)
                if batch:
                    yield batch
                if isinstance(items[-1], Exception):  # nothing comes after it
                    raise items[-1]
        finally:
            ids = [request.request_id for request in requests]
            for request_id in ids:
                self._streams.pop(request_id, None)
            if open_choices:
                self._inbox.put(partial(self._abort, ids))

    async def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises; it runs in the engine's thread, between two steps.

        Raises:
            EngineDeadError: the engine broke before it came to that.
        """
        if not self.alive or self._loop is None:
            raise EngineDeadError("the engine has stopped")
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)

        def work() -> None:
            try:
                result = function()
            except Exception as error:  # the caller's to handle; the engine goes on
                self._call(partial(settle, future, None, error))
            else:
                self._call(partial(settle, future, result, None))

        self._inbox.put(work)
        return await future

    async def abort(self, request_ids: Sequence[str] | None = None) -> int:
        """End requests by id (None: all); their streams end with finish reason "abort". Says how many choices ended."""

        def work() -> int:
            core = self.core
            if request_ids is None:
                deltas = core.abort_all()
            else:
                deltas = [delta for request_id in request_ids for delta in core.abort(request_id)]
            self._post(StepOutput(tuple(deltas), core.stats()))
            return len(deltas)

        return await self.call(work)

    # In the engine's thread.

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self.core.add(request)
            except ParameterError as error:  # its adapter was unloaded meanwhile
                self._call(partial(self._refuse, request.request_id, error))

    def _abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.core.abort(request_id)

    def _run(self) -> None:
        try:
            while self._take_messages():
                self._post(self.core.step() if self.core.has_work else StepOutput((), self.core.stats()))
        except BaseException as error:
            logger.exception("the engine broke; the process has to be started again")
            self._death = error
        else:
            self._death = EngineDeadError("the engine was closed")
        self._call(self._deliver_end)

    def _take_messages(self) -> bool:
        """Handle what came in; with nothing to compute, wait for it. False: stop."""
        block = not self.core.has_work
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get(block=block)
                if message is None:
                    return False
                message()
                block = False
        return True

    def _post(self, output: StepOutput) -> None:
        self._call(partial(self._deliver, output))

    def _call(self, action: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(action)

    # In the event loop.

    def _refuse(self, request_id: str, error: Exception) -> None:
        if (stream := self._streams.get(request_id)) is not None:
            stream.put_nowait(error)

    def _deliver(self, output: StepOutput) -> None:
        for delta in output.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None:
                continue  # aborted meanwhile
            if stream.qsize() < self._max_backlog:
                stream.put_nowait(delta)
            else:
                self._give_up(stream)
        if self._on_step is not None:
            self._on_step(output.stats)

    def _give_up(self, stream: "asyncio.Queue[Delta | Exception]") -> None:
        """Abort a consumer's requests and forget what waits for it."""
        ids = [request_id for request_id, other in self._streams.items() if other is stream]
        for request_id in ids:
            del self._streams[request_id]
        while not stream.empty():
            stream.get_nowait()
        stream.put_nowait(BacklogError(f"more than {self._max_backlog} deltas waited"))
        self._inbox.put(partial(self._abort, ids))

    def _deliver_end(self) -> None:
        for stream in self._streams.values():
            stream.put_nowait(EngineDeadError("the engine has stopped"))
        for future in list(self._calls):
            settle(future, None, EngineDeadError("the engine has stopped"))


def settle(future: "asyncio.Future[T]", result: T | None, error: BaseException | None) -> None:
    """Give a future its end: the error where there is one, else the result. One that has ended already stays so."""
    if future.done():
        return
    if error is None:
        future.set_result(result)  # type: ignore[arg-type]
    else:
        future.set_exception(error)
