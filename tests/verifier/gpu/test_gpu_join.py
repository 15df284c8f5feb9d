"""Evidence of CPU and GPUs under one policy: what joins them, and what is refused."""

import hashlib
import json
import pickle
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import FormatError, GpuEvidenceError, PolicyError, UsageError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import GpuBinding, GpuEvidence
from attestkit.gpu.rules import GpuRules
from attestkit.report_data import ReportData, gpu_nonce
from attestkit.verifier import AppraisalPolicy, VerificationItem, Verifier
from attestkit.verifier.ear.token_claims import gpu_submodules
from attestkit.verifier.result import AttestationResult
from tests.gpu.simulated_machine import machine
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.platforms import intel

CHALLENGE: Final = bytes(range(100, 132))
GPUS: Final = machine(2)
BOOT_NONCE: Final = b"\x0b" * 32


@cache
def gpu_endorsements() -> GpuEndorsements:
    """Return endorsements of the GPUs at the time of the CPU's evidence."""
    return GpuEndorsements(dict(GPUS.rims), GPUS.ocsp_answers(intel.NOW.timestamp()))


def verifier(**options: Any) -> Verifier:
    """Return a verifier that trusts the simulated CPU and GPUs."""
    given = {"gpu_roots": GPUS.roots, "gpu_endorsements": gpu_endorsements(), **options}
    return intel.verifier(**given)


def with_rules(**rules: Any) -> Verifier:
    """Return a verifier whose policy has these rules about GPUs."""
    return verifier(policy=AppraisalPolicy.default().replace(gpu=GpuRules(**rules)))


@cache
def own_evidence() -> GpuEvidence:
    """Return evidence of the GPUs with the nonce of attestkit's own evidence."""
    return GPUS.evidence(gpu_nonce(CHALLENGE))


@cache
def bound() -> Attestation:
    """Return evidence of a CPU that commits to that of its GPUs, and encloses it."""
    report_data = ReportData.for_nonce_and_gpu(CHALLENGE, own_evidence().raw)
    return intel.evidence(report_data=report_data).with_gpu_evidence(own_evidence())


@cache
def unbound() -> Attestation:
    """Return evidence of a CPU over the nonce alone."""
    return intel.evidence(report_data=ReportData.for_nonce(CHALLENGE))


def boot_event(raw: bytes, **changes: Any) -> tuple[tuple[str, bytes], ...]:
    """Return boot events, of which one has the hash of GPU evidence."""
    payload = {
        "version": 2,
        "provider": "nvidia",
        "devices": 2,
        "cc_mode": "on",
        "devtools": False,
        "evidence_sha256": hashlib.sha256(raw).hexdigest(),
        **changes,
    }
    at = [name for name, _ in intel.BOOT].index("system-ready")
    event = ("gpu-attestation", json.dumps(payload).encode())
    return (*intel.BOOT[:at], event, *intel.BOOT[at:])


def refused(reason: str, check: Verifier, *given: Any, **options: Any) -> GpuEvidenceError:
    """Return the error of a verification, which has this reason."""
    with pytest.raises(GpuEvidenceError) as caught:
        check.verify(*given, **{"nonce": CHALLENGE, **options})
    assert caught.value.reason == reason
    return caught.value


def binding_of(result: AttestationResult) -> str | None:
    """Return what joins the GPUs of a result."""
    assert result.gpu is not None
    return result.gpu.binding


# -- bindings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cbor", "json"])
def test_report_data_commit_to_enclosed_gpu_evidence(encoding: Any) -> None:
    """Evidence of attestkit itself has the strongest binding, and travels in one message."""
    raw = bound().to_bytes(encoding)
    result = with_rules(required=True, count=2, binding="report_data").verify(raw, nonce=CHALLENGE)
    assert binding_of(result) == "report_data"
    assert result.fresh
    assert result.nonce == CHALLENGE
    assert result.simulated
    assert "gpu_binding" not in result.not_proven
    assert "gpu_report" in {step.check for step in result.steps}


def test_gpu_evidence_may_travel_beside_other_encodings() -> None:
    """The binding holds whatever message the GPU evidence is in."""
    evidence = bound().with_gpu_evidence(None).to_bytes("v0")
    for given in (own_evidence(), own_evidence().raw):
        result = verifier().verify(evidence, nonce=CHALLENGE, gpu=given)
        assert binding_of(result) == "report_data"


