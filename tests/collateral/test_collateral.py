"""Collateral keeps its nine fields through JSON and files, knows its span, and names bad fields."""

import json
import pickle
import stat
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError
from tests.dcap import through_json
from tests.untyped import untyped
from tests.vectors import SHARED, needs_shared

VECTOR = SHARED / "vectors" / "simulated-pki" / "collateral.json"
REAL = SHARED / "data" / "quotes" / "dcap-qvl"
NOW = 1790000000
ISSUE, NEXT = 1789862400, 1792454400
PKI = SimulatedPki(bytes(range(32)))
SAMPLE = PKI.collateral(NOW)
FIELDS = tuple(json.loads(SAMPLE.to_json()))
BINARY = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


_BODY: dict[str, Any] = {"issue": ISSUE + 60, "next_update": NEXT - 60}
_CRL = CrlConfig(this_update=ISSUE + 60, next_update=NEXT - 60)
NARROWED = {
    "tcb_info": CollateralConfig(tcb_info=TcbInfoConfig(**_BODY)),
    "qe_identity": CollateralConfig(qe_identity=QeIdentityConfig(**_BODY)),
    "root_crl": CollateralConfig(root_crl=_CRL),
    "pck_crl": CollateralConfig(pck_crl=_CRL),
}


def at(seconds: int) -> datetime:
    """Return the aware time of Unix seconds."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def with_field(name: str, value: Any) -> Collateral:
    """Return the sample with one field replaced."""
    return replace(SAMPLE, **{name: value})


def changed(**values: object) -> str:
    """Return the sample's JSON with some fields replaced; an Ellipsis drops the field."""
    fields: dict[str, Any] = {**json.loads(SAMPLE.to_json()), **values}
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


@needs_shared
def test_the_vector_reads_and_writes_back() -> None:
    """The vector's file gives its fields, and they give the file back byte for byte."""
    collateral = Collateral.load(VECTOR)
    fields = json.loads(VECTOR.read_text())
    for name in BINARY:
        assert getattr(collateral, name).hex() == fields.pop(name)
    for name, text in fields.items():
        assert getattr(collateral, name) == text
    assert collateral.to_json() == VECTOR.read_text()
    assert collateral == SAMPLE


@needs_shared
@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("sgx", "2025-06-19T10:56:11Z", "2025-07-19T10:01:18Z"),
        ("tdx", "2025-06-19T10:32:27Z", "2025-07-19T10:00:35Z"),
    ],
)
def test_intels_own_collateral_reads(name: str, start: str, end: str) -> None:
    """Collateral that Intel signed loads, and its span is the one that openssl's dates give."""
    collateral = Collateral.load(REAL / f"{name}_quote_collateral.json")
    assert collateral.valid_from.strftime("%Y-%m-%dT%H:%M:%SZ") == start
    assert collateral.valid_until.strftime("%Y-%m-%dT%H:%M:%SZ") == end


def test_dcap_libraries_read_and_write_the_same_form() -> None:
    """dcap-qvl reads our JSON and we read its, without a difference."""
    assert Collateral.from_json(through_json(SAMPLE.to_json())) == SAMPLE


def test_the_span_is_the_narrowest_part() -> None:
    """Without peculiarities all parts share one window, aware and in UTC."""
    assert (SAMPLE.valid_from, SAMPLE.valid_until) == (at(ISSUE), at(NEXT))
    assert SAMPLE.valid_from.tzinfo is timezone.utc


@pytest.mark.parametrize("part", NARROWED)
def test_each_part_can_narrow_the_span(part: str) -> None:
    """Bodies and CRLs each move the span's start and end."""
    collateral = PKI.collateral(NOW, NARROWED[part])
    assert (collateral.valid_from, collateral.valid_until) == (at(ISSUE + 60), at(NEXT - 60))


def test_certificates_can_narrow_the_span() -> None:
    """A certificate that ends first ends the collateral."""
    config = PkiConfig(not_before=at(ISSUE + 5), not_after=at(NEXT - 5))
    collateral = SimulatedPki(bytes(32), config=config).collateral(NOW)
    assert (collateral.valid_from, collateral.valid_until) == (at(ISSUE + 5), at(NEXT - 5))


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_named(name: str) -> None:
    """JSON without one of the nine fields is refused by that field's name."""
    with pytest.raises(CollateralError, match=f"lacks {name}$"):
        Collateral.from_json(changed(**{name: ...}))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, 7, [], {}, True, ""])
def test_a_field_of_another_kind_is_named(name: str, value: object) -> None:
    """Anything but a string, or an empty one, is refused by the field's name."""
    with pytest.raises(CollateralError, match=f"^{name} "):
        Collateral.from_json(changed(**{name: value}))


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("value", ["0", "zz", "0x00", "\u0660\u0660"])
def test_bad_hex_is_named(name: str, value: str) -> None:
    """What is no hex is refused by the field's name."""
    with pytest.raises(CollateralError, match=f"^{name} is not hex$"):
        Collateral.from_json(changed(**{name: value}))


@pytest.mark.parametrize("name", FIELDS)
def test_an_oversized_field_is_named(name: str) -> None:
    """A field over 1 MiB is refused, one of just that size is not (signatures aside)."""
    limit = 1 << 20
    unit = "00" if name in BINARY else "x"
    with pytest.raises(CollateralError, match=f"^{name} has {limit + 1} bytes"):
        Collateral.from_json(changed(**{name: unit * (limit + 1)}))
    if not name.endswith("_signature"):
        assert len(getattr(Collateral.from_json(changed(**{name: unit * limit})), name)) == limit


