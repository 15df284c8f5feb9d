"""SecretVM: the evidence names the TLS key of a machine, and the machine's GPUs by their nonce."""

import json
from base64 import b64encode
from functools import cache
from typing import Any, Final

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.client.services.secretvm import (
    MAX_CPU_ANSWER,
    MAX_IMAGES,
    MAX_REGISTRY,
    SecretVmImage,
    SecretVmService,
    read_secretvm_registry,
    secretvm_references,
    secretvm_rtmr3,
)
from attestkit.client.services.service import Claims
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, GpuEvidenceError, PolicyError, ServiceError, UsageError
from attestkit.quote import Quote
from attestkit.testing import SimulatedTee
from attestkit.verifier import AppraisalPolicy, ReferenceValues, TcbStatus
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, needs_shared

FOLDER: Final = SHARED / "data" / "services" / "secretvm"
EXPECTED: Final[dict[str, Any]] = (
    json.loads((FOLDER.parent / "expected.json").read_text())["secretvm"] if HAVE_SHARED else {}
)
QUOTES: Final = sorted(EXPECTED.get("quotes", {}))
NONCE: Final = bytes(range(32))
PEER: Final = ObservedPeer("a.vm.scrtlabs.com", 29343, b"leaf", b"key of the port")
COMPOSE: Final = b"services: {}\n"
POLICY: Final = AppraisalPolicy(accepted_statuses=[TcbStatus.UP_TO_DATE])


@cache
def machine() -> SimulatedTee:
    """Return a machine with two GPUs."""
    return SimulatedTee(gpus=2)


def gpu_nonce() -> bytes:
    """Return the nonce that the machine chose for its GPUs."""
    return sha256(b"of the machine")


def cpu(key: bytes | None = None, nonce: bytes = b"") -> bytes:
    """Return the answer about a TLS key."""
    report_data = (PEER.spki_sha256 if key is None else key) + nonce.ljust(32, b"\0")
    return machine().raw_quote(report_data).hex().encode()


def gpu(nonce: bytes | None = None) -> bytes:
    """Return the answer with the evidence of GPUs, as NVIDIA's SDKs write it."""
    nonce = gpu_nonce() if nonce is None else nonce
    devices = json.loads(machine().gpu_evidence(nonce).to_json())
    listed = devices if isinstance(devices, list) else devices["evidences"]
    return json.dumps({"nonce": nonce.hex(), "arch": "HOPPER", "evidence_list": listed}).encode()


def read(*answers: bytes, seen: ObservedPeer | None = None) -> Claims:
    """Read answers; two of them are of a machine with GPUs."""
    return SecretVmService(gpu=len(answers) > 1).read(answers, NONCE, seen, None)


def test_questions_go_to_the_attestation_port() -> None:
    """Evidence is on another port of the host; that of GPUs only if it is required."""
    [question] = SecretVmService().questions(NONCE, None)
    assert (question.target, question.origin) == ("/cpu", ":29343")
    targets = [one.target for one in SecretVmService(gpu=True, port=21434).questions(NONCE, None)]
    assert targets == ["/cpu", "/gpu"]


@pytest.mark.parametrize(
    ("host", "known"),
    [("a.vm.scrtlabs.com", True), ("A.VM.SCRTLABS.COM", True), ("vm.scrtlabs.com.example", False)],
)
def test_known_hosts(host: str, known: bool) -> None:
    """The operator's domain is known."""
    assert SecretVmService().recognizes(host) is known


def test_evidence_without_gpus() -> None:
    """The key of the evidence is bound, and compared on each connection; nothing is fresh."""
    claims = read(cpu())
    [only] = claims.machines
    result = machine().verifier(policy=POLICY).verify(only.evidence, report_data=only.report_data)
    assert result.simulated
    assert {one.key for one in claims.bindings} == {PEER.spki_sha256}
    assert [one.kind for one in claims.bindings] == ["tls-spki", "tls-certificate"]
    assert claims.freshness == "key possession"
    text = "; ".join(claims.not_proven)
    for part in ("fresh", "the app", "GPUs"):
        assert part in text


def test_evidence_with_gpus() -> None:
    """The GPUs' nonce is the second half of the report data."""
    claims = read(cpu(nonce=gpu_nonce()), gpu())
    [only] = claims.machines
    assert only.gpu is not None
    assert only.gpu.report_data == only.report_data
    verifier = machine().verifier(policy=POLICY)
    verifier.verify(only.evidence, gpu=only.gpu)
    assert "GPUs" not in "; ".join(claims.not_proven)


