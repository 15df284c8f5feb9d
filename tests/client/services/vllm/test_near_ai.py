"""NEAR AI's gateway and models: recorded answers, simulated ones, and changed ones."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from nacl.signing import SigningKey

from attestkit.client.services.service import Claims
from attestkit.client.services.vllm.near_ai import SERVICES, NearAiCloud, NearAiDirect
from attestkit.errors import AttestKitError, FormatError, PolicyError, ServiceError, UsageError
from tests.client.services.captures import (
    Capture,
    captures,
    check_machine,
    peer,
    roles,
    status,
)
from tests.client.services.vllm.simulated_reports import (
    ED25519,
    NONCE,
    TLS_KEY,
    evidence_members,
    report,
    td,
    verified,
    verifier,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED

MODEL: Final = "org/model"
OTHER: Final = bytes(range(1, 33))
GATEWAY_KEY: Final = SigningKey(b"\x09" * 32)
GATEWAY_TLS: Final = sha256(b"TLS key of the gateway").digest()
CLOUD: Final = NearAiCloud()
DIRECT: Final = NearAiDirect()
KEY_CONFIG: Final = bytes.fromhex("010020" + "11" * 32 + "00080001000100010003")
ACTIONS: Final = [{"tag": "v1", "action": "compose_up", "file": "ü.yaml"}]

NEAR_CAPTURES: Final = captures(
    "near-ai-cloud/2026-06-29", "near-ai-direct/2026-06-10", "near-ai-direct/2026-06-29"
)
every_capture = pytest.mark.parametrize("capture", NEAR_CAPTURES, ids=lambda one: one.name)


def read_capture(capture: Capture, members: Any = None, nonce: bytes | None = None) -> Claims:
    """Read a recorded answer, or changed members of it."""
    body = capture.answer() if members is None else json.dumps(members).encode()
    service = CLOUD if "cloud" in capture.name else DIRECT
    given = capture.nonce if nonce is None else nonce
    return service.read((body,), given, capture.peer(), capture.facts["model"])


def verify_capture(capture: Capture, members: Any) -> None:
    """Read changed members of a recorded answer, and verify all machines."""
    for machine in read_capture(capture, members).machines:
        capture.verify(machine)


# -- recorded answers ------------------------------------------------------------------------------


@every_capture
def test_recorded_answer_is_accepted(capture: Capture) -> None:
    """Each machine verifies with its report data, with the status that other code found."""
    claims = read_capture(capture)
    quotes = [one["quote"] for one in capture.expected["reports"]]
    managers = [one for one in capture.expected["reports"] if "compose_manager" in one]
    quotes += [one["compose_manager"]["quote"] for one in managers]
    unique = {quote["sha256"]: quote for quote in quotes}  # replicas repeat the first report
    assert len(claims.machines) == len(unique)
    for machine, expected in zip(claims.machines, unique.values(), strict=True):
        check_machine(machine, expected)
        result = capture.verify(machine)
        assert status(result) == expected["verified"]["status"]
    with_gpus = [machine for machine in claims.machines if machine.gpu is not None]
    assert [machine.role for machine in with_gpus] == ["model"]
    first = capture.expected["reports"][0]
    assert len(with_gpus[0].gpu.evidence.devices) == capture.expected["reports"][-1]["gpu"]["count"]  # type: ignore[union-attr]
    channel = capture.expected["channel"]
    binding = claims.bindings[0]
    assert (binding.kind, binding.key.hex()) == ("tls-spki", channel["tls_spki_sha256"])
    assert binding.is_of == channel["is_of"]
    model = capture.expected["reports"][-1]
    sealing = claims.bindings[1]
    assert (sealing.kind, sealing.key.hex()) == ("fields", model["signing_address"])
    assert sealing.is_of == "model"
    assert claims.keys["signing-ed25519"].hex() == model["signing_address"]
    assert claims.keys["ohttp"].hex() == model.get("ohttp", first.get("ohttp"))["key_config"]
    assert (claims.freshness, claims.code) == ("nonce", "policy")


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared captures are missing")
def test_roles_of_recorded_machines() -> None:
    """A gateway, the model, and the compose manager in the model's TD."""
    expected = {
        "near-ai-cloud/2026-06-29": ["gateway", "model", "model"],
        "near-ai-direct/2026-06-10": ["model", "model"],
        "near-ai-direct/2026-06-29": ["model", "model"],
    }
    assert {capture.name: roles(read_capture(capture)) for capture in NEAR_CAPTURES} == expected


