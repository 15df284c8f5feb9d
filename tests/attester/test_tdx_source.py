"""Evidence of hardware TDs: the shared runtime log, the app, and size limits."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

import attestkit
from attestkit.attestation import MAX_SIZE, Attestation, Encoding
from attestkit.attester import Attester, evidence_source
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
from tests.attester.host_files import write_app_compose, write_sys_config
from tests.machines.tees import FIRMWARE_LOG, FakeTd, Machine
from tests.raising import raises
from tests.untyped import untyped
from tests.vectors import data, needs_shared

Start: TypeAlias = Callable[[], Attester]


def event_names(tee: Attester) -> list[str]:
    """Return the names of the runtime events in evidence, after a check of its log."""
    evidence = Attestation.from_bytes(tee.attest(report_data=bytes(64)).to_bytes())
    assert evidence.quote is not None
    evidence.event_log.check(evidence.quote)
    assert evidence.quote.rtmrs == tee.registers()
    return [event.name for event in evidence.runtime_events]


# -- shared log --------------------------------------------------------------------------------


def test_processes_share_the_event_log(start: Start) -> None:
    """Each process sees the events of the others, and of earlier ones."""
    one, two = start(), start()
    assert event_names(one) == []
    one.emit_event("a", b"1")
    two.emit_event("b", b"2")
    one.emit_event("c", b"3")
    assert event_names(one) == event_names(two) == event_names(start()) == ["a", "b", "c"]


def test_event_log_is_empty_after_reboot(start: Start, machine: Machine) -> None:
    """The first event archives the old log, which evidence ignores before."""
    start().emit_event("a", b"")
    old = (machine.log / LOG).read_bytes()
    machine.boot("boot-2")
    tee = start()
    assert event_names(tee) == []
    tee.emit_event("b", b"")
    assert event_names(tee) == ["b"]
    assert (machine.log / f"{LOG}.boot-1").read_bytes() == old


def assert_rejects_evidence(tee: Attester) -> None:
    """Assert that quotes can be made, but no evidence and events."""
    assert tee.get_quote(b"").rtmrs == tee.registers()
    with raises(ReplayError, "rtmr_mismatch") as caught:
        tee.attest(report_data=bytes(64))
    for fact in ("RTMR3", f"/{LOG}", "attestkit doctor", "reboot"):
        assert fact in str(caught.value)
    with raises(JournalError, "mismatch"):
        tee.emit_event("more", b"")


def test_event_log_of_another_boot_is_rejected(start: Start, machine: Machine) -> None:
    """After a kexec the register keeps its value, without an explanation."""
    start().emit_event("a", b"")
    machine.boot("boot-2", machine.read())
    assert_rejects_evidence(start())


def test_foreign_extend_is_rejected_in_each_process(start: Start, machine: Machine) -> None:
    """It stops evidence and events."""
    one, two = start(), start()
    one.emit_event("a", b"")
    assert event_names(two) == ["a"]
    machine.extend(b"\1" * 48)
    assert_rejects_evidence(one)
    assert_rejects_evidence(two)
    assert_rejects_evidence(start())


def write_agent_log(machine: Machine, *events: str) -> None:
    """Write a log like the dstack guest agent, without a boot ID."""
    machine.log.mkdir()
    (machine.log / LOG).write_bytes(
        b"".join(runtime_line(runtime_event(name, b"")) for name in events)
    )
    for name in events:
        machine.extend(runtime_event(name, b"").digest)


def test_agent_log_of_this_boot_is_adopted(start: Start, machine: Machine) -> None:
    """A log that explains the register is continued, with attestkit's files beside it."""
    write_agent_log(machine, "system-ready", "a")
    tee = start()
    assert event_names(tee) == ["system-ready", "a"]
    tee.emit_event("b", b"")
    assert event_names(tee) == event_names(start()) == ["system-ready", "a", "b"]
    assert (machine.log / BOOT_ID).read_text() == "boot-1\n"
    assert (machine.log / VERSION).read_text() == "1"


def test_agent_log_of_earlier_boot_is_rejected(start: Start, machine: Machine) -> None:
    """The log may be in a directory that survives reboots."""
    write_agent_log(machine, "a")
    machine.boot("boot-2")
    assert_rejects_evidence(start())


