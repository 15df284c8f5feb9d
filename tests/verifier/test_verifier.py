"""Tests of the Verifier: results, rejections and the steps passed so far."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from itertools import pairwise, product
from typing import Any, get_args

import pytest

from attestkit._crypto.pem import encode_pem
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import RuntimeEvent, Tdx
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.event_log.event import WireEvent
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE
from attestkit.quote import Quote
from attestkit.verifier import (
    AppraisalPolicy,
    AttestationResult,
    StepCheck,
    TcbStatus,
    Verifier,
)
from attestkit.verifier import verifier as verifier_module
from attestkit.verifier.result import create_result
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, PKI

GENUINE = intel.evidence()
RAW = GENUINE.to_bytes()


def get_error(evidence: bytes | Attestation | Quote, **options: Any) -> AttestKitError:
    """Return the error of a verification that must fail."""
    arguments = {"report_data": NONCE, **options}
    with pytest.raises(AttestKitError) as caught:
        intel.verifier().verify(evidence, **arguments)
    return caught.value


# -- accepted evidence --------------------------------------------------------------------------


def test_verify_genuine_evidence_returns_claims_status_and_identity() -> None:
    """The result has claims, TCB status and identity, and is marked as simulated."""
    result = intel.verifier().verify(RAW, report_data=NONCE)
    assert result.tcb.status is TcbStatus.UP_TO_DATE
    assert result.advisory_ids == ()
    assert result.simulated
    assert result.app_info is not None
    assert result.app_info.app_id == intel.APP_ID
    assert result.app_info.os_image_hash == result.claims.os_image_hash != b""
    assert result.claims.platform == "dstack-tdx"
    assert result.claims.report_data == NONCE.ljust(64, b"\0")
    assert result.claims.get("mrtd") == intel.IMAGE.mrtd
    assert result.claims.get("pcr0") is None
    assert result.claims.event_registers == (0, 1, 2, 3)
    assert [event.name for event in result.claims.events] == [name for name, _ in intel.BOOT]
    assert result.verified_at == NOW
    assert len(result.certificate_chain) == 3
    assert result.certificate_chain[-1] == PKI.root_der
    assert len(result.steps) >= 6


@every_case(
    ("encoding", "version"),
    # V0 does not encode the version of an event.
    [("v0", 1), *product(["v1", "cbor", "object"], [1, 2])],
)
def test_verify_accepts_every_encoding(encoding: str, version: int) -> None:
    """Evidence verifies alike in every encoding."""
    found = intel.evidence(version=version)
    value: bytes | Attestation = (
        found if encoding == "object" else found.to_bytes(untyped(encoding))
    )
    assert intel.verifier().verify(value, report_data=NONCE).app_info is not None


@pytest.mark.parametrize("source", ["raw", "object"])
def test_verify_bare_quote_skips_replay(source: str) -> None:
    """A quote without a log passes without replay, and the steps report it."""
    quote = GENUINE.quote
    assert quote is not None
    result = intel.verifier().verify(quote.raw if source == "raw" else quote, report_data=NONCE)
    assert result.app_info is None
    assert result.claims.events == ()
    assert result.claims.event_registers == ()
    assert any("replay was left out" in step.text for step in result.steps)


def test_claims_and_tcb_are_mappings() -> None:
    """Claims have registers and attributes by name, the TCB its fields; both are read-only."""
    result = intel.verifier().verify(RAW, report_data=NONCE)
    claims, tcb = result.claims, result.tcb
    assert claims["mrtd"] == intel.IMAGE.mrtd
    assert claims["platform"] == claims.platform == "dstack-tdx"
    assert {"report_data", "rtmr3", "td_attributes", "events", "os_image_hash"} <= claims.keys()
    assert len(claims) == len(dict(claims)) == len(list(claims))
    assert claims.get("pcr0") is None
    with pytest.raises(KeyError):
        claims["pcr0"]
    assert tcb["status"] is tcb.status is TcbStatus.UP_TO_DATE
    assert dict(tcb)["fmspc"] == tcb.fmspc
    assert pickle.loads(pickle.dumps(result)) == result
    assert hash(result) == hash(result)
    with pytest.raises(AttributeError):
        untyped(claims).platform = "other"
    with pytest.raises(AttributeError):
        untyped(tcb).status = None


def test_steps_are_for_programs() -> None:
    """Each step names what was checked and its outcome; a caution is marked in text."""
    steps = intel.verifier().verify(RAW, report_data=None).steps
    outcomes = {step.check: step.outcome for step in steps}
    assert outcomes["signature"] == outcomes["event_log"] == outcomes["tcb_status"] == "passed"
    assert outcomes["report_data"] == "skipped"
    assert outcomes["acpi_tables"] == "caution"
    assert {step.check for step in steps} <= set(get_args(StepCheck))
    assert next(str(step) for step in steps if step.outcome == "caution").startswith("caution: ")


def test_verify_stripped_evidence_checks_os_image() -> None:
    """A stripped log explains RTMR3 only, and the OS image is verified nevertheless."""
    result = intel.verifier().verify(GENUINE.stripped().to_bytes(), report_data=NONCE)
    assert result.claims.event_registers == (3,)
    assert result.claims.os_image_hash
    assert any("it is shortened" in step.text for step in result.steps)


@pytest.mark.parametrize(
    "now", [NOW, NOW.timestamp(), NOW.astimezone(timezone(timedelta(hours=5)))]
)
def test_verify_now_overrides_clock(now: datetime | float) -> None:
    """The `now` of a call, an aware datetime or seconds, replaces the clock."""
    with_clock = intel.verifier(clock=lambda: NOW + timedelta(days=400))
    assert with_clock.verify(RAW, report_data=NONCE, now=now).verified_at == NOW
    with pytest.raises(CollateralExpiredError):
        with_clock.verify(RAW, report_data=NONCE)


@every_case("now", [datetime.fromisoformat("2026-09-21"), "today", 1e300, float("nan")])
def test_verify_invalid_now_raises_usage_error(now: Any) -> None:
    """A naive, malformed or out-of-range `now` raises UsageError."""
    assert isinstance(get_error(RAW, now=now), UsageError)


def test_verifier_trust_anchor_pem_or_der_only() -> None:
    """The trust anchor is one certificate in PEM or DER; anything else raises UsageError."""
    pem = encode_pem("CERTIFICATE", PKI.root_der)
    for anchor in (pem, pem.encode(), PKI.root_der):
        assert intel.verifier(trust_anchor=anchor).verify(RAW, report_data=NONCE).simulated
    wrong: tuple[tuple[Any, str], ...] = (
        (pem * 2, "wrong_size"),
        (b"rubbish", "wrong_value"),
        (PKI.root_der[:-1], "wrong_value"),
        (5, "wrong_type"),
        (b"-----\xff", "wrong_value"),
    )
    for anchor, reason in wrong:
        with raises(UsageError, reason):
            Verifier(trust_anchor=anchor)


@pytest.mark.parametrize(
    "argument", ["ak_certificates", "ak_roots", "amd_crls", "snp_certificates"]
)
def test_verifier_malformed_certificate_is_usage_error(argument: str) -> None:
    """A malformed certificate or CRL of the caller is reported at once, and not as evidence's."""
    options: dict[str, Any] = {argument: [b"rubbish"]}
    with raises(UsageError, "wrong_value", start=f"{argument}: "):
        Verifier(**options)
    for wrong in ("text", PKI.root_der, ["text"], None, 5):
        options[argument] = wrong
        with raises(UsageError, "wrong_type", start=f"{argument}: "):
            Verifier(**options)


