"""Chutes: the key of each instance is in its evidence, with the nonce that was sent."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import pytest

from attestkit.client.services.chutes import ChutesService
from attestkit.client.services.service import Claims
from attestkit.collateral import Collateral
from attestkit.errors import (
    FormatError,
    PolicyError,
    ServiceError,
    UsageError,
    VerificationError,
)
from attestkit.verifier import AppraisalPolicy, TcbStatus, Verifier
from tests.client.services import chutes_answers
from tests.client.services.chutes_answers import (
    CHUTE,
    INSTANCES,
    NONCE,
    entry,
    evidence,
    instances,
    key_of,
    machine,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, needs_shared

SERVICES: Final = SHARED / "data" / "services"
CHUTES: Final = SERVICES / "chutes" / "2026-06-29"
REDPILL: Final = SERVICES / "redpill" / "2026-06-10"
EXPECTED: Final[dict[str, Any]] = (
    json.loads((SERVICES / "expected.json").read_text()) if HAVE_SHARED else {}
)
POLICY: Final = AppraisalPolicy(accepted_statuses=[TcbStatus.UP_TO_DATE])


def read(proof: bytes, keys: bytes, service: ChutesService | None = None) -> Claims:
    """Read the answers to the nonce of the tests."""
    return (service or ChutesService()).read((proof, keys), NONCE, None, CHUTE)


def test_questions() -> None:
    """Evidence comes first, because it takes long; keys and nonces expire."""
    slow, keys = ChutesService().questions(NONCE, CHUTE)
    assert slow.target == f"/chutes/{CHUTE}/evidence?nonce={NONCE.hex()}"
    assert keys.target == f"/e2e/instances/{CHUTE}"
    assert slow.headers == keys.headers == ()
    named = ChutesService("key", chutes={"a/model": CHUTE})
    found = named.questions(NONCE, "a/model")
    assert [one.target for one in found] == [slow.target, keys.target]
    assert found[0].headers == (("Authorization", "Bearer key"),)
    assert ChutesService().recognizes("API.chutes.ai")
    assert not ChutesService().recognizes("chutes.ai")


@pytest.mark.parametrize(("model", "reason"), [(None, "missing"), ("../x", "unknown_name")])
def test_model_without_id(model: str | None, reason: str) -> None:
    """The evidence is of a chute, which has an id."""
    with raises(UsageError, reason):
        ChutesService().questions(NONCE, model)


def test_instances_with_evidence_and_key() -> None:
    """Each instance is a machine, and its key a binding with the same name."""
    claims = read(evidence(*map(entry, INSTANCES)), instances(*INSTANCES))
    assert [one.role for one in claims.machines] == list(INSTANCES)
    for one, binding in zip(claims.machines, claims.bindings, strict=True):
        assert (binding.kind, binding.is_of) == ("kem", one.role)
        assert binding.key == key_of(one.role).public_key
        assert one.gpu is not None
        machine().verifier(policy=POLICY).verify(one.evidence, gpu=one.gpu)
    assert (claims.freshness, claims.code) == ("nonce", "operator")


def test_instance_without_evidence_or_key_is_never_used() -> None:
    """Only what has both counts; if there is nothing, the answer is refused."""
    first, second = INSTANCES
    assert [one.role for one in read(evidence(entry(first)), instances(*INSTANCES)).machines] == [
        first
    ]
    with raises(ServiceError, "no_attestation"):
        read(evidence(entry(first)), instances(second))
    with raises(ServiceError, "no_attestation"):
        read(evidence(), instances(second))


def test_instance_without_gpus() -> None:
    """Evidence of GPUs may be missing."""
    [one] = read(evidence(entry(INSTANCES[0], gpus=False)), instances(INSTANCES[0])).machines
    assert one.gpu is None
    machine().verifier(policy=POLICY).verify(one.evidence, report_data=one.report_data)


def test_limits_of_the_proof_are_stated() -> None:
    """The program, the model and the API key's way are not proven."""
    answers = evidence(entry(INSTANCES[0])), instances(INSTANCES[0])
    text = "; ".join(read(*answers, ChutesService("key")).not_proven)
    for part in ("the running program", "the model", "the order and the end", "API key"):
        assert part in text
    assert "API key" not in "; ".join(read(*answers).not_proven)


# -- what is refused -------------------------------------------------------------------------------


def test_other_key_nonce_or_certificate_is_refused_by_the_verifier() -> None:
    """A swapped key, or an old nonce, gives other report data than the computed ones."""
    first, second = INSTANCES
    other = entry(first, bytes(32), gpus=False)
    swapped = entry(first, gpus=False) | {"instance_id": second}
    for proof, name in ((other, first), (swapped, second)):
        [one] = read(evidence(proof), instances(name)).machines
        with raises(PolicyError, "report_data"):
            machine().verifier(policy=POLICY).verify(one.evidence, report_data=one.report_data)


