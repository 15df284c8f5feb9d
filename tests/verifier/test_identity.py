"""Who the app is cannot be claimed: not by an app, and not by whoever relays its evidence."""

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
from tests.quotes import made_quote
from tests.verifier import parcels
from tests.verifier.parcels import APP_ID, BOOT, COMPOSE_HASH, IMAGE, NONCE

VICTIM = bytes(20)
FORGED = (
    ("app-id", VICTIM),
    ("compose-hash", bytes(32)),
    ("key-provider", b'{"name":"kms","id":"00"}'),
    ("system-ready", b""),
)
UNSEALED = bytes(48)


def refused(evidence: Attestation, policy: AppraisalPolicy | None = None) -> AttestKitError:
    """Return why evidence, read again as a relying party would, is refused."""
    with pytest.raises(AttestKitError) as caught:
        parcels.verifier(policy=policy).verify(evidence.to_bytes(), report_data=NONCE)
    return caught.value


def hidden(evidence: Attestation, names: Sequence[str], event_type: int) -> Attestation:
    """Return evidence whose first events of these names are told as of another type."""
    told, left = evidence.evidence, list(names)
    assert isinstance(told.platform, Tdx)
    events = []
    for event in told.platform.event_log:
        if event.event_type == RUNTIME_EVENT_TYPE and event.event in left:
            left.remove(event.event)
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
    assert not left
    return Attestation(
        told._replace(
            platform=told.platform._replace(event_log=tuple(events)),
            stack=told.stack._replace(runtime_events=runtime),
        )
    )


@pytest.mark.parametrize("event_type", [0x0D, 0, 0x80000007, 0xFFFFFFFF])
@pytest.mark.parametrize(
    "names",
    [
        ["system-preparing", "app-id", "compose-hash", "instance-id", "key-provider"],
        ["app-id"],
        ["system-ready"],
        [name for name, _ in BOOT],
    ],
)
@pytest.mark.parametrize("stripped", [False, True])
def test_a_boot_hidden_behind_another_type(
    names: list[str], event_type: int, *, stripped: bool
) -> None:
    """The digests still replay, but what they are of could then be anything: refused."""
    evidence = hidden(parcels.evidence((*BOOT, *FORGED)), names, event_type)
    assert isinstance(evidence.evidence.platform, Tdx)
    error = refused(evidence.stripped() if stripped else evidence)
    assert isinstance(error, VerificationError)
    assert error.reason == "event"
    assert "not a runtime event" in str(error)


def test_an_event_that_extends_nothing_hides_nothing() -> None:
    """EV_NO_ACTION in RTMR3 is no digest of it."""
    error = refused(hidden(parcels.evidence((*BOOT, *FORGED)), ["app-id"], 3))
    assert isinstance(error, VerificationError)
    assert error.reason == "rtmr_mismatch"


@pytest.mark.parametrize(
    ("name", "payload"),
    [("app-id", b"short"), ("compose-hash", bytes(31)), ("instance-id", bytes(21))],
)
def test_sizes(name: str, payload: bytes) -> None:
    """An identity of another size than its own was measured by no agent."""
    events = [(each, payload if each == name else value) for each, value in BOOT]
    error = refused(parcels.evidence(events, mr_config_id=UNSEALED))
    assert isinstance(error, VerificationError)
    assert error.reason == "identity"
    assert name.replace("-", "_") in str(error)


# -- the sealed configuration ------------------------------------------------------------------

DOCUMENT = {
    "version": 3,
    "app_id": APP_ID.hex(),
    "compose_hash": COMPOSE_HASH.hex(),
    "key_provider": "none",
    "instance_id": bytes(20).hex(),
}


def sealed(
    document: dict[str, object],
    *,
    carried: bool = True,
    events: Sequence[tuple[str, bytes]] = BOOT,
) -> Attestation:
    """Return evidence launched with a version 3 document, which it carries or not."""
    text = json.dumps(document)
    log = parcels.log_of(events)
    config = {**json.loads(IMAGE.vm_config), **({"mr_config": text} if carried else {})}
    quote = parcels.quote_of(log, mr_config_id=config_id_v3(text))
    return Attestation.for_tdx(quote, log, json.dumps(config))


def told(evidence: Attestation) -> str:
    """Return the step on identity of evidence that passes."""
    result = parcels.verifier().verify(evidence.to_bytes(), report_data=NONCE)
    return next(step for step in result.steps if step.startswith("the app is"))


def test_the_app_that_was_sealed() -> None:
    """Each version that can be compared says so, and the others say why not."""
    assert told(parcels.evidence()).endswith("as sealed at launch")
    assert told(sealed(DOCUMENT)).endswith("as sealed at launch")
    assert "left out" not in told(parcels.evidence(mr_config_id=UNSEALED))
    assert "does not have the document" in told(sealed(DOCUMENT, carried=False))
    second = config_id_v2(COMPOSE_HASH, APP_ID, "none", b"")
    assert "version 2" in told(parcels.evidence(mr_config_id=second))


