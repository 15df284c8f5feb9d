"""Services of the vllm-proxy lineage: recorded answers, simulated ones, and changed ones."""

import json
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from attestkit.client.services.service import Claims
from attestkit.client.services.vllm.vllm_proxy import SERVICES, VllmProxy
from attestkit.errors import (
    AttestKitError,
    FormatError,
    PolicyError,
    ServiceError,
    UsageError,
    VerificationError,
)
from tests.client.services.captures import Capture, captures, check_machine, peer, status
from tests.client.services.vllm.simulated_reports import (
    ED25519,
    K256,
    NONCE,
    TLS_KEY,
    ethereum_address,
    report,
    td,
    verified,
    verifier,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.untyped import untyped

DIRECT: Final = SERVICES[0]
BY_NAME: Final = {service.name: service for service in SERVICES}
PUBLIC: Final = K256.public_key.format(compressed=False)
OTHER: Final = bytes(range(1, 33))


def read(answer: object, service: VllmProxy = DIRECT, seen: Any = None) -> Claims:
    """Read an answer of these members."""
    return service.read((json.dumps(answer).encode(),), NONCE, seen, "org/model")


# -- recorded answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", captures("venice/2026-06-10"), ids=lambda one: one.name)
def test_recorded_answer_of_venice_is_accepted(capture: Capture) -> None:
    """The report and its GPUs verify; only sealing to the model's key and signatures bind."""
    service = BY_NAME["venice"]
    claims = service.read(
        (capture.answer(),), capture.nonce, capture.peer(), capture.facts["model"]
    )
    (expected,) = capture.expected["reports"]
    machine, manager = claims.machines
    check_machine(machine, expected["quote"])
    check_machine(manager, expected["compose_manager"]["quote"])
    assert status(capture.verify(manager)) == "UpToDate"
    result = capture.verify(machine)
    assert status(result) == expected["quote"]["verified"]["status"]
    assert result.gpu is not None
    assert len(result.gpu.devices) == expected["gpu"]["count"]
    channel = capture.expected["channel"]
    assert [(b.kind, b.key.hex(), b.is_of) for b in claims.bindings] == [
        ("fields", channel["e2ee_public_key"], channel["is_of"]),
        ("signature", expected["signing_address"], channel["is_of"]),
    ]
    assert claims.keys == {"signing-ecdsa": bytes.fromhex(expected["signing_address"])}
    assert (claims.freshness, claims.code) == ("nonce", "policy")


@pytest.mark.parametrize("capture", captures("redpill/2026-06-10"), ids=lambda one: one.name)
def test_recorded_answer_of_redpill_with_another_nonce_is_refused(capture: Capture) -> None:
    """RedPill relays evidence of Chutes for a nonce of its own: it is not fresh."""
    assert not capture.expected["nonce_is_clients"]
    with raises(ServiceError, "nonce_echo"):
        BY_NAME["redpill"].read((capture.answer(),), capture.nonce, None, "model")


@pytest.mark.parametrize("capture", captures("redpill/2026-06-10"), ids=lambda one: one.name)
def test_relayed_evidence_of_another_kind_is_refused_with_our_nonce_too(capture: Capture) -> None:
    """Evidence of Chutes has another key and channel, whatever its nonce is."""
    nonce = bytes.fromhex(capture.expected["nonce_in_answer"])
    with raises(ServiceError, "no_attestation"):
        BY_NAME["redpill"].read((capture.answer(),), nonce, None, "model")


# -- simulated answers -----------------------------------------------------------------------------


@every_case("algorithm", ["ecdsa", "ed25519"])
@every_case("fingerprint", [None, TLS_KEY], ids=["version 1", "version 2"])
def test_simulated_report_is_accepted(algorithm: str, fingerprint: bytes | None) -> None:
    """A machine with GPUs is verified over the report data of the formula."""
    claims = read(report(algorithm=algorithm, fingerprint=fingerprint), seen=peer(TLS_KEY))
    (machine,) = claims.machines
    assert machine.gpu is not None
    assert verified(machine).gpu is not None
    kinds = [binding.kind for binding in claims.bindings]
    assert kinds == [*(["tls-spki"] if fingerprint else []), "fields", "signature"]
    fields = claims.bindings[-2]
    assert fields.key == (PUBLIC if algorithm == "ecdsa" else ED25519.verify_key.encode())
    unbound = any("names no TLS key" in limit for limit in claims.not_proven)
    assert unbound == (fingerprint is None)


def test_tls_key_of_the_report_must_be_the_observed_one() -> None:
    """A relay can serve a genuine report of version 2, and has another key."""
    answer = report(fingerprint=TLS_KEY)
    assert read(answer, seen=peer(TLS_KEY)).bindings[0].key == TLS_KEY
    with raises(ServiceError, "other_key"):
        read(answer, seen=peer(OTHER))


def test_tls_key_of_an_unobserved_peer_is_compared_later() -> None:
    """Apart from the connection, the key of the report goes into the binding."""
    assert read(report(fingerprint=TLS_KEY), seen=None).bindings[0] == (
        "tls-spki",
        TLS_KEY,
        "model",
    )


def test_relay_has_no_tls_binding() -> None:
    """TLS ends at the relay, though the report names the model's TLS key."""
    relay = BY_NAME["nano-gpt"]
    claims = read(report(fingerprint=TLS_KEY), relay, peer(OTHER))
    assert [binding.kind for binding in claims.bindings] == ["fields", "signature"]
    assert any("nano-gpt" in limit for limit in claims.not_proven)


def test_report_without_public_key_binds_signatures_only() -> None:
    """An address of ECDSA suffices to check signatures, not to seal."""
    answer = report()
    del answer["signing_public_key"]
    assert [binding.kind for binding in read(answer).bindings] == ["signature"]


def test_report_without_gpus_or_log_is_read() -> None:
    """The quote alone is evidence, with less to appraise."""
    answer = report(gpus=False)
    for name in ("event_log", "info", "vm_config"):
        del answer[name]
    answer["nvidia_payload"] = ""
    (machine,) = read(answer).machines
    assert machine.gpu is None
    assert machine.evidence == bytes.fromhex(answer["intel_quote"])


def test_forms_of_members_that_proxies_use_are_read() -> None:
    """Hex with 0x and in capitals, objects for texts, and texts for objects."""
    answer = report()
    same = read(answer)
    answer["signing_address"] = "0x" + answer["signing_address"].upper()
    answer["signing_public_key"] = "04" + answer["signing_public_key"]
    answer["nvidia_payload"] = json.loads(answer["nvidia_payload"])
    answer["event_log"] = json.loads(answer["event_log"])
    answer["info"]["tcb_info"] = json.dumps(answer["info"]["tcb_info"])
    answer["info"]["vm_config"] = answer.pop("vm_config")
    answer["quote"] = answer.pop("intel_quote")
    changed = read(answer)
    assert changed.bindings == same.bindings
    assert changed.machines[0].report_data == same.machines[0].report_data
    verified(changed.machines[0])


# -- replicas --------------------------------------------------------------------------------------


def test_replicas_are_machines_of_their_own() -> None:
    """Every replica is verified over its own keys; one that repeats the first is not counted."""
    first = report(fingerprint=TLS_KEY)
    key = type(K256)(b"\x07" * 32)
    second = report(fingerprint=OTHER, key=key)
    claims = read({**first, "all_attestations": [first, second]}, seen=peer(OTHER))
    assert [machine.role for machine in claims.machines] == ["model", "model"]
    for machine in claims.machines:
        verified(machine)
    assert [b.key for b in claims.bindings if b.kind == "tls-spki"] == [OTHER, TLS_KEY]
    assert claims.keys == {
        "signing-ecdsa": ethereum_address(K256),
        "signing-ecdsa[1]": ethereum_address(key),
    }


def test_replica_with_a_contradiction_is_refused() -> None:
    """A replica is read as strictly as the first report."""
    first = report()
    with raises(ServiceError, "nonce_echo", start="attestation report: all_attestations[0]"):
        read({**first, "all_attestations": [{**first, "request_nonce": OTHER.hex()}]})
    with raises(FormatError, "wrong_type"):
        read({**first, "all_attestations": [[]]})
    with raises(FormatError, "too_many"):
        read({**first, "all_attestations": [first] * 63})


# -- changed answers -------------------------------------------------------------------------------

CHANGES: Final[dict[str, tuple[dict[str, Any], type[AttestKitError], str]]] = {
    "nonce": ({"request_nonce": OTHER.hex()}, ServiceError, "nonce_echo"),
    "other nonce": ({"nonce": OTHER.hex()}, ServiceError, "nonce_echo"),
    "nonce in text": ({"request_nonce": "xy"}, FormatError, "encoding"),
    "kind": ({"attestation_type": "chutes"}, ServiceError, "no_attestation"),
    "no quote": ({"intel_quote": None}, ServiceError, "no_attestation"),
    "two quotes": ({"quote": "00"}, FormatError, "inconsistent"),
    "quote of a number": ({"intel_quote": 4}, FormatError, "wrong_type"),
    "quote of text": ({"intel_quote": "quote"}, FormatError, "encoding"),
    "short quote": ({"intel_quote": "0400"}, FormatError, "short_header"),
    "algorithm": ({"signing_algo": "rsa"}, FormatError, "unsupported_algorithm"),
    "no algorithm": ({"signing_algo": None}, FormatError, "wrong_type"),
    "other algorithm": ({"signing_algo": "ed25519"}, FormatError, "wrong_size"),
    "no address": ({"signing_address": None}, FormatError, "missing"),
    "other address": ({"signing_address": "11" * 20}, FormatError, "inconsistent"),
    "long address": ({"signing_address": "11" * 21}, FormatError, "wrong_size"),
    "point": ({"signing_public_key": "11" * 64}, FormatError, "wrong_value"),
    "hybrid point": ({"signing_public_key": "06" + PUBLIC[1:].hex()}, FormatError, "wrong_value"),
    "other point": (
        {"signing_public_key": type(K256)(b"\7" * 32).public_key.format(compressed=False).hex()},
        FormatError,
        "inconsistent",
    ),
    "compose": ({"info": {"tcb_info": {"app_compose": "{}"}}}, FormatError, "inconsistent"),
    "compose of a number": ({"info": {"tcb_info": {"app_compose": 1}}}, FormatError, "wrong_type"),
    "info": ({"info": []}, FormatError, "wrong_type"),
    "log": ({"event_log": 3}, FormatError, "wrong_type"),
    "log of text": ({"event_log": "[{}]"}, FormatError, "missing"),
    "GPUs": ({"nvidia_payload": "{}"}, FormatError, "missing"),
    "GPUs of a number": ({"nvidia_payload": 7}, FormatError, "wrong_type"),
    "short fingerprint": ({"tls_cert_fingerprint": "11"}, FormatError, "wrong_size"),
    "model": ({"model_name": 1}, FormatError, "wrong_type"),
    "replicas": ({"all_attestations": {}}, FormatError, "wrong_type"),
}


@every_case("change", CHANGES.values(), ids=CHANGES)
def test_changed_member_is_refused(
    change: tuple[dict[str, Any], type[AttestKitError], str],
) -> None:
    """Each member that contradicts another, or is malformed, is refused with its reason."""
    members, error, reason = change
    with raises(error, reason):
        read({**report(), **members})


def test_ed25519_key_must_have_prime_order() -> None:
    """With a key of small order, a signature would be valid for many messages."""
    answer = report(algorithm="ed25519")
    del answer["signing_public_key"]
    with raises(FormatError, "wrong_value"):
        read({**answer, "signing_address": "00" * 32})
    with raises(FormatError, "inconsistent"):
        read({**answer, "signing_public_key": OTHER.hex()})


def test_log_in_which_the_compose_hash_is_another_is_refused() -> None:
    """The app compose must be the one that was measured, though MR_CONFIG_ID is that of it."""
    answer = report()
    log = td(bytes(64), events=(("compose-hash", OTHER), ("system-ready", b""))).event_log
    assert log is not None
    with raises(FormatError, "inconsistent"):
        read({**answer, "event_log": log.to_json()})


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_evidence_of_another_key_does_not_verify(algorithm: str) -> None:
    """Keys, nonce and TLS key count only by the report data, which are computed here."""
    answer = report(algorithm=algorithm, fingerprint=TLS_KEY)
    other = report(algorithm=algorithm, fingerprint=TLS_KEY, key=None, gpus=False)
    other |= {"tls_cert_fingerprint": OTHER.hex()}
    for claims in (
        read(other),
        DIRECT.read((json.dumps({**answer, "request_nonce": None}).encode(),), OTHER, None, None),
    ):
        with raises(PolicyError, "report_data"):
            verifier().verify(
                claims.machines[0].evidence, report_data=claims.machines[0].report_data
            )


def test_gpus_of_another_request_do_not_verify() -> None:
    """The nonce in the reports of the GPUs must be the client's."""
    answer = report() | {"nvidia_payload": report(OTHER)["nvidia_payload"]}
    (machine,) = read(answer).machines
    with pytest.raises(VerificationError):
        verified(machine)


def test_every_cut_of_a_report_is_refused() -> None:
    """A truncated answer is never read in part."""
    answer = report(gpus=False)
    answer["event_log"] = answer["info"] = answer["vm_config"] = None
    text = json.dumps(answer).encode()
    assert DIRECT.read((text,), NONCE, None, None).machines
    for size in range(len(text)):
        with pytest.raises(FormatError):
            DIRECT.read((text[:size],), NONCE, None, None)
    with raises(FormatError, "syntax"):
        DIRECT.read((text + b"x",), NONCE, None, None)
    with raises(FormatError, "duplicate"):
        DIRECT.read(
            (b'{"nonce":"00",' + text[1:-1] + b',"signing_algo":"ecdsa"}',), NONCE, None, None
        )


@pytest.mark.slow
def test_every_cut_of_the_quote_and_the_log_is_refused() -> None:
    """Neither a part of the quote nor a part of the log is read."""
    answer = report(gpus=False)
    for name in ("intel_quote", "event_log"):
        for size in limited(range(len(answer[name]))):
            with pytest.raises((FormatError, ServiceError)):
                read({**answer, name: answer[name][:size]})


# -- questions -------------------------------------------------------------------------------------


def test_question_names_nonce_algorithm_and_version() -> None:
    """A proxy is asked for its TLS key, a relay for the model."""
    (question,) = DIRECT.questions(NONCE, "a/b c")
    parts = urlsplit(question.target)
    assert parts.path == "/v1/attestation/report"
    assert question.headers == ()
    assert parse_qs(parts.query) == {
        "model": ["a/b c"],
        "nonce": [NONCE.hex()],
        "signing_algo": ["ecdsa"],
        "version": ["2"],
    }
    assert " " not in question.target
    (question,) = BY_NAME["venice"].questions(NONCE, "m")
    assert question.target.startswith("/api/v1/tee/attestation?")
    assert "version" not in question.target


def test_questions_need_a_valid_model() -> None:
    """A relay has many models; a name with a line break could forge a header."""
    assert "model" not in DIRECT.questions(NONCE, None)[0].target
    with raises(UsageError, "missing"):
        BY_NAME["venice"].questions(NONCE, None)
    for name in ("", "a\nb", "x" * 257):
        with raises(UsageError, "wrong_value"):
            DIRECT.questions(NONCE, name)
    with raises(UsageError, "wrong_type"):
        untyped(DIRECT).questions(NONCE, 1)
    with raises(UsageError, "wrong_size"):
        DIRECT.questions(NONCE[1:], "m")
    with raises(UsageError, "wrong_size"):
        DIRECT.read((), NONCE, None, None)


def test_services_are_recognized_by_their_hosts() -> None:
    """Each host names one service; none is assumed of unknown hosts."""
    hosts = {
        "api.redpill.ai": "redpill",
        "nano-gpt.com": "nano-gpt",
        "API.venice.ai": "venice",
        "api.venice.ai.test": None,
        "localhost": None,
    }
    for host, name in hosts.items():
        found = [service.name for service in SERVICES if service.recognizes(host)]
        assert found == ([name] if name else [])
    assert {service.name: service.where for service in SERVICES} == {
        "vllm-proxy": "wire",
        "redpill": "apart",
        "nano-gpt": "apart",
        "venice": "apart",
    }
    assert repr(DIRECT) == "VllmProxy('vllm-proxy')"
