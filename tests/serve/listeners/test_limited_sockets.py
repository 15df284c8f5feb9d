"""Unix sockets that are limited to a list of methods."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from attestkit.errors import UsageError
from attestkit.serve import listener_apps
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import LimitedSocket, ListenAddresses
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services.context import Guest
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client
from tests.serve.client import call, get
from tests.serve.guests import GuestClient
from tests.serve.server import refusal, running_server

QUOTE_ONLY = ("GetQuote", "Info", "Version")
MOUNTS = tuple(mount for one in listener_apps.DSTACK_SERVICES for mount in one.mounts)
KEY_METHODS = ("GetTlsKey", "GetKey", "Sign", "EmitEvent", "IssueCert", "DeriveKey")


def limited_socket(*methods: str, path: str = "/run/quote-only.sock") -> LimitedSocket:
    """Return a socket that is limited to `methods`."""
    return LimitedSocket(Path(path), methods)


@pytest.fixture
def quote_only(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of a socket with three methods."""
    client = guest_client("dstack", guest)
    client.app = listener_apps.limited_app(guest, limited_socket(*QUOTE_ONLY))
    return client


def methods_at(mount: str) -> set[str]:
    """Return the names of the methods of dstack.sock at a mount point."""
    services = [one for one in listener_apps.DSTACK_SERVICES if mount in one.mounts]
    return {name for service in services for name in service.methods}


@pytest.mark.parametrize("mount", MOUNTS)
def test_limited_socket_serves_listed_methods_only(quote_only: Client, mount: str) -> None:
    """On each mount point the listed methods are served; all others are refused (403)."""
    names = methods_at(mount)
    for name in sorted(names | {*KEY_METHODS}):
        for response in (quote_only.get(f"{mount}{name}"), quote_only.post(f"{mount}{name}")):
            if name in QUOTE_ONLY:
                assert response.status == (200 if name in names else 404)
            elif name in names:
                assert response.status == 403
                assert response.error().startswith(f"{name}: not allowed on this socket")
            else:
                assert (response.status, response.error()) == (404, f"Service not found: {name}")


@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("content_type", [JSON_TYPE, BINARY_TYPE, "text/plain"])
def test_limited_socket_runs_no_other_method(
    quote_only: Client, guest: Guest, verb: str, content_type: str
) -> None:
    """A refused request changes nothing and is not decoded, in any encoding."""
    registers = guest.attester.registers()
    for body in (b"", b"{", b'{"event":"a","payload":"00"}', b"\x0a\x01a"):
        for target in ("/EmitEvent?event=a&payload=00", "/v0/EmitEvent", "/%45mitEvent?event=a"):
            response = quote_only.request(verb, target, body, {"content-type": content_type})
            assert response.status == 403
    assert guest.attester.registers() == registers


@pytest.mark.parametrize(
    ("methods", "served"),
    [
        (["v1.Info"], {"/v1/Info"}),
        (["v0.Info"], {"/Info", "/v0/Info"}),
        (["Info"], {"/Info", "/v0/Info", "/v1/Info"}),
        (["v1.GetKey", "v0.Sign"], {"/v1/GetKey", "/Sign", "/v0/Sign"}),
        (["v1.Version", "Version"], {"/Version", "/v0/Version", "/v1/Version"}),
    ],
)
def test_limited_socket_of_one_generation(
    guest: Guest, guest_client: GuestClient, methods: list[str], served: set[str]
) -> None:
    """A name with the generation of the API holds for its mount points only."""
    client = guest_client("dstack", guest)
    client.app = listener_apps.limited_app(guest, limited_socket(*methods))
    every = {f"{mount}{name}" for mount in MOUNTS for name in methods_at(mount)}
    assert {path for path in every if client.get(path).status != 403} == served


@every_case(
    "path",
    [
        *("//GetKey", "/./GetKey", "/GetQuote/../GetKey", "/%67etkey", "/getkey", "/GetKey/"),
        *("/GetKey%00", "/GetQuote,GetKey", "/DstackGuest.GetKey", "/Tappd.GetKey", "/prpc/GetKey"),
        *("/v0/../GetKey", "/v0//GetKey", "/v1.GetKey", "/v2/GetKey", "/v0/v0/GetKey", "/v0"),
        *("/", "/docs", "/openapi.json", "/metrics", "/assets/icon.svg", "/GetQuote?x=/GetKey/a"),
        *("/%47etKey", "/v1/%47etKey", "/v0/Get%4Bey?path=a"),
    ],
)
def test_limited_socket_spellings_reach_no_other_method(quote_only: Client, path: str) -> None:
    """No spelling of a path reaches a method that is not listed, and there are no pages."""
    if path.startswith("/GetQuote?"):
        assert "key" not in quote_only.get(path).json()
        return
    status = 403 if "%47" in path or "%4B" in path else 404  # GetKey, escaped
    for verb in ("GET", "HEAD", "POST"):
        assert quote_only.request(verb, path).status == status
    body = quote_only.request("POST", path, b"", headers={"content-type": BINARY_TYPE})
    assert body.status == status


