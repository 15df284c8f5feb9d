"""AppInfo identifies the app, and an app cannot claim another identity."""

import hashlib
from typing import Any

import msgspec.msgpack
import pytest

from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError, ReplayError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event, runtime_preimage
from attestkit.quote import TdQuoteBody
from tests.attestation.samples import FIXTURE, TPM_QUOTE
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.nitro_documents import document
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

CASES: list[dict[str, Any]] = load("app_info.json").get("cases", [])
SIMULATOR: dict[str, Any] = load("attestation_v0_simulator.json")
MSGPACK: list[dict[str, Any]] = load("ratls.json").get("app_info_msgpack", [])
EXTENSIONS: list[dict[str, Any]] = load("guest_v1.json").get("app_info", [])

BOOT = (
    parts.RuntimeEvent("system-preparing", b""),
    parts.RuntimeEvent("app-id", b"\1" * 20),
    parts.RuntimeEvent("compose-hash", b"\2" * 32),
    parts.RuntimeEvent("init-script-hash", b"\3" * 32),
    parts.RuntimeEvent("init-script-hash", b"\4" * 32),
    parts.RuntimeEvent("instance-id", b"\5" * 20),
    parts.RuntimeEvent("boot-mr-done", b""),
    parts.RuntimeEvent("key-provider", b'{"name":"kms","id":""}'),
    parts.RuntimeEvent("system-ready", b""),
)
CLAIMS = tuple(
    parts.RuntimeEvent(name, b"\xff" * size)
    for name, size in [
        ("app-id", 20),
        ("compose-hash", 32),
        ("instance-id", 20),
        ("key-provider", 5),
        ("init-script-hash", 32),
    ]
)


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 digest."""
    return hashlib.sha256(data).digest()


def replay256(*events: parts.RuntimeEvent) -> bytes:
    """Replay events as a TPM's SHA-256 bank does."""
    register = bytes(32)
    for event in events:
        register = sha256(register + sha256(runtime_preimage(*event)))
    return register


def replay384(*events: parts.RuntimeEvent) -> bytes:
    """Replay events as RTMR3 does."""
    return EventLog([runtime_event(*event) for event in events]).replay()[3]


def nitro_tpm(*events: parts.RuntimeEvent, pcr14: bytes | None = None) -> Attestation:
    """Return NitroTPM evidence; PCR 14 is the replay of the events unless given."""
    pcrs = {number: bytes([number]) * 48 for number in (4, 7, 12)}
    pcrs[14] = replay384(*events) if pcr14 is None else pcr14
    raw = document(tpm=True, nitrotpm_pcrs=pcrs)
    return Attestation(Evidence(parts.NitroTpm(raw), parts.Stack(bytes(64), events, "")))


def evidence_of_case(case: dict[str, Any]) -> Attestation:
    """Return the evidence of a vector."""
    raw = data(case["file"].removeprefix("data/"))
    if case["input"] == "whole file":
        return Attestation.from_bytes(raw)
    return Attestation.from_agent_response(raw)


def td_with_events(*events: parts.RuntimeEvent) -> Attestation:
    """Return the captured TD with other runtime events."""
    platform, stack = Attestation.from_bytes(FIXTURE).evidence
    return Attestation(Evidence(platform, stack._replace(runtime_events=events)))


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_app_info_of_captures_matches_vectors(case: dict[str, Any]) -> None:
    """Every field of six captures matches, in the order of the agent's JSON."""
    evidence = evidence_of_case(case)
    found = evidence.app_info.to_dict()
    assert found == {name: case[name] for name in found}
    assert list(found) == [name for name in case if name in found]
    assert AppInfo.from_dict(found) == evidence.app_info
    if "mr_config_document" in case:
        assert parts.SevSnp(*evidence.evidence.platform).mr_config == case["mr_config_document"]
    for name in ("measurement", "host_data", "chip_id"):
        if name in case:
            assert getattr(evidence.snp_report, name).hex() == case[name]
    if "mr_config_id" in case:
        assert evidence.quote is not None
        assert untyped(evidence.quote.body).mr_config_id.hex() == case["mr_config_id"]


