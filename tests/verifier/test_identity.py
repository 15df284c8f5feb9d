"""Tests of app identity: neither an app nor a relay of its evidence can forge it."""

import json
from collections.abc import Sequence

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v2, config_id_v3
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack, Tdx
from attestkit.errors import AttestKitError, FormatError, PolicyError, VerificationError
from attestkit.event_log.event import runtime_digest
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.policy.appraisal_policy import PRESETS
from tests.runner.cases import every_case
from tests.samples.quotes import made_quote
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import APP_ID, BOOT, COMPOSE_HASH, IMAGE, NONCE

OTHER_APP_ID = bytes(20)
FORGED = (
    ("app-id", OTHER_APP_ID),
    ("compose-hash", bytes(32)),
    ("key-provider", b'{"name":"kms","id":"00"}'),
    ("system-ready", b""),
)
UNSEALED = bytes(48)


def get_error(evidence: Attestation, policy: AppraisalPolicy | None = None) -> AttestKitError:
    """Return the error for evidence that is encoded and decoded again."""
    with pytest.raises(AttestKitError) as caught:
        intel.verifier(policy=policy).verify(evidence.to_bytes(), report_data=NONCE)
    return caught.value


def change_event_type(evidence: Attestation, names: Sequence[str], event_type: int) -> Attestation:
    """Return evidence whose first events of these names have another event type."""
    parts, remaining = evidence.evidence, list(names)
    assert isinstance(parts.platform, Tdx)
    events = []
    for event in parts.platform.event_log:
        if event.event_type == RUNTIME_EVENT_TYPE and event.event in remaining:
            remaining.remove(event.event)
            digest = runtime_digest(event.event, event.event_payload, event.version)
            events.append(
                event._replace(event_type=event_type, digest=digest, event="", event_payload=b"")
            )
        else:
            events.append(event)
    runtime = tuple(
        RuntimeEvent(event.event, event.event_payload, event.version)
        for event in events
        if event.event_type == RUNTIME_EVENT_TYPE
    )
    assert not remaining
    return Attestation(
        parts._replace(
            platform=parts.platform._replace(event_log=tuple(events)),
            stack=parts.stack._replace(runtime_events=runtime),
        )
    )


@every_case("event_type", [0x0D, 0xFFFFFFFF])
@every_case(
    "names",
    [
        ["system-preparing", "app-id", "compose-hash", "instance-id", "key-provider"],
        ["app-id"],
        ["system-ready"],
        [name for name, _ in BOOT],
    ],
)
@every_case("stripped", [False, True])
def test_boot_events_with_other_event_type_are_rejected(
    names: list[str], event_type: int, *, stripped: bool
) -> None:
    """Boot events with another type are rejected, although their digests replay."""
    evidence = change_event_type(intel.evidence((*BOOT, *FORGED)), names, event_type)
    assert isinstance(evidence.evidence.platform, Tdx)
    error = get_error(evidence.stripped() if stripped else evidence)
    assert isinstance(error, VerificationError)
    assert error.reason == "event"


def test_boot_event_as_no_action_fails_replay() -> None:
    """An event changed to EV_NO_ACTION does not extend RTMR3, so replay fails."""
    error = get_error(change_event_type(intel.evidence((*BOOT, *FORGED)), ["app-id"], 3))
    assert isinstance(error, VerificationError)
    assert error.reason == "rtmr_mismatch"


@pytest.mark.parametrize(
    ("name", "payload"),
    [("app-id", b"short"), ("compose-hash", bytes(31)), ("instance-id", bytes(21))],
)
def test_identity_event_of_wrong_size_is_rejected(name: str, payload: bytes) -> None:
    """An identity event of a wrong size is rejected."""
    events = [(each, payload if each == name else value) for each, value in BOOT]
    error = get_error(intel.evidence(events, mr_config_id=UNSEALED))
    assert isinstance(error, VerificationError)
    assert error.reason == "identity"
    assert name.replace("-", "_") in str(error)


@every_case("name", ["app-id", "compose-hash", "instance-id", "key-provider"])
@every_case("policy", PRESETS)
def test_second_identity_event_in_boot_is_rejected(name: str, policy: str) -> None:
    """Two events that name an app before system-ready are ambiguous, even with one value."""
    [first] = [payload for each, payload in BOOT if each == name]
    other = b"" if name == "key-provider" else bytes(reversed(first)) or bytes(20)
    for payload in (first, other):
        events = (*BOOT[:-1], (name, payload), BOOT[-1])
        evidence = intel.evidence(events)
        for form in (evidence, evidence.stripped()):
            error = get_error(form, PRESETS[policy]())
            assert type(error) is VerificationError
            assert error.reason == "identity"
            assert name in str(error)
        later = intel.evidence((*BOOT, (name, payload))).to_bytes()
        intel.verifier(policy=policy).verify(later, report_data=NONCE)


