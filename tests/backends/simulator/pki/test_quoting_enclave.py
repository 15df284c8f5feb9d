"""Simulated quotes: layout, signatures, and configurable deviations."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key, p256_verify
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import QuoteConfig
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from attestkit.quote import Quote
from tests.dcap import REJECT, judge
from tests.raising import raises

NOW = 1790000000
SEED = bytes(range(32))
PKI = SimulatedPki(SEED)
ENCLAVE = QuotingEnclave(PKI)
COLLATERAL = PKI.collateral(NOW)
BODY = TdBody(report_data=bytes(range(64)))
# Name, version, whether TD 1.5, offset of the length of the signature data.
LAYOUTS = {"v4": (4, False, 632), "v5-td10": (5, False, 638), "v5-td15": (5, True, 702)}
FIELDS = {  # offset in the body
    "tee_tcb_svn": 0,
    "mr_seam": 16,
    "mr_signer_seam": 64,
    "seam_attributes": 112,
    "td_attributes": 120,
    "xfam": 128,
    "mr_td": 136,
    "mr_config_id": 184,
    "mr_owner": 232,
    "mr_owner_config": 280,
    "rtmr0": 328,
    "rtmr1": 376,
    "rtmr2": 424,
    "rtmr3": 472,
    "report_data": 520,
    "tee_tcb_svn2": 584,
    "mr_service_td": 600,
}


def make_quote(enclave: QuotingEnclave, layout: str, body: TdBody = BODY) -> bytes:
    """Return a quote of that layout."""
    version, is_td15, _ = LAYOUTS[layout]
    return enclave.quote(body.td15() if is_td15 else body.td10(), version=version)


def is_rejected(quote: bytes, collateral: Collateral = COLLATERAL) -> bool:
    """Return whether dcap-qvl rejects the quote under the simulator's root."""
    return judge(quote, collateral, PKI.root_der, NOW).status == REJECT


