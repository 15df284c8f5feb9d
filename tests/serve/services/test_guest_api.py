"""GuestApi, which the host reads over vsock: methods, hiding, and Shutdown."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from attestkit.errors import BackendUnavailableError
from attestkit.serve import listener_apps
from attestkit.serve.docker.engine import Container
from attestkit.serve.docker.responses import read_list
from attestkit.serve.rpc import messages_guest_api as messages
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.rpc.message_fields import fields_of
from attestkit.serve.rpc.protobuf_codec import encode
from attestkit.serve.services import guest_api
from attestkit.serve.services.context import Guest
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client
from tests.serve.guests import GuestClient, MakeGuest

METHODS = ("Info", "SysInfo", "GpuInfo", "NetworkInfo", "ListContainers", "Shutdown")
# Numbers of the fields, as in dstack's protobuf files.
NUMBERS: Mapping[type[NamedTuple], str] = {
    messages.GuestInfo: "1 version 2 app_id 3 instance_id 4 app_cert 5 tcb_info 6 device_id",
    messages.SystemInfo: "1 os_name 2 os_version 3 kernel_version 4 cpu_model 5 num_cpus "
    "6 total_memory 7 available_memory 8 used_memory 9 free_memory 10 total_swap 11 used_swap "
    "12 free_swap 13 uptime 14 loadavg_one 15 loadavg_five 16 loadavg_fifteen 17 disks",
    messages.DiskInfo: "1 name 2 mount_point 3 total_size 5 free_size",
    messages.NetworkInfo: "1 dns_servers 2 gateways 3 interfaces 4 wg_info",
    messages.Gateway: "1 address",
    messages.Interface: "1 name 2 addresses 3 rx_bytes 4 tx_bytes 5 rx_errors 6 tx_errors",
    messages.IpAddress: "1 address 2 prefix",
    messages.ContainerList: "1 containers",
    messages.ContainerInfo: "1 id 2 names 3 image 4 image_id 6 created 7 state 8 status",
    messages.GpuInfo: "1 gpus 2 error 3 cc_ready 4 cc_enabled 5 sample_age_ms",
    messages.Gpu: "1 index 2 uuid 3 pci_bus_id 4 utilization_gpu 5 utilization_memory "
    "6 memory_total_bytes 7 memory_used_bytes 8 memory_free_bytes 9 temperature_c "
    "10 power_usage_mw 11 errors",
}
CONTAINER = Container(
    id="ab" * 32,
    image="nginx",
    state="running",
    status="Up 2 hours",
    names=("/web",),
    image_id="sha256:cd",
    created=1_700_000_000,
)


class Engine:
    """A container engine with one container, or without a response."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def list_containers(self) -> list[Container]:
        """Return the container."""
        if self.error is not None:
            raise self.error
        return [CONTAINER]