@every_capture
def test_recorded_answer_with_another_nonce_is_refused(capture: Capture) -> None:
    """The answer is to another request: it may be of any age."""
    with raises(ServiceError, "nonce_echo"):
        read_capture(capture, nonce=OTHER)


@every_capture
def test_recorded_answer_over_another_connection_is_refused(capture: Capture) -> None:
    """A genuine report that a relay serves is of another TLS key."""
    service = CLOUD if "cloud" in capture.name else DIRECT
    with raises(ServiceError, "other_key"):
        service.read((capture.answer(),), capture.nonce, peer(OTHER), capture.facts["model"])


Change = Callable[[dict[str, Any]], object]


def flip(text: str) -> str:
    """Return hex with another last digit."""
    return text[:-1] + ("1" if text[-1] == "0" else "0")


RECORDED_CHANGES: Final[dict[str, tuple[Change, type[AttestKitError], str]]] = {
    "address": (
        lambda m: m.update(signing_address=flip(m["signing_address"])),
        FormatError,
        "inconsistent wrong_value",
    ),
    "public key": (
        lambda m: m.update(signing_public_key=flip(m["signing_public_key"])),
        FormatError,
        "inconsistent",
    ),
    "nonce": (
        lambda m: m.update(request_nonce=flip(m["request_nonce"])),
        ServiceError,
        "nonce_echo",
    ),
    "compose": (
        lambda m: m["info"]["tcb_info"].update(app_compose="{}"),
        FormatError,
        "inconsistent",
    ),
    "model": (lambda m: m.update(model_name="another"), ServiceError, "no_attestation"),
    "no quote": (lambda m: m.pop("intel_quote"), ServiceError, "no_attestation"),
    "no log of the manager": (
        lambda m: m["compose_manager_attestation"].update(event_log=5),
        FormatError,
        "wrong_type",
    ),
    "action": (
        lambda m: m["compose_manager_attestation"]["actions"][0].update(file="x"),
        FormatError,
        "inconsistent",
    ),
    "no action": (
        lambda m: m["compose_manager_attestation"]["actions"].pop(),
        FormatError,
        "inconsistent",
    ),
    "hash of the actions": (
        lambda m: m["compose_manager_attestation"].update(actions_hash="00" * 32),
        FormatError,
        "inconsistent",
    ),
    "nonce of the manager": (
        lambda m: m["compose_manager_attestation"].update(nonce="00" * 32),
        ServiceError,
        "nonce_echo",
    ),
    "key of OHTTP": (
        lambda m: m["ohttp_attestation"].update(key_config=flip(m["ohttp_key_config"])),
        ServiceError,
        "signature",
    ),
    "other key of OHTTP": (
        lambda m: m.update(ohttp_key_config=flip(m["ohttp_key_config"])),
        FormatError,
        "inconsistent",
    ),
    "signature of OHTTP": (
        lambda m: m["ohttp_attestation"].update(
            signature=flip(m["ohttp_attestation"]["signature"])
        ),
        ServiceError,
        "signature",
    ),
}


@every_capture
@every_case("change", RECORDED_CHANGES.values(), ids=RECORDED_CHANGES)
def test_changed_recorded_answer_is_refused(
    capture: Capture, change: tuple[Change, type[AttestKitError], str]
) -> None:
    """A changed member is refused when the answer is read."""
    members = capture.members()
    model = members["model_attestations"][0] if "model_attestations" in members else members
    alter, error, reasons = change
    alter(model)
    with raises(error, *reasons.split()):
        read_capture(capture, members)


