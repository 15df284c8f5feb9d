"""Endorsements are kept as they are, and fetched for what evidence really needs."""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer import read_ocsp_answer
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_error
from attestkit._crypto.x509.ocsp.request import read_ocsp_request
from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, GpuEvidenceError
from attestkit.gpu import DeviceEvidence, GpuEndorsements, GpuEvidence, GpuRoots, GpuServices, Rim
from attestkit.gpu.endorsement_fetcher import MAX_REQUESTS
from attestkit.gpu.endorsements import MAX_RIMS
from tests.gpu.nras.nras_tokens import answer, jwks
from tests.gpu.rim.rims import manifest, sign
from tests.pki.ocsp_pki import check_ocsp
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, data, needs_shared

FULL = GpuEndorsements({"B": b"two", "A": b"one"}, (b"x", b"y"), b"keys", (b"[]",))
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
contents = st.binary(min_size=1, max_size=30)


@given(
    st.dictionaries(names, contents, max_size=4),
    st.lists(contents, max_size=4),
    st.none() | contents,
    st.lists(contents, max_size=2),
)
def test_endorsements_json_round_trip(
    rims: dict[str, bytes], ocsp: list[bytes], jwks: bytes | None, nras: list[bytes]
) -> None:
    """All values are the same after writing and reading."""
    kept = GpuEndorsements(rims, tuple(ocsp), jwks, tuple(nras))
    assert GpuEndorsements.from_json(kept.to_json()) == kept
    assert GpuEndorsements.from_json(kept.to_json().decode()) == kept


def test_endorsements_do_not_change_with_the_callers_mapping() -> None:
    """The mapping of the caller is copied."""
    rims = {"A": b"one"}
    kept = GpuEndorsements(rims)
    rims["A"] = b"two"
    assert kept.rims == {"A": b"one"}
    assert repr(FULL) == ("<GpuEndorsements, 2 RIMs, 2 OCSP answers, 1 NRAS answers, with keys>")


def test_endorsements_load_and_save(tmp_path: Path) -> None:
    """A file has the same content; errors name it."""
    path = tmp_path / "gpu.json"
    FULL.save(path)
    assert GpuEndorsements.load(path) == FULL
    path.write_bytes(b"{}")
    with raises(CollateralError, "malformed", start=f"{path}: "):
        GpuEndorsements.load(path)
    with raises(CollateralError, "unreadable", start=f"{tmp_path}/other"):
        GpuEndorsements.load(tmp_path / "other")
    with raises(CollateralError, "unwritable"):
        FULL.save(tmp_path / "none" / "file")
    with raises(CollateralError, "unreadable"):
        GpuEndorsements.load("a\0b")


@every_case(
    ("values", "reason"),
    [
        ({"rims": {"": b"1"}}, "malformed"),
        ({"rims": {"../a": b"1"}}, "malformed"),
        ({"rims": {"A\n": b"1"}}, "malformed"),
        ({"rims": {"A": b""}}, "missing"),
        ({"rims": {"A": bytes((512 << 10) + 1)}}, "too_large"),
        ({"rims": {f"A{at}": b"1" for at in range(MAX_RIMS + 1)}}, "too_large"),
        ({"ocsp": (b"",)}, "missing"),
        ({"ocsp": (bytes((16 << 10) + 1),)}, "too_large"),
        ({"ocsp": (b"1",) * 513}, "too_large"),
        ({"nras": (b"",)}, "missing"),
        ({"nras": (bytes((1 << 20) + 1),)}, "too_large"),
        ({"nras": (b"1",) * 17}, "too_large"),
        ({"jwks": b""}, "missing"),
        ({"jwks": bytes((256 << 10) + 1)}, "too_large"),
    ],
)
def test_endorsements_out_of_bounds_raise_collateral_error(
    values: dict[str, Any], reason: str
) -> None:
    """Numbers, sizes and identifiers are limited."""
    with raises(CollateralError, reason):
        GpuEndorsements(**values)


@every_case(
    "changes",
    [
        {"format": "other"},
        {"format": ...},
        {"version": 2},
        {"version": True},
        {"version": ...},
        {"more": 1},
        {"rims": []},
        {"rims": {"A": 1}},
        {"rims": {"A": "a"}},
        {"rims": {"/": "YQ=="}},
        {"ocsp": {}},
        {"ocsp": ["a"]},
        {"ocsp": [None]},
        {"nras": {}},
        {"nras": [1]},
        {"jwks": 1},
        {"jwks": "a"},
    ],
)
def test_endorsements_from_malformed_json_raise_collateral_error(changes: dict[str, Any]) -> None:
    """Another format or version, unknown members and values that are not base64 are refused."""
    fields = json.loads(FULL.to_json()) | changes
    text = json.dumps({name: value for name, value in fields.items() if value is not ...})
    with raises(CollateralError, "malformed"):
        GpuEndorsements.from_json(text)


