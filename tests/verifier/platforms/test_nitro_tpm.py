"""Tests of NitroTPM evidence: the document, its user data, runtime events and OS image."""

import json
from datetime import datetime
from typing import Any, Final

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.attestation.nitro import read_nitro_document
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    NitroEnclave,
    NitroTpm,
    RuntimeEvent,
    Stack,
)
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier import AppraisalPolicy, Examination, Verifier
from attestkit.verifier.evidence.formats import attest_nitro_document
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.nitro_tpm import authenticate_nitro_tpm
from attestkit.verifier.policy.event_rules import RequiredEvent
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import HAVE_SHARED, SHARED, data, needs_shared
from tests.verifier.platforms import aws

FACTS: Final[dict[str, Any]] = (
    json.loads((SHARED / "data/vtpm/expected.json").read_text()) if HAVE_SHARED else {}
)
COMPOSED: Final[dict[str, Any]] = FACTS.get("composed/aws-nitro-tpm", {"cases": {}, "facts": {}})
JUDGED: Final = datetime.fromisoformat(
    COMPOSED["facts"].get("judge_at", "2026-02-03T10:12:02+00:00")
)
GENUINE_AT: Final = datetime.fromisoformat("2026-02-03T10:12:03+00:00")
REFUSALS: Final[dict[str, tuple[type[VerificationError], str]]] = {
    "user_data": (VerificationError, "report_data_mismatch"),
    "runtime_events": (ReplayError, "pcr_mismatch"),
    "signature": (SignatureError, "document_bad_signature"),
    "age": (VerificationError, "document_expired"),
    "os_image": (VerificationError, "os_image"),
    "algorithm": (SignatureError, "document_algorithm"),
}


def composed(name: str, encoding: str = "v1") -> bytes:
    """Return a composed piece of evidence."""
    return data(f"vtpm/composed/aws-nitro-tpm/{name}.{encoding}.bin")


def genuine() -> bytes:
    """Return the genuine document of a NitroTPM."""
    return data("vtpm/aws/vaportpm/nitrotpm-document.bin")


def composed_root() -> bytes:
    """Return the root of the composed evidence."""
    return split_pem(data("vtpm/composed/aws-nitro-tpm/root.pem").decode())[0]


def examine(evidence: bytes, now: datetime, anchor: bytes | None = None) -> Examination:
    """Return the examination after all steps but the policy."""
    found = Verifier(trust_anchor=anchor).examine(evidence, now=now)
    found.authenticate()
    found.replay()
    found.image_hash()
    found.app_info()
    return found


def simulated(
    *events: RuntimeEvent, config: str = "{}", pcr14: bytes = bytes(48), **changes: object
) -> Attestation:
    """Return evidence under the simulated AWS root."""
    pcrs = {index: bytes([index]) * 48 for index in range(24)} | {14: pcr14}
    own = {"pcrs": ..., "nitrotpm_pcrs": pcrs, "module_id": "i-1-tpm2"}
    fields = aws.payload(**{**own, **changes})
    platform = NitroTpm(aws.document(fields))
    return Attestation(Evidence(platform, Stack(bytes(range(64)), events, config)))


@needs_shared
@pytest.mark.parametrize("encoding", ["v0", "v1"])
@pytest.mark.parametrize("name", COMPOSED["cases"])
def test_nitro_tpm_composed_evidence_has_its_verdict(name: str, encoding: str) -> None:
    """Each composed case passes, or fails at the step for which it was made."""
    stops_at, evidence = COMPOSED["cases"][name]["fails_at"], composed(name, encoding)
    if stops_at is None:
        examine(evidence, JUDGED, composed_root())
        return
    kind, reason = REFUSALS[stops_at]
    with raises(kind, reason):
        examine(evidence, JUDGED, composed_root())


