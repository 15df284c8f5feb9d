"""Tests of EvidenceBundle: its JSON, its files, and its verification."""

import json
import pickle
import stat
from base64 import b64encode
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    SignatureError,
    UsageError,
)
from attestkit.verifier import Verifier
from attestkit.verifier.ear import sign_ear
from attestkit.verifier.evidence.formats import BUNDLE_TIME, EvidenceBundle
from tests.raising import raises, repeated_subjects
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.ear import ears
from tests.verifier.platforms import intel

NOW: Final = 1790000000
COLLATERAL: Final = SimulatedPki(bytes(32)).collateral(NOW)
TIME: Final = datetime.fromtimestamp(NOW, timezone.utc)
EVIDENCE: Final = bytes(range(256))
SAMPLE: Final = EvidenceBundle(EVIDENCE, COLLATERAL, TIME, b"nonce")
FIELDS: Final[dict[str, Any]] = json.loads(SAMPLE.to_json())


def edit_json(**values: object) -> str:
    """Return the sample's JSON with members replaced; an Ellipsis removes the member."""
    return json.dumps({n: v for n, v in {**FIELDS, **values}.items() if v is not ...})


def test_to_json_writes_five_members() -> None:
    """The JSON has a version, base64 evidence, collateral, an ISO 8601 time and hex report data."""
    assert {
        "version": 1,
        "evidence": b64encode(EVIDENCE).decode(),
        "collateral": None,
        "at": "2026-09-21T14:13:20Z",
        "report_data": b"nonce".hex(),
    } == {**FIELDS, "collateral": None}
    assert FIELDS["collateral"] == json.loads(COLLATERAL.to_json())


@pytest.mark.parametrize(
    "bundle",
    [
        SAMPLE,
        EvidenceBundle(b"x", None, TIME, None),
        EvidenceBundle(b"x", COLLATERAL, TIME, b""),
        EvidenceBundle(b"x", None, TIME.astimezone(timezone(timedelta(hours=-9, minutes=30)))),
        EvidenceBundle(b"x", None, TIME + timedelta(microseconds=1)),
        EvidenceBundle(b"x", None, datetime.max.replace(tzinfo=timezone.utc)),
        EvidenceBundle(b"x", None, datetime.min.replace(tzinfo=timezone.utc)),
    ],
    ids=["sample", "bare", "empty-nonce", "zone", "microsecond", "latest", "earliest"],
)
def test_bundle_round_trip_through_json_and_files(bundle: EvidenceBundle, tmp_path: Path) -> None:
    """Text, bytes, bytes with a BOM, and a file give the same bundle."""
    text = bundle.to_json()
    assert EvidenceBundle.from_json(text) == bundle
    assert EvidenceBundle.from_json(b"\xef\xbb\xbf" + text.encode()) == bundle
    bundle.save(tmp_path / "b.json")
    assert EvidenceBundle.load(str(tmp_path / "b.json")) == bundle
    assert EvidenceBundle.from_json(text).to_json() == text


@pytest.mark.parametrize("at", ["2026-09-21T14:13:20+00:00", "2026-09-21T16:13:20.000+02:00"])
def test_from_json_accepts_any_utc_offset(at: str) -> None:
    """`at` may have any UTC offset."""
    assert EvidenceBundle.from_json(edit_json(at=at)) == SAMPLE


@every_case(
    ("values", "reason", "subject"),
    [
        ({"version": 2}, "unsupported_version", "version"),
        ({"version": True}, "unsupported_version", "version"),
        ({"version": ...}, "missing", "version"),
        ({"evidence": ...}, "missing", "evidence"),
        ({"collateral": ...}, "missing", "collateral"),
        ({"at": ...}, "missing", "at"),
        ({"report_data": ...}, "missing", "report_data"),
        ({"colour": "blue"}, "unknown_field", "'colour'"),
        ({"evidence": ""}, "wrong_size", "evidence"),
        ({"evidence": "AB=="}, "encoding", "evidence"),
        ({"evidence": "QUJ"}, "encoding", "evidence"),
        ({"evidence": None}, "missing", "evidence"),
        ({"evidence": b64encode(bytes((10 << 20) + 1)).decode()}, "wrong_size", "evidence"),
        ({"collateral": []}, "wrong_type", "collateral"),
        ({"collateral": {}}, "missing", "pck_crl_issuer_chain"),
        ({"collateral": {**FIELDS["collateral"], "colour": "x"}}, "unknown_field", "'colour'"),
        ({"at": "2026-09-21T14:13:20"}, "wrong_value", "time zone"),
        ({"at": "yesterday"}, "wrong_value", "at"),
        ({"at": "0001-01-01T00:00:00+01:00"}, "wrong_value", "years"),
        ({"at": NOW}, "wrong_type", "at"),
        ({"report_data": "0"}, "encoding", "report_data"),
        ({"report_data": "00" * 65}, "wrong_size", "report_data"),
    ],
)
def test_from_json_invalid_member_is_named(
    values: dict[str, object], reason: str, subject: str
) -> None:
    """The error names an invalid, unknown or missing member."""
    with raises(FormatError, reason, part=subject) as caught:
        EvidenceBundle.from_json(edit_json(**values))
    assert not repeated_subjects(caught.value)


