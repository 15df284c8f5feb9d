"""A chain is accepted only if it leads to Intel's root."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.vendor_roots import pck_key
from attestkit.backends.simulator import Simulator
from attestkit.errors import SignatureError
from attestkit.quote import Quote
from tests.quotes import sample
from tests.raising import raises
from tests.vectors import HAVE_SHARED, needs_shared

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


@given(st.lists(st.binary(max_size=50), min_size=3, max_size=3))
def test_pck_key_of_arbitrary_bytes_raises_only_attestkit_errors(certificates: list[bytes]) -> None:
    """Bytes that are not a certificate raise an AttestKitError."""
    with pytest.raises(SignatureError):
        pck_key(certificates)
    if HAVE_SHARED:
        with pytest.raises(SignatureError):
            pck_key([certificates[0], *quote_chain()[1:]])
