"""What /verify answers: each step's flags and reason, and no yes that a step did not give."""

import json
import weakref
from datetime import datetime, timezone
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import verified_hash
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
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
from attestkit.serve.verifier_service.response import Outcome, VerifyRequest, WrongTypeError, judge
from attestkit.verifier.pipeline import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.attestation.samples import TPM_QUOTE
from tests.serve.verifier_service.judges import (
    IMAGE,
    STEPS,
    StandIn,
    authenticated,
    evidence,
    result,
)
from tests.vectors import data, needs_shared

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
BOOT_INFO = [
    "teeVariant",
    "mrAggregated",
    "osImageHash",
    "mrSystem",
    "appId",
    "composeHash",
    "instanceId",
    "deviceId",
    "keyProviderInfo",
    "tcbStatus",
    "advisoryIds",
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
    """What a library in Rust raises when it gives up."""


def no_surprise(error: BaseException) -> str:
    """Fail the test: an error was not expected by the code either."""
    raise AssertionError from error


def attested(attestation: Attestation | None = None, **fields: Any) -> VerifyRequest:
    """Return a request to judge evidence, default the simulated TD's."""
    return VerifyRequest((attestation or evidence()).to_bytes(), **fields)


def ask(verifier: object, request: VerifyRequest | None = None) -> Outcome:
    """Judge; whatever was not expected fails the test."""
    return judge(cast("Verifier", verifier), request or attested(), no_surprise)


class Text(str):
    """A text of which can be seen whether it is still there."""

    __slots__ = ("__weakref__",)


class Refusing:
    """A Verifier that refuses all, each time by an error of its own."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def examine(self, _: Attestation, *, fetch: bool) -> "Refusing":
        """Refuse."""
        assert fetch
        raise self._kind("no")


def shown(outcome: Outcome) -> Any:
    """Return an outcome as its client reads it."""
    return json.loads(outcome.to_json())


# -- what passes -----------------------------------------------------------------------------------


def test_everything_passes() -> None:
    """The steps are taken in their order, and the response has all its keys in theirs."""
    verifier = StandIn()
    found = shown(ask(verifier))
    assert verifier.taken == list(STEPS)
    assert list(found) == ["is_valid", "details", "reason"]
    assert (found["is_valid"], found["reason"]) == (True, None)
    details = found["details"]
    assert list(details) == [*KEYS, "boot_info"]
    assert [details[name] for name in KEYS[:6]] == [True, True, True, False, None, None]
    assert details["tee_variant"] == "dstack-tdx"
    assert details["report_data"] == b"nonce".hex().ljust(128, "0")
    assert (details["tcb_status"], details["advisory_ids"]) == ("OutOfDate", ["INTEL-SA-1"])


def test_who_the_app_is() -> None:
    """app_info has the verified hash of the image; boot_info says the same in camel case."""
    info = evidence().app_info()._replace(os_image_hash=IMAGE)
    details = shown(ask(StandIn()))["details"]
    assert details["app_info"] == info.to_dict()
    provider = json.loads(info.key_provider_info)
    assert details["key_provider"] == {"name": provider["name"], "id": provider["id"]}
    boot = details["boot_info"]
    assert list(boot) == BOOT_INFO
    assert boot == {
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


def test_a_maker_without_a_status() -> None:
    """AWS says nothing of the kind: null, and an empty text for who decides by it."""
    details = shown(ask(StandIn(authenticate=authenticated(None))))["details"]
    assert details["tcb_status"] is None
    assert details["boot_info"]["tcbStatus"] == ""


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"name":"kms"}', b'{"name":"kms","id":1}', b"\xff"]
)
def test_a_malformed_key_provider_is_none(text: bytes) -> None:
    """What an app's boot wrote there is shown only if it is what it should be."""
    info = evidence().app_info()._replace(key_provider_info=text)
    details = shown(ask(StandIn(app_info=info)))["details"]
    assert details["key_provider"] is None
    assert details["app_info"]["key_provider_info"] == text.hex()


# -- forms of the request --------------------------------------------------------------------------


def test_complete_evidence_wins() -> None:
    """With `attestation` the other three are ignored, even if they are nonsense."""
    verifier = StandIn()
    request = attested(quote=b"nonsense", event_log="nonsense", vm_config="nonsense")
    assert shown(ask(verifier, request))["is_valid"]
    assert verifier.opened == [evidence()]


def test_a_quote_and_its_log() -> None:
    """The other form; the configuration is the one that is handed in, if any."""
    whole = evidence()
    assert whole.quote is not None
    for config in (whole.config, None):
        verifier = StandIn()
        request = VerifyRequest(None, whole.quote.raw, whole.event_log.to_json(), config)
        assert shown(ask(verifier, request))["is_valid"]
        [opened] = verifier.opened
        assert opened.quote == whole.quote
        assert opened.event_log.replay() == whole.event_log.replay()
        assert opened.config == (config or "")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (VerifyRequest(), "Quote is required"),
        (VerifyRequest(vm_config="{}"), "Quote is required"),
        (VerifyRequest(quote=b"\4"), "Event log is required"),
        (VerifyRequest(b""), "Failed to decode attestaion"),
        (VerifyRequest(b"\0\1\2"), "Failed to decode attestaion"),
        (VerifyRequest(b"", b"quote", "[]"), "Failed to decode attestaion"),
        (VerifyRequest(None, b"", "[]"), "Failed to create attestation"),
        (VerifyRequest(None, b"\4", "[]"), "Failed to create attestation"),
    ],
)
def test_what_is_no_evidence(request_: VerifyRequest, reason: str) -> None:
    """The documented texts, letter by letter, and nothing judged."""
    verifier = StandIn()
    found = shown(ask(verifier, request_))
    assert found == {"is_valid": False, "details": NOTHING, "reason": f"Internal error: {reason}"}
    assert verifier.opened == []