@needs_shared
def test_app_info_with_verified_device_has_device_id() -> None:
    """The device id derives from the verified module's name."""
    (case,) = [c for c in CASES if "device_id_verified" in c]
    device = case["module_id"].split("-")[0].encode()
    found = evidence_of_case(case).read_app_info(device=device)
    assert found.device_id.hex() == case["device_id_verified"]


@needs_shared
def test_app_info_at_boottime_has_no_key_provider() -> None:
    """At boot time the key provider is empty, and the replay ends with boot-mr-done."""
    evidence, expected = Attestation.from_bytes(FIXTURE), SIMULATOR["boottime"]
    info = evidence.read_app_info(boottime=True)
    assert info.mr_system.hex() == expected["mr_system"]
    assert info.mr_aggregated.hex() == expected["mr_aggregated"]
    assert info.key_provider_info == b""
    whole = evidence.app_info
    assert info.app_id == whole.app_id != b""
    assert info.instance_id == whole.instance_id != b""
    assert expected["mr_key_provider"] == bytes(32).hex()
    to_boot = [e.name for e in evidence.runtime_events].index("boot-mr-done") + 1
    register = EventLog(evidence.runtime_events[:to_boot]).replay()[3]
    assert register.hex() == expected["replayed_rtmr3_to_boot_mr_done"]


@needs_shared
def test_app_info_of_snp_does_not_depend_on_boottime() -> None:
    """An SNP guest's identity is fixed at launch."""
    guest = evidence_of_case(next(c for c in CASES if "host_data" in c))
    assert guest.read_app_info(boottime=True) == guest.app_info


@needs_shared
def test_app_info_with_external_config_uses_it() -> None:
    """A configuration received beside evidence without one is used."""
    evidence = Attestation.from_bytes(FIXTURE)
    platform, stack = evidence.evidence
    without = Attestation(Evidence(platform, stack._replace(config="")))
    found = without.with_vm_config('{"vm_config":"{\\"os_image_hash\\":\\"ab\\"}"}')
    info = found.app_info
    assert info.os_image_hash == b"\xab"
    assert info._replace(os_image_hash=b"") == evidence.app_info._replace(os_image_hash=b"")


@needs_shared
def test_app_info_ignores_events_after_system_ready() -> None:
    """Events after system-ready do not change the identity, whatever their names."""
    honest, more = (
        td_with_events(*BOOT).app_info,
        td_with_events(*BOOT, *CLAIMS, BOOT[-1]).app_info,
    )
    assert honest.app_id == b"\1" * 20
    assert honest.init_script_hashes == (b"\3" * 32, b"\4" * 32)
    assert more.mr_aggregated != honest.mr_aggregated
    assert more._replace(mr_aggregated=b"") == honest._replace(mr_aggregated=b"")


@needs_shared
def test_app_info_uses_first_event_of_a_name() -> None:
    """A repeated event changes the registers only."""
    doubled = td_with_events(*BOOT[:-1], *CLAIMS[:4], BOOT[-1]).app_info
    assert doubled.app_id == b"\1" * 20
    assert doubled.key_provider_info == BOOT[7].payload


@needs_shared
@pytest.mark.parametrize("boottime", [False, True])
def test_app_info_without_end_of_boot_is_empty(boottime: bool) -> None:
    """Without the end of the boot an app could have emitted the events: no identity."""
    events = (*BOOT[:6], *CLAIMS)
    info = td_with_events(*events).read_app_info(boottime=boottime)
    assert (info.app_id, info.compose_hash, info.instance_id) == (b"", b"", b"")
    assert (info.key_provider_info, info.init_script_hashes) == (b"", ())
    assert td_with_events().app_info.app_id == b""
    quote = Attestation.from_bytes(FIXTURE).quote
    assert quote is not None
    body = quote.body
    assert isinstance(body, TdQuoteBody)
    launch = body.mrtd + body.rtmr0 + body.rtmr1 + body.rtmr2
    assert info.mr_system == sha256(launch + bytes(32))


