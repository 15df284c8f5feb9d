"""Response of /verify: flags and reason of each step; valid only if every step passed."""

import json
import weakref
from typing import Any, cast

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack, Tpm
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from attestkit.quote import Quote
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.serve.verifier_service.response import (
    Outcome,
    _key_provider,
    run_verification,
)
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.verifier import Verifier
from tests.attestation.samples import TPM_QUOTE
from tests.runner.cases import every_case
from tests.serve.verifier_service.judges import (
    IMAGE,
    STEPS,
    FakeVerifier,
    create_authenticated,
    create_evidence,
)
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

KEYS = [
    "quote_verified",
    "event_log_verified",
    "os_image_hash_verified",
    "acpi_tables_verified",
    "os_image_is_dev",
    "os_image_version",
    "tee_variant",
    "report_data",
    "tcb_status",
    "advisory_ids",
    "key_provider",
    "app_info",
]
NOTHING: dict[str, object] = {
    **dict.fromkeys(KEYS[:4], False),
    **dict.fromkeys(KEYS[4:9]),
    "advisory_ids": [],
    "key_provider": None,
    "app_info": None,
}
PREFIX = {
    "authenticate": "Quote verification failed: ",
    "replay": "Quote verification failed: ",
    "image_hash": "OS image hash verification failed: ",
    "app_info": "Event log verification failed: ",
    "appraise": "Policy: ",
}


class PanicError(BaseException):
    """An exception like PyO3's PanicException, which is not an Exception."""


def fail_on_internal_error(error: BaseException) -> str:
    """Fail the test on an unexpected error."""
    raise AssertionError from error


def create_request(attestation: Attestation | None = None, **fields: Any) -> VerificationRequest:
    """Return a request with evidence, by default the simulated TD's."""
    return VerificationRequest((attestation or create_evidence()).to_bytes(), **fields)


def verify(verifier: object, request: VerificationRequest | None = None) -> Outcome:
    """Run the verification; fail the test on an unexpected error."""
    return run_verification(
        cast("Verifier", verifier), request or create_request(), fail_on_internal_error
    )


class WeakrefText(str):
    """A str that supports weak references."""

    __slots__ = ("__weakref__",)


class RejectingVerifier:
    """A Verifier that raises a new error for each evidence."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def examine(self, _: Attestation, *, fetch: bool) -> "RejectingVerifier":
        """Raise the error."""
        assert fetch
        raise self._kind("no")


def get_quote(attestation: Attestation) -> Quote:
    """Return the quote in evidence of a TD."""
    assert attestation.quote is not None
    return attestation.quote


def decode_outcome(outcome: Outcome) -> Any:
    """Return the JSON object of an outcome."""
    return json.loads(outcome.to_json())


def respond(verifier: object, request: VerificationRequest | None = None) -> Any:
    """Return the JSON object of a verification."""
    return decode_outcome(verify(verifier, request))


# -- what passes -----------------------------------------------------------------------------------


def test_verify_valid_evidence_runs_all_steps_in_order() -> None:
    """All steps run in order, and the response has the documented keys in order."""
    verifier = FakeVerifier()
    found = respond(verifier)
    assert verifier.taken == list(STEPS)
    assert list(found) == ["is_valid", "details", "reason", "freshness_checked"]
    assert (found["is_valid"], found["reason"]) == (True, None)
    details = found["details"]
    assert list(details) == [*KEYS, "boot_info"]
    assert [details[name] for name in KEYS[:6]] == [True, True, True, False, None, None]
    assert details["tee_variant"] == "dstack-tdx"
    assert details["report_data"] == b"nonce".hex().ljust(128, "0")
    assert (details["tcb_status"], details["advisory_ids"]) == ("OutOfDate", ["INTEL-SA-1"])


def test_verify_valid_evidence_describes_app() -> None:
    """app_info contains the verified image hash; boot_info repeats it in camel case."""
    info = create_evidence().app_info._replace(os_image_hash=IMAGE)
    details = respond(FakeVerifier())["details"]
    assert details["app_info"] == info.to_dict()
    provider = json.loads(info.key_provider_info)
    assert details["key_provider"] == {"name": provider["name"], "id": provider["id"]}
    boot_info = {
        "teeVariant": "dstack-tdx",
        "mrAggregated": info.mr_aggregated.hex(),
        "osImageHash": IMAGE.hex(),
        "mrSystem": info.mr_system.hex(),
        "appId": info.app_id.hex(),
        "composeHash": info.compose_hash.hex(),
        "instanceId": info.instance_id.hex(),
        "deviceId": info.device_id.hex(),
        "keyProviderInfo": info.key_provider_info.hex(),
        "tcbStatus": "OutOfDate",
        "advisoryIds": ["INTEL-SA-1"],
    }
    assert list(details["boot_info"].items()) == list(boot_info.items())


def test_verify_platform_without_tcb_status() -> None:
    """A platform without TCB status, such as AWS, gives null and an empty tcbStatus."""
    details = respond(FakeVerifier(authenticate=create_authenticated(None)))["details"]
    assert details["tcb_status"] is None
    assert details["boot_info"]["tcbStatus"] == ""


@every_case("text", [b"", b"{", b"[]", b'{"name":"kms"}', b'{"name":"kms","id":1}', b"\xff"])
def test_verify_malformed_key_provider_is_null(text: bytes) -> None:
    """A key provider that is not the expected JSON object is null."""
    info = create_evidence().app_info._replace(key_provider_info=text)
    details = respond(FakeVerifier(app_info=info))["details"]
    assert details["key_provider"] is None
    assert details["app_info"]["key_provider_info"] == text.hex()


@every_case("name", ["".join(map(chr, range(0x7F))), "\x7f", "\xe9", "\U0001f600"])
def test_verify_response_escapes_as_json_does(name: str) -> None:
    """The response has the bytes that Python's `json` writes: ASCII, whatever a name contains."""
    provider = json.dumps({"name": name, "id": ""}).encode()
    info = create_evidence().app_info._replace(key_provider_info=provider)
    found = verify(FakeVerifier(app_info=info)).to_json()
    assert json.loads(found)["details"]["key_provider"] == {"name": name, "id": ""}
    assert found == json.dumps(json.loads(found), separators=(",", ":")).encode()