@needs_shared
def test_nitro_tpm_composed_evidence_has_the_expected_claims() -> None:
    """Identity, registers and facts of the TPM are those that an independent reader found."""
    facts, found = COMPOSED["facts"], examine(composed("good"), JUDGED, composed_root())
    info, claims = found.app_info(), found.claims()
    assert info is not None
    for name in ("device_id", "os_image_hash", "mr_system", "mr_aggregated"):
        assert getattr(info, name).hex() == facts[name]
    assert info.device_id == sha256(facts["module_id"].encode())
    assert claims.platform == "dstack-aws-nitro-tpm"
    assert claims.report_data.hex() == facts["report_data"]
    assert claims.os_image_hash.hex() == facts["os_image_hash"]
    for index in (4, 7, 8, 12, 14):
        assert claims[f"pcr{index}"].hex() == facts[f"pcr{index}"]
    assert len(claims.events) == facts["events"]
    assert claims.event_registers == ()
    assert claims.vtpm is not None
    assert claims.vtpm.key_trust == "certificate"
    assert claims.vtpm.joins == ()
    assert claims.vtpm.replayed == (("sha384", 14),)
    assert ("sha384", 4, bytes.fromhex(facts["pcr4"])) in claims.vtpm.pcrs
    details = dict(claims.vtpm.details)
    assert details.pop("module_id") == facts["module_id"]
    assert details.keys() <= {"nonce", "public_key"}


@needs_shared
def test_nitro_tpm_details_have_nonce_and_key_of_a_bare_document() -> None:
    """Nonce and public key that a program put into a document are reported, in hex."""
    content = read_nitro_document(genuine(), tpm=True)
    assert content.nonce
    assert content.public_key
    facts = examine(genuine(), GENUINE_AT).claims().vtpm
    assert facts is not None
    assert dict(facts.details) == {
        "module_id": content.module_id,
        "nonce": content.nonce.hex(),
        "public_key": content.public_key.hex(),
    }


@needs_shared
def test_nitro_tpm_steps_are_named_in_order() -> None:
    """Each check is a step, in its order, and the time of judging is stated."""
    steps = examine(composed("good"), JUDGED, composed_root()).steps
    assert [step.check for step in steps if step.outcome == "passed"] == [
        "timestamp",
        "certificates",
        "signature",
        "user_data",
        "event_log",
        "os_image",
        "app",
    ]
    (certificates,) = [step.text for step in steps if step.check == "certificates"]
    assert "valid at 2026-02-03 10:12:02 UTC" in certificates
    assert "until 2026-02-03 13:12:02 UTC" in certificates


@needs_shared
def test_nitro_tpm_genuine_document_is_evidence_by_itself() -> None:
    """A bare document verifies under AWS's root at its time; it names no app and no image."""
    evidence = genuine()
    for form in (evidence, b"\xd2" + evidence, evidence.hex().encode()):
        found = examine(form, GENUINE_AT)
        assert found.app_info() is None
        assert {step.check for step in found.steps if step.outcome == "skipped"} == {
            *("revocation", "user_data", "hardware_to_ak", "pcr_log", "event_log"),
            *("os_image", "app"),
        }
    [step] = [step for step in found.steps if step.check == "pcr_log"]
    assert step.text.startswith("no log explains sha384 PCRs 0-")
    claims = found.claims()
    assert claims.vtpm is not None
    assert claims.vtpm.replayed == ()
    assert claims.events == ()
    expected = FACTS["aws/vaportpm/nitrotpm-document.bin"]
    assert {at.removeprefix("pcr"): v.hex() for at, v in claims.registers} == expected["pcrs"]
    chain = Nitro().verify_document(evidence, GENUINE_AT, tpm=True).chain
    assert sha256(chain[-1]).hex() == expected["root_sha256"]
    assert chain[-1] == AWS_ROOT


@needs_shared
def test_nitro_tpm_genuine_document_expires_with_its_certificates() -> None:
    """At another time than its own, the document is refused."""
    with raises(VerificationError, "document_expired"):
        examine(genuine(), aws.NOW)


@needs_shared
@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_nitro_tpm_document_with_changed_byte_is_rejected(every: int) -> None:
    """A byte changed anywhere in the document is rejected."""
    document, nitro = genuine(), Nitro()
    for offset in limited(range(0, len(document), every)):
        changed = document[:offset] + bytes([document[offset] ^ 1]) + document[offset + 1 :]
        with pytest.raises((FormatError, VerificationError)):
            nitro.verify_document(changed, GENUINE_AT, tpm=True)


