"""Tests of messages of go-tpm-tools: every case of the samples, and made messages."""

from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation.go_tpm_tools import (
    GceInstanceInfo,
    GoTpmToolsMessage,
    GoTpmToolsQuote,
)
from attestkit.backends.simulator.pki.cloud_pki import issue_azure_certificate
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.tpm import authenticate_go_tpm_tools
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.attestation_key import AkTrust
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.made_tpm import (
    EXTRA,
    SPKI,
    authority,
    certificates,
    pcrs_of,
    public_area,
    secrets,
    sign_quote,
)
from tests.verifier.platforms.vtpm.tpm_samples import GO_TPM_TOOLS, go_cases

NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
GOOGLE = "vtpm/gcp/go-tpm-tools"
# Reasons of attestkit for those of the samples, where the quotes themselves are wrong.
REASONS = {
    "message": {"unrecognized"},
    "signature": {"tpm_quote_bad_signature", "tpm_quote_algorithm", "trailing_data"},
    "key": {"ak_attributes", "ak_unknown", "tpm_quote_bad_signature", "invalid_key"},
    "nonce": {"tpm_qualifying_data"},
    "selection": {"pcr_selection"},
    "values": {"pcr_digest"},
    "bank": {"pcr_selection"},
    "quotes": {"pcr_digest"},
}
CASES = [case for group in ("attestations", "attacks", "extra") for case in go_cases(group)]
AUTHENTIC = [
    case
    for case in CASES
    if case["verdict"] != "reject" or case["name"] in {"nonce-other", "event-log-empty"}
]
FORGED = [case for case in CASES if case not in AUTHENTIC]


def authenticate(raw: bytes, *listed: bytes, roots: tuple[bytes, ...] = ()) -> Authenticated:
    """Authenticate a message, with some keys and roots trusted."""
    return authenticate_go_tpm_tools(raw, AkTrust(AkChains(roots=roots), listed, NOW))


def read_case(case: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return the message of a case, and its trusted key."""
    message = data(f"{GO_TPM_TOOLS}/{case['file']}")
    return message, data(f"{GO_TPM_TOOLS}/keys/{case['key']}.spki.der")


def ids(cases: list[dict[str, Any]]) -> list[str]:
    """Return ids for pytest."""
    return [f"{case['name']}.{case['key']}" for case in cases]


@needs_shared
@every_case("case", AUTHENTIC, ids=ids(AUTHENTIC))
def test_authentic_message_of_go_tpm_tools_verifies(case: dict[str, Any]) -> None:
    """Quotes of each scheme verify, in every bank; the report data are the common nonce."""
    raw, key = read_case(case)
    found = authenticate(raw, key)
    assert found.report_data == data(f"{GO_TPM_TOOLS}/nonce.bin").ljust(64, b"\0")
    assert found.vtpm is not None
    assert (found.vtpm.key_trust, found.vtpm.attestation_key) == ("listed", key)
    message = GoTpmToolsMessage.parse(raw)
    quoted = {(one.algorithm, one.number): one.value for q in message.quotes for one in q[2]}
    assert {(bank, index): value for bank, index, value in found.vtpm.pcrs} == quoted
    with raises(SignatureError, "ak_unknown"):
        authenticate(raw, b"\0" * 32)


@needs_shared
@every_case("case", FORGED, ids=ids(FORGED))
def test_altered_message_of_go_tpm_tools_is_refused(case: dict[str, Any]) -> None:
    """Altered and recombined messages are refused, for the reason of the samples."""
    raw, key = read_case(case)
    with pytest.raises(AttestKitError) as caught:
        authenticate(raw, key)
    assert caught.value.reason in REASONS[case["reason"]]


@needs_shared
def test_claims_about_an_instance_without_certificate_are_left_out() -> None:
    """Field 4 gives no facts, and a skipped step says so."""
    case = next(case for case in CASES if case["name"] == "instance-info-claimed")
    raw, key = read_case(case)
    found = authenticate(raw, key)
    assert found.vtpm is not None
    assert found.vtpm.details == ()
    assert ("instance", "skipped") in [(step.check, step.outcome) for step in found.steps]


@needs_shared
def test_message_of_google_verifies_under_its_old_root() -> None:
    """A message of 2021 leads to Google's root of 2018 with the intermediate certificate."""
    raw = data(f"{GOOGLE}/gce-cos-85-nonce9009.pb")
    with pytest.raises(CollateralError) as caught:
        authenticate(raw)
    assert caught.value.reason == "missing"
    intermediate = data(f"{GOOGLE}/ca-certs/tpm_ek_intermediate_2.crt")
    chains = AkChains(certificates=[intermediate])
    found = authenticate_go_tpm_tools(raw, AkTrust(chains, (), NOW))
    assert found.vtpm is not None
    assert found.vtpm.key_trust == "certificate"
    details = dict(found.vtpm.details)
    assert details["gce_instance"] == "cos-test"
    assert details["gce_project"] == "google.com:wuale-gcp-testing"
    assert details["gce_instance_id"] == "6797026933021542085"
    assert found.report_data == bytes.fromhex("9009").ljust(64, b"\0")
    message = GoTpmToolsMessage.parse(raw)
    assert sha256(found.vtpm.attestation_key)
    listed = authenticate(raw, found.vtpm.attestation_key)
    assert listed.vtpm is not None
    assert (listed.vtpm.key_trust, listed.vtpm.details) == ("listed", ())
    assert message.instance is None


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["rsa-owner", "ecc384-owner"])
def test_message_changed_in_any_byte_of_a_quote_is_refused(name: str) -> None:
    """A changed byte of a message or signature of any quote is refused (some bytes)."""
    check_changes(name, 23)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["rsa-owner", "ecc-owner", "ecc384-owner", "rsa-endorsement"])