def test_verify_report_data_none_must_be_explicit() -> None:
    """`report_data=None` accepts any, and the steps report the missing check."""
    result = intel.verifier().verify(RAW, report_data=None)
    assert any("freshness was not checked" in step.text for step in result.steps)


def test_verify_last_step_names_policy() -> None:
    """The last step names the policy that accepted the evidence."""
    for policy, name in ((AppraisalPolicy.strict(), "preset strict"), (REQUIRES_APP_ID, "own")):
        found = intel.verifier(policy=policy).verify(RAW, report_data=NONCE)
        assert name in found.steps[-1].text


# -- rejected evidence --------------------------------------------------------------------------


def test_verify_other_report_data_raises_policy_error() -> None:
    """Evidence with other report data is rejected, and the error contains both values."""
    error = get_error(RAW, report_data=b"other")
    assert isinstance(error, PolicyError)
    assert error.reason == "report_data"
    assert NONCE.hex() in str(error)
    assert b"other".hex() in str(error)
    assert len(error.steps) >= 5
    for near in (NONCE + b"\1", b"nonc", b""):
        assert isinstance(get_error(RAW, report_data=near), PolicyError)
    assert isinstance(get_error(RAW, report_data=bytes(65)), UsageError)


def test_verify_simulated_evidence_requires_its_root() -> None:
    """Simulated evidence is rejected unless the simulator's root is the trust anchor."""
    by_default = intel.verifier(trust_anchor=None)
    with pytest.raises(SignatureError):
        by_default.verify(RAW, report_data=NONCE)
    other = SimulatedPki(bytes(32))
    with pytest.raises(SignatureError):
        intel.verifier(trust_anchor=other.root_der).verify(RAW, report_data=NONCE)


