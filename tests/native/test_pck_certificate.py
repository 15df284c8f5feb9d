"""PCK certificates: both cores agree, and accept only what `cryptography` reads equally."""

import random
import re
import sys
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import PckCertificateFields, _python_pck
from attestkit.quote import Quote
from tests.runner.cases import every_case
from tests.samples.pck_certificates import (
    AUTHORITIES,
    DEFAULTS,
    Element,
    elements_of,
    encode,
    made_certificate,
    made_certificates,
    places_of,
    read_generally,
)
from tests.samples.quotes import samples
from tests.thorough import limited, slow, thorough
from tests.untyped import untyped, with_false_length

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
cores = pytest.mark.parametrize("core", [_native, _python_pck], ids=["selected", "python"])
MADE = made_certificates()


def real_certificates() -> list[bytes]:
    """Return the PCK certificates of the real quotes, each once."""
    block = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----")
    chains = (Quote.parse(data).certification for data in samples())
    leaves = [block.search(chain) for kind, chain in chains if kind == 5]
    return sorted({b64decode(leaf[1]) for leaf in leaves if leaf is not None})


REAL = real_certificates()
ANY = [*REAL, *MADE]


def read_with_both(der: bytes) -> PckCertificateFields | None:
    """Return the fields, after checking that both cores agree."""
    found = _native.read_pck_certificate(der)
    assert found == _python_pck.read_pck_certificate(der)
    return found


def read_with_all(der: bytes) -> PckCertificateFields | None:
    """Return the fields, after checking that `cryptography` reads the same."""
    found = read_with_both(der)
    if found is not None:
        serial = int.from_bytes(found.serial, "big")
        assert (serial, *found[1:]) == read_generally(der)
    return found


@pytest.fixture
def _cryptography() -> None:
    """Skip without `cryptography`."""
    pytest.importorskip("cryptography")


needs_cryptography = pytest.mark.usefixtures("_cryptography")


def unix_time(*parts: int) -> int:
    """Return the Unix time of a date and time in UTC."""
    return int(datetime(*parts, tzinfo=timezone.utc).timestamp())  # type: ignore[misc, arg-type]


@cores
def test_fields_of_made_certificate(core: Any) -> None:
    """Each field is the one that the certificate was made of."""
    found: PckCertificateFields = core.read_pck_certificate(MADE[0])
    assert type(found) is PckCertificateFields
    v = dict(DEFAULTS)
    instance_id, dynamic, cached, smt = v["instance"]
    [[_, [tbs, _, bits]]] = elements_of(MADE[0])
    assert found._asdict() == {
        "serial": v["serial"].to_bytes(20, "big"),
        "issuer": encode([tbs[1][3]]),
        "subject": encode([tbs[1][5]]),
        "not_before": unix_time(2023, 9, 20, 2, 46, 24),
        "not_after": unix_time(2030, 9, 20, 2, 46, 24),
        "point": v["point"],
        "tbs": encode([tbs]),
        "signature": bits[1][1:],
        **{name: v[name] for name in ("ppid", "components", "pcesvn", "cpusvn", "pceid")},
        **{name: v[name] for name in ("fmspc", "sgx_type")},
        "instance_id": instance_id,
        "dynamic_platform": dynamic,
        "cached_keys": cached,
        "smt_enabled": smt,
    }


@cores
def test_certificate_of_processor_ca_has_no_instance(core: Any) -> None:
    """With five entries in the SGX extension, instance id and flags are None."""
    found = core.read_pck_certificate(MADE[1])
    assert found[-4:] == (None, None, None, None)
    assert found.components == bytes(range(120, 136))
    assert AUTHORITIES[1] in found.issuer


@needs_cryptography
@every_case("der", [*MADE, *REAL], ids=lambda der: der[15:23].hex())
def test_real_and_made_certificates_are_read(der: bytes) -> None:
    """Every real certificate has the layout, and its fields are those that `cryptography` reads."""
    assert read_with_all(der) is not None


@needs_cryptography
def test_certificate_of_the_simulator_is_read() -> None:
    """The simulator's certificates have the layout, with the values of its platform."""
    intel_pki = pytest.importorskip("attestkit.backends.simulator.pki.intel_pki")
    platform = intel_pki.SimulatedPki(bytes(32)).platform()
    found = read_with_all(platform.pck_der)
    assert found is not None
    assert found.ppid == platform.ppid
    assert found.instance_id == platform.instance_id
    assert found.point == b"\4" + platform.pck_key.public_point


@pytest.mark.parametrize("der", [*MADE, *REAL[:1]], ids=len)
def test_truncated_certificates_are_left_to_the_general_reader(der: bytes) -> None:
    """No prefix has the layout, and nothing may follow a certificate."""
    assert not any(map(read_with_both, (der[:size] for size in range(len(der)))))
    assert read_with_both(der + b"\0") is None
    assert read_with_both(der + der) is None


