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
from tests.serve.asgi import BINARY_TYPE, Client
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


@pytest.mark.parametrize("mount", MOUNTS)
def test_limited_socket_serves_listed_methods_only(quote_only: Client, mount: str) -> None:
    """On each mount point the listed methods are served; all others are unknown methods (404)."""
    services = [one for one in listener_apps.DSTACK_SERVICES if mount in one.mounts]
    names = {name for service in services for name in service.methods}
    served = {name for name in names if quote_only.get(f"{mount}{name}").status != 404}
    assert served == names & {*QUOTE_ONLY}
    for name in {*names, *KEY_METHODS} - served:
        for response in (quote_only.get(f"{mount}{name}"), quote_only.post(f"{mount}{name}")):
            assert (response.status, response.error()) == (404, f"Service not found: {name}")


@pytest.mark.parametrize(
    "path",
    [
        *("//GetKey", "/./GetKey", "/GetQuote/../GetKey", "/%47etKey", "/getkey", "/GetKey/"),
        *("/GetKey%00", "/GetQuote,GetKey", "/DstackGuest.GetKey", "/Tappd.GetKey", "/prpc/GetKey"),
        *("/v0/../GetKey", "/v0//GetKey", "/v1/%47etKey", "/v2/GetKey", "/v0/v0/GetKey", "/v0"),
        *("/", "/docs", "/openapi.json", "/metrics", "/assets/icon.svg", "/GetQuote?x=/GetKey/a"),
    ],
)
def test_limited_socket_spellings_reach_no_other_method(quote_only: Client, path: str) -> None:
    """No spelling of a path reaches a method that is not listed, and there are no pages."""
    if path.startswith("/GetQuote?"):
        assert "key" not in quote_only.get(path).json()
        return
    for verb in ("GET", "HEAD", "POST"):
        assert quote_only.request(verb, path).status == 404
    body = quote_only.request("POST", path, b"", headers={"content-type": BINARY_TYPE})
    assert body.status == 404


def test_limited_socket_shares_methods_of_dstack_socket(
    quote_only: Client, guest: Guest, guest_client: GuestClient
) -> None:
    """A listed method gives the answer of dstack.sock, also on the fast path."""
    app = quote_only.app
    assert isinstance(app, RpcApp)
    found = app.direct(b"/Version", None)
    assert found is not None
    assert app.direct(b"/GetKey", None) is None
    assert quote_only.get("/Version").body == guest_client("dstack", guest).get("/Version").body


@pytest.mark.parametrize("methods", [(), ("GetQuote", "GetKeys"), ("",), ("getquote",), ("*",)])
def test_check_methods_invalid_list_is_refused(methods: Sequence[str]) -> None:
    """An empty list and unknown names are refused, and the error lists the methods."""
    with raises(UsageError, "wrong_value") as caught:
        listener_apps.check_methods(limited_socket(*methods))
    assert "GetQuote" in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["/run/dstack.sock"], "the path of another listener"),
        (["/run/a.sock", "/tmp/a.sock"], "two sockets with the name dstack-a"),
        (["/run/a b.sock"], "file name"),
        (["/run/.sock"], "file name"),
        (["/run/a:b.sock"], "file name"),
        ([f"/run/{n}.sock" for n in range(17)], "more than 16"),
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
        assert call(path, "GetKey").status == 404
        assert call(server.ready["dstack-signer"], "Version").status == 404
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
        assert call(path, "Info").status == 404


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
