"""Client of a local key provider, by the host's API or TCP: verifies it, derives keys.

Host and network are untrusted: sizes and times are limited, and an SGX quote authenticates the
answer.
"""

import contextlib
import hmac
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

from attestkit import _sanitize
from attestkit._argument_checks import require_size, wrong_type
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import from_hex, read_object
from attestkit._system.bounded_http import (
    JSON_POST,
    ExchangeError,
    Request,
    Response,
    ResponseLimits,
    TimeLeft,
    connect_tcp,
    exchange,
)
from attestkit.errors import (
    AttestKitError,
    ConfigError,
    FormatError,
    KmsError,
    UnsupportedError,
    VerificationError,
)
from attestkit.keys import AppKeys
from attestkit.kms.local_provider.sealed_key import (
    MAX_QUOTE,
    SealedKey,
    decode_response,
    encode_request,
    open_seed,
    provider_report_data,
    receive_message,
    send_message,
    td_report_data,
)
from attestkit.quote import EnclaveReport, Quote
from attestkit.verifier import AppraisalPolicy, ReferenceValues, Verifier
from attestkit.verifier.claims import TcbStatus

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import KmsReason

__all__ = ["HostApi", "TcpProvider", "fetch_local_keys", "provider_policy"]

_SECONDS: Final = 30.0  # of a whole exchange
_HEAD_LIMIT: Final = 64 << 10  # bytes of status line and header section
_BODY_LIMIT: Final = 4 << 20  # bytes; the provider's quote has at most 1 MiB, 2 MiB in hex
_LONGEST_TEXT: Final = 300  # characters of the host's error
_REASONS: Final["dict[str, KmsReason]"] = {"timed_out": "timeout", "connection": "connection"}
_METHOD: Final = "GetSealingKey?json"
_AF_VSOCK: Final[int] = getattr(socket, "AF_VSOCK", 40)  # Linux' number
_WHAT: Final = "local key provider"
_SGX: Final = "sgx"  # the platform that a policy must name


class TcpProvider:
    """Client of a local key provider at a TCP address; call it with a TD's quote.

    The answer contains the sealed seed of the TD's keys. A provider that refuses closes the
    connection without an answer.

    Args:
        host: Name or address of the host.
        port: Port; the default of dstack's provider is 3443.
        timeout: Seconds for a whole exchange.
    """

    def __init__(self, host: str, port: int = 3443, *, timeout: float = _SECONDS) -> None:
        self._address = host, port
        self._timeout = timeout

    def __call__(self, quote: bytes) -> SealedKey:
        """Send this TD's quote; return the sealed seed of its keys, and the provider's quote.

        `quote` is binary.

        Raises:
            KmsError: If there is no connection, no answer in time, or a malformed one.
        """
        deadline = time.monotonic() + self._timeout
        with (
            _translate_errors(str(self)),
            connect_tcp(*self._address, self._timeout, lambda: deadline - time.monotonic()) as sock,
        ):
            send_message(sock, encode_request(quote), deadline)
            return decode_response(receive_message(sock, deadline))

    def __str__(self) -> str:
        host, port = self._address
        return f"local key provider {host}:{port}"


class HostApi:
    """Client of a local key provider behind the API of the host; call it with a TD's quote.

    The answer contains the sealed seed of the TD's keys.

    Args:
        url: `host_api_url` of the sys-config: `vsock://2:PORT/PATH`, or `http://HOST:PORT/PATH`.
        timeout: Seconds for a whole exchange.

    Raises:
        ConfigError: If the URL has neither form.
        UsageError: If `url` is not text.
    """

    def __init__(self, url: str, *, timeout: float = _SECONDS) -> None:
        self._endpoint = _read_url(url)
        self._url = url
        self._timeout = timeout

    def __call__(self, quote: bytes) -> SealedKey:
        """Send this TD's quote; return the sealed seed of its keys, and the provider's quote.

        `quote` is binary.

        Raises:
            KmsError: If there is no connection, no answer in time, or a malformed one; or if the
                host answers with an error (reason `refused`), whose text is in the message.
        """
        with _translate_errors(str(self)):
            found = self._post(f'{{"quote":"{quote.hex()}"}}'.encode())
            if found.status != 200:
                raise self._refusal(found.status, found.body)
            return _read_answer(found.body)

    def _post(self, body: bytes) -> Response:
        host, target = self._endpoint.host, self._endpoint.target
        limits = ResponseLimits(_HEAD_LIMIT, _BODY_LIMIT, self._timeout)
        connect = partial(self._endpoint.connect, self._timeout)
        return exchange(connect, Request("POST", host, target, JSON_POST, body), limits)

    def _refusal(self, status: int, body: bytes) -> KmsError:
        try:
            error = read_object(body, "error").get("error")
        except FormatError:
            error = None
        text = _sanitize.one_line(error, _LONGEST_TEXT) if isinstance(error, str) else ""
        message = f"{self}: refused the request with status {status}"
        return KmsError(f"{message}: {text}" if text else message, reason="refused", url=self._url)

    def __str__(self) -> str:
        return f"host API {self._url}"