def test_older_images_name_the_certificate() -> None:
    """The key may be the hash of the SPKI, or of the whole certificate."""
    assert [one.kind for one in read(cpu(), seen=PEER).bindings] == ["tls-spki"]
    older = read(cpu(sha256(PEER.certificate)), seen=PEER).bindings
    assert [(one.kind, one.key) for one in older] == [("tls-certificate", sha256(b"leaf"))]


def test_evidence_about_another_key() -> None:
    """A relay of genuine evidence has another key."""
    with raises(ServiceError, "other_key"):
        read(cpu(bytes(32)), seen=PEER)


def test_snp_report() -> None:
    """SEV-SNP has its report in base64, with the same report data."""
    with SimulatedTee(platform="snp") as tee:
        report = tee.attest(report_data=PEER.spki_sha256 + bytes(32)).snp_report
    assert report is not None
    claims = read(b64encode(report.raw) + b"\n")
    assert claims.bindings[0].key == PEER.spki_sha256
    assert claims.machines[0].evidence == report.raw


# -- what is refused -------------------------------------------------------------------------------


@every_case(
    ("answer", "reason"),
    [
        (b"", "missing"),
        (b"\xff", "encoding"),
        (b"abc", "encoding"),
        (b"<html>", "encoding"),
        (b"AAAA", "wrong_size"),
        (b"00" * 40, "short_header"),
        (b"0" * (MAX_CPU_ANSWER + 1), "too_large"),
    ],
)
def test_malformed_cpu_answer(answer: bytes, reason: str) -> None:
    """Neither a quote in hex nor a report in base64: refused."""
    with raises(FormatError, reason):
        read(answer)


def test_every_cut_is_refused() -> None:
    """Answers that end early are malformed."""
    answer, devices = cpu(nonce=gpu_nonce()), gpu()
    for size in range(0, len(answer) - 1, 101):
        with pytest.raises(FormatError):
            read(answer[:size])
    for size in range(0, len(devices), 499):
        with pytest.raises(FormatError):
            read(answer, devices[:size])


def test_gpus_of_another_nonce() -> None:
    """GPUs that were asked with another nonce do not belong to this CPU."""
    with raises(FormatError, "inconsistent"):
        read(cpu(nonce=gpu_nonce()), gpu(bytes(31) + b"\1"))
    with raises(ServiceError, "no_gpu"):
        read(cpu(), gpu(bytes(32)))
    lying = gpu(bytes(31) + b"\1").replace(
        (bytes(31) + b"\1").hex().encode(), gpu_nonce().hex().encode()
    )
    [only] = read(cpu(nonce=gpu_nonce()), lying).machines
    assert only.gpu is not None
    with pytest.raises(GpuEvidenceError):
        machine().verifier(policy=POLICY).verify(only.evidence, gpu=only.gpu)


@every_case(
    ("answer", "reason"),
    [
        (b"[]", "wrong_type"),
        (b"{}", "missing"),
        (b'{"nonce":"00"}', "wrong_size"),
        (b'{"nonce":"%s"}' % gpu_nonce().hex().encode(), "missing"),
    ],
)
def test_malformed_gpu_answer(answer: bytes, reason: str) -> None:
    """Evidence of GPUs that cannot be read is refused, not ignored."""
    with raises(FormatError, reason):
        read(cpu(nonce=gpu_nonce()), answer)


# -- images and apps -------------------------------------------------------------------------------

HEADER: Final = "template_name,vm_type,artifacts_ver,mrtd,rtmr0,rtmr1,rtmr2,rootfs_data,host_id"
ROW: Final = ",".join(["small", "prod", "v1", *(f"{n:02x}" * 48 for n in range(4)), "05" * 32, ""])


def test_registry() -> None:
    """A row of the registry is an image; other columns and spaces do not matter."""
    [image] = read_secretvm_registry(f"{HEADER}\n{ROW.replace(',05', ', 05', 1)}\n")
    assert image[:3] == ("small", "prod", "v1")
    assert image[3:] == (*(bytes([n]) * 48 for n in range(4)), b"\5" * 32)


@every_case(
    ("text", "reason"),
    [
        ("", "missing"),
        ("a,b\n1,2\n", "missing"),
        (f"{HEADER}\nsmall,prod\n", "truncated"),
        (f"{HEADER}\n{ROW[:200]}\n", "truncated"),
        (f"{HEADER}\n{ROW.replace('05' * 32, '05')}\n", "wrong_size"),
        (f"{HEADER}\n{ROW.replace('05', 'xx')}\n", "encoding"),
        (f'{HEADER}\n"small"x,{ROW[6:]}\n', "syntax"),
        (" " * (MAX_REGISTRY + 1), "too_large"),
        (f"{HEADER}\n" + f"{ROW}\n" * 2 + ROW[:30], "truncated"),
        (f"{HEADER}\n" + f"{ROW}\n" * (MAX_IMAGES + 1), "too_many"),
    ],
)
def test_malformed_registry(text: str, reason: str) -> None:
    """A registry that is cut or altered in its form is refused."""
    with raises(FormatError, reason):
        read_secretvm_registry(text)


