"""A bundle keeps evidence, collateral and instant together, and refuses what it does not know."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

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
from attestkit.verifier.evidence_bundle import EvidenceBundle
from tests.untyped import untyped
from tests.verifier import parcels

NOW: Final = 1790000000
COLLATERAL: Final = SimulatedPki(bytes(32)).collateral(NOW)
AT: Final = datetime.fromtimestamp(NOW, timezone.utc)
EVIDENCE: Final = bytes(range(256))
SAMPLE: Final = EvidenceBundle(EVIDENCE, COLLATERAL, AT, b"nonce")
FIELDS: Final[dict[str, Any]] = json.loads(SAMPLE.to_json())


def changed(**values: object) -> str:
    """Return the sample's JSON with some members replaced; an Ellipsis drops the member."""
    return json.dumps({n: v for n, v in {**FIELDS, **values}.items() if v is not ...})


def test_the_json_is_what_the_module_says() -> None:
    """Five members: a version, base64, the nine fields, ISO 8601, hex."""
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
        EvidenceBundle(b"x", None, AT, None),
        EvidenceBundle(b"x", COLLATERAL, AT, b""),
        EvidenceBundle(bytes(10 << 20), COLLATERAL, AT, bytes(64)),
        EvidenceBundle(b"x", None, AT.astimezone(timezone(timedelta(hours=-9, minutes=30)))),
        EvidenceBundle(b"x", None, AT + timedelta(microseconds=1)),
        EvidenceBundle(b"x", None, datetime.max.replace(tzinfo=timezone.utc)),
        EvidenceBundle(b"x", None, datetime.min.replace(tzinfo=timezone.utc)),
    ],
    ids=["sample", "bare", "empty-nonce", "largest", "zone", "microsecond", "latest", "earliest"],
)
def test_it_comes_back_from_json_and_files(bundle: EvidenceBundle, tmp_path: Path) -> None:
    """Text, bytes, bytes with a mark in front, and a file give the same bundle."""
    text = bundle.to_json()
    assert EvidenceBundle.from_json(text) == bundle
    assert EvidenceBundle.from_json(b"\xef\xbb\xbf" + text.encode()) == bundle
    bundle.save(tmp_path / "b.json")
    assert EvidenceBundle.load(str(tmp_path / "b.json")) == bundle
    assert EvidenceBundle.from_json(text).to_json() == text


@pytest.mark.parametrize("at", ["2026-09-21T14:13:20+00:00", "2026-09-21T16:13:20.000+02:00"])
def test_other_zones_are_the_same_instant(at: str) -> None:
    """An instant may be written with any offset."""
    assert EvidenceBundle.from_json(changed(at=at)) == SAMPLE


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"version": 2}, "version 1 only"),
        ({"version": "1"}, "version 1 only"),
        ({"version": True}, "version 1 only"),
        ({"version": 1.0}, "version 1 only"),
        ({"version": 2, "colour": 1}, "version 1 only"),
        ({"version": ...}, "an evidence bundle lacks version"),
        ({"evidence": ...}, "an evidence bundle lacks evidence"),
        ({"collateral": ...}, "an evidence bundle lacks collateral"),
        ({"at": ...}, "an evidence bundle lacks at"),
        ({"report_data": ...}, "an evidence bundle lacks report_data"),
        ({"colour": "blue"}, "a member that is not known: 'colour'"),
        ({"evidence": ""}, "evidence has 0 bytes, not 1 to"),
        ({"evidence": "AB=="}, "evidence is not base64"),
        ({"evidence": "QUJD\n"}, "evidence is not base64"),
        ({"evidence": "QUJ"}, "evidence is not base64"),
        ({"evidence": "é"}, "evidence is not base64"),
        ({"evidence": None}, "evidence is not base64"),
        ({"evidence": b64encode(bytes((10 << 20) + 1)).decode()}, "evidence has 10485761 bytes"),
        ({"collateral": []}, "collateral is neither an object nor null"),
        ({"collateral": "x"}, "collateral is neither an object nor null"),
        ({"collateral": {}}, "collateral: collateral lacks pck_crl_issuer_chain"),
        (
            {"collateral": {**FIELDS["collateral"], "pck_crl": "x"}},
            "collateral: pck_crl is not hex",
        ),
        (
            {"collateral": {**FIELDS["collateral"], "colour": "x"}},
            "collateral has a member that is not known: 'colour'",
        ),
        ({"at": "2026-09-21T14:13:20"}, "at has no time zone"),
        ({"at": "2026-09-21"}, "at has no time zone"),
        ({"at": "yesterday"}, "at is not a time"),
        ({"at": "0001-01-01T00:00:00+01:00"}, "at is outside the years"),
        ({"at": NOW}, "at is not a time"),
        ({"at": None}, "at is not a time"),
        ({"report_data": "0"}, "report_data is not hex"),
        ({"report_data": "0x00"}, "report_data is not hex"),
        ({"report_data": 5}, "report_data is not hex"),
        ({"report_data": "00" * 65}, "report_data has 65 bytes, not 0 to 64"),
    ],
)
def test_what_is_malformed_is_named(values: dict[str, object], told: str) -> None:
    """Another version, an unknown or missing member, or one of another kind: named."""
    with pytest.raises(FormatError) as caught:
        EvidenceBundle.from_json(changed(**values))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        b"\xff\xfe",
        SAMPLE.to_json().encode("utf-16"),
        "[" * 100_000,
        '{"version":' + "1" * 5000 + "}",
        " " * ((32 << 20) + 1),
        SAMPLE.to_json().replace('"at"', '"evidence": "QQ==", "at"'),
        SAMPLE.to_json().replace('"pck_crl"', '"pck_crl": "00", "pck_crl"'),
    ],
    ids=[
        "empty",
        "open",
        "list",
        "number",
        "binary",
        "utf-16",
        "deep",
        "digits",
        "huge",
        "twice",
        "twice-inside",
    ],
)
def test_what_is_no_bundle_is_refused(text: str | bytes) -> None:
    """Not JSON, not an object, too deep or too large, or a member twice: one kind of error."""
    with pytest.raises(FormatError):
        EvidenceBundle.from_json(text)


