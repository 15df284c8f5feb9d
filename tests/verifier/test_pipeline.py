"""A verification passes every step or ends with an exception that knows how far it got."""

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import product
from typing import Any

import pytest

import attestkit
from attestkit._crypto.pem import armour
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
from attestkit.quote import Quote
from attestkit.verifier import (
    AppraisalPolicy,
    AttestationResult,
    TcbStatus,
    Verifier,
    pipeline,
    verify,
)
from attestkit.verifier.result import accepted
from tests.untyped import untyped
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW, PKI

GENUINE = parcels.evidence()
RAW = GENUINE.to_bytes()


def refused(evidence: bytes | Attestation | Quote, **options: Any) -> AttestKitError:
    """Return the exception of a verification that must not pass."""
    given = {"report_data": NONCE, **options}
    with pytest.raises(AttestKitError) as caught:
        parcels.verifier().verify(evidence, **given)
    return caught.value


# -- what passes -------------------------------------------------------------------------------


def test_genuine_evidence() -> None:
    """The result has claims, status and identity, and says that a simulator is behind it."""
    result = parcels.verifier().verify(RAW, report_data=NONCE)
    assert result.tcb_status is TcbStatus.UP_TO_DATE
    assert result.advisory_ids == ()
    assert result.simulated
    assert result.app_info is not None
    assert result.app_info.app_id == parcels.APP_ID
    assert result.app_info.os_image_hash == result.claims.os_image_hash != b""
    assert result.claims.platform == "dstack-tdx"
    assert result.claims.report_data == NONCE.ljust(64, b"\0")
    assert result.claims.register("mrtd") == parcels.IMAGE.mrtd
    assert result.claims.register("pcr0") is None
    assert result.claims.event_registers == (0, 1, 2, 3)
    assert [event.name for event in result.claims.events] == [name for name, _ in parcels.BOOT]
    assert result.verified_at == NOW
    assert len(result.certificate_chain) == 3
    assert result.certificate_chain[-1] == PKI.root_der
    assert len(result.steps) >= 6


@pytest.mark.parametrize(
    ("encoding", "version"),
    # V0 has no place for the version of an event.
    [("v0", 1), *product(["v1", "cbor", "object"], [1, 2])],
)
def test_every_encoding(encoding: str, version: int) -> None:
    """Evidence means the same in whatever form it comes."""
    found = parcels.evidence(version=version)
    given: bytes | Attestation = (
        found if encoding == "object" else found.to_bytes(untyped(encoding))
    )
    assert parcels.verifier().verify(given, report_data=NONCE).app_info is not None


@pytest.mark.parametrize("given", ["raw", "object"])
def test_a_bare_quote(given: str) -> None:
    """It has no log: replay is left out, and the steps say so."""
    quote = GENUINE.quote
    assert quote is not None
    result = parcels.verifier().verify(quote.raw if given == "raw" else quote, report_data=NONCE)
    assert result.app_info is None
    assert result.claims.events == ()
    assert result.claims.event_registers == ()
    assert any("replay was left out" in step for step in result.steps)


def test_evidence_of_the_attester() -> None:
    """What the simulator attests is valid in full, its OS image included."""
    with parcels.attester() as tee:
        tee.emit_event("model-loaded", b"llama")
        result = parcels.verifier().verify(tee.attest(NONCE).to_bytes(), report_data=NONCE)
        assert result.claims.events[-1].name == "model-loaded"
        assert result.app_info is not None
        assert result.app_info == tee.attest(NONCE).app_info(device=PKI.platform("0").ppid)


def test_shortened_evidence() -> None:
    """A certificate's log explains RTMR3 alone, and the OS image is verified all the same."""
    result = parcels.verifier().verify(GENUINE.stripped().to_bytes(), report_data=NONCE)
    assert result.claims.event_registers == (3,)
    assert result.claims.os_image_hash
    assert any("it is shortened" in step for step in result.steps)


