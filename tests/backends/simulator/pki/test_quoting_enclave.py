"""Simulated quotes have the documented layout, and only their own root makes them believed."""

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


def make(enclave: QuotingEnclave, layout: str, body: TdBody = BODY) -> bytes:
    """Return a quote of that layout."""
    version, is_td15, _ = LAYOUTS[layout]
    return enclave.quote(body.td15() if is_td15 else body.td10(), version=version)


def refused(quote: bytes, collateral: Collateral = COLLATERAL) -> bool:
    """Tell whether dcap-qvl refuses the quote although it is told to trust our root."""
    return judge(quote, collateral, PKI.root_der, NOW).status == REJECT


def flips(data: bytes, offsets: range, *, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield `data` with one bit flipped per offset, another bit each time."""
    for count, offset in enumerate(offsets[::step]):
        changed = bytearray(data)
        changed[offset] ^= 1 << count % 8
        yield offset, bytes(changed)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(seed=st.binary(min_size=32, max_size=32), report_data=st.binary(min_size=64, max_size=64))
@settings(max_examples=20, deadline=None)
def test_any_seed_is_accepted_with_its_root_and_no_other(
    layout: str, seed: bytes, report_data: bytes
) -> None:
    """dcap-qvl accepts with the simulator's root, and refuses with Intel's and with another's."""
    pki = SimulatedPki(seed)
    quote = make(QuotingEnclave(pki), layout, TdBody(report_data=report_data))
    collateral = pki.collateral(NOW)
    verdict = judge(quote, collateral, pki.root_der, NOW)
    assert (verdict.status, verdict.advisories) == ("UpToDate", ())
    assert report_data.hex() in verdict.report
    stranger = SimulatedPki(hashlib.sha256(seed).digest()).root_der
    for root in (None, stranger):
        verdict = judge(quote, collateral, root, NOW)
        assert verdict.status == REJECT
        assert "InvalidCrlSignature" in verdict.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str) -> None:
    """Each part stands at the documented offset and says what it must."""
    version, is_td15, at = LAYOUTS[layout]
    quote = make(ENCLAVE, layout)
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
def test_our_own_parser_reads_what_was_put_in(layout: str) -> None:
    """Every field of the body comes back by its name, and so do key and certificates."""
    body = TdBody(*(bytes([number]) * len(value) for number, value in enumerate(TdBody(), 1)))
    quote = Quote.parse(make(ENCLAVE, layout, body))
    platform = PKI.platform()
    fields = TdBody._fields if LAYOUTS[layout][1] else TdBody._fields[:15]
    assert {name: getattr(quote.body, name) for name in fields} == {
        name: getattr(body, name) for name in fields
    }
    assert (quote.version, quote.padding) == (LAYOUTS[layout][0], 0)
    assert quote.attestation_key == platform.attestation_key.public_point
    assert list(quote.pck_chain) == [platform.pck_der, PKI.pck_ca_der, PKI.root_der]


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_has_its_place_in_the_body(name: str) -> None:
    """A field of another value changes the bytes at its offset and no others."""
    size = len(getattr(BODY, name))
    plain, changed = BODY.td15(), BODY._replace(**{name: b"\xa5" * size}).td15()
    at = FIELDS[name]
    assert changed == plain[:at] + b"\xa5" * size + plain[at + size :]
    assert len(plain) == 648
    assert BODY.td10() == plain[:584]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_another_size_is_named(name: str) -> None:
    """A body with a short or long field is refused by that field's name."""
    for change in (-1, 1):
        size = len(getattr(BODY, name)) + change
        with pytest.raises(UsageError, match=f"^{name} is {size - change} bytes, not {size}$"):
            BODY._replace(**{name: bytes(size)}).td15()


def test_td10_does_not_look_at_the_fields_of_td15() -> None:
    """The two last fields do not matter to the short body."""
    assert BODY._replace(tee_tcb_svn2=b"").td10() == BODY.td10()


@pytest.mark.parametrize(
    ("version", "size"), [(4, 648), (4, 583), (5, 0), (5, 649), (3, 584), (6, 648), (0, 584)]
)
def test_no_other_quotes_are_made(version: int, size: int) -> None:
    """Another version, or a body of another size, is refused."""
    with pytest.raises(UsageError, match=f"no quote of version {version} has a body of {size}"):
        ENCLAVE.quote(bytes(size), version=version)