@every_case(
    "text",
    [
        b"\xff\xfe",
        SAMPLE.to_json().encode("utf-16"),
        "[" * 100_000,
        '{"version":' + "1" * 5000 + "}",
        " " * ((32 << 20) + 1),
        SAMPLE.to_json().replace('"at"', '"evidence": "QQ==", "at"'),
        SAMPLE.to_json().replace('"pck_crl"', '"pck_crl": "00", "pck_crl"'),
        SAMPLE.to_json()[:-3],
    ],
    ids=range(8),
)
def test_from_json_invalid_text_raises_format_error(text: str | bytes) -> None:
    """Text that is not one JSON object within the limits raises FormatError."""
    with pytest.raises(FormatError):
        EvidenceBundle.from_json(text)


@every_case(
    ("create", "reason", "subject"),
    [
        (lambda: EvidenceBundle(untyped("x"), None, TIME), "wrong_type", "evidence"),
        (lambda: EvidenceBundle(b"", None, TIME), "wrong_size", "evidence"),
        (lambda: EvidenceBundle(bytes((10 << 20) + 1), None, TIME), "wrong_size", "evidence"),
        (lambda: EvidenceBundle(b"x", untyped({}), TIME), "wrong_type", "collateral"),
        (lambda: EvidenceBundle(b"x", None, untyped(NOW)), "wrong_type", "at"),
        (lambda: EvidenceBundle(b"x", None, TIME.replace(tzinfo=None)), "wrong_value", "at"),
        (lambda: EvidenceBundle(b"x", None, TIME, untyped("00")), "wrong_type", "report_data"),
        (lambda: EvidenceBundle(b"x", None, TIME, bytes(65)), "wrong_size", "report_data"),
    ],
)
def test_constructor_invalid_value_is_named(
    create: Callable[[], object], reason: str, subject: str
) -> None:
    """A value of a wrong type or size raises UsageError that names the argument."""
    with raises(UsageError, reason, start=f"{subject}: "):
        create()
    assert EvidenceBundle(bytes(10 << 20), None, TIME, bytes(64)).report_data == bytes(64)


def test_save_is_private_and_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved file is readable by its owner only, complete or absent, and named in errors."""
    path = tmp_path / "b.json"
    SAMPLE.save(path)
    assert EvidenceBundle.load(path) == SAMPLE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with raises(UsageError, "cannot_write"):
            EvidenceBundle(b"other", None, TIME).save(path)
    assert EvidenceBundle.load(path) == SAMPLE
    assert list(tmp_path.iterdir()) == [path]
    with raises(UsageError, "cannot_write"):
        SAMPLE.save(tmp_path / "none" / "b.json")
    for unreadable in (tmp_path / "none.json", "a\0b"):
        with raises(UsageError, "cannot_read"):
            EvidenceBundle.load(unreadable)
    path.write_text("{}")
    with raises(FormatError, "missing", start=f"{path}: "):
        EvidenceBundle.load(path)


def test_bundle_is_immutable_value() -> None:
    """A bundle is immutable, hashable and picklable, and its repr omits the evidence."""
    with pytest.raises((FrozenInstanceError, AttributeError)):
        untyped(SAMPLE).at = TIME
    assert pickle.loads(pickle.dumps(SAMPLE)) == SAMPLE
    assert hash(SAMPLE) == hash(EvidenceBundle(EVIDENCE, COLLATERAL, TIME, b"nonce"))
    assert repr(EVIDENCE) not in repr(SAMPLE)


# -- verification ----------------------------------------------------------------------------------

GENUINE: Final = intel.evidence()


def create_bundle(evidence: bytes, **fields: Any) -> EvidenceBundle:
    """Return a bundle saved at the time of the evidence."""
    defaults = {"collateral": intel.collateral(), "at": intel.NOW, "report_data": intel.NONCE}
    return EvidenceBundle(evidence, **{**defaults, **fields})


def create_offline_verifier(**options: Any) -> Verifier:
    """Return a verifier whose getter fails, and whose clock is years ahead."""
    defaults = {"collateral": None, "pccs_url": "http://pccs", "getter": intel.no_network}
    return intel.verifier(**{**defaults, "clock": lambda: TIME + timedelta(days=4000), **options})


@pytest.mark.parametrize("encoding", ["v1", "cbor", "quote"])
def test_verify_bundle_is_offline(encoding: str) -> None:
    """A bundle verifies with its own collateral, without network."""
    assert GENUINE.quote is not None
    raw = GENUINE.quote.raw if encoding == "quote" else GENUINE.to_bytes(untyped(encoding))
    verifier = create_offline_verifier(clock=intel.fixed_clock)
    found = verifier.verify_bundle(create_bundle(raw), report_data=intel.NONCE)
    assert found.verified_at == intel.NOW
    assert found == intel.verifier().verify(raw, report_data=intel.NONCE)


def test_verify_bundle_requires_explicit_report_data() -> None:
    """The bundle's own report data is not trusted: the caller must pass the expected value."""
    bundle = create_bundle(GENUINE.to_bytes(), report_data=b"other")
    verifier = create_offline_verifier(clock=intel.fixed_clock)
    assert verifier.verify_bundle(bundle, report_data=intel.NONCE).bound_to == "report_data"
    found = verifier.verify_bundle(bundle, report_data=None)
    assert any("freshness was not checked" in step.text for step in found.steps)
    with raises(PolicyError, "report_data"):
        verifier.verify_bundle(create_bundle(GENUINE.to_bytes()), report_data=b"other")
    with raises(UsageError, "missing"):
        untyped(verifier).verify_bundle(bundle)