def test_the_function() -> None:
    """`attestkit.verify` is a Verifier for once."""
    result = attestkit.verify(
        RAW,
        report_data=NONCE,
        collateral=parcels.collateral(),
        trust_anchor=PKI.root_der,
        now=NOW,
    )
    assert result == parcels.verifier().verify(RAW, report_data=NONCE)
    assert verify is attestkit.verify


@pytest.mark.parametrize(
    "now", [NOW, NOW.timestamp(), NOW.astimezone(timezone(timedelta(hours=5)))]
)
def test_the_time_of_a_call(now: datetime | float) -> None:
    """It is aware, or seconds."""
    with_clock = parcels.verifier(clock=lambda: NOW + timedelta(days=400))
    assert with_clock.verify(RAW, report_data=NONCE, now=now).verified_at == NOW
    with pytest.raises(CollateralExpiredError):
        with_clock.verify(RAW, report_data=NONCE)


@pytest.mark.parametrize(
    "now", [datetime.fromisoformat("2026-09-21"), "today", 1e300, float("nan")]
)
def test_no_time(now: Any) -> None:
    """A time that is none is the caller's mistake."""
    assert isinstance(refused(RAW, now=now), UsageError)


def test_pem_and_der_anchors() -> None:
    """The root may come in either form; two of them, or another thing, is a mistake."""
    pem = armour("CERTIFICATE", PKI.root_der)
    for anchor in (pem, pem.encode(), PKI.root_der):
        assert parcels.verifier(trust_anchor=anchor).verify(RAW, report_data=NONCE).simulated
    wrong: tuple[Any, ...] = (pem * 2, b"", b"rubbish", PKI.root_der[:-1], "", 5, b"-----\xff")
    for anchor in wrong:
        with pytest.raises(UsageError, match="trust anchor"):
            Verifier(anchor)


def test_any_report_data_only_on_demand() -> None:
    """None must be written out, and the steps say what that means."""
    result = parcels.verifier().verify(RAW, report_data=None)
    assert any("freshness was not checked" in step for step in result.steps)
    with pytest.raises(TypeError):
        untyped(parcels.verifier()).verify(RAW)


def test_the_policy_is_named() -> None:
    """The last step says, for people, which policy accepted the evidence."""
    own = AppraisalPolicy.default().replace(app_id={parcels.APP_ID})
    for policy, name in (
        (None, "preset default"),
        (AppraisalPolicy.strict(), "preset strict"),
        (AppraisalPolicy.development(), "preset development"),
        (own, "a policy of the relying party's own"),
    ):
        judge = parcels.verifier(policy=policy)
        assert name in judge.verify(RAW, report_data=NONCE).steps[-1]
    judge.policy = AppraisalPolicy.strict()
    assert "preset strict" in judge.verify(RAW, report_data=NONCE).steps[-1]


# -- what does not -----------------------------------------------------------------------------


def test_other_report_data() -> None:
    """The evidence of another request is refused, and both values are shown."""
    error = refused(RAW, report_data=b"other")
    assert isinstance(error, PolicyError)
    assert error.reason == "report_data"
    assert NONCE.hex() in str(error)
    assert b"other".hex() in str(error)
    assert len(error.steps) >= 5
    for near in (NONCE + b"\1", b"nonc", b""):
        assert isinstance(refused(RAW, report_data=near), PolicyError)
    assert isinstance(refused(RAW, report_data=bytes(65)), UsageError)


def test_the_makers_roots_by_default() -> None:
    """A simulator is not believed unless its root is handed in."""
    by_default = parcels.verifier(trust_anchor=None)
    with pytest.raises(SignatureError):
        by_default.verify(RAW, report_data=NONCE)
    other = SimulatedPki(bytes(32))
    with pytest.raises(SignatureError):
        parcels.verifier(trust_anchor=other.root_der).verify(RAW, report_data=NONCE)


def test_no_collateral() -> None:
    """Nothing is fetched unless asked; the error says what to hand in."""
    with pytest.raises(CollateralError, match="hand it in, or name a PCCS"):
        parcels.verifier(collateral=None).verify(RAW, report_data=NONCE)
    with pytest.raises(UsageError, match="not both"):
        parcels.verifier(pccs_url="http://localhost:1")
    with pytest.raises(UsageError, match="is a Collateral"):
        parcels.verifier(collateral=b"{}")