def test_second_os_image_event_in_boot_must_have_the_same_value() -> None:
    """Two events with different OS images before system-ready are rejected."""
    image = ("os-image-hash", bytes(32))
    same = intel.evidence((*BOOT[:-1], image, image, BOOT[-1]))
    intel.verifier().verify(same.to_bytes(), report_data=NONCE)
    other = ("os-image-hash", b"\1" * 32)
    error = get_error(intel.evidence((*BOOT[:-1], image, other, BOOT[-1])))
    assert type(error) is VerificationError
    assert error.reason == "identity"


# -- the sealed configuration ------------------------------------------------------------------

MR_CONFIG = {
    "version": 3,
    "app_id": APP_ID.hex(),
    "compose_hash": COMPOSE_HASH.hex(),
    "key_provider": "none",
    "instance_id": bytes(20).hex(),
}


def create_sealed_evidence(
    document: dict[str, object],
    *,
    carried: bool = True,
    events: Sequence[tuple[str, bytes]] = BOOT,
) -> Attestation:
    """Return evidence launched with a version 3 document, which it carries or not."""
    text = json.dumps(document)
    log = intel.log_of(events)
    config = {**json.loads(IMAGE.vm_config), **({"mr_config": text} if carried else {})}
    quote = intel.quote_of(log, mr_config_id=config_id_v3(text))
    return Attestation.for_tdx(quote, log, json.dumps(config))


def get_identity_step(evidence: Attestation) -> str:
    """Return the step on identity of evidence that passes."""
    result = intel.verifier().verify(evidence.to_bytes(), report_data=NONCE)
    return " ".join(step.text for step in result.steps if step.check in {"app", "mr_config"})


def test_mr_config_comparison_is_reported_per_version() -> None:
    """The step reports for each MR_CONFIG version whether it was compared."""
    assert get_identity_step(intel.evidence()).endswith("sealed at launch (MR_CONFIG_ID)")
    assert get_identity_step(create_sealed_evidence(MR_CONFIG)).endswith(
        "sealed at launch (MR_CONFIG_ID)"
    )
    assert "left out" not in get_identity_step(intel.evidence(mr_config_id=UNSEALED))
    assert "does not have the document" in get_identity_step(
        create_sealed_evidence(MR_CONFIG, carried=False)
    )
    second = config_id_v2(COMPOSE_HASH, APP_ID, "none", b"")
    assert get_identity_step(intel.evidence(mr_config_id=second)).endswith("(MR_CONFIG_ID)")
    unknown = config_id_v2(COMPOSE_HASH, APP_ID, "kms", b"")
    assert "version 2" in get_identity_step(intel.evidence(mr_config_id=unknown))


STRICT = AppraisalPolicy.strict()


def test_policy_require_mr_config_rejects_missing_document() -> None:
    """A policy with `require_mr_config` rejects evidence without its version 3 document."""
    evidence = create_sealed_evidence({**MR_CONFIG, "compose_hash": bytes(32).hex()}, carried=False)
    alone = AppraisalPolicy.development().replace(require_mr_config=True)
    for policy in (STRICT, alone):
        error = get_error(evidence, policy)
        assert isinstance(error, PolicyError)
        assert error.reason == "require_mr_config"
        assert "have the host put it into vm_config" in str(error)
    lenient = intel.verifier(policy=STRICT.replace(require_mr_config=False))
    result = lenient.verify(evidence.to_bytes(), report_data=NONCE)
    assert not result.claims.has_mr_config


@pytest.mark.parametrize(
    "config_id", [UNSEALED, config_id_v2(COMPOSE_HASH, APP_ID, "kms", b""), b"\4" + bytes(47)]
)
def test_policy_require_mr_config_rejects_unsealed_td(config_id: bytes) -> None:
    """A zero MR_CONFIG_ID, or one over unknown values, is rejected by strict."""
    evidence = intel.evidence(mr_config_id=config_id)
    for form in (evidence, evidence.stripped()):
        error = get_error(form, STRICT)
        assert isinstance(error, PolicyError)
        assert error.reason == "require_mr_config"
        lenient = intel.verifier(policy=STRICT.replace(require_mr_config=False))
        lenient.verify(form.to_bytes(), report_data=NONCE)