@pytest.mark.parametrize("log", ["", "{}", "nonsense", '[{"imr":9}]'])
def test_what_is_no_log(log: str) -> None:
    """A good quote does not make up for its log."""
    quote = evidence().quote
    assert quote is not None
    found = shown(ask(StandIn(), VerifyRequest(None, quote.raw, log)))
    assert found["reason"] == "Internal error: Failed to create attestation"


# -- what fails ------------------------------------------------------------------------------------


def check_refused(found: Any, step: str) -> str:
    """Check that nothing behind `step` shows; return the cause of the refusal."""
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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error",
    [
        FormatError("what is wrong", offset=7),
        SignatureError("what is wrong"),
        ReplayError("what is wrong"),
        PolicyError("what is wrong"),
        CollateralError("what is wrong"),
        CollateralExpiredError("what is wrong"),
        UnsupportedError("what is wrong"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_step_that_fails_ends_it(step: str, error: AttestKitError) -> None:
    """The reason names the step and our own text; what comes behind is not reached."""
    verifier = StandIn(**{step: error})
    found = shown(ask(verifier))
    assert check_refused(found, step) == str(error)
    assert verifier.taken == list(STEPS[: STEPS.index(step) + 1])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
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
def test_a_step_that_breaks_is_a_rejection(step: str, error: BaseException) -> None:
    """Nothing that goes wrong is a yes; its text goes to the log, an id to the client."""
    reported: list[BaseException] = []

    def report(error: BaseException) -> str:
        reported.append(error)
        return "0123"

    outcome = judge(cast("Verifier", StandIn(**{step: error})), attested(), report)
    assert check_refused(shown(outcome), step) == "internal error, request 0123"
    assert reported == [error]
    assert outcome.result is None


@pytest.mark.parametrize("answer", [None, True, "valid", 1])
def test_only_a_result_is_a_yes(answer: object) -> None:
    """A verifier that returns something else than an AttestationResult has said nothing."""
    verifier = cast("Verifier", StandIn(appraise=answer))
    found = shown(judge(verifier, attested(), lambda error: type(error).__name__))
    assert check_refused(found, "appraise") == "internal error, request TypeError"


@pytest.mark.parametrize(
    ("step", "answer", "text"),
    [
        ("image_hash", b"", "the evidence does not tell which image runs"),
        ("app_info", None, "the evidence does not name its app"),
    ],
)
def test_a_step_that_found_nothing_did_not_pass(step: str, answer: object, text: str) -> None:
    """Here everything has to be known, also what a Verifier leaves to its policy."""
    assert check_refused(shown(ask(StandIn(**{step: answer}))), step) == text


def test_evidence_that_cannot_be_opened() -> None:
    """The verifier refuses a platform before its first step: that is the quote's failure."""
    verifier = StandIn()

    def refuse() -> None:
        raise UnsupportedError("quotes of its vTPM are not supported yet")

    verifier.before = refuse
    found = shown(ask(verifier))
    assert found["reason"] == "Quote verification failed: quotes of its vTPM are not supported yet"
    assert found["details"] == NOTHING


def test_a_vtpm_is_not_judged() -> None:
    """Evidence that rests on a vTPM is refused by its name."""
    from attestkit.attestation.wire.evidence_parts import GcpTdx, Tdx

    platform, stack = evidence().evidence
    assert isinstance(platform, Tdx)
    gcp = Attestation(Evidence(GcpTdx(*platform, TPM_QUOTE), stack))
    found = shown(ask(Verifier(), attested(gcp)))
    assert found["reason"].startswith("Quote verification failed: evidence of dstack-gcp-tdx")
    assert found["details"] == NOTHING


@needs_shared
def test_a_key_of_a_cloud_is_refused() -> None:
    """A VLEK is not asked about, whatever the Verifier would say to it."""
    request = json.loads(data("dstack/verifier/sev-snp-attestation.json"))
    known = Attestation.from_agent_response(request)
    platform, stack = known.evidence
    assert isinstance(platform, SevSnp)
    report = bytearray(platform.report)
    report[0x48] |= 1 << 2
    vlek = Attestation(Evidence(platform._replace(report=bytes(report)), stack))
    verifier = StandIn()
    found = shown(ask(verifier, attested(vlek)))
    assert found["reason"].startswith("Quote verification failed: the report is signed by a VLEK")
    assert found["details"] == NOTHING
    assert verifier.taken == []


def test_a_malformed_report() -> None:
    """It is a quote that does not verify, not a failure of ours."""
    snp = Attestation(Evidence(SevSnp(b"\2", (), "{}"), Stack(bytes(64), (), "")))
    found = shown(ask(StandIn(), attested(snp)))
    assert found["reason"].startswith("Quote verification failed: ")


@needs_shared
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_changed_evidence_is_never_believed(draw: st.DataObject) -> None:
    """Whatever is done to a capture that is valid, nothing of it breaks a step or passes all."""
    fields = json.loads(data("dstack/verifier/sev-snp-attestation.json"))
    whole = bytes.fromhex(fields["attestation"])
    at = draw.draw(st.integers(0, 1187) | st.integers(0, len(whole) - 1))
    changed = draw.draw(st.binary(max_size=3).filter(lambda new: new != whole[at : at + len(new)]))
    cut = draw.draw(st.sampled_from([0, len(changed), 1]))
    request = VerifyRequest(whole[:at] + changed + whole[at + cut :])
    if request.attestation == whole:
        return
    july = datetime(2026, 7, 1, tzinfo=timezone.utc)
    verifier = Verifier(policy=AppraisalPolicy.development(), clock=lambda: july)
    believed = ask(verifier, request).result
    # Certificates have room for bytes that nobody signed, and so have texts that nobody measured.
    assert believed is None or not (4 <= at < 4 + 1184)


@given(
    st.dictionaries(
        st.sampled_from(["attestation", "quote", "event_log", "vm_config", "debug", "x"]),
        st.none() | st.booleans() | st.text('0123456789abcdef[]{}":,', max_size=40) | st.integers(),
    )
)
def test_any_request(fields: dict[str, object]) -> None:
    """Any object is judged or refused as what it is, without a surprise."""
    try:
        request = VerifyRequest.from_json(json.dumps(fields).encode())
    except WrongTypeError:
        return
    assert ask(Verifier(), request).result is None


# -- images ----------------------------------------------------------------------------------------


def changed_config(**changes: object) -> Attestation:
    """Return the simulated TD's evidence with another configuration."""
    platform, stack = evidence().evidence
    config = json.dumps(json.loads(stack.config) | changes)
    return Attestation(Evidence(platform, stack._replace(config=config)))


def real_image(attestation: Attestation) -> StandIn:
    """Return a verifier whose OS image step is the real one."""

    class RealImage(StandIn):
        def image_hash(self) -> object:
            return verified_hash(attestation.evidence)

    return RealImage()


def test_an_older_image_cannot_be_told() -> None:
    """A Verifier passes it over; this service must say that it could not, and that it is no yes."""
    legacy = changed_config(tdx_attestation_variant="legacy")
    for debug in (None, False, True):
        found = shown(ask(StandIn(image_hash=b""), attested(legacy, debug=debug)))
        assert check_refused(found, "image_hash") == "OS image not verifiable without the image"
        assert "rtmr_debug" not in found["details"]


@pytest.mark.parametrize("debug", [None, False, True])
def test_debug_shows_the_registers_that_differ(debug: bool | None) -> None:
    """With `debug` the registers of another image are beside those in the quote."""
    other = changed_config(memory_size=3 << 30)
    found = shown(ask(real_image(other), attested(other, debug=debug)))
    assert check_refused(found, "image_hash").startswith("MRs do not match: RTMR0 mismatch")
    if not debug:
        assert "rtmr_debug" not in found["details"]
        return
    quote = evidence().quote
    assert quote is not None
    [register] = found["details"]["rtmr_debug"]
    assert register["rtmr"] == "RTMR0"
    assert register["actual"] == quote.rtmrs[0].hex() != register["expected"]


def test_debug_changes_nothing_else() -> None:
    """Evidence that passes is answered the same."""
    assert ask(StandIn(), attested(debug=True)).to_json() == ask(StandIn()).to_json()


def test_debug_without_anything_to_show() -> None:
    """Registers that cannot be worked out are no reason for another error."""
    broken = changed_config(tdx_measurement="nonsense")
    found = shown(ask(real_image(broken), attested(broken, debug=True)))
    check_refused(found, "image_hash")
    assert "rtmr_debug" not in found["details"]


def test_simulated_evidence_is_still_simulated() -> None:
    """The outcome carries the result, which tells."""
    outcome = ask(StandIn(appraise=result(simulated=True)))
    assert outcome.result is not None
    assert outcome.result.simulated


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [SignatureError, RuntimeError, PanicError])
def test_refused_evidence_is_freed_at_once(kind: type[BaseException]) -> None:
    """It may be megabytes of a stranger's: it does not wait for the collector of cycles."""
    log = Text("[]")
    alive = weakref.ref(log)
    outcome = judge(cast("Verifier", Refusing(kind)), attested(event_log=log), lambda _: "id")
    assert outcome.result is None
    del log
    assert alive() is None
