"""Attempts to get more from the listeners for other machines and for the host than they serve."""

import json
from typing import Final

from attestkit.serve import listener_apps
from tests.attacks.attempts import Surfaces, bound
from tests.attacks.v1.on_methods import KEY, client, event_loop, guest_of
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client

attacks = Surfaces("v1")
PUBLIC: Final = {"public_sysinfo": True, "public_logs": True, "public_tcbinfo": True}


def no_key(found: Client, path: str) -> None:
    """Request a key of a listener that has none, in each encoding."""
    for verb, body, kind in (
        ("GET", b"", ""),
        ("POST", json.dumps(KEY).encode(), JSON_TYPE),
        ("POST", b"\x0a\x01a\x12\x07ed25519", BINARY_TYPE),
    ):
        answer = found.request(verb, path, body, {"content-type": kind})
        assert answer.status in {400, 404}, (verb, path, answer.status)


for _path in (
    *("/v1/GetKey", "/prpc/v1/GetKey", "/prpc/v1/IssueCert", "/prpc/v1/Attest", "/prpc/GetQuote"),
    *(
        "/prpc/v1/Worker.GetKey",
        "/prpc/Worker.Sign",
        "/prpc/v1/AttestGpu",
        "/prpc/Worker.v1/GetKey",
    ),
    *(
        "/prpc/v1/%2e%2e/GetKey",
        "/prpc/v1/DstackGuest.GetKey",
        "/assets/..%2fv1%2fGetKey",
        "/v0/GetKey",
    ),
):
    attacks.add(
        "confuse",
        f"key on the external listener at {_path}",
        bound(lambda path: no_key(client("external"), path), _path),
    )
for _path in ("/api/GetKey", "/api/v1/GetKey", "/v1/GetKey", "/api/../v1/GetKey", "/prpc/v1/Info"):
    attacks.add(
        "confuse",
        f"key for the host at {_path}",
        bound(lambda path: no_key(client("guest_api"), path), _path),
    )


@attacks.attempt("confuse")
def measurements_that_an_app_hides() -> None:
    """Neither generation, page or document of the external listener shows them."""
    hidden = guest_of(public_tcbinfo=False, public_sysinfo=False, name="secret-name-of-app")
    found = Client(listener_apps.external_app(hidden), event_loop())
    config = hidden.app_compose.compose_hash.hex()
    for path in ("/prpc/v1/Info", "/prpc/Info", "/prpc/v0/Info", "/", "/openapi.json"):
        answer = found.get(path)
        assert answer.status == 200
        assert b"docker_compose_file" not in answer.body
        assert b'"runner":"bash"' not in answer.body.replace(b"\\", b""), (path, config)
    assert found.get("/metrics").status == 404


# -- logs --------------------------------------------------------------------------------------


def log(target: str, status: int = 400) -> None:
    """Request a log that must be refused before the container engine is asked."""
    found = Client(listener_apps.external_app(guest_of(**PUBLIC)), event_loop())
    answer = found.get(target)
    assert answer.status == status, answer.body


assert guest_of(**PUBLIC).app_compose.public_logs
for _name in (
    *(
        "..%2f..%2finfo",
        "a%2fjson",
        "a%3ffollow=1",
        "a%00",
        "a%0d%0aX:%20y",
        "%2e%2e",
        "-a",
        "a%20b",
    ),
    *("a%23", "%c3%a9", "a" * 300, "a%25%32%66b"),
):
    attacks.add("confuse", f"log of a container named {_name[:20]}", bound(log, f"/logs/{_name}"))
for _query in (
    *("tail=-1", "tail=1e9", "tail=99999999999999999999", "since=-1h", "since=1y", "until=NaN"),
    *("since=18446744073709551616", "follow=2", "tail=5&tail=all", "text=%ff", "ansi=1"),
    *("since=%d9%a1", "tail=%20all"),
):
    attacks.add("confuse", f"log with {_query}", bound(log, f"/logs/a?{_query}"))
attacks.add("confuse", "log below another path", bound(log, "/logs/a/../b", 404))
attacks.add("confuse", "log without a name", bound(log, "/logs/", 404))
