"""Words and first inputs for fuzzing requests, from the server's own tables.

So a new method, field or parameter is fuzzed without anybody thinking of it.
"""

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

from attestkit.serve.api_docs import views
from attestkit.serve.pages.dashboard import ASSETS
from attestkit.serve.rpc.message_fields import fields_of
from attestkit.serve.rpc.protobuf_codec import encode
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services import dstack_guest, guest_v1, tappd, worker_api
from fuzz.request_path.rig import LISTENERS, head
from tests.serve.http.attacks import ATTACKS

__all__ = ["LARGEST", "as_text", "dictionary", "seeds"]

LARGEST: Final = 2048
"""Bytes of an input: over every limit of the rig."""

_OF_HTTP: Final = (
    *("GET ", "HEAD ", "POST ", "PUT ", "OPTIONS ", "CONNECT ", "PRI * HTTP/2.0", " HTTP/1.1\r\n"),
    *(" HTTP/1.0\r\n", "\r\n\r\n", "\r\n", "Host: localhost\r\n", "Host: evil.example\r\n"),
    *("Content-Length: 2\r\n", "Content-Length: 0\r\n", "Content-Length: 4096\r\n"),
    *("Content-Type: application/json\r\n", "Content-Type: application/octet-stream\r\n"),
    *("Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"),
    *("Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "2\r\n{}\r\n", "Expect: 100-continue\r\n"),
    *("Connection: close\r\n", "Connection: keep-alive\r\n", "Connection: Upgrade\r\n"),
    *("Upgrade: h2c\r\n", "Origin: null\r\n", "Referer: http://localhost/\r\n"),
    *("Sec-Fetch-Site: cross-site\r\n", "?json", "?v=", "&", "=", "%2f", "%00", "%ff", ";q=1"),
)
_OF_JSON: Final = ("{", "}", "[", "]", '"', ":", ",", "true", "false", "null", '\\"', "\\u0000")
_OF_LOGS: Final = (
    *("tail=1", "since=1h", "until=1800000000", "timestamps=true", "bare=true"),
    *("stdout=false", "ansi=true", "text=false"),
)
_OF_QUERIES: Final = (
    *(*_OF_LOGS, "follow=true", "since=2027-01-15T08:00:00Z"),
    *("qeid=", "encrypted_ppid=", "cpusvn=", "pcesvn="),
    *("pceid=", "fmspc=", "ca=platform", "ca=processor", "encoding=der", "update=early", "uri="),
)
_VERIFIER: Final = ("/verify", "/health", "quote", "event_log", "vm_config", "attestation", "debug")
_PCCS: Final = (
    *("/sgx/certification/v4/pckcrl", "/sgx/certification/v4/rootcacrl"),
    *("/sgx/certification/v4/crl", "/sgx/certification/v4/pckcert"),
    *("/sgx/certification/v4/tcb", "/sgx/certification/v4/qe/identity"),
    *("/tdx/certification/v4/tcb", "/tdx/certification/v4/qe/identity"),
)
_PAGES: Final = ("/", "/metrics", "/logs/web", *(f"/assets/{name}" for name in ASSETS))
_SERVICES: Final = {
    "dstack": (dstack_guest.SERVICE, guest_v1.SERVICE),
    "tappd": (dstack_guest.SERVICE, tappd.SERVICE),
    "http": (worker_api.SERVICE, worker_api.SERVICE_V1),
    "dev_http": (dstack_guest.SERVICE, guest_v1.SERVICE, tappd.SERVICE),
}
_ALL: Final = (*_SERVICES["dev_http"], *_SERVICES["http"])
_DOCUMENTS: Final = views.list_paths(_ALL)


def dictionary() -> dict[str, bytes]:
    """Return every word by a name that is good for AFL++."""
    words: dict[str, None] = dict.fromkeys((*_OF_HTTP, *_OF_JSON, *_OF_QUERIES))
    words |= dict.fromkeys((*_VERIFIER, *_PCCS, *_PAGES, *_DOCUMENTS))
    for service in _ALL:
        words |= dict.fromkeys(path for path, _ in _paths(service))
        for method in service.methods.values():
            for part in fields_of(method.request) if method.request else ():
                names = (f'"{part.name}":', f"{part.name}=")
                words |= dict.fromkeys((*names, *filter(None, part.bounds.one_of)))
    return {f"word{number}": word.encode() for number, word in enumerate(words)}


def as_text(words: dict[str, bytes]) -> str:
    """Return a dictionary as AFL++ reads it."""
    return "".join(f'{name}="{_escaped(word)}"\n' for name, word in words.items())


def _escaped(word: bytes) -> str:
    plain = {byte for byte in range(0x20, 0x7F) if byte not in b'"\\'}
    return "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in word)


def seeds() -> list[bytes]:
    """Return a request to each path of each listener, in each encoding, and some odd ones."""
    found = [data for name in LISTENERS for data in _requests(name)]
    get = b"GET /Version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = (
        b"POST /Sign HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    waits = (
        b"POST /Verify HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    upgrade = (
        b"POST /Verify HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 23\r\n\r\n\r\nupgrade: h2c\r\n\r\nGET /"
    )
    for listener in ("dstack", "tappd", "dev_http"):
        at = upgrade.index(b"\r\n\r\n") + 2
        found += [head(listener, pieces=size) + upgrade + get for size in (0, at, at + 1, 250)]
        for end in ("silent", "eof", "reset"):
            for slow in (False, True):
                start = head(listener, end, slow=slow)
                found += [start + get + chunked + get, start + waits, start + get[:-2]]
        found += [head(listener, pieces=3) + get + chunked, head(listener, pieces=16) + waits]
    too_large = b"POST /Sign HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4096\r\n\r\n"
    found += [head(listener) + too_large for listener in LISTENERS]
    log = "/logs/web?follow=true"
    found.append(head("http", "silent", slow=True) + _get(log))
    found.append(head("http") + _get("&".join((log, *_OF_LOGS))))
    for listener in ("dstack", "http"):
        for attack in ATTACKS:
            data = b"".join(attack.parts)
            found += [head(listener) + data, head(listener, pieces=97) + data]
    return [data for data in dict.fromkeys(found) if len(data) <= LARGEST]


