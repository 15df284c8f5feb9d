"""The page for browsers says who the app is and what runs, whatever any of it is called."""

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
from tests.serve.pages.page import Engine, Page, client_with, container, page_of

HOSTILE = (
    "<script>alert(1)</script>",
    "\"&'</td>",
    "цель {} {{ rows }} {% raw %} %s",
    "</textarea></title><img src=x onerror=alert(1)>",
)


def test_page_says_who_the_app_is(dstack: Client, external: Client) -> None:
    """Identity, measurements and headings are on it, and that nothing of it is real."""
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


def test_registers_and_timeline(dstack: Client, external: Client) -> None:
    """Each register and each event is there, with its digest and, where readable, its data."""
    page = page_of(external)
    tcb = json.loads(dstack.get("/Info").json()["tcb_info"])
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        assert page.rows[name.upper()] == tcb[name]
    shown = page.section("Timeline")
    for event in tcb["event_log"]:
        assert event["digest"] in shown
    assert shown.index("EV_SEPARATOR") < shown.index("system-preparing")
    assert '{"name":"none","id":""}' in shown


def test_an_event_is_shown_at_once(dstack: Client, external: Client) -> None:
    """What is emitted between two looks is in the second, and so is the register's new value."""
    before = page_of(external)
    payload = json.dumps({"rev": 12}).encode()
    assert dstack.post("/EmitEvent", {"event": "reloaded", "payload": payload.hex()}).status == 200
    after = page_of(external)
    assert "reloaded" not in before.text
    assert "reloaded" in after.text
    assert payload.decode() in after.text
    assert before.rows["RTMR3"] != after.rows["RTMR3"]
    assert before.rows["RTMR2"] == after.rows["RTMR2"]