@pytest.mark.parametrize("at", [intel.NOW, TIME + timedelta(days=400)])
def test_verify_bundle_does_not_choose_its_instant(at: datetime) -> None:
    """Expired collateral is refused, whatever time the bundle names; `now` is the caller's."""
    bundle = create_bundle(GENUINE.to_bytes(), at=at)
    with pytest.raises(CollateralExpiredError):
        create_offline_verifier().verify_bundle(bundle, report_data=intel.NONCE)
    now = intel.NOW + timedelta(minutes=1)
    found = create_offline_verifier().verify_bundle(bundle, report_data=intel.NONCE, now=now)
    assert found.verified_at == now
    assert all(step.check != "verification_time" for step in found.steps)


def test_verify_bundle_at_its_time_is_a_caution_and_not_signed() -> None:
    """The bundle's time must be requested; the result has a caution, and is not signed."""
    verifier, bundle = create_offline_verifier(), create_bundle(GENUINE.to_bytes())
    found = verifier.verify_bundle(bundle, report_data=intel.NONCE, use_bundle_time=True)
    assert found.verified_at == intel.NOW
    assert found.steps[0] == BUNDLE_TIME
    assert BUNDLE_TIME.outcome == "caution"
    for now in (None, intel.NOW, TIME + timedelta(days=4000)):
        with raises(UsageError, "conflict"):
            sign_ear(found, ears.ED25519, now=now)
    with raises(UsageError, "conflict"):
        verifier.verify_bundle(bundle, report_data=intel.NONCE, use_bundle_time=True, now=intel.NOW)


def test_verify_bundle_at_its_time_by_now_is_a_caution_and_not_signed() -> None:
    """The bundle's time is its creator's choice however it is passed; the clock's time is not."""
    bundle = create_bundle(GENUINE.to_bytes(), at=intel.NOW + timedelta(milliseconds=250))
    for now in (bundle.at, bundle.at.timestamp(), intel.NOW, int(bundle.at.timestamp())):
        found = create_offline_verifier().verify_bundle(bundle, report_data=intel.NONCE, now=now)
        assert BUNDLE_TIME in found.steps
        with raises(UsageError, "conflict"):
            sign_ear(found, ears.ED25519)
    verifier = create_offline_verifier(clock=lambda: bundle.at)
    found = verifier.verify_bundle(bundle, report_data=intel.NONCE)
    assert BUNDLE_TIME not in found.steps


def test_verify_bundle_without_collateral_raises_collateral_error() -> None:
    """Missing collateral is neither fetched nor replaced by the verifier's."""
    bundle = create_bundle(GENUINE.to_bytes(), collateral=None)
    for verifier in (create_offline_verifier(), intel.verifier()):
        with raises(CollateralError, "missing"):
            verifier.verify_bundle(bundle, report_data=intel.NONCE)
    with pytest.raises(FormatError):
        create_offline_verifier().verify_bundle(
            create_bundle(b"x", collateral=None), report_data=intel.NONCE
        )


def test_verify_bundle_altered_collateral_is_not_fetched() -> None:
    """Altered collateral is rejected without a fetch."""
    other = SimulatedPki(bytes(32)).collateral(intel.NOW.timestamp())
    with pytest.raises(SignatureError):
        create_offline_verifier().verify_bundle(
            create_bundle(GENUINE.to_bytes(), collateral=other),
            report_data=intel.NONCE,
            now=intel.NOW,
        )


def test_verify_and_verify_bundle_reject_each_others_input() -> None:
    """A bundle passed to `verify`, or evidence to `verify_bundle`, raises UsageError."""
    bundle: Any = create_bundle(GENUINE.to_bytes())
    with raises(UsageError, "wrong_type"):
        create_offline_verifier().verify(bundle, report_data=intel.NONCE)
    evidence: Any = GENUINE.to_bytes()
    with raises(UsageError, "wrong_type"):
        create_offline_verifier().verify_bundle(evidence, report_data=intel.NONCE)
