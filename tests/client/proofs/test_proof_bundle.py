"""The file of a proof: what was written is read, and whatever is malformed is refused."""

import contextlib
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.proofs.proof import MAX_ANSWERS, MAX_FILE, ProofBundle
from attestkit.errors import AttestKitError, CollateralError, FormatError, UsageError
from attestkit.gpu import GpuEndorsements
from tests.client.proofs.saved_proofs import saved_proof
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

NAME: Final = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())


def small() -> ProofBundle:
    """Return a bundle without evidence."""
    return ProofBundle(
        service="attestkit",
        host="server.example",
        port=443,
        model=None,
        nonce=bytes(range(32)),
        answers=(b"answer",),
        certificate=b"certificate",
        sealed=False,
        at=datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=timezone.utc),
        collateral=(None,),
    )


def changed(**values: object) -> str:
    """Return the JSON of a bundle with other members; `...` removes one."""
    members: dict[str, Any] = json.loads(small().to_json())
    members.update(values)
    return json.dumps({name: value for name, value in members.items() if value is not ...})


def test_real_bundle_survives_a_file(tmp_path: Path) -> None:
    """Of a proof of a simulated TD, with collateral; the file is the user's alone."""
    bundle = saved_proof().proof.bundle
    path = tmp_path / "proof.json"
    bundle.save(path)
    assert ProofBundle.load(path) == bundle
    assert path.stat().st_mode & 0o777 == 0o600
    assert bundle.collateral[0] is not None
    assert bundle.seen is not None
    assert bundle.seen.spki_sha256 == saved_proof().proof.bindings[0].key


@pytest.mark.slow
@given(
    st.builds(
        ProofBundle,
        service=NAME,
        host=NAME,
        port=st.integers(1, 65535),
        model=st.none() | NAME,
        nonce=st.binary(min_size=32, max_size=32),
        answers=st.lists(st.binary(max_size=40), max_size=MAX_ANSWERS).map(tuple),
        certificate=st.none() | st.binary(max_size=40),
        sealed=st.booleans(),
        at=st.datetimes(timezones=st.just(timezone.utc)),
        collateral=st.lists(st.none(), max_size=3).map(tuple),
        gpu_endorsements=st.lists(
            st.none() | st.builds(GpuEndorsements, ocsp=st.tuples(st.binary(min_size=1))),
            max_size=3,
        ).map(tuple),
    )
)
def test_bundles_survive(bundle: ProofBundle) -> None:
    """All values of all fields."""
    assert ProofBundle.from_json(bundle.to_json()) == bundle
    assert ProofBundle.from_json(bundle.to_json().encode()) == bundle


def test_every_cut_is_refused() -> None:
    """No beginning of the file is a bundle."""
    text = small().to_json().rstrip()
    for length in range(len(text)):
        with pytest.raises(FormatError):
            ProofBundle.from_json(text[:length])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_changed_bytes_are_read_or_refused(at: int, change: int) -> None:
    """A changed byte gives another bundle, or an error of attestkit."""
    data = bytearray(small().to_json().encode())
    data[at % len(data)] ^= change
    with contextlib.suppress(AttestKitError):
        ProofBundle.from_json(bytes(data)).to_json()


@every_case(
    ("values", "reason"),
    [
        ({"version": 2}, "unsupported_version"),
        ({"version": True}, "unsupported_version"),
        ({"version": ...}, "unsupported_version"),
        ({"nonce": ...}, "missing"),
        ({"extra": 1}, "unknown_field"),
        ({"service": ""}, "wrong_size"),
        ({"service": "x" * 101}, "wrong_size"),
        ({"service": 1}, "wrong_type"),
        ({"host": None}, "missing"),
        ({"host": "x" * 254}, "wrong_size"),
        ({"port": 0}, "wrong_value"),
        ({"port": 65536}, "wrong_value"),
        ({"port": True}, "wrong_value"),
        ({"port": 443.0}, "wrong_value"),
        ({"model": ""}, "wrong_size"),
        ({"nonce": "00"}, "wrong_size"),
        ({"nonce": "g" * 64}, "encoding"),
        ({"answers": {}}, "wrong_type"),
        ({"answers": [""] * (MAX_ANSWERS + 1)}, "too_many"),
        ({"answers": ["A"]}, "encoding"),
        ({"certificate": "=="}, "encoding"),
        ({"certificate": 1}, "wrong_type"),
        ({"sealed": 0}, "wrong_type"),
        ({"at": "2026-11-01T00:00:00"}, "wrong_value"),
        ({"at": "yesterday"}, "wrong_value"),
        ({"at": 0}, "wrong_value"),
        ({"at": "0001-01-01T00:00:00+23:00"}, "wrong_value"),
        ({"at": "9999-12-31T23:59:59-23:00"}, "wrong_value"),
        ({"collateral": None}, "wrong_type"),
        ({"collateral": [[]]}, "wrong_type"),
        ({"collateral": [None] * 65}, "too_many"),
        ({"gpu_endorsements": None}, "wrong_type"),
        ({"gpu_endorsements": [[]]}, "wrong_type"),
        ({"gpu_endorsements": [None] * 65}, "too_many"),
    ],
)
def test_malformed_members(values: dict[str, object], reason: str) -> None:
    """Each member has its type and its bounds; errors begin with the document and the member."""
    (name,) = values
    with raises(FormatError, reason, start="proof bundle: ", part=name):
        ProofBundle.from_json(changed(**values))


def test_malformed_collateral() -> None:
    """It is refused as collateral is."""
    with pytest.raises(CollateralError):
        ProofBundle.from_json(changed(collateral=[{}]))
    with raises(CollateralError, "malformed"):
        ProofBundle.from_json(changed(gpu_endorsements=[{}]))


def test_other_json_is_refused() -> None:
    """Lists, doubled names, and files over the limit."""
    with raises(FormatError, "wrong_type"):
        ProofBundle.from_json("[]")
    with raises(FormatError, "duplicate"):
        ProofBundle.from_json('{"version":1,"version":1}')
    with raises(FormatError, "too_large"):
        ProofBundle.from_json(b" " * (MAX_FILE + 1))


def test_values_are_checked() -> None:
    """A bundle that a program makes has a whole nonce and a time zone."""
    with raises(UsageError, "wrong_size"):
        replace(small(), nonce=b"short")
    with raises(UsageError, "wrong_value"):
        replace(small(), at=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


def test_times_are_utc() -> None:
    """Another time zone is the same time."""
    bundle = replace(small(), at=small().at.astimezone(timezone(timedelta(hours=5))))
    assert ProofBundle.from_json(bundle.to_json()).at == small().at


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "proof.json"
    with raises(UsageError, "cannot_read", start=str(path)):
        ProofBundle.load(path)
    path.write_text("{}")
    with raises(FormatError, "unsupported_version", start=str(path)):
        ProofBundle.load(path)
    with raises(UsageError, "cannot_write"):
        small().save(tmp_path / "missing" / "proof.json")
    with pytest.raises(AttestKitError):
        untyped(ProofBundle).load(tmp_path)
