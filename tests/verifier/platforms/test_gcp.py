"""Verification of Google's TPM quotes: composed evidence of every stop, and altered evidence."""

import json
from collections.abc import Callable
from typing import Any

import pytest

import attestkit
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.gcp import read_uki_hash
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GcpSnp,
    GcpTdx,
    PcrValue,
    RuntimeEvent,
    Tdx,
    TpmEventDigest,
    TpmQuote,
    VtpmQuote,
)
from attestkit.backends.simulator.boot_log import BootRecord, boot_application
from attestkit.backends.simulator.clouds import gcp
from attestkit.collateral import Collateral
from attestkit.collateral.responses import Response
from attestkit.errors import (
    FormatError,
    ReplayError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from attestkit.event_log.runtime_events import runtime_preimage
from attestkit.tpm import PcrSelection, TpmtSignature
from attestkit.tpm.pcrs import extend
from attestkit.verifier import AppraisalPolicy, ReferenceValues, Verifier
from attestkit.verifier.evidence.checks import (
    KeyRequest,
    ParsedEvidence,
    app_info,
    key_time_app_info,
)
from attestkit.verifier.platforms.gcp import GcpAuthenticator, _replay_events, _replay_log
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd, azure, intel
from tests.verifier.platforms.google import (
    CASES,
    COMPOSED,
    FACTS,
    HARDWARE,
    NOW,
    altered,
    authenticate,
    chains,
    composed,
    platform_of,
    refused,
)

NONCE = bytes(32)
REASONS = {
    "qualified_data": "tpm_join",
    "pcr_digest": "pcr_digest",
    "pcr_selection": "pcr_selection",
    "event_log": "pcr_mismatch",
    "signature": "tpm_quote_bad_signature",
    "runtime_events": "pcr_mismatch",
    "pcr_bank": "pcr_selection",
}
pytestmark = needs_shared


# -- composed evidence -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["v0", "v1"])
@pytest.mark.parametrize("case", CASES)
def test_composed_evidence_has_its_verdict(case: str, encoding: str) -> None:
    """Every case passes all steps, or fails at its place, with genuine Intel collateral."""
    path = "services/near-ai-cloud/2026-06-29/collateral-b0c06f000000.json"
    verifier = Verifier(collateral=Collateral.from_json(data(path)), clock=lambda: NOW)
    verifier._authenticators.ak_chains = chains()
    found = verifier.examine(composed(f"{case}.{encoding}.bin"))
    stop = CASES[case]["fails_at"]
    if stop is not None:
        with pytest.raises(VerificationError) as caught:
            found.authenticate()
        assert caught.value.reason == REASONS[stop]
        return
    found.authenticate()
    found.replay()
    assert found.image_hash().hex() == FACTS["os_image_hash"]
    app = found.app_info()
    assert app is not None
    assert (app.mr_system.hex(), app.mr_aggregated.hex()) == (
        FACTS["mr_system"],
        FACTS["mr_aggregated"],
    )
    claims = found.claims()
    assert claims.vtpm is not None
    assert claims.platform == "dstack-gcp-tdx"
    assert claims["pcr14"].hex() == FACTS["pcr14"]
    assert claims.vtpm.key_trust == "certificate"
    assert claims.vtpm.joins == ("ak_to_hardware",)
    assert claims.vtpm.replayed == (("sha256", 0), ("sha256", 2), ("sha256", 14))
    assert len(claims.events) == FACTS["events"]
    checks = [(step.check, step.outcome) for step in found.steps]
    assert checks[5:] == [
        ("tpm_quote", "passed"),
        ("tpm_clock", "passed"),
        ("pcr_log", "passed"),
        ("attestation_key", "passed"),
        ("ak_certificate", "passed"),
        ("ak_revocation", "passed"),
        ("instance", "skipped"),
        ("ak_to_hardware", "passed"),
        ("pcr_log", "passed"),
        ("event_log", "passed"),
        ("os_image", "passed"),
        ("app", "passed"),
        ("mr_config", "passed"),
    ]


def test_evidence_is_not_accepted_under_googles_root() -> None:
    """The composed CA is not Google's."""
    files = [data(COMPOSED + name) for name in ("intermediate.pem", "root.pem")]
    with pytest.raises(SignatureError) as caught:
        GcpAuthenticator(AkChains(certificates=files)).authenticate(composed(), HARDWARE, NOW)
    assert caught.value.reason == "untrusted_root"


# -- altered evidence ------------------------------------------------------------------------------


every_nth_byte = pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])


@every_nth_byte
@pytest.mark.parametrize("field", ["message", "signature", "ak_cert"])
def test_each_changed_byte_is_refused(field: str, every: int) -> None:
    """No byte of message, signature and certificate may change; a signature has no other form."""
    value = getattr(platform_of(composed()).tpm_quote, field)
    for at in limited(range(0, len(value), every)):
        changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        refused(altered(**{field: changed}))


