"""Simulated local key provider: a TCP server, and the release of seeds.

Its SGX quotes are signed under the root of a simulated Intel PKI.
"""

import hmac
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

from attestkit._argument_checks import require_bytes
from attestkit._crypto.zeroize import Secret, own_copy, wipe
from attestkit._system.clock import current_time
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import SgxQuotingEnclave, SimulatedEnclave
from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.kms.local_provider.sealed_key import (
    SealedKey,
    decode_request,
    derive_seed,
    encode_response,
    provider_report_data,
    receive_message,
    seal_seed,
    send_message,
    td_measurements,
)
from attestkit.quote import Quote
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.claims import TcbStatus

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = TypeVar("Self")  # so that type hints can be evaluated at run time

__all__ = ["SimulatedLocalProvider"]

MAX_CONNECTIONS: Final = 32
"""Connections that are served at once; others wait."""
IO_SECONDS: Final = 30.0
"""Seconds for the request, and for the answer of a connection."""
_BACKLOG: Final = 64
_PAUSE: Final = 0.1  # seconds after a failed accept, such as without free descriptors
_SEALING_KEY_LABEL: Final = "local-provider/sealing-key"
_SEALING_KEY_SIZE: Final = 16  # bytes, of Gramine's `_sgx_mrenclave`
_STATUSES: Final = frozenset(TcbStatus) - {TcbStatus.REVOKED}
_ENCLAVE: Final = SimulatedEnclave()
_log: Final = logging.getLogger("attestkit.kms")


