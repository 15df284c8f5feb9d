"""Evidence of a TD on hardware: the log is the machine's, and agrees with it or does not leave."""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

import attestkit
from attestkit.attestation import MAX_SIZE, Attestation, Encoding
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.attester import Attester
from attestkit.attester import tdx_source as td_source
from attestkit.errors import (
    ConfigError,
    JournalError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import EventLog
from attestkit.event_log.journal import BOOT_ID, LOG, VERSION
from attestkit.event_log.journal_protocols import size_in_evidence
from attestkit.event_log.runtime_events import runtime_event, runtime_line
from attestkit.keys import AppKeys
from attestkit.quote import Quote
from tests.attester.host_files import app_compose, sys_config
from tests.tees import FIRMWARE_LOG, FakeTd, Machine
from tests.untyped import untyped
from tests.vectors import data, needs_shared

Start: TypeAlias = Callable[[], Attester]


def names(tee: Attester) -> list[str]:
    """Return the names of the runtime events in evidence that agrees with itself."""
    evidence = Attestation.from_bytes(tee.attest(b"").to_bytes())
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote)
    assert evidence.quote.rtmrs == tee.registers()
    return [event.name for event in evidence.runtime_events]


# -- the log of the machine --------------------------------------------------------------------


def test_programs_share_the_log(start: Start) -> None:
    """What one emits is in the evidence of the other, and of those that start later."""
    one, two = start(), start()
    assert names(one) == []
    one.emit_event("a", b"1")
    two.emit_event("b", b"2")
    one.emit_event("c", b"3")
    assert names(one) == names(two) == names(start()) == ["a", "b", "c"]


def test_a_reboot_empties_the_log(start: Start, machine: Machine) -> None:
    """The old log is put aside at the first emit; before it evidence is right already."""
    start().emit_event("a", b"")
    old = (machine.log / LOG).read_bytes()
    machine.boot("boot-2")
    tee = start()
    assert names(tee) == []
    tee.emit_event("b", b"")
    assert names(tee) == ["b"]
    assert (machine.log / f"{LOG}.boot-1").read_bytes() == old


def refuses(tee: Attester) -> None:
    """Check that quotes still come, and that neither evidence nor events do."""
    assert tee.get_quote(b"").rtmrs == tee.registers()
    where = (
        r"; the events of RTMR3 belong in /.*/runtime_events\.log; attestkit doctor says .*, and "
    )
    with pytest.raises(
        ReplayError, match=f"RTMR3 replays to .*{where}unless the log can be put back"
    ):
        tee.attest(b"")
    with pytest.raises(JournalError, match="disagree"):
        tee.emit_event("more", b"")


def test_a_log_of_another_boot_explains_nothing(start: Start, machine: Machine) -> None:
    """After a kexec the register is what it was, and nobody knows why."""
    start().emit_event("a", b"")
    machine.boot("boot-2", machine.read())
    refuses(start())


def test_a_foreign_extend_is_found(start: Start, machine: Machine) -> None:
    """An extend that is not ours stops evidence and events, in every program."""
    one, two = start(), start()
    one.emit_event("a", b"")
    assert names(two) == ["a"]
    machine.extend(b"\1" * 48)
    refuses(one)
    refuses(two)
    refuses(start())


def agents_log(machine: Machine, *events: str) -> None:
    """Write a log as the dstack guest agent does, which knows nothing of boot ids."""
    machine.log.mkdir()
    (machine.log / LOG).write_bytes(
        b"".join(runtime_line(runtime_event(name, b"")) for name in events)
    )
    for name in events:
        machine.extend(runtime_event(name, b"").digest)


def test_an_older_log_is_taken_over(start: Start, machine: Machine) -> None:
    """If it explains the register it is of this boot, and goes on with our files beside it."""
    agents_log(machine, "system-ready", "a")
    tee = start()
    assert names(tee) == ["system-ready", "a"]
    tee.emit_event("b", b"")
    assert names(tee) == names(start()) == ["system-ready", "a", "b"]
    assert (machine.log / BOOT_ID).read_text() == "boot-1\n"
    assert (machine.log / VERSION).read_text() == "1"


def test_an_older_log_that_explains_nothing_is_refused(start: Start, machine: Machine) -> None:
    """One of before a reboot, in a folder that outlived it, too."""
    agents_log(machine, "a")
    machine.boot("boot-2")
    refuses(start())


def test_the_agent_emits_beside_us(start: Start, machine: Machine) -> None:
    """Lines that somebody else appended are read."""
    tee = start()
    tee.emit_event("a", b"")
    event = runtime_event("theirs", b"")
    machine.extend(event.digest)
    with (machine.log / LOG).open("ab") as log:
        log.write(runtime_line(event))
    assert names(tee) == ["a", "theirs"]


# -- the app -----------------------------------------------------------------------------------