@pytest.mark.parametrize("size", [63, 65])
@pytest.mark.parametrize("name", ["tcb_info_signature", "qe_identity_signature"])
def test_a_signature_has_64_bytes(name: str, size: int) -> None:
    """A signature of another size is refused by its field's name."""
    with pytest.raises(CollateralError, match=f"^{name} has {size} bytes, not 64$"):
        with_field(name, bytes(size))


def test_wrong_types_are_refused_without_json_too() -> None:
    """The constructor takes bytes and text only where they belong."""
    with pytest.raises(CollateralError, match=r"^pck_crl is of type str, not bytes$"):
        with_field("pck_crl", SAMPLE.pck_crl.hex())
    with pytest.raises(CollateralError, match=r"^pck_crl is of type bytearray, not bytes$"):
        with_field("pck_crl", bytearray(SAMPLE.pck_crl))
    with pytest.raises(CollateralError, match=r"^tcb_info is of type bytes, not str$"):
        with_field("tcb_info", SAMPLE.tcb_info.encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "1",
        b"\xff\xfe\xfd",
        "[" * 100_000,
        '{"pck_crl": ' + "1" * 5000 + "}",
        " " * ((16 << 20) + 1),
    ],
    ids=["empty", "open", "list", "null", "number", "binary", "deep", "digits", "huge"],
)
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    """Not JSON, not an object, too deep or too large: one kind of error."""
    with pytest.raises(CollateralError):
        Collateral.from_json(text)


def test_the_optional_chain_is_kept_and_unknown_keys_are_not() -> None:
    """pck_certificate_chain survives a round trip; what nobody knows is left out."""
    collateral = Collateral.from_json(changed(pck_certificate_chain="PEM", colour="blue"))
    assert collateral.pck_certificate_chain == "PEM"
    assert Collateral.from_json(collateral.to_json()) == collateral
    assert tuple(json.loads(collateral.to_json())) == (*FIELDS, "pck_certificate_chain")
    assert Collateral.from_json(changed(pck_certificate_chain=None)) == SAMPLE
    with pytest.raises(CollateralError, match=r"^pck_certificate_chain is of type int"):
        Collateral.from_json(changed(pck_certificate_chain=5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tcb_info", "no json"),
        ("tcb_info", "[]"),
        ("tcb_info", "{}"),
        ("qe_identity", '{"issueDate":"2026-09-20T00:00:00","nextUpdate":"2026-10-20T00:00:00"}'),
        ("qe_identity", '{"issueDate":"0001-01-01T00:00:00+23:00","nextUpdate":"x"}'),
        ("qe_identity", '{"issueDate":null,"nextUpdate":3}'),
        ("root_ca_crl", b"\x30\x00"),
        ("pck_crl", b"x"),
        ("pck_crl_issuer_chain", "no pem"),
        ("tcb_info_issuer_chain", SAMPLE.tcb_info_issuer_chain[:-30]),
        (
            "qe_identity_issuer_chain",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        ),
    ],
)
def test_a_part_without_dates_is_named(name: str, value: str | bytes) -> None:
    """Where a part's dates cannot be read, the error names the field."""
    collateral = with_field(name, value)
    for attribute in ("valid_from", "valid_until"):
        with pytest.raises(CollateralError, match=f"^{name}\\b"):
            getattr(collateral, attribute)


def test_save_and_load(tmp_path: Path) -> None:
    """A saved file loads to the same value, is readable by all, and leaves nothing beside it."""
    path = tmp_path / "collateral.json"
    SAMPLE.save(path)
    assert Collateral.load(str(path)) == SAMPLE
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    SimulatedPki(bytes(32)).collateral(NOW).save(str(path))
    assert Collateral.load(path) != SAMPLE
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails half way, the old content stays and no temporary file is left."""
    path = tmp_path / "collateral.json"
    path.write_text("old")

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CollateralError, match=r"cannot write .*No space left"):
        SAMPLE.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    """Missing, malformed and unwritable files are CollateralErrors that name the file."""
    path = tmp_path / "none.json"
    with pytest.raises(CollateralError, match=r"none\.json"):
        Collateral.load(path)
    with pytest.raises(CollateralError, match=r"nowhere"):
        SAMPLE.save(tmp_path / "nowhere" / "x.json")
    path.write_text("{}")
    with pytest.raises(CollateralError, match=r"none\.json: collateral lacks pck_crl_issuer_chain"):
        Collateral.load(path)
    with pytest.raises(CollateralError):
        Collateral.load("a\0b")


def test_it_is_a_value() -> None:
    """Collateral is frozen, hashable and pickles."""
    with pytest.raises((FrozenInstanceError, AttributeError)):
        untyped(SAMPLE).tcb_info = "x"
    assert pickle.loads(pickle.dumps(SAMPLE)) == SAMPLE
    assert hash(SAMPLE) == hash(PKI.collateral(NOW))


# Letters that JSON, hex and dates are made of; all of Unicode takes seconds to set up.
texts = st.text('{}[]":,\\-0189TZafn \u0660\ud800', max_size=40)
json_values = st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2)


@settings(deadline=None)  # machines are busy
@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values | st.binary(max_size=80).map(bytes.hex))
)
def test_any_json_raises_our_errors_only(values: dict[str, object]) -> None:
    """Any values in the fields give CollateralError, or a value with or without dates."""
    try:
        collateral = Collateral.from_json(changed(**values))
        _ = collateral.valid_from
    except CollateralError:
        pass


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=40) | texts)
def test_any_text_raises_our_errors_only(text: bytes | str) -> None:
    """Any text at all is refused with CollateralError."""
    with pytest.raises(CollateralError):
        Collateral.from_json(text)


def test_json_cut_anywhere_is_refused() -> None:
    """The sample cut at any length is refused."""
    text = SAMPLE.to_json()
    for size in range(0, len(text) - 2, 37):
        with pytest.raises(CollateralError):
            Collateral.from_json(text[:size])