class _Endpoint(NamedTuple):
    """Address of the host's API."""

    host: str  # for the Host header
    family: int | None  # AF_VSOCK; None for TCP
    address: tuple[int, int] | tuple[str, int]  # CID or name, port
    target: str  # of the request

    def connect(self, timeout: float, time_left: TimeLeft) -> socket.socket:
        """Return a connected socket; `timeout` is the limit of one address, in seconds."""
        if self.family is None:
            host, port = cast("tuple[str, int]", self.address)
            return connect_tcp(host, port, timeout, time_left)
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock


def _read_url(url: str) -> _Endpoint:
    if not isinstance(url, str):
        raise wrong_type("host_api_url", "text", url)
    try:
        parts = urlsplit(url)
        endpoint = _vsock_endpoint(parts) if parts.scheme == "vsock" else _http_endpoint(parts)
        if parts.query or parts.fragment or "@" in parts.netloc:
            endpoint = None
    except ValueError:
        endpoint = None
    printable = url.isascii() and url.isprintable() and " " not in url
    if endpoint is None or not printable:
        # A URL with a user may have a password: not shown.
        given = "" if "@" in url else f", not {_sanitize.one_line(url, _LONGEST_TEXT)}"
        text = f"host_api_url: must be vsock://CID:PORT/PATH or http://HOST:PORT/PATH{given}"
        raise ConfigError(text, reason="wrong_value")
    return endpoint


def _vsock_endpoint(parts: SplitResult) -> _Endpoint | None:
    cid, _, port = parts.netloc.partition(":")
    numbers = [int(text) if text.isdecimal() and text.isascii() else -1 for text in (cid, port)]
    if not all(0 <= number < 1 << 32 for number in numbers):
        return None
    return _Endpoint("vsock", _AF_VSOCK, (numbers[0], numbers[1]), _target(parts))


def _http_endpoint(parts: SplitResult) -> _Endpoint | None:
    if parts.scheme != "http" or not parts.hostname or parts.port == 0:
        return None
    return _Endpoint(parts.netloc, None, (parts.hostname, parts.port or 80), _target(parts))


def _target(parts: SplitResult) -> str:
    return f"{parts.path.rstrip('/')}/{_METHOD}"


def _read_answer(body: bytes) -> SealedKey:
    fields = read_object(body, "GetSealingKey")
    answer = SealedKey(
        *(from_hex(fields.get(name), f"GetSealingKey: {name}") for name in SealedKey._fields)
    )
    if max(map(len, answer)) > MAX_QUOTE:
        text = f"GetSealingKey: quote or key of over {MAX_QUOTE} bytes"
        raise FormatError(text, reason="too_large")
    return answer


