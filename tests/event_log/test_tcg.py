"""TPM logs replay to the recorded PCR values."""

import base64
import json
import pickle
import struct
from typing import Any

import pytest

from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.event_log import EventLog, TpmEvent, TpmEventLog
from attestkit.event_log.tcg import NO_PCR
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, load, needs_shared

LOGS = [log for log in load("eventlogs.json").get("logs", []) if "tpm" in log["path"]]
WINDOWS = "ccel/tpm/go-eventlog-legacy/option_rom_eventlog"
GCP = "ccel/tpm/dstack/tpm_eventlog.bin"


def read_log(path: str) -> bytes:
    """Read a sample; one of them is base64 inside JSON."""
    raw = data(path)
    return base64.b64decode(json.loads(raw)["Log"]["Raw"]) if path.endswith(".json") else raw


def old_event(pcr: int, event_type: int, digest: bytes, event: bytes) -> bytes:
    """Return a TCG_PCR_EVENT."""
    return struct.pack("<II20sI", pcr, event_type, digest, len(event)) + event


@needs_shared
@every_case("vector", LOGS, ids=[log["path"] for log in LOGS])
def test_tpm_log_of_every_sample_replays_to_its_pcrs(vector: dict[str, Any]) -> None:
    """Both formats: the number of events per PCR and type, and every bank, match."""
    log = TpmEventLog.parse(read_log(vector["path"]))
    assert len(log.events) == vector["events"]
    assert log.banks == tuple(vector["replay"])
    for bank, values in vector["replay"].items():
        assert {str(pcr): v.hex() for pcr, v in sorted(log.replay(bank).items())} == values
    pcrs = [event.pcr for event in log.events]
    assert {str(pcr): pcrs.count(pcr) for pcr in sorted(pcrs)} == vector["events_per_index"]
    types = [f"0x{event.event_type:08x}" for event in log.events]
    assert {t: types.count(t) for t in sorted(types)} == vector["events_per_type"]
    if locality := vector.get("startup_locality"):
        assert log.startup_locality == locality == 3


@needs_shared
def test_tpm_event_has_digest_per_bank() -> None:
    """The first event has one digest per bank, in the order of the record."""
    event = TpmEventLog.parse(data(GCP)).events[2]
    assert (event.pcr, event.type_name) == (0, "EV_S_CRTM_VERSION")
    assert [(name, len(digest)) for name, digest in event.digests] == [
        ("sha1", 20),
        ("sha256", 32),
        ("sha384", 48),
    ]
    assert event.digest("sha1") == event.digests[0][1]
    assert event.data.decode("utf-16-le") == "GCE Virtual Firmware v2\0"
    with raises(UsageError, "unknown_name"):
        event.digest("sha512")


@needs_shared
def test_tpm_log_keeps_record_without_pcr() -> None:
    """An informative Windows record with PCR index 0xFFFFFFFF does not end the log."""
    log = TpmEventLog.parse(data(WINDOWS))
    assert [event.type_name for event in log.events if event.pcr == NO_PCR] == ["EV_NO_ACTION"]
    more = TpmEventLog.parse(data(WINDOWS) + old_event(23, 4, bytes(20), b""))
    assert more.events[:-1] == log.events
    assert sorted(more.replay("sha1")) == [*sorted(log.replay("sha1")), 23]


def test_startup_locality_sets_initial_pcr_0() -> None:
    """Locality 3 or 4 changes PCR 0 only; other values are rejected at their byte."""
    for locality in (0, 3, 4):
        first = old_event(0, 3, bytes(20), b"StartupLocality\0" + bytes([locality]))
        log = TpmEventLog.parse(first + old_event(0, 4, bytes(20), b"") * 2)
        start = TpmEventLog.parse(old_event(0, 4, bytes(20), b"") * 2).replay("sha1")
        assert log.startup_locality == locality
        assert (log.replay("sha1") == start) == (locality == 0)
    for wrong in (b"\1", b"\5", b"\3\0", b""):
        with raises(FormatError, "startup_locality", offset=48):
            TpmEventLog.parse(old_event(0, 3, bytes(20), b"StartupLocality\0" + wrong))
    extending = old_event(0, 4, bytes(20), b"StartupLocality\0\5")
    assert TpmEventLog.parse(extending).startup_locality == 0


def test_replay_of_pcrs_17_to_22_starts_with_ones() -> None:
    """PCRs 17 to 22 start as ones, their neighbours as zeros."""
    values = {}
    for pcr in (16, 17, 22, 23):
        values[pcr] = TpmEventLog.parse(old_event(pcr, 4, bytes(20), b"")).replay("sha1")[pcr]
    assert values[16] == values[23] != values[17] == values[22]


def test_replay_of_missing_bank_fails() -> None:
    """A bank missing in the log or in a record, and a hash unknown to Python, are reported."""
    old = TpmEventLog.parse(old_event(0, 4, bytes(20), b""))
    with raises(UsageError, "unknown_name"):
        old.replay()
    partly = TpmEventLog(("sha1", "sha256"), (TpmEvent(0, 4, (("sha1", bytes(20)),), b""),))
    assert len(partly.replay("sha1")[0]) == 20
    with raises(FormatError, "digest_count"):
        partly.replay("sha256")
    unknown = TpmEventLog(("0x0099",), (TpmEvent(0, 4, (("0x0099", bytes(20)),), b""),))
    with raises(UnsupportedError, "feature"):
        unknown.replay("0x0099")


@needs_shared
def test_tpm_log_of_ccel_fails() -> None:
    """OVMF's CCELs are recognised by their header, td-shim's by their fill."""
    with pytest.raises(FormatError) as caught:
        TpmEventLog.parse(data("ccel/dstack/ccel.bin"))
    assert caught.value.offset == 0


@needs_shared
def test_tpm_log_is_value_object() -> None:
    """Equal logs are equal, hash alike and pickle; repr does not contain their events."""
    log = TpmEventLog.parse(data(GCP))
    copy = pickle.loads(pickle.dumps(log))
    assert (copy, hash(copy), copy.replay()) == (log, hash(log), log.replay())
    assert log != EventLog()
    assert repr(log) == "<TpmEventLog of 45 events, sha1, sha256, sha384>"