def test_json_cut_anywhere_is_refused() -> None:
    """The sample cut at any length is refused."""
    text = SAMPLE.to_json()
    for size in range(0, len(text) - 2, 41):
        with pytest.raises(FormatError):
            EvidenceBundle.from_json(text[:size])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: EvidenceBundle(untyped("x"), None, AT), "evidence is bytes, not str"),
        (
            lambda: EvidenceBundle(untyped(bytearray(1)), None, AT),
            "evidence is bytes, not bytearray",
        ),
        (lambda: EvidenceBundle(b"", None, AT), "evidence has 0 bytes"),
        (lambda: EvidenceBundle(bytes((10 << 20) + 1), None, AT), "evidence has 10485761 bytes"),
        (lambda: EvidenceBundle(b"x", untyped({}), AT), "collateral is a Collateral, not dict"),
        (lambda: EvidenceBundle(b"x", None, untyped(NOW)), "at is a datetime, not int"),
        (lambda: EvidenceBundle(b"x", None, AT.replace(tzinfo=None)), "at has no time zone"),
        (lambda: EvidenceBundle(b"x", None, AT, untyped("00")), "report_data is bytes, not str"),
        (lambda: EvidenceBundle(b"x", None, AT, bytes(65)), "report_data has 65 bytes"),
    ],
)
def test_the_constructor_takes_what_it_says(make: Callable[[], object], told: str) -> None:
    """A value of another type or size is the caller's mistake, and named."""
    with pytest.raises(UsageError, match=told):
        make()


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is its owner's alone, whole or not there, and named in errors."""
    path = tmp_path / "b.json"
    SAMPLE.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(UsageError, match=r"cannot write .*b\.json.*No space left"):
            EvidenceBundle(b"other", None, AT).save(path)
    assert EvidenceBundle.load(path) == SAMPLE
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FormatError, match=r"cannot read .*none\.json"):
        EvidenceBundle.load(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot read"):
        EvidenceBundle.load("a\0b")
    path.write_text("{}")
    with pytest.raises(FormatError, match=r"b\.json: an evidence bundle lacks at, collateral"):
        EvidenceBundle.load(path)


def test_it_is_a_value() -> None:
    """A bundle is frozen, hashable, pickles, and shows no evidence."""
    with pytest.raises((FrozenInstanceError, AttributeError)):
        untyped(SAMPLE).at = AT
    assert pickle.loads(pickle.dumps(SAMPLE)) == SAMPLE
    assert hash(SAMPLE) == hash(EvidenceBundle(EVIDENCE, COLLATERAL, AT, b"nonce"))
    assert repr(EVIDENCE) not in repr(SAMPLE)


# Letters that JSON, hex and dates are made of; all of Unicode takes seconds to set up.
texts = st.text('{}[]":,\\-+0189TZafn \u0660\ud800', max_size=40)
json_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts, max_size=2)
)


