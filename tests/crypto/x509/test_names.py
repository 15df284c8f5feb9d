"""Distinguished names are read like `cryptography` reads them."""

from cryptography import x509
from cryptography.x509.oid import NameOID

from attestkit._crypto.der import OID, encode_element, encode_sequence
from attestkit._crypto.x509.names import COMMON_NAME, read_name
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case

_SET = 0x31
CN = bytes.fromhex("550403")


def name(*attributes: bytes) -> bytes:
    """Return a Name of attributes, each in a set of its own."""
    return encode_sequence(*[encode_element(_SET, attribute) for attribute in attributes])


def attribute(value: bytes, tag: int = 0x0C, oid: bytes = CN) -> bytes:
    """Return an attribute, by default a common name in UTF-8."""
    return encode_sequence(encode_element(OID, oid), encode_element(tag, value))


def test_read_of_name_of_cryptography_gives_its_attributes() -> None:
    """Attributes are found by OID, whatever their string types."""
    made = x509.Name(
        [
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "41431D480FE5E87274"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.COMMON_NAME, "GH100 ü"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.com"),
        ]
    )
    found = read_name(made.public_bytes())
    assert found == {item.oid.dotted_string: item.value for item in made}
    assert (found[COMMON_NAME], found["2.5.4.5"]) == ("GH100 ü", "41431D480FE5E87274")


def test_read_of_every_prefix_is_refused() -> None:
    """A truncated name is refused, wherever it ends."""
    raw = name(attribute(b"GH100"), attribute(b"US", 0x13, bytes.fromhex("550406")))
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            read_name(raw[:size])
    with raises(FormatError, "trailing_data"):
        read_name(raw + b"\0")


def test_read_of_other_strings_leaves_them_out() -> None:
    """A BMPString is left out; an empty name has no attributes."""
    assert read_name(name(attribute(b"\0G", 0x1E), attribute(b"US", 0x13, b"\x55\x04\x06"))) == {
        "2.5.4.6": "US"
    }
    assert read_name(name()) == {}
    both = encode_sequence(
        encode_element(_SET, attribute(b"a") + attribute(b"b", oid=bytes.fromhex("55040a")))
    )
    assert read_name(both) == {COMMON_NAME: "a", "2.5.4.10": "b"}


@every_case(
    ("raw", "reason"),
    [
        (name(attribute(b"a"), attribute(b"b")), "duplicate"),
        (name(attribute(b"\xff")), "encoding"),
        (name(attribute(b"\xc3\xa9", 0x13)), "encoding"),
        (name(*(attribute(b"a", oid=bytes([0x55, 4, at])) for at in range(17))), "too_many"),
        (name(encode_sequence()), "truncated"),
        (
            name(encode_sequence(encode_element(OID, CN), b"\x0c\x01a", b"\x0c\x01b")),
            "trailing_data",
        ),
        (b"\x31\0", "wrong_type"),
    ],
)
def test_read_of_wrong_name_is_refused(raw: bytes, reason: str) -> None:
    """Repeated attributes, wrong text and wrong structure are refused."""
    with raises(FormatError, reason):
        read_name(raw)
