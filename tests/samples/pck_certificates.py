"""PCK certificates: made ones without a valid signature, and a reading by `cryptography`."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from attestkit._crypto.der import encode_element
from tests.samples.quotes import PATTERN

SGX: Final = bytes.fromhex("2a864886f84d010d01")
ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
SPKI: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
# The generator of P-256, which is on the curve.
POINT: Final = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
URL: Final = b"https://certificates.example/sgx/certification/v4/pckcrl?ca=platform&encoding=der"
AUTHORITIES: Final = tuple(b"Intel SGX PCK %b CA" % kind for kind in (b"Platform", b"Processor"))
CONSTRUCTED: Final = frozenset((0x30, 0x31, 0xA0, 0xA3))


def element(tag: int, *content: bytes) -> bytes:
    """Return a DER element of concatenated contents."""
    return encode_element(tag, b"".join(content))


def integer(value: int, tag: int = 2) -> bytes:
    """Return a non-negative INTEGER in DER."""
    return element(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def name(common_name: bytes) -> bytes:
    """Return a name of Intel's PKI."""
    attributes = ((3, common_name), (10, b"Intel Corporation"), (7, b"Santa Clara"), (8, b"CA"))
    values = [(arc, element(0x0C, value)) for arc, value in attributes] + [(6, b"\x13\x02US")]
    return element(
        0x30,
        *[
            element(0x31, element(0x30, element(6, bytes((0x55, 4, arc))), value))
            for arc, value in values
        ],
    )


def time(text: bytes) -> bytes:
    """Return a UTCTime of 13 digits and letters, or a GeneralizedTime of 15."""
    return element(0x17 if len(text) == 13 else 0x18, text)


def entry(arcs: bytes, *value: bytes) -> bytes:
    """Return an entry of the SGX extension."""
    return element(0x30, element(6, SGX, arcs), *value)


def extension(arc: int, *value: bytes, critical: bool = False) -> bytes:
    """Return an extension of 2.5.29."""
    flag = b"\x01\x01\xff" if critical else b""
    return element(0x30, element(6, bytes((0x55, 0x1D, arc))), flag, element(4, *value))


DEFAULTS: Final[Mapping[str, Any]] = {
    "serial": int.from_bytes(PATTERN[130:150], "big"),  # with a zero before it in DER
    "authority": AUTHORITIES[0],
    "not_before": b"230920024624Z",
    "not_after": b"300920024624Z",
    "point": POINT,
    "url": URL,
    "ppid": PATTERN[30:46],
    "components": bytes(range(16)),
    "pcesvn": 13,
    "cpusvn": PATTERN[50:66],
    "pceid": b"\x00\x01",
    "fmspc": PATTERN[80:86],
    "sgx_type": 1,
    "instance": (PATTERN[90:106], True, False, True),  # or None
    "r": int.from_bytes(PATTERN[150:182], "big"),
    "s": int.from_bytes(PATTERN[60:92], "big"),
}


def sgx_entries(v: Mapping[str, Any]) -> bytes:
    """Return the value of the SGX extension."""
    tcb = [entry(bytes((2, n)), integer(svn)) for n, svn in enumerate(v["components"], 1)]
    tcb += [entry(b"\x02\x11", integer(v["pcesvn"])), entry(b"\x02\x12", element(4, v["cpusvn"]))]
    entries = [
        entry(b"\x01", element(4, v["ppid"])),
        entry(b"\x02", element(0x30, *tcb)),
        entry(b"\x03", element(4, v["pceid"])),
        entry(b"\x04", element(4, v["fmspc"])),
        entry(b"\x05", integer(v["sgx_type"], 10)),
    ]
    if v["instance"] is not None:
        instance_id, *flags = v["instance"]
        numbered = enumerate(flags, 1)
        values = [entry(bytes((7, n)), element(1, b"\xff" if on else b"\0")) for n, on in numbered]
        entries += [entry(b"\x06", element(4, instance_id)), entry(b"\x07", element(0x30, *values))]
    return element(0x30, *entries)