class SimulatedLocalProvider(Secret):
    """A local key provider that runs in Python. A context manager; thread-safe.

    Its sealing key is in the memory of this process and derived from the seed of the PKI: it
    protects nothing.

    Args:
        pki: Simulated Intel PKI of the machine; if it has the seed of a simulated TD, the provider
            is on the same machine as this TD.
        platform_id: Identity of the machine in the PKI, non-empty ASCII without a slash.
        enclave: Identity of the enclave; its report data are replaced.
        sealing_key: Sealing key of the enclave. None: derived from the seed of the PKI and the
            MRENCLAVE.
        verifier: Verifier of the quotes of TDs, instead of one that accepts every TD of the PKI;
            it needs their collateral.
        now: Returns Unix time, for the verification.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free one.
        timeout: Seconds for the request, and for the answer of a connection.

    Raises:
        UsageError: If `sealing_key` is not `bytes`, `platform_id` is not valid, or the address
            cannot be listened on.
    """

    def __init__(
        self,
        pki: SimulatedPki,
        *,
        platform_id: str = "0",
        enclave: SimulatedEnclave = _ENCLAVE,
        sealing_key: bytes | None = None,
        verifier: Verifier | None = None,
        now: Callable[[], float] = current_time,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = IO_SECONDS,
    ) -> None:
        self.mr_enclave: bytes = enclave.mr_enclave
        """Identity of the enclave, 32 bytes."""
        if sealing_key is None:
            label = f"{_SEALING_KEY_LABEL}/{enclave.mr_enclave.hex()}"
            sealing_key = pki.derive(label, _SEALING_KEY_SIZE)
        require_bytes("sealing_key", sealing_key)
        self._sealing_key = own_copy(sealing_key)
        self._key_lock, self._is_closed = threading.Lock(), False
        self._pki, self._enclave, self._now = pki, enclave, now
        self._quoting_enclave = SgxQuotingEnclave(pki, platform_id)
        self._verifier = verifier
        self._own_verifier = Verifier(trust_anchor=pki.root_der, policy=_td_policy())
        self._server = _TcpServer(self._answer, (host, port), timeout)

    @property
    def address(self) -> tuple[str, int]:
        """Address and port of the TCP server."""
        return self._server.address

    def release(self, quote: bytes) -> SealedKey:
        """Return the seed of a TD's keys, encrypted to the key in its quote, and an SGX quote.

        Args:
            quote: Quote of a TD, whose report data begin with its X25519 public key.

        Raises:
            AttestKitError: If the quote is malformed or not of a TD on this machine, the verifier
                rejects it, its key has low order, or the provider is closed (UsageError).
        """
        parsed = Quote.parse(quote)
        td_body(parsed)  # FormatError if it is of an SGX enclave
        status = self._verify(parsed)
        if not hmac.compare_digest(parsed.header.user_data[:16], self._quoting_enclave.qe_id):
            text = "quote: must be of a TD on this machine (by its QE id)"
            raise VerificationError(text, reason="identity")
        _log.info("local key provider: released a seed to a TD whose TCB is %s", status)
        with self._key_lock:
            if self._is_closed:
                raise UsageError("SimulatedLocalProvider: is closed", reason="closed")
            seed = derive_seed(self._sealing_key, td_measurements(parsed))
        try:
            encrypted_key = seal_seed(seed, parsed.report_data)
        finally:
            wipe(seed)
        enclave = self._enclave._replace(report_data=provider_report_data(encrypted_key))
        return SealedKey(encrypted_key, self._quoting_enclave.quote(enclave))

    def _verify(self, quote: Quote) -> str:
        """Verify a TD's quote, accept any TCB status, and return the status, such as `UpToDate`."""
        now = self._now()
        if self._verifier is not None:
            result = self._verifier.verify(quote.raw, report_data=None, now=now)
        else:
            result = self._own_verifier.verify(
                quote.raw, report_data=None, now=now, collateral=self._pki.collateral(now)
            )
        return "unknown" if result.tcb.status is None else result.tcb.status.value

    def _answer(self, message: bytes) -> bytes:
        return encode_response(self.release(decode_request(message)))

    def close(self) -> None:
        """Close all connections and wipe the sealing key; a second call does nothing."""
        self._server.close()
        with self._key_lock:
            self._is_closed = True
            wipe(self._sealing_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SimulatedLocalProvider {self.mr_enclave.hex()}, simulated>"


def _td_policy() -> AppraisalPolicy:
    """Return a policy that accepts every TD, whatever its TCB status."""
    return AppraisalPolicy.default().replace(
        platforms={"dstack-tdx"},
        accepted_statuses=_STATUSES,
        accepted_advisories=None,
        refuse_simulated=False,
    )


class _TcpServer:
    """TCP server with one exchange per connection; a refused request gets no answer."""

    def __init__(
        self, answer: Callable[[bytes], bytes], address: tuple[str, int], timeout: float
    ) -> None:
        self._answer, self._timeout = answer, timeout
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._decoding = threading.Lock()  # one large message at a time
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._is_closed = False
        try:
            self._listener = socket.create_server(address, backlog=_BACKLOG)
        except OSError as error:
            problem = error.strerror or error
            text = f"local key provider: cannot listen on {address[0]}:{address[1]}: {problem}"
            raise UsageError(text, reason="wrong_value") from error
        found = self._listener.getsockname()
        self.address: tuple[str, int] = (found[0], found[1])
        self._thread = threading.Thread(target=self._accept, name="local-provider", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the listener and all connections, and wait for their threads."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            open_connections = dict(self._connections)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends a blocked accept
        self._listener.close()
        for connection in open_connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with suppress(ValueError):
            self._slots.release()  # the accepting thread may wait for one
        for thread in (self._thread, *open_connections.values()):
            thread.join()

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                self._slots.release()
                time.sleep(_PAUSE)
                continue
            self._start(connection)

    def _start(self, connection: socket.socket) -> None:
        thread = threading.Thread(
            target=self._serve, args=(connection,), name="local-provider", daemon=True
        )
        with self._lock:
            if self._is_closed:
                connection.close()
                return
            # Those that ended are removed here: `close` waits for all that run, to their last line.
            running = {one: other for one, other in self._connections.items() if other.is_alive()}
            self._connections = {**running, connection: thread}
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                message = receive_message(connection, time.monotonic() + self._timeout)
                with self._decoding:
                    answer = self._answer(message)
                send_message(connection, answer, time.monotonic() + self._timeout)
        except AttestKitError as error:
            _log.warning("local key provider: refused a request: %s", error)
        except OSError as error:
            _log.warning("local key provider: connection failed: %s", type(error).__name__)
        finally:
            with suppress(ValueError):
                self._slots.release()