def test_message_changed_in_every_byte_of_a_quote_is_refused(name: str) -> None:
    """As above, for each byte of public area, quotes, signatures and PCR values."""
    check_changes(name, 1)


def check_changes(name: str, step: int) -> None:
    """Change every `step`th byte of a message, but for the log; fewer in continuous integration."""
    raw, key = read_case({"file": f"attestations/{name}.pb", "key": name})
    message = GoTpmToolsMessage.parse(raw)
    size = len(message._replace(event_log=b"").encode())
    genuine = authenticate(raw, key)
    assert genuine.vtpm is not None
    assert raw.startswith(message._replace(event_log=b"").encode())
    for at in limited(range(0, size, step)):
        changed = raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :]
        try:
            found = authenticate(changed, key)
        except AttestKitError:
            continue
        # A changed number of a field makes it unknown; the others are verified and reported.
        assert found.vtpm is not None
        assert found.report_data == genuine.report_data
        if found.vtpm != genuine.vtpm:
            assert GoTpmToolsMessage.parse(changed).unknown_fields
            assert set(found.vtpm.pcrs) <= set(genuine.vtpm.pcrs)
            assert set(found.vtpm.replayed) <= set(genuine.vtpm.replayed)
            fewer = {"pcrs": genuine.vtpm.pcrs, "replayed": genuine.vtpm.replayed}
            assert dict(found.vtpm) | fewer == dict(genuine.vtpm)


def made(*quotes: GoTpmToolsQuote, **changes: Any) -> bytes:
    """Return a message with made quotes."""
    message = GoTpmToolsMessage(public_area(), quotes or (sign_quote(),))
    return message._replace(**changes).encode()


def steps_of(found: Authenticated) -> list[tuple[str, str]]:
    """Return check and outcome of each step."""
    return [(step.check, step.outcome) for step in found.steps]


def test_message_without_quotes_is_refused() -> None:
    """A message must have a quote."""
    with raises(FormatError, "missing"):
        authenticate(made(quotes=()), SPKI)


def test_quotes_of_two_banks_are_merged() -> None:
    """PCR values of all quotes are facts, and each quote has its steps."""
    raw = made(sign_quote(), sign_quote(pcrs=pcrs_of("sha384")), sign_quote(pcrs=pcrs_of("sha1")))
    found = authenticate(raw, SPKI)
    assert found.vtpm is not None
    assert len(found.vtpm.pcrs) == 72
    assert steps_of(found).count(("tpm_quote", "passed")) == 3


