"""Evidence of guests behind a vTPM, beside the bare cryptography that it needs.

`verify`: the verifier has seen the platform before; the peer verifies the signatures that are left,
with loaded keys. `attest`: the simulator's TPM makes the evidence; the peer does only what needs
private keys, and the target is about the difference. `attestkit` also parses, replays logs,
compares, and applies the policy.
"""

import secrets
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto.hashes import sha256
from attestkit._crypto.rsa_key_pair import RsaKeyPair
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.hcl_report import HclReport
from attestkit.attestation.nitro_document import read_nitro_document
from attestkit.attestation.wire.evidence_parts import AzureSnp, GcpTdx, NitroTpm, Tpm
from attestkit.factory import open as open_attester
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.tpm import TpmtSignature
from attestkit.verifier import AppraisalPolicy, Verifier
from benchmarks.cases import OURS, SEED
from benchmarks.racing import Entry, Ledger, each, own_row, play

Check = Callable[[], object]
PEER: Final = "cryptography"
NONCE: Final = secrets.token_bytes(32)
NAMES: Final = {
    "azure-snp": "hcl-snp",
    "gcp-tdx": "dstack-gcp-tdx",
    "aws-nitro-tpm": "dstack-aws-nitro-tpm",
    "tpm": "tpm",
}
GUESTS: Final[dict[str, Any]] = {
    platform: open_attester("simulator", platform=platform, seed=SEED) for platform in NAMES
}
EVIDENCE: Final = {name: tee.attest(nonce=NONCE) for name, tee in GUESTS.items()}


def verifier(platform: str) -> Verifier:
    """Return a verifier whose policy names the platform of the evidence."""
    simulator = GUESTS[platform].backend
    policy = AppraisalPolicy.default().replace(platforms={NAMES[platform]})
    collateral = simulator.collateral() if platform == "gcp-tdx" else None
    return Verifier(trust_anchor=simulator.trust_anchor, collateral=collateral, policy=policy)


VERIFIERS: Final = {platform: verifier(platform) for platform in NAMES}


def check(spki: bytes, signature: bytes, data: bytes, hashed: HashAlgorithm) -> Check:
    """Return the verification of a signature by a loaded key."""
    key = load_der_public_key(spki)
    if isinstance(key, rsa.RSAPublicKey):
        return lambda: key.verify(signature, data, padding.PKCS1v15(), hashed)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return lambda: key.verify(signature, data, ec.ECDSA(hashed))


def issued(der: bytes, issuer: bytes) -> Check:
    """Return the verification of a certificate's signature by its issuer's loaded key."""
    found = x509.load_der_x509_certificate(der)
    key: Any = x509.load_der_x509_certificate(issuer).public_key()
    how: Any = found.signature_algorithm_parameters
    signature, data, hashed = (
        found.signature,
        found.tbs_certificate_bytes,
        found.signature_hash_algorithm,
    )
    if isinstance(key, rsa.RSAPublicKey):
        assert hashed is not None
        return lambda: key.verify(signature, data, how, hashed)
    return lambda: key.verify(signature, data, how)


def quoted(spki: bytes, message: bytes, signature: bytes) -> Check:
    """Return the verification of a TPM's quote."""
    found = TpmtSignature.parse(signature)
    return check(spki, found.signature or found.der, message, SHA256())