@contextlib.contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Context manager: raise errors of an exchange as KmsError, whose text begins with `what`."""
    reason: KmsReason
    try:
        yield
    except KmsError:
        raise
    except TimeoutError as error:
        raise KmsError(f"{what}: no answer in time", reason="timeout") from error
    except ExchangeError as error:
        reason = _REASONS.get(error.kind, "malformed")
        raise KmsError(f"{what}: {error}", reason=reason) from error
    except FormatError as error:
        # A provider that refuses closes the connection without an answer.
        reason = "connection" if error.reason == "truncated" else "malformed"
        raise KmsError(f"{what}: {error.message}", reason=reason) from error
    except (OSError, ValueError) as error:
        if isinstance(error, AttestKitError):
            raise
        text = getattr(error, "strerror", None) or type(error).__name__
        raise KmsError(f"{what}: {text}", reason="connection") from error


def provider_policy(
    mr_enclave: bytes | None = None,
    *,
    accepted_statuses: Iterable[TcbStatus] = (TcbStatus.UP_TO_DATE,),
) -> AppraisalPolicy:
    """Return a policy for the SGX quote of a provider.

    Args:
        mr_enclave: MRENCLAVE of the provider, 32 bytes; None accepts every enclave.
        accepted_statuses: Accepted TCB statuses of the host.

    Raises:
        UsageError: If `mr_enclave` does not have 32 bytes, or a status is not a TcbStatus.
    """
    policy = AppraisalPolicy.default().replace(
        platforms={_SGX}, accepted_statuses=frozenset(accepted_statuses)
    )
    if mr_enclave is None:
        return policy
    require_size("mr_enclave", mr_enclave, 32)
    return policy.replace(reference_values=ReferenceValues(mrenclave={mr_enclave}))


def fetch_local_keys(
    get_quote: Callable[[bytes], bytes],
    provider: Callable[[bytes], SealedKey],
    *,
    verifier: Verifier,
    mr_enclave: bytes | None = None,
    now: datetime | float | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> AppKeys:
    """Return the keys of this TD from a local key provider.

    Call it right after the event `boot-mr-done`: RTMR3 determines the keys.

    The keys depend on the provider's enclave, whose MRENCLAVE the event `key-provider` measures.
    Without `mr_enclave` every enclave is accepted: a hostile host can run one that reveals the
    keys, and only relying parties that check the event notice it.

    Args:
        get_quote: Returns the quote of this TD over 64 bytes of report data.
        provider: `HostApi`, `TcpProvider`, or a function that returns the provider's answer.
        verifier: Verifier of the provider's SGX quote; its policy must accept the platform `sgx`,
            see `provider_policy`. It needs the collateral of SGX, or a PCCS.
        mr_enclave: Expected MRENCLAVE of the provider, 32 bytes; None accepts every enclave.
        now: Time of the verification: an aware datetime, or seconds since 1970; None is the
            verifier's clock.
        random: Returns a number of random bytes.

    Returns:
        Keys with the provider `local`, whose id is the MRENCLAVE. The caller closes them.

    Raises:
        KmsError: If there is no answer (reason `connection`, `timeout`, `refused`), it is malformed
            (`malformed`, `wrong_size`), the provider's quote is not accepted (`evidence_refused`),
            its MRENCLAVE is not `mr_enclave` (`wrong_provider`), or the sealed seed is not for this
            TD (`invalid_key`).
        CollateralError: If the collateral for the provider's quote is missing or malformed.
        UsageError: If `mr_enclave` does not have 32 bytes.
    """
    if mr_enclave is not None:
        require_size("mr_enclave", mr_enclave, 32)
    secret = random(32)
    try:
        answer = provider(get_quote(td_report_data(x25519_public_key(secret))))
        identity = _verify_provider(answer, verifier, now)
        if mr_enclave is not None and not hmac.compare_digest(identity, mr_enclave):
            text = f"{_WHAT}: MRENCLAVE must be {mr_enclave.hex()}, not {identity.hex()}"
            raise KmsError(f"{text}, which releases other keys", reason="wrong_provider")
        seed = _open_seed(secret, answer.encrypted_key)
    finally:
        wipe(secret)
    try:
        keys = AppKeys.from_seed(seed)
    finally:
        wipe(seed)
    keys.key_provider, keys.key_provider_id = "local", identity.hex()
    return keys


def _verify_provider(answer: SealedKey, verifier: Verifier, now: datetime | float | None) -> bytes:
    """Verify the provider's quote over the sealed seed; return its MRENCLAVE, 32 bytes.

    `now` is an aware datetime or seconds since 1970; None is the verifier's clock.
    """
    try:
        quote = Quote.parse(answer.provider_quote)
    except FormatError as error:
        text = f"{_WHAT}: malformed quote: {error.message}"
        raise KmsError(text, reason="malformed") from error
    body = quote.body
    if not isinstance(body, EnclaveReport):
        text = f"{_WHAT}: the quote must be of an SGX enclave, not of a TD"
        raise KmsError(text, reason="evidence_refused")
    expected = provider_report_data(answer.encrypted_key)
    if not hmac.compare_digest(body.report_data, expected):
        text = f"{_WHAT}: the quote must be over the sealed seed in the answer"
        raise KmsError(text, reason="evidence_refused")
    try:
        result = verifier.verify(quote.raw, report_data=expected, now=now)
    except (FormatError, UnsupportedError, VerificationError) as error:  # or expired collateral
        text = f"{_WHAT}: its quote is not accepted: {error}"
        raise KmsError(text, reason="evidence_refused") from error
    found = dict(result.claims.registers).get("mrenclave")
    if result.claims.platform != _SGX or found is None:
        text = f"{_WHAT}: the evidence must be of an SGX enclave, not {result.claims.platform}"
        raise KmsError(text, reason="evidence_refused")
    return found


def _open_seed(secret: bytes, encrypted_key: bytes) -> bytes:
    try:
        return open_seed(secret, encrypted_key)
    except FormatError as error:
        raise KmsError(f"{_WHAT}: {error.message}", reason="wrong_size") from error
    except VerificationError as error:
        text = f"{_WHAT}: the sealed seed must be for this TD, and unaltered"
        raise KmsError(text, reason="invalid_key") from error
