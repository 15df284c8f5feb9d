"""Tests of Collateral: its nine fields in JSON and files, its validity, and errors by field."""

import json
import pickle
import stat
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

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
from tests.backends.simulator.simulated_cases import NOW, SEED, VECTOR_PKI
from tests.clients.python_dcap_qvl import through_json
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import SHARED, needs_shared

VECTOR = SHARED / "vectors" / "simulated-pki" / "collateral.json"
HARDWARE = SHARED / "data" / "quotes" / "dcap-qvl"
ISSUE, NEXT = 1789862400, 1792454400
PKI = SimulatedPki(SEED, config=VECTOR_PKI)
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


def to_datetime(seconds: int) -> datetime:
    """Return the aware datetime of Unix seconds."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def replace_field(name: str, value: Any) -> Collateral:
    """Return the sample with one field replaced."""
    return replace(SAMPLE, **{name: value})


def fill(name: str) -> str:
    """Return the text of one byte or character of a field."""
    return "00" if name in BINARY else "x"


def edit_json(**values: object) -> str:
    """Return the sample's JSON with fields replaced; an Ellipsis removes the field."""
    fields: dict[str, Any] = {**json.loads(SAMPLE.to_json()), **values}
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


@needs_shared
def test_collateral_vector_round_trip() -> None:
    """The shared vector has the expected fields, and is written byte for byte."""
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
def test_load_intel_collateral(name: str, start: str, end: str) -> None:
    """Intel's collateral loads, and its validity matches the dates that openssl prints."""
    collateral = Collateral.load(HARDWARE / f"{name}_quote_collateral.json")
    assert collateral.valid_from.strftime("%Y-%m-%dT%H:%M:%SZ") == start
    assert collateral.valid_until.strftime("%Y-%m-%dT%H:%M:%SZ") == end


def test_json_round_trip_through_dcap_qvl() -> None:
    """dcap-qvl and attestkit read each other's JSON."""
    assert Collateral.from_json(through_json(SAMPLE.to_json())) == SAMPLE


def test_validity_is_aware_utc() -> None:
    """The validity is aware, in UTC, and the window that all parts share by default."""
    assert (SAMPLE.valid_from, SAMPLE.valid_until) == (to_datetime(ISSUE), to_datetime(NEXT))
    assert SAMPLE.valid_from.tzinfo is timezone.utc


@every_case("part", NARROWED)
def test_validity_is_narrowed_by_each_part(part: str) -> None:
    """Each body and CRL can narrow the validity."""
    collateral = PKI.collateral(NOW, NARROWED[part])
    assert (collateral.valid_from, collateral.valid_until) == (
        to_datetime(ISSUE + 60),
        to_datetime(NEXT - 60),
    )


def test_validity_is_narrowed_by_certificates() -> None:
    """Certificates can narrow the validity."""
    config = PkiConfig(not_before=to_datetime(ISSUE + 5), not_after=to_datetime(NEXT - 5))
    collateral = SimulatedPki(bytes(32), config=config).collateral(NOW)
    assert (collateral.valid_from, collateral.valid_until) == (
        to_datetime(ISSUE + 5),
        to_datetime(NEXT - 5),
    )


LIMIT = 1 << 20  # bytes or characters of a field
NOT_TEXT: tuple[object, ...] = (None, 7, [], {}, True)
INVALID_FIELDS: list[tuple[str, object, str]] = [
    *((name, ..., "missing") for name in FIELDS),
    *((name, "", "missing") for name in FIELDS),
    *((name, value, "malformed") for name in FIELDS for value in NOT_TEXT),
    *((name, hexed, "malformed") for name in BINARY for hexed in ("0", "zz", "0x00", "\u0660" * 2)),
    *((name, fill(name) * (LIMIT + 1), "too_large") for name in FIELDS),
]


@every_case(("name", "value", "reason"), INVALID_FIELDS, ids=range(len(INVALID_FIELDS)))
def test_from_json_invalid_field_is_named(name: str, value: object, reason: str) -> None:
    """The error names a field that is missing, empty, of another type, not hex or over 1 MiB."""
    subject = "collateral" if value is ... else name
    with raises(CollateralError, reason, start=f"{subject}: ", part=name):
        Collateral.from_json(edit_json(**{name: value}))


@every_case("name", [name for name in FIELDS if not name.endswith("_signature")])
def test_from_json_field_of_1_mib_is_accepted(name: str) -> None:
    """A field may have 1 MiB, except signatures."""
    collateral = Collateral.from_json(edit_json(**{name: fill(name) * LIMIT}))
    assert len(getattr(collateral, name)) == LIMIT