@needs_shared
def test_nitro_tpm_document_never_passes_for_an_enclave() -> None:
    """Neither kind of document verifies under the name of the other."""
    stack = Stack(bytes(64), (), "")
    swapped = Attestation(Evidence(NitroEnclave(genuine()), stack)).to_bytes("v1")
    with raises(FormatError, "wrong_type"):
        examine(swapped, GENUINE_AT)
    with raises(FormatError, "wrong_type"):
        Nitro().authenticate(genuine(), GENUINE_AT)
    enclave = Attestation(Evidence(NitroTpm(aws.document()), stack))
    with raises(FormatError, "wrong_type"):
        authenticate_nitro_tpm(Nitro(aws.root()), enclave, aws.NOW)


def test_nitro_enclave_document_is_evidence_by_itself() -> None:
    """A bare document of an enclave verifies, too, with its user data as report data."""
    found = examine(aws.document(), aws.NOW, aws.root())
    assert found.claims().platform == "dstack-nitro-enclave"
    assert found.claims().report_data == bytes(range(64))
    assert found.claims().vtpm is None


def test_nitro_tpm_bare_document_has_its_user_data_as_report_data() -> None:
    """The user data of a bare document, of any size, are the report data."""
    fields = aws.payload(pcrs=..., nitrotpm_pcrs={4: bytes(48)}, user_data=b"short")
    found = examine(aws.document(fields), aws.NOW, aws.root())
    assert found.claims().report_data == b"short"
    assert "user_data" in {step.check for step in found.steps if step.outcome == "passed"}


@every_case(
    ("user_data", "part"),
    [(None, "missing"), (b"", "missing"), (bytes(63), "must be"), (bytes(64), "must be")],
)
def test_nitro_tpm_user_data_must_be_the_report_data(user_data: bytes | None, part: str) -> None:
    """The document's user data are compared with the evidence's report data in full."""
    evidence = simulated(user_data=user_data)
    with raises(VerificationError, "report_data_mismatch", part=part):
        authenticate_nitro_tpm(Nitro(aws.root()), evidence, aws.NOW)


def test_nitro_tpm_events_with_ambiguous_names_are_rejected() -> None:
    """A version 1 name with a colon is refused before the replay."""
    evidence = simulated(RuntimeEvent("a:b", b"c"))
    with raises(VerificationError, "event"):
        authenticate_nitro_tpm(Nitro(aws.root()), evidence, aws.NOW)


def test_nitro_tpm_pcr14_without_events_must_be_zero() -> None:
    """Evidence of a guest without events has an unextended PCR 14; one without PCR 14 fails."""
    nitro = Nitro(aws.root())
    found = authenticate_nitro_tpm(nitro, simulated(), aws.NOW)
    assert found.vtpm is not None
    assert found.vtpm.replayed == (("sha384", 14),)
    assert found.device == b"i-1-tpm2"
    with raises(ReplayError, "pcr_mismatch"):
        authenticate_nitro_tpm(nitro, simulated(pcr14=b"\1" * 48), aws.NOW)
    lacking = simulated(nitrotpm_pcrs={4: bytes(48)})
    with raises(FormatError, "missing", part="PCR 14"):
        authenticate_nitro_tpm(nitro, lacking, aws.NOW)


def test_nitro_tpm_image_requires_its_measurement() -> None:
    """Evidence that names an OS image must have the image's measurement document."""
    named = simulated(config=json.dumps({"os_image_hash": "00" * 32}))
    verifier = Verifier(trust_anchor=aws.root())
    found = verifier.examine(named, now=aws.NOW)
    found.authenticate()
    found.replay()
    with raises(VerificationError, "os_image", part="aws_measurement"):
        found.image_hash()
    for measurement, kind in (([], "wrong_type"), ({}, "missing")):
        config = json.dumps({"os_image_hash": "00" * 32, "aws_measurement": measurement})
        found = verifier.examine(simulated(config=config), now=aws.NOW)
        found.authenticate()
        found.replay()
        with raises(FormatError, kind):
            found.image_hash()


