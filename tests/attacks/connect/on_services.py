"""Attempts on the services of connect: answers that a relay, gateway or operator mixes."""

import json
from base64 import b64encode
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from nacl.signing import SigningKey

from attestkit.client.services.chutes import ChutesService
from attestkit.client.services.secretvm import SecretVmService
from attestkit.client.services.service import Claims
from attestkit.errors import AttestKitError, FormatError, PolicyError, ServiceError
from tests.attacks.attempts import Surfaces
from tests.client.services import chutes_answers, test_secretvm
from tests.client.services.captures import peer
from tests.client.services.tinfoil.tinfoil_maker import Enclave, b64
from tests.client.services.vllm import test_near_ai, test_vllm_proxy
from tests.client.services.vllm.simulated_reports import (
    NONCE,
    TLS_KEY,
    report,
    td,
    verified,
)

attacks = Surfaces("connect")
OTHER: Final = bytes(range(1, 33))


def read_and_verify(claims: Claims) -> None:
    """Verify all machines of a report, as an endpoint does."""
    for machine in claims.machines:
        verified(machine)


# -- vllm-proxy and NEAR AI ------------------------------------------------------------------------


@cache
def _genuine_reports() -> None:
    read_and_verify(test_vllm_proxy.read(report(fingerprint=TLS_KEY), seen=peer(TLS_KEY)))
    read_and_verify(test_near_ai.read_cloud(test_near_ai.cloud_answer()))


def vllm(answer: dict[str, Any], seen: bytes = TLS_KEY) -> None:
    """Read a report, and verify it; the unaltered one is accepted."""
    _genuine_reports()
    read_and_verify(test_vllm_proxy.read(answer, seen=peer(seen)))


def near(answer: dict[str, Any], seen: bytes = test_near_ai.GATEWAY_TLS) -> None:
    """Read an answer of the gateway, and verify it; the unaltered one is accepted."""
    _genuine_reports()
    read_and_verify(test_near_ai.read_cloud(answer, seen))


@attacks.attempt("relay", ServiceError, "other_key")
def model_report_with_a_tls_key_through_a_relay() -> None:
    """The relay ends TLS with its own key."""
    vllm(report(fingerprint=TLS_KEY), seen=OTHER)


@attacks.attempt("relay", PolicyError, "report_data")
def model_report_whose_tls_key_is_replaced_by_the_relays() -> None:
    """The fingerprint is in the report data."""
    vllm({**report(fingerprint=TLS_KEY), "tls_cert_fingerprint": OTHER.hex()}, seen=OTHER)


@attacks.attempt("relay", PolicyError, "report_data")
def model_report_of_version_2_as_one_of_version_1() -> None:
    """Without the fingerprint the connection would be left out of the comparison."""
    found = report(fingerprint=TLS_KEY)
    del found["tls_cert_fingerprint"]
    vllm(found, seen=OTHER)


@attacks.attempt("confuse", AttestKitError, "wrong_value", "report_data")
def hash_of_version_2_as_an_ed25519_key_of_version_1() -> None:
    """Both are the first 32 bytes of the report data."""
    found = report(fingerprint=TLS_KEY)
    quote = td(bytes(64)).quote
    assert quote is not None
    at = quote.raw.index(quote.report_data)
    start = bytes.fromhex(found["intel_quote"])[at : at + 32]
    for name in ("tls_cert_fingerprint", "signing_public_key"):
        del found[name]
    vllm({**found, "signing_algo": "ed25519", "signing_address": start.hex()}, seen=OTHER)


@attacks.attempt("recombine", PolicyError, "report_data")
def signing_key_of_another_model_in_a_report() -> None:
    """The key of the attacker's own genuine machine."""
    other = report(algorithm="ed25519")
    mine = report(algorithm="ed25519", key=test_near_ai.GATEWAY_KEY)
    names = ("signing_address", "signing_public_key")
    vllm({**other, **{name: mine[name] for name in names}})


@attacks.attempt("recombine", FormatError, "inconsistent")
def key_for_sealing_that_is_not_the_one_of_the_address() -> None:
    """Only the address is in the report data, so the key must be its preimage."""
    public = test_near_ai.GATEWAY_KEY.verify_key.encode().hex()
    vllm({**report(algorithm="ed25519"), "signing_public_key": public})


@attacks.attempt("forge", FormatError, "wrong_value")
def key_for_sealing_of_low_order() -> None:
    """Every network attacker can open a message that is sealed to such a key."""
    low = bytes([1]) + bytes(31)
    found = {**report(algorithm="ed25519"), "signing_address": low.hex()}
    vllm({**found, "signing_public_key": low.hex()})