def bare_azure(evidence: Attestation, root: bytes) -> list[Check]:
    """Return the signatures of report, AK certificate and quote; the chip is known."""
    platform = evidence.evidence.platform
    assert isinstance(platform, AzureSnp)
    report, quote = HclReport.parse(platform.hcl_report), platform.vtpm_quote
    signed = SnpReport.parse(report.hardware_report)
    r, s = (int.from_bytes(part, "big") for part in (signed.signature[:48], signed.signature[48:]))
    leaf = VERIFIERS["azure-snp"].verify(evidence, nonce=NONCE).certificate_chain[0]
    key = load_der_public_key(read_path_certificate(leaf).spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    pair = encode_dss_signature(r, s)
    return [
        lambda: key.verify(pair, signed.signed_region, ec.ECDSA(SHA384())),
        *[issued(der, root) for der in quote.ak_certificates[:1]],
        quoted(report.content.attestation_key.spki, quote.message, quote.signature),
    ]


def bare_google(evidence: Attestation, root: bytes) -> list[Check]:
    """Return the signatures of TD quote, AK certificate and TPM quote; the platform is known."""
    platform = evidence.evidence.platform
    assert isinstance(platform, GcpTdx)
    quote, tpm = Quote.parse(platform.quote), platform.tpm_quote
    numbers = (quote.signature, quote.attestation_key)
    (r, s), (x, y) = (
        (int.from_bytes(two[:32], "big"), int.from_bytes(two[32:], "big")) for two in numbers
    )
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    pair = encode_dss_signature(r, s)
    spki = read_path_certificate(tpm.ak_cert).spki
    return [
        lambda: key.verify(pair, quote.signed_region, ec.ECDSA(SHA256())),
        issued(tpm.ak_cert, root),
        quoted(spki, tpm.message, tpm.signature),
    ]


def bare_nitro(evidence: Attestation, root: bytes) -> list[Check]:
    """Return the signatures of a document and of all its certificates."""
    platform = evidence.evidence.platform
    assert isinstance(platform, NitroTpm)
    found = read_nitro_document(platform.attestation_doc, tpm=True)
    path = [*found.cabundle, found.certificate]
    leaf = x509.load_der_x509_certificate(found.certificate).public_key()
    assert isinstance(leaf, ec.EllipticCurvePublicKey)
    pair = encode_dss_signature(
        int.from_bytes(found.signature[:48], "big"), int.from_bytes(found.signature[48:], "big")
    )
    return [
        *[issued(der, issuer) for issuer, der in zip([root, *path[1:]], path[1:], strict=False)],
        lambda: leaf.verify(pair, found.signed_region, ec.ECDSA(SHA384())),
    ]


def bare_tpm(evidence: Attestation, root: bytes) -> list[Check]:
    """Return the signatures of AK certificate and quote."""
    platform = evidence.evidence.platform
    assert isinstance(platform, Tpm)
    quote = platform.vtpm_quote
    [leaf] = quote.ak_certificates
    spki = read_path_certificate(leaf).spki
    return [issued(leaf, root), quoted(spki, quote.message, quote.signature)]


BARE: Final[dict[str, Callable[[Attestation, bytes], list[Check]]]] = {
    "azure-snp": bare_azure,
    "gcp-tdx": bare_google,
    "aws-nitro-tpm": bare_nitro,
    "tpm": bare_tpm,
}


def verification(platform: str) -> tuple[Check, Check]:
    """Return our verification, and that of the bare signatures."""
    evidence, ours = EVIDENCE[platform], VERIFIERS[platform]
    checks = BARE[platform](evidence, GUESTS[platform].backend.trust_anchor)
    raw = evidence.to_bytes()

    def verify() -> bool:
        return ours.verify(raw, nonce=NONCE).fresh

    def bare() -> bool:
        for one in checks:
            one()
        return True

    return verify, bare


def attestation(platform: str) -> tuple[Check, Check]:
    """Return the making of evidence, and the bare operations by private keys that are in it."""
    tee = GUESTS[platform]
    pair, digest = RsaKeyPair(SEED, 2048), sha256(b"")
    p256, p384 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))

    def by_rsa() -> None:  # of the simulated TPM: a signature, or a session's salt
        pair.sign_pkcs1(digest, "sha256")

    def by_p256() -> None:
        p256.sign(bytes(145), ec.ECDSA(SHA256(), deterministic_signing=True))

    def by_p384() -> None:
        p384.sign(bytes(672), ec.ECDSA(SHA384(), deterministic_signing=True))

    operations = {
        "azure-snp": (by_p384, by_rsa),  # report and quote
        "gcp-tdx": (by_p256, by_p256),  # both quotes
        "aws-nitro-tpm": (by_p384, by_rsa),  # document and salt
        "tpm": (by_p256,),
    }[platform]

    def bare() -> None:
        for one in operations:
            one()

    return lambda: tee.attest(nonce=NONCE), bare


ROWS: Final = (
    *(
        own_row(
            f"vtpm-verify-{platform}",
            f"evidence of {platform} verified; {PEER}: its signatures",
            dict(zip((OURS, PEER), verification(platform), strict=True)),
            str,
        )
        for platform in NAMES
    ),
    *(
        own_row(
            f"vtpm-attest-{platform}",
            f"evidence of {platform} by the simulator; {PEER}: its private keys",
            dict(zip((OURS, PEER), attestation(platform), strict=True)),
            lambda _: None,
        )
        for platform in NAMES
    ),
)


@each(ROWS)
def test_vtpm(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row."""
    play(benchmark, ledger, entry)
    found = ledger.results.get(entry.row.id)
    if found is not None and entry.row.id.startswith("vtpm-attest-"):
        own = found.values[OURS] - found.values[PEER]
        ledger.add(found._replace(figure=1000 * own))
