"""The dashboard shows the app's identity, measurements, machine and containers, escaped."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from attestkit.errors import BackendUnavailableError
from attestkit.serve import listener_apps
from attestkit.serve.docker.engine import Container
from attestkit.serve.pages import dashboard
from attestkit.serve.pages.event_timeline import FIRST, LAST
from tests.serve.asgi import Client
from tests.serve.guests import NOW, Blocking, Broken, Counting, MakeGuest
from tests.serve.pages.page import Engine, Page, create_client, create_container, read_page

HOSTILE = (
    "<script>alert(1)</script>",
    "\"&'</td>",
    "цель {} {{ rows }} {% raw %} %s",
    "</textarea></title><img src=x onerror=alert(1)>",
)


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


def test_page_shows_new_event_immediately(dstack: Client, external: Client) -> None:
    """A new event and the new register value are in the next page."""
    before = read_page(external)
    payload = json.dumps({"rev": 12}).encode()
    assert dstack.post("/EmitEvent", {"event": "reloaded", "payload": payload.hex()}).status == 200
    after = read_page(external)
    assert "reloaded" not in before.text
    assert "reloaded" in after.text
    assert payload.decode() in after.text
    assert before.rows["RTMR3"] != after.rows["RTMR3"]
    assert before.rows["RTMR2"] == after.rows["RTMR2"]


def test_page_requests_create_one_quote(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Evidence is created once, however often the page is requested."""
    guest = make_guest(Counting)
    client = Client(listener_apps.external_app(guest), loop)
    read_page(client)
    assert isinstance(guest.attester.backend, Counting)
    quotes = guest.attester.backend.quotes
    for _ in range(5):
        read_page(client)
    assert guest.attester.backend.quotes == quotes