@attacks.attempt("confuse", FormatError, "inconsistent")
def two_quotes_in_one_report() -> None:
    """One member is verified, and another would be shown."""
    quote = td(bytes(64)).quote
    assert quote is not None
    vllm({**report(), "quote": quote.raw.hex()})


@attacks.attempt("confuse", ServiceError, "nonce_echo")
def nonce_echo_of_another_request_in_the_second_name() -> None:
    """An answer has two names for it."""
    vllm({**report(), "nonce": OTHER.hex()})


@attacks.attempt("replay", PolicyError, "report_data")
def old_report_whose_echo_is_renewed() -> None:
    """The nonce in the answer is renewed, that in the quote is old."""
    vllm({**report(OTHER, gpus=False), "request_nonce": NONCE.hex()})


@attacks.attempt("recombine", AttestKitError, "nonce")
def gpus_of_an_earlier_answer_beside_a_new_quote() -> None:
    """The GPUs' evidence has the nonce of another request."""
    vllm({**report(), "nvidia_payload": report(OTHER)["nvidia_payload"]})


@attacks.attempt("recombine", PolicyError, "report_data")
def replica_of_the_attacker_beside_the_genuine_report() -> None:
    """Each replica is a machine, and its key signs answers: it must verify as the first does."""
    replica = {
        **report(algorithm="ed25519", gpus=False),
        "signing_address": test_near_ai.GATEWAY_KEY.verify_key.encode().hex(),
    }
    del replica["signing_public_key"]
    vllm({**report(), "all_attestations": [report(), replica]})


@attacks.attempt("exhaust", FormatError, "too_many")
def replicas_without_end() -> None:
    """Each would cost a verification."""
    vllm({**report(), "all_attestations": [report()] * 64})


@attacks.attempt("recombine", ServiceError, "other_key")
def gateway_answer_through_another_gateway() -> None:
    """Both have genuine evidence; the connection ends at the other one."""
    near(test_near_ai.cloud_answer(), seen=OTHER)


@attacks.attempt("recombine", ServiceError, "ends_at_gateway")
def gateway_that_leaves_the_models_out() -> None:
    """The gateway serves a model without evidence."""
    near(test_near_ai.cloud_answer(model_attestations=[]))


@attacks.attempt("recombine", ServiceError, "no_attestation")
def gateway_that_attests_a_cheaper_model() -> None:
    """The report is genuine, of another model than was asked for."""
    near(
        test_near_ai.cloud_answer(
            model_attestations=[test_near_ai.model_report(model_name="org/small")]
        )
    )


@attacks.attempt("recombine", ServiceError, "signature")
def key_configuration_signed_for_another_configuration() -> None:
    """The key of OHTTP is replaced under a genuine signature."""
    found = test_near_ai.model_report()
    config = bytes.fromhex("010020" + "22" * 32 + "00080001000100010003").hex()
    found["ohttp_attestation"] = {**found["ohttp_attestation"], "key_config": config}
    found["ohttp_key_config"] = config
    near(test_near_ai.cloud_answer(model_attestations=[found]))


@attacks.attempt("recombine")
def key_configuration_signed_by_a_key_that_is_not_attested() -> None:
    """It is not among the keys of the claims."""
    _genuine_reports()
    mine = test_near_ai.ohttp(SigningKey(b"\x0a" * 32))
    answer = test_near_ai.cloud_answer(model_attestations=[test_near_ai.model_report(**mine)])
    assert "ohttp" not in test_near_ai.read_cloud(answer).keys
    assert "ohttp" in test_near_ai.read_cloud(test_near_ai.cloud_answer()).keys


@attacks.attempt("recombine", FormatError, "inconsistent")
def compose_manager_of_another_machine() -> None:
    """Its actions are those of another TD."""
    other = test_near_ai.compose_manager(mr_config_id=b"\1" + bytes(47))
    found = test_near_ai.model_report(compose_manager_attestation=other)
    near(test_near_ai.cloud_answer(model_attestations=[found]))


@attacks.attempt("forge", FormatError, "inconsistent")
def compose_manager_without_its_last_action() -> None:
    """The attacker's compose file was the last that it started."""
    manager = {**test_near_ai.compose_manager(), "actions": []}
    del manager["actions_hash"]
    found = test_near_ai.model_report(compose_manager_attestation=manager)
    near(test_near_ai.cloud_answer(model_attestations=[found]))


# -- Chutes ----------------------------------------------------------------------------------------

_FIRST, _SECOND = chutes_answers.INSTANCES


def chutes(evidence: bytes, instances: bytes) -> None:
    """Read answers of Chutes, and verify them; the unaltered ones are accepted."""
    _chutes(chutes_answers.evidence(chutes_answers.entry(_FIRST)), chutes_answers.instances(_FIRST))
    _chutes(evidence, instances)