@needs_shared
def test_app_info_during_boot_has_boottime_identity_only() -> None:
    """Up to boot-mr-done the app is identified for the key request only."""
    booting = td_with_events(*BOOT[:8])
    assert booting.read_app_info(boottime=True).app_id == b"\1" * 20
    assert booting.app_info.app_id == b""


@needs_shared
def test_app_info_replays_version_2_events() -> None:
    """The replay uses each event's version."""
    v2 = tuple(event._replace(version=2) for event in BOOT)
    one, two = td_with_events(*BOOT).app_info, td_with_events(*v2).app_info
    assert two.app_id == one.app_id
    assert two.mr_aggregated != one.mr_aggregated


@needs_shared
def test_app_info_of_gcp_uses_tpm_registers() -> None:
    """On GCP, image and PCRs identify the machine, and events are replayed with SHA-256."""
    platform, stack = Attestation.from_bytes(FIXTURE).evidence
    gcp = parts.GcpTdx(*parts.Tdx(*platform), TPM_QUOTE)
    evidence = Attestation(Evidence(gcp, stack._replace(runtime_events=BOOT)))
    info = evidence.app_info
    assert info.app_id == b"\1" * 20
    provider = sha256(BOOT[7].payload)
    assert info.mr_system == sha256(info.os_image_hash + provider)
    assert info.mr_aggregated == sha256(b"\1" * 32 + b"\2" * 32 + replay256(*BOOT))
    boot = evidence.read_app_info(boottime=True)
    assert boot.mr_aggregated == sha256(b"\1" * 32 + b"\2" * 32 + replay256(*BOOT[:7]))
    lacking = gcp._replace(tpm_quote=TPM_QUOTE._replace(pcr_values=TPM_QUOTE.pcr_values[:1]))
    with raises(FormatError, "missing", part="PCR 2"):
        _ = Attestation(Evidence(lacking, stack)).app_info


def test_app_info_of_nitro_tpm_checks_events_against_pcr_14() -> None:
    """On AWS EC2 the events must replay to the quoted PCR, in both variants."""
    info = nitro_tpm(*BOOT).app_info
    launch = b"\4" * 48 + b"\7" * 48 + b"\x0c" * 48
    assert info.app_id == b"\1" * 20
    assert info.mr_system == sha256(launch + sha256(BOOT[7].payload))
    assert info.mr_aggregated == sha256(launch + replay384(*BOOT))
    boot = nitro_tpm(*BOOT).read_app_info(boottime=True)
    assert boot.mr_aggregated == sha256(launch + replay384(*BOOT[:7]))
    assert boot.mr_system == sha256(launch + bytes(32))
    wrong = nitro_tpm(*BOOT, pcr14=bytes(48))
    text = f"PCR14 mismatch, quoted: {bytes(48).hex()}, replayed: {replay384(*BOOT).hex()}"
    for boottime in (False, True):
        with raises(ReplayError, "pcr_mismatch", text=text):
            wrong.read_app_info(boottime=boottime)


@needs_shared
def test_app_info_of_enclave_follows_from_image() -> None:
    """A Nitro Enclave has no boot sequence: its one event is read, up to system-ready."""
    case = next(c for c in CASES if "pcr0" in c)
    platform, stack = evidence_of_case(case).evidence
    events = (BOOT[1], BOOT[-1], *CLAIMS)
    info = Attestation(Evidence(platform, stack._replace(runtime_events=events))).app_info
    assert info.app_id == b"\1" * 20
    assert info.compose_hash == info.os_image_hash
    assert (info.instance_id, info.key_provider_info, info.init_script_hashes) == (b"", b"", ())