def test_verify_without_collateral_raises_collateral_error() -> None:
    """Collateral is fetched only if configured, and its absence raises CollateralError."""
    with raises(CollateralError, "missing"):
        intel.verifier(collateral=None).verify(RAW, report_data=NONCE)
    with raises(UsageError, "conflict"):
        intel.verifier(pccs_url="http://localhost:1")
    with raises(UsageError, "wrong_type"):
        intel.verifier(collateral=b"{}")


def test_verify_truncated_evidence_is_rejected() -> None:
    """Evidence truncated at any offset is rejected."""
    for size in range(0, len(RAW), 97):
        assert isinstance(get_error(RAW[:size]), (FormatError, VerificationError))


def test_verify_wrong_evidence_type_raises_usage_error() -> None:
    """Evidence must be bytes, an Attestation or a Quote."""
    wrong: tuple[Any, ...] = (None, "evidence", bytearray(RAW), 5)
    for evidence in wrong:
        assert isinstance(get_error(evidence), UsageError)


# -- event logs ---------------------------------------------------------------------------------


def replace_platform(change: Callable[[Tdx], Tdx]) -> Attestation:
    """Return the evidence with its platform part changed."""
    evidence = GENUINE.evidence
    assert isinstance(evidence.platform, Tdx)
    return Attestation(evidence._replace(platform=change(evidence.platform)))


@every_case("index", range(len(GENUINE.event_log.events)))
def test_verify_missing_or_repeated_event_raises_replay_error(index: int) -> None:
    """A log with an event missing or repeated is rejected, and the error names the register."""
    register = GENUINE.event_log.events[index].register
    missing = replace_platform(
        lambda p: p._replace(event_log=p.event_log[:index] + p.event_log[index + 1 :])
    )
    repeated = replace_platform(
        lambda p: p._replace(event_log=p.event_log[: index + 1] + p.event_log[index:])
    )
    for evidence in (missing, repeated):
        error = get_error(evidence.to_bytes())
        assert isinstance(error, ReplayError)
        assert error.reason == "rtmr_mismatch"
        assert f"RTMR{register}" in str(error)
        assert error.steps


GENUINE_LOG = untyped(GENUINE.evidence.platform).event_log


