"""A chain leads to Intel's root or it does not; nothing else about it is looked at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.vendor_roots import pck_key
from attestkit.backends.simulator import Simulator
from attestkit.errors import SignatureError
from attestkit.quote import Quote
from tests.quotes import sample
from tests.vectors import HAVE_SHARED, needs_shared

GENUINE = "quotes/dcap-qvl/tdx_quote"


def chain(path: str = GENUINE) -> tuple[bytes, ...]:
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
def test_chains_of_hardware_lead_to_intel(path: str) -> None:
    """The key given is that of the first certificate."""
    certificates = chain(path)
    assert read_certificate(certificates[0]).spki_der.endswith(pck_key(certificates))


@needs_shared
def test_a_root_of_the_same_name_is_not_enough() -> None:
    """Intel's pre-production root, and the simulator's, are called as Intel's root is."""
    simulated = Quote.parse(Simulator(seed=bytes(32)).get_quote(bytes(64))).pck_chain
    for other in (chain("quotes/cc-trusted-api/quote.bin"), simulated):
        assert "Intel SGX Root CA" in read_certificate(other[2]).subject
        with pytest.raises(SignatureError, match="not that of Intel's SGX Root CA"):
            pck_key(other)


@needs_shared
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_version_that_is_none_is_refused(which: int) -> None:
    """X.509 knows versions 1 to 3."""
    certificates = list(chain())
    version = b"\xa0\x03\x02\x01"
    certificates[which] = certificates[which].replace(version + b"\2", version + b"\7", 1)
    with pytest.raises(SignatureError, match="malformed"):
        pck_key(certificates)


@needs_shared
def test_intels_root_at_the_end_is_not_enough() -> None:
    """Each certificate must be signed by the next: a root can be appended by anybody."""
    genuine, other = chain(), chain("quotes/cc-trusted-api/quote.bin")
    leaf, authority, root = genuine
    for wrong in (
        (*other[:2], root),
        (other[0], authority, root),
        (leaf, other[1], root),
        (authority, leaf, root),
        (root, root, leaf),
    ):
        with pytest.raises(SignatureError):
            pck_key(wrong)
    for wrong in ((), (root,), (leaf, root), (leaf, authority, root, root)):
        with pytest.raises(SignatureError, match="3 certificates"):
            pck_key(wrong)


@needs_shared
@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_signed_byte_counts(which: int) -> None:
    """A changed byte in any of the certificates ends it."""
    genuine = chain()
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
def test_any_bytes(certificates: list[bytes]) -> None:
    """What is no certificate is refused with our error."""
    with pytest.raises(SignatureError):
        pck_key(certificates)
    if HAVE_SHARED:
        with pytest.raises(SignatureError):
            pck_key([certificates[0], *chain()[1:]])