def test_endorsements_from_json_cut_at_any_length_raise_collateral_error() -> None:
    """Each prefix is refused."""
    whole = FULL.to_json().rstrip()
    for size in range(len(whole)):
        with raises(CollateralError, "malformed"):
            GpuEndorsements.from_json(whole[:size])


def test_endorsements_from_large_json_raise_collateral_error() -> None:
    """The size is limited."""
    with raises(CollateralError, "too_large"):
        GpuEndorsements.from_json(bytes((32 << 20) + 1))


# -- fetched ---------------------------------------------------------------------------------------

CASES: list[dict[str, Any]] = json.loads(data("gpu/fabricated/cases.json")) if HAVE_SHARED else []


class Case:
    """A fabricated case, with services that have its RIMs and OCSP answers."""

    def __init__(self, name: str) -> None:
        case = next(each for each in CASES if each["name"] == name)
        self.folder = f"gpu/fabricated/{name}"
        self.now = datetime.fromisoformat(case["time"].replace("Z", "+00:00"))
        self.roots = GpuRoots(*(self._pem(f"{root}-root.pem")[0] for root in ("device", "rim")))
        self.chain = tuple(self._pem("chain.pem"))
        self.device = DeviceEvidence(case["arch"], data(f"{self.folder}/report.bin"), self.chain)
        self.rims = {
            case["driver_rim_id"]: data(f"{self.folder}/driver-rim.xml"),
            case["vbios_rim_id"]: data(f"{self.folder}/vbios-rim.xml"),
        }
        answers = sorted((SHARED / "data" / self.folder / "ocsp").iterdir())
        self.answers = {int(path.stem, 16): path.read_bytes() for path in answers}
        self.asked: Counter[object] = Counter()
        self._lock = threading.Lock()

    def _pem(self, name: str) -> list[bytes]:
        return split_pem(data(f"{self.folder}/{name}").decode().rstrip("\0"))

    def get(self, url: str) -> Response:
        """Answer as the RIM service."""
        base, _, identifier = url.rpartition("/")
        assert base == "https://rims.example/v1/rim"
        self._note(identifier)
        rim = self.rims.get(identifier)
        if rim is None:
            return Response(404, {}, b"")
        body = {
            "id": identifier,
            "rim": base64.b64encode(rim).decode(),
            "sha256": hashlib.sha256(rim).hexdigest(),
            "rim_format": "TCG",
        }
        return Response(200, {}, json.dumps(body).encode())

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Answer as the OCSP responder, without nonces."""
        assert url == "https://ocsp.example/"
        assert headers["Content-Type"] == "application/ocsp-request"
        serial = read_ocsp_request(body).cert_id.serial
        self._note(serial)
        return Response(200, {}, self.answers.get(serial, write_ocsp_error("unauthorized")))

    def _note(self, question: object) -> None:
        with self._lock:
            self.asked[question] += 1

    def services(self, nonce: Callable[[], bytes] | None = None) -> GpuServices:
        """Return the services."""
        return GpuServices(
            self.get, self.post, "https://rims.example/", "https://ocsp.example/", nonce
        )

    def fetch(self, *devices: DeviceEvidence, nonce: Callable[[], bytes] | None = None) -> Any:
        """Fetch endorsements for devices."""
        evidence = GpuEvidence(devices or (self.device,))
        services = self.services(nonce)
        return GpuEndorsements.fetch(evidence, services, now=self.now, roots=self.roots)


@needs_shared
@pytest.mark.parametrize("name", ["good", "blackwell-good", "chain-without-root"])
def test_fetch_of_one_device_asks_each_question_once(name: str) -> None:
    """Two RIMs, and the status of three certificates of the device and of each RIM are fetched."""
    case = Case(name)
    found = case.fetch(case.device, case.device)
    assert found.rims == case.rims
    assert [*found.rims] == [*case.rims]
    assert case.asked == dict.fromkeys([*case.rims, *case.answers], 1)
    assert {*found.ocsp} == {*case.answers.values()}
    device = [*case.chain[:4], case.roots.device]
    chains = [device[1:], *(Rim.parse(rim).certificates for rim in case.rims.values())]
    for chain in chains:
        for certificate, issuer in pairwise(chain):
            assert check_ocsp(found.ocsp, certificate, issuer, case.now).status == "good"


@needs_shared
def test_fetch_of_two_kinds_of_devices_asks_for_both() -> None:
    """Evidence of two machines' kinds needs the endorsements of both."""
    hopper, other = Case("good"), Case("alternatives")
    assert hopper.roots == other.roots
    found = hopper.fetch(hopper.device, other.device)
    assert {*found.rims} == {*hopper.rims}
    serials = {read_ocsp_answer(answer).cert_id.serial for answer in found.ocsp}
    assert serials == {*hopper.answers}


