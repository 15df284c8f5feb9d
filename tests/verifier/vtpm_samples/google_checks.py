"""Checks of Google's samples against `expected.json`."""

import json
from datetime import datetime, timezone
from typing import Final

from cryptography import x509

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.ak_certificates.crl import check_revocation, read_ak_crl
from attestkit._crypto.x509.ak_certificates.gce_extension import GCE_EXTENSION, read_gce_extension
from attestkit._crypto.x509.ak_certificates.path import find_ak_path
from attestkit._crypto.x509.cert_path import PathCertificate, read_path_certificate
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.event_log import TpmEventLog
from attestkit.tpm import TpmsAttest, TpmtPublic, TpmtSignature
from attestkit.verifier.platforms.vtpm.pcr_logs import replay_pcr_logs
from attestkit.verifier.platforms.vtpm.quote import quote_scheme
from tests.verifier.platforms.vtpm import test_google_certificates as certificates
from tests.verifier.platforms.vtpm.tpm_samples import QuoteSample, vaportpm
from tests.verifier.vtpm_samples import facts
from tests.verifier.vtpm_samples.facts import Facts
from tests.verifier.vtpm_samples.samples import (
    EXPECTED,
    NOW,
    certificate,
    sample,
    signed_by,
)


def google_ca(name: str) -> None:
    """Google's authorities are the expected ones, and their roots, both built in, signed them."""
    expected = dict(EXPECTED[name])
    found = {one: certificate(f"{name}/{one}") for one in expected if "." in one}
    for one, read in found.items():
        values = {"subject": facts.subject(read.der), "sha256": sha256(read.der).hex()}
        assert values == expected.pop(one), one
    roots = [found["gcp_ek_ak_ca_root.crt"], found["tpm_ek_root_1.cer"]]
    assert [root.der for root in roots] == list(google_roots())
    signed = {
        "intermediate_v3_signed_by_root": signed_by(
            found["gcp_ek_ak_ca_intermediate_v3.crt"], roots[0]
        ),
        "intermediate_2_signed_by_root_1": signed_by(found["tpm_ek_intermediate_2.crt"], roots[1]),
    }
    assert signed == expected


def gce_facts(leaf: PathCertificate) -> Facts:
    """Return the instance in an AK certificate."""
    found = read_gce_extension(leaf.extensions)
    assert found is not None
    assert (found.security_version, found.is_production) == (0, True)
    values = {name: value for name, value in found._asdict().items() if name in GCE_FIELDS}
    at = leaf.extensions[GCE_EXTENSION].find(bytes.fromhex("301ea003020100a1030101ff"))
    return values | {"security_properties_der": leaf.extensions[GCE_EXTENSION][at:].hex()}


GCE_FIELDS: Final = ("zone", "project_number", "project_id", "instance_id", "instance_name")


def google_fixture(name: str) -> None:
    """Quote, chain and instance of a Confidential VM are as expected."""
    fixture, expected = json.loads(sample(name)), dict(EXPECTED[name])
    quote = vaportpm(name, "sha256")
    quote.verify()
    chain = split_pem(fixture["attestation"]["gcp"]["ak_cert_chain"])
    leaf, *authorities = [read_path_certificate(der) for der in chain]
    roots = [("Google", read_path_certificate(root)) for root in google_roots()]
    path = find_ak_path(leaf, authorities[:1], roots, NOW)
    assert path.chain == tuple(chain)
    assert path.leaf.spki == quote.key
    primary = TpmsAttest.parse(quote.message).qualified_signer
    seen = {
        "note": expected["note"],
        "attest": facts.attest_facts(quote.message),
        "tpmt_signature": quote.signature.hex(),
        "signature_ok": True,
        "nonce_ok": quote.extra.hex() == fixture["nonce"],
        "pcr_digest_ok": True,
        "chain": [facts.subject(der) for der in chain],
        "chain_ok": True,
        "ak_not_before": str(leaf.valid_from),
        "ak_not_after": str(leaf.valid_until),
        "gce": gce_facts(leaf),
        "qualified_signer_is_primary_of_endorsement": primary == google_ak(quote),
    }
    assert seen == expected
    certificates.test_the_genuine_quote_of_google_verifies_up_to_the_join()


