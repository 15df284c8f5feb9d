"""Fetching of issuer certificates and CRLs from the addresses that certificates of TPM keys name.

The addresses are in certificates that are not verified yet, so a request goes only to Google's
hosts, and its answer is limited in size and time. Plain http is used where a certificate names it:
the answers are signed, and verified at every use. Answers are cached in memory by URL. One that was
not verified is cached for a minute only, as is an error, so that an answer that was altered in
transit is soon replaced.
"""

import re
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from attestkit._sanitize import shown
from attestkit._system.bounded_cache import BoundedCache
from attestkit.collateral.responses import Getter, read_body
from attestkit.errors import CollateralError

ALLOWED_HOSTS: Final = (".storage.googleapis.com", "pki.goog")
"""Hosts of Google's certificates: subdomains of the first, and the second."""

MAX_REQUESTS: Final = 16
"""Requests of one verification: 8 certificates, and a CRL for each."""

_SECONDS: Final = 30.0  # for all requests of one verification
_CERTIFICATE_LIMIT: Final = 16_384  # bytes; Google's have under 2,000, in PEM under 3,000
_CRL_LIMIT: Final = 1 << 20  # bytes; Google's have under 1,000
_VERIFIED_AGE: Final = 3600.0  # seconds; Google issues CRLs daily
_UNVERIFIED_AGE: Final = 60.0
_REMEMBERED: Final = 256  # URLs
_NETLOC: Final = re.compile(r"[A-Za-z0-9.-]+")


class IssuerFetcher:
    """Fetches issuer certificates and CRLs, and caches them by URL; threads may share it."""

    def __init__(
        self,
        getter: Getter | None = None,
        *,
        hosts: Sequence[str] = ALLOWED_HOSTS,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        """Create a fetcher without sending a request.

        Args:
            getter: Function that gets a URL and returns a `Response`; None is an `HttpGetter`.
            hosts: Names of hosts to which requests may go; one that begins with a dot stands for
                its subdomains.
            timer: Monotonic clock in seconds.
        """
        self._getter, self._timer = getter, timer
        self._hosts = tuple(hosts)
        self._answers = BoundedCache[str, bytes | CollateralError](_REMEMBERED, timer=timer)
        self._verified = BoundedCache[str, bytes](_REMEMBERED, timer=timer)

    def session(self, before: Callable[[], object]) -> "IssuerSession":
        """Return a session for the requests of one verification.

        Args:
            before: Function that is called before each request; its exception cancels the request.
        """
        return IssuerSession(self, before, self._timer)

    def find(self, url: str) -> bytes | None:
        """Return the cached body of `url`; None if it must be requested.

        Raises:
            CollateralError: If `url` is not of an allowed host, or the last request failed less
                than a minute ago.
        """
        _check_url(url, self._hosts)
        found = self._answers.find(url)
        if found is None:
            found = self._verified.find(url)
        if isinstance(found, CollateralError):
            raise CollateralError(found.args[0], reason=found.reason)
        return found

    def get(self, url: str, limit: int) -> bytes:
        """Request `url`, and store and return the body of the answer, of at most `limit` bytes.

        Raises:
            CollateralError: If `url` is not of an allowed host, or the request fails.
        """
        try:
            body = self._request(url, limit)
        except CollateralError as error:
            self._answers.put(url, error, _UNVERIFIED_AGE)
            raise
        self._answers.put(url, body, _UNVERIFIED_AGE)
        return body

    def mark_verified(self, url: str, body: bytes) -> None:
        """Cache `body`, the verified answer of `url`, for an hour.

        It must be the answer that is cached for a minute; otherwise nothing is done.
        """
        if self._answers.find(url) == body:
            self._answers.discard(url)
            self._verified.put(url, body, _VERIFIED_AGE)

    def verified(self) -> tuple[bytes, ...]:
        """Return the bodies of the cached answers that were verified."""
        return tuple(self._verified.values())

    def _request(self, url: str, limit: int) -> bytes:
        _check_url(url, self._hosts)
        if self._getter is None:
            from attestkit.collateral.http_getter import HttpGetter  # lazy: loads http and ssl

            self._getter = HttpGetter()
        return read_body(self._getter(url), url, limit)


class IssuerSession:
    """The requests of one verification, limited in number and in total time."""

    def __init__(
        self, fetcher: IssuerFetcher, before: Callable[[], object], timer: Callable[[], float]
    ) -> None:
        """Start the session; `before` is called before each request."""
        self._fetcher, self._before, self._timer = fetcher, before, timer
        self._deadline: float | None = None
        self._requests = 0
        self._used: list[tuple[str, bytes]] = []

    def certificate(self, urls: tuple[str, ...]) -> bytes:
        """Return the certificate at the first of `urls` that has an answer; DER or PEM.

        Raises:
            CollateralError: If no URL of an allowed host has an answer, also without any URL,
                or the limit of requests or time is reached.
        """
        return self._first(urls, _CERTIFICATE_LIMIT)

    def crl(self, urls: tuple[str, ...]) -> bytes:
        """Return the CRL at the first of `urls` that has an answer; else as `certificate`."""
        return self._first(urls, _CRL_LIMIT)

    def mark_verified(self) -> None:
        """Cache all answers of the session for an hour; call it after their verification."""
        for url, body in self._used:
            self._fetcher.mark_verified(url, body)

    def _first(self, urls: tuple[str, ...], limit: int) -> bytes:
        problem = CollateralError("certificate: has no URL of its issuer or CRL", reason="missing")
        for url in urls:
            try:
                body = self._fetcher.find(url)
                if body is None:
                    self._check_limits()
                    body = self._fetcher.get(url, limit)
            except CollateralError as error:
                if error.reason == "fetch_needed":
                    raise
                problem = error
            else:
                self._used.append((url, body))
                return body
        raise problem

    def _check_limits(self) -> None:
        self._before()
        now = self._timer()
        if self._deadline is None:
            self._deadline = now + _SECONDS
        if now >= self._deadline:
            message = f"issuer certificates: not all fetched within {_SECONDS:g} s; try again"
            raise CollateralError(message, reason="fetch_failed")
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            message = f"issuer certificates: over {MAX_REQUESTS} requests; pass ak_certificates"
            raise CollateralError(message, reason="fetch_failed")


def _check_url(url: str, hosts: tuple[str, ...]) -> None:
    """Check that a URL is of an allowed host, on the default port.

    Raises:
        CollateralError: If `url` is not of an allowed host, or names a port.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        message = f"{shown(url)}: must be a valid URL; pass the certificate in ak_certificates"
        raise CollateralError(message, reason="fetch_failed") from error
    allowed = any(host.endswith(one) if one[:1] == "." else host == one for one in hosts)
    # Other characters, such as a backslash, are read differently by other parsers of URLs.
    plain = parts.scheme in {"http", "https"} and _NETLOC.fullmatch(parts.netloc) and port is None
    if not (allowed and plain):
        message = (
            f"{shown(url, 200)}: not an address from which issuer certificates are fetched (http "
            f"or https, hosts {', '.join(hosts)}); pass the certificate in ak_certificates"
        )
        raise CollateralError(message, reason="fetch_failed")
