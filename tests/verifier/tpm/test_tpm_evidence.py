"""Verifier: a TPM alone and messages of go-tpm-tools, with the policy that lists their keys."""

from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tpm
from attestkit.attester import Attester
from attestkit.backends.tpm.backend import TpmBackend
from attestkit.backends.tpm.client import TpmClient
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import GpuBinding
from attestkit.gpu.rules import GpuRules
from attestkit.tpm.pcrs import LOGGED_PCRS
from attestkit.verifier import AppraisalPolicy, AttestationResult, TcbStatus, Verifier
from tests.gpu import simulated_machine
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.made_tpm import (
    EXTRA,
    SPKI,
    authority,
    certificates,
    pcrs_of,
    public_area,
    sign_quote,
    vtpm_quote,
)
from tests.verifier.platforms.vtpm.test_pcr_logs import boot_log, extended
from tests.verifier.platforms.vtpm.tpm_samples import GO_TPM_TOOLS, go_cases

NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
CASES = [case for group in ("attestations", "attacks", "extra") for case in go_cases(group)]
NONCE = data(f"{GO_TPM_TOOLS}/nonce.bin")


def policy(*keys: bytes, **rules: Any) -> AppraisalPolicy:
    """Return a policy that accepts TPMs with some keys."""
    return AppraisalPolicy(
        accepted_statuses={TcbStatus.UP_TO_DATE},
        platforms={"tpm", "go-tpm-tools"},
        trusted_aks=keys or None,
        **rules,
    )


def verify(
    evidence: bytes | Attestation,
    *keys: bytes,
    report_data: bytes = EXTRA,
    ak_roots: tuple[bytes, ...] = (),
    **rules: Any,
) -> AttestationResult:
    """Verify evidence with a policy."""
    verifier = Verifier(policy=policy(*keys, **rules), ak_roots=ak_roots)
    return verifier.verify(evidence, report_data=report_data, now=NOW)


def tpm(**changes: Any) -> Attestation:
    """Return evidence of a made TPM."""
    platform = Tpm(vtpm_quote()._replace(**changes))
    return Attestation(Evidence(platform, Stack(EXTRA.ljust(64, b"\0"), (), "")))


@needs_shared
@every_case("case", CASES, ids=[f"{case['name']}.{case['key']}" for case in CASES])
def test_verifier_decides_each_case_of_go_tpm_tools(case: dict[str, Any]) -> None:
    """Every message of the samples is accepted or refused as they say."""
    raw = data(f"{GO_TPM_TOOLS}/{case['file']}")
    key = data(f"{GO_TPM_TOOLS}/keys/{case['key']}.spki.der")
    nonce = bytes.fromhex(case["nonce"]) if "nonce" in case else NONCE
    if case["verdict"] == "reject":
        with pytest.raises((VerificationError, FormatError)):
            verify(raw, key, report_data=nonce)
        return
    result = verify(raw, key, report_data=nonce)
    assert result.claims.platform == "go-tpm-tools"
    facts = result.claims.vtpm
    assert facts is not None
    assert (facts.key_trust, facts.attestation_key) == ("listed", key)
    assert set(facts.replayed) >= {("sha256", index) for index in (*range(10), 14)}
    assert result.claims.registers[0] == ("pcr0", facts.pcr("sha256", 0))
    assert "instance" not in result.not_proven or facts.details == ()
    # Authentic evidence is refused if another key is listed, or none.
    with raises(SignatureError, "ak_unknown"):
        verify(raw, sha256(b"another"), report_data=nonce)


@needs_shared
def test_verifier_accepts_no_log_only_with_expected_values() -> None:
    """Extended PCRs of firmware and boot loaders need a log or a rule (go-tpm-tools)."""
    case = next(case for case in CASES if case["name"] == "event-log-empty")
    raw = data(f"{GO_TPM_TOOLS}/{case['file']}")
    key = data(f"{GO_TPM_TOOLS}/keys/{case['key']}.spki.der")
    with raises(PolicyError, "pcrs"):
        verify(raw, key, report_data=NONCE)
    quotes = GoTpmToolsMessage.parse(raw).quotes
    values = {
        f"{one.algorithm}:{one.number}": one.value
        for quote in quotes
        for one in quote.pcr_values
        if one.algorithm in {"sha256", "sha384"} and one.number in LOGGED_PCRS
    }
    assert verify(raw, key, report_data=NONCE, pcrs=values).claims.vtpm is not None
    with raises(PolicyError, "pcrs"):
        verify(raw, key, report_data=NONCE, pcrs=values | {"sha256:0": bytes(32)})


@needs_shared
def test_verifier_accepts_evidence_of_confidential_containers_with_its_key() -> None:
    """The generic attester's evidence verifies with its key, and is unknown without it."""
    raw = data("vtpm/generic/trustee/tpm_evidence.json")
    found = Attestation.from_bytes(raw)
    platform = found.evidence.platform
    assert isinstance(platform, Tpm)
    key = platform.vtpm_quote.ak_public
    result = verify(raw, key, report_data=found.report_data)
    assert result.claims.platform == "tpm"
    assert result.claims.report_data == found.report_data
    assert result.bound_to == "report_data"
    for keys in ((), (sha256(b"another"),)):
        with raises(SignatureError, "ak_unknown"):
            verify(raw, *keys, report_data=found.report_data)
    with raises(PolicyError, "report_data"):
        verify(raw, key, report_data=b"other")