def test_quotes_over_other_data_or_values_are_refused() -> None:
    """Quotes must agree on the qualifying data, and on the value of a PCR."""
    with raises(VerificationError, "tpm_qualifying_data"):
        authenticate(made(sign_quote(), sign_quote(EXTRA + b"\0", pcrs_of("sha384"))), SPKI)
    with raises(VerificationError, "pcr_digest"):
        authenticate(made(sign_quote(), sign_quote(pcrs=pcrs_of(pcr16=b"\7" * 32))), SPKI)


def test_parts_that_are_not_verified_are_listed() -> None:
    """Hardware evidence, canonical log and unknown fields have skipped steps, and no join."""
    raw = made(tee="sev-snp", tee_evidence=b"x", canonical_event_log=b"cel") + b"\x52\0"
    found = authenticate(raw, SPKI)
    assert steps_of(found)[3:] == [
        ("attestation_key", "caution"),
        ("ak_revocation", "skipped"),
        ("hardware_to_ak", "skipped"),
        ("ak_to_hardware", "skipped"),
        ("event_log", "skipped"),
        ("unknown_fields", "skipped"),
    ]
    assert found.vtpm is not None
    assert found.vtpm.joins == ()


INSTANCE = GceInstanceInfo(
    "us-central1-a",
    "attestkit-simulated",
    100_000_000_001,
    "simulated-vm",
    1_000_000_000_000_000_001,
)


def test_claims_about_an_instance_must_be_those_of_the_certificate() -> None:
    """With a verified certificate, every claim of field 4 must equal that of its extension."""
    leaf, intermediate = certificates()
    google = AkTrust(AkChains(authority()[0].der), (), NOW)
    parts = {"ak_certificate": leaf, "intermediates": (intermediate,)}
    for instance in (None, INSTANCE):
        found = authenticate_go_tpm_tools(made(instance=instance, **parts), google)
        assert found.vtpm is not None
        assert dict(found.vtpm.details)["gce_project"] == INSTANCE.project_id
        assert ("instance", "passed") in steps_of(found)
    for field, value in INSTANCE._asdict().items():
        other = INSTANCE._replace(**{field: value + value})
        with raises(VerificationError, "instance_info", part=field):
            authenticate_go_tpm_tools(made(instance=other, **parts), google)
    with raises(VerificationError, "instance_info"):
        authenticate_go_tpm_tools(made(instance=GceInstanceInfo(), **parts), google)


def test_claims_about_an_instance_need_a_certificate_that_names_it() -> None:
    """With a certificate, verified or not, claims are refused unless its extension has them."""
    root = authority()[0]
    plain = issue_azure_certificate(root, SPKI, "a machine", secrets)
    google = AkTrust(AkChains(root.der), (), NOW)
    assert authenticate_go_tpm_tools(made(ak_certificate=plain), google)
    with raises(VerificationError, "instance_info", part="must name an instance"):
        authenticate_go_tpm_tools(made(ak_certificate=plain, instance=INSTANCE), google)
    leaf = certificates()[0]
    listed = AkTrust(AkChains(), (SPKI,), NOW)
    with raises(VerificationError, "instance_info", part="must name an instance"):
        authenticate_go_tpm_tools(made(ak_certificate=plain, instance=INSTANCE), listed)
    other = INSTANCE._replace(zone="elsewhere")
    with raises(VerificationError, "instance_info", part="zone"):
        authenticate_go_tpm_tools(made(ak_certificate=leaf, instance=other), listed)
    found = authenticate_go_tpm_tools(made(ak_certificate=leaf, instance=INSTANCE), listed)
    assert found.vtpm is not None
    assert (("instance", "skipped") in steps_of(found), found.vtpm.details) == (True, ())


def test_key_without_attributes_of_an_attestation_key_is_refused() -> None:
    """A key that could sign what the TPM did not make is refused even if listed."""
    with raises(SignatureError, "ak_attributes"):
        authenticate(made(ak_public=public_area(0x00040072)), SPKI)