def replace_log(events: Sequence[WireEvent]) -> bytes:
    """Return the evidence with another event log, and a list of the runtime events in it."""
    runtime = [one for one in events if one.event_type == RUNTIME_EVENT_TYPE]
    evidence = replace_platform(lambda p: p._replace(event_log=tuple(events))).evidence
    stated = tuple([RuntimeEvent(one.event, one.event_payload) for one in runtime])
    return Attestation(
        evidence._replace(stack=evidence.stack._replace(runtime_events=stated))
    ).to_bytes()


@every_case("register", range(4))
def test_verify_moved_event_raises_replay_error(register: int) -> None:
    """Two events of one register in the other order are rejected."""
    assert replace_log(GENUINE_LOG) == RAW
    places = [at for at, event in enumerate(GENUINE_LOG) if event.imr == register]
    for first, second in pairwise(places):
        events = list(GENUINE_LOG)
        events[first], events[second] = events[second], events[first]
        if events[first].digest == events[second].digest:
            continue
        error = get_error(replace_log(events))
        assert isinstance(error, ReplayError)
        assert error.reason == "rtmr_mismatch"
        assert f"RTMR{register}" in str(error)
    assert len({GENUINE_LOG[at].digest for at in places}) > 1


@every_case("index", [at for at, one in enumerate(GENUINE_LOG) if one.imr == 3])
def test_verify_changed_runtime_event_raises_replay_error(index: int) -> None:
    """Another name or payload is rejected, also beside the digest of the genuine event."""
    event = GENUINE_LOG[index]
    for changed in (
        event._replace(event=f"{event.event}-2"),
        event._replace(event_payload=event.event_payload + b"2"),
    ):
        for digest in (event.digest, b""):
            events = list(GENUINE_LOG)
            events[index] = changed._replace(digest=digest)
            error = get_error(replace_log(events))
            assert isinstance(error, ReplayError)
            assert error.reason == "rtmr_mismatch"
            assert "RTMR3" in str(error)


def test_verify_runtime_events_must_match_log() -> None:
    """Runtime events must equal those of the event log, for identity is read from them."""
    stack = GENUINE.evidence.stack
    forged = (*stack.runtime_events[:1], RuntimeEvent("app-id", bytes(20)))
    for events in (forged, stack.runtime_events[:-1], stack.runtime_events[::-1], ()):
        changed = GENUINE.evidence._replace(stack=stack._replace(runtime_events=events))
        error = get_error(Attestation(changed).to_bytes())
        assert isinstance(error, ReplayError)
        assert error.reason == "rtmr_mismatch"
        assert "runtime_events" in str(error)


def test_verify_colon_in_v1_event_name_is_rejected() -> None:
    """A colon in a version 1 event name is rejected: name and payload would be ambiguous."""
    log = intel.log_of([*intel.BOOT, ("model", b"x:llama")])
    evidence = Attestation.for_tdx(intel.quote_of(log), log, intel.IMAGE.vm_config).evidence
    assert isinstance(evidence.platform, Tdx)
    last = evidence.platform.event_log[-1]._replace(event="model:x", event_payload=b"llama")
    platform = evidence.platform._replace(event_log=(*evidence.platform.event_log[:-1], last))
    runtime = (*evidence.stack.runtime_events[:-1], RuntimeEvent("model:x", b"llama"))
    shifted = evidence._replace(
        platform=platform, stack=evidence.stack._replace(runtime_events=runtime)
    )
    error = get_error(Attestation(shifted).to_bytes())
    assert isinstance(error, VerificationError)
    assert error.reason == "event"


def test_verify_registers_of_other_image_are_rejected() -> None:
    """Registers must match the OS image that the evidence names."""
    error = get_error(intel.evidence(mrtd=bytes(48)).to_bytes())
    assert isinstance(error, VerificationError)
    assert error.reason == "os_image"
    assert "MRTD" in str(error).upper()


# -- identity ----------------------------------------------------------------------------------