@every_nth_byte
@pytest.mark.parametrize("field", ["message", "signature", "ak_cert"])
def test_each_cut_and_bytes_after_the_end_are_refused(field: str, every: int) -> None:
    """Upstream ignores bytes after message and signature; here they are malformed."""
    value = getattr(platform_of(composed()).tpm_quote, field)
    for size in {*limited(range(0, len(value), every)), len(value) - 1}:
        refused(altered(**{field: value[:size]}))
    kind, reason = refused(altered(**{field: value + b"\0"}))
    expected = (
        (SignatureError, "cert_malformed") if field == "ak_cert" else (FormatError, "trailing_data")
    )
    assert (kind, reason) == expected


def test_short_integers_of_a_signature_are_accepted() -> None:
    """A TPM may drop leading zeros of r and s, where upstream demands 32 bytes."""
    quote = platform_of(composed()).tpm_quote
    signature = TpmtSignature.parse(quote.signature)
    assert len(signature.r) == len(signature.s) == 32
    assert authenticate(altered(signature=signature.encode()))


@every_case(
    ("changes", "reason"),
    [
        ({"platform": "dstack"}, "wrong_value"),
        ({"event_log": (TpmEventDigest(24, bytes(32)),)}, "wrong_value"),
        ({"event_log": (TpmEventDigest(0, bytes(31)),)}, "wrong_value"),
        ({"event_log": ()}, "pcr_mismatch"),
        ({"pcr_values": ()}, "pcr_selection"),
    ],
)
def test_gaps_of_upstream_are_closed(changes: dict[str, Any], reason: str) -> None:
    """Platform, log entries, and a missing log are checked."""
    assert refused(altered(**changes))[1] == reason


def test_every_pcr_needs_its_log() -> None:
    """A log without the records of PCR 0 or PCR 2 does not explain them."""
    log = platform_of(composed()).tpm_quote.event_log
    for index in (0, 2):
        kept = tuple(event for event in log if event.pcr_index != index)
        assert refused(altered(event_log=kept))[1] == "pcr_mismatch"


def test_values_of_other_names_duplicates_and_extra_ones_are_refused() -> None:
    """`algorithm` must be sha256, and the indices exactly the selected ones."""
    values = platform_of(composed()).tpm_quote.pcr_values
    renamed = (values[0]._replace(algorithm="sha1"), *values[1:])
    for changed in (
        renamed,
        (*values, values[0]),
        (values[0], *values),
        (*values, PcrValue(15, "sha256", bytes(32))),
        values[1:],
        (values[0]._replace(algorithm="SHA256"), *values[1:]),
    ):
        assert refused(altered(pcr_values=changed)) == (VerificationError, "pcr_selection")


@every_case("pcrs", [(0, 2), (0, 14), (2, 14), tuple(range(14)), (14,), tuple(range(24))])
def test_td_must_be_quoted_with_pcrs_0_2_and_14(pcrs: tuple[int, ...]) -> None:
    """A quote without one of them says nothing about firmware, kernel or app of a TD."""
    selection = (PcrSelection("sha256", pcrs),)
    signed = azure.quote(sha256(platform_of(composed()).quote), selections=selection)
    certificate = amd.authority("AK", "AK")
    own = altered(
        message=signed.message,
        signature=signed.signature,
        pcr_values=signed.pcr_values,
        event_log=(),
        ak_cert=certificate,
    )
    # The next check is that of the log, which is empty.
    assert refused(own)[1] == ("pcr_mismatch" if {0, 2, 14} <= {*pcrs} else "pcr_selection")


def test_another_hardware_quote_is_refused() -> None:
    """The TPM signed the embedded quote, byte for byte."""
    evidence, platform = composed().evidence, platform_of(composed())
    for quote in (platform.quote + b"\0", platform.quote[:-1]):
        changed = evidence._replace(platform=platform._replace(quote=quote))
        assert refused(Attestation(changed)) == (VerificationError, "tpm_join")


def test_a_join_is_checked_before_the_events() -> None:
    """Of evidence with another hardware quote and without its events, the join is reported."""
    evidence, platform = composed().evidence, platform_of(composed())
    stack = evidence.stack._replace(runtime_events=())
    changed = evidence._replace(stack=stack)
    assert refused(Attestation(changed))[1] == "pcr_mismatch"
    changed = changed._replace(platform=platform._replace(quote=platform.quote + b"\0"))
    assert refused(Attestation(changed))[1] == "tpm_join"