def test_looking_does_not_work_the_device(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Strangers may look as often as they like: evidence is made once."""
    guest = make_guest(Counting)
    client = Client(listener_apps.external_app(guest), loop)
    page_of(client)
    assert isinstance(guest.attester.backend, Counting)
    quotes = guest.attester.backend.quotes
    for _ in range(5):
        page_of(client)
    assert guest.attester.backend.quotes == quotes


def test_page_on_a_device_that_blocks(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """The device's thread asks it, and the page is the same."""
    page = page_of(Client(listener_apps.external_app(make_guest(Blocking)), loop))
    assert page.rows["App Name"] == "an app"


@pytest.mark.parametrize("name", HOSTILE)
def test_values_are_escaped(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, name: str
) -> None:
    """Nothing that the app, its events, its containers or its engine say becomes markup."""
    usual = page_of(client_with(make_guest(), Engine(container(["a"])), loop, "/logs/"))
    guest = make_guest(compose={"name": name, "docker_compose_file": f"</textarea>{name}"})
    hostile = container([f"{name}"], image=name, state=name, status=name, identity=name)
    client = client_with(guest, Engine(hostile), loop, "/logs/")
    page = page_of(client)
    assert page.rows["App Name"] == name
    assert page.table[-1] == [name, name, "Follow Last 1,000", name]
    assert page.tags == usual.tags
    assert page.attributes == usual.attributes
    guest.attester.emit_event(name, name.encode())
    emitted = page_of(client)
    assert emitted.section("Timeline").count(name) == 2  # its name and its data
    assert set(emitted.tags) == set(usual.tags)
    assert emitted.attributes == usual.attributes
    engine = Engine(fault=BackendUnavailableError(name))
    assert name in page_of(client_with(guest, engine, loop)).section("Deployed Containers")


def test_directions_are_shown_as_numbers(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """What would turn the text around it, or hide in it, is shown for what it is."""
    guest = make_guest(compose={"name": "a\u202eb\u200bc\n"})
    page = page_of(client_with(guest, Engine(container(["x\u202e"])), loop))
    assert page.rows["App Name"] == "a\\u202eb\\u200bc\\u000a"
    assert page.table[-1][0] == "x\\u202e"


def test_hidden_measurements(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """An app that hides its measurements shows none here, and nothing leads to where they were."""
    guest = make_guest(compose={"public_tcbinfo": False})
    page = page_of(Client(listener_apps.external_app(guest), loop))
    assert "TCB info is not public" in page.text
    registers = guest.attester.registers()
    assert registers[3].hex() not in page.text
    assert "textarea" not in page.tags
    assert "Timeline" not in page.text
    assert "system-ready" not in page.text


def test_page_without_evidence(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """When the platform fails the page is a 500 with a JSON error."""
    response = Client(listener_apps.external_app(make_guest(Broken)), loop).get("/")
    assert response.status == 500
    assert response.error().startswith("Failed to get worker info: Failed to get attestation: ")


def test_page_without_figures(
    make_guest: MakeGuest,
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is when the machine does not tell its figures, where the app publishes them."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    guest = make_guest(compose={"public_sysinfo": True})
    response = Client(listener_apps.external_app(guest), loop).get("/")
    assert response.status == 500
    assert response.error().startswith("Failed to get worker info: the machine does not tell")
    assert Client(listener_apps.external_app(make_guest()), loop).get("/").status == 200


def test_figures(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """An app with public_sysinfo shows the machine, in rows that are named as documented."""
    page = page_of(
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


def test_no_figures_unasked(external: Client) -> None:
    """Other apps show none, and no link to metrics that are not there."""
    page = page_of(external)
    assert "Memory Usage" not in page.rows
    assert "/metrics" not in page.links


def test_containers(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """All of them, running or not, by their names, with links to their logs."""
    engine = Engine(
        container(["gateway-1", "alias"], identity="1"),
        container(["migrate"], "img", "exited", "Exited (0) 2 minutes ago", identity="2"),
        container([], identity="3"),
    )
    page = page_of(client_with(make_guest(), engine, loop, "/logs/"))
    assert "NameStatusLogsImage" in page.section("Deployed Containers")
    assert page.table == [
        ["gateway-1", "Up 3 minutes", "Follow Last 1,000", "an-image:1"],
        ["migrate", "Exited (0) 2 minutes ago", "Follow Last 1,000", "img"],
        ["", "Up 3 minutes", "Follow Last 1,000", "an-image:1"],
    ]
    assert "/logs/gateway-1?text&bare&timestamps&follow&tail=20" in page.links
    assert "/logs/migrate?text&bare&timestamps" in page.links


def test_a_link_to_logs_is_one_segment(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Whatever a container is called, its link asks for the logs of that name."""
    name = "../a/b?follow=no#c%2Fd"
    client = client_with(make_guest(), Engine(container([f"{name}"])), loop, "/logs/")
    links = [link for link in page_of(client).links if link.startswith("/logs/")]
    assert len(links) == 2
    for link in links:
        assert client.get(link).body == name.encode()


def test_no_links_to_logs_that_are_not_public(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Where logs are not served the table has no such column."""
    page = page_of(client_with(make_guest(), Engine(container(["a"])), loop))
    assert "NameStatusImage" in page.section("Deployed Containers")
    assert page.table == [["a", "Up 3 minutes", "an-image:1"]]
    assert not any(link.startswith("/logs") for link in page.links)


def test_no_containers(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """Where there are none the page says so."""
    page = page_of(client_with(make_guest(), Engine(), loop))
    assert page.table == []
    assert "There are none." in page.text


def test_an_engine_that_cannot_be_reached(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """The table is empty, the page says why, and everything else is there."""
    engine = Engine(fault=BackendUnavailableError("no engine at /var/run/docker.sock"))
    page = page_of(client_with(make_guest(), engine, loop))
    assert page.table == []
    assert "The container engine cannot be reached." in page.text
    assert "no engine at /var/run/docker.sock" in page.text
    assert page.rows["App Name"] == "an app"


def test_an_engine_that_hangs(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page does not wait for it forever."""

    class Hanging(Engine):
        async def list(self) -> Sequence[Container]:
            await asyncio.Event().wait()
            return ()

    monkeypatch.setattr(dashboard, "_ENGINE_SECONDS", 0.01)
    page = page_of(client_with(make_guest(), Hanging(), loop))
    assert "It did not answer within 0.01 seconds." in page.text


def test_the_engine_is_asked_once_a_second(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Strangers cannot work the engine; a clock set back does not keep an old answer."""
    clock = [float(NOW)]
    engine = Engine(container(["a"]))
    client = client_with(make_guest(now=lambda: clock[0]), engine, loop)
    for at, asked in ((0, 1), (0, 1), (0.9, 1), (1.1, 2), (1.2, 2), (-5, 3)):
        clock[0] = NOW + at
        page_of(client)
        assert engine.asked == asked, at


def test_many_containers(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """The table has an end, and says how many there are."""
    engine = Engine(*[container([f"c{index}"], identity=str(index)) for index in range(1500)])
    page = page_of(client_with(make_guest(), engine, loop))
    assert len(page.table) == 200
    assert "The first 200 of 1,500 containers." in page.text


def test_a_long_log(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """Ten thousand events, one of them of a megabyte, make a page of a few hundred kilobytes."""
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
