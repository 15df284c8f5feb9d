"""Checks of AWS's samples against `expected.json`."""

import json
from datetime import datetime
from hashlib import sha384

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats.cbor import read_value
from attestkit.attestation.nitro import read_nitro_document
from attestkit.snp_report import SnpReport
from attestkit.tpm import TpmsAttest
from attestkit.verifier.platforms.nitro import Nitro
from tests.verifier.platforms import test_nitro_tpm as nitro_tpm
from tests.verifier.platforms.vtpm.tpm_samples import vaportpm
from tests.verifier.vtpm_samples import facts
from tests.verifier.vtpm_samples.samples import (
    EXPECTED,
    NITRO_TPM,
    sample,
)


def nitro_document(name: str) -> None:
    """Fields, chain and signature of a NitroTPM document are as expected."""
    raw, expected = sample(name), EXPECTED[name]
    found = read_nitro_document(raw, tpm=True)
    now = datetime.fromisoformat(expected["judge_at"].replace("Z", "+00:00"))
    chain = Nitro().verify_document(raw, now, tpm=True).chain
    leaf = read_path_certificate(found.certificate)
    bundle = [read_path_certificate(der) for der in found.cabundle]
    payload = read_value(found.payload)
    assert isinstance(payload, dict)
    seen = {
        "size": len(raw),
        "first_bytes": raw[:8].hex(),
        "protected": found.protected.hex(),
        "unprotected": len(found.unprotected),
        "payload_size": len(found.payload),
        "payload_first_byte": found.payload[:1].hex(),
        "signature_ok": True,
        "keys": list(payload),
        "pcr_key": "nitrotpm_pcrs" if found.tpm else "pcrs",
        "module_id": found.module_id,
        "digest": "SHA384",  # the only one that the reader accepts
        "timestamp_ms": found.timestamp_ms,
        "pcrs": {str(index): value.hex() for index, value in found.pcrs.items()},
        "public_key": found.public_key.hex(),
        "user_data": found.user_data.hex() or None,
        "nonce": found.nonce.hex(),
        "leaf_subject": facts.subject(leaf.der),
        "leaf_not_before": str(leaf.valid_from),
        "leaf_not_after": str(leaf.valid_until),
        "cabundle": [facts.subject(one.der) for one in bundle],
        "cabundle_not_after": [str(one.valid_until) for one in bundle],
        "chain_ok": True,
        "root_sha256": sha256(chain[-1]).hex(),
        "root_spki_sha256": sha256(read_path_certificate(chain[-1]).spki).hex(),
        "judge_at": expected["judge_at"],
    }
    assert seen == expected
    nitro_tpm.test_nitro_tpm_genuine_document_is_evidence_by_itself()


def nitro_quote(name: str) -> None:
    """The quote is valid, by the document's key, and over the document's nonce and PCRs."""
    expected, fixture = EXPECTED[name], json.loads(sample(name))
    quote = vaportpm(name, "sha384")
    document = read_nitro_document(sample(NITRO_TPM), tpm=True)
    assert bytes.fromhex(fixture["attestation"]["nitro"]["document"]) == sample(NITRO_TPM)
    assert document.public_key == b"\4" + quote.key[-64:]
    quote.verify()
    values = b"".join(one.value for one in quote.pcrs)
    digest = TpmsAttest.parse(quote.message).pcr_digest
    seen = {
        "note": expected["note"],
        "attest": facts.attest_facts(quote.message),
        "signature_ok": True,
        "pcr_digest_ok": True,
        "pcr_digest_with_sha384_ok": digest == sha384(values).digest(),
        "pcrs_equal_document": {one.number: one.value for one in quote.pcrs} == document.pcrs,
        "nonce_equals_document": quote.extra == document.nonce,
    }
    assert seen == expected


def vlek_report(name: str) -> None:
    """Report and VLEK of an EC2 instance are as expected."""
    expected, leaf = EXPECTED[name], sample("aws/trustee/test-vlek.der")
    report = SnpReport.parse(sample(name))
    assert facts.snp_facts(sample(name)) == expected["snp_report"]
    found = facts.amd_facts(leaf, report, expected["vlek"]["chain"])
    assert {"snp_report": expected["snp_report"], "vlek": found} == expected