# -- the app -----------------------------------------------------------------------------------


def test_event_version_is_the_apps(start: Start, shared: Path, machine: Machine) -> None:
    """The first event stores it; the default is 1; later it is fixed."""
    write_app_compose(shared, event_log_version=2)
    assert start().emit_event("a:b", b"").version == 2
    assert (machine.log / VERSION).read_text() == "2"
    (shared / "app-compose.json").unlink()
    assert start().emit_event("c", b"").version == 2
    write_app_compose(shared, event_log_version=1)
    with raises(JournalError, "event_version"):
        start().emit_event("d", b"")
    machine.boot("boot-2")
    (shared / "app-compose.json").unlink()
    assert start().emit_event("e", b"").version == 1


def test_malformed_app_compose_prevents_events(
    start: Start, shared: Path, machine: Machine
) -> None:
    """The event version would be unknown; quotes need no app."""
    (shared / "app-compose.json").write_bytes(b"{}")
    tee = start()
    for call in (
        lambda: tee.emit_event("a", b""),
        lambda: tee.attest(report_data=bytes(64)),
        tee.event_log,
    ):
        with raises(ConfigError, "missing", part="app-compose.json: manifest_version"):
            call()
    tee.get_quote(b"")
    assert machine.read() == bytes(48)
    write_app_compose(shared)
    tee.emit_event("a", b"")


def test_evidence_has_the_hosts_vm_config(start: Start, shared: Path) -> None:
    """It is unchanged, and empty without a sys-config."""
    tee = start()
    assert tee.attest(report_data=bytes(64)).config == tee.vm_config == ""
    text = json.dumps({"os_image_hash": "ab" * 32, "odd": "\N{SNOWMAN}"})
    write_sys_config(shared, text)
    assert tee.attest(report_data=bytes(64)).config == tee.vm_config == text
    assert tee.app_info.os_image_hash == b"\xab" * 32
    (shared / ".sys-config.json").write_bytes(b"{")
    with raises(ConfigError, "syntax", part=".sys-config.json"):
        start().attest(report_data=bytes(64))


@needs_shared
def test_keys_are_those_of_the_host(start: Start, shared: Path) -> None:
    """Without the file the error names it; the keys are wiped at the end."""
    tee = start()
    for use, reason in ((lambda: tee.keys, "no_keys"), (lambda: tee.app_compose, "no_app")):
        with raises(UnsupportedError, reason, part=str(shared)):
            use()
    file = data("dstack/simulator/appkeys.json")
    (shared / ".appkeys.json").write_bytes(file)
    keys = tee.keys
    assert keys is tee.keys
    path = "my/key/path"
    root = bytes.fromhex(json.loads(file)["k256_key"])
    assert keys.derive_compat(path).key != root
    assert keys.derive_compat(path).signature_chain[1].hex() == json.loads(file)["k256_signature"]
    tee.close()
    with raises(UsageError, "closed"):
        keys.derive_compat(path)


def test_given_host_takes_precedence(machine: Machine, shared: Path) -> None:
    """The caller owns it, so its keys are not wiped."""
    write_app_compose(shared)

    class FakeHost:
        """Host with an app."""

        write_app_compose = None
        vm_config = '{"a": 1}'
        app_keys = AppKeys.from_seed(bytes(32))

    host = FakeHost()
    with Attester(FakeTd(machine), untyped(host)) as tee:
        assert tee.vm_config == '{"a": 1}'
        tee.keys.derive_compat("a")
    assert host.app_keys.k256_key


def test_invalid_host_shared_dir_is_rejected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalid variable has no fallback."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", "relative")
    td = FakeTd(machine)
    monkeypatch.setattr("attestkit.factory.make_backend", lambda *_: td)
    with raises(UsageError, "wrong_value", part="$DSTACK_HOST_SHARED_DIR"):
        attestkit.open("fake_td")
    assert td.closed == 1


# -- app measurement ---------------------------------------------------------------------------

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