def test_verify_long_key_provider_is_not_remembered() -> None:
    """The description of a key provider is only cached if it is short."""
    text = json.dumps({"name": "n" * 2000, "id": ""}).encode()
    info = create_evidence().app_info._replace(key_provider_info=text)
    before = _key_provider.cache_info().currsize
    details = respond(FakeVerifier(app_info=info))["details"]
    assert details["key_provider"] == {"name": "n" * 2000, "id": ""}
    assert _key_provider.cache_info().currsize == before


# -- request schemas ------------------------------------------------------------------------------


def test_verify_attestation_precedes_quote() -> None:
    """With `attestation`, the fields quote and event_log are ignored, and vm_config must agree."""
    own = create_evidence().config
    for config in (None, "", own, own.replace(":", ": ")):
        verifier = FakeVerifier()
        request = create_request(quote=b"nonsense", event_log="nonsense", vm_config=config)
        assert respond(verifier, request)["is_valid"]
        assert verifier.opened == [create_evidence()]
    text = "Internal error: vm_config differs from the one in the attestation"
    assert respond(FakeVerifier(), create_request(vm_config="{}"))["reason"] == text
    found = respond(FakeVerifier(), create_request(vm_config="nonsense"))
    assert found["reason"].startswith("Internal error: vm_config: ")


def test_verify_quote_with_event_log() -> None:
    """A quote and its event log are verified with the given configuration, if any."""
    whole = create_evidence()
    for config in (whole.config, None):
        verifier = FakeVerifier()
        request = VerificationRequest(None, QUOTE, whole.event_log.to_json(), config)
        assert respond(verifier, request)["is_valid"]
        [opened] = verifier.opened
        assert opened.quote == whole.quote
        assert opened.event_log.replay() == whole.event_log.replay()
        assert opened.config == (config or "")


QUOTE = get_quote(create_evidence()).raw


@every_case(
    ("request_", "reason"),
    [
        (VerificationRequest(), "Quote is required"),
        (VerificationRequest(vm_config="{}"), "Quote is required"),
        (VerificationRequest(quote=b"\4"), "Event log is required"),
        (VerificationRequest(b""), "Failed to decode attestaion"),
        (VerificationRequest(b"\0\1\2"), "Failed to decode attestaion"),
        (VerificationRequest(b"", b"quote", "[]"), "Failed to decode attestaion"),
        (VerificationRequest(None, b"", "[]"), "Failed to create attestation"),
        (VerificationRequest(None, b"\4", "[]"), "Failed to create attestation"),
        *[
            (VerificationRequest(None, QUOTE, log), "Failed to create attestation")
            for log in ("", "{}", "nonsense", '[{"imr":9}]')
        ],
    ],
)
def test_verify_malformed_evidence_has_documented_reason(
    request_: VerificationRequest, reason: str
) -> None:
    """Malformed evidence has upstream's literal error text, and no step runs."""
    verifier = FakeVerifier()
    found = respond(verifier, request_)
    assert found == {
        "is_valid": False,
        "details": NOTHING,
        "reason": f"Internal error: {reason}",
        "freshness_checked": False,
    }
    assert verifier.opened == []


