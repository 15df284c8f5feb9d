"""The attester for asyncio.

A backend that waits for a device works in a thread of its own, one call at a time; one that does
not, such as the simulator, is called where the caller stands, because a thread would cost more than
the call.
"""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, NoReturn, TypeVar, final

from attestkit.attestation import AppInfo, Attestation
from attestkit.attester import Attester, B_co
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.keys import KeyDeriver
from attestkit.quote import Quote

__all__ = ["AsyncAttester"]

T = TypeVar("T")


@final
class AsyncAttester(Generic[B_co]):
    """An `Attester` whose methods are awaited; see there for what they do and raise.

    A cancelled call ends for its caller at once; what the device was already doing is finished, so
    an event is emitted wholly or, if its turn had not come, not at all.
    """

    def __init__(self, blocks: Callable[[], bool], make: Callable[[], Attester[B_co]]) -> None:
        """Open nothing yet.

        Args:
            blocks: Tells whether to call in a thread, before there is anything to call.
            make: Opens the attester, in that thread where it blocks.
        """
        self._blocks = blocks
        self._make = make
        self._attester: Attester[B_co] | None = None
        self._opening: Future[Attester[B_co]] | None = None  # in the device's thread
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    # -- opening and closing -------------------------------------------------------------------

    def __await__(self) -> "Generator[object, None, AsyncAttester[B_co]]":
        """Open it, and return it."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> "AsyncAttester[B_co]":
        try:
            await self._open()
        except asyncio.CancelledError:
            self._abandon()  # the caller will never hold what is being opened
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _open(self) -> "Attester[B_co]":
        """Return the open attester; whoever comes first opens it, for all."""
        if self._attester is not None:
            return self._attester
        if self._closed:
            raise UsageError("this AsyncAttester is closed")
        if self._opening is None and not self._blocks():
            self._attester = self._make()
            return self._attester
        if self._thread is None:
            self._thread = _device_thread()
        if self._opening is None:
            self._opening = self._thread.submit(self._make)
        try:
            # Shielded: one caller may be cancelled, the device is opened for the others.
            attester = await asyncio.shield(asyncio.wrap_future(self._opening))
        except AttestKitError:
            self._opening = None  # the next caller tries again
            raise
        if self._closed:  # meanwhile; what was being opened is closed behind us
            raise UsageError("this AsyncAttester is closed")
        self._attester = attester
        return attester

    def _abandon(self) -> Future[None] | None:
        """Close behind everything that is on its way to the device."""
        self._closed = True
        attester, self._attester = self._attester, None
        opening, thread = self._opening, self._thread
        if thread is None:
            if attester is not None:
                attester.close()
            return None

        def close() -> None:
            if attester is not None:
                attester.close()
            elif opening is not None and opening.exception() is None:
                opening.result().close()

        closing = thread.submit(close)
        thread.shutdown(wait=False)
        return closing

    async def close(self) -> None:
        """Let go of the backend once the calls on their way are done. A second call does nothing.

        Cancelling does not keep it from closing.
        """
        if self._closed:
            return
        closing = self._abandon()
        if closing is not None:
            await asyncio.shield(asyncio.wrap_future(closing))

    async def _call(self, method: Callable[[Attester], T]) -> T:
        """Call where the caller stands, or in the device's thread."""
        attester = await self._open()
        if self._thread is None:
            if not attester.blocking:
                return method(attester)
            self._thread = _device_thread()  # it has begun to: a fault was armed
        return await asyncio.wrap_future(self._thread.submit(method, attester))

    # -- what an Attester does -----------------------------------------------------------------

    async def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over `report_data`, 0 to 64 bytes, filled up with zeros."""
        return await self._call(lambda attester: attester.get_quote(report_data))

    async def attest(self, report_data: bytes) -> Attestation:
        """Return evidence over `report_data`, 0 to 64 bytes, filled up with zeros."""
        return await self._call(lambda attester: attester.attest(report_data))

    async def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over `report_data`, exactly 64 bytes, and the log that replays to it."""
        return await self._call(lambda attester: attester.quote_and_log(report_data))

    async def event_log(self) -> EventLog:
        """Return the firmware's log with the runtime events behind it."""
        return await self._call(lambda attester: attester.event_log())

    async def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event and log it, or neither."""
        return await self._call(lambda attester: attester.emit_event(name, payload))

    async def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, 48 bytes each."""
        return await self._call(lambda attester: attester.registers())

    async def info(self) -> AppInfo:
        """Return who the app is."""
        return await self._call(lambda attester: attester.info())

    # -- what it is: no device is asked, but an agent is, once, for what describes the app --------

    @property
    def _opened(self) -> "Attester[B_co]":
        if self._attester is None:
            raise UsageError("this AsyncAttester is not open: await it first")
        return self._attester

    @property
    def backend(self) -> B_co:
        """The backend; take care not to disturb this object's turn."""
        return self._opened.backend

    @property
    def simulated(self) -> bool:
        """True if nothing that this TEE says is backed by hardware."""
        return self._opened.simulated

    @property
    def blocking(self) -> bool:
        """True if calls are made in a thread."""
        return self._opened.blocking

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from; UnsupportedError if nobody knows, see `Attester`."""
        return self._opened.app_compose

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text; empty if nobody knows it."""
        return self._opened.vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys; UnsupportedError if there are none."""
        return self._opened.keys

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: the other process would have to open the device itself."""
        raise UsageError("an AsyncAttester does not pickle: open another where it is needed")

    def __repr__(self) -> str:
        return f"<AsyncAttester: {self._attester or 'not open'}>"


def _device_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="attestkit-device")
