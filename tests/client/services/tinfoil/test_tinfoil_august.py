"""Tinfoil's documents of August 2026: sections, keys, devices and collateral."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from attestkit.errors import (
    FormatError,
    ServiceError,
    VerificationError,
)
from attestkit.testing import SimulatedTee
from tests.client.services.tinfoil.tinfoil_maker import (
    LABEL,
    NONCE,
    Enclave,
    b64,
    changed,
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


def test_august_draft_without_label_is_refused(snp: Enclave) -> None:
    """The draft hashed nonce and sections only; neither its claim nor its evidence is accepted."""
    draft = snp.august(label=b"")
    error = refusal(snp, draft)
    assert (type(error), error.reason) == (FormatError, "inconsistent")
    assert (
        refusal(snp, changed(draft.decode(), without("challenge", "report_data_algorithm"))).reason
        == "missing"
    )
    document = json.loads(snp.august())
    stated = document["challenge"]["report_data"]
    relabelled = changed(draft.decode(), setting("challenge", "report_data", to=stated))
    error = refusal(snp, relabelled)
    assert isinstance(error, VerificationError)
    assert error.reason == "report_data"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting("challenge", "report_data_algorithm", to=LABEL.decode() + "x"), "unsupported"),
        (setting("challenge", "nonce", to=NONCE.hex().upper()), "encoding"),
        (setting("challenge", "report_data", to="00" * 64), "inconsistent"),
        (setting("cpu_evidence", "endorsed", "crypto_material_hash", to="00" * 32), "inconsistent"),
        (setting("cpu_evidence", "endorsed", "device_evidence_hash", to="00" * 32), "inconsistent"),
        (setting("cpu_evidence", "format", to="https://tinfoil.sh/format/x/v1"), "unsupported"),
        (setting("crypto_material", to=lambda text: text + "\n"), "encoding"),
        (setting("crypto_material", to=""), "wrong_size"),
        (setting("device_evidence", to=[]), "wrong_type"),
        (setting("collateral", to={}), "wrong_type"),
        (setting("collateral", to=[{}]), "missing"),
        (setting("collateral", to=[5]), "wrong_type"),
        (setting("format", to="https://tinfoil.sh/predicate/attestation/v4"), "unsupported"),
    ],
)
def test_august_changed(snp: Enclave, change: Any, reason: str) -> None:
    """Each part of the document has one valid form, and hashes that agree."""
    error = refusal(snp, snp.august(change))
    assert (type(error), error.reason) == (FormatError, reason)


KEY: Final = "https://tinfoil.sh/key"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([{"id": "tls", "format": f"{KEY}/spki/v1", "data": "00"}], "unsupported"),
        ([{"id": "hpke", "format": f"{KEY}/spki-fp-sha256/v1", "data": "00" * 32}], "unsupported"),
        ([{"id": "tls", "format": f"{KEY}/spki-fp-sha256/v1", "data": "00"}], "wrong_size"),
        ([{"id": "tls", "format": f"{KEY}/spki-fp-sha256/v1", "data": "AB" * 32}], "encoding"),
        ([{"id": "", "format": f"{KEY}/spki/v1", "data": "00"}], "missing"),
        ([{"id": "a", "format": f"{KEY}/spki/v1", "data": ""}], "encoding"),
        ([{"id": "a", "format": f"{KEY}/spki/v1", "data": "00"}] * 2, "duplicate"),
        ([{"id": "a", "format": f"{KEY}/spki/v1", "data": "00", "more": 1}], "unknown_field"),
        ([{"id": "a", "format": f"{KEY}/spki/v1"}], "missing"),
        ([{"id": f"{n}", "format": "x", "data": "00"} for n in range(257)], "too_many"),
        (["a"], "wrong_type"),
    ],
)
def test_august_keys_are_strict(snp: Enclave, items: Any, reason: str) -> None:
    """Keys have unique ids, and TLS and HPKE their one format, although the hash covers them."""
    error = refusal(snp, snp.august(keys=items))
    assert (type(error), error.reason) == (FormatError, reason)


def test_august_other_keys_are_claimed(snp: Enclave) -> None:
    """Keys with other ids are among the claims; without TLS and HPKE nothing binds a channel."""
    other = {"id": "workload-key", "format": f"{KEY}/spki/v1", "data": "3000"}
    claims = read(snp, snp.august(keys=[*snp.keys(), other]))
    assert claims.keys == {"workload-key": b"\x30\0"}
    snp.verify(claims)
    only_hpke = read(snp, snp.august(keys=[snp.keys()[1]]))
    assert [binding.kind for binding in only_hpke.bindings] == ["hpke"]
    error = refusal(snp, snp.august(keys=[other]))
    assert (type(error), error.reason) == (ServiceError, "no_channel")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting("crypto_material", "format", to="x"), "unsupported"),
        (setting("device_evidence", "format", to="x"), "unsupported"),
        (setting("device_evidence", "items", to={}), "wrong_type"),
        (setting("device_evidence", "items", to=[{"id": "a"}]), "missing"),
        (without("crypto_material", "items"), "missing"),
        (setting("crypto_material", to=[]), "wrong_type"),
    ],
)
def test_august_sections_are_strict(snp: Enclave, change: Any, reason: str) -> None:
    """Sections have their format and items, although the hash covers any text."""
    error = refusal(snp, snp.august(sections=change))
    assert (type(error), error.reason) == (FormatError, reason)


def test_august_gpu_and_other_devices() -> None:
    """Evidence of a GPU verifies; a clock is passed over; an unknown device is refused."""
    item = {"id": "gpu0", "kind": "gpu", "vendor": "nvidia"}
    form = "https://tinfoil.sh/format/nvidia-gpu-evidence/v1"
    clock = {"id": "clock", "kind": "clock", "vendor": "x", "format": "x", "evidence": {}}
    with SimulatedTee(platform="tdx", gpus=1) as tee:
        enclave = Enclave(tee, "tdx")
        [device] = [found.to_object() for found in tee.gpu_evidence(NONCE).devices]
        gpu = {**item, "format": form, "evidence": device}
        [machine] = read(enclave, enclave.august(devices=[gpu, clock])).machines
        assert machine.gpu is not None
        verifier = tee.verifier()
        assert verifier.verify(machine.evidence, gpu=machine.gpu).gpu is not None
        assert read(enclave, enclave.august(devices=[clock])).machines[0].gpu is None
        unknown = {**gpu, "format": "https://tinfoil.sh/format/nvidia-nvswitch-evidence/v1"}
        assert refusal(enclave, enclave.august(devices=[unknown])).reason == "unsupported"
        assert refusal(enclave, enclave.august(devices=[gpu, gpu])).reason == "duplicate"


def test_august_collateral_has_the_vcek(snp: Enclave) -> None:
    """The VCEK and its issuers are taken from the collateral; other entries are not used."""
    pem = snp.pem("a")
    entry = {
        "id": "cpu-endorsement",
        "role": "endorsement",
        "format": "https://tinfoil.sh/collateral/amd-vcek/v1",
        "subjects": ["cpu"],
        "data": {"vcek_der_base64": b64(b"\x30\0"), "cert_chain_pem": pem + pem},
    }
    other = {"id": "code", "role": "reference-values", "format": "x", "data": {"a": [1]}}
    [machine] = read(snp, snp.august(setting("collateral", to=[other, entry]))).machines
    assert machine.snp_certificates[0] == b"\x30\0"
    assert len(machine.snp_certificates) == 3
    twice = [entry, {**entry, "id": "b"}]
    assert refusal(snp, snp.august(setting("collateral", to=twice))).reason == "duplicate"
    same = [other, {**entry, "id": "code"}]
    assert refusal(snp, snp.august(setting("collateral", to=same))).reason == "duplicate"
    bad = {**entry, "data": {"vcek_der_base64": "x"}}
    assert refusal(snp, snp.august(setting("collateral", to=[bad]))).reason == "encoding"