def test_stripped_evidence_needs_its_gpu_evidence_beside() -> None:
    """The report data commit to the evidence of the GPUs, which a stripped copy does not have."""
    short = bound().stripped()
    result = verifier().verify(short, nonce=CHALLENGE, gpu=own_evidence())
    assert binding_of(result) == "report_data"
    with pytest.raises(PolicyError) as caught:
        verifier().verify(short, nonce=CHALLENGE)
    assert caught.value.reason == "report_data"


def test_other_gpu_evidence_is_not_bound() -> None:
    """Evidence of other GPUs, or the same in other bytes, does not have the report data."""
    spaced = GpuEvidence.from_json(json.dumps(json.loads(own_evidence().raw), indent=1))
    for other in (spaced, machine(1).evidence(gpu_nonce(CHALLENGE))):
        with pytest.raises(PolicyError) as caught:
            verifier().verify(bound(), nonce=CHALLENGE, gpu=other)
        assert caught.value.reason == "report_data"
    with pytest.raises(PolicyError):
        verifier().verify(bound().with_gpu_evidence(None), nonce=CHALLENGE)
    with pytest.raises(PolicyError):
        verifier().verify(bound(), nonce=CHALLENGE[::-1])


@pytest.mark.parametrize("nonce", [CHALLENGE, gpu_nonce(CHALLENGE)])
def test_shared_nonce_is_a_caution(nonce: bytes) -> None:
    """With only the nonce in common, the GPUs could be relayed; the result says so."""
    result = verifier().verify(unbound(), nonce=CHALLENGE, gpu=GPUS.evidence(nonce))
    assert binding_of(result) == "nonce"
    assert "gpu_binding" in result.not_proven
    [text] = [step.text for step in result.steps if step.check == "gpu_binding"]
    assert "relayed" in text
    given = GPUS.evidence(nonce)
    assert refused("binding", with_rules(binding="report_data"), unbound(), gpu=given).by_policy


def test_gpus_with_another_nonce_are_refused() -> None:
    """The reports must have the nonce of the verifier."""
    assert not refused("nonce", verifier(), unbound(), gpu=GPUS.evidence(bytes(32))).by_policy


@pytest.mark.parametrize("nonce", [CHALLENGE, BOOT_NONCE, gpu_nonce(BOOT_NONCE)])
def test_bound_gpus_with_another_nonce_are_refused(nonce: bytes) -> None:
    """Reports that the CPU commits to must have the hash of this nonce, and no older one."""
    given = GPUS.evidence(nonce)
    report_data = ReportData.for_nonce_and_gpu(CHALLENGE, given.raw)
    evidence = intel.evidence(report_data=report_data)
    assert not refused("nonce", verifier(), evidence, gpu=given).by_policy


def test_measured_hash_is_a_binding_as_of_boot() -> None:
    """The hash of the GPU evidence in the event log binds it, whatever nonce it has."""
    given = GPUS.evidence(BOOT_NONCE)
    evidence = intel.evidence(boot_event(given.raw), report_data=ReportData.for_nonce(CHALLENGE))
    of_boot = {"allow_runtime_event": True}
    result = with_rules(**of_boot, binding="runtime_event", ready_state=True).verify(
        evidence, nonce=CHALLENGE, gpu=given
    )
    assert binding_of(result) == "runtime_event"
    assert "gpu_binding" in result.not_proven
    refused("binding", with_rules(**of_boot, binding="report_data"), evidence, gpu=given)
    without_nonce = with_rules(**of_boot).verify(evidence, report_data=None, gpu=given)
    assert binding_of(without_nonce) == "runtime_event"


def test_measured_hash_is_no_binding_by_default() -> None:
    """Without the rule for evidence of the boot, an old report is refused whatever the log has."""
    given = GPUS.evidence(BOOT_NONCE)
    evidence = intel.evidence(boot_event(given.raw), report_data=ReportData.for_nonce(CHALLENGE))
    refused("nonce", verifier(), evidence, gpu=given)
    refused("nonce", with_rules(required=True, ready_state=True), evidence, gpu=given)
    refused("binding", verifier(), evidence, nonce=None, report_data=None, gpu=given)
    fresh = GPUS.evidence(CHALLENGE)
    evidence = intel.evidence(boot_event(fresh.raw), report_data=ReportData.for_nonce(CHALLENGE))
    assert binding_of(verifier().verify(evidence, nonce=CHALLENGE, gpu=fresh)) == "nonce"