def test_the_version_of_events_is_the_apps(start: Start, shared: Path, machine: Machine) -> None:
    """The first event writes it down; without an app-compose it is 1; later it is not changed."""
    app_compose(shared, event_log_version=2)
    assert start().emit_event("a:b", b"").version == 2
    assert (machine.log / VERSION).read_text() == "2"
    (shared / "app-compose.json").unlink()
    assert start().emit_event("c", b"").version == 2
    app_compose(shared, event_log_version=1)
    with pytest.raises(JournalError, match="version 2, the app asks 1"):
        start().emit_event("d", b"")
    machine.boot("boot-2")
    (shared / "app-compose.json").unlink()
    assert start().emit_event("e", b"").version == 1


def test_a_wrong_app_compose_is_told(start: Start, shared: Path, machine: Machine) -> None:
    """Nobody guesses how events are to be hashed; quotes need no app."""
    (shared / "app-compose.json").write_bytes(b"{}")
    tee = start()
    for call in (lambda: tee.emit_event("a", b""), lambda: tee.attest(b""), tee.event_log):
        with pytest.raises(ConfigError, match=r"app-compose\.json: manifest_version"):
            call()
    tee.get_quote(b"")
    assert machine.read() == bytes(48)
    app_compose(shared)
    tee.emit_event("a", b"")


def test_evidence_has_the_machines_configuration(start: Start, shared: Path) -> None:
    """As the host wrote it; without a sys-config there is none."""
    tee = start()
    assert tee.attest(b"").config == tee.vm_config == ""
    text = json.dumps({"os_image_hash": "ab" * 32, "odd": "\N{SNOWMAN}"})
    sys_config(shared, text)
    assert tee.attest(b"").config == tee.vm_config == text
    assert tee.info().os_image_hash == b"\xab" * 32
    (shared / ".sys-config.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"\.sys-config\.json"):
        start().attest(b"")


@needs_shared
def test_keys_are_those_that_the_host_gave(start: Start, shared: Path) -> None:
    """Without the file the error names it; with it they are wiped in the end."""
    tee = start()
    for ask in (lambda: tee.keys, lambda: tee.app_compose):
        with pytest.raises(UnsupportedError, match=f"there is no {shared}"):
            ask()
    file = data("dstack/simulator/appkeys.json")
    (shared / ".appkeys.json").write_bytes(file)
    keys = tee.keys
    assert keys is tee.keys
    path = "my/key/path"
    root = bytes.fromhex(json.loads(file)["k256_key"])
    assert keys.derive(path).key != root
    assert keys.derive(path).signature_chain[1].hex() == json.loads(file)["k256_signature"]
    tee.close()
    with pytest.raises(UsageError, match="closed"):
        keys.derive(path)


def test_a_host_that_is_handed_in_wins(machine: Machine, shared: Path) -> None:
    """And stays the caller's: its keys are not wiped."""
    app_compose(shared)

    class Host:
        """Somebody who knows an app."""

        app_compose = None
        vm_config = '{"a": 1}'
        app_keys = AppKeys.from_seed(bytes(32))

    host = Host()
    with Attester(FakeTd(machine), untyped(host)) as tee:
        assert tee.vm_config == '{"a": 1}'
        tee.keys.derive("a")
    assert host.app_keys.k256_key


def test_a_folder_that_is_no_path_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong variable is an error, never a fallback."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", "relative")
    td = FakeTd(machine)
    monkeypatch.setattr("attestkit.factory.make_backend", lambda *_: td)
    with pytest.raises(UsageError, match=r"\$DSTACK_HOST_SHARED_DIR"):
        attestkit.open("fake_td")
    assert td.closed == 1


# -- measuring the app -------------------------------------------------------------------------

BOOT = [
    "system-preparing",
    "app-id",
    "compose-hash",
    "gpu-policy-hash",
    "instance-id",
    "boot-mr-done",
    "key-provider",
    "storage-fs",
    "system-ready",
]


def test_an_app_is_measured_once_per_boot(start: Start, shared: Path, machine: Machine) -> None:
    """A restart that finds exactly that goes on; after a reboot it is done again."""
    compose = app_compose(shared)
    events = start().measure_app()
    assert [event.name for event in events] == BOOT
    tee = start()
    assert tee.measure_app() == events
    assert names(tee) == BOOT
    tee.emit_event("a", b"")
    assert start().measure_app() == events
    info = tee.info()
    assert info.compose_hash == hashlib.sha256(compose).digest()
    assert info.app_id == info.compose_hash[:20]
    assert info.key_provider_info == b'{"name":"none","id":""}'
    assert names(tee) == [*BOOT, "a"]
    machine.boot("boot-2")
    tee = start()
    tee.measure_app()
    assert names(tee) == BOOT


def test_an_app_can_have_another_id(start: Start, shared: Path) -> None:
    """It is what evidence says; twenty bytes."""
    app_compose(shared, event_log_version=2)
    tee = start()
    with pytest.raises(UsageError, match="20 bytes"):
        tee.measure_app(bytes(21))
    events = tee.measure_app(b"\7" * 20)
    assert {event.version for event in events} == {2}
    assert tee.info().app_id == b"\7" * 20


