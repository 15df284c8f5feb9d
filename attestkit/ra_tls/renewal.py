"""Renewal of a context's certificate, before new connections use it, once half its life is over.

ssl offers no lock: a context must not be changed while a connection is created from it, which
copies the certificate. Both happen under one lock here. A handshake uses the copy of its
connection, and needs no lock.
"""

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.errors import AttestKitError
from attestkit.ra_tls.certificate import MAX_LIFETIME
from attestkit.ra_tls.issued import Issued
from attestkit.ra_tls.key_loading import load_issued

RETRY: Final = 60.0
"""Seconds from a failed renewal to the next attempt, and the least from one renewal to the next."""
PATIENCE: Final = 1.0
"""Seconds that a new connection waits for a renewal, which goes on in its thread."""

_logger = logging.getLogger("attestkit.ra_tls")


class RenewingContext(ssl.SSLContext):
    """A context whose new connections present a fresh certificate.

    The first connection that is created after half of the certificate's life starts the renewal in
    a thread, and waits for it at most `PATIENCE` seconds. Other threads meanwhile use the old
    certificate while it is valid. If the renewal fails or takes longer, the old certificate stays
    in use, also after its end, when peers reject it with the reason `cert_expired`; failures are
    logged as warnings, and repeated every `RETRY` seconds. Existing connections are not affected.

    A certificate that lives longer than a day, as those of a dstack agent do by default, counts as
    one of a day from the moment at which it was loaded.
    """

    _issued: Issued | None = None  # the loaded certificate

    def renew_from(self, issued: Issued, now: Callable[[], float]) -> None:
        """Renew the loaded key and certificate with `issued.renew`, which must not be None.

        `now` returns the time in seconds since 1970.
        """
        self._now = now
        self._lock = threading.Lock()  # while the context is changed, or a connection is created
        self._thread: threading.Thread | None = None  # dead after a fork, as all other threads
        self._due, self._end = _dates(issued, now())
        self._issued = issued

    # SSLSocket and SSLObject create the TLS connection with these, also for a later `connect`.

    def _wrap_socket(self, *args: object, **named: object) -> object:
        with self._hold_certificate():
            return cast("Any", super())._wrap_socket(*args, **named)  # noqa: SLF001

    def _wrap_bio(self, *args: object, **named: object) -> object:
        with self._hold_certificate():
            return cast("Any", super())._wrap_bio(*args, **named)  # noqa: SLF001

    @contextlib.contextmanager
    def _hold_certificate(self) -> Iterator[None]:
        """Renew the certificate if that is due; then hold it, for the creation of a connection."""
        if self._issued is None:
            yield
            return
        if self._now() >= self._due:
            self._renew_now()
        with self._lock:
            yield

    def _renew_now(self) -> None:
        with self._lock:
            thread, now = self._thread, self._now()
            running = thread is not None and thread.is_alive()
            if now < self._due or (running and now <= self._end):
                return
            if not running:
                thread = self._start()
        # `renew` may itself connect with this context.
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def _start(self) -> threading.Thread | None:
        # A daemon: a device that hangs does not delay the end of the program.
        thread = threading.Thread(target=self._run, name="attestkit-ra-tls-renewal", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter shuts down
            self._failed(error)
            return None
        self._thread = thread
        return thread

    def _run(self) -> None:
        try:
            assert self._issued is not None
            assert self._issued.renew is not None
            renewed = self._issued.renew()
            # Apart, because a failure would leave the context half changed.
            load_issued(ssl.SSLContext(self.protocol), renewed)
            due, end = _dates(renewed, self._now())
            with self._lock:
                load_issued(self, renewed)
                self._due, self._end = max(due, self._now() + RETRY), end
        except Exception as error:  # noqa: BLE001 - the old certificate stays in use
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._due = self._now() + RETRY
        left = int(self._end - self._now())
        known = isinstance(error, AttestKitError)
        text = str(error) if known else type(error).__name__  # which may contain a secret
        _logger.warning(
            "TLS certificate: not renewed, expires in %d seconds; next attempt in %d: %s",
            *(left, RETRY, text),
        )


def _dates(issued: Issued, now: float) -> tuple[float, float]:
    """Return the time from which to renew a certificate that is now loaded, and its end."""
    certificate = read_certificate(issued.certificate_chain[0])
    begin, end = certificate.valid_from.timestamp(), certificate.valid_until.timestamp()
    longest = MAX_LIFETIME.total_seconds()
    if end - begin > longest:
        return (now + min(end, now + longest)) / 2, end
    return (begin + end) / 2, end