def test_a_quote_costs_one_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the enclave is set up, only the quote itself is signed."""
    signed: list[bytes] = []
    sign = P256Key.sign

    def count(key: P256Key, data: bytes) -> bytes:
        signed.append(data)
        return sign(key, data)

    enclave = QuotingEnclave(PKI)
    monkeypatch.setattr(P256Key, "sign", count)
    quotes = [make(enclave, layout) for layout in LAYOUTS]
    assert signed == [
        quote[:at] for quote, (_, _, at) in zip(quotes, LAYOUTS.values(), strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flipped_bit_is_refused(layout: str) -> None:
    """A bit of each byte of body, signatures, key, QE report and auth data: none may change."""
    at = LAYOUTS[layout][2]
    quote = make(ENCLAVE, layout)
    assert not refused(quote)
    # Certification data's outer type (at + 132) is signed by nobody.
    for region in (range(at + 132), range(at + 138, at + 620)):
        for offset, changed in flips(quote, region):
            assert refused(changed), f"byte {offset}"


def test_one_flipped_bit_of_the_leaf_is_refused() -> None:
    """The PCK leaf's certificate cannot be changed either; its line ends are no part of it."""
    quote = make(ENCLAVE, "v4")
    start = 1258 + len("-----BEGIN CERTIFICATE-----\n")
    end = quote.index(b"-----END", start)
    for offset, changed in flips(quote, range(start, end), step=7):
        if quote[offset] != ord("\n"):
            assert refused(changed), f"byte {offset}"


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
def test_one_flipped_bit_of_the_collateral_is_refused(name: str) -> None:
    """A bit here and there in each signed part of the collateral: none may change."""
    quote = make(ENCLAVE, "v4")
    value = getattr(COLLATERAL, name)
    raw = value if isinstance(value, bytes) else value.encode()
    for offset, changed in flips(raw, range(len(raw)), step=len(raw) // 60):
        part: Any = changed if isinstance(value, bytes) else changed.decode("latin-1")
        assert refused(quote, replace(COLLATERAL, **{name: part})), f"byte {offset}"


@pytest.mark.parametrize("size", [0, 47, 48, 631, 632, 636, 769, 1257, 4879])
def test_a_cut_quote_is_refused(size: int) -> None:
    """A quote without its end is refused."""
    assert refused(make(ENCLAVE, "v4")[:size])


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
def test_knobs_that_are_refused(config: QuoteConfig, at: int, expected: bytes) -> None:
    """Each knob writes its field (in a version 5 quote), and dcap-qvl refuses the result."""
    quote = make(QuotingEnclave(PKI, config=config), "v5-td10")
    assert quote[at : at + len(expected)] == expected
    assert refused(quote)


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
def test_knobs_that_are_accepted(config: QuoteConfig, at: int, expected: bytes) -> None:
    """Each knob writes its field (in a version 5 quote), which stays believed."""
    quote = make(QuotingEnclave(PKI, config=config), "v5-td10")
    assert quote[at : at + len(expected)] == expected
    assert not refused(quote)


def test_a_chain_of_another_root_is_refused() -> None:
    """Certification data of another PKI does not pass under this root."""
    other = SimulatedPki(bytes(32)).platform()
    config = QuoteConfig(certification=other.pck_chain.encode() + b"\0", pck_key=other.pck_key)
    assert refused(make(QuotingEnclave(PKI, config=config), "v4"))


@pytest.mark.parametrize(
    ("knob", "value"),
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
def test_knobs_out_of_range_are_named(knob: str, value: object) -> None:
    """A knob of the wrong size or range is refused by its name."""
    knobs: dict[str, Any] = {knob: value}
    with pytest.raises(UsageError, match=f"^{knob} "):
        QuoteConfig(**knobs)


def test_auth_data_has_at_most_65535_bytes() -> None:
    """QE auth data that its length field cannot say is refused."""
    with pytest.raises(UsageError, match="the size of qe_auth_data"):
        QuoteConfig(qe_auth_data=bytes(65536))
