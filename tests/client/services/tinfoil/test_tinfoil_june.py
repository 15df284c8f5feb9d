"""Tinfoil's documents of June 2026: what the signature and the report data cover."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from attestkit.errors import (
    AttestKitError,
    FormatError,
    ServiceError,
    VerificationError,
)
from attestkit.testing import SimulatedTee
from tests.client.services.tinfoil.tinfoil_maker import (
    DOMAIN,
    NONCE,
    Enclave,
    read,
    refusal,
    setting,
    without,
)


@pytest.fixture(scope="module")
def snp() -> Iterator[Enclave]:
    """Provide an enclave on SEV-SNP, for tests in which the platform does not matter."""
    with SimulatedTee(platform="snp") as tee:
        yield Enclave(tee, "sev-snp")


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (setting("report_data", "hpke_key", to="ab" * 32), VerificationError, "report_data"),
        (setting("report_data", "hpke_key", to="AB" * 32), FormatError, "encoding"),
        (setting("report_data", "hpke_key", to="0x" + "ab" * 32), FormatError, "encoding"),
        (setting("report_data", "hpke_key", to="ab" * 31), FormatError, "wrong_size"),
        (setting("report_data", "hpke_key", to=None), FormatError, "wrong_type"),
        (setting("report_data", "tls_key_fp", to="ab" * 32), FormatError, "inconsistent"),
        (setting("report_data", "gpu_evidence_hash", to="ab" * 32), FormatError, "inconsistent"),
        (setting("cpu", "platform", to="tdx"), FormatError, None),
        (setting("cpu", "platform", to="nitro"), FormatError, "unsupported"),
        (setting("cpu", "report", to=""), FormatError, "wrong_size"),
        (setting("cpu", "report", to=lambda text: text + "\n"), FormatError, "encoding"),
        (setting("certificate", to="x"), FormatError, "syntax"),
        (setting("signature", to="AAAA"), ServiceError, "signature"),
        (setting("gpu", to={}), FormatError, "missing"),
    ],
)
def test_june_signed_anew(
    snp: Enclave, change: Any, kind: type[AttestKitError], reason: str | None
) -> None:
    """The service's own signature does not make up for what the evidence does not cover."""
    error = refusal(snp, snp.june(change))
    assert isinstance(error, kind)
    assert reason is None or error.reason == reason


def test_june_signature_is_over_the_text_as_sent(snp: Enclave) -> None:
    """The signature covers the text with an empty signature, without line ends after it."""
    for tail in ("", "\n", "\n\n"):
        read(snp, snp.june(tail=tail))
    spaced = snp.june().replace(b'"cpu":{', b'"cpu": {')
    assert refusal(snp, spaced).reason == "signature"
    assert refusal(snp, snp.june(tail=" ")).reason == "signature"


def test_june_signature_of_another_key_is_refused(snp: Enclave) -> None:
    """A certificate of another key, whose signature is valid, is not that of tls_key_fp."""
    other = Enclave(snp.tee, "sev-snp", scalar=8)
    pem = other.pem(DOMAIN)
    assert refusal(snp, snp.june(setting("certificate", to=pem))).reason == "inconsistent"
    assert refusal(snp, other.june()).reason == "other_key"


def test_june_gpu_evidence_as_sent_is_bound() -> None:
    """The GPU's evidence verifies with that of the CPU; its text cannot be written anew."""
    with SimulatedTee(platform="tdx", gpus=1) as tee:
        enclave = Enclave(tee, "tdx")
        devices = json.loads(tee.gpu_evidence(NONCE).to_json())
        gpu = {"evidences": devices if isinstance(devices, list) else devices["evidences"]}
        answer = enclave.june(gpu=gpu)
        [machine] = read(enclave, answer).machines
        assert machine.gpu is not None
        assert machine.gpu.report_data == machine.report_data
        verifier = tee.verifier()
        assert verifier.verify(machine.evidence, gpu=machine.gpu).gpu is not None
        spaced = answer.replace(b'"gpu":{', b'"gpu":{ ')
        assert refusal(enclave, spaced).reason == "inconsistent"
        assert refusal(enclave, enclave.june(without("gpu"), gpu=gpu)).reason == "inconsistent"
        assert (
            refusal(
                enclave, enclave.june(without("report_data", "gpu_evidence_hash"), gpu=gpu)
            ).reason
            == "missing"
        )