def test_collateral_of_a_call() -> None:
    """It is used in place of the verifier's."""
    without = parcels.verifier(collateral=None)
    result = without.verify(RAW, report_data=NONCE, collateral=parcels.collateral())
    assert result.tcb_status is TcbStatus.UP_TO_DATE


@pytest.mark.parametrize("size", range(0, len(RAW), 97))
def test_cut_evidence(size: int) -> None:
    """Evidence cut anywhere is refused."""
    assert isinstance(refused(RAW[:size]), (FormatError, VerificationError))


def test_not_bytes() -> None:
    """Evidence is bytes or one of the two values."""
    wrong: tuple[Any, ...] = (None, "evidence", bytearray(RAW), 5)
    for evidence in wrong:
        assert isinstance(refused(evidence), UsageError)


# -- history -----------------------------------------------------------------------------------


def with_platform(change: Callable[[Tdx], Tdx]) -> Attestation:
    """Return the evidence with another platform's half."""
    evidence = GENUINE.evidence
    assert isinstance(evidence.platform, Tdx)
    return Attestation(evidence._replace(platform=change(evidence.platform)))


@pytest.mark.parametrize("index", range(len(GENUINE.event_log.events)))
def test_every_event_is_needed(index: int) -> None:
    """A log that lacks one event, or has it twice, is refused with the register's name."""
    register = GENUINE.event_log.events[index].register
    less = with_platform(
        lambda p: p._replace(event_log=p.event_log[:index] + p.event_log[index + 1 :])
    )
    twice = with_platform(
        lambda p: p._replace(event_log=p.event_log[: index + 1] + p.event_log[index:])
    )
    for evidence in (less, twice):
        error = refused(evidence.to_bytes())
        assert isinstance(error, ReplayError)
        assert error.reason == "rtmr_mismatch"
        assert f"RTMR{register}" in str(error)
        assert error.steps


def test_events_beside_the_log() -> None:
    """Identity is read from the runtime events beside the log, so these must be the log's."""
    stack = GENUINE.evidence.stack
    forged = (*stack.runtime_events[:1], RuntimeEvent("app-id", bytes(20)))
    for events in (forged, stack.runtime_events[:-1], stack.runtime_events[::-1], ()):
        changed = GENUINE.evidence._replace(stack=stack._replace(runtime_events=events))
        error = refused(Attestation(changed).to_bytes())
        assert isinstance(error, ReplayError)
        assert "nothing measured them" in str(error)


def test_a_colon_in_a_v1_name() -> None:
    """Whoever relays such a log could shift the border between name and payload."""
    log = parcels.log_of([*parcels.BOOT, ("model", b"x:llama")])
    evidence = Attestation.for_tdx(parcels.quote_of(log), log, parcels.IMAGE.vm_config).evidence
    assert isinstance(evidence.platform, Tdx)
    last = evidence.platform.event_log[-1]._replace(event="model:x", event_payload=b"llama")
    platform = evidence.platform._replace(event_log=(*evidence.platform.event_log[:-1], last))
    runtime = (*evidence.stack.runtime_events[:-1], RuntimeEvent("model:x", b"llama"))
    shifted = evidence._replace(
        platform=platform, stack=evidence.stack._replace(runtime_events=runtime)
    )
    error = refused(Attestation(shifted).to_bytes())
    assert isinstance(error, VerificationError)
    assert error.reason == "event"
    assert "colon" in str(error)


def test_told_report_data() -> None:
    """What the evidence says it was asked for is what the platform signed."""
    stack = GENUINE.evidence.stack._replace(report_data=bytes(64))
    error = refused(Attestation(GENUINE.evidence._replace(stack=stack)).to_bytes())
    assert isinstance(error, VerificationError)
    assert error.reason == "report_data_mismatch"