def test_policy_of_evidence_of_the_boot_accepts_it_again() -> None:
    """A policy made of a result that a rule accepted has that rule, and no wider one."""
    given = GPUS.evidence(BOOT_NONCE)
    evidence = intel.evidence(boot_event(given.raw), report_data=ReportData.for_nonce(CHALLENGE))
    result = with_rules(allow_runtime_event=True).verify(evidence, nonce=CHALLENGE, gpu=given)
    rules = AppraisalPolicy.from_evidence(result).gpu
    assert (rules.binding, rules.allow_runtime_event) == ("runtime_event", True)
    assert not rules.allow_boot_result


def test_forged_report_is_refused_before_its_binding() -> None:
    """Binding and ready state are the last checks of the devices' evidence."""
    [first, *others] = GPUS.evidence(CHALLENGE).devices
    report = first.report[:-1] + bytes([first.report[-1] ^ 1])
    given = GpuEvidence((replace(first, report=report), *others))
    sound = GPUS.evidence(CHALLENGE)
    for check, reason in (
        (with_rules(binding="report_data"), "binding"),
        (with_rules(ready_state=True), "modes"),
    ):
        refused("report_signature", check, unbound(), gpu=given)
        refused(reason, check, unbound(), gpu=sound)


def test_event_of_the_app_is_no_binding() -> None:
    """Only an event of the boot counts, and only if there is exactly one."""
    given = GPUS.evidence(BOOT_NONCE)
    event = boot_event(given.raw)
    late = [*intel.BOOT, *(one for one in event if one[0] == "gpu-attestation")]
    twice = [*event[:2], *(one for one in event if one[0] == "gpu-attestation"), *event[2:]]
    report_data = ReportData.for_nonce(CHALLENGE)
    check = with_rules(allow_runtime_event=True)
    for events in (late, twice, boot_event(b"other")):
        refused("nonce", check, intel.evidence(events, report_data=report_data), gpu=given)


def test_measured_hash_of_a_short_report_is_no_usage_error() -> None:
    """A report without a whole nonce is refused for its format, whatever the event log says."""
    [first, *_] = GPUS.evidence(BOOT_NONCE).devices
    given = GpuEvidence((replace(first, report=first.report[:14]),))
    evidence = intel.evidence(boot_event(given.raw), report_data=ReportData.for_nonce(CHALLENGE))
    refused("format", verifier(), evidence, gpu=given)


@pytest.mark.parametrize("changes", [{"cc_mode": "off"}, {"devtools": True}, {"devtools": 0}])
def test_ready_state_is_that_of_the_measured_event(changes: dict[str, Any]) -> None:
    """Developer tools or a mode without protection are refused by the rule."""
    given = GPUS.evidence(BOOT_NONCE)
    evidence = intel.evidence(
        boot_event(given.raw, **changes), report_data=ReportData.for_nonce(CHALLENGE)
    )
    of_boot = {"allow_runtime_event": True}
    result = with_rules(**of_boot).verify(evidence, nonce=CHALLENGE, gpu=given)
    assert binding_of(result) == "runtime_event"
    refused("modes", with_rules(**of_boot, ready_state=True), evidence, gpu=given)


@pytest.mark.parametrize("kind", ["nonce", "report_data"])
def test_binding_of_another_system(kind: Any) -> None:
    """A GpuBinding has the expected report data and the nonce of the GPUs."""
    report_data = hashlib.sha512(b"of another system").digest()
    given = GpuBinding("other", kind, GPUS.evidence(BOOT_NONCE), CHALLENGE, BOOT_NONCE, report_data)
    result = verifier().verify(intel.evidence(report_data=report_data), gpu=given)
    assert binding_of(result) == kind
    assert result.fresh
    with pytest.raises(PolicyError):
        verifier().verify(unbound(), gpu=given)
    for more in ({"nonce": CHALLENGE}, {"report_data": report_data}, {"report_data": None}):
        with pytest.raises(UsageError) as caught:
            verifier().verify(intel.evidence(report_data=report_data), gpu=given, **untyped(more))
        assert caught.value.reason == "conflict"
    other = replace(given, gpu_nonce=bytes(32))
    evidence = intel.evidence(report_data=report_data)
    assert not refused("nonce", verifier(), evidence, nonce=None, gpu=other).by_policy