@needs_cryptography
@pytest.mark.parametrize("der", [ANY[0], *slow(*[(one,) for one in ANY[1:]])])
def test_every_flipped_bit_is_read_as_by_cryptography(der: bytes) -> None:
    """With one flipped bit a certificate is left to the general reader, or is read equally.

    Continuous integration flips some of the bits of the slow certificates.
    """
    accepted, bits = 0, limited(range(8 * len(der)))
    for bit in bits:
        changed = bytearray(der)
        changed[bit // 8] ^= 1 << bit % 8
        accepted += read_with_all(bytes(changed)) is not None
    assert 0.1 < accepted / len(bits) < 0.5


def changed_elements(elements: Any, at: int) -> Iterator[None]:
    """Change one element in several ways, one after the other."""
    before = list(elements)
    tag, content = before[at]
    data = content if isinstance(content, bytes) else encode(content)
    raw = encode([before[at]])
    changes: list[list[Element | bytes]] = [
        [],
        [before[at], before[at]],
        [[tag, data + b"\0"]],
        [[tag, b"\0" + data]],
        [[tag, data[:-1]]],
        [[tag, data[1:]]],
        [[tag, b""]],
        [[tag ^ 0x20, data]],
        [[tag + 1, data]],
        [[4, raw]],
        [[0x30, [before[at]]]],
        [before[at], b"\x05\x00"],
        [bytes([tag, 0x83, 0, len(data) >> 8, len(data) & 0xFF]) + data],
        [bytes([tag, 0x80]) + data + b"\0\0"],
    ]
    if len(data) < 0x80:
        changes.append([bytes([tag, 0x81, len(data)]) + data])
    if len(data) < 0x100:
        changes.append([bytes([tag, 0x82, 0, len(data)]) + data])
    for change in changes:
        elements[at : at + 1] = change
        yield
        elements[:] = before
    if at + 1 < len(before):
        elements[at], elements[at + 1] = before[at + 1], before[at]
        yield
        elements[:] = before


@needs_cryptography
@pytest.mark.parametrize("der", [MADE[0], *slow((MADE[1],))], ids=len)
def test_every_changed_element_is_read_as_by_cryptography(der: bytes) -> None:
    """An element that is missing, doubled, longer, of another type: with all lengths right."""
    elements = elements_of(der)
    assert encode(elements) == der
    count = accepted = 0
    for place, at in places_of(elements):
        for _ in changed_elements(place, at):
            count += 1
            accepted += read_with_all(encode(elements)) is not None
    assert encode(elements) == der
    assert count > 2000
    assert 0 < accepted < 60


@st.composite
def values(draw: st.DrawFn) -> dict[str, Any]:
    """Return values that a certificate with the layout may have."""
    source = random.Random(draw(st.binary(max_size=12)))
    before, after = (source.randrange(unix_time(1950, 1, 1), unix_time(9999, 12, 31)) for _ in "ab")
    instance = (source.randbytes(16), *[source.random() < 0.5 for _ in range(3)])
    return {
        "serial": draw(st.integers(1, 2**160 - 1)),
        "authority": source.choice(AUTHORITIES),
        "not_before": time_text(before),
        "not_after": time_text(draw(st.sampled_from((after, unix_time(2100, 3, 1) - 1)))),
        "point": b"\4" + source.randbytes(64),
        "url": bytes(source.choices(range(33, 127), k=draw(st.integers(1, 110)))),
        "ppid": source.randbytes(16),
        "components": bytes(source.choices((0, 1, 127, 128, 255), k=16)),
        "pcesvn": draw(st.integers(0, 0xFFFF)),
        "cpusvn": source.randbytes(16),
        "pceid": source.randbytes(2),
        "fmspc": source.randbytes(6),
        "sgx_type": source.randrange(3),
        "instance": source.choice((None, instance)),
        "r": draw(st.integers(1, 2**256 - 1)),
        "s": draw(st.integers(1, 2**256 - 1)),
    }


def time_text(seconds: int) -> bytes:
    """Return the text of a time: UTCTime before 2050, GeneralizedTime from then on."""
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    text = moment.strftime("%Y%m%d%H%M%SZ").encode()
    return text if text >= b"2050" else text[2:]


@needs_cryptography
@thorough(values(), few=100, many=3000)
def test_all_values_are_read_as_by_cryptography(v: dict[str, Any]) -> None:
    """A certificate with any values has the layout."""
    found = read_with_all(made_certificate(**v))
    assert found is not None
    assert time_text(found.not_before) == v["not_before"]
    assert found.components == v["components"]


@needs_cryptography
@thorough(values(), st.integers(0, 2**32), few=100, many=3000)
def test_changed_elements_are_read_as_by_cryptography(v: dict[str, Any], seed: int) -> None:
    """With one to three changed elements a certificate is left, or is read equally."""
    source = random.Random(seed)
    elements = elements_of(made_certificate(**v))
    for _ in range(source.randrange(1, 4)):
        place, at = source.choice(list(places_of(elements)))
        changes = changed_elements(place, at)
        for _ in range(source.randrange(1, 15)):
            next(changes)
        der = encode(elements)
        read_with_all(der)
        elements = elements_or_none(der)
        if not elements:  # it is no longer DER, or empty
            return


def elements_or_none(der: bytes) -> Any:
    """Return the elements of valid DER, else None."""
    try:
        elements = elements_of(der)
    except IndexError:
        return None
    return elements if encode(elements) == der else None


@every_case(
    "text",
    [
        *(b"230229000000Z", b"230431000000Z", b"230900000000Z", b"230001000000Z", b"231301000000Z"),
        *(b"230101240000Z", b"230101006000Z", b"230101000060Z", b"23010100000aZ", b"230101000000z"),
        *(b"21000229000000Z", b"20491231235959Z", b"00010101000000Z", b"20500101 00000Z"),
        *(b"2301010000Z", b"230101000000+0000", b"20500101000000.0Z", b"2050010100Z", b""),
    ],
)
@every_case("field", ["not_before", "not_after"])
def test_certificate_with_another_time_is_left(field: str, text: bytes) -> None:
    """Times are dates of the calendar with seconds, in the type of RFC 5280."""
    assert read_with_both(made_certificate(**{field: text})) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"500101000000Z", (1950, 1, 1)),
        (b"491231235959Z", (2049, 12, 31, 23, 59, 59)),
        (b"240229120000Z", (2024, 2, 29, 12)),
        (b"000229000000Z", (2000, 2, 29)),
        (b"20500101000000Z", (2050, 1, 1)),
        (b"24000229000000Z", (2400, 2, 29)),
        (b"99991231235959Z", (9999, 12, 31, 23, 59, 59)),
    ],
)
def test_times_are_unix_time(text: bytes, expected: tuple[int, ...]) -> None:
    """Years and leap days are those of RFC 5280 and of the Gregorian calendar."""
    found = read_with_both(made_certificate(not_before=text, not_after=text))
    assert found is not None
    assert found.not_before == found.not_after == unix_time(*expected)


