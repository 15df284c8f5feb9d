"""The listeners of a simulated KMS: setup over HTTP while it has no keys, then HTTPS; and Admin."""

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from attestkit.errors import AttestKitError
from attestkit.kms.release.state_folder import KmsState, KmsStateFolder
from attestkit.serve.config.limits import Limits
from attestkit.serve.config.option_values import Address
from attestkit.serve.counters import Stats
from attestkit.serve.event_loop_thread import start_listeners, stop_listeners
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service.admin import AdminApp
from attestkit.serve.kms_service.app import KmsApp
from attestkit.serve.kms_service.onboarding import Onboarding, make_onboarding_app
from attestkit.serve.kms_service.release_engine import ReleaseEngine
from attestkit.serve.kms_service.server_identity import KmsParts, ServerIdentity

if TYPE_CHECKING:
    from socket import socket

    from attestkit.serve.http.server import Listener

_logger = logging.getLogger("attestkit.kms")


class KmsSockets(NamedTuple):
    """Listening sockets, which the server closes."""

    rpc: "socket"
    admin: "socket | None" = None

    @property
    def port(self) -> int:
        """Port of the HTTPS listener."""
        port: int = self.rpc.getsockname()[1]
        return port

    @property
    def admin_url(self) -> str:
        """URL for administration; empty without its socket."""
        return "" if self.admin is None else f"http://{Address(*self.admin.getsockname()[:2])}"


class KmsServer:
    """Listeners of one KMS in an event loop.

    Args:
        parts: Verifier, authorization and settings of the KMS.
        sockets: Listening sockets.
        limits: Limits of each listener.
        threads: Threads of the requests; not shut down by this object.
        admin_token: Token of the listener for administration.

    Raises:
        UsageError: If there is a socket for administration, and the token is not valid.
    """

    def __init__(
        self,
        parts: KmsParts,
        sockets: KmsSockets,
        limits: Limits,
        threads: JobThreads,
        admin_token: str = "",
    ) -> None:
        self._parts, self._sockets, self._limits = parts, sockets, limits
        self._threads, self._stats = threads, Stats()
        self._admin_app = None
        if sockets.admin is not None:
            traffic = self._stats.of("kms_admin")
            self._admin_app = AdminApp(admin_token, limits, traffic)
        self._task: asyncio.Task[int] | None = None
        self._switch: asyncio.Task[None] | None = None
        self.identity: ServerIdentity | None = None
        self.has_keys: threading.Event = threading.Event()  # HTTPS is served

    async def serve(self, state: KmsState) -> None:
        """Serve HTTPS with the keys in `state`; return when the listeners accept connections.

        Raises:
            UsageError: If the settings in `parts` conflict or name an unknown platform.
            AttestKitError: If the attester returns no evidence for the certificate.
        """
        from attestkit.serve.http.server import Listener  # lazy: imports uvicorn

        self.identity = identity = ServerIdentity(state, self._parts)
        engine = ReleaseEngine(identity, self._parts, self._threads)
        identity.prepare()  # reports errors before anything listens
        traffic = self._stats.of("kms")
        app = KmsApp(engine, self._limits, traffic)
        contexts = identity.next_context
        rpc = Listener(app, self._sockets.rpc, self._limits, "kms", traffic, tls=contexts)
        if self._parts.on_keys is not None:
            self._parts.on_keys(state.roots.public_root)
        self._task = await start_listeners([rpc, *self._admin()])
        self.has_keys.set()

    async def serve_onboarding(self, folder: KmsStateFolder | None) -> None:
        """Serve the setup over HTTP; return when its listener accepts connections.

        After the setup is finished, HTTPS is served on the same socket. `folder` stores the keys;
        None: they are in memory only.
        """
        from attestkit.serve.http.server import Listener  # lazy: imports uvicorn

        setup, traffic = Onboarding(folder, self._parts, self._threads), self._stats.of("kms_setup")
        limits = self._limits._replace(drain_seconds=1.0)  # for the answer to Finish
        app = make_onboarding_app(setup, limits, traffic)
        sock = self._sockets.rpc.dup()
        # The next server accepts on the same socket.
        plain = Listener(app, sock, limits, "kms_setup", traffic, handed_over=True)
        task = self._task = await start_listeners([plain])

        async def switch() -> None:
            assert setup.state is not None
            await stop_listeners(task)
            try:
                await self.serve(setup.state)
            except AttestKitError as error:
                _logger.error("simulated KMS: HTTPS is not served: %s", error)  # noqa: TRY400
            else:
                _logger.info("simulated KMS: setup finished; serving HTTPS")

        def finish() -> None:
            if self._switch is None:
                self._switch = asyncio.create_task(switch())

        setup.finish = finish

    def _admin(self) -> "list[Listener]":
        from attestkit.serve.http.server import Listener

        if self._admin_app is None or self._sockets.admin is None:
            return []
        traffic = self._stats.of("kms_admin")
        return [Listener(self._admin_app, self._sockets.admin, self._limits, "kms_admin", traffic)]

    async def stop(self) -> None:
        """Stop the listeners, and a switch to HTTPS that is pending."""
        if self._switch is not None:
            self._switch.cancel()
            await asyncio.wait({self._switch})
        if self._task is not None and not self._task.done():
            await stop_listeners(self._task)
