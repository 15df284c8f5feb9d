"""The roots are those of AMD, AWS and Intel, and a PCK chain must lead to Intel's."""

from datetime import datetime, timezone

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.p384 import p384_verify_der
from attestkit._crypto.pem import split_pem
from attestkit._crypto.public_key import rsa_pss_verify
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.cert_path import check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS, AWS_ROOT, pck_key
from attestkit.attestation import Attestation
from attestkit.backends.simulator import Simulator
from attestkit.errors import SignatureError
from attestkit.quote import Quote
from tests.raising import raises
from tests.samples.quotes import sample
from tests.vectors import data, needs_shared

GENUINE = "quotes/dcap-qvl/tdx_quote"


def quote_chain(path: str = GENUINE) -> tuple[bytes, ...]:
    """Return the certificates in a shared quote."""
    return Quote.parse(sample(path)).pck_chain


@needs_shared
@pytest.mark.parametrize(
    "path",
    [
        GENUINE,
        "quotes/dcap-qvl/sgx_quote",
        "quotes/dcap-qvl/tdx_quote_outdated",
        "quotes/go-tdx-guest/quote_v5_sample.dat",
        "quotes/dstack/ra-tls_tdx_quote",
    ],
)
def test_pck_key_of_hardware_chain_is_first_key(path: str) -> None:
    """The key of the first certificate is returned."""
    certificates = quote_chain(path)
    assert read_certificate(certificates[0]).spki_der.endswith(pck_key(certificates))


@needs_shared
def test_pck_key_with_other_root_of_same_name_fails() -> None:
    """Intel's pre-production root and the simulator's have the same name as Intel's root."""
    simulated = Quote.parse(Simulator(seed=bytes(32)).get_quote(bytes(64))).pck_chain
    for other in (quote_chain("quotes/cc-trusted-api/quote.bin"), simulated):
        assert "Intel SGX Root CA" in read_certificate(other[2]).subject
        with raises(SignatureError, "untrusted_root"):
            pck_key(other)


@needs_shared
@pytest.mark.parametrize("which", [0, 1, 2])
def test_pck_key_with_invalid_x509_version_fails(which: int) -> None:
    """X.509 has versions 1 to 3."""
    certificates = list(quote_chain())
    version = b"\xa0\x03\x02\x01"
    certificates[which] = certificates[which].replace(version + b"\2", version + b"\7", 1)
    with raises(SignatureError, "cert_malformed"):
        pck_key(certificates)


@needs_shared
def test_pck_key_with_unrelated_intel_root_fails() -> None:
    """Each certificate must be signed by the next: Intel's root can be appended to any chain."""
    genuine, other = quote_chain(), quote_chain("quotes/cc-trusted-api/quote.bin")
    leaf, authority, root = genuine
    for wrong in (
        (*other[:2], root),
        (other[0], authority, root),
        (leaf, other[1], root),
        (authority, leaf, root),
        (root, root, leaf),
    ):
        with raises(SignatureError, "cert_bad_signature", "untrusted_root"):
            pck_key(wrong)
    for wrong in ((), (root,), (leaf, root), (leaf, authority, root, root)):
        with raises(SignatureError, "chain_length"):
            pck_key(wrong)


@needs_shared
@pytest.mark.parametrize("which", [0, 1, 2])
def test_pck_key_of_changed_byte_fails(which: int) -> None:
    """A changed byte in any certificate fails."""
    genuine = quote_chain()
    changed = 0
    for at in range(which, len(genuine[which]), 5):
        certificates = list(genuine)
        der = bytearray(genuine[which])
        der[at] ^= 1
        certificates[which] = bytes(der)
        with pytest.raises(SignatureError):
            pck_key(certificates)
        changed += 1
    assert changed > 100


# -- AMD -------------------------------------------------------------------------------------------

SHA256 = {
    "Milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "Genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "Turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
}
# Bundles of projects that contain AMD's certificates: first the authority, then the root.
BUNDLES = [
    ("Milan", "go-sev-guest/ask_ark_milan.pem"),
    ("Milan", "go-sev-guest/ask_ark_milan_vlek.pem"),
    ("Milan", "go-sev-guest/milan.testcer"),
    ("Milan", "virtee-sev/cert_chain_milan"),
    ("Genoa", "go-sev-guest/ask_ark_genoa.pem"),
    ("Genoa", "go-sev-guest/ask_ark_genoa_vlek.pem"),
    ("Turin", "go-sev-guest/ask_ark_turin_vcek.pem"),
    ("Turin", "go-sev-guest/ask_ark_turin_vlek.pem"),
    ("Turin", "virtee-sev/cert_chain_turin"),
]
NOW = datetime(2026, 11, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("product", SHA256)
def test_amd_root_is_self_signed_authority_of_product(product: str) -> None:
    """Each root is a self-signed authority of its product."""
    root = read_path_certificate(AMD_ROOTS[product])
    assert AMD_ROOTS.keys() == SHA256.keys()
    assert sha256(root.der).hex() == SHA256[product]
    assert f"ARK-{product}".encode() in root.subject
    assert root.subject == root.issuer
    assert root.authority
    assert root.path_length is None
    rsa_pss_verify(root.spki, root.signature, root.signed)


@needs_shared
@pytest.mark.parametrize(("product", "bundle"), BUNDLES)
def test_amd_root_verifies_bundles_of_other_projects(product: str, bundle: str) -> None:
    """The bundles contain the same root, and their authority is valid under it only."""
    authority, root = split_pem(data(f"snp/{bundle}").decode())
    assert root == AMD_ROOTS[product]
    below = read_path_certificate(authority)
    assert below.path_length == 0
    for name, der in AMD_ROOTS.items():
        # An authority signs no reports, so the path fails after its signature.
        reason = "cert_not_authority" if name == product else "untrusted_root"
        with raises(SignatureError, reason):
            check_path((("it", below), ("the root", read_path_certificate(der))), NOW)


# -- AWS -------------------------------------------------------------------------------------------

PUBLISHED = (
    "64:1A:03:21:A3:E2:44:EF:E4:56:46:31:95:D6:06:31:"
    "7E:D7:CD:CC:3C:17:56:E0:98:93:F3:C6:8F:79:BB:5B"
)


def test_aws_root_has_published_fingerprint() -> None:
    """The root has the published fingerprint and is self-signed."""
    assert sha256(AWS_ROOT).hex(":").upper() == PUBLISHED
    root = read_path_certificate(AWS_ROOT)
    assert root.subject == root.issuer
    assert root.authority
    p384_verify_der(root.spki, root.signature, root.signed)


@needs_shared
@pytest.mark.parametrize("name", ["nitro_attestation", "nitro_attestation_dbg"])
def test_aws_root_is_in_captured_documents(name: str) -> None:
    """Nitro documents contain it as the first certificate of their bundle."""
    attestation = Attestation.from_bytes(data(f"dstack/dstack-attest/{name}.bin"))
    assert attestation.nitro_document is not None
    assert attestation.nitro_document.cabundle[0] == AWS_ROOT