def test_app_is_measured_once_per_boot(start: Start, shared: Path, machine: Machine) -> None:
    """A later process finds the same events; a reboot repeats them."""
    compose = write_app_compose(shared)
    events = start().measure_app()
    assert [event.name for event in events] == BOOT
    tee = start()
    assert tee.measure_app() == events
    assert event_names(tee) == BOOT
    tee.emit_event("a", b"")
    assert start().measure_app() == events
    info = tee.app_info
    assert info.compose_hash == hashlib.sha256(compose).digest()
    assert info.app_id == info.compose_hash[:20]
    assert info.key_provider_info == b'{"name":"none","id":""}'
    assert event_names(tee) == [*BOOT, "a"]
    machine.boot("boot-2")
    tee = start()
    tee.measure_app()
    assert event_names(tee) == BOOT


def test_measure_app_accepts_an_app_id(start: Start, shared: Path) -> None:
    """It must have 20 bytes."""
    write_app_compose(shared, event_log_version=2)
    tee = start()
    with raises(UsageError, "wrong_size"):
        tee.measure_app(bytes(21))
    events = tee.measure_app(b"\7" * 20)
    assert {event.version for event in events} == {2}
    assert tee.app_info.app_id == b"\7" * 20


def test_measure_app_too_late_is_rejected(start: Start, shared: Path, machine: Machine) -> None:
    """With other content in register or log, nothing is emitted and the error has the remedy."""
    write_app_compose(shared)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("events were emitted before", lambda: start().emit_event("a", b"")),
        ("the runtime log", lambda: machine.extend(b"\1" * 48)),
        ("the runtime log", lambda: measure_and_extend(start(), machine)),
        ("a different app", lambda: start().measure_app(b"\1" * 20)),
        ("after 3 of 9 events", lambda: measure_partially(start())),
    ]
    for number, (text, action) in enumerate(cases):
        machine.boot(f"boot-{number + 2}")
        action()
        before = machine.read()
        tee = start()
        with raises(JournalError, "too_late") as caught:
            tee.measure_app()
        for fact in (text, "reboot"):
            assert fact in str(caught.value)
        assert machine.read() == before


def measure_and_extend(tee: Attester, machine: Machine) -> None:
    """Measure the app, and extend the register without an event."""
    tee.measure_app()
    machine.extend(b"\1" * 48)


def measure_partially(tee: Attester) -> None:
    """Measure a part of the app."""
    assert isinstance(tee.backend, FakeTd)
    journal = tee.backend.open_journal()
    assert tee.host is not None
    for event in untyped(tee.host).boot_events()[:3]:
        journal.emit(event)


def test_measure_app_without_app_is_unsupported(start: Start, machine: Machine) -> None:
    """Nothing is extended."""
    with raises(UnsupportedError, "no_app"):
        start().measure_app()
    assert machine.read() == bytes(48)


# -- size limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_emit_event_too_large_is_rejected(
    start: Start, shared: Path, machine: Machine, version: int
) -> None:
    """The register is not extended: verifiers would reject the evidence."""
    write_app_compose(shared, event_log_version=version)
    tee = start()
    for name, payload in (("a", bytes(6 << 20)), ("\1" * (3 << 20), b"")):
        with raises(UsageError, "too_large"):
            tee.emit_event(name, payload)
    assert machine.read() == bytes(48)
    largest = (MAX_SIZE - (1 << 20)) // (2 if version == 1 else 6)
    tee.emit_event("large", bytes(largest))
    with raises(JournalError, "too_large"):
        tee.emit_event("one too many", bytes(largest // 2))
    assert event_names(tee) == ["large"]
    json_text = tee.event_log().to_json()
    assert EventLog.from_json(json_text).replay() == tee.registers()


def test_emit_event_in_full_log_is_rejected(
    start: Start, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit includes the firmware's events."""
    firmware = len(EventLog.from_ccel(FIRMWARE_LOG).events)
    monkeypatch.setattr(evidence_source, "MAX_ITEMS", firmware + 3)
    tee = start()
    for number in range(3):
        tee.emit_event(f"{number}", b"")
    before = machine.read()
    with raises(JournalError, "too_large"):
        tee.emit_event("one too many", b"")
    assert machine.read() == before
    assert event_names(tee) == ["0", "1", "2"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["a", "\1" * 9, "\N{SNOWMAN}", '"\\' * 20])
def test_size_in_evidence_is_an_upper_bound(machine: Machine, version: int, name: str) -> None:
    """It holds for V0, V1 and V1 in CBOR.

    A CMW is larger, so a log near the limit may not fit into one.
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