@every_capture
@pytest.mark.parametrize("name", ["intel_quote", "event_log", "tls_cert_fingerprint"])
def test_changed_recorded_evidence_is_refused(capture: Capture, name: str) -> None:
    """A change of signed or measured bytes is refused at the latest by the verifier."""
    members = capture.members()
    model = members["model_attestations"][0] if "model_attestations" in members else members
    if name == "event_log":
        del model["info"]["tcb_info"]
        events = model[name]
        events[-1]["event_payload"] = "00"
        events[-1]["digest"] = ""
    else:
        middle = len(model[name]) // 8
        model[name] = flip(model[name][:middle]) + model[name][middle:]
    with pytest.raises(AttestKitError) as caught:
        verify_capture(capture, members)
    assert caught.value.reason


@every_capture
def test_gateway_without_models_ends_at_the_gateway(capture: Capture) -> None:
    """An external provider behind the gateway is not attested."""
    if "cloud" not in capture.name:
        return
    with raises(ServiceError, "ends_at_gateway"):
        read_capture(capture, {**capture.members(), "model_attestations": []})


@every_capture
def test_certificate_with_another_key_is_refused(capture: Capture) -> None:
    """The certificate that the gateway states must have the key of its report."""
    if "cloud" not in capture.name:
        return
    members = capture.members()
    blocks = members["tls_certificate"].split("-----END CERTIFICATE-----\n")
    swapped = "-----END CERTIFICATE-----\n".join([blocks[1], blocks[0], *blocks[2:]])
    with raises(FormatError, "inconsistent"):
        read_capture(capture, {**members, "tls_certificate": swapped})
    with raises(FormatError, "syntax"):
        read_capture(capture, {**members, "tls_certificate": "none"})


# -- simulated answers -----------------------------------------------------------------------------


