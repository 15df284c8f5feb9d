"""Simulated quotes: layout, signatures, and configurable deviations."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from attestkit.quote import Quote
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.raising import raises
from tests.runner.cases import every_case

NOW = 1790000000
SEED = bytes(range(32))
PKI = SimulatedPki(SEED)
ENCLAVE = QuotingEnclave(PKI)
COLLATERAL = PKI.collateral(NOW)
BODY = TdBody(report_data=bytes(range(64)))
# Name, version, whether TD 1.5, offset of the length of the signature data.
LAYOUTS = {"v4": (4, False, 632), "v5-td10": (5, False, 638), "v5-td15": (5, True, 702)}


def make_quote(enclave: QuotingEnclave, layout: str, body: TdBody = BODY) -> bytes:
    """Return a quote of that layout."""
    version, is_td15, _ = LAYOUTS[layout]
    return enclave.quote(body.td15() if is_td15 else body.td10(), version=version)


def is_rejected(quote: bytes, collateral: Collateral = COLLATERAL) -> bool:
    """Return whether dcap-qvl rejects the quote under the simulator's root."""
    return verify_with_dcap_qvl(quote, collateral, PKI.root_der, NOW).status == REJECT


@pytest.mark.parametrize("layout", LAYOUTS)
@given(seed=st.binary(min_size=32, max_size=32), report_data=st.binary(min_size=64, max_size=64))
@settings(max_examples=20, deadline=None)
def test_quote_is_accepted_under_its_own_root_only(
    layout: str, seed: bytes, report_data: bytes
) -> None:
    """dcap-qvl rejects it under Intel's root, and under another simulator's."""
    pki = SimulatedPki(seed)
    quote = make_quote(QuotingEnclave(pki), layout, TdBody(report_data=report_data))
    collateral = pki.collateral(NOW)
    verdict = verify_with_dcap_qvl(quote, collateral, pki.root_der, NOW)
    assert (verdict.status, verdict.advisories) == ("UpToDate", ())
    assert report_data.hex() in verdict.report
    other_root = SimulatedPki(hashlib.sha256(seed).digest()).root_der
    for root in (None, other_root):
        verdict = verify_with_dcap_qvl(quote, collateral, root, NOW)
        assert verdict.status == REJECT
        assert "InvalidCrlSignature" in verdict.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quote_parse_returns_the_body_fields(layout: str) -> None:
    """Key and certificates are parsed, too."""
    body = TdBody(*(bytes([number]) * len(value) for number, value in enumerate(TdBody(), 1)))
    quote = Quote.parse(make_quote(ENCLAVE, layout, body))
    platform = PKI.platform()
    fields = TdBody._fields if LAYOUTS[layout][1] else TdBody._fields[:15]
    assert {name: getattr(quote.body, name) for name in fields} == {
        name: getattr(body, name) for name in fields
    }
    assert (quote.version, quote.padding) == (LAYOUTS[layout][0], 0)
    assert quote.attestation_key == platform.attestation_key.public_point
    assert list(quote.pck_chain) == [platform.pck_der, PKI.pck_ca_der, PKI.root_der]


@every_case("name", TdBody._fields)
def test_body_field_of_wrong_size_is_rejected(name: str) -> None:
    """The error names the field."""
    for change in (-1, 1):
        size = len(getattr(BODY, name)) + change
        with raises(UsageError, "wrong_size", start=f"{name}: "):
            BODY._replace(**{name: bytes(size)}).td15()


@every_case(
    ("version", "size"), [(4, 648), (4, 583), (5, 0), (5, 649), (3, 584), (6, 648), (0, 584)]
)
def test_quote_version_and_body_size_are_checked(version: int, size: int) -> None:
    """Other versions and sizes are rejected."""
    with raises(UsageError, "wrong_size" if version in (4, 5) else "wrong_value"):
        ENCLAVE.quote(bytes(size), version=version)


@every_case(
    ("config", "at", "expected"),
    [
        (QuoteConfig(version=3), 0, b"\x03\x00"),
        (QuoteConfig(attestation_key_type=3), 2, b"\x03\x00"),
        (QuoteConfig(tee_type=0), 4, bytes(4)),
        (QuoteConfig(body_type=1), 48, b"\x01\x00"),
        (QuoteConfig(body_size=583), 50, b"\x47\x02\x00\x00"),
        (QuoteConfig(qe_miscselect=1), 792, b"\x01\x00\x00\x00"),
        (QuoteConfig(qe_isvprodid=9), 1032, b"\x09\x00"),
        (QuoteConfig(qe_report_data=b"\x01" * 64), 1096, b"\x01" * 64),
        (QuoteConfig(certification=b"nonsense"), 1264, b"nonsense"),
        (QuoteConfig(qe_auth_data=b""), 1224, b"\x00\x00\x05\x00"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, bytes) else None,
)
def test_quote_configuration_is_rejected(config: QuoteConfig, at: int, expected: bytes) -> None:
    """Each option writes its field (in a version 5 quote), and dcap-qvl rejects the quote.

    Further options are in the 42 cases of the vectors.
    """
    quote = make_quote(QuotingEnclave(PKI, config=config), "v5-td10")
    assert quote[at : at + len(expected)] == expected
    assert is_rejected(quote)


@every_case(
    ("config", "at", "expected"),
    [
        (QuoteConfig(user_data=b"\x07" * 20), 28, b"\x07" * 20),
        (QuoteConfig(qe_mrenclave=b"\x07" * 32), 840, b"\x07" * 32),
        (QuoteConfig(qe_auth_data=bytes(32)), 1224, b"\x20\x00" + bytes(32)),
        (QuoteConfig(attestation_key="another"), 706, PKI.key("another").public_point),
        (QuoteConfig(padding=100), 4886, bytes(100)),
    ],
    ids=["user_data", "qe_mrenclave", "qe_auth_data", "attestation_key", "padding"],
)
def test_quote_configuration_is_accepted(config: QuoteConfig, at: int, expected: bytes) -> None:
    """Each option writes its field (in a version 5 quote), and dcap-qvl accepts the quote."""
    quote = make_quote(QuotingEnclave(PKI, config=config), "v5-td10")
    assert quote[at : at + len(expected)] == expected
    assert not is_rejected(quote)