def test_another_image() -> None:
    """Registers that are not those of the image which the evidence names."""
    error = refused(parcels.evidence(mr_td=bytes(48)).to_bytes())
    assert isinstance(error, VerificationError)
    assert error.reason == "os_image"
    assert "MRTD" in str(error)


# -- identity ----------------------------------------------------------------------------------

LATE = (*parcels.BOOT, ("app-id", bytes(20)))
ASKING = AppraisalPolicy.default().replace(app_id={parcels.APP_ID})
CLAIMED = AppraisalPolicy.default().replace(app_id={bytes(20)})


def test_identity_before_system_ready() -> None:
    """An app that emits `app-id` after boot stays who it is."""
    evidence = parcels.evidence(LATE).to_bytes()
    result = parcels.verifier(policy=ASKING).verify(evidence, report_data=NONCE)
    assert result.app_info is not None
    assert result.app_info.app_id == parcels.APP_ID
    with pytest.raises(PolicyError) as caught:
        parcels.verifier(policy=CLAIMED).verify(evidence, report_data=NONCE)
    assert caught.value.reason == "app_id"


@pytest.mark.parametrize(
    "events", [(), (("app-id", bytes(20)),), (("started", b""), ("app-id", bytes(20)))]
)
def test_no_identity_without_a_boot_sequence(events: tuple[tuple[str, bytes], ...]) -> None:
    """On a guest without boot events nobody is an app, whatever it emits."""
    evidence = parcels.evidence(events, mr_config_id=bytes(48)).to_bytes()
    result = parcels.verifier().verify(evidence, report_data=NONCE)
    assert result.app_info is not None
    assert result.app_info.app_id == b""
    assert any("names no app" in step for step in result.steps)
    with pytest.raises(PolicyError) as caught:
        parcels.verifier(policy=CLAIMED).verify(evidence, report_data=NONCE)
    assert caught.value.reason == "app_id"


def test_a_bare_quote_has_no_identity() -> None:
    """A policy that asks for an app refuses it."""
    assert GENUINE.quote is not None
    with pytest.raises(PolicyError, match="bare quote"):
        parcels.verifier(policy=ASKING).verify(GENUINE.quote, report_data=NONCE)


def test_a_sealed_configuration_of_another_app() -> None:
    """MR_CONFIG_ID is fixed at launch: it contradicts an app that claims another compose hash."""
    error = refused(parcels.evidence(mr_config_id=b"\1" + bytes(47)).to_bytes())
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


# -- values -----------------------------------------------------------------------------------


def test_a_result_is_not_made_by_hand() -> None:
    """It exists only for evidence that passed, and does not change."""
    result = parcels.verifier().verify(RAW, report_data=NONCE)
    with pytest.raises(TypeError):
        AttestationResult(object(), result._verdict)
    with pytest.raises(AttributeError):
        untyped(result).simulated = False
    assert pickle.loads(pickle.dumps(result)) == result
    assert accepted(result._verdict) == result
    assert result.to_dict()["simulated"] is True


def test_a_verifier_pickles() -> None:
    """It goes to another process without what it has cached, and judges alike."""
    judge = parcels.verifier(clock=pipeline._utc_now)
    again = pickle.loads(pickle.dumps(judge))
    assert again.verify(RAW, report_data=NONCE, now=NOW) == judge.verify(
        RAW, report_data=NONCE, now=NOW
    )
    assert again.policy == judge.policy


class Stricter(Verifier):
    """A verifier of somebody's."""


def test_a_verifier_of_somebodys_pickles_as_such() -> None:
    """In another process its own rules hold too."""
    assert type(pickle.loads(pickle.dumps(Stricter()))) is Stricter


def test_steps_in_their_order() -> None:
    """An examination refuses to skip one."""
    examination = parcels.verifier().examine(RAW)
    for step in (examination.replay, examination.image_hash, examination.app_info):
        with pytest.raises(UsageError, match="in their order"):
            step()
    with pytest.raises(AttestKitError):
        examination.appraise(NONCE)