@needs_shared
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("signature-bit", "report_signature"),
        ("chain-other-root", "device_chain"),
        ("trailing-byte", "format"),
        ("blocks-41", "format"),
    ],
)
def test_fetch_for_bad_evidence_asks_nothing(name: str, reason: str) -> None:
    """No version of a report is used before its signature and chain are verified."""
    case = Case(name)
    with raises(GpuEvidenceError, reason, device=0):
        case.fetch()
    assert not case.asked


@needs_shared
def test_fetch_for_second_device_that_is_bad_asks_nothing() -> None:
    """All devices are verified before anything is fetched."""
    good, case = Case("good"), Case("signature-bit")
    with raises(GpuEvidenceError, "report_signature", device=1):
        good.fetch(good.device, case.device)
    assert not good.asked


@needs_shared
def test_fetch_of_report_with_nul_asks() -> None:
    """A NUL after the signature does not matter here; the verification decides about it."""
    case = Case("good")
    case.device = replace(case.device, report=case.device.report + b"\0")
    assert case.fetch().rims == case.rims


@needs_shared
def test_fetch_of_missing_rim_or_answer_raises_collateral_error() -> None:
    """A RIM that does not exist is missing; an error of the responder is no answer."""
    case = Case("good")
    identifier = case.rims.popitem()[0]
    with raises(CollateralError, "missing", part=identifier):
        case.fetch()
    assert not {*case.asked} & {*case.answers}
    case = Case("good")
    brom = read_path_certificate(case.chain[1]).serial
    del case.answers[brom]
    with raises(CollateralError, "fetch_failed", part="unauthorized"):
        case.fetch()
    case = Case("good")
    case.rims = dict.fromkeys(case.rims, sign(manifest([])))
    with raises(CollateralError, "malformed", start="RIM ") as caught:
        case.fetch()
    assert ": RIM: " not in str(caught.value)


@needs_shared
def test_fetch_with_nonces_requires_them() -> None:
    """Each OCSP request has a nonce of its own, which the answer must have."""
    case = Case("good")
    made: list[bytes] = []

    def create_nonce() -> bytes:
        made.append(bytes([len(made)]) * 32)
        return made[-1]

    with raises(CollateralError, "malformed", part="nonce"):
        case.fetch(nonce=create_nonce)
    assert made


@needs_shared
def test_fetch_has_few_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than eight requests run at a time."""
    case = Case("good")
    running, most, lock = 0, 0, threading.Lock()
    post = case.post

    def counted(url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return post(url, body, headers)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(case, "post", counted)
    case.fetch()
    assert 1 <= most <= MAX_REQUESTS


@needs_shared
def test_fetch_tokens_asks_once_for_each_architecture() -> None:
    """Devices are grouped by the chips of their chains, whatever `arch` says."""
    hopper, blackwell = Case("good"), Case("blackwell-good")
    requests: list[tuple[str, Any, Mapping[str, str]]] = []

    def post(url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        requests.append((url, json.loads(body), headers))
        return Response(200, {}, answer())

    def get(url: str) -> Response:
        assert url == "https://nras.example/.well-known/jwks.json"
        return Response(200, {}, jwks())

    services = GpuServices(
        get, post, nras_url="https://nras.example", nras_version=4, nras_key="secret"
    )
    assert "secret" not in repr(services)
    lying = replace(blackwell.device, architecture="HOPPER")
    evidence = GpuEvidence((hopper.device, lying, hopper.device))
    found = FULL.fetch_tokens(evidence, bytes(32), services)
    assert (found.rims, found.ocsp, found.jwks) == (FULL.rims, FULL.ocsp, jwks())
    assert len(found.nras) == 2
    assert [(url, body["arch"], len(body["evidence_list"])) for url, body, _ in requests] == [
        ("https://nras.example/v4/attest/gpu", "HOPPER", 2),
        ("https://nras.example/v4/attest/gpu", "BLACKWELL", 1),
    ]
    assert all(headers["Authorization"] == "Bearer secret" for *_, headers in requests)