def test_binding_of_another_system_by_event_is_usage_error() -> None:
    """A GpuBinding states report data, and cannot claim a measured event."""
    given = GPUS.evidence(BOOT_NONCE)
    with pytest.raises(UsageError) as caught:
        GpuBinding("other", "runtime_event", given, CHALLENGE, BOOT_NONCE, bytes(64))
    assert caught.value.reason == "wrong_value"


# -- policies ----------------------------------------------------------------------------------


@every_case(
    "rules", [{"required": True}, {"count": 2}, {"chips": ["GH100"]}, {"binding": "report_data"}]
)
def test_evidence_without_gpus_is_refused_by_rule(rules: dict[str, Any]) -> None:
    """A rule about GPUs needs GPUs, whether they are missing or not verified."""
    refused("device_count", with_rules(**rules), unbound())
    refused("device_count", with_rules(**rules), bound(), gpu=False)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"count": 8}, "device_count"),
        ({"chips": ["GB100"]}, "chip"),
        ({"min_driver": "1000"}, "driver_version"),
    ],
)
def test_rule_about_gpus_is_appraised(rules: dict[str, Any], reason: str) -> None:
    """GPUs that a rule does not accept are refused, with the steps before it."""
    error = refused(reason, with_rules(**rules), bound())
    assert error.by_policy
    assert {"signature", "policy"} & {step.check for step in error.steps} == {"signature"}


def test_enclosed_evidence_can_be_left_out() -> None:
    """Without GPUs, the report data still commit to the enclosed evidence."""
    result = verifier().verify(bound(), nonce=CHALLENGE, gpu=False)
    assert result.gpu is None
    assert "gpu_report" in result.not_proven


def test_result_of_simulated_gpus_is_marked() -> None:
    """The part about the GPUs says that they are simulated, whatever the CPU is."""
    result = verifier().verify(bound(), nonce=CHALLENGE)
    assert result.gpu is not None
    assert result.gpu.simulated


def test_policy_of_known_good_evidence_pins_its_gpus() -> None:
    """It accepts its own evidence, and neither fewer GPUs nor a weaker binding."""
    result = verifier().verify(bound(), nonce=CHALLENGE)
    policy = AppraisalPolicy.from_toml(AppraisalPolicy.from_evidence(result).to_toml())
    assert (policy.gpu.count, policy.gpu.binding) == (2, "report_data")
    assert policy.gpu.min_driver == "999.10.01"
    assert binding_of(verifier(policy=policy).verify(bound(), nonce=CHALLENGE)) == "report_data"
    refused("device_count", verifier(policy=policy), unbound())
    refused("binding", verifier(policy=policy), unbound(), gpu=GPUS.evidence(CHALLENGE))


# -- arguments and results ---------------------------------------------------------------------


def test_nonce_of_gpus_must_be_known() -> None:
    """Without nonce, binding or measured hash there is nothing to compare."""
    with pytest.raises(UsageError) as caught:
        verifier().verify(unbound(), report_data=None, gpu=own_evidence())
    assert caught.value.reason == "missing"


def test_arguments_are_checked() -> None:
    """Malformed GPU evidence is a format error, another type a usage error."""
    with pytest.raises(FormatError):
        verifier().verify(unbound(), nonce=CHALLENGE, gpu=b"[]")
    with pytest.raises(UsageError):
        verifier().verify(unbound(), nonce=CHALLENGE, gpu=untyped(5))
    with pytest.raises(UsageError):
        Verifier(gpu_roots=untyped(b"root"))
    with pytest.raises(UsageError):
        Verifier(gpu_endorsements=untyped(5))


def test_result_and_verifier_can_be_pickled() -> None:
    """Results with GPUs are values, and a verifier keeps roots and endorsements."""
    result = verifier().verify(bound(), nonce=CHALLENGE)
    assert pickle.loads(pickle.dumps(result)) == result
    again = pickle.loads(pickle.dumps(verifier(clock=intel.fixed_clock)))
    assert again.verify(bound(), nonce=CHALLENGE) == result
    assert json.loads(json.dumps(result.to_dict()))["gpu"]["binding"] == "report_data"


