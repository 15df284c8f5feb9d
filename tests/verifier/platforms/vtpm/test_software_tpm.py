"""Quotes of swtpm with keys of every accepted scheme, and logs whose digests it extended."""

import hashlib
from datetime import datetime, timezone

import pytest

from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.quote_reader import TpmLogs, collect_quote
from attestkit.errors import ReplayError, SignatureError
from attestkit.tpm import PcrSelection, TpmtPublic
from attestkit.tpm.handles import ENDORSEMENT, OWNER
from attestkit.verifier.platforms.tpm import authenticate_tpm
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.attestation_key import AkTrust
from attestkit.verifier.platforms.vtpm.pcr_logs import with_replayed_logs
from tests.raising import raises
from tests.tpm.samples import AK
from tests.verifier.platforms.vtpm.test_pcr_logs import FIRST, boot_log, ima_record

NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
RSA = TpmtPublic("rsa", "sha256", AK, scheme="rsassa", scheme_hash="sha256", bits=2048)
ECC = TpmtPublic("ecc", "sha256", AK, scheme="ecdsa", scheme_hash="sha256", curve="p256")
TEMPLATES = {
    "rsassa-sha256": RSA,
    "rsassa-sha384": RSA._replace(scheme_hash="sha384"),
    "rsassa-sha512": RSA._replace(scheme_hash="sha512"),
    "rsapss-sha256": RSA._replace(scheme="rsapss"),
    "rsapss-sha512": RSA._replace(scheme="rsapss", scheme_hash="sha512"),
    "ecdsa-p256": ECC,
    "ecdsa-p256-sha512": ECC._replace(scheme_hash="sha512"),
    "ecdsa-p384": ECC._replace(curve="p384", scheme_hash="sha384"),
}
BANKS = ("sha256", "sha384")
SELECTIONS = (*(PcrSelection(bank, tuple(range(24))) for bank in BANKS), PcrSelection("sha1", (0,)))
EVENTS = ((0, b"firmware"), (4, b"loader"), (7, b"policy"), (9, b"initrd"), (14, b"shim"))
LOGS = TpmLogs(boot_log(*EVENTS, banks=BANKS), ima_record(FIRST) + ima_record(b"program"))


def quote(client: TpmClient, template: TpmtPublic, hierarchy: int = OWNER) -> tuple[Tpm, bytes]:
    """Return evidence by a new key, and that key."""
    with client.primary_key(hierarchy, template) as key:
        found = collect_quote(client, key.handle, b"nonce", SELECTIONS, read_logs=lambda: LOGS)
        return Tpm(found.to_vtpm_quote(key.raw)), key.public.spki


def extend(client: TpmClient, pcr: int, content: bytes) -> None:
    """Extend a PCR by the hashes of some data."""
    client.pcr_extend(pcr, {bank: hashlib.new(bank, content).digest() for bank in BANKS})


@pytest.mark.parametrize("name", TEMPLATES)
def test_swtpm_quote_of_each_scheme_verifies(software_tpm: TpmClient, name: str) -> None:
    """Quotes over several banks verify for RSASSA, RSAPSS and ECDSA with each hash."""
    platform, key = quote(software_tpm, TEMPLATES[name])
    trust = AkTrust(AkChains(), [key], NOW)
    found = authenticate_tpm(platform, bytes(64), trust)
    assert found.report_data == b"nonce".ljust(64, b"\0")
    assert found.vtpm is not None
    assert len(found.vtpm.pcrs) == 49
    assert found.vtpm.attestation_key == key
    evidence = platform.vtpm_quote
    at = len(evidence.message) // 2
    other = evidence.message[:at] + bytes([evidence.message[at] ^ 1]) + evidence.message[at + 1 :]
    with pytest.raises(SignatureError):
        authenticate_tpm(Tpm(evidence._replace(message=other)), bytes(64), trust)


def test_swtpm_logs_replay_to_what_was_extended(software_tpm: TpmClient) -> None:
    """PCRs that swtpm extended by the digests of logs replay; a further extension is refused."""
    for pcr, content in (*EVENTS, (10, FIRST), (10, b"program"), (15, b"systemd")):
        extend(software_tpm, pcr, content)
    platform, key = quote(software_tpm, ECC, ENDORSEMENT)
    trust = AkTrust(AkChains(), [key], NOW)
    found = authenticate_tpm(platform, bytes(64), trust)
    assert found.vtpm is not None
    logs = platform.vtpm_quote.boot_log, platform.vtpm_quote.ima_log
    vtpm, steps = with_replayed_logs(found.vtpm, *logs)
    indices = (0, 4, 7, 9, 10, 14)
    assert vtpm.replayed == tuple((bank, index) for bank in BANKS for index in indices)
    assert "sha256 PCRs 15 and sha384 PCRs 15," in steps[-1].text
    for pcr, reason in ((7, "pcr_mismatch"), (10, "ima_mismatch")):
        extend(software_tpm, pcr, b"more")
        platform, _ = quote(software_tpm, ECC, ENDORSEMENT)
        found = authenticate_tpm(platform, bytes(64), trust)
        assert found.vtpm is not None
        boot, ima = logs if reason == "pcr_mismatch" else (b"", logs[1])
        with raises(ReplayError, reason):
            with_replayed_logs(found.vtpm, boot, ima)


def test_swtpm_key_that_is_not_restricted_is_refused(software_tpm: TpmClient) -> None:
    """Swtpm makes keys that sign anything; a quote by one proves nothing."""
    platform, key = quote(software_tpm, RSA._replace(attributes=AK & ~(1 << 16)))
    with raises(SignatureError, "ak_attributes"):
        authenticate_tpm(platform, bytes(64), AkTrust(AkChains(), [key], NOW))
