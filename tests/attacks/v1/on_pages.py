"""Attempts of web pages on the development listener, and on sockets with fewer methods."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from attestkit.errors import UsageError
from attestkit.serve import listener_apps
from attestkit.serve.endpoints import LimitedSocket, ListenAddresses
from tests.attacks.attempts import Surfaces, bound
from tests.attacks.v1.on_methods import KEY, Refusal, client, event_loop, guest_of, key_of
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client, Response

attacks = Surfaces("v1")
LOCAL: Final = {"host": "localhost:8091"}


# -- a web page, and the development listener --------------------------------------------------


def page(
    path: str = "/v1/GetKey", body: object = KEY, verb: str = "POST", **headers: str
) -> Response:
    """Send a request to the development listener."""
    sent = {**LOCAL, "content-type": JSON_TYPE, **headers}
    named = {name.replace("_", "-"): value for name, value in sent.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client("dev").request(verb, path, data, named)


assert key_of(page())
assert page("/v1/Version", verb="GET").status == 200
PAGES: Final[dict[str, dict[str, str]]] = {
    "of another site": {"origin": "https://evil.example"},
    "without an origin": {"origin": "null"},
    "of this machine on another port": {"origin": "http://localhost:3000"},
    "with an empty origin": {"origin": ""},
    "whose browser states its site": {"sec_fetch_site": "cross-site"},
    "of another port, by its browser": {"sec_fetch_site": "same-site"},
    "with a word that browsers do not send": {"sec_fetch_site": "None"},
    "with a referrer": {"referer": "https://evil.example/"},
    "with a referrer that begins like this machine": {"referer": "http://localhost.evil.example/"},
    "with a user in its referrer": {"referer": "http://localhost:1@evil.example/"},
    "that rebound its name": {"host": "evil.example:8091"},
    "that rebound a name of this machine": {"host": "localhost.evil.example"},
    "that rebound an address in decimal": {"host": "2130706433"},
    "that rebound an address in octal": {"host": "0177.0.0.1"},
    "that rebound a short address": {"host": "127.1"},
    "that rebound an address of every machine": {"host": "0.0.0.0:8091"},
    "with a user in its host": {"host": "localhost:8091@evil.example"},
    "with a port of six digits": {"host": "localhost:808080"},
    "with a host of another script": {"host": "l\u03bfcalhost"},
    "without a host": {"host": ""},
    "with a form": {"content_type": "text/plain"},
    "with an encoded form": {"content_type": "application/x-www-form-urlencoded"},
    "with parts of a form": {"content_type": "multipart/form-data; boundary=application/json"},
    "with a type that ends with JSON": {"content_type": "text/plain; application/json"},
    "with two types in one": {"content_type": "application/json, text/plain"},
    "with protobuf": {"content_type": BINARY_TYPE},
}
for _name, _headers in PAGES.items():
    attacks.add(
        "confuse",
        f"web page {_name}",
        bound(
            lambda headers: Refusal(400).check(page(**headers)),
            _headers,
        ),
    )

PATHS: Final = (
    *("/GetKey?path=a", "/v0/GetKey?path=a", "/v1/GetKey?domain=a&algorithm=ed25519", "/GetTlsKey"),
    *("/v1/IssueCert", "/prpc/DeriveKey", "/prpc/Tappd.DeriveKey?path=a", "/prpc/DeriveK256Key"),
    *("/EmitEvent?event=a&payload=00", "/Sign?algorithm=ed25519&data=00", "/%47etKey?path=a"),
    *("/prpc/Tappd.Tappd.DeriveKey", "/v0/%47etTlsKey", "/prpc/GetKey?json", "/v1/Get%4bey"),
)


def image_of_a_page(path: str) -> None:
    """Request a method as an image of a page does, or its head alone."""
    Refusal(400).check(page(path, b"", "GET"))
    answer = page(path, b"", "HEAD")
    assert (answer.status, answer.body) == (400, b"")


for _path in PATHS:
    attacks.add("confuse", f"image of a web page at {_path}", bound(image_of_a_page, _path))


@attacks.attempt("confuse")
def question_of_a_browser_before_a_request() -> None:
    """No method has an answer that permits another site to send JSON."""
    headers = {"access_control_request_method": "POST", "origin": "https://evil.example"}
    answer = page("/v1/GetKey", b"", "OPTIONS", **headers)
    assert answer.status in {400, 404}
    assert not [name for name in answer.headers if name.startswith("access-control")]


@attacks.attempt("confuse")
def two_content_types() -> None:
    """A second header of a form, which a browser sends for a page."""
    scope_headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-type", b"text/plain"),
    ]
    Refusal(400).check(raw("POST", b"/v1/GetKey", scope_headers, json.dumps(KEY).encode()))


@attacks.attempt("confuse")
def host_of_the_target_beside_that_of_the_header() -> None:
    """Both hosts of a request are checked."""
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    headers.append((b"content-type", b"application/json"))
    Refusal(400).check(raw("POST", b"/v1/GetKey", headers, json.dumps(KEY).encode()))


def raw(verb: str, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> Response:
    """Send a request with repeated headers to the development listener."""
    dev, sent = client("dev"), list[Any]()
    scope: dict[str, Any] = {"type": "http", "method": verb, "raw_path": path, "query_string": b""}
    scope |= {"headers": headers, "client": None}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    event_loop().run_until_complete(dev.app(scope, receive, send))
    data = b"".join(piece["body"] for piece in sent[1:])
    return Response(sent[0]["status"], {}, data)


METHODS: Final = {
    "x-http-method-override": "POST",
    "x-method-override": "POST",
    "x-original-url": "/v1/GetKey",
    "x-rewrite-url": "/v1/GetKey",
    "x-forwarded-host": "localhost",
}
for _header, _value in METHODS.items():
    attacks.add(
        "confuse",
        f"another request by {_header}",
        bound(
            lambda header, value: Refusal(400).check(
                page("/v1/GetKey?domain=a&algorithm=ed25519", b"", "GET", **{header: value})
            ),
            _header,
            _value,
        ),
    )


# -- limited sockets ---------------------------------------------------------------------------


PLACE: Final = Path("/run/a.sock")


@cache
def limited(*methods: str) -> Client:
    """Return a client of a limited socket."""
    app = listener_apps.limited_app(guest_of(), LimitedSocket(PLACE, methods))
    return Client(app, event_loop())


assert limited("v1.Attest").post("/v1/Attest").status == 200


def other_method(path: str, *allowed: str) -> None:
    """Call a method that a socket does not serve, in each way."""
    found = limited(*(allowed or ("v1.Attest", "v1.Version")))
    for verb, body, kind in (
        ("GET", b"", ""),
        ("HEAD", b"", ""),
        ("POST", json.dumps(KEY).encode(), JSON_TYPE),
        ("POST", b"\x0a\x01a\x12\x07ed25519", BINARY_TYPE),
    ):
        answer = found.request(verb, path, body, {"content-type": kind})
        assert answer.status in {403, 404}, (verb, path)
        assert b"ed25519" not in answer.body


for _path in (
    *("/v1/GetKey", "/v1/IssueCert", "/v1/%47etKey", "/v1/Get%4Bey", "/v1/GetKey?domain=a"),
    *(
        "/GetKey",
        "/v0/GetKey",
        "/Attest",
        "/v0/Attest",
        "/v1//GetKey",
        "/v1/./GetKey",
        "//v1/GetKey",
    ),
    *("/v1/Attest/../GetKey", "/v1/Attest%2f..%2fGetKey", "/v1/GetKey;x", "/v1/GetKey%20"),
    *("/V1/GetKey", "/v1/getkey", "/v1/DstackGuest.GetKey", "/%76%31/GetKey", "/v0/v1/GetKey"),
):
    attacks.add("confuse", f"limited socket with {_path}", bound(other_method, _path))

LISTS: Final = {
    "of all methods": ("*",),
    "of v2": ("v2.GetKey",),
    "in other letters": ("getKey",),
    "with a space": ("Attest ",),
    "with a path": ("/v1/Attest",),
    "with two in one": ("Attest,GetKey",),
    "of none": (),
}
for _name, _methods in LISTS.items():
    attacks.add(
        "confuse",
        f"list of a limited socket {_name}",
        bound(
            lambda methods: listener_apps.check_methods(
                LimitedSocket(Path("/run/a.sock"), methods)
            ),
            _methods,
        ),
        UsageError,
        "wrong_value",
    )


@attacks.attempt("confuse", UsageError, "wrong_value")
def limited_socket_at_the_path_of_the_open_one() -> None:
    """Two listeners at one path: the last one would win."""
    one = LimitedSocket(Path("/run/../run/dstack.sock"), ["Info"])
    two = LimitedSocket(Path("/tmp/dstack.sock"), ["GetKey"])
    ListenAddresses(dstack=Path("/run/dstack.sock"), limited=[one, two]).check_limited()
