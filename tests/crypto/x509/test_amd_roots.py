"""The AMD roots are AMD's own: self-signed, and issuers of the authorities below."""

from datetime import datetime, timezone

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.rsa_pss import rsa_pss_verify
from attestkit._crypto.x509.cert_path import check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit.errors import SignatureError
from tests.raising import raises
from tests.vectors import data, needs_shared

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
