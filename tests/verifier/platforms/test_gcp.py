"""Verification of Google's TPM quotes: composed evidence of every stop, and altered evidence."""

import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit.attestation import Attestation
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.attestation.launch.gcp import read_uki_hash
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
from attestkit.collateral import Collateral
from attestkit.collateral.pccs_client import Response
from attestkit.errors import (
    AttestKitError,
    FormatError,
    ReplayError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from attestkit.event_log.runtime_events import runtime_preimage
from attestkit.report_data import ReportData
from attestkit.tpm import TpmtSignature
from attestkit.tpm.pcrs import extend
from attestkit.verifier import Verifier
from attestkit.verifier.evidence_checks import ExpectedReportData
from attestkit.verifier.hardware_join import join_hardware
from attestkit.verifier.platforms.gcp import GcpAuthenticator, _replay_events, _replay_log
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.gce_instance import gce_details
from attestkit.verifier.result import Authenticated, Tcb
from attestkit.verifier.vtpm_facts import VtpmFacts
from tests.vectors import HAVE_SHARED, data, needs_shared
from tests.verifier.platforms import intel

NOW = datetime(2026, 6, 29, 12, tzinfo=timezone.utc)  # the collateral's and the certificates'
COMPOSED = "vtpm/composed/gcp-tdx/"
EXPECTED: Any = json.loads(data("vtpm/expected.json"))[COMPOSED[5:-1]] if HAVE_SHARED else {}
CASES = EXPECTED.get("cases", {})
FACTS = EXPECTED.get("facts", {})
REASONS = {
    "qualified_data": "tpm_join",
    "pcr_digest": "pcr_digest",
    "pcr_selection": "pcr_selection",
    "event_log": "pcr_mismatch",
    "signature": "tpm_quote_bad_signature",
    "runtime_events": "pcr_mismatch",
    "pcr_bank": "pcr_selection",
}
HARDWARE = Authenticated(None, (), bytes(64), b"", Tcb(), (), ())

pytestmark = needs_shared


def chains() -> AkChains:
    """Return the certificates of the composed evidence."""
    [root] = split_pem(data(COMPOSED + "root.pem").decode())
    files = [data(COMPOSED + name) for name in ("intermediate.pem", "root.crl")]
    return AkChains(root, certificates=files)


def composed(name: str = "good.v1.bin") -> Attestation:
    """Return composed evidence."""
    return Attestation.from_bytes(data(COMPOSED + name))


def platform_of(attestation: Attestation) -> GcpTdx:
    """Return the platform's part of evidence."""
    platform = attestation.evidence.platform
    assert isinstance(platform, GcpTdx)
    return platform


def altered(**changes: Any) -> Attestation:
    """Return the good evidence with other fields in its TPM quote."""
    evidence = composed().evidence
    platform = platform_of(composed())
    tpm_quote = platform.tpm_quote._replace(**changes)
    return Attestation(evidence._replace(platform=platform._replace(tpm_quote=tpm_quote)))


def authenticate(attestation: Attestation) -> Authenticated:
    """Verify the TPM's part of evidence, as if the hardware's part were authentic."""
    return GcpAuthenticator(chains()).authenticate(attestation, HARDWARE, NOW)


def refused(attestation: Attestation) -> tuple[type[AttestKitError], str]:
    """Return type and reason of the error."""
    with pytest.raises(AttestKitError) as caught:
        authenticate(attestation)
    return type(caught.value), caught.value.reason


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
        ("attestation_key", "passed"),
        ("ak_certificate", "passed"),
        ("ak_revocation", "passed"),
        ("instance", "skipped"),
        ("ak_to_hardware", "passed"),
        ("pcr_log", "passed"),
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
    for at in range(0, len(value), every):
        changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        refused(altered(**{field: changed}))


@every_nth_byte
@pytest.mark.parametrize("field", ["message", "signature", "ak_cert"])
def test_each_cut_and_bytes_after_the_end_are_refused(field: str, every: int) -> None:
    """Upstream ignores bytes after message and signature; here they are malformed."""
    value = getattr(platform_of(composed()).tpm_quote, field)
    for size in {*range(0, len(value), every), len(value) - 1}:
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


@pytest.mark.parametrize(
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


def test_another_hardware_quote_is_refused() -> None:
    """The TPM signed the embedded quote, byte for byte."""
    evidence, platform = composed().evidence, platform_of(composed())
    for quote in (platform.quote + b"\0", platform.quote[:-1]):
        changed = evidence._replace(platform=platform._replace(quote=quote))
        assert refused(Attestation(changed)) == (VerificationError, "tpm_join")


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


def with_replay(quote: TpmQuote, digests: list[bytes]) -> tuple[PcrValue, ...]:
    """Return the PCR values of a quote with PCR 2 as the replay of digests."""
    value = bytes(32)
    for digest in digests:
        value = sha256(value + digest)
    return tuple(one._replace(value=value) if one.number == 2 else one for one in quote.pcr_values)


@pytest.mark.parametrize(
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


# -- joins and instance ----------------------------------------------------------------------------

NONCE = b"a nonce of a challenger"
FOUND = VtpmFacts(b"key", "certificate", ("ak_to_hardware",), ())


def test_a_nonce_with_the_key_proves_both_directions() -> None:
    """Report data over nonce and key hold, those of another key or over the nonce alone do not."""
    expected = ExpectedReportData.of(NONCE, ...)
    bound = ReportData.for_nonce_and_ak(NONCE, b"key")
    join = join_hardware(expected, bound, FOUND)
    assert join.vtpm == replace(FOUND, joins=("hardware_to_ak", "ak_to_hardware"))
    assert join.expected == ExpectedReportData(bound, "nonce", NONCE)
    assert [(step.check, step.outcome) for step in join.steps] == [("hardware_to_ak", "passed")]
    for signed in (
        ReportData.for_nonce(NONCE),
        ReportData.for_nonce_and_ak(NONCE, b"another"),
        bytes(64),
    ):
        join = join_hardware(expected, signed, FOUND)
        assert join.vtpm == FOUND
        assert join.expected == expected
        assert [step.outcome for step in join.steps] == ["skipped"]


def test_report_data_without_a_nonce_leave_the_direction_unproven() -> None:
    """Raw report data may be over anything."""
    join = join_hardware(ExpectedReportData.of(None, bytes(64)), bytes(64), FOUND)
    assert [(step.check, step.outcome) for step in join.steps] == [("hardware_to_ak", "skipped")]


@pytest.mark.parametrize(
    "vtpm",
    [
        None,
        replace(FOUND, joins=()),
        replace(FOUND, joins=("hardware_to_ak",), key_trust="hardware_report"),
    ],
)
def test_other_platforms_decide_the_join_themselves(vtpm: VtpmFacts | None) -> None:
    """Without a quote over the hardware's evidence there is nothing to add."""
    expected = ExpectedReportData.of(NONCE, ...)
    assert join_hardware(expected, bytes(64), vtpm) == (expected, vtpm, ())


def test_details_name_the_instance() -> None:
    """The details have the names that rules of a policy use."""
    found = GceInstance("zone", 1, "project", 1 << 63, "name", 0, is_production=False)
    assert gce_details(found) == (
        ("gce_project", "project"),
        ("gce_zone", "zone"),
        ("gce_instance", "name"),
        ("gce_project_number", "1"),
        ("gce_instance_id", str(1 << 63)),
        ("gce_security_version", "0"),
        ("gce_is_production", "false"),
    )
    assert gce_details(None) == ()


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


def test_the_genuine_quote_of_google_verifies_up_to_the_join() -> None:
    """A quote of a Confidential VM, whose hardware evidence is not at hand, has Google's key."""
    fixture = json.loads(data("vtpm/gcp/vaportpm/test-gcp-tdx-fixture.json"))
    expected = json.loads(data("vtpm/expected.json"))["gcp/vaportpm/test-gcp-tdx-fixture.json"]
    leaf, *authorities = split_pem(fixture["attestation"]["gcp"]["ak_cert_chain"])
    attest = bytes.fromhex(fixture["attestation"]["tpm"]["ecc_p256"]["attest_data"])
    pcrs = {int(n): bytes.fromhex(v) for n, v in fixture["pcrs"]["sha256"].items()}
    quote = TpmQuote(
        attest,
        bytes.fromhex(expected["tpmt_signature"]),
        tuple(PcrValue(index, "sha256", pcrs[index]) for index in range(24)),
        leaf,
        "gcp",
        (),
    )
    roots = [("Google", read_path_certificate(root)) for root in google_roots()]
    certified = AkChains().verify(leaf, roots, NOW, beside=authorities[:1])
    assert certified.gce is not None
    assert certified.gce.instance_id == expected["gce"]["instance_id"]
    evidence = composed().evidence
    platform = GcpTdx(b"", (), quote)
    kind, reason = refused(Attestation(evidence._replace(platform=platform)))
    assert (kind.__name__, reason) == ("ReplayError", "pcr_mismatch")  # its log is not at hand


def test_the_older_hierarchy_of_google_is_trusted() -> None:
    """An AK certificate of 2021 has an empty subject, and leads to the root of 2018."""
    folder = "vtpm/gcp/go-tpm-tools/"
    message = GoTpmToolsMessage.parse(data(folder + "gce-cos-85-nonce9009.pb"))
    found = AkChains()
    certified = found.verify(
        message.ak_certificate,
        found.google,
        NOW,
        beside=[data(folder + "ca-certs/tpm_ek_intermediate_2.crt")],
    )
    assert certified.path.root_name == "Google's TPM root of 2018"
    expected = json.loads(data("vtpm/expected.json"))["gcp/go-tpm-tools/gce-cos-85-nonce9009.pb"]
    assert dict(gce_details(certified.gce))["gce_instance"] == expected["gce"]["instance_name"]
    assert [step.outcome for step in certified.steps] == ["passed", "skipped"]


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