def _paths(service: Service) -> Iterator[tuple[str, Method]]:
    for name, method in service.methods.items():
        for mount in service.mounts:
            for prefix in dict.fromkeys(("", service.prefix)):
                yield f"{mount}{prefix}{name}", method


def _requests(listener: str) -> Iterator[bytes]:
    start = head(listener)
    for service in _SERVICES.get(listener, ()):
        for path, method in _paths(service):
            yield start + _get(path)
            yield start + _get(f"{path}?{urlencode(_values(method), doseq=True)}")
            yield start + _post(path, "application/json", _example(method, pieces=False))
            yield start + _post(path, "application/octet-stream", _example(method, pieces=True))
    pages = {"verifier": ("/health",), "pccs": _PCCS, "http": _PAGES}.get(listener, ())
    for path in (*pages, *(_DOCUMENTS if listener in _SERVICES else ())):
        yield start + _get(path)
    if listener == "verifier":
        for body in (b'{"quote":"00","event_log":"[]","vm_config":""}', b'{"attestation":"00"}'):
            yield start + _post("/verify", "application/json", body)


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _post(path: str, content_type: str, body: bytes) -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _example(method: Method, *, pieces: bool) -> bytes:
    """Return a request to a method: protobuf in pieces, or JSON."""
    if method.request is None:
        return b"" if pieces else b"{}"
    values = _values(method)
    if pieces:
        return b"".join(encode(method.request(**values)))
    written = {name: _as_json(value) for name, value in values.items()}
    return json.dumps(written, separators=(",", ":")).encode()


def _values(method: Method) -> dict[str, Any]:
    """Return something for every field of a method's request."""
    values: dict[str, Any] = {}
    for part in fields_of(method.request) if method.request else ():
        one: Any = {str: "a", bool: True, int: 1, bytes: b"a"}[part.kind]
        if part.bounds.one_of:
            one = part.bounds.one_of[-1]
        values[part.name] = (one,) if part.repeated else one
    return values


def _as_json(value: Any) -> object:
    if isinstance(value, tuple):
        return [*value]
    return value.hex() if isinstance(value, bytes) else value