def test_default_and_strict_policies_accept_no_tpm_alone() -> None:
    """A TPM alone is accepted only if a policy names the platform."""
    raw = tpm(ak_certificates=certificates())
    for name in ("default", "strict"):
        verifier = Verifier(policy=name, ak_roots=[authority()[0].der])
        with raises(PolicyError, "platform"):
            verifier.verify(raw, report_data=EXTRA, now=NOW)


def test_verifier_accepts_certified_key_of_a_tpm() -> None:
    """A certificate under a root of `ak_roots` needs no list."""
    roots = (authority()[0].der,)
    result = verify(tpm(ak_certificates=certificates()), ak_roots=roots)
    assert result.claims.vtpm is not None
    assert result.claims.vtpm.key_trust == "certificate"
    assert len(result.certificate_chain) == 3
    assert "pcr_log" in result.not_proven


def test_verifier_binds_a_tpm_to_a_nonce() -> None:
    """Report data of a nonce are quoted as their SHA-256 or in full."""
    from attestkit.report_data import ReportData

    report_data = ReportData.for_nonce(b"a nonce!")
    stack = Stack(report_data, (), "")
    for extra in (sha256(report_data), report_data):
        evidence = Attestation(Evidence(Tpm(vtpm_quote(extra)), stack))
        verifier = Verifier(policy=policy(SPKI))
        result = verifier.verify(evidence, nonce=b"a nonce!", now=NOW)
        assert result.fresh
        with raises(PolicyError, "report_data"):
            verifier.verify(evidence, nonce=b"b nonce!", now=NOW)
    other = Attestation(Evidence(Tpm(vtpm_quote(sha256(bytes(64)))), stack))
    with raises(VerificationError, "report_data_mismatch"):
        Verifier(policy=policy(SPKI)).verify(other, nonce=b"a nonce!", now=NOW)


def test_half_of_report_data_with_gpus_binds_no_nonce() -> None:
    """Report data that contain a nonce beside an address are quoted as a hash, or in full."""
    nonce, machine = b"\x0b" * 32, simulated_machine.machine(1)
    report_data = b"an address".ljust(32, b"\0") + nonce
    gpus = GpuBinding("other", "nonce", machine.evidence(nonce), nonce, nonce, report_data)
    endorsements = GpuEndorsements(dict(machine.rims), machine.ocsp_answers(NOW.timestamp()))
    rules = policy(SPKI).replace(gpu=GpuRules())
    verifier = Verifier(policy=rules, gpu_roots=machine.roots, gpu_endorsements=endorsements)
    for extra in (report_data[:32], sha256(report_data[:32]), report_data[32:]):
        stack = Stack(extra.ljust(64, b"\0"), (), "")
        with raises(PolicyError, "report_data"):
            verifier.verify(Attestation(Evidence(Tpm(vtpm_quote(extra)), stack)), gpu=gpus, now=NOW)
    for extra in (sha256(report_data), report_data):
        evidence = Attestation(Evidence(Tpm(vtpm_quote(extra)), Stack(report_data, (), "")))
        assert verifier.verify(evidence, gpu=gpus, now=NOW).fresh


def test_verifier_replays_the_logs_of_a_tpm() -> None:
    """Logs replay to PCRs of the result; a log of another boot is refused."""
    pcrs = pcrs_of(pcr7=extended("sha256", 7, b"policy"))
    evidence = vtpm_quote(pcrs=pcrs)._asdict()
    good = tpm(**evidence | {"boot_log": boot_log((7, b"policy"))})
    result = verify(good, SPKI)
    assert result.claims.vtpm is not None
    assert result.claims.vtpm.replayed == (("sha256", 7),)
    with raises(ReplayError, "pcr_mismatch"):
        verify(tpm(**evidence | {"boot_log": boot_log((7, b"other"))}), SPKI)
    with raises(FormatError, "truncated"):
        verify(tpm(**evidence | {"boot_log": boot_log((7, b"policy"))[:-1]}), SPKI)


def test_verifier_refuses_malformed_evidence_of_a_tpm() -> None:
    """A cut part of the evidence is refused without an internal error."""
    quote = vtpm_quote()
    for name in ("message", "signature", "ak_public"):
        part = getattr(quote, name)
        for size in range(0, len(part), 3):
            with pytest.raises(AttestKitError) as caught:
                verify(tpm(**{name: part[:size]}), SPKI)
            assert caught.value.reason != "internal"


def test_verifier_reads_messages_in_hex() -> None:
    """A message is recognised in hex digits, too."""
    raw = GoTpmToolsMessage(public_area(), (sign_quote(),)).encode()
    found = verify(raw.hex().encode(), SPKI, pcrs={"sha256:7": bytes(32)})
    assert found.claims.platform == "go-tpm-tools"


def test_evidence_of_swtpm_is_bound_to_a_nonce(software_tpm: TpmClient) -> None:
    """Evidence of the backend `tpm` over swtpm verifies in each encoding, with its listed key."""
    backend = TpmBackend(client=software_tpm, logs=False)
    key = backend.read_trusted_key()
    with Attester(backend) as attester:
        evidence = attester.attest(nonce=b"a nonce!")
    verifier = Verifier(policy=policy(key))
    for encoding in (None, "json"):
        result = verifier.verify(evidence.to_bytes(encoding), nonce=b"a nonce!")
        assert result.fresh
        assert result.claims.vtpm is not None
        assert result.claims.vtpm.key_trust == "listed"
        assert {"pcr_log", "pcrs"} <= set(result.not_proven)
    with raises(SignatureError, "ak_unknown"):
        Verifier(policy=policy(sha256(b"another"))).verify(evidence, nonce=b"a nonce!")