ALTERED: Final[list[tuple[dict[str, Any], str]]] = [
    ({"quote": None}, "wrong_type"),
    ({"quote": "AA"}, "encoding"),
    ({"quote": ""}, "wrong_size"),
    ({"certificate": "AAAA"}, "wrong_type"),
    ({"certificate": 1}, "wrong_type"),
    ({"instance_id": "x"}, "wrong_value"),
    ({"instance_id": 1}, "wrong_type"),
    ({"gpu_evidence": {"a": 1}}, "wrong_type"),
    ({"gpu_evidence": [{}]}, "missing"),
]


@every_case(("changes", "reason"), ALTERED)
def test_malformed_evidence(changes: dict[str, Any], reason: str) -> None:
    """Evidence that cannot be read is refused, not left out."""
    with pytest.raises(FormatError) as caught:
        read(evidence(entry(INSTANCES[0]) | changes), instances(INSTANCES[0]))
    assert caught.value.reason == reason, caught.value


def test_certificate_is_required() -> None:
    """Half of the report data is about the certificate."""
    proof = entry(INSTANCES[0])
    del proof["certificate"]
    with raises(FormatError, "missing"):
        read(evidence(proof), instances(INSTANCES[0]))


@every_case(
    ("keys", "reason"),
    [
        (b"{}", "missing"),
        (b'{"nonce_expires_in":60,"instances":[1]}', "wrong_type"),
        (b'{"nonce_expires_in":-1,"instances":[]}', "wrong_value"),
        (instances(INSTANCES[0], e2e_pubkey="AAAA"), "wrong_size"),
        (instances(INSTANCES[0], e2e_pubkey="\n"), "encoding"),
        (instances(INSTANCES[0], nonces={}), "wrong_type"),
        (instances(INSTANCES[0], nonces=["a\r\nb"]), "encoding"),
        (instances(INSTANCES[0], nonces=["a"] * 257), "too_many"),
        (instances(INSTANCES[0], INSTANCES[0]), "duplicate"),
        (json.dumps({"nonce_expires_in": 1, "instances": [{}] * 65}).encode(), "too_many"),
    ],
)
def test_malformed_instances(keys: bytes, reason: str) -> None:
    """Keys and nonces have a form; a nonce goes into a header."""
    with raises(FormatError, reason):
        read(evidence(entry(INSTANCES[0])), keys)


def test_every_cut_is_refused() -> None:
    """Answers that end early are malformed."""
    proof, keys = evidence(entry(INSTANCES[0])), instances(INSTANCES[0])
    for size in range(0, len(proof), 307):
        with pytest.raises(FormatError):
            read(proof[:size], keys)
    for size in range(0, len(keys), 31):
        with pytest.raises(FormatError):
            read(proof, keys[:size])


# -- nonces of requests ----------------------------------------------------------------------------


def _sealing(service: ChutesService, claims: Claims) -> Callable[[], str]:
    """Return what seals a request, and returns the nonce in its headers."""
    sealing = service.sealing(claims, claims.bindings[0], CHUTE)

    def seal() -> str:
        sealed = sealing.seal("POST", "/v1/chat/completions", [], b"{}")
        return dict(sealed.headers)["X-E2E-Nonce"]

    return seal


def test_each_nonce_is_used_once_and_for_some_time() -> None:
    """A nonce that was used, or is too old, is not sent; new ones can be read."""
    now = [100.0]
    service = ChutesService(now=lambda: now[0])
    answers = evidence(entry(INSTANCES[0])), instances(INSTANCES[0])
    claims = read(*answers, service)
    seal = _sealing(service, claims)
    assert service.renewal(claims, claims.bindings[0], CHUTE) is None
    assert [seal(), seal(), seal()] == ["n0", "n1", "n2"]
    assert service.renewal(claims, claims.bindings[0], CHUTE) == service.pool_question(CHUTE)
    with raises(ServiceError, "sealing"):
        seal()
    service.renew(claims, instances(*INSTANCES))
    assert seal() == "n0"
    now[0] += 60
    with raises(ServiceError, "sealing"):
        seal()
    service.renew(claims, instances(INSTANCES[1]))  # of an instance that was not proven
    with raises(ServiceError, "sealing"):
        seal()


def test_nonces_are_of_their_claims() -> None:
    """Reading the same answers again makes no used nonce usable again."""
    service = ChutesService()
    answers = evidence(entry(INSTANCES[0])), instances(INSTANCES[0])
    claims = read(*answers, service)
    seal = _sealing(service, claims)
    assert [seal(), seal()] == ["n0", "n1"]
    other = read(*answers, service)
    assert other == claims
    assert seal() == "n2"
    service.renew(other, instances(INSTANCES[0]))
    with raises(ServiceError, "sealing"):
        seal()
    assert _sealing(service, other)() == "n0"