def made_certificate(**changes: Any) -> bytes:
    """Return a PCK certificate with the default values, except for `changes`."""
    v = {**DEFAULTS, **changes}
    point = element(0xA0, element(0xA0, element(0x86, v["url"])))
    extensions = (
        extension(35, element(0x30, element(0x80, PATTERN[:20]))),
        extension(31, element(0x30, element(0x30, point))),
        extension(14, element(4, PATTERN[20:40])),
        extension(15, b"\x03\x02\x06\xc0", critical=True),
        extension(19, b"\x30\x00", critical=True),
        element(0x30, element(6, SGX), element(4, sgx_entries(v))),
    )
    tbs = element(
        0x30,
        b"\xa0\x03\x02\x01\x02",
        integer(v["serial"]),
        ECDSA_SHA256,
        name(v["authority"]),
        element(0x30, time(v["not_before"]), time(v["not_after"])),
        name(b"Intel SGX PCK Certificate"),
        SPKI,
        v["point"],
        element(0xA3, element(0x30, *extensions)),
    )
    signature = element(3, b"\0", element(0x30, integer(v["r"]), integer(v["s"])))
    return element(0x30, tbs, ECDSA_SHA256, signature)


def made_certificates() -> list[bytes]:
    """Return a certificate of each variant of the layout."""
    return [
        made_certificate(),
        made_certificate(
            instance=None, authority=AUTHORITIES[1], components=bytes(range(120, 136))
        ),
        made_certificate(not_after=b"20500101000000Z", serial=1, pcesvn=0xFFFF, url=b"a", r=1, s=1),
        made_certificate(
            not_before=b"500101000000Z", components=b"\xff" * 16, pcesvn=0x80, sgx_type=0
        ),
    ]


# -- elements of a certificate, for changes that keep all lengths right ----------------------------

Element = list[Any]
"""Tag, and the content: a list of elements, or bytes. An OCTET STRING may contain elements."""
Elements = list[Element | bytes]
"""Elements; bytes stand for themselves."""


def elements_of(der: bytes) -> Any:
    """Return the elements of DER; what is malformed has another encoding, or raises IndexError."""
    found = []
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size > 0x80:
            size, at = int.from_bytes(der[at : at + size - 0x80], "big"), at + size - 0x80
        content = der[at : at + size]
        wraps = tag in CONSTRUCTED or (tag == 4 and content[:1] == b"\x30" and size > 20)
        found.append([tag, elements_of(content) if wraps else content])
        at += size
    return found


def encode(elements: Elements) -> bytes:
    """Return elements in DER."""
    return b"".join(one if isinstance(one, bytes) else encode_one(*one) for one in elements)


def encode_one(tag: int, content: bytes | Elements) -> bytes:
    """Return an element in DER."""
    return element(tag, content if isinstance(content, bytes) else encode(content))


def places_of(elements: Any) -> Iterator[tuple[Any, int]]:
    """Yield the place of each element: a list, and an index in it."""
    for at, (_, content) in enumerate(elements):
        yield elements, at
        if isinstance(content, list):
            yield from places_of(content)


# -- a reading by cryptography ---------------------------------------------------------------------

_NAME = frozenset({"O=Intel Corporation", "L=Santa Clara", "ST=CA", "C=US"})
_REQUIRED: Final = frozenset(f"2.5.29.{arc}" for arc in (14, 15, 19, 31, 35))
_FORBIDDEN: Final = frozenset(f"2.5.29.{arc}" for arc in (30, 33, 36, 37, 54))
_MAY_BE_CRITICAL: Final = frozenset(("2.5.29.15", "2.5.29.19"))


class UnreadableError(Exception):
    """The certificate violates Intel's profile of PCK certificates."""


def require(holds: object) -> None:
    """Raise UnreadableError unless a rule holds."""
    if not holds:
        raise UnreadableError