def google_ak(quote: QuoteSample) -> bytes:
    """Return the qualified name of an ECC key made by Google's template, below the endorsement."""
    point = quote.key[-64:]
    public = TpmtPublic(
        "ecc",
        "sha256",
        0x00050072,
        scheme="ecdsa",
        scheme_hash="sha256",
        curve="p256",
        x=point[:32],
        y=point[32:],
    )
    return public.qualified_name(facts.ENDORSEMENT)


def google_two_intermediates(name: str) -> None:
    """Two intermediates of one subject: only the signing one leads to Google's root."""
    expected = EXPECTED[name]
    files = ("akcert", "ekcert", "ak_intermediate", "ek_intermediate", "ak_root")
    ak, ek, ak_ca, ek_ca, root = (certificate(f"{name}/{one}.pem") for one in files)
    roots = [("Google", read_path_certificate(der)) for der in google_roots()]
    at = datetime(2024, 5, 8, tzinfo=timezone.utc)
    crl, path = (
        read_ak_crl(sample(f"{name}/intermediate.crl")),
        find_ak_path(ak, [ak_ca], roots, at),
    )
    found = check_revocation(path, [crl], at)
    parsed = x509.load_der_x509_crl(crl.der)
    seen = {
        "root_is_google": root.spki == roots[0][1].spki,
        "ak_signed_by_ak_intermediate": signed_by(ak, ak_ca),
        "ak_signed_by_ek_intermediate": signed_by(ak, ek_ca),
        "ek_signed_by_ek_intermediate": signed_by(ek, ek_ca),
        "intermediates_have_the_same_subject": ak_ca.subject == ek_ca.subject,
        "gce": gce_facts(ak),
        "crl": {
            "signed_by_root": len(found.checked) == 1,  # else it does not count
            "revoked": len(list(parsed)),
            "last_update": str(parsed.last_update_utc),
            "next_update": str(parsed.next_update_utc),
        },
    }
    assert seen == expected


def google_message(name: str) -> None:
    """Key, certificate, three quotes and the log of a message of go-tpm-tools are as expected."""
    expected, message = dict(EXPECTED[name]), GoTpmToolsMessage.parse(sample(name))
    public = TpmtPublic.parse(message.ak_public)
    leaf = read_path_certificate(message.ak_certificate)
    authority = certificate("gcp/go-tpm-tools/ca-certs/tpm_ek_intermediate_2.crt")
    log = TpmEventLog.parse(message.event_log)
    seen = {
        "note": expected["note"],
        "ak_public": {k: v for k, v in facts.public_facts(public).items() if k != "n"},
        "ak_cert_key_is_ak_pub": leaf.spki == public.spki,
        "ak_cert_subject": facts.subject(leaf.der),
        "ak_cert_signed_by_intermediate_2": signed_by(leaf, authority),
        "gce": gce_facts(leaf),
        "quotes": [],
        "log_records": len(log.events),
    }
    for quote in message.quotes:
        values = {"extra": TpmsAttest.parse(quote.message).extra_data}
        sampled = QuoteSample(
            quote.message,
            quote.signature,
            public.spki,
            quote_scheme(public),
            values["extra"],
            quote.pcr_values,
        )
        bank = quote.pcr_values[0].algorithm
        replayed = replay_pcr_logs(sampled.verify().pcrs, message.event_log, b"").replayed
        signature = TpmtSignature.parse(quote.signature)
        seen["quotes"].append(
            {
                "bank": bank,
                "attest": facts.attest_facts(quote.message),
                "signature": f"{signature.algorithm}-{signature.hash_name}",
                "signature_ok": True,
                "pcr_digest_ok": True,
                "pcrs": facts.pcr_facts(quote.pcr_values),
                "replay_equals": {str(index): True for _, index in replayed},
            }
        )
    assert seen == expected
    certificates.test_the_older_hierarchy_of_google_is_trusted()


def firmware_log(name: str) -> None:
    """Records, banks, types and all replayed values of a log are as expected."""
    log = TpmEventLog.parse(sample(name))
    seen = {
        **facts.log_facts(sample(name)),
        "replay": {
            bank: {str(index): value.hex() for index, value in log.replay(bank).items()}
            for bank in log.banks
        },
        "types": sorted({f"{event.event_type:08x}" for event in log.events}),
    }
    assert seen == EXPECTED[name]
