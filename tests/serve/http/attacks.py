"""Malformed and hostile raw requests, each with its acceptable outcomes.

No listener may execute a hidden request: `SMUGGLED` is an event that must never be in the log. The
external listener must never return a key.
"""

import socket
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

SMUGGLED = "smuggled"
_EVENT = f'{{"event":"{SMUGGLED}","payload":""}}'.encode()
_HIDDEN = (
    b"POST /EmitEvent HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_EVENT), _EVENT)
)
_KEY = b"POST /GetKey HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


class Attack(NamedTuple):
    """The bytes to send, and the acceptable sequences of statuses before the connection ends."""

    name: str
    listener: str  # dstack or http
    parts: Sequence[bytes]
    answers: Sequence[list[int]]  # each a possible outcome; [] is a close without a response
    after: Callable[[socket.socket], None] | None = None  # called before the responses are read


def read_statuses(received: bytes) -> list[int]:
    """Return the status of each response; fail if a response is incomplete."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        version, status, _ = lines[0].split(b" ", 2)
        assert version == b"HTTP/1.1"
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        found.append(int(status))
        size = int(fields[b"content-length"])
        assert len(rest) >= size
        received = rest[size:]
    return found


_JSON = b"Content-Type: application/json"


def _get(target: bytes, *headers: bytes, version: bytes = b"1.1", verb: bytes = b"GET") -> bytes:
    lines = [verb + b" " + target + b" HTTP/" + version, b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return _get(b"/Version", *headers, version=version, verb=b"POST") + body


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def _chunked(start: bytes) -> bytes:
    return _post(_JSON, b"Transfer-Encoding: chunked", body=start)


# Ends the connection, where further requests are not tested; otherwise the server waits for one.
_LAST = b"Connection: close"
_REFUSED: Sequence[list[int]] = ([400],)
_LENGTHS = [
    (b"5, 5", "two lengths in one header"),
    (b"+5", "length with a plus"),
    (b"-1", "negative length"),
    (b"0x5", "length in hex"),
    (b"5 5", "length with a blank inside"),
    (b"18446744073709551616", "length over 64 bits"),
    (b"", "empty length"),
    (b"1e1", "length with an exponent"),
]
_CODINGS = [
    (b"Transfer-Encoding: xchunked", "unknown coding"),
    (b"Transfer-Encoding: chunked, identity", "chunked is not the last coding"),
    (b"Transfer-Encoding : chunked", "blank before the colon"),
    (b"Transfer-Encoding: \x0bchunked", "vertical tab before the coding"),
    (b"Transfer-Encoding:\r\n chunked", "folded coding"),
]
_CHUNKS = [
    (b"-1\r\nx\r\n0\r\n\r\n", "negative chunk"),
    (b"10000000000000000\r\nx", "chunk over 64 bits"),
    (b"0x5\r\nhello\r\n0\r\n\r\n", "chunk size with 0x"),
    (b"5 x\r\nhello\r\n0\r\n\r\n", "chunk size with garbage"),
    (b"5\nhello\n0\n\n", "chunks with bare line feeds"),
    (b"5\r\nhelloXX0\r\n\r\n", "chunk without its end"),
    (b"\r\nhello\r\n0\r\n\r\n", "chunk without a size"),
]
_HEADS = [
    (b"GET /Version HTTP/1.1\r\nX: a\rb\r\n\r\n", "bare carriage return"),
    (b"GET /Version HTTP/1.1\r\nX: a\0b\r\n\r\n", "zero byte in a value"),
    (b"GET /Ver\0sion HTTP/1.1\r\n\r\n", "zero byte in the target"),
    (b"GET /Version HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "folded header"),
    (b"GET /Version HTTP/1.1\r\nX y: a\r\n\r\n", "blank in a name"),
    (b"GET /Version HTTP/1.1\r\nnonsense\r\n\r\n", "header without a colon"),
    (b"GET /Version HTTP/1.1\r\n: a\r\n\r\n", "header without a name"),
    (b"G\xc3\x8bT /Version HTTP/1.1\r\n\r\n", "method beyond ASCII"),
    (b"get /Version HTTP/1.1\r\n\r\n", "method in lower case"),
    (b"BREW /Version HTTP/1.1\r\n\r\n", "unknown method"),
    (b"GET /Version\r\n\r\n", "HTTP/0.9"),
    (b"GET /Version HTTP/2.0\r\n\r\n", "HTTP/2.0 in text"),
    (b"GET /Version HTTP/1.1.1\r\n\r\n", "three numbers of a version"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "preface of HTTP/2"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), "hello of TLS"),
    (b"SSH-2.0-OpenSSH_9.9\r\n", "greeting of SSH"),
    (b"CONNECT x:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", "CONNECT"),
    (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "asterisk"),
]
TARGETS = [
    b"http://x/GetKey",
    b"http://dstack/GetKey?path=a",
    b"/GetKey",
    b"/GetKey?json",
    b"//GetKey",
    b"/prpc/../GetKey",
    b"/prpc/Worker.Info/../../GetKey",
    b"/%2e%2e/GetKey",
    b"/prpc%2F..%2FGetKey",
    b"/prpc/%2e%2e%2fGetKey",
    b"/prpc\\..\\GetKey",
    b"/prpc/DstackGuest.GetKey",
    b"/prpc/Worker.GetKey",
    b"/prpc/Worker.Worker.GetKey",
    b"/prpc/Tappd.DeriveKey",
    b"/prpc/DeriveK256Key",
    b"/prpc;x/GetKey",
    b"/prpc/GetKey/",
    b"/logs/../GetKey",
    b"/logs/..%2FGetKey",
    *(
        start + b"GetKey?domain=a&algorithm=ed25519"
        for start in (
            *(b"/v1/", b"/v0/", b"/prpc/v1/", b"/prpc/v0/", b"/prpc/v0/Worker.", b"//v1/"),
            *(b"http://dstack/v1/", b"/prpc/../v1/", b"/prpc/v1/../../v1/", b"/%76%31/"),
            *(b"/v1%2F", b"/prpc/v1%2F", b"/prpc%2Fv1%2F", b"/prpc/v1/DstackGuest.", b"/v1;x/"),
        )
    ),
]


def _attacks(
    listener: str, rows: "Sequence[tuple[str, Sequence[bytes], Sequence[list[int]]]]"
) -> list[Attack]:
    return [Attack(name, listener, parts, answers) for name, parts, answers in rows]


def create_framing_attacks() -> list[Attack]:
    """Return requests whose length is ambiguous or malformed."""
    both = _post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + _HIDDEN)
    old = _post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + _HIDDEN, version=b"1.0")
    inside = b"Content-Length: %d" % len(_HIDDEN)
    two = _post(b"Content-Length: 0", inside, body=_HIDDEN)
    malformed = [
        *((name, _post(b"Content-Length: " + length, body=_HIDDEN)) for length, name in _LENGTHS),
        *((name, _post(coding, body=b"0\r\n\r\n" + _HIDDEN)) for coding, name in _CODINGS),
        *((name, _chunked(chunks + _HIDDEN)) for chunks, name in _CHUNKS),
    ]
    return _attacks(
        "dstack",
        [
            ("length and chunks", [both], _REFUSED),
            ("chunks in HTTP/1.0", [old], ([400], [200])),
            ("a request as the body of GET", [_get(b"/Version", inside) + _HIDDEN], ([200],)),
            ("a request as the body of POST", [_post(inside, body=_HIDDEN)], ([200],)),
            ("two lengths", [two], _REFUSED),
            ("twice the same length", [_post(inside, inside, body=_HIDDEN)], _REFUSED),
            *((name, [request], _REFUSED) for name, request in malformed),
        ],
    )


def create_head_attacks() -> list[Attack]:
    """Return malformed and oversized heads."""
    many = [b"X-%d: y" % number for number in range(200)]
    other = [b"X-HTTP-Method-Override: POST", b"X-Original-URL: /GetKey", _LAST]
    upgrade = [b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2"]
    upgraded = _post(*upgrade, body=b"{}" + _KEY)
    return [
        *(Attack(name, "http", [head], ([400], [404])) for head, name in _HEADS),
        Attack("another protocol with a body", "dstack", [upgraded], ([200, 200], [400])),
        *_attacks(
            "http",
            [
                ("two hosts", [_get(b"/prpc/Version", b"Host: y")], ([400],)),
                ("HTTP/1.2", [_get(b"/nope", version=b"1.2")], ([400],)),
                ("bare line feeds", [b"GET /GetKey HTTP/1.1\nHost: x\n\n"], ([400], [404])),
                ("200 headers", [_get(b"/prpc/Version", *many)], ([431],)),
                ("a long target", [_get(b"/" + b"a" * 40_000)], ([431],)),
                ("a long header", [_get(b"/", b"X: " + b"a" * 40_000)], ([431],)),
                ("an endless header", [b"GET / HTTP/1.1\r\nX: ", *[b"a" * 9000] * 40], ([431],)),
                ("a target of 20 kB", [_get(b"/" + b"a" * 20_000, _LAST)], ([404],)),
                ("an unknown expectation", [_get(b"/prpc/Version", b"Expect: x")], ([200],)),
                ("another method in a header", [_get(b"/prpc/Version", *other)], ([200],)),
                ("line breaks in a target", [_get(b"/a%0d%0aX:%20y")], ([404],)),
            ],
        ),
    ]


def create_request(verb: bytes, target: bytes, body: bytes = b"", kind: bytes = b"") -> bytes:
    """Return a request that is the last of its connection."""
    length = b"Content-Length: %d" % len(body)
    return _get(target, b"Content-Type: " + kind, length, _LAST, verb=verb) + body


def create_target_attacks() -> list[Attack]:
    """Return targets that try to reach methods of the unix sockets from the external listener."""
    return [
        Attack(f"target {target.decode()}", "http", [_get(target, _LAST)], ([404], [400]))
        for target in TARGETS
    ]


_START = b"POST /Version HTTP/1.1\r\nHost: localhost\r\n"
_BODY = b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"


def create_slow_attacks() -> list[Attack]:
    """Return clients that stop sending."""
    return _attacks(
        "dstack",
        [
            ("half a head", [_START], ([408],)),
            ("half a body", [_START + _BODY + b"{"], ([408],)),
            ("a promised body", [_START + b"Expect: 100-continue\r\n" + _BODY], ([408],)),
            ("nothing", [], ([],)),
            ("line ends and nothing else", [b"\r\n"] * 20, ([],)),
        ],
    )


def create_disconnect_attacks() -> list[Attack]:
    """Return clients that disconnect, half-close, or do not read the responses."""
    version, page, ask = _get(b"/prpc/Version"), _get(b"/docs"), _get(b"/Info")
    mixed = (page + version) * 20
    return [
        Attack("half a head, then gone", "dstack", [_START], ([],), _reset),
        Attack("half a body, then gone", "dstack", [_START + _BODY + b"{"], ([],), _reset),
        Attack("a request, then gone", "http", [_get(b"/")], ([],), _reset),
        Attack("1000 requests, then gone", "dstack", [ask * 1000], ([],), _reset),
        Attack("a request, then EOF", "dstack", [ask], ([200],), _half_close),
        Attack("2000 requests, then EOF", "http", [version * 2000], ([200] * 2000,), _half_close),
        Attack("pages, then EOF", "http", [mixed], ([200] * 40,), _half_close),
        Attack("half a head, then EOF", "dstack", [_START], ([],), _half_close),
        Attack("pages, half a head, EOF", "http", [page * 20 + _START], ([200] * 20,), _half_close),
        Attack("2000 requests at once", "http", [version * 2000], ([200] * 2000,)),
    ]


def create_large_attacks() -> list[Attack]:
    """Return oversized bodies and deeply nested JSON."""
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    large = _post(_JSON, b"Content-Length: 100000000")
    deep = b"[" * 100_000
    nested = _get(b"/GetKey", _JSON, b"Content-Length: %d" % len(deep), verb=b"POST") + deep
    return _attacks(
        "dstack",
        [
            ("a body of 100 MB", [large, *[bytes(65536)] * 64], ([413],)),
            ("endless trailers", [_chunked(b"0\r\n"), *[b"x: y\r\n" * 1000] * 40], ([431],)),
            ("an endless trailer", [_chunked(b"0\r\nx: "), *[b"y" * 6000] * 40], ([431],)),
            ("an endless chunk extension", [_chunked(b"1;x="), *[b"y" * 6000] * 40], ([431],)),
            ("an endless body", [_chunked(b""), *[chunk] * 400], ([413], [])),
            ("deep JSON", [nested], ([400],)),
        ],
    )


def on_mount(attack: Attack, listener: str, mount: bytes) -> Attack:
    """Return the same attack on a method of v1, which may also refuse the body."""
    first, *others = attack.parts
    for method in (b"Version", b"GetKey"):
        first = first.replace(b" /%b HTTP" % method, b" %b%b HTTP" % (mount, method), 1)
    name = f"{attack.name} at {mount.decode()}"
    # The external listener reads less of a body for a path that it does not have.
    may_refuse = [200] in attack.answers or [400] in attack.answers
    refused = [[400], [404], [413]] if may_refuse else []
    return Attack(name, listener, [first, *others], [*attack.answers, *refused], attack.after)


ATTACKS = [
    *(
        on_mount(attack, listener, mount)
        for listener, mount in (("dstack", b"/v1/"), ("http", b"/prpc/v1/"))
        for attack in (*create_framing_attacks(), *create_large_attacks())
    ),
    *create_framing_attacks(),
    *create_head_attacks(),
    *create_target_attacks(),
    *create_slow_attacks(),
    *create_disconnect_attacks(),
    *create_large_attacks(),
]