@needs_shared
def test_app_info_of_snp_with_other_document_fails() -> None:
    """A document that does not match HOST_DATA is rejected with both values."""
    case = next(c for c in CASES if "host_data" in c)
    platform, stack = evidence_of_case(case).evidence
    other = parts.SevSnp(*platform)._replace(mr_config=case["mr_config_document"] + " ")
    with raises(ReplayError, "host_data_mismatch") as caught:
        _ = Attestation(Evidence(other, stack)).app_info
    start = f"amd sev-snp HOST_DATA mismatch, quoted: {case['host_data']}, expected: "
    assert str(caught.value).startswith(start)


@needs_shared
@pytest.mark.parametrize("row", MSGPACK, ids=lambda row: row["form"])
def test_app_info_msgpack_matches_vectors(row: dict[str, Any]) -> None:
    """Arrays of 9 and of 8 are read and written byte for byte."""
    info = AppInfo.from_dict(row["app_info"])
    raw = bytes.fromhex(row["msgpack"])
    assert AppInfo.from_msgpack(raw) == info
    assert info.to_msgpack(array=8 if "8" in row["form"] else 9) == raw


@needs_shared
@pytest.mark.parametrize("row", EXTENSIONS, ids=lambda row: row["name"])
def test_app_info_extension_matches_vectors(row: dict[str, Any]) -> None:
    """A map is written, and maps and arrays of both sizes are read."""
    info = AppInfo.from_dict(row["fields"])
    assert info.to_msgpack().hex() == row["named_map"]
    assert info.to_msgpack(array=9).hex() == row["array_of_9"]
    for form in ("named_map", "array_of_9"):
        assert AppInfo.from_msgpack(bytes.fromhex(row[form])) == info
    assert info.to_msgpack(array=8).hex() == row["array_of_8"]
    older = AppInfo.from_msgpack(bytes.fromhex(row["array_of_8"]))
    assert older == info._replace(init_script_hashes=None)


def test_app_info_from_map_ignores_order_and_unknown_keys() -> None:
    """Keys have any order, heads any width, and byte strings any form; unknown keys are skipped."""
    fields: list[tuple[str, object]] = [(name, b"\xff") for name in AppInfo._fields[:-1]]
    expected = AppInfo._make([*[b"\xff"] * 8, None])
    unknown: list[tuple[str, object]] = [("later", {"a": [1, {"b": None}]}), ("", b"x")]
    for items in (
        fields,
        fields[::-1],
        [*unknown, *fields],
        [*fields, ("init_script_hashes", None)],
        [("init_script_hashes", None), *fields[::-1], *unknown],
    ):
        assert AppInfo.from_msgpack(msgspec.msgpack.encode(dict(items))) == expected
    wide = msgspec.msgpack.encode(dict(fields))
    assert AppInfo.from_msgpack(b"\xdf\0\0\0" + bytes([wide[0] & 15]) + wide[1:]) == expected
    longer = wide.replace(b"\xa6app_id\xc4\1\xff", b"\xda\0\6app_id\xc6\0\0\0\1\xff")
    assert AppInfo.from_msgpack(longer) == expected
    numbers = wide.replace(b"\xc4\1\xff", b"\xdc\0\1\xcc\xff")
    assert AppInfo.from_msgpack(numbers) == expected
    array = b"\xdc\0\x08" + b"\xc4\1\xff" * 8
    assert AppInfo.from_msgpack(array) == expected


@needs_shared
def test_app_info_from_truncated_msgpack_fails() -> None:
    """No proper prefix is an AppInfo, and trailing bytes are rejected."""
    raw = Attestation.from_bytes(FIXTURE).app_info.to_msgpack()
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            AppInfo.from_msgpack(raw[:size])
    with raises(FormatError, "trailing_data", offset=len(raw)):
        AppInfo.from_msgpack(raw + b"\0")


