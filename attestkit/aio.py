"""Attester for asyncio.

A backend that waits for a device runs in one worker thread. A non-blocking backend, such as the
simulator, is called directly, because a switch of threads would take longer than the call.
"""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar, final

from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit.attestation import AppInfo, Attestation
from attestkit.attester import Attester, B_co
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.keys import KeyDeriver
from attestkit.quote import Quote

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from attestkit.verifier import Verifier
    from attestkit.verifier.verifier_options import VerifierOptions

__all__ = ["AsyncAttester"]

T = TypeVar("T")


@final
class AsyncAttester(Generic[B_co]):
    """An asynchronous `Attester`; its methods have the results and errors of `Attester`.

    A cancelled call returns at once, while the device finishes an operation in progress: an event
    is emitted completely or, if its operation had not started, not at all.

    Await the object before you use its properties or `verifier`: before that, and after `close`,
    these raise UsageError. Calls of coroutines open the TEE if needed.
    """

    def __init__(self, blocks: Callable[[], bool], make: Callable[[], Attester[B_co]]) -> None:
        """Create the asynchronous attester; the TEE is opened when awaited or first used.

        Args:
            blocks: Function that returns whether opening may block.
            make: Function that opens the attester. If opening may block, it is called in the
                device's worker thread.
        """
        self._blocks = blocks
        self._make = make
        self._attester: Attester[B_co] | None = None
        self._closed = False
        call_now_and_after_fork(self._forget_parent)

    def _forget_parent(self) -> None:
        """Drop the thread of a parent process; an attester that it opened refuses all calls."""
        self._opening: Future[Attester[B_co]] | None = None  # in the device's thread
        self._thread: ThreadPoolExecutor | None = None

    # -- opening and closing -------------------------------------------------------------------

    def __await__(self) -> "Generator[object, None, AsyncAttester[B_co]]":
        """Open the TEE if it is not open yet, and return this object.

        Raises:
            AttestKitError: As for `attestkit.open`; UsageError also after `close`.
        """
        return self.__aenter__().__await__()

    async def __aenter__(self) -> "AsyncAttester[B_co]":
        try:
            await self._open()
        except asyncio.CancelledError:
            self._abandon()  # the caller does not get the object and cannot close it
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> "Attester[B_co]":
        """Return the open attester; the first of concurrent callers opens it."""
        if self._attester is not None:
            return self._attester
        if self._closed:
            raise UsageError("AsyncAttester: closed; open another one with aopen", reason="closed")
        if self._opening is None and not self._blocks():
            self._attester = self._make()
            return self._attester
        if self._thread is None:
            self._thread = _device_thread()
        if self._opening is None:
            self._opening = self._thread.submit(self._make)
        try:
            # Shielded: other callers may wait for the same device.
            attester = await asyncio.shield(asyncio.wrap_future(self._opening))
        except AttestKitError:
            self._opening = None  # so that the next caller retries
            raise
        if self._closed:  # meanwhile; `_abandon` closes the new attester
            raise UsageError("AsyncAttester: closed; open another one with aopen", reason="closed")
        self._attester = attester
        return attester

    def _abandon(self) -> Future[None] | None:
        """Close the backend, behind the operations that the worker thread has queued.

        Return the future of the closing; None if there is no worker thread.
        """
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
        """Close the backend after calls in progress have finished. Idempotent.

        Cancellation does not prevent the backend from being closed.
        """
        if self._closed:
            return
        closing = self._abandon()
        if closing is not None:
            await asyncio.shield(asyncio.wrap_future(closing))

    async def _call(self, method: Callable[[Attester], T]) -> T:
        """Return `method(attester)`, called in the worker thread if the backend blocks."""
        attester = await self._open()
        if self._thread is None:
            if not attester.blocking:
                return method(attester)
            self._thread = _device_thread()  # `blocking` may change: a fault was armed
        return await asyncio.wrap_future(self._thread.submit(method, attester))

    # -- methods of Attester -------------------------------------------------------------------

    async def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over `report_data`, 0 to 64 bytes, zero-padded to 64."""
        return await self._call(lambda attester: attester.get_quote(report_data))

    async def attest(
        self,
        *,
        nonce: bytes | None = None,
        report_data: bytes | None = None,
        pad: bool = False,
        gpu: bool = False,
    ) -> Attestation:
        """Return evidence bound to a nonce of 8 to 64 bytes, or with report data of 64 bytes.

        Exactly one of `nonce` and `report_data` is required. `pad` zero-pads shorter report data,
        and `gpu` adds evidence of the machine's GPUs; see `Attester.attest`.
        """
        return await self._call(
            lambda attester: attester.attest(nonce=nonce, report_data=report_data, pad=pad, gpu=gpu)
        )

    async def event_log(self) -> EventLog:
        """Return the firmware event log followed by the runtime events; empty if there is none."""
        return await self._call(lambda attester: attester.event_log())

    async def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3, or PCR 14 of a NitroTPM, by an event, and log and return it, atomically.

        `name` is non-empty text other than the names of boot events, and `payload` any bytes; see
        `Attester.emit_event`.
        """
        return await self._call(lambda attester: attester.emit_event(name, payload))

    async def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, 48 bytes each; UnsupportedError if the platform has none."""
        return await self._call(lambda attester: attester.registers())

    async def app_info(self) -> AppInfo:
        """Return the identity of the app from fresh evidence."""
        return await self._call(lambda attester: attester.app_info)

    # -- properties of Attester; an agent is queried once for the app's description --------------

    @property
    def _opened(self) -> "Attester[B_co]":
        if self._attester is None:
            raise UsageError(
                "AsyncAttester: not open, or closed; await it first, or open another one with "
                "aopen",
                reason="closed",
            )
        return self._attester

    @property
    def backend(self) -> B_co:
        """The backend, for its additional methods; calling these bypasses this object's lock."""
        return self._opened.backend

    def verifier(self, **options: "Unpack[VerifierOptions]") -> "Verifier":
        """Return a verifier that trusts this simulated TEE, for tests.

        The options are arguments of `attestkit.Verifier`; see `Attester.verifier`.
        """
        return self._opened.verifier(**options)

    @property
    def simulated(self) -> bool:
        """Whether the TEE is simulated, so that its evidence proves nothing about hardware."""
        return self._opened.simulated

    @property
    def blocking(self) -> bool:
        """Whether calls are made in a worker thread."""
        return self._opened.blocking

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file; errors as `Attester.app_compose`.

        With an agent, the first access waits for its response, and so blocks the event loop.
        """
        return self._opened.app_compose

    @property
    def vm_config(self) -> str:
        """The configuration of the VM as JSON text; empty if unknown.

        With an agent, the first access waits for its response, and so blocks the event loop.
        """
        return self._opened.vm_config

    @property
    def not_proven(self) -> tuple[str, ...]:
        """Names of the KMS's keys that were accepted without a pin; as `Attester.not_proven`."""
        return self._opened.not_proven

    @property
    def keys(self) -> KeyDeriver:
        """Source of the app's keys; UnsupportedError without keys. See `Attester.keys`."""
        return self._opened.keys

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raise UsageError: another process has to open the device itself."""
        message = "AsyncAttester: not picklable; open another one in the other process"
        raise UsageError(message, reason="not_picklable")

    def __repr__(self) -> str:
        return f"<AsyncAttester: {self._attester or 'not open'}>"


def _device_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="attestkit-device")