def test_register_of_an_app() -> None:
    """RTMR3 depends on compose file, image and docker files, and on their order."""
    values = {
        secretvm_rtmr3(COMPOSE, b"\1" * 32),
        secretvm_rtmr3(COMPOSE + b"#", b"\1" * 32),
        secretvm_rtmr3(COMPOSE, b"\2" * 32),
        secretvm_rtmr3(COMPOSE, b"\1" * 32, b"\3" * 32),
    }
    assert len(values) == 4
    with raises(UsageError, "wrong_size"):
        secretvm_rtmr3(COMPOSE, b"\1")


def test_policy_of_an_app() -> None:
    """Reference values made of images accept the registers of the machine, and no others."""
    rtmrs = Quote.parse(bytes.fromhex(cpu().decode())).rtmrs
    quote = Quote.parse(bytes.fromhex(cpu().decode()))
    image = SecretVmImage("small", "prod", "v1", quote.mrtd, *rtmrs[:3], b"\5" * 32)
    references = secretvm_references([image], COMPOSE)
    assert references.rtmr3 == {secretvm_rtmr3(COMPOSE, b"\5" * 32)}
    policy = AppraisalPolicy(accepted_statuses=[TcbStatus.UP_TO_DATE], reference_values=references)
    [only] = read(cpu()).machines
    with raises(PolicyError, "reference_value"):
        machine().verifier(policy=policy).verify(only.evidence, report_data=only.report_data)
    with raises(UsageError, "missing"):
        secretvm_references([], COMPOSE)


# -- captures --------------------------------------------------------------------------------------


def expected_quote(name: str) -> dict[str, Any]:
    """Return what is known of a captured answer."""
    found: dict[str, Any] = EXPECTED["quotes"][name]
    return found


@needs_shared
@pytest.mark.parametrize("name", QUOTES)
def test_captured_answers(name: str) -> None:
    """Report data and key of a captured answer are those in its evidence."""
    known = expected_quote(name)
    answer = (FOLDER / name).read_bytes()
    claims = read(answer)
    [only] = claims.machines
    assert only.report_data.hex() == known["report_data"]
    assert claims.bindings[0].key.hex() == known["report_data"][:64]
    assert isinstance(only.evidence, bytes)
    assert sha256(only.evidence).hex() == known["sha256"]
    for size in range(0, len(answer) - 2, 211):
        with pytest.raises(FormatError):
            read(answer[:size])


@needs_shared
def test_captured_gpus_belong_to_one_of_the_quotes() -> None:
    """The nonce of the captured GPUs is in one quote, and refused with another."""
    devices = (FOLDER / "gpu_attest.txt").read_bytes()
    [name] = EXPECTED["gpu_attest.txt"]["is_report_data_32_64_of"]
    [only] = read((FOLDER / name).read_bytes(), devices).machines
    assert only.gpu is not None
    assert only.gpu.gpu_nonce.hex() == EXPECTED["gpu_attest.txt"]["nonce"]
    assert only.gpu.report_data == only.report_data
    other = (FOLDER / "tdx_cpu_docker_check_quote.txt").read_bytes()
    with raises(ServiceError, "no_gpu"):
        read(other, devices)


@needs_shared
@pytest.mark.parametrize("name", sorted(EXPECTED.get("workloads", {})))
def test_captured_images_and_app(name: str) -> None:
    """The published registry has the image; compose file and image give RTMR3."""
    known, told = expected_quote(name), EXPECTED["workloads"][name]
    rows = [
        row
        for row in read_secretvm_registry((FOLDER / "registry-tdx.csv").read_text())
        if all(getattr(row, r).hex() == known[r] for r in ("mrtd", "rtmr0", "rtmr1", "rtmr2"))
    ]
    names = {f"{row.template} {row.kind} {row.version}" for row in rows}
    assert sorted(names) == told["images"]
    if "compose_in_rtmr3" not in told:
        return
    compose = (FOLDER / told["compose_in_rtmr3"]).read_bytes()
    references: ReferenceValues = secretvm_references(rows, compose)
    assert references.rtmr3 is not None
    assert bytes.fromhex(known["rtmr3"]) in references.rtmr3
    assert bytes.fromhex(known["rtmr3"]) not in (secretvm_references(rows, b"x").rtmr3 or ())