@pytest.fixture
def host(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of the host's listener."""
    return guest_client("guest_api", guest)


def test_messages_have_documented_numbers() -> None:
    """The numbers of all fields are those of the protocol."""
    for message, numbers in NUMBERS.items():
        assert " ".join(f"{one.number} {one.name}" for one in fields_of(message)) == numbers


def test_guest_info(host: Client, guest: Guest, guest_client: GuestClient) -> None:
    """Info has the values of dstack.sock, in JSON and protobuf."""
    found, full = host.get("/api/Info").json(), guest_client("dstack", guest).get("/Info").json()
    assert list(found) == ["version", "app_id", "instance_id", "app_cert", "tcb_info", "device_id"]
    assert {**found, "version": ""} == {
        name: "" if name == "version" else full[name] for name in found
    }
    assert found["version"] == guest.release.version
    assert found["tcb_info"]
    binary = host.request("POST", "/api/Info", b"", {"content-type": BINARY_TYPE})
    assert bytes.fromhex(found["app_id"]) in binary.body


def test_guest_info_hides_what_the_app_hides(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Without public_tcbinfo the host gets no measurements and no compose file."""
    host = guest_client("guest_api", make_guest(compose={"public_tcbinfo": False}))
    assert host.get("/api/Info").json()["tcb_info"] == ""


def test_sys_info(host: Client) -> None:
    """SysInfo has the figures of the machine."""
    found = host.get("/api/SysInfo").json()
    assert found["total_memory"] == found["used_memory"] + found["available_memory"]
    assert found["num_cpus"] >= 1
    assert [list(disk) for disk in found["disks"]] == [
        ["name", "mount_point", "total_size", "free_size"]
    ] * len(found["disks"])
    assert host.post("/api/SysInfo").status == 200


def test_gpu_info_without_gpu_is_empty(host: Client) -> None:
    """Without a GPU all fields are empty."""
    assert host.get("/api/GpuInfo").json() == {
        "gpus": [],
        "error": "",
        "cc_ready": None,
        "cc_enabled": None,
        "sample_age_ms": None,
    }
    assert host.request("POST", "/api/GpuInfo", b"", {"content-type": BINARY_TYPE}).body == b""
    gpu = messages.Gpu(index=1, utilization_gpu=0, errors=("x",))
    assert b"".join(encode(messages.GpuInfo((gpu,), cc_ready=False))) == bytes.fromhex(
        "0a07080120005a01781800"
    )


def test_network_info(host: Client) -> None:
    """NetworkInfo has the configuration of this machine."""
    found = host.get("/api/NetworkInfo").json()
    assert list(found) == ["dns_servers", "gateways", "interfaces", "wg_info"]
    assert found["wg_info"] == ""


def test_list_containers(host: Client, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """ListContainers has the containers of the engine, or its error."""
    monkeypatch.setattr(guest, "containers", Engine())
    assert host.get("/api/ListContainers").json() == {
        "containers": [
            {
                "id": "ab" * 32,
                "names": ["/web"],
                "image": "nginx",
                "image_id": "sha256:cd",
                "created": 1_700_000_000,
                "state": "running",
                "status": "Up 2 hours",
            }
        ]
    }
    error = BackendUnavailableError("container engine: gone", reason="cannot_connect")
    monkeypatch.setattr(guest, "containers", Engine(error))
    response = host.get("/api/ListContainers")
    assert (response.status, response.error()) == (500, "container engine: gone")


def test_container_ids_of_docker() -> None:
    """The engine's names of the fields are read; both are optional."""
    [found] = read_list(
        b'[{"Id":"%b","Image":"a","ImageID":"sha256:b","State":"c","Status":"d","Created":5}]'
        % (b"ab" * 32)
    )
    assert (found.image_id, found.created) == ("sha256:b", 5)


@pytest.mark.parametrize("enabled", [False, True])
def test_shutdown_of_simulator_powers_nothing_off(
    guest: Guest, host: Client, monkeypatch: pytest.MonkeyPatch, *, enabled: bool
) -> None:
    """A simulator accepts Shutdown and never powers off the machine that runs it."""
    monkeypatch.setattr(guest_api, "power_off", pytest.fail)
    host.app = listener_apps.guest_api_app(guest, shutdown=enabled)
    assert host.post("/api/Shutdown").status == 200
    assert host.get("/api/Info").status == 200


def test_shutdown_of_hardware_must_be_enabled(
    guest: Guest, host: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On hardware Shutdown is refused unless the server allows it."""
    off: list[None] = []
    monkeypatch.setattr(guest_api, "power_off", lambda: off.append(None))
    monkeypatch.setattr(type(guest.attester), "simulated", property(lambda _: False))
    for verb in ("GET", "POST", "HEAD"):
        assert host.request(verb, "/api/Shutdown").status == 400
    assert not off
    host.app = listener_apps.guest_api_app(guest, shutdown=True)
    response = host.post("/api/Shutdown")
    assert (response.status, response.body) == (200, b"null")
    assert off == [None]
    for kind in (BINARY_TYPE, JSON_TYPE, "text/plain"):
        assert host.request("POST", "/api/Shutdown", b"", {"content-type": kind}).status == 200
    assert len(off) == 4


@pytest.mark.parametrize("verb", ["GET", "HEAD", "PUT", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", ["/api/Shutdown", "/api/%53hutdown", "/api/Shutdown?json"])
def test_shutdown_requires_post(
    guest: Guest, host: Client, monkeypatch: pytest.MonkeyPatch, path: str, verb: str
) -> None:
    """GET and HEAD are safe: neither they nor other verbs power a machine off."""
    monkeypatch.setattr(guest_api, "power_off", pytest.fail)
    monkeypatch.setattr(type(guest.attester), "simulated", property(lambda _: False))
    host.app = listener_apps.guest_api_app(guest, shutdown=True)
    assert isinstance(host.app, RpcApp)
    assert host.app.direct(path.encode(), None) is None
    response = host.request(verb, path)
    assert response.status == (400 if verb in {"GET", "HEAD"} else 404)


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ((("2", 1023), ("3", 8000)), 200),  # the host
        ((("1", 1023), ("1", 8000)), 403),  # VMADDR_CID_LOCAL
        ((("3", 1023), ("3", 8000)), 403),  # the guest by its own context id
        ((("", 0), ("3", 8000)), 403),
        ((None, ("3", 8000)), 403),  # its address is not known any more
        ((None, ("/run/guest.sock", None)), 200),
    ],
)
@pytest.mark.parametrize("path", [b"/api/Shutdown", b"/api/%53hutdown"])
def test_shutdown_is_for_the_host_only(
    host: Client, path: bytes, ends: tuple[object, object], status: int
) -> None:
    """A process of the guest, which vsock loopback connects as well, cannot power it off."""
    app, sent = host.app, list[Any]()
    scope: dict[str, Any] = {"type": "http", "method": "POST", "query_string": b"", "headers": []}
    scope |= {"raw_path": path, "client": ends[0], "server": ends[1]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    host.loop.run_until_complete(app(scope, receive, send))
    assert sent[0]["status"] == status
    host.loop.run_until_complete(app({**scope, "raw_path": b"/api/Info"}, receive, send))
    assert sent[-2]["status"] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/api/GetKey", "/api/Version", "/api/GuestApi.Info", "/Info", "/v1/Info", "/prpc/Info"),
        *("/", "/api", "/api/", "/docs", "/metrics", "/api//Info", "/api/../Info", "/api/v1/Info"),
    ],
)
def test_host_reaches_nothing_else(host: Client, path: str) -> None:
    """No prefix is stripped, and no method of the app is served to the host."""
    for verb in ("GET", "HEAD", "POST"):
        assert host.request(verb, path).status == 404


def test_methods_are_complete() -> None:
    """The service has the methods of the protocol."""
    assert tuple(guest_api.make_service(shutdown=False).methods) == METHODS