def test_runtime_events_replay_to_pcr_14() -> None:
    """An additional, missing or changed event is refused."""
    evidence = composed().evidence
    events = evidence.stack.runtime_events
    for changed in (
        (),
        events[1:],
        events[:-1],
        (*events, RuntimeEvent("x", b"")),
        (events[1], events[0], *events[2:]),
    ):
        stack = evidence.stack._replace(runtime_events=changed)
        assert refused(Attestation(evidence._replace(stack=stack)))[1] == "pcr_mismatch"


def test_records_precede_events_in_pcr_14_outside_of_dstack_only() -> None:
    """Shim's records precede the events; in an image of dstack, events alone extend PCR 14."""
    shim, event = sha256(b"shim's keys"), RuntimeEvent("e", b"")
    digests = [shim, sha256(runtime_preimage(*event))]
    value = PcrValue(14, "sha256", extend("sha256", bytes(32), digests))
    quote = TpmQuote(b"", b"", (value,), b"", "gcp", (TpmEventDigest(14, shim),))
    step = _replay_events(quote, [event], after_shim=True)
    assert step.text.startswith("1 records of the firmware's log and the 1 runtime events")
    alone = value._replace(value=extend("sha256", bytes(32), digests[1:]))
    for refused_one in (quote, quote._replace(pcr_values=(alone,))):
        with pytest.raises(ReplayError):
            _replay_events(refused_one, [event], after_shim=False)
    without = quote._replace(pcr_values=(alone,), event_log=())
    assert _replay_events(without, [event], after_shim=False).outcome == "passed"


def test_a_configuration_of_dstack_excludes_records_in_pcr_14() -> None:
    """Evidence with a configuration of dstack is verified as upstream does."""
    log = platform_of(composed()).tpm_quote.event_log
    kind, reason = refused(altered(event_log=(*log, TpmEventDigest(14, sha256(b"shim")))))
    assert (kind, reason) == (ReplayError, "pcr_mismatch")


def test_a_report_must_be_quoted_with_all_pcrs() -> None:
    """Evidence of an SEV-SNP guest selects PCRs 0 to 23, so this quote of three is refused."""
    evidence = composed().evidence
    of_td = platform_of(composed()).tpm_quote
    quote = VtpmQuote(
        of_td.message, of_td.signature, of_td.pcr_values, ak_certificates=(of_td.ak_cert,)
    )
    platform = GcpSnp(bytes(1184), (), quote)
    found = Attestation(Evidence(platform, evidence.stack))
    assert refused(found) == (VerificationError, "pcr_selection")


# -- OS image --------------------------------------------------------------------------------------


def test_the_image_is_that_of_its_measurement_document() -> None:
    """PCR 0 and the UKI in PCR 2 are compared; without the document nothing is claimed."""
    evidence = composed().evidence
    assert verify_os_image(evidence).hex() == FACTS["os_image_hash"]
    empty = evidence._replace(stack=evidence.stack._replace(config="{}"))
    with pytest.raises(UnsupportedError):
        verify_os_image(empty)
    quote = platform_of(composed()).tpm_quote
    log = list(quote.event_log)
    at = [index for index, event in enumerate(log) if event.pcr_index == 2]

    def check(**changes: Any) -> str:
        with pytest.raises(VerificationError) as caught:
            verify_os_image(altered(**changes).evidence)
        return str(caught.value)

    assert "PCR 2 mismatch" in check(event_log=tuple(log[: at[2]] + log[at[2] + 1 :]))
    values = (quote.pcr_values[0]._replace(value=bytes(32)), *quote.pcr_values[1:])
    assert "PCR 0 mismatch: expected GCP OVMF v2" in check(pcr_values=values)
    short = [event for event in log if event.pcr_index != 2] + [log[at[0]]]
    assert "Event 28 not found" in check(
        event_log=tuple(short), pcr_values=with_replay(quote, [log[at[0]].digest])
    )
    other = [log[index].digest for index in at]
    other[2] = bytes(32)
    events = tuple(TpmEventDigest(2, digest) for digest in other)
    assert "UKI hash mismatch" in check(event_log=events, pcr_values=with_replay(quote, other))