def test_page_on_blocking_device(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """The page is the same on a blocking device."""
    page = read_page(Client(listener_apps.external_app(make_guest(Blocking)), loop))
    assert page.rows["App Name"] == "an app"


@pytest.mark.parametrize("name", HOSTILE)
def test_values_are_escaped(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, name: str
) -> None:
    """Values of the app, its events, containers and engine never become markup."""
    usual = read_page(create_client(make_guest(), Engine(create_container(["a"])), loop, "/logs/"))
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
    assert name in read_page(create_client(guest, engine, loop)).section("Deployed Containers")


def test_bidi_controls_are_escaped(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """Direction and invisible characters are shown as escapes."""
    guest = make_guest(compose={"name": "a\u202eb\u200bc\n"})
    page = read_page(create_client(guest, Engine(create_container(["x\u202e"])), loop))
    assert page.rows["App Name"] == "a\\u202eb\\u200bc\\u000a"
    assert page.table[-1][0] == "x\\u202e"


def test_hidden_measurements_are_not_linked(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """With public_tcbinfo false neither measurements nor links to them are shown."""
    guest = make_guest(compose={"public_tcbinfo": False})
    page = read_page(Client(listener_apps.external_app(guest), loop))
    assert "TCB info is not public" in page.text
    registers = guest.attester.registers()
    assert registers[3].hex() not in page.text
    assert "textarea" not in page.tags
    assert "Timeline" not in page.text
    assert "system-ready" not in page.text


def test_page_without_evidence_is_500(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """If the platform fails, the page is a 500 with a JSON error."""
    response = Client(listener_apps.external_app(make_guest(Broken)), loop).get("/")
    assert response.status == 500
    assert response.error().startswith("Failed to get worker info: Failed to get attestation: ")


def test_page_without_figures_is_500(
    make_guest: MakeGuest,
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the machine's figures are public and unreadable, the page is a 500."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    guest = make_guest(compose={"public_sysinfo": True})
    response = Client(listener_apps.external_app(guest), loop).get("/")
    assert response.status == 500
    assert response.error().startswith("Failed to get worker info: system information: ")
    assert Client(listener_apps.external_app(make_guest()), loop).get("/").status == 200


def test_public_figures_are_shown(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """With public_sysinfo the machine's figures have the documented rows."""
    page = read_page(
        Client(listener_apps.external_app(make_guest(compose={"public_sysinfo": True})), loop)
    )
    size = r"\d+\.\d\d [KMGT]?B"
    for label, pattern in (
        ("Operating System", r"\S.*"),
        ("Kernel Version", r"\S+"),
        ("CPU", r"cpu0 @\d+ MHz \(\d+ cores\)"),
        ("Memory Usage", rf"{size} / {size} / {size} Used / Total / Available"),
        ("Swap Usage", rf"{size} / {size} / {size} Used / Total / Free"),
        ("Load Average", r"\d+\.\d\d% / \d+\.\d\d% / \d+\.\d\d% 1 / 5 / 15 minutes"),
        ("System Uptime", r"\d+ seconds .*"),
        ("Disk 0", rf"{size} / {size} Free / Total of /"),
    ):
        assert re.fullmatch(pattern, page.rows[label]), page.rows[label]
    assert "Disk 1" not in page.rows


def test_figures_are_hidden_by_default(external: Client) -> None:
    """Figures, and links to metrics, require public_sysinfo."""
    page = read_page(external)
    assert "Memory Usage" not in page.rows
    assert "/metrics" not in page.links


def test_containers_are_listed(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """All containers are listed by name, with links to their logs."""
    engine = Engine(
        create_container(["gateway-1", "alias"], identity="1"),
        create_container(["migrate"], "img", "exited", "Exited (0) 2 minutes ago", identity="2"),
        create_container([], identity="3"),
    )
    page = read_page(create_client(make_guest(), engine, loop, "/logs/"))
    assert "NameStatusLogsImage" in page.section("Deployed Containers")
    assert page.table == [
        ["gateway-1", "Up 3 minutes", "Follow Last 1,000", "an-image:1"],
        ["migrate", "Exited (0) 2 minutes ago", "Follow Last 1,000", "img"],
        ["", "Up 3 minutes", "Follow Last 1,000", "an-image:1"],
    ]
    assert "/logs/gateway-1?text&bare&timestamps&follow&tail=20" in page.links
    assert "/logs/migrate?text&bare&timestamps" in page.links


def test_log_link_is_one_segment(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """A link to logs contains any container name as one segment."""
    name = "../a/b?follow=no#c%2Fd"
    client = create_client(make_guest(), Engine(create_container([f"{name}"])), loop, "/logs/")
    links = [link for link in read_page(client).links if link.startswith("/logs/")]
    assert len(links) == 2
    for link in links:
        assert client.get(link).body == name.encode()


def test_private_logs_are_not_linked(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Without public_logs the table has no column for logs."""
    page = read_page(create_client(make_guest(), Engine(create_container(["a"])), loop))
    assert "NameStatusImage" in page.section("Deployed Containers")
    assert page.table == [["a", "Up 3 minutes", "an-image:1"]]
    assert not any(link.startswith("/logs") for link in page.links)


def test_empty_container_list_is_stated(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Without containers the page states so."""
    page = read_page(create_client(make_guest(), Engine(), loop))
    assert page.table == []
    assert "No containers." in page.text


def test_unreachable_engine_is_reported(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """The page shows the engine's error and everything else."""
    engine = Engine(
        fault=BackendUnavailableError("no engine at /var/run/docker.sock", reason="missing")
    )
    page = read_page(create_client(make_guest(), engine, loop))
    assert page.table == []
    assert "The container engine is unavailable." in page.text
    assert "no engine at /var/run/docker.sock" in page.text
    assert page.rows["App Name"] == "an app"


def test_hanging_engine_is_reported(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page waits for the engine up to a timeout."""

    class HangingEngine(Engine):
        async def list_containers(self) -> Sequence[Container]:
            await asyncio.Event().wait()
            return ()

    monkeypatch.setattr(dashboard, "_ENGINE_SECONDS", 0.01)
    page = read_page(create_client(make_guest(), HangingEngine(), loop))
    assert "It did not respond within 0.01 seconds." in page.text


def test_engine_requests_are_cached(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """The engine is called once per second; a clock set back refreshes the cache."""
    clock = [float(NOW)]
    engine = Engine(create_container(["a"]))
    client = create_client(make_guest(now=lambda: clock[0]), engine, loop)
    for at, asked in ((0, 1), (0, 1), (0.9, 1), (1.1, 2), (1.2, 2), (-5, 3)):
        clock[0] = NOW + at
        read_page(client)
        assert engine.asked == asked, at


def test_many_containers_are_truncated(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """The table has at most 200 rows and states the number of containers."""
    engine = Engine(
        *[create_container([f"c{index}"], identity=str(index)) for index in range(1500)]
    )
    page = read_page(create_client(make_guest(), engine, loop))
    assert len(page.table) == 200
    assert "The first 200 of 1,500 containers." in page.text


def test_long_log_is_truncated(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """The page of a log with 10,000 events stays below 500 kB."""
    guest = make_guest()
    client = Client(listener_apps.external_app(guest), loop)
    for index in range(10_000):
        guest.attester.emit_event(f"event-{index}", b"some data")
    guest.attester.emit_event("name" * 1000, bytes(1_000_000))
    response = client.get("/")
    page = Page(response.body.decode())
    assert len(response.body) < 500_000
    events = len(guest.attester.event_log().runtime)
    assert f"The first {FIRST} and the last {LAST} of {events:,} events." in page.text
    assert f"{events - FIRST - LAST:,} more events are not shown here" in page.text
    assert "event-90" in page.text
    assert "event-5000" not in page.text
    assert "event-9990" in page.text
    assert "The first 131,072 of " in page.text
    whole = json.loads(client.get("/prpc/Worker.Info").body)
    assert len(json.loads(whole["tcb_info"])["event_log"]) > events
