"""Attempts on the access tokens of the external listener."""

import json
from functools import cache
from time import process_time
from typing import Any, Final

from attestkit.serve import listener_apps
from attestkit.serve.external_auth.access_control import ExternalAuth, check_scopes
from tests.attacks.attempts import Surfaces, bound
from tests.attacks.v1.on_methods import Refusal, event_loop, guest_of
from tests.serve.asgi import Client
from tests.serve.external_auth.tokens import HEADER, OTHER_KEY, make_token, sign_parts
from tests.serve.external_auth.tokens import KEY as SIGNER
from tests.serve.guests import NOW

attacks = Surfaces("v1")
PUBLIC: Final = {"public_sysinfo": True, "public_logs": True, "public_tcbinfo": True}


@cache
def guarded(*anonymous: str) -> Client:
    """Return a client of an external listener that requires tokens, from another machine."""
    auth = ExternalAuth((OTHER_KEY.public_key, SIGNER.public_key), check_scopes(anonymous))
    found = Client(listener_apps.external_app(guest_of(**PUBLIC), auth=auth), event_loop())
    found.peer = ("192.0.2.1", 4711)
    return found


@cache
def app_id() -> str:
    """Return the audience of tokens."""
    return guest_of(**PUBLIC).decode_evidence().info.app_id.hex()


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a token for the metrics."""
    return {"exp": NOW + 300, "aud": app_id(), "scope": "metrics", **changes}


def ask(token: bytes, path: str = "/metrics", status: int = 401) -> None:
    """Send a request with a token that must be refused."""
    headers = {"authorization": f"Bearer {token.decode('latin-1')}"}
    Refusal(status).check(guarded().get(path, **headers))


assert (
    guarded().get("/metrics", authorization=f"Bearer {make_token(claims()).decode()}").status == 200
)
TOKENS: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "for another app": ({"aud": "00" * 20}, 401),
    "for an app in capitals": ({"aud": app_id().upper()}, 401),
    "for no app": ({"aud": []}, 401),
    "for apps in a list in a list": ({"aud": [[app_id()]]}, 401),
    "for an app with a prefix": ({"aud": f"0x{app_id()}"}, 401),
    "for 17 apps": ({"aud": [app_id()] * 17}, 401),
    "that ended": ({"exp": NOW - 61}, 401),
    "that never ends": ({"exp": None}, 401),
    "that ends after 53 bits": ({"exp": 1 << 53}, 401),
    "that ends at a text": ({"exp": str(NOW + 300)}, 401),
    "that ends at true": ({"exp": True}, 401),
    "of the future": ({"nbf": NOW + 61}, 401),
    "issued in the future": ({"iat": NOW + 61}, 401),
    "with a list of scopes": ({"scope": ["metrics"]}, 401),
    "with a scope in capitals": ({"scope": "METRICS"}, 403),
    "with a scope and a tab": ({"scope": "info\tmetrics"}, 403),
    "with a scope and a line end": ({"scope": "info\nmetrics"}, 403),
    "with a scope that is longer": ({"scope": "metrics.read"}, 403),
    "with every scope by a star": ({"scope": "*"}, 403),
    "without a scope": ({"scope": ""}, 403),
    "with a scope under another name": ({"scope": "", "scp": "metrics"}, 403),
    "with a long scope": ({"scope": "metrics " * 200}, 401),
}
for _name, (_changes, _status) in TOKENS.items():
    attacks.add(
        "forge",
        f"token {_name}",
        bound(
            lambda changes, status: ask(make_token(claims(**changes)), status=status),
            _changes,
            _status,
        ),
    )

TEXTS: Final = {
    "scope twice": '{"exp":%d,"aud":"%s","scope":"version","scope":"metrics"}',
    "scope twice, once escaped": '{"exp":%d,"aud":"%s","scope":"version","\\u0073cope":"metrics"}',
    "audience twice": '{"exp":%d,"aud":"%s","scope":"metrics","aud":"x"}',
    "byte order mark": '\ufeff{"exp":%d,"aud":"%s","scope":"metrics"}',
    "text behind the claims": '{"exp":%d,"aud":"%s","scope":"metrics"}{}',
    "claims in a list": '[{"exp":%d,"aud":"%s","scope":"metrics"}]',
    "time that is no number": '{"nbf":NaN,"exp":%d,"aud":"%s","scope":"metrics"}',
    "time without an end": '{"iat":-Infinity,"exp":%d,"aud":"%s","scope":"metrics"}',
}
for _name, _text in TEXTS.items():
    attacks.add(
        "confuse",
        f"token with {_name}",
        bound(
            lambda text: ask(
                sign_parts(json.dumps(HEADER).encode(), (text % (NOW + 300, app_id())).encode())
            ),
            _text,
        ),
    )

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "without an algorithm": {"alg": "none"},
    "with a shared secret": {"alg": "HS256"},
    "with an algorithm in capitals": {"alg": "EDDSA"},
    "with an algorithm as a list": {"alg": ["EdDSA"]},
    "of an attestation result": {"typ": "eat+jwt"},
    "of a key's proof": {"typ": "dpop+jwt"},
    "with a key of its own": {"jwk": {"kty": "OKP"}},
    "with an address of keys": {"jku": "https://evil.example"},
    "with a critical name": {"crit": ["exp"]},
    "with a path as key": {"kid": "/" * 257},
    "that is compressed": {"zip": "DEF"},
}
for _name, _header in HEADERS.items():
    attacks.add(
        "confuse",
        f"header of a token {_name}",
        bound(lambda header: ask(make_token(claims(), {**HEADER, **header})), _header),
    )

SPELLINGS: Final = {
    "with padding": lambda token: token + b"=",
    "with another last character": lambda token: token[:-1] + bytes([token[-1] ^ 1]),
    "in base64 with a plus": lambda token: token.replace(b".", b".+", 1),
    "with a fourth part": lambda token: token + b".e30",
    "with an empty signature": lambda token: token.rpartition(b".")[0] + b".",
    "twice": lambda token: token + b"," + token,
    "of 9,000 characters": lambda token: token + b"A" * 9000,
}
for _name, _change in SPELLINGS.items():
    attacks.add(
        "forge",
        f"token {_name}",
        bound(lambda change: ask(change(make_token(claims()))), _change),
    )

REACHED: Final = (
    *("/prpc/v1/Info", "/prpc/Info", "/prpc/v0/Worker.Info", "/", "/logs/a", "/prpc/v1/Health"),
    *("/prpc/Worker.GetAttestationForAppKey?algorithm=ed25519", "/prpc/%49nfo", "/openapi.json"),
)
for _path in REACHED:
    attacks.add(
        "relay",
        f"token for the metrics at {_path}",
        bound(lambda path: ask(make_token(claims()), path, 403), _path),
    )


@attacks.attempt("relay")
def token_of_another_guest_of_one_owner() -> None:
    """The audience is the app, not the key that signs for all apps of an owner."""
    ask(make_token(claims(aud=guest_of(name="other").decode_evidence().info.app_id.hex())))


@attacks.attempt("confuse")
def address_of_this_machine_in_a_header() -> None:
    """Only the peer's own address is local, not what a client or proxy states."""
    for name in ("x-forwarded-for", "x-real-ip", "forwarded", "client-ip"):
        headers = {name: "127.0.0.1", "host": "localhost"}
        assert guarded().get("/prpc/Version", **headers).status == 401


@attacks.attempt("exhaust")
def tokens_of_many_keys() -> None:
    """Forged tokens cost two signatures each at most, and no evidence."""
    forged = make_token(claims(), key=type(SIGNER)(b"\x55" * 32))
    started = process_time()
    for _ in range(200):
        ask(forged)
    assert process_time() - started < 1