def test_nonces_of_another_key_are_not_taken() -> None:
    """A renewed answer with another key for the instance changes nothing."""
    service = ChutesService()
    first, second = INSTANCES
    claims = read(evidence(entry(first)), instances(first, nonces=[]), service)
    service.renew(claims, instances(first, e2e_pubkey=chutes_answers.key_text(second)))
    with raises(ServiceError, "sealing"):
        _sealing(service, claims)()
    unproven = claims.bindings[0]._replace(key=key_of(second).public_key)
    with raises(ServiceError, "sealing"):
        service.sealing(claims, unproven, CHUTE).seal("POST", "/", [], b"{}")


# -- captures --------------------------------------------------------------------------------------


def capture(folder: Any) -> tuple[bytes, datetime, Verifier]:
    """Return nonce and time of a capture, and a verifier with its collateral."""
    told = json.loads((folder / "capture.json").read_text())
    at = datetime.fromisoformat(told["captured_at"].replace("Z", "+00:00"))
    return (
        bytes.fromhex(told["nonce"]),
        at,
        Verifier(collateral=Collateral.load(folder / "collateral.json")),
    )


def compare(
    claims: Claims, reports: list[dict[str, Any]], at: datetime, verifier: Verifier
) -> None:
    """Compare claims with what is known, and verify what the captured collateral is for."""
    assert [one.role for one in claims.machines] == [known["instance_id"] for known in reports]
    for one, known in zip(claims.machines, reports, strict=True):
        assert one.report_data.hex() == known["quote"]["report_data"]
        assert one.gpu is not None
        devices = one.gpu.evidence.devices
        assert len(devices) == known["gpus"]
        assert {device.report[4:36] for device in devices} == {one.gpu.gpu_nonce}
        assert one.gpu.gpu_nonce == one.report_data[:32]
        if "status" in known["quote"]["verified"]:
            found = verifier.verify(one.evidence, report_data=one.report_data, now=at)
            assert found.tcb.status == known["quote"]["verified"]["status"]
        else:
            with raises(VerificationError, "tcb_info_mismatch"):
                verifier.verify(one.evidence, report_data=one.report_data, now=at)


@needs_shared
def test_captured_answers() -> None:
    """Both instances of the capture have the computed report data, and the GPUs their nonce."""
    nonce, at, verifier = capture(CHUTES)
    answers = tuple((CHUTES / f"{name}.json").read_bytes() for name in ("evidence", "instances"))
    compare(
        ChutesService().read(answers, nonce, None, CHUTE),
        EXPECTED["chutes/2026-06-29"]["reports"],
        at,
        verifier,
    )
    other = ChutesService().read(answers, bytes(32), None, CHUTE).machines[0]
    with raises(PolicyError, "report_data"):
        verifier.verify(other.evidence, report_data=other.report_data, now=at)


def _swap_certificates(proof: dict[str, Any], _: dict[str, Any]) -> None:
    first, second = proof["evidence"]
    first["certificate"], second["certificate"] = second["certificate"], first["certificate"]


def _swap_keys(_: dict[str, Any], keys: dict[str, Any]) -> None:
    first, second = keys["instances"]
    first["e2e_pubkey"], second["e2e_pubkey"] = second["e2e_pubkey"], first["e2e_pubkey"]


def _swap_quotes(proof: dict[str, Any], _: dict[str, Any]) -> None:
    first, second = proof["evidence"]
    first["quote"], second["quote"] = second["quote"], first["quote"]


def _change_quote(at: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(proof: dict[str, Any], _: dict[str, Any]) -> None:
        quote = bytearray(b64decode(proof["evidence"][0]["quote"]))
        quote[at] ^= 1
        proof["evidence"][0]["quote"] = b64encode(quote).decode()

    return change


@needs_shared
@pytest.mark.parametrize(
    "change",
    [
        *(_swap_certificates, _swap_keys, _swap_quotes),
        *map(_change_quote, (60, 200, 300, 400, 568, 631, 640, 690)),
    ],
)
def test_altered_captures_are_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
) -> None:
    """With any part of a genuine answer changed or exchanged, its first instance is refused."""
    nonce, at, verifier = capture(CHUTES)
    proof, keys = (
        json.loads((CHUTES / f"{name}.json").read_text()) for name in ("evidence", "instances")
    )
    change(proof, keys)
    answers = json.dumps(proof).encode(), json.dumps(keys).encode()
    one = ChutesService().read(answers, nonce, None, CHUTE).machines[0]
    with pytest.raises(VerificationError):
        verifier.verify(one.evidence, report_data=one.report_data, now=at)