@every_case(
    "changes",
    [
        {"serial": 0},
        {"serial": 2**160},
        {"url": b"a" * 111},
        {"url": b""},
        {"url": b"https://certificates.example/\xc3\xa9"},
        {"url": b"https://certificates.example/\0"},
        {"authority": b"Intel SGX Root CA"},
        {"authority": b"Intel SGX PCK Platform CB"},
        {"point": b"\2" + DEFAULTS["point"][1:]},
        {"point": DEFAULTS["point"][:-1]},
        {"ppid": bytes(15)},
        {"components": bytes(15)},
        {"components": bytes(17)},
        {"pcesvn": 0x10000},
        {"cpusvn": bytes(17)},
        {"pceid": bytes(1)},
        {"fmspc": bytes(7)},
        {"sgx_type": 3},
        {"instance": (bytes(15), True, True, True)},
        {"instance": (bytes(16), True, True)},
        {"r": 0},
        {"s": 0},
        {"r": 2**256},
    ],
    ids=str,
)
def test_certificate_with_another_value_is_left(changes: dict[str, Any]) -> None:
    """Values that Intel does not write are left to the general reader."""
    assert read_with_both(made_certificate(**changes)) is None


@needs_cryptography
def test_point_that_is_not_on_the_curve_is_left_to_the_caller() -> None:
    """The reader does not compute with the point; creating the key refuses it."""
    from cryptography.hazmat.primitives.asymmetric import ec

    found = read_with_both(made_certificate(point=b"\4" + bytes(64)))
    assert found is not None
    with pytest.raises(ValueError, match=r"EC key|on the curve"):
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), found.point)


@cores
@pytest.mark.parametrize(
    "data", [None, "text", bytearray(MADE[0]), memoryview(MADE[0]), with_false_length(MADE[0], 9)]
)
def test_other_types_are_left(core: Any, data: object) -> None:
    """Only `bytes` are read."""
    assert core.read_pck_certificate(untyped(data)) is None


@compiled
def test_reader_leaks_no_references() -> None:
    """No reference remains after reading, and none is lost."""
    held: list[object] = [*MADE, PckCertificateFields]
    before = [sys.getrefcount(item) for item in held]
    for _ in range(100):
        assert not any(map(shared_fields, map(_native.read_pck_certificate, MADE)))
        assert _native.read_pck_certificate(MADE[0][:-1]) is None
    assert [sys.getrefcount(item) for item in held] == before


def shared_fields(found: PckCertificateFields | None) -> list[bytes]:
    """Return the fields that others refer to, except single bytes, which Python caches."""
    assert found is not None
    fields = [one for one in found if type(one) is bytes and len(one) > 1]
    return [one for one in fields if sys.getrefcount(one) > 4]  # tuple, list, variable, argument
