"""The dashboard shows the app's identity, measurements, machine and containers, escaped."""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest

from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError
from attestkit.serve.docker.engine import Container
from attestkit.serve.machine_info import Disk, Figures, Load, Memory
from attestkit.serve.pages import dashboard
from attestkit.serve.pages.dashboard import FIRST, LAST, duration_text, size_text
from attestkit.serve.rpc.messages import AppInfo
from attestkit.serve.services.context import AppIdentity, Guest
from tests.runner.cases import every_case
from tests.serve.asgi import Client
from tests.serve.guests import NOW, GuestClient, MakeGuest
from tests.serve.pages.page import Engine, Page, create_client, create_container, read_page
from tests.untyped import untyped

HOSTILE = (
    "<script>alert(1)</script>",
    "\"&'</td>",
    "цель {} {{ rows }} {% raw %} %s",
    "</textarea></title><img src=x onerror=alert(1)>",
)

PageClient: TypeAlias = Callable[..., Client]


@pytest.fixture
def page_client(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> PageClient:
    """Return a factory of clients of the pages of a new guest, with an engine and other views."""

    def make(engine: Engine, *paths: str, **options: Any) -> Client:
        return create_client(make_guest(**options), engine, loop, *paths)

    return make


def test_page_shows_app_identity(dstack: Client, external: Client) -> None:
    """The page shows identity and measurements, and that they are simulated."""
    response = external.get("/")
    assert (response.status, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page, info = Page(response.body.decode()), dstack.get("/Info").json()
    assert page.rows["App Name"] == "an app"
    for label, name in (
        ("App ID", "app_id"),
        ("Instance ID", "instance_id"),
        ("Device ID", "device_id"),
        ("Key Provider Info", "key_provider_info"),
        ("Compose Hash", "compose_hash"),
        ("OS Image Hash", "os_image_hash"),
    ):
        assert page.rows[label] == info[name]
    assert page.rows["Machine Provider"] == "attestkit simulator (simulated, not a TEE)"
    assert page.headings == [
        "Worker Information",
        "Node Information",
        "App",
        "Deployed Containers",
        "Registers",
        "Timeline",
        "TCB Info",
        "Links",
    ]
    assert "This TEE is simulated" in page.text
    assert page.textarea.strip() == info["tcb_info"].strip()
    assert "readonly" in page.attributes


def test_page_shows_registers_and_events(dstack: Client, external: Client) -> None:
    """Each register and event is shown, with digest and readable data."""
    page = read_page(external)
    tcb = json.loads(dstack.get("/Info").json()["tcb_info"])
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        assert page.rows[name.upper()] == tcb[name]
    shown = page.section("Timeline")
    for event in tcb["event_log"]:
        assert event["digest"] in shown
    assert shown.index("EV_SEPARATOR") < shown.index("system-preparing")
    assert '{"name":"none","id":""}' in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_values_are_escaped(
    page_client: PageClient, make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, name: str
) -> None:
    """Values of the app, its events, containers and engine never become markup."""
    usual = read_page(page_client(Engine(create_container(["a"])), "/logs/"))
    guest = make_guest(compose={"name": name, "docker_compose_file": f"</textarea>{name}"})
    hostile = create_container([f"{name}"], image=name, state=name, status=name, identity=name)
    client = create_client(guest, Engine(hostile), loop, "/logs/")
    page = read_page(client)
    assert page.rows["App Name"] == name
    assert page.table[-1] == [name, name, "Follow Last 1,000", name]
    assert page.tags == usual.tags
    assert page.attributes == usual.attributes
    guest.attester.emit_event(name, name.encode())
    emitted = read_page(client)
    assert emitted.section("Timeline").count(name) == 2  # its name and its data
    assert set(emitted.tags) == set(usual.tags)
    assert emitted.attributes == usual.attributes
    engine = Engine(fault=BackendUnavailableError(name, reason="missing"))
    shown = read_page(create_client(guest, engine, loop)).section("Deployed Containers")
    assert "The container engine is unavailable." in shown
    assert name in shown


def test_bidi_controls_are_escaped(page_client: PageClient) -> None:
    """Direction and invisible characters are shown as escapes."""
    text, shown = "x\u202e", "x\\u202e"
    container = create_container([text], image=text, state=text, status=text, identity=text)
    page = read_page(
        page_client(Engine(container), compose={"name": "a\u202eb\u200bc\n" + "x" * 300})
    )
    assert page.rows["App Name"] == "a\\u202eb\\u200bc\\u000a" + "x" * 294 + " ... 306 characters"
    assert page.table[-1] == [shown, shown, shown]
    engine = Engine(fault=BackendUnavailableError(text, reason="missing"))
    assert shown in read_page(page_client(engine)).section("Deployed Containers")


def test_hidden_measurements_are_not_linked(
    make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """With public_tcbinfo false neither measurements nor links to them are shown."""
    guest = make_guest(compose={"public_tcbinfo": False})
    page = read_page(guest_client("external", guest))
    assert "TCB info is not public" in page.text
    registers = guest.attester.registers()
    assert registers[3].hex() not in page.text
    assert "textarea" not in page.tags
    assert "Timeline" not in page.text
    assert "system-ready" not in page.text


def test_page_without_figures_is_500(
    make_guest: MakeGuest,
    guest_client: GuestClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the machine's figures are public and unreadable, the page is a 500."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    guest = make_guest(compose={"public_sysinfo": True})
    response = guest_client("external", guest).get("/")
    assert response.status == 500
    assert response.error().startswith("Failed to get worker info: system information: ")
    assert guest_client("external").get("/").status == 200


FIGURES = Figures(
    os_name="DStack",
    os_version="0.5.4",
    kernel="6.9.0-dstack",
    cpu="cpu0 @2600 MHz",
    cpus=4,
    memory=Memory(4 * 1024**3, 3 * 1024**3, 2 * 1024**3),
    swap=Memory(0, 0, 0),
    uptime=93784,
    load=Load(28, 150, 1200),
    disks=(Disk("/dev/a", "/", 1000, 250), Disk("/dev/b", "/data\n", 0, 0)),
)


def test_public_figures_are_shown(
    guest_client: GuestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With public_sysinfo the machine's figures have the documented rows, and meters if in use."""
    monkeypatch.setattr(dashboard, "read_figures", lambda _: FIGURES)
    page = read_page(guest_client("external", compose={"public_sysinfo": True}))
    assert list(page.rows.items())[-14:-5] == [
        ("Operating System", "DStack 0.5.4"),
        ("Kernel Version", "6.9.0-dstack"),
        ("CPU", "cpu0 @2600 MHz (4 cores)"),
        ("Memory Usage", "1.00 GB / 4.00 GB / 3.00 GB Used / Total / Available"),
        ("Swap Usage", "0.00 B / 0.00 B / 0.00 B Used / Total / Free"),
        ("Load Average", "1min: 0.28, 5min: 1.50, 15min: 12.00"),
        ("System Uptime", "1d 2h 3m 4s"),
        ("Disk 0", "250.00 B / 1000.00 B Free / Total of /"),
        ("Disk 1", "0.00 B / 0.00 B Free / Total of /data\\u000a"),
    ]
    assert page.meters == ["25.0", "75.0", "0.0"]


@pytest.mark.parametrize("found", [True, False, None])
def test_gpus_are_stated(
    guest_client: GuestClient, monkeypatch: pytest.MonkeyPatch, *, found: bool | None
) -> None:
    """The page states whether there are NVIDIA GPUs only if this is known."""
    monkeypatch.setattr(dashboard, "has_nvidia_gpu", lambda: found)
    page = read_page(guest_client("external", compose={"public_sysinfo": True}))
    assert ("GPUs" in page.headings) == (found is not None)
    assert ("NVIDIA GPUs found" in page.text) == (found is True)
    assert ("No NVIDIA GPUs" in page.text) == (found is False)
    assert "GPUs" not in read_page(guest_client("external")).headings


def test_simulated_gpus_are_stated(
    guest_client: GuestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs of a simulator are not on the bus of the machine that runs it."""
    monkeypatch.setattr(dashboard, "has_nvidia_gpu", lambda: False)
    options: dict[str, Any] = {
        "backend": partial(Simulator, gpus=1),
        "compose": {"public_sysinfo": True},
    }
    page = read_page(guest_client("external", **options))
    assert "NVIDIA GPUs found" in page.text


def test_absent_identity_has_no_row(
    guest_client: GuestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vendor and hashes have a row only if the app has them."""
    info = AppInfo(app_id=b"\1", instance_id=b"\2", app_name="a", device_id=b"\3")
    plain = ["App Name", "App ID", "Instance ID", "Device ID", "Key Provider Info"]
    for app, more in (
        (info, []),
        (info._replace(cloud_product="p"), ["Machine Provider"]),
        (info._replace(cloud_vendor="v"), ["Machine Provider"]),
        (
            info._replace(compose_hash=b"\4", os_image_hash=b"\5"),
            ["Compose Hash", "OS Image Hash"],
        ),
    ):
        identity = AppIdentity(app, "dstack-tdx", None, untyped(None))
        monkeypatch.setattr(Guest, "identity", lambda *_, found=identity, **__: found)
        assert list(read_page(guest_client("external")).rows) == [*plain, *more]


def test_figures_are_hidden_by_default(external: Client) -> None:
    """Figures, and links to metrics, require public_sysinfo."""
    page = read_page(external)
    assert "Memory Usage" not in page.rows
    assert "/metrics" not in page.links
    response = external.get("/metrics")
    assert (response.status, response.error()) == (404, "No such path: /metrics")


def test_containers_are_listed(page_client: PageClient) -> None:
    """All containers are listed by name, with links to their logs."""
    engine = Engine(
        create_container(["gateway-1", "alias"], identity="1"),
        create_container(["migrate"], "img", "exited", "Exited (0) 2 minutes ago", identity="2"),
        create_container([], identity="3"),
    )
    page = read_page(page_client(engine, "/logs/"))
    assert "NameStatusLogsImage" in page.section("Deployed Containers")
    assert page.table == [
        ["gateway-1", "Up 3 minutes", "Follow Last 1,000", "an-image:1"],
        ["migrate", "Exited (0) 2 minutes ago", "Follow Last 1,000", "img"],
        ["", "Up 3 minutes", "Follow Last 1,000", "an-image:1"],
    ]
    assert "/logs/gateway-1?text&bare&timestamps&follow&tail=20" in page.links
    assert "/logs/migrate?text&bare&timestamps" in page.links


def test_log_link_is_one_segment(page_client: PageClient) -> None:
    """A link to logs contains any container name as one segment."""
    name = "../a/b?follow=no#c%2Fd"
    client = page_client(Engine(create_container([f"{name}"])), "/logs/")
    links = [link for link in read_page(client).links if link.startswith("/logs/")]
    assert len(links) == 2
    for link in links:
        assert client.get(link).body == name.encode()


def test_private_logs_are_not_linked(page_client: PageClient) -> None:
    """Without public_logs the table has no column for logs."""
    page = read_page(page_client(Engine(create_container(["a"]))))
    assert "NameStatusImage" in page.section("Deployed Containers")
    assert page.table == [["a", "Up 3 minutes", "an-image:1"]]
    assert not any(link.startswith("/logs") for link in page.links)


def test_empty_container_list_is_stated(page_client: PageClient) -> None:
    """Without containers the page states so."""
    page = read_page(page_client(Engine()))
    assert page.table == []
    assert "No containers." in page.text


def test_hanging_engine_is_reported(
    page_client: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page waits for the engine up to a timeout."""

    class HangingEngine(Engine):
        async def list_containers(self) -> Sequence[Container]:
            await asyncio.Event().wait()
            return ()

    monkeypatch.setattr(dashboard, "_ENGINE_SECONDS", 0.01)
    page = read_page(page_client(HangingEngine()))
    assert "It did not respond within 0.01 seconds." in page.text


def test_engine_requests_are_cached(page_client: PageClient) -> None:
    """The engine is called once per second; a clock set back refreshes the cache."""
    clock = [float(NOW)]
    engine = Engine(create_container(["a"]))
    client = page_client(engine, now=lambda: clock[0])
    for at, asked in ((0, 1), (0, 1), (0.9, 1), (1.1, 2), (1.2, 2), (-5, 3)):
        clock[0] = NOW + at
        read_page(client)
        assert engine.asked == asked, at


def test_many_containers_are_truncated(page_client: PageClient) -> None:
    """The table has at most 200 rows and states the number of containers."""
    engine = Engine(
        *[create_container([f"c{index}"], identity=str(index)) for index in range(1500)]
    )
    page = read_page(page_client(engine))
    assert len(page.table) == 200
    assert "The first 200 of 1,500 containers." in page.text


def test_long_log_is_truncated(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """The page of a long log stays below 500 kB."""
    guest = make_guest()
    client = guest_client("external", guest)
    for index in range(2_000):
        guest.attester.emit_event(f"event-{index}", b"some data")
    guest.attester.emit_event("name" * 1000, bytes(1_000_000))
    response = client.get("/")
    page = Page(response.body.decode())
    assert len(response.body) < 500_000
    events = len(guest.attester.event_log().runtime)
    assert f"The first {FIRST} and the last {LAST} of {events:,} events." in page.text
    assert f"{events - FIRST - LAST:,} more events are not shown here" in page.text
    assert "event-90" in page.text
    assert "event-1000" not in page.text
    assert "event-1990" in page.text
    assert "The first 131,072 of " in page.text
    whole = json.loads(client.get("/prpc/Worker.Info").body)
    assert len(json.loads(whole["tcb_info"])["event_log"]) > events


@every_case(
    ("size", "text"),
    [
        (1023, "1023.00 B"),
        (1536, "1.50 KB"),
        (1024**2 - 1, "1024.00 KB"),
        (1024**7, "1024.00 EB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    """Sizes are divided by 1024, with two decimals."""
    assert size_text(size) == text


@every_case(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (3600, "1h 0m 0s"),
        (90061, "1d 1h 1m 1s"),
        (86400 * 400, "400d 0h 0m 0s"),
    ],
)
def test_duration_text(seconds: int, text: str) -> None:
    """Days, hours, minutes and seconds, without leading zeros."""
    assert duration_text(seconds) == text