@needs_shared
def test_attest_nitro_document_round_trips() -> None:
    """A bare document is encoded as evidence of its platform, and read again."""
    found = attest_nitro_document(genuine())
    assert found.platform == "dstack-aws-nitro-tpm"
    assert found.is_bare
    assert Attestation.from_bytes(found.to_bytes("v1")) == found


def make_policy(**rules: Any) -> AppraisalPolicy:
    """Return the default policy for NitroTPM, with further rules."""
    return AppraisalPolicy.default().replace(platforms=("dstack-aws-nitro-tpm",), **rules)


@needs_shared
def test_nitro_tpm_result_is_accepted_only_by_a_policy_that_names_it() -> None:
    """A NitroTPM is no TEE, so the presets refuse it; app, image, events and PCRs can be pinned."""
    facts, anchor = COMPOSED["facts"], composed_root()
    report_data = bytes.fromhex(facts["report_data"])
    for preset in (AppraisalPolicy.default(), AppraisalPolicy.development()):
        with raises(PolicyError, "platform"):
            Verifier(trust_anchor=anchor, policy=preset).verify(
                composed("good"), report_data=report_data, now=JUDGED
            )
    pinned = make_policy(
        os_image_hash=(bytes.fromhex(facts["os_image_hash"]),),
        device_id=(bytes.fromhex(facts["device_id"]),),
        required_events=(RequiredEvent(name="system-ready"),),
        pcrs={"sha384:7": (bytes.fromhex(facts["pcr7"]),)},
    )
    verifier = Verifier(trust_anchor=anchor, policy=pinned)
    found = verifier.verify(composed("good"), report_data=report_data, now=JUDGED)
    assert found.bound_to == "report_data"
    assert found.simulated
    assert found.app_info is not None
    assert found.app_info.app_id
    assert found.verified_at == JUDGED
    with raises(PolicyError, "report_data"):
        verifier.verify(composed("good"), nonce=b"another nonce", now=JUDGED)


@needs_shared
@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"pcrs": {"sha384:7": (bytes(48),)}}, "pcrs"),
        ({"os_image_hash": (bytes(32),)}, "os_image_hash"),
        ({"app_id": (bytes(20),)}, "app_id"),
        ({"required_events": (RequiredEvent(name="no such event"),)}, "required_event"),
        ({"refuse_simulated": True}, "simulated"),
    ],
)
def test_nitro_tpm_result_is_appraised_by_the_policy(rules: dict[str, Any], reason: str) -> None:
    """Each rule about app, image, events and PCRs refuses other values."""
    verifier = Verifier(trust_anchor=composed_root(), policy=make_policy(**rules))
    with raises(PolicyError, reason):
        verifier.verify(composed("good"), report_data=None, now=JUDGED)


@needs_shared
def test_nitro_tpm_bare_document_meets_no_rule_about_app_or_events() -> None:
    """A bare document under AWS's root is genuine, and names neither app nor events."""
    found = Verifier(policy=make_policy()).verify(genuine(), report_data=None, now=GENUINE_AT)
    assert not found.simulated
    assert {"app", "os_image", "event_log", "user_data", "report_data"} <= set(found.not_proven)
    for rules, reason in (
        ({"app_id": (bytes(20),)}, "app_id"),
        ({"required_events": (RequiredEvent(name="e"),)}, "required_event"),
        ({"only_required_events": "all"}, "required_event"),
    ):
        with raises(PolicyError, reason):
            Verifier(policy=make_policy(**rules)).verify(
                genuine(), report_data=None, now=GENUINE_AT
            )


def test_nitro_tpm_bare_document_may_have_any_pcr_14() -> None:
    """Boot loaders other than dstack's may extend PCR 14; only events must replay to it."""
    pcrs = {index: bytes([index + 1]) * 48 for index in range(24)}
    document = aws.document(aws.payload(pcrs=..., nitrotpm_pcrs=pcrs))
    found = examine(document, aws.NOW, aws.root())
    assert found.claims()["pcr14"] == b"\x0f" * 48
    assert attest_nitro_document(document).app_info.app_id == b""