EMPTY = AppInfo(b"", b"", b"", b"", b"", b"", b"", b"", None)


NAMED = EMPTY.to_msgpack()


@every_case(
    ("raw", "reason"),
    [
        (b"\x97" + b"\xc4\0" * 7, "wrong_size"),
        (b"\x9a" + b"\xc4\0" * 9 + b"\xc0", "wrong_size"),
        (b"\x80", "missing"),
        (b"\x81\xa6app_id\xc4\0", "missing"),
        (b"\x82" + b"\xa6app_id\xc4\0" * 2, "duplicate"),
        (b"\x82" + b"\xb2init_script_hashes\xc0" * 2, "duplicate"),
        (b"\x81\1\xc0", "wrong_type"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x99" + b"\xa0" * 8 + b"\xc0", "wrong_type"),
        (b"\xc0", "wrong_type"),
        (NAMED.replace(b"\xc4\0", b"\xc0", 1), "wrong_type"),
        (NAMED + b"\xc0", "trailing_data"),
        (b"\x8a\xa1x\xc5\xff\xff" + bytes(65_535) + NAMED[1:], "too_large"),
        (EMPTY._replace(init_script_hashes=(bytes(31),)).to_msgpack(), "wrong_value"),
        (EMPTY._replace(init_script_hashes=(bytes(32),) * 6).to_msgpack(), "wrong_value"),
        (
            EMPTY._replace(init_script_hashes=(bytes(32),) * 6).to_msgpack(array=9),
            "wrong_value",
        ),
    ],
)
def test_app_info_from_invalid_msgpack_fails(raw: bytes, reason: str) -> None:
    """Wrong counts and types, missing or repeated fields, and too many or invalid hashes fail."""
    with raises(FormatError, reason):
        AppInfo.from_msgpack(raw)


@every_case(
    "change",
    [
        {"app_id": None},
        {"app_id": "x"},
        {"init_script_hashes": "x"},
        {"init_script_hashes": ["ab"]},
        {"init_script_hashes": ["ab" * 32] * 6},
    ],
)
def test_app_info_from_invalid_json_fails(change: dict[str, Any]) -> None:
    """Missing fields and wrong types raise FormatError."""
    with pytest.raises(FormatError):
        AppInfo.from_dict(EMPTY.to_dict() | change)


@needs_shared
@pytest.mark.parametrize("config", ["x", "[]", '{"vm_config":"x"}', '{"os_image_hash":"x"}'])
def test_app_info_with_malformed_config_fails(config: str) -> None:
    """A malformed configuration is an error, not an empty image hash."""
    platform, stack = Attestation.from_bytes(FIXTURE).evidence
    with pytest.raises(FormatError):
        _ = Attestation(Evidence(platform, stack._replace(config=config))).app_info


@needs_shared
def test_app_info_does_not_depend_on_order_of_access() -> None:
    """Digests cached by the log are reused for the same events only."""
    fixture = Attestation.from_bytes(FIXTURE)
    runtime = fixture.evidence.stack.runtime_events
    others = (
        runtime,
        runtime[:-1],
        runtime[::-1],
        (*runtime[:-1], runtime[-1]._replace(payload=b"other")),
        (*runtime[:-1], runtime[-1]._replace(version=2)),
        (),
    )
    for events in others:
        evidence = fixture.evidence._replace(
            stack=fixture.evidence.stack._replace(runtime_events=events)
        )
        first, later = Attestation(evidence), Attestation(evidence)
        assert later.event_log.runtime == fixture.event_log.runtime
        assert later.runtime_events == first.runtime_events
        assert [event[3:] for event in later.runtime_events] == list(events)
        for boottime in (False, True):
            expected = Attestation(evidence).read_app_info(boottime=boottime)
            assert later.read_app_info(boottime=boottime) == expected