EVENTS_AFTER_BOOT = (*intel.BOOT, ("app-id", bytes(20)))
REQUIRES_APP_ID = AppraisalPolicy.default().replace(app_id={intel.APP_ID})
REQUIRES_FORGED_APP_ID = AppraisalPolicy.default().replace(app_id={bytes(20)})


def test_app_info_ignores_events_after_system_ready() -> None:
    """An `app-id` event after boot does not change the app's identity."""
    evidence = intel.evidence(EVENTS_AFTER_BOOT).to_bytes()
    result = intel.verifier(policy=REQUIRES_APP_ID).verify(evidence, report_data=NONCE)
    assert result.app_info is not None
    assert result.app_info.app_id == intel.APP_ID
    with raises(PolicyError, "app_id"):
        intel.verifier(policy=REQUIRES_FORGED_APP_ID).verify(evidence, report_data=NONCE)


@pytest.mark.parametrize(
    "events", [(), (("app-id", bytes(20)),), (("started", b""), ("app-id", bytes(20)))]
)
def test_app_info_without_boot_sequence_is_empty(events: tuple[tuple[str, bytes], ...]) -> None:
    """Without boot events, runtime events give no app identity."""
    evidence = intel.evidence(events, mr_config_id=bytes(48)).to_bytes()
    result = intel.verifier().verify(evidence, report_data=NONCE)
    assert result.app_info is not None
    assert result.app_info.app_id == b""
    assert any("names no app" in step.text for step in result.steps)
    with raises(PolicyError, "app_id"):
        intel.verifier(policy=REQUIRES_FORGED_APP_ID).verify(evidence, report_data=NONCE)


# -- values -----------------------------------------------------------------------------------


def test_attestation_result_cannot_be_constructed() -> None:
    """A result is created by the verifier only, and is immutable."""
    result = intel.verifier().verify(RAW, report_data=NONCE)
    with pytest.raises(TypeError):
        AttestationResult(object(), *content_of(result))
    with pytest.raises(AttributeError):
        untyped(result).simulated = False
    assert pickle.loads(pickle.dumps(result)) == result
    assert create_result(*content_of(result)) == result
    assert result.to_dict()["simulated"] is True


def test_unpickled_result_has_the_same_types() -> None:
    """Pickling, by which a worker returns its result, keeps the types of all parts."""
    result = intel.verifier().verify(RAW, report_data=NONCE)
    copy = pickle.loads(pickle.dumps(result))
    assert copy.claims.events
    parts: list[tuple[Any, Any]] = [(content_of(result), content_of(copy))]
    while parts:
        original, unpickled = parts.pop()
        assert type(original) is type(unpickled)
        if isinstance(original, tuple):
            parts.extend(zip(original, unpickled, strict=True))
        elif isinstance(original, Mapping):
            parts.extend((getattr(original, n), getattr(unpickled, n)) for n in fields_of(original))


def content_of(result: AttestationResult) -> tuple[Any, ...]:
    """Return the values of a result, without its evidence."""
    return tuple(getattr(result, name) for name in fields_of(result)[:-1])


def fields_of(value: Any) -> list[str]:
    """Return the names of the fields of a dataclass."""
    return [one.name for one in fields(value)]


def test_verifier_pickle_round_trip() -> None:
    """An unpickled verifier, without its caches, returns the same results."""
    verifier = intel.verifier(clock=verifier_module._utc_now)
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy.verify(RAW, report_data=NONCE, now=NOW) == verifier.verify(
        RAW, report_data=NONCE, now=NOW
    )
    assert copy.policy == verifier.policy


def test_examination_step_out_of_order_raises_usage_error() -> None:
    """An examination does not allow a step to be skipped."""
    examination = intel.verifier().examine(RAW)
    for step in (examination.replay, examination.image_hash, examination.app_info):
        with raises(UsageError, "conflict"):
            step()
    with pytest.raises(AttestKitError):
        examination.appraise(report_data=NONCE)