def test_items_of_a_batch_have_their_own_gpus() -> None:
    """Evidence of GPUs beside that of the CPU is a part of an item, also of a pickled one."""
    plain = bound().with_gpu_evidence(None)
    report_data = hashlib.sha512(b"of another system").digest()
    other = GpuBinding(
        "other", "nonce", GPUS.evidence(BOOT_NONCE), CHALLENGE, BOOT_NONCE, report_data
    )
    items = [
        VerificationItem(plain, nonce=CHALLENGE, gpu=own_evidence()),
        VerificationItem(plain, nonce=CHALLENGE),
        VerificationItem(bound(), nonce=CHALLENGE, gpu=False),
        VerificationItem(intel.evidence(report_data=report_data), gpu=other),
    ]
    for given in (items, pickle.loads(pickle.dumps(items))):
        first, second, third, fourth = verifier().verify_many(given)
        assert isinstance(first, AttestationResult)
        assert binding_of(first) == "report_data"
        assert isinstance(second, PolicyError)
        assert isinstance(third, AttestationResult)
        assert third.gpu is None
        assert isinstance(fourth, AttestationResult)
        assert binding_of(fourth) == "nonce"


def test_attestation_keeps_gpu_evidence() -> None:
    """GPU evidence is a part of evidence that equality and pickling respect."""
    assert pickle.loads(pickle.dumps(bound())) == bound()
    assert bound() != bound().with_gpu_evidence(None)
    decoded = Attestation.from_bytes(bound().to_bytes())
    assert decoded.encoding == "cbor"
    assert decoded.gpu_evidence == own_evidence()
    assert decoded.stripped().gpu_evidence is None


# -- results of the boot -----------------------------------------------------------------------


@cache
def boot_output() -> bytes:
    """Return output of nvattest of the simulated machine's boot."""
    return GPUS.boot_output


def boot_evidence(**changes: Any) -> Attestation:
    """Return evidence whose event log has the hash of that output."""
    events = boot_event(boot_output(), **changes)
    return intel.evidence(events, report_data=ReportData.for_nonce(CHALLENGE))


def test_measured_result_of_the_boot_is_accepted_by_rule() -> None:
    """Only the measured guest says that its GPUs were good; the result has cautions."""
    checked = with_rules(allow_boot_result=True, count=2, chips=["GH100"], ready_state=True)
    result = checked.verify(boot_evidence(), nonce=CHALLENGE, gpu=boot_output())
    assert binding_of(result) == "runtime_event"
    unproven = {"gpu_report", "gpu_revocation", "gpu_rim", "gpu_measurements", "gpu_topology"}
    assert unproven | {"gpu_binding"} <= {*result.not_proven}
    assert result.gpu is not None
    genuine = replace(result.gpu, simulated=False)
    for one in gpu_submodules(genuine, fresh=True).values():
        assert one["ear.trustworthiness-vector"] == {"configuration": 32, "hardware": 32}
    refused("binding", with_rules(), boot_evidence(), gpu=boot_output())
    stronger = with_rules(allow_boot_result=True, binding="report_data")
    refused("binding", stronger, boot_evidence(), gpu=boot_output())


@every_case(
    ("rules", "reason"),
    [
        ({"allow_mpt": False}, "modes"),
        ({"protected_pcie": True}, "modes"),
        ({"nras": "beside"}, "nras_result"),
        ({"nras": "instead"}, "nras_result"),
    ],
)
def test_rule_that_a_result_of_the_boot_cannot_meet(rules: dict[str, Any], reason: str) -> None:
    """Modes are not in the output of nvattest, and its tokens are not those of the service."""
    checked = with_rules(allow_boot_result=True, **rules)
    refused(reason, checked, boot_evidence(), gpu=boot_output())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"devices": 3}, "device_count"),
        ({"devices": "2"}, "device_count"),
        ({"evidence_sha256": "00" * 32}, "binding"),
    ],
)
def test_result_of_another_boot_is_refused(changes: dict[str, Any], reason: str) -> None:
    """Hash and number of devices are those of the measured event."""
    checked = with_rules(allow_boot_result=True)
    refused(reason, checked, boot_evidence(**changes), gpu=boot_output())


def test_result_of_the_boot_without_event_is_refused() -> None:
    """Nothing authenticates such a result but the event log."""
    checked = with_rules(allow_boot_result=True)
    assert not refused("binding", checked, unbound(), gpu=boot_output()).by_policy


def test_failed_result_of_the_boot_is_refused() -> None:
    """The guest measured that a device was not accepted."""
    output = json.loads(boot_output())
    output["result_code"] = 3
    failed = json.dumps(output).encode()
    evidence = intel.evidence(boot_event(failed), report_data=ReportData.for_nonce(CHALLENGE))
    refused("nras_result", with_rules(allow_boot_result=True), evidence, gpu=failed)