def test_an_app_is_not_measured_late(start: Start, shared: Path, machine: Machine) -> None:
    """Whatever else is in register or log: nothing is emitted, and what to do is said."""
    app_compose(shared)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("1 events were emitted before", lambda: start().emit_event("a", b"")),
        ("does not explain", lambda: machine.extend(b"\1" * 48)),
        ("does not explain", lambda: measured_and_extended(start(), machine)),
        ("another app", lambda: start().measure_app(b"\1" * 20)),
        ("after 3 of 9 events", lambda: half_measured(start())),
    ]
    for number, (told, happens) in enumerate(cases):
        machine.boot(f"boot-{number + 2}")
        happens()
        before = machine.read()
        tee = start()
        with pytest.raises(JournalError, match=told) as caught:
            tee.measure_app()
        assert "reboot" in str(caught.value)
        assert machine.read() == before


def measured_and_extended(tee: Attester, machine: Machine) -> None:
    """Measure the app, and have somebody else extend the register."""
    tee.measure_app()
    machine.extend(b"\1" * 48)


def half_measured(tee: Attester) -> None:
    """Measure the app and die on the way."""
    assert isinstance(tee.backend, FakeTd)
    journal = tee.backend.open_journal()
    assert tee.host is not None
    for event in untyped(tee.host).boot_events()[:3]:
        journal.emit(event)


def test_another_boots_register_is_not_zero(start: Start, shared: Path, machine: Machine) -> None:
    """After a kexec the register holds the app of before, which nobody can tell any more."""
    app_compose(shared)
    start().measure_app()
    machine.boot("boot-2", machine.read())
    with pytest.raises(JournalError, match="reboot"):
        start().measure_app()


def test_measuring_needs_an_app(start: Start, machine: Machine) -> None:
    """Nothing is measured of an app that nobody knows."""
    with pytest.raises(UnsupportedError, match=r"app-compose\.json"):
        start().measure_app()
    assert machine.read() == bytes(48)


def test_nobody_emits_meanwhile(start: Start, shared: Path) -> None:
    """The sequence is one: an event of another thread comes before all of it, or behind."""
    app_compose(shared)
    one, two = start(), start()
    outcome: list[object] = []

    def measure() -> None:
        try:
            outcome.append(one.measure_app())
        except JournalError as error:
            outcome.append(error)

    threads = [
        threading.Thread(target=measure),
        threading.Thread(target=two.emit_event, args=("a", b"")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = names(two)
    if isinstance(outcome[0], JournalError):
        assert found == ["a"]
    else:
        assert found == [*BOOT, "a"]


# -- how much evidence can hold ----------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_an_event_that_is_too_large_is_refused(
    start: Start, shared: Path, machine: Machine, version: int
) -> None:
    """Before the register is extended: evidence that nobody reads would be of no use."""
    app_compose(shared, event_log_version=version)
    tee = start()
    for name, payload in (("a", bytes(6 << 20)), ("\1" * (3 << 20), b"")):
        with pytest.raises(UsageError, match="too large"):
            tee.emit_event(name, payload)
    assert machine.read() == bytes(48)
    largest = (MAX_SIZE - (1 << 20)) // (2 if version == 1 else 6)
    tee.emit_event("large", bytes(largest))
    with pytest.raises(JournalError, match=r"full.*reboot"):
        tee.emit_event("one too many", bytes(largest // 2))
    assert names(tee) == ["large"]
    json_text = tee.event_log().to_json()
    assert EventLog.from_json(json_text).replay() == tee.registers()


def test_a_full_log_is_refused(
    start: Start, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many events as evidence may have, those of the firmware among them, and not one more."""
    firmware = len(EventLog.from_ccel(FIRMWARE_LOG).events)
    monkeypatch.setattr(td_source, "MAX_ITEMS", firmware + 3)
    tee = start()
    for number in range(3):
        tee.emit_event(f"{number}", b"")
    before = machine.read()
    with pytest.raises(JournalError, match=r"full.*events"):
        tee.emit_event("one too many", b"")
    assert machine.read() == before
    assert names(tee) == ["0", "1", "2"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["a", "\1" * 9, "\N{SNOWMAN}", '"\\' * 20])
def test_sizes_are_upper_bounds(machine: Machine, version: int, name: str) -> None:
    """In V0, V1 and V1 in CBOR an event takes at most what it is counted as.

    Forms of a CMW are larger, so a log that is nearly full may fit into those alone.
    """
    quote = Quote.parse(FakeTd(machine).get_quote(bytes(64)))
    encodings: list[Encoding] = ["v0", "v1", "v1-cbor"] if version == 1 else ["v1", "v1-cbor"]
    for payload in (b"", b"\xff", bytes(range(256)) * 20):
        event = runtime_event(name, payload, version)
        counted = size_in_evidence(event)
        for encoding in encodings:
            sizes = [
                len(Attestation.for_tdx(quote, EventLog(events)).to_bytes(encoding))
                for events in ((event,) * 100, (event,) * 101)
            ]
            assert sizes[1] - sizes[0] <= counted
        assert len(EventLog((event,)).to_json()) <= counted


def test_the_bounds_are_those_of_readers() -> None:
    """What is emitted can be read: the numbers are those of the parsers."""
    assert (MAX_ITEMS, MAX_SIZE) == (65_536, 10 << 20)