@every_case(
    "evidence",
    [
        create_sealed_evidence(MR_CONFIG),
        intel.evidence(),
        intel.evidence(mr_config_id=config_id_v2(COMPOSE_HASH, APP_ID, "none", b"")),
        create_sealed_evidence(MR_CONFIG, carried=False, events=()),
    ],
)
def test_strict_policy_accepts_compared_mr_config(evidence: Attestation) -> None:
    """The strict policy accepts each version that was compared, and logs without identity."""
    for form in (evidence, evidence.stripped()):
        result = intel.verifier(policy=STRICT).verify(form.to_bytes(), report_data=NONCE)
        assert result.claims.has_mr_config is ('"mr_config"' in evidence.config)


def test_strict_policy_accepts_bare_quote_without_mr_config() -> None:
    """A bare quote names no app, so the strict policy requires no MR_CONFIG document."""
    bare = create_sealed_evidence(MR_CONFIG).quote
    assert bare is not None
    assert not intel.verifier(policy=STRICT).verify(bare, report_data=NONCE).claims.has_mr_config


@every_case(
    ("field", "value"),
    [
        ("app_id", OTHER_APP_ID.hex()),
        ("compose_hash", bytes(32).hex()),
        ("instance_id", (b"\1" * 20).hex()),
        ("key_provider", "kms"),
        ("init_script_hashes", [bytes(32).hex()]),
    ],
)
def test_mr_config_field_must_match_log(field: str, value: object) -> None:
    """Every field of the document must match the log."""
    error = get_error(create_sealed_evidence({**MR_CONFIG, field: value}))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"
    assert field in str(error)


@every_case(("sealed_id", "is_own"), [("", True), ("bb" * 91, True), ("aa" * 91, False)])
def test_mr_config_key_provider_id_must_match_log(sealed_id: str, *, is_own: bool) -> None:
    """The id of a key provider in the document is that in the log; without one, any is allowed."""
    provider = json.dumps({"name": "kms", "id": "bb" * 91}).encode()
    events = [(name, provider if name == "key-provider" else value) for name, value in intel.BOOT]
    config = {**MR_CONFIG, "key_provider": "kms", "key_provider_id": sealed_id}
    evidence = create_sealed_evidence(config, events=events)
    if is_own:
        assert intel.verifier().verify(evidence.to_bytes(), report_data=NONCE).claims.has_mr_config
    else:
        assert get_error(evidence).reason == "mr_config"


def test_mr_config_document_must_match_its_hash() -> None:
    """The document's hash must be MR_CONFIG_ID."""
    evidence = create_sealed_evidence(MR_CONFIG).evidence
    config = json.loads(evidence.stack.config)
    config["mr_config"] += " "
    stack = evidence.stack._replace(config=json.dumps(config))
    error = get_error(Attestation(evidence._replace(stack=stack)))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


@every_case("payload", [b"", b"kms", b"[]", b'{"name":"kms","id":"00"}', b"[" * 5000, b"\xff"])
def test_mr_config_key_provider_must_match_log(payload: bytes) -> None:
    """A different or malformed key provider event contradicts the document."""
    events = [(name, payload if name == "key-provider" else value) for name, value in BOOT]
    error = get_error(create_sealed_evidence(MR_CONFIG, events=events))
    assert isinstance(error, VerificationError)
    assert "key_provider" in str(error)


def test_mr_config_v1_must_match_compose_hash() -> None:
    """MR_CONFIG version 1 requires its compose hash in the log."""
    events = [(name, value) for name, value in BOOT if name != "compose-hash"]
    for evidence in (intel.evidence(events), intel.evidence(mr_config_id=b"\1" + bytes(47))):
        error = get_error(evidence)
        assert isinstance(error, VerificationError)
        assert error.reason == "mr_config"


def test_sgx_quote_in_tdx_evidence_raises_format_error() -> None:
    """TDX evidence with an SGX quote raises FormatError."""
    for enclave in (made_quote(3, 0), made_quote(4, 0), made_quote(5, 0, 1)):
        error = get_error(Attestation(Evidence(Tdx(enclave, ()), Stack(bytes(64), (), ""))))
        assert isinstance(error, FormatError)
        assert error.reason == "tee_type"


def test_mr_config_applies_without_app_id_and_compose_hash() -> None:
    """The document is compared even if the log has neither app id nor compose hash."""
    events = (("instance-id", b"\1" * 20), ("system-ready", b""))
    error = get_error(create_sealed_evidence(MR_CONFIG, events=events))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


def test_stripped_attestation_verifies_like_its_bytes() -> None:
    """A stripped log without digests gives the same result as its encoding."""
    log = intel.log_of(BOOT)
    shortened = Attestation.for_tdx(intel.quote_of(log), log.stripped(), IMAGE.vm_config)
    verifier = intel.verifier()
    result = verifier.verify(shortened, report_data=NONCE)
    assert result == verifier.verify(shortened.to_bytes(), report_data=NONCE)
    assert all(event.digest for event in result.claims.events)