def test_limited_socket_shares_methods_of_dstack_socket(
    quote_only: Client, guest: Guest, guest_client: GuestClient
) -> None:
    """A listed method gives the answer of dstack.sock, also on the fast path."""
    app = quote_only.app
    assert isinstance(app, RpcApp)
    found = app.direct(b"/Version", None)
    assert found is not None
    refused = app.direct(b"/GetKey", None)
    assert refused is not None
    assert app.respond(refused, b"/GetKey", b"", None)[0] == 403
    assert quote_only.get("/Version").body == guest_client("dstack", guest).get("/Version").body


@every_case(
    "methods",
    [
        (),
        ("GetQuote", "GetKeys"),
        ("",),
        ("getquote",),
        ("*",),
        ("v1.Sign",),
        ("v2.Info",),
        ("v1.",),
        ("v1.*",),
        ("/v1/Info",),
    ],
)
def test_check_methods_invalid_list_is_refused(methods: Sequence[str]) -> None:
    """An empty list and unknown names are refused, and the error lists the methods."""
    with raises(UsageError, "wrong_value") as caught:
        listener_apps.check_methods(limited_socket(*methods))
    assert "GetQuote" in str(caught.value)


@every_case(
    ("paths", "problem"),
    [
        (["/run/dstack.sock"], "is the path of two listeners"),
        (["/run/a.sock", "/tmp/a.sock"], "two sockets have the name dstack-a"),
        (["/run/a b.sock"], "file name"),
        (["/run/.sock"], "file name"),
        (["/run/a:b.sock"], "file name"),
        ([f"/run/{n}.sock" for n in range(17)], "at most 16"),
    ],
)
def test_check_limited_invalid_path_is_refused(paths: list[str], problem: str) -> None:
    """A path must be free, with a file name that is suitable for a listener and unique."""
    limited = [limited_socket("Info", path=path) for path in paths]
    with raises(UsageError, "wrong_value") as caught:
        ListenAddresses(dstack=Path("/run/dstack.sock"), limited=limited).check_limited()
    assert problem in str(caught.value)


def test_limited_socket_of_program(folder: Path) -> None:
    """The option is repeatable; mode and ready line are those of the other sockets."""
    with running_server(
        *("--socket", f"{folder}/quote-only.sock=GetQuote, Info,Version"),
        *("--socket", "own.sock", "--socket", "signer.sock=Sign", "--socket-mode", "640"),
        "--json",
        folder=folder,
    ) as server:
        assert server.ready["dstack"] == f"{folder}/own.sock"
        path = server.ready["dstack-quote-only"]
        assert path == f"{folder}/quote-only.sock"
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640
        assert call(path, "Version").status == 200
        assert call(path, "GetKey").status == 403
        assert call(server.ready["dstack-signer"], "Version").status == 403
        assert call(server.dstack, "GetKey").status == 200
        metrics = get(server.url, "/prpc/Worker.Version")
        assert metrics.status == 200
        assert json.loads(server.line)["methods"] == {
            "dstack-quote-only": ["GetQuote", "Info", "Version"],
            "dstack-signer": ["Sign"],
        }
        assert f"GetQuote, Info, Version only: {path}" in server.log()
        server.stop()
        assert not Path(path).exists()
        server.check_log()


def test_limited_socket_alone(guest: Guest, folder: Path) -> None:
    """A server may have limited sockets only."""
    limited = [LimitedSocket(folder / "quote-only.sock", ["Version"])]
    with BackgroundServer(guest.attester, ListenAddresses(limited=limited)) as ready:
        assert str(ready) == f"ready dstack-quote-only={folder}/quote-only.sock"
        path = str(ready.addresses["dstack-quote-only"])
        assert call(path, "Version").status == 200
        assert call(path, "Info").status == 403


@pytest.mark.parametrize(
    "value", ["q.sock=", "q.sock= ", "q.sock=Info,", "q.sock=Info,GetKeys", "none=Info", "=Info"]
)
def test_limited_socket_option_invalid_is_refused(folder: Path, value: str) -> None:
    """The program does not start with an empty list, an unknown name or no path."""
    line = refusal(
        *("--backend", "simulator", "--dir", ".", "--http", "none", "--socket", value),
        folder=folder,
        code=1,
    )
    assert "--socket" in line
    assert not (folder / "q.sock").exists()