def _chutes(evidence: bytes, instances: bytes) -> None:
    answers = (evidence, instances)
    claims = ChutesService().read(answers, chutes_answers.NONCE, None, chutes_answers.CHUTE)
    for one in claims.machines:
        chutes_answers.machine().verifier().verify(one.evidence, report_data=one.report_data)


def _entry(**changes: Any) -> bytes:
    return chutes_answers.evidence({**chutes_answers.entry(_FIRST), **changes})


@attacks.attempt("recombine", PolicyError, "report_data")
def key_of_the_operator_for_an_attested_instance() -> None:
    """The list of keys is not signed: the evidence is of the instance's own key."""
    mine = b64encode(bytes(1184)).decode()
    chutes(_entry(gpu_evidence=[]), chutes_answers.instances(_FIRST, e2e_pubkey=mine))


@attacks.attempt("recombine", PolicyError, "report_data")
def evidence_of_one_instance_for_the_id_of_another() -> None:
    """The id says nothing; the key does."""
    chutes(_entry(instance_id=_SECOND, gpu_evidence=[]), _keys_of(_SECOND))


def _keys_of(instance: str) -> bytes:
    other = json.loads(chutes_answers.instances(instance))
    other["instances"][0]["e2e_pubkey"] = b64encode(b"\1" * 1184).decode()
    return json.dumps(other).encode()


@attacks.attempt("confuse", FormatError, "duplicate")
def instance_with_two_keys() -> None:
    """The first would be verified, and the second be sealed to."""
    chutes(_entry(), chutes_answers.instances(_FIRST, _FIRST))


@attacks.attempt("recombine", PolicyError, "report_data")
def certificate_of_the_operator_beside_genuine_evidence() -> None:
    """The half of the report data that a certificate gives."""
    mine = Enclave(chutes_answers.machine(), "tdx", scalar=9).certificate("a")
    changed = _entry(certificate=b64(mine.public_bytes(Encoding.DER)), gpu_evidence=[])
    chutes(changed, chutes_answers.instances(_FIRST))


@attacks.attempt("exhaust", FormatError, "too_many")
def instances_without_end() -> None:
    """Each would cost a verification."""
    many = [chutes_answers.entry(_FIRST)] * 65
    chutes(chutes_answers.evidence(*many), chutes_answers.instances(_FIRST))


@attacks.attempt("replay")
def nonces_of_an_instance_that_never_end() -> None:
    """The operator says how long they are valid, and the client at most an hour."""
    clock = [0.0]
    service = ChutesService(now=lambda: clock[0])
    listed = json.loads(chutes_answers.instances(_FIRST)) | {"nonce_expires_in": 1 << 31}
    answers = (_entry(), json.dumps(listed).encode())
    claims = service.read(answers, chutes_answers.NONCE, None, chutes_answers.CHUTE)
    assert service.renewal(claims, claims.bindings[0], chutes_answers.CHUTE) is None
    clock[0] = 3601
    assert service.renewal(claims, claims.bindings[0], chutes_answers.CHUTE) is not None


# -- SecretVM --------------------------------------------------------------------------------------


@attacks.attempt("relay", ServiceError, "other_key")
def evidence_of_a_secretvm_on_the_connection_of_another() -> None:
    """The key of the evidence is compared with that of the connection."""
    test_secretvm.read(test_secretvm.cpu(), seen=test_secretvm.PEER)
    test_secretvm.read(test_secretvm.cpu(OTHER), seen=test_secretvm.PEER)


@attacks.attempt("recombine", FormatError, "inconsistent")
def gpus_of_another_secretvm() -> None:
    """Each is genuine; the nonce of the GPUs is not the one in the report data."""
    own = test_secretvm.cpu(nonce=test_secretvm.gpu_nonce())
    test_secretvm.read(own, test_secretvm.gpu())
    test_secretvm.read(own, test_secretvm.gpu(OTHER))


@attacks.attempt("recombine", ServiceError, "no_gpu")
def gpus_over_a_nonce_of_zeros() -> None:
    """A machine without GPUs has zeros there, for which anybody's GPUs can be asked."""
    test_secretvm.read(test_secretvm.cpu(), test_secretvm.gpu(bytes(32)))


@attacks.attempt("confuse", FormatError, "encoding")
def quote_in_hex_of_digits_that_are_base64_too() -> None:
    """Evidence in hex is read as a quote only."""
    test_secretvm.read(test_secretvm.cpu())
    test_secretvm.read(test_secretvm.cpu()[:-1])


@attacks.attempt("exhaust", FormatError, "too_large")
def secretvm_answer_over_its_size() -> None:
    """A quote has some kilobytes."""
    SecretVmService().read((b"0" * (1 << 20),), OTHER, None, None)