@settings(deadline=None)  # machines are busy
@given(st.dictionaries(st.sampled_from([*FIELDS, "x"]), json_values, min_size=1))
def test_any_json_raises_our_errors_only(values: dict[str, object]) -> None:
    """Any values give FormatError, or a bundle that comes back."""
    try:
        bundle = EvidenceBundle.from_json(changed(**values))
    except FormatError:
        return
    assert EvidenceBundle.from_json(bundle.to_json()) == bundle


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=40) | texts)
def test_any_text_raises_our_errors_only(text: bytes | str) -> None:
    """Any text at all is refused with FormatError."""
    with pytest.raises(FormatError):
        EvidenceBundle.from_json(text)


# -- verified --------------------------------------------------------------------------------------

GENUINE: Final = parcels.evidence()


def bundle_of(evidence: bytes, **fields: Any) -> EvidenceBundle:
    """Return a bundle that was saved when the evidence was made."""
    given = {"collateral": parcels.collateral(), "at": parcels.NOW, "report_data": parcels.NONCE}
    return EvidenceBundle(evidence, **{**given, **fields})


def offline(**options: Any) -> Verifier:
    """Return a verifier that would fetch, and fails where it does; its clock is years late."""
    given = {"collateral": None, "pccs_url": "http://pccs", "getter": parcels.no_network}
    return parcels.verifier(**{**given, "clock": lambda: AT + timedelta(days=4000), **options})


@pytest.mark.parametrize("form", ["v1", "cbor", "quote"])
def test_a_bundle_verifies_with_the_network_off(form: str) -> None:
    """By its own collateral, at its own instant, for the report data that its judge names."""
    assert GENUINE.quote is not None
    raw = GENUINE.quote.raw if form == "quote" else GENUINE.to_bytes(untyped(form))
    found = offline().verify_bundle(bundle_of(raw), report_data=parcels.NONCE)
    assert found.verified_at == parcels.NOW
    assert found == parcels.verifier().verify(raw, report_data=parcels.NONCE)


def test_what_a_bundle_says_of_its_report_data_is_not_asked() -> None:
    """Who writes the bundle writes that too, so it must be written out."""
    bundle = bundle_of(GENUINE.to_bytes(), report_data=b"other")
    assert offline().verify_bundle(bundle, report_data=parcels.NONCE).claims.report_data
    found = offline().verify_bundle(bundle, report_data=None)
    assert any("freshness was not checked" in step for step in found.steps)
    with pytest.raises(PolicyError) as caught:
        offline().verify_bundle(bundle_of(GENUINE.to_bytes()), report_data=b"other")
    assert caught.value.reason == "report_data"
    with pytest.raises(TypeError):
        untyped(offline()).verify_bundle(bundle)


def test_another_instant() -> None:
    """The caller's takes the place of the bundle's."""
    bundle = bundle_of(GENUINE.to_bytes(), at=AT + timedelta(days=400))
    with pytest.raises(CollateralExpiredError):
        offline().verify_bundle(bundle, report_data=parcels.NONCE)
    found = offline().verify_bundle(bundle, report_data=parcels.NONCE, now=parcels.NOW)
    assert found.verified_at == parcels.NOW


def test_a_bundle_without_collateral() -> None:
    """Nothing takes its place: neither a fetch nor what the verifier was given."""
    bundle = bundle_of(GENUINE.to_bytes(), collateral=None)
    for judge in (offline(), parcels.verifier()):
        with pytest.raises(CollateralError, match="the bundle has a quote of Intel's and no coll"):
            judge.verify_bundle(bundle, report_data=parcels.NONCE)
    with pytest.raises(FormatError):
        offline().verify_bundle(bundle_of(b"x", collateral=None), report_data=parcels.NONCE)


def test_altered_collateral_in_a_bundle_is_not_fetched_anew() -> None:
    """It is refused, and that is all."""
    other = SimulatedPki(bytes(32)).collateral(parcels.NOW.timestamp())
    with pytest.raises(SignatureError):
        offline().verify_bundle(
            bundle_of(GENUINE.to_bytes(), collateral=other), report_data=parcels.NONCE
        )


def test_one_is_not_taken_for_the_other() -> None:
    """Each way says what the other is called."""
    bundle: Any = bundle_of(GENUINE.to_bytes())
    with pytest.raises(UsageError, match=r"Verifier\.verify_bundle"):
        offline().verify(bundle, report_data=parcels.NONCE)
    evidence: Any = GENUINE.to_bytes()
    with pytest.raises(UsageError, match="a bundle is an EvidenceBundle, not bytes"):
        offline().verify_bundle(evidence, report_data=parcels.NONCE)
