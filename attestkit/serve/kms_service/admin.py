"""Administration of the simulated KMS over HTTP: ClearImageCache, with a token.

Off by default. The simulated KMS keeps no images, so nothing is cleared.
"""

import hmac
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator
from time import perf_counter
from typing import Final

from attestkit.errors import UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import OTHER, Traffic
from attestkit.serve.http.asgi import Receive, Scope, Send, send_response
from attestkit.serve.kms_service.app import HEADERS, make_rpc_app, refuse_web_pages
from attestkit.serve.kms_service.errors import KmsRefusalError
from attestkit.serve.kms_service.request_queue import NoContext
from attestkit.serve.rpc.messages_kms import PACKAGE, ClearImageCacheRequest
from attestkit.serve.rpc.service import Method, Service

MIN_TOKEN: Final = 16
"""Least number of characters of a token."""

MAX_TOKEN: Final = 4096
"""Largest number of characters of a token."""

_CACHE_KEY: Final = re.compile(r"(?:all|[0-9a-fA-F]*)", re.ASCII)
_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="dstack-kms admin"')
_UNAUTHORIZED: Final = 401
_REQUEST_HEADERS: Final = {b"authorization", b"x-admin-token"}


def clear_image_cache(_: NoContext, request: ClearImageCacheRequest) -> None:
    """Check the cache keys in a request; the simulated KMS has no cache to clear.

    Raises:
        KmsRefusalError: If a key is neither hex digits, `all` nor empty.
    """
    for name, key in (("image", request.image_hash), ("measurement", request.config_hash)):
        if _CACHE_KEY.fullmatch(key) is None:
            raise KmsRefusalError(f"failed to clear {name} cache: invalid cache key")


SERVICE: Final = Service(
    {"ClearImageCache": Method(clear_image_cache, ClearImageCacheRequest)},
    mount="/prpc/",
    prefix="Admin.",
    name="Admin",
    package=PACKAGE,
)
"""The service on the listener for administration."""


class AdminApp:
    """ASGI application: every request needs the token, or gets 401 without a body.

    Args:
        token: The token, 16 to 4096 printable ASCII characters.
        limits: Limits of the listener.
        traffic: Counters of the requests.

    Raises:
        UsageError: If the token is too short, too long, or not printable ASCII.
    """

    def __init__(self, token: str, limits: Limits, traffic: Traffic) -> None:
        if not (MIN_TOKEN <= len(token) <= MAX_TOKEN and token.isascii() and token.isprintable()):
            text = f"admin token: must be {MIN_TOKEN} to {MAX_TOKEN} printable ASCII characters"
            raise UsageError(text, reason="wrong_value")
        self._token = token.encode("ascii")
        self._traffic = traffic
        self._rpc = make_rpc_app("kms-admin", NoContext(), SERVICE, limits, traffic)
        self._rpc.guard = refuse_web_pages  # whose browser may keep the token
        self.headers = HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begin = perf_counter()
        if self._is_authorized(scope):
            await self._rpc(scope, receive, send)
            return
        self._traffic.done(OTHER, _UNAUTHORIZED, perf_counter() - begin)
        headers = [*HEADERS, _CHALLENGE, (b"connection", b"close")]
        await send_response(scope, send, _UNAUTHORIZED, headers, b"")

    def _is_authorized(self, scope: Scope) -> bool:
        """Return whether a header has the token; each is compared in constant time."""
        found = [hmac.compare_digest(one, self._token) for one in _read_tokens(scope)]
        return any(found)

    def __repr__(self) -> str:
        return "AdminApp(<token>)"


def _read_tokens(scope: Scope) -> Iterator[bytes]:
    """Yield the tokens in a request: Bearer, the password of Basic, X-Admin-Token."""
    for name, value in scope["headers"]:
        if name not in _REQUEST_HEADERS:
            continue
        if name == b"x-admin-token":
            yield value
            continue
        scheme, _, credentials = value.partition(b" ")
        if scheme.lower() == b"bearer":
            yield credentials.strip()
        elif scheme.lower() == b"basic":
            try:
                yield b64decode(credentials.strip(), validate=True).partition(b":")[2]
            except (Base64Error, ValueError):
                continue