def of_loader(records: list[BootRecord]) -> list[BootRecord]:
    """Replace partition table and kernel: a program on a disk without table loads UKI and another.

    The number of records stays, and the UKI is the third one of PCR 2.
    """
    loaded = [at for at, one in enumerate(records) if one.pcr == 2]
    for at, program in ((loaded[1], b"loader"), (loaded[3], b"other")):
        records[at] = boot_application(program, pcr=2)
    return records


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records,
        of_loader,
        lambda records: [*records, boot_application(b"program after it", pcr=2)],
        lambda records: [one for one in records if b"kernel of" not in one.data],
    ],
)
def test_image_of_a_uki_is_a_caution_unless_its_registers_are_pinned(
    change: Callable[[list[BootRecord]], list[BootRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests in PCR 2 do not show which programs they are of; RTMRs do, if they are pinned."""
    with attestkit.open("simulator", platform="gcp-tdx") as tee:
        genuine = tee.verifier().verify(tee.attest(nonce=NONCE), nonce=NONCE)
    records = change([*gcp._records()])
    monkeypatch.setattr(gcp, "_records", lambda: tuple(records))
    by_hash = AppraisalPolicy.default().replace(os_image_hash={genuine.claims.os_image_hash})
    with attestkit.open("simulator", platform="gcp-tdx") as tee:
        evidence = tee.attest(nonce=NONCE)
        found = tee.verifier(policy=by_hash).verify(evidence, nonce=NONCE)
        assert found.claims.os_image_hash == genuine.claims.os_image_hash
        assert "os_image" in found.not_proven
        pinned = tee.verifier(policy=AppraisalPolicy.from_evidence(found))
        assert "os_image" not in pinned.verify(evidence, nonce=NONCE).not_proven
        some = ReferenceValues(rtmr2=(genuine.claims["rtmr2"],))
        pinned = tee.verifier(policy=by_hash.replace(reference_values=some))
        assert "os_image" in pinned.verify(evidence, nonce=NONCE).not_proven


@pytest.mark.parametrize("claimed", ["", "genuine", "aa" * 32])
def test_mr_system_without_a_verified_image_is_empty(claimed: str) -> None:
    """It is a hash of the image's hash, which the configuration alone only claims."""
    evidence = composed().evidence
    claimed = FACTS["os_image_hash"] if claimed == "genuine" else claimed
    stack = evidence.stack._replace(config=json.dumps({"os_image_hash": claimed}))
    parsed = ParsedEvidence.of(Attestation(evidence._replace(stack=stack)))
    key_time = key_time_app_info(parsed, b"", b"", KeyRequest(None))
    for found, _ in (app_info(parsed, b"", b""), key_time):
        assert found is not None
        assert (found.os_image_hash, found.mr_system) == (b"", b"")
        assert found.mr_aggregated.hex() == FACTS["mr_aggregated"]


def with_replay(quote: TpmQuote, digests: list[bytes]) -> tuple[PcrValue, ...]:
    """Return the PCR values of a quote with PCR 2 as the replay of digests."""
    value = bytes(32)
    for digest in digests:
        value = sha256(value + digest)
    return tuple(one._replace(value=value) if one.number == 2 else one for one in quote.pcr_values)


@every_case(
    "document",
    [
        {},
        {"version": 1},
        {"version": 1, "uki_auth": b"x" * 31},
        {"version": 1, "uki_auth": "x"},
        {"version": 2, "uki_auth": bytes(32)},
        {"version": True, "uki_auth": bytes(32)},
        {"version": 1, "uki_auth": bytes(32), "more": 1},
    ],
)
def test_a_document_of_another_form_is_refused(document: dict[Any, Any]) -> None:
    """The measurement document has two fields."""
    with pytest.raises(FormatError):
        read_uki_hash(document)


# -- log and collateral ---------------------------------------------------------------------------


def test_init_data_in_pcr_8_needs_no_record() -> None:
    """A program extends PCR 8 by init-data; it is then unexplained, for a rule of the policy."""
    value = sha256(bytes(32) + sha256(b"init-data"))
    quote = TpmQuote(b"", b"", (PcrValue(8, "sha256", value),), b"", "gcp", ())
    found = _replay_log(quote)
    assert found.replayed == ()
    assert "PCRs 8" in found.steps[-1].text
    logged = quote._replace(event_log=(TpmEventDigest(8, sha256(b"command line")),))
    with pytest.raises(ReplayError):
        _replay_log(logged)


def test_a_wrong_tpm_quote_does_not_doubt_the_collateral() -> None:
    """Requests depend on the TDX quote only: each piece of collateral is requested once."""
    requested: list[str] = []
    service = intel.pccs()

    def getter(url: str) -> Response:
        requested.append(url)
        return service(url)

    td = intel.evidence().evidence
    assert isinstance(td.platform, Tdx)
    tpm_quote = platform_of(composed("signature-changed.v1.bin")).tpm_quote
    platform = GcpTdx(td.platform.quote, td.platform.event_log, tpm_quote)
    verifier = Verifier(
        trust_anchor=intel.PKI.root_der,
        pccs_url="https://pccs.example",
        getter=getter,
        clock=lambda: intel.NOW,
    )
    for _ in range(2):
        with pytest.raises(VerificationError) as caught:
            verifier.verify(Attestation(td._replace(platform=platform)), report_data=None)
        assert caught.value.reason == "tpm_quote_bad_signature"
    assert 0 < len(requested) == len(set(requested))