STRICT = AppraisalPolicy.strict()


def test_a_document_that_the_host_left_out() -> None:
    """Whatever the log tells would pass for what was sealed: strict, or the rule alone, refuses."""
    evidence = sealed({**DOCUMENT, "compose_hash": bytes(32).hex()}, carried=False)
    alone = AppraisalPolicy.development().replace(require_mr_config=True)
    for policy in (STRICT, alone):
        error = refused(evidence, policy)
        assert isinstance(error, PolicyError)
        assert error.reason == "require_mr_config"
        assert "have the host put it into vm_config" in str(error)
    lax = parcels.verifier(policy=STRICT.replace(require_mr_config=False))
    result = lax.verify(evidence.to_bytes(), report_data=NONCE)
    assert not result.claims.has_mr_config


@pytest.mark.parametrize(
    "evidence",
    [
        sealed(DOCUMENT),
        parcels.evidence(),
        parcels.evidence(mr_config_id=UNSEALED),
        parcels.evidence(mr_config_id=config_id_v2(COMPOSE_HASH, APP_ID, "none", b"")),
        sealed(DOCUMENT, carried=False, events=()),
    ],
)
def test_what_strict_takes(evidence: Attestation) -> None:
    """What was compared, and what nobody can compare: version 2, and a log that tells nothing."""
    for form in (evidence, evidence.stripped()):
        result = parcels.verifier(policy=STRICT).verify(form.to_bytes(), report_data=NONCE)
        assert result.claims.has_mr_config is ('"mr_config"' in evidence.config)


def test_a_document_is_looked_for_in_evidence_alone() -> None:
    """A bare quote of a TD with a sealed configuration tells no app, so there is none to doubt."""
    bare = sealed(DOCUMENT).quote
    assert bare is not None
    assert not parcels.verifier(policy=STRICT).verify(bare, report_data=NONCE).claims.has_mr_config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("app_id", VICTIM.hex()),
        ("compose_hash", bytes(32).hex()),
        ("instance_id", (b"\1" * 20).hex()),
        ("key_provider", "kms"),
        ("init_script_hashes", [bytes(32).hex()]),
    ],
)
def test_a_document_of_another_app(field: str, value: object) -> None:
    """Every field that the document has must be the log's."""
    error = refused(sealed({**DOCUMENT, field: value}))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"
    assert field in str(error)


def test_a_document_that_was_not_sealed() -> None:
    """Its hash must be MR_CONFIG_ID."""
    evidence = sealed(DOCUMENT).evidence
    config = json.loads(evidence.stack.config)
    config["mr_config"] += " "
    stack = evidence.stack._replace(config=json.dumps(config))
    error = refused(Attestation(evidence._replace(stack=stack)))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


@pytest.mark.parametrize(
    "told_as", [b"", b"kms", b"[]", b'{"name":"kms","id":"00"}', b"[" * 5000, b"\xff"]
)
def test_a_key_provider_that_was_not_sealed(told_as: bytes) -> None:
    """Another one, or text that names none, contradicts the document."""
    events = [(name, told_as if name == "key-provider" else value) for name, value in BOOT]
    error = refused(sealed(DOCUMENT, events=events))
    assert isinstance(error, VerificationError)
    assert "key_provider" in str(error)


def test_a_compose_hash_that_was_not_measured() -> None:
    """A seal of version 1 refuses an app that does not tell its compose hash."""
    events = [(name, value) for name, value in BOOT if name != "compose-hash"]
    error = refused(parcels.evidence(events))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


def test_an_enclaves_quote_in_a_tds_evidence() -> None:
    """It has other registers: refused before anything else, and not as the caller's mistake."""
    for enclave in (made_quote(3, 0), made_quote(4, 0), made_quote(5, 0, 1)):
        error = refused(Attestation(Evidence(Tdx(enclave, ()), Stack(bytes(64), (), ""))))
        assert isinstance(error, FormatError)
        assert error.reason == "tee_type"


def test_a_document_holds_whatever_the_log_tells() -> None:
    """Also of an app that tells neither its id nor its compose hash."""
    events = (("instance-id", b"\1" * 20), ("system-ready", b""))
    error = refused(sealed(DOCUMENT, events=events))
    assert isinstance(error, VerificationError)
    assert error.reason == "mr_config"


def test_evidence_that_was_shortened_here() -> None:
    """A log that was stripped and not read again has no digests: the same verdict as its bytes."""
    log = parcels.log_of(BOOT)
    shortened = Attestation.for_tdx(parcels.quote_of(log), log.stripped(), IMAGE.vm_config)
    judge = parcels.verifier()
    result = judge.verify(shortened, report_data=NONCE)
    assert result == judge.verify(shortened.to_bytes(), report_data=NONCE)
    assert all(event.digest for event in result.claims.events)