def read_generally(der: bytes) -> tuple[Any, ...] | None:
    """Return the fields as `cryptography` reads them, or None if the profile is violated.

    Raises:
        ImportError: `cryptography` is not installed.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    refusals = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
    try:
        certificate = x509.load_der_x509_certificate(der)
        decode_dss_signature(certificate.signature)
        return _fields(der, certificate)
    except (ValueError, LookupError, Warning, UnreadableError, *refusals):
        return None


def _fields(der: bytes, certificate: Any) -> tuple[Any, ...]:
    tbs = certificate.tbs_certificate_bytes
    [[_, [[_, parts], algorithm, _]]] = elements_of(der)
    require(certificate.version.name == "v3" and 0 < certificate.serial_number < 1 << 160)
    require(encode([parts[2]]) == encode([algorithm]) == ECDSA_SHA256)
    spki = encode([parts[6]])
    require(len(spki) == 91 and spki.startswith(SPKI + b"\4"))
    issuer = frozenset(certificate.issuer.rfc4514_string().split(","))
    require(issuer in [_NAME | {f"CN={one.decode()}"} for one in AUTHORITIES])
    subject = frozenset(certificate.subject.rfc4514_string().split(","))
    require(subject == _NAME | {"CN=Intel SGX PCK Certificate"})
    sgx = _extensions(certificate.extensions)
    return (
        certificate.serial_number,
        certificate.issuer.public_bytes(),
        certificate.subject.public_bytes(),
        int(certificate.not_valid_before_utc.timestamp()),
        int(certificate.not_valid_after_utc.timestamp()),
        spki[26:],
        tbs,
        certificate.signature,
        *_platform(sgx),
    )


def _extensions(extensions: Any) -> bytes:
    """Check the extensions; return the value of the SGX extension."""
    found = {one.oid.dotted_string: one for one in extensions}
    require(found.keys() >= _REQUIRED and not found.keys() & _FORBIDDEN)
    require(not [oid for oid, one in found.items() if one.critical and oid not in _MAY_BE_CRITICAL])
    usage = found["2.5.29.15"].value
    require(usage.digital_signature and not usage.key_cert_sign)
    require(not found["2.5.29.19"].value.ca)
    value: bytes = found["1.2.840.113741.1.13.1"].value.value
    return value


def _platform(sgx: bytes) -> tuple[Any, ...]:
    elements = elements_of(sgx)
    [[tag, entries]] = elements
    require(tag == 0x30 and encode(elements) == sgx)
    top = _by_arcs(entries)
    tcb = _by_arcs(_typed(top, b"\x02", 0x30))
    require(len(top) in (5, 7) and len(tcb) == 18)
    instance: tuple[Any, ...] = (None,) * 4
    if len(top) == 7:
        flags = _by_arcs(_typed(top, b"\x07", 0x30))
        require(len(flags) == 3)
        octets = [_typed(flags, bytes((7, n)), 1) for n in (1, 2, 3)]
        instance = (_octets(top, b"\x06", 16), *[{b"\xff": True, b"\0": False}[o] for o in octets])
    return (
        _octets(top, b"\x01", 16),
        bytes(_number(tcb, bytes((2, n)), 2, 0xFF) for n in range(1, 17)),
        _number(tcb, b"\x02\x11", 2, 0xFFFF),
        _octets(tcb, b"\x02\x12", 16),
        _octets(top, b"\x03", 2),
        _octets(top, b"\x04", 6),
        _number(top, b"\x05", 10, 0xFF),
        *instance,
    )


def _by_arcs(entries: Any) -> dict[bytes, Element]:
    """Return the value of each entry by the end of its OID."""
    require(isinstance(entries, list))
    found: dict[bytes, Element] = {}
    for tag, content in entries:
        require(tag == 0x30 and len(content) == 2 and content[0][0] == 6)
        require(content[0][1].startswith(SGX) and content[0][1] not in found)
        found[content[0][1]] = content[1]
    return {oid[len(SGX) :]: value for oid, value in found.items()}


def _typed(entries: dict[bytes, Element], arcs: bytes, tag: int) -> Any:
    require(entries[arcs][0] == tag)
    return entries[arcs][1]


def _octets(entries: dict[bytes, Element], arcs: bytes, size: int) -> bytes:
    octets: bytes = _typed(entries, arcs, 4)
    require(len(octets) == size)
    return octets


def _number(entries: dict[bytes, Element], arcs: bytes, tag: int, most: int) -> int:
    value = int.from_bytes(_typed(entries, arcs, tag), "big")
    require(value <= most and integer(value, tag) == element(tag, _typed(entries, arcs, tag)))
    return value
