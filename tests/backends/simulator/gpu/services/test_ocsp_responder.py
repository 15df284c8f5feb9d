"""Simulated OCSP responder: answers about certificates of devices and of RIM signers."""

from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.x509.ocsp.answer import read_ocsp_answer
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_error
from attestkit._crypto.x509.ocsp.request import write_ocsp_request
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.xml_signature import read_signature
from tests.pki.ocsp_pki import check_ocsp

SEED = b"a seed of simulated responders.."
NONCE = bytes(range(32))
NOW = 1_780_000_000
MOMENT = datetime.fromtimestamp(NOW, timezone.utc)


def machine(**config: Any) -> SimulatedGpus:
    """Return the devices of a configuration."""
    return SimulatedGpus(SEED, GpuConfig(**config))


def test_ocsp_answers_are_about_all_certificates() -> None:
    """Each certificate but leaves and roots has a good answer of its issuer's responder."""
    gpus = machine(count=8)
    answers = gpus.ocsp_answers(NOW)
    for at, device in enumerate(gpus.devices):
        chain = gpus.chain(device)
        for number in (1, 2, 3):
            found = check_ocsp(answers, chain[number], chain[number + 1], MOMENT)
            assert found.status == "good", at
    for rim in gpus.rims.values():
        signers = read_signature(read_document(rim)).certificates
        for number in (0, 1, 2):
            found = check_ocsp(answers, signers[number], signers[number + 1], MOMENT)
            assert found.status == "good"


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha384"])
def test_ocsp_responder_echoes_nonce(hash_name: Any) -> None:
    """An answer has the nonce and the hash algorithm of the request; the leaf is unauthorized."""
    gpus = machine()
    leaf, brom, ica, *_ = gpus.chain(gpus.devices[0])
    request = write_ocsp_request(brom, ica, hash_name=hash_name, nonce=NONCE)
    answer = gpus.ocsp.respond(request, MOMENT)
    assert check_ocsp([answer], brom, ica, MOMENT).status == "good"
    assert read_ocsp_answer(answer).nonce == NONCE
    assert read_ocsp_answer(answer).cert_id.hash_name == hash_name
    refused = gpus.ocsp.respond(write_ocsp_request(leaf, brom), MOMENT)
    assert refused == write_ocsp_error("unauthorized") == bytes.fromhex("30030a0106")
    assert gpus.ocsp.respond(b"", MOMENT) == write_ocsp_error("malformed request")