def flip_bits(data: bytes, offsets: range, *, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield `data` with one bit flipped per offset, another bit each time."""
    for count, offset in enumerate(offsets[::step]):
        changed = bytearray(data)
        changed[offset] ^= 1 << count % 8
        yield offset, bytes(changed)


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
    verdict = judge(quote, collateral, pki.root_der, NOW)
    assert (verdict.status, verdict.advisories) == ("UpToDate", ())
    assert report_data.hex() in verdict.report
    other_root = SimulatedPki(hashlib.sha256(seed).digest()).root_der
    for root in (None, other_root):
        verdict = judge(quote, collateral, root, NOW)
        assert verdict.status == REJECT
        assert "InvalidCrlSignature" in verdict.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quote_layout_is_as_documented(layout: str) -> None:
    """Each field is at its documented offset."""
    version, is_td15, at = LAYOUTS[layout]
    quote = make_quote(ENCLAVE, layout)
    platform = PKI.platform()
    assert struct.unpack_from("<HHIHH", quote) == (version, 2, 0x81, 0, 0)
    assert quote[12:28].hex() == "939a7233f79c4ca9940a0db3957f0607"
    assert quote[28:48] == platform.qe_id + bytes(4)
    if version == 5:
        assert struct.unpack_from("<HI", quote, 48) == ((3, 648) if is_td15 else (2, 584))
    (auth,) = struct.unpack_from("<I", quote, at)
    assert at + 4 + auth == len(quote)
    assert quote[at + 68 : at + 132] == platform.attestation_key.public_point
    p256_verify(quote[at + 68 : at + 132], quote[at + 4 : at + 68], quote[:at])
    assert struct.unpack_from("<HI", quote, at + 132) == (6, auth - 134)
    report = quote[at + 138 : at + 522]
    p256_verify(platform.pck_key.public_point, quote[at + 522 : at + 586], report)
    bound = hashlib.sha256(platform.attestation_key.public_point + bytes(range(32))).digest()
    assert report[320:] == bound + bytes(32)
    assert quote[at + 586 : at + 620] == b"\x20\x00" + bytes(range(32))
    chain = platform.pck_chain.encode() + b"\0"
    assert struct.unpack_from("<HI", quote, at + 620) == (5, len(chain))
    assert quote[at + 626 :] == chain


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


@pytest.mark.parametrize("name", FIELDS)
def test_body_field_is_at_its_offset(name: str) -> None:
    """A changed field changes its bytes and no others."""
    size = len(getattr(BODY, name))
    plain, changed = BODY.td15(), BODY._replace(**{name: b"\xa5" * size}).td15()
    at = FIELDS[name]
    assert changed == plain[:at] + b"\xa5" * size + plain[at + size :]
    assert len(plain) == 648
    assert BODY.td10() == plain[:584]


@pytest.mark.parametrize("name", FIELDS)
def test_body_field_of_wrong_size_is_rejected(name: str) -> None:
    """The error names the field."""
    for change in (-1, 1):
        size = len(getattr(BODY, name)) + change
        with raises(UsageError, "wrong_size") as caught:
            BODY._replace(**{name: bytes(size)}).td15()
        assert str(caught.value).startswith(f"{name}: ")


def test_td10_ignores_fields_of_td15() -> None:
    """The last two fields are not part of the short body."""
    assert BODY._replace(tee_tcb_svn2=b"").td10() == BODY.td10()


@pytest.mark.parametrize(
    ("version", "size"), [(4, 648), (4, 583), (5, 0), (5, 649), (3, 584), (6, 648), (0, 584)]
)
def test_quote_version_and_body_size_are_checked(version: int, size: int) -> None:
    """Other versions and sizes are rejected."""
    with raises(UsageError, "wrong_size" if version in (4, 5) else "wrong_value"):
        ENCLAVE.quote(bytes(size), version=version)


def test_quote_needs_one_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the quote is signed once the enclave is set up."""
    signed: list[bytes] = []
    sign = P256Key.sign

    def count(key: P256Key, data: bytes) -> bytes:
        signed.append(data)
        return sign(key, data)

    enclave = QuotingEnclave(PKI)
    monkeypatch.setattr(P256Key, "sign", count)
    quotes = [make_quote(enclave, layout) for layout in LAYOUTS]
    assert signed == [
        quote[:at] for quote, (_, _, at) in zip(quotes, LAYOUTS.values(), strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_changed_bit_in_quote_is_rejected(layout: str) -> None:
    """Each byte of body, signatures, key, QE report and auth data is covered."""
    at = LAYOUTS[layout][2]
    quote = make_quote(ENCLAVE, layout)
    assert not is_rejected(quote)
    # The outer certification data type (at + 132) is not signed.
    for region in (range(at + 132), range(at + 138, at + 620)):
        for offset, changed in flip_bits(quote, region):
            assert is_rejected(changed), f"byte {offset}"


def test_changed_bit_in_pck_certificate_is_rejected() -> None:
    """Line ends are not part of the certificate."""
    quote = make_quote(ENCLAVE, "v4")
    start = 1258 + len("-----BEGIN CERTIFICATE-----\n")
    end = quote.index(b"-----END", start)
    for offset, changed in flip_bits(quote, range(start, end), step=7):
        if quote[offset] != ord("\n"):
            assert is_rejected(changed), f"byte {offset}"


@pytest.mark.parametrize(
    "name",
    [
        "root_ca_crl",
        "pck_crl",
        "tcb_info",
        "tcb_info_signature",
        "qe_identity",
        "qe_identity_signature",
    ],
)
def test_changed_bit_in_collateral_is_rejected(name: str) -> None:
    """Bits of each signed part are sampled."""
    quote = make_quote(ENCLAVE, "v4")
    value = getattr(COLLATERAL, name)
    raw = value if isinstance(value, bytes) else value.encode()
    for offset, changed in flip_bits(raw, range(len(raw)), step=len(raw) // 60):
        part: Any = changed if isinstance(value, bytes) else changed.decode("latin-1")
        assert is_rejected(quote, replace(COLLATERAL, **{name: part})), f"byte {offset}"


@pytest.mark.parametrize("size", [0, 47, 48, 631, 632, 636, 769, 1257, 4879])
def test_truncated_quote_is_rejected(size: int) -> None:
    """The quote is cut at field boundaries and within fields."""
    assert is_rejected(make_quote(ENCLAVE, "v4")[:size])


@pytest.mark.parametrize(
    ("config", "at", "expected"),
    [
        (QuoteConfig(version=3), 0, b"\x03\x00"),
        (QuoteConfig(attestation_key_type=3), 2, b"\x03\x00"),
        (QuoteConfig(tee_type=0), 4, bytes(4)),
        (QuoteConfig(vendor_id=bytes(16)), 12, bytes(16)),
        (QuoteConfig(body_type=1), 48, b"\x01\x00"),
        (QuoteConfig(body_size=583), 50, b"\x47\x02\x00\x00"),
        (QuoteConfig(qe_miscselect=1), 792, b"\x01\x00\x00\x00"),
        (QuoteConfig(qe_attributes=b"\x01" * 16), 824, b"\x01" * 16),
        (QuoteConfig(qe_mrsigner=b"\x01" * 32), 904, b"\x01" * 32),
        (QuoteConfig(qe_isvprodid=9), 1032, b"\x09\x00"),
        (QuoteConfig(qe_isvsvn=0), 1034, b"\x00\x00"),
        (QuoteConfig(qe_report_data=b"\x01" * 64), 1096, b"\x01" * 64),
        (QuoteConfig(certification=b"nonsense"), 1264, b"nonsense"),
        (QuoteConfig(qe_auth_data=b""), 1224, b"\x00\x00\x05\x00"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, bytes) else None,
)
def test_quote_configuration_is_rejected(config: QuoteConfig, at: int, expected: bytes) -> None:
    """Each option writes its field (in a version 5 quote), and dcap-qvl rejects the quote."""
    quote = make_quote(QuotingEnclave(PKI, config=config), "v5-td10")
    assert quote[at : at + len(expected)] == expected
    assert is_rejected(quote)


@pytest.mark.parametrize(
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


def test_chain_of_another_root_is_rejected() -> None:
    """Certification data of another PKI is invalid under this root."""
    other = SimulatedPki(bytes(32)).platform()
    config = QuoteConfig(certification=other.pck_chain.encode() + b"\0", pck_key=other.pck_key)
    assert is_rejected(make_quote(QuotingEnclave(PKI, config=config), "v4"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 65536),
        ("reserved", bytes(5)),
        ("vendor_id", bytes(15)),
        ("user_data", bytes(16)),
        ("body_size", 1 << 32),
        ("qe_cpusvn", bytes(15)),
        ("qe_isvsvn", -1),
        ("qe_report_data", bytes(32)),
        ("padding", -1),
    ],
)
def test_quote_configuration_out_of_range_is_rejected(name: str, value: object) -> None:
    """The error names the option."""
    options: dict[str, Any] = {name: value}
    reason = "wrong_size" if isinstance(value, bytes) else "out_of_range"
    with raises(UsageError, reason) as caught:
        QuoteConfig(**options)
    assert str(caught.value).startswith(f"{name}: ")


def test_qe_auth_data_is_limited_to_65535_bytes() -> None:
    """The length field has 16 bits."""
    with raises(UsageError, "out_of_range"):
        QuoteConfig(qe_auth_data=bytes(65536))