# -- failing steps --------------------------------------------------------------------------------


def check_refused(found: Any, step: str) -> str:
    """Check that no result of `step` or a later one is shown; return the cause."""
    details = found["details"]
    assert found["is_valid"] is False
    reached = STEPS.index(step)
    assert details["quote_verified"] is (reached > 1)
    assert (details["tee_variant"] is not None) is (reached > 1)
    assert (details["report_data"] is not None) is (reached > 1)
    assert (details["tcb_status"] is not None) is (reached > 1)
    assert details["os_image_hash_verified"] is (reached > 2)
    assert details["event_log_verified"] is (reached > 3)
    assert (details["app_info"] is not None) is (reached > 3)
    assert ("boot_info" in details) is (reached > 3)
    reason: str = found["reason"]
    assert reason.startswith(PREFIX[step])
    return reason.removeprefix(PREFIX[step])


@every_case("step", STEPS)
@every_case(
    "error",
    [
        FormatError("what is wrong", offset=7, reason="syntax"),
        SignatureError("what is wrong", reason="bad_signature"),
        ReplayError("what is wrong", reason="rtmr_mismatch"),
        PolicyError("what is wrong", reason="tcb_status"),
        CollateralError("what is wrong", reason="missing"),
        CollateralExpiredError("what is wrong", reason="tcb_info_expired"),
        UnsupportedError("what is wrong", reason="feature"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_verify_failing_step_stops(step: str, error: AttestKitError) -> None:
    """The reason names the step and the error; later steps do not run."""
    verifier = FakeVerifier(**{step: error})
    found = respond(verifier)
    assert check_refused(found, step) == str(error)
    assert verifier.taken == list(STEPS[: STEPS.index(step) + 1])


@every_case("step", STEPS)
@every_case(
    "error",
    [
        ValueError("SECRET"),
        KeyError("SECRET"),
        MemoryError("SECRET"),
        PanicError("SECRET"),
        VerificationError("SECRET", reason="internal"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_verify_unexpected_error_is_a_rejection(step: str, error: BaseException) -> None:
    """An unexpected error is a rejection; its text is logged, and the client receives an id."""
    reported: list[BaseException] = []

    def report(error: BaseException) -> str:
        reported.append(error)
        return "0123"

    outcome = run_verification(
        cast("Verifier", FakeVerifier(**{step: error})), create_request(), report
    )
    assert check_refused(decode_outcome(outcome), step) == "internal error, request 0123"
    assert reported == [error]
    assert outcome.result is None


@every_case(
    ("step", "outcome_value", "text"),
    [
        ("image_hash", b"", "evidence: has no hash of an OS image"),
        ("app_info", None, "evidence: has no app id"),
        *(
            ("appraise", value, "internal error, request 0123")
            for value in (None, True, "valid", 1)
        ),
    ],
)
def test_verify_empty_step_result_is_a_rejection(
    step: str, outcome_value: object, text: str
) -> None:
    """An empty image hash, missing app info, and another value than a result are rejections."""
    verifier = cast("Verifier", FakeVerifier(**{step: outcome_value}))
    outcome = run_verification(verifier, create_request(), lambda _: "0123")
    assert check_refused(decode_outcome(outcome), step) == text


def test_verify_evidence_with_tpm_verifies_the_hardware_first() -> None:
    """A TD beside a TPM needs collateral like any other; its TPM is not looked at before."""
    from attestkit.attestation.wire.evidence_parts import GcpTdx, Tdx

    platform, stack = create_evidence().evidence
    assert isinstance(platform, Tdx)
    gcp = Attestation(Evidence(GcpTdx(*platform, TPM_QUOTE), stack))
    found = respond(Verifier(), create_request(gcp))
    assert found["reason"].startswith("Quote verification failed: collateral: missing")
    assert found["details"] == NOTHING


@pytest.mark.parametrize("accepted", [True, False])
def test_vlek_signed_report_is_accepted_if_the_policy_names_its_provider(*, accepted: bool) -> None:
    """Without `vlek_providers` a report signed by a cloud provider's key is refused."""
    guest: Any = Simulator(scenario="snp-vlek", seed=bytes(32))
    evidence = Attester(guest).attest(report_data=bytes(64))
    policy = AppraisalPolicy.development()
    if accepted:
        policy = policy.replace(vlek_providers=["attestkit-simulator"])
    verifier = Verifier(trust_anchor=guest.trust_anchor, policy=policy)
    found = respond(verifier, create_request(evidence))
    assert found["is_valid"] is accepted, found["reason"]
    assert found["details"]["quote_verified"] is True
    if not accepted:
        assert "of the cloud provider 'attestkit-simulator'" in found["reason"]
        assert "vlek_providers" in found["reason"]


@needs_shared
def test_verify_tpm_has_facts_in_details() -> None:
    """Evidence of a platform that dstack does not define is valid if the policy accepts it."""
    evidence = Attestation.from_bytes(data("vtpm/generic/trustee/tpm_evidence.json"))
    platform = evidence.evidence.platform
    assert isinstance(platform, Tpm)
    key = platform.vtpm_quote.ak_public
    policy = AppraisalPolicy.default().replace(platforms={"tpm"}, trusted_aks={sha256(key)})
    request = VerificationRequest(evidence.to_bytes())
    found = respond(Verifier(policy=policy), request)
    assert found["is_valid"], found["reason"]
    details = found["details"]
    assert (details["tee_variant"], details["os_image_hash_verified"]) == ("tpm", False)
    assert details["vtpm"]["key_trust"] == "listed"
    assert len(details["vtpm"]["pcrs"]) == 24
    refused = respond(Verifier(), request)
    assert not refused["is_valid"]
    assert "vtpm" not in refused["details"]


def test_verify_malformed_snp_report_is_a_rejection() -> None:
    """A malformed report is a rejected quote, not an internal error."""
    snp = Attestation(Evidence(SevSnp(b"\2", (), "{}"), Stack(bytes(64), (), "")))
    found = respond(Verifier(), create_request(snp))
    assert found["reason"].startswith("Quote verification failed: ")


# -- OS images ------------------------------------------------------------------------------------


def replace_config(**changes: object) -> Attestation:
    """Return the simulated TD's evidence with a changed vm_config."""
    platform, stack = create_evidence().evidence
    config = json.dumps(json.loads(stack.config) | changes)
    return Attestation(Evidence(platform, stack._replace(config=config)))


def create_image_verifier(attestation: Attestation) -> FakeVerifier:
    """Return a fake verifier whose step `image_hash` is the real one."""

    class RealImage(FakeVerifier):
        def image_hash(self) -> object:
            return verify_os_image(attestation.evidence)

    return RealImage()


def test_verify_legacy_image_is_a_rejection() -> None:
    """A legacy image cannot be verified and is a rejection, although a Verifier permits it."""
    legacy = replace_config(tdx_attestation_variant="legacy")
    found = respond(FakeVerifier(image_hash=b""), create_request(legacy))
    text = "the evidence has only the hash of its OS image; pass the image (images, --images)"
    assert check_refused(found, "image_hash") == text


def test_verify_other_image_is_a_rejection() -> None:
    """Registers that are not those of the image are a rejection that names the first one."""
    other = replace_config(memory_size=3 << 30)
    found = respond(create_image_verifier(other), create_request(other))
    assert check_refused(found, "image_hash").startswith("MRs do not match: RTMR0 mismatch")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [SignatureError, RuntimeError, PanicError])
def test_verify_rejected_evidence_is_freed_immediately(kind: type[BaseException]) -> None:
    """Rejected evidence, possibly megabytes, is freed without the cyclic garbage collector."""
    log = WeakrefText("[]")
    alive = weakref.ref(log)
    outcome = run_verification(
        cast("Verifier", RejectingVerifier(kind)), create_request(event_log=log), lambda _: "id"
    )
    assert outcome.result is None
    del log
    assert alive() is None


def test_verify_snp_image_under_other_features_is_not_verified() -> None:
    """The OS image of an SEV-SNP guest with SEV_FEATURES that no policy names is not verified."""
    verifier = Verifier(trust_anchor=amd.ark(), clock=lambda: amd.NOW, policy="development")
    for features, verified in ((0x21, True), (0x3, False)):
        request = create_request(amd.launched_evidence(guest_features=features))
        outcome = run_verification(verifier, request, fail_on_internal_error)
        assert outcome.details["os_image_hash_verified"] is verified, outcome.reason
        assert (outcome.result is not None) is verified
        assert outcome.step == ("" if verified else PREFIX["image_hash"].removesuffix(": "))