def compose_manager(**fields: Any) -> dict[str, Any]:
    """Return the evidence of a compose manager, whose members are in the order of their names."""
    text = json.dumps(ACTIONS, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = sha256(text.encode()).digest()
    members = evidence_members(td(digest + NONCE, **fields))
    return {
        "actions": ACTIONS,
        "actions_hash": digest.hex(),
        "nonce": NONCE.hex(),
        "quote": members["intel_quote"],
        "event_log": members["event_log"],
        "vm_config": members["vm_config"],
    }


def ohttp(key: SigningKey = ED25519, config: bytes = KEY_CONFIG) -> dict[str, Any]:
    """Return a signed key configuration."""
    return {
        "ohttp_key_config": config.hex(),
        "ohttp_attestation": {
            "signing_algo": "ed25519",
            "signing_key": key.verify_key.encode().hex(),
            "key_config": config.hex(),
            "signature": key.sign(config).signature.hex(),
        },
    }


def model_report(**changes: Any) -> dict[str, Any]:
    """Return the report of a model, with a compose manager and a key of OHTTP."""
    own = report(algorithm="ed25519", fingerprint=TLS_KEY)
    return {**own, **ohttp(), "compose_manager_attestation": compose_manager(), **changes}


def cloud_answer(**changes: Any) -> dict[str, Any]:
    """Return an answer of the gateway."""
    gateway = report(algorithm="ed25519", fingerprint=GATEWAY_TLS, key=GATEWAY_KEY, gpus=False)
    return {
        "gateway_attestation": gateway,
        "model_attestations": [model_report()],
        **ohttp(GATEWAY_KEY),
        **changes,
    }


def read_cloud(answer: object, seen: bytes | None = GATEWAY_TLS) -> Claims:
    """Read an answer of the gateway."""
    observed = None if seen is None else peer(seen)
    return CLOUD.read((json.dumps(answer).encode(),), NONCE, observed, MODEL)


def read_direct(answer: object, model: str | None = MODEL) -> Claims:
    """Read an answer of a model's own host."""
    return DIRECT.read((json.dumps(answer).encode(),), NONCE, peer(TLS_KEY), model)


def test_simulated_gateway_and_model_are_accepted() -> None:
    """Three machines verify; TLS ends at the gateway, sealed fields at the model."""
    claims = read_cloud(cloud_answer())
    assert roles(claims) == ["gateway", "model", "model"]
    for machine in claims.machines:
        verified(machine)
    key = ED25519.verify_key.encode()
    assert claims.bindings == (
        ("tls-spki", GATEWAY_TLS, "gateway"),
        ("fields", key, "model"),
        ("signature", key, "model"),
    )
    assert claims.keys == {
        "signing-ed25519": key,
        "gateway-signing-ed25519": GATEWAY_KEY.verify_key.encode(),
        "gateway-ohttp": KEY_CONFIG,
        "ohttp": KEY_CONFIG,
    }
    assert any("compose manager" in limit for limit in claims.not_proven)
    assert any("gateway" in limit for limit in claims.not_proven)


def test_simulated_model_is_accepted_directly() -> None:
    """TLS ends in the model's machine."""
    claims = read_direct(model_report())
    assert roles(claims) == ["model", "model"]
    for machine in claims.machines:
        verified(machine)
    assert claims.bindings[0] == ("tls-spki", TLS_KEY, "model")
    assert read_direct(model_report(), None).machines[0].role == "model"


def test_replicas_behind_the_gateway_are_machines_of_their_own() -> None:
    """A second machine of the model is verified; one that repeats the first is not counted."""
    second = report(algorithm="ed25519", fingerprint=OTHER, gpus=False)
    first = model_report()
    claims = read_cloud(cloud_answer(model_attestations=[first, first, second]))
    assert roles(claims) == ["gateway", "model", "model", "model"]
    for machine in claims.machines:
        verified(machine)
    with raises(FormatError, "too_many"):
        read_cloud(cloud_answer(model_attestations=[first] * 32))


def test_ohttp_key_of_an_ecdsa_report_is_not_attested() -> None:
    """The report is about another signing key than the one that signed the configuration."""
    answer = {**report(fingerprint=TLS_KEY), **ohttp()}
    assert "ohttp" not in read_direct(answer).keys
    other = model_report(**ohttp(SigningKey(b"\x0a" * 32)))
    assert "ohttp" not in read_direct(other).keys


@every_case(
    ("config", "reason"),
    [
        (KEY_CONFIG[:-1], "wrong_size"),
        (KEY_CONFIG[:37], "wrong_size"),
        (KEY_CONFIG[:-4], "wrong_size"),
        (b"\1\0\x10" + KEY_CONFIG[3:], "unsupported_algorithm"),
        (KEY_CONFIG + bytes(32), "wrong_size"),
    ],
)
def test_ohttp_key_of_another_form_is_refused(config: bytes, reason: str) -> None:
    """Only X25519 and complete lists of algorithms are read (RFC 9458, section 3)."""
    with raises(FormatError, reason):
        read_direct(model_report(**ohttp(config=config)))


def test_compose_manager_of_another_td_is_refused() -> None:
    """The second quote must be of the TD of the report."""
    manager = compose_manager(events=(("compose-hash", OTHER), ("system-ready", b"")))
    with raises(FormatError, "inconsistent"):
        read_direct(model_report(compose_manager_attestation=manager))


def test_compose_manager_may_hash_its_actions_as_sent() -> None:
    """Releases differ in the order of members."""
    text = json.dumps(ACTIONS, separators=(",", ":"), ensure_ascii=False)
    digest = sha256(text.encode()).digest()
    manager = {
        "actions": ACTIONS,
        "quote": evidence_members(td(digest + NONCE))["intel_quote"],
    }
    (_, machine) = read_direct(model_report(compose_manager_attestation=manager)).machines
    assert machine.report_data == digest + NONCE
    verified(machine)


def test_compose_manager_with_an_old_nonce_does_not_verify() -> None:
    """The second quote has the nonce in its report data, too."""
    manager = compose_manager()
    old = td(bytes.fromhex(manager["actions_hash"]) + OTHER)
    manager["quote"] = evidence_members(old)["intel_quote"]
    (_, machine) = read_direct(model_report(compose_manager_attestation=manager)).machines
    with raises(PolicyError, "report_data"):
        verifier().verify(machine.evidence, report_data=machine.report_data)


@every_case(
    ("changes", "error", "reason"),
    [
        ({"gateway_attestation": None}, ServiceError, "no_attestation"),
        ({"gateway_attestation": []}, FormatError, "wrong_type"),
        ({"model_attestations": None}, FormatError, "wrong_type"),
        ({"model_attestations": []}, ServiceError, "ends_at_gateway"),
        ({"model_attestations": [None]}, FormatError, "wrong_type"),
        ({"model_attestations": [{}]}, ServiceError, "no_attestation"),
        ({"ohttp_attestation": []}, FormatError, "wrong_type"),
        ({"tls_certificate": 1}, FormatError, "wrong_type"),
    ],
)
def test_malformed_answer_of_the_gateway_is_refused(
    changes: dict[str, Any], error: type[AttestKitError], reason: str
) -> None:
    """Each part has its form; a gateway without models is refused as such."""
    with raises(error, reason):
        read_cloud(cloud_answer(**changes))


def test_gateway_that_names_no_tls_key_has_no_tls_binding() -> None:
    """Without the TLS key in its report, only sealing to the model is left."""
    gateway = report(algorithm="ed25519", key=GATEWAY_KEY, gpus=False)
    claims = read_cloud(cloud_answer(gateway_attestation=gateway))
    assert [binding.kind for binding in claims.bindings] == ["fields", "signature"]


def test_gateway_with_the_key_of_its_model_is_refused() -> None:
    """The connection ends at the gateway: the model's TLS key is not that of the connection."""
    with raises(ServiceError, "other_key"):
        read_cloud(cloud_answer(), TLS_KEY)
    assert read_cloud(cloud_answer(), None).bindings[0].key == GATEWAY_TLS


# -- questions -------------------------------------------------------------------------------------


def test_questions_ask_for_the_tls_key_and_ed25519() -> None:
    """Keys of OHTTP are attested in reports of Ed25519 only."""
    for service in SERVICES:
        (question,) = service.questions(NONCE, MODEL)
        parts = urlsplit(question.target)
        assert parts.path == "/v1/attestation/report"
        assert parse_qs(parts.query) == {
            "model": [MODEL],
            "nonce": [NONCE.hex()],
            "signing_algo": ["ed25519"],
            "include_tls_fingerprint": ["true"],
        }
        assert service.request_headers == (("X-No-Aliasing", "true"),)
        assert service.where == "wire"
    with raises(UsageError, "missing"):
        CLOUD.questions(NONCE, None)
    assert "model" not in DIRECT.questions(NONCE, None)[0].target
    with raises(UsageError, "wrong_value"):
        DIRECT.questions(NONCE, "")


@every_case(
    ("host", "names"),
    [
        ("cloud-api.near.ai", ["near-ai"]),
        ("Qwen35-122b.completions.near.ai", ["near-ai-direct"]),
        ("completions.near.ai", []),
        (".completions.near.ai", []),
        ("a.b.completions.near.ai", []),
        ("evilcompletions.near.ai", []),
        ("cloud-api.near.ai.evil.test", []),
        ("near.ai", []),
    ],
)
def test_services_are_recognized_by_their_hosts(host: str, names: list[str]) -> None:
    """The gateway is one host, models have one label before the domain."""
    assert [service.name for service in SERVICES if service.recognizes(host)] == names
    assert [repr(service) for service in SERVICES] == [
        "NearAiCloud('near-ai')",
        "NearAiDirect('near-ai-direct')",
    ]