@every_case("size", [63, 65])
@every_case("name", ["tcb_info_signature", "qe_identity_signature"])
def test_collateral_signature_must_have_64_bytes(name: str, size: int) -> None:
    """The error names a signature that does not have 64 bytes."""
    with raises(CollateralError, "malformed", start=f"{name}: "):
        replace_field(name, bytes(size))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pck_crl", SAMPLE.pck_crl.hex()),
        ("pck_crl", bytearray(SAMPLE.pck_crl)),
        ("tcb_info", SAMPLE.tcb_info.encode()),
    ],
)
def test_constructor_wrong_type_is_named(name: str, value: object) -> None:
    """The error of the constructor names a field of a wrong type."""
    with raises(CollateralError, "malformed", start=f"{name}: "):
        replace_field(name, value)


@every_case(
    ("text", "reason"),
    [
        ("[]", "malformed"),
        (b"\xff\xfe\xfd", "malformed"),
        ("[" * 100_000, "malformed"),
        ('{"pck_crl": ' + "1" * 5000 + "}", "malformed"),
        (" " * ((16 << 20) + 1), "too_large"),
    ],
    ids=range(5),
)
def test_collateral_from_json_invalid_text_raises_collateral_error(
    text: str | bytes, reason: str
) -> None:
    """Text that is not one JSON object within the limits raises CollateralError."""
    with raises(CollateralError, reason, start="collateral: ") as caught:
        Collateral.from_json(text)
    assert str(caught.value).count("collateral: ") == 1


def test_from_json_keeps_pck_chain_and_ignores_unknown_fields() -> None:
    """`pck_certificate_chain` survives a round trip; unknown fields are ignored."""
    collateral = Collateral.from_json(edit_json(pck_certificate_chain="PEM", colour="blue"))
    assert collateral.pck_certificate_chain == "PEM"
    assert Collateral.from_json(collateral.to_json()) == collateral
    assert tuple(json.loads(collateral.to_json())) == (*FIELDS, "pck_certificate_chain")
    assert Collateral.from_json(edit_json(pck_certificate_chain=None)) == SAMPLE
    with raises(CollateralError, "malformed", start="pck_certificate_chain: "):
        Collateral.from_json(edit_json(pck_certificate_chain=5))


@every_case(
    ("name", "value"),
    [
        ("tcb_info", "no json"),
        ("tcb_info", "[]"),
        ("qe_identity", '{"issueDate":"2026-09-20T00:00:00","nextUpdate":"2026-10-20T00:00:00"}'),
        ("qe_identity", '{"issueDate":"0001-01-01T00:00:00+23:00","nextUpdate":"x"}'),
        ("root_ca_crl", b"\x30\x00"),
        ("pck_crl", b"x"),
        ("pck_crl_issuer_chain", "no pem"),
        ("tcb_info_issuer_chain", SAMPLE.tcb_info_issuer_chain[:-30]),
    ],
)
def test_validity_of_part_without_dates_is_named(name: str, value: str | bytes) -> None:
    """The error names a part whose dates cannot be read."""
    collateral = replace_field(name, value)
    for attribute in ("valid_from", "valid_until"):
        with raises(CollateralError, "malformed", start=f"{name}: "):
            getattr(collateral, attribute)


def test_collateral_save_and_load(tmp_path: Path) -> None:
    """A saved file is world-readable, loads to an equal value, and leaves no temporary file."""
    path = tmp_path / "collateral.json"
    SAMPLE.save(path)
    assert Collateral.load(str(path)) == SAMPLE
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    SimulatedPki(bytes(32)).collateral(NOW).save(str(path))
    assert Collateral.load(path) != SAMPLE
    assert list(tmp_path.iterdir()) == [path]


def test_collateral_file_errors_name_file(tmp_path: Path) -> None:
    """Missing, malformed and unwritable files raise CollateralError with the path."""
    path = tmp_path / "none.json"
    with raises(CollateralError, "unreadable", start=f"{path}: "):
        Collateral.load(path)
    folder = tmp_path / "nowhere"
    with raises(CollateralError, "unwritable", start=f"{folder}/x.json: "):
        SAMPLE.save(folder / "x.json")
    path.write_text("{}")
    with raises(CollateralError, "missing", start=f"{path}: "):
        Collateral.load(path)
    with raises(CollateralError, "unreadable"):
        Collateral.load("a\0b")


def test_collateral_is_immutable_value() -> None:
    """Collateral is immutable, hashable and picklable."""
    with pytest.raises((FrozenInstanceError, AttributeError)):
        untyped(SAMPLE).tcb_info = "x"
    assert pickle.loads(pickle.dumps(SAMPLE)) == SAMPLE
    assert hash(SAMPLE) == hash(PKI.collateral(NOW))
    assert SAMPLE.tcb_info not in repr(SAMPLE)


def test_collateral_failed_save_keeps_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk is full, the old file is kept, and no temporary file is left."""
    path = tmp_path / "collateral.json"
    path.write_text("old")

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with raises(CollateralError, "unwritable"):
        SAMPLE.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
