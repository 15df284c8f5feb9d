"""Fuzz targets: answers of services that attest keys for sealing, and sealed answers."""

from copy import copy
from functools import cache
from typing import Final

from attestkit.client.sealing.aci_e2ee import AciOpener
from attestkit.client.sealing.kem import KemOpener
from attestkit.client.sealing.protocol import SealedRequest, SealingKeyError
from attestkit.client.services.aci.aci import AciService
from attestkit.client.services.aci.aci_keyset import Receipt, check_receipt
from attestkit.client.services.chutes import ChutesService
from attestkit.client.services.secretvm import (
    SecretVmImage,
    SecretVmService,
    read_secretvm_registry,
)
from attestkit.client.services.service import Claims
from attestkit.errors import FormatError, ServiceError
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys
from tests.client.sealing import test_aci_e2ee
from tests.client.sealing import test_kem as sealed_answers
from tests.client.services import chutes_answers, test_secretvm
from tests.client.services.aci import aci_answers, test_aci_receipts

_REPORT: Final = 16 << 10  # bytes of an answer with a bare quote
_BETWEEN: Final = b"\n\0\n"  # two answers


def _said(claims: Claims) -> object:
    """Return what two readings of an answer must have in common."""
    machines = [(one.role, one.report_data) for one in claims.machines]
    return machines, claims.bindings, claims.not_proven, dict(claims.keys)


def _claims(_: bytes, claims: Claims) -> None:
    check("a machine", len(claims.machines) >= 1)
    check("a binding", len(claims.bindings) >= 1)
    for machine in claims.machines:
        check_same("report data", len(machine.report_data), 64)


def _read_aci(raw: bytes) -> Claims:
    return AciService().read((raw,), aci_answers.NONCE, aci_answers.PEER, None)


def _aci_samples() -> list[bytes]:
    keys = aci_answers.keyset(receipt_signing_keys=[], e2ee_public_keys=[])
    reports = [
        aci_answers.report(event_log=None, vm_config=None, key_custody=None),
        aci_answers.report(keys, event_log=[], app_compose=None),
    ]
    return [aci_answers.encoded(report) for report in reports]


def _read_receipt(raw: bytes) -> Receipt:
    return check_receipt(raw, test_aci_receipts.EXPECTED)


def _receipt_samples() -> list[bytes]:
    made = aci_answers.receipt(test_aci_receipts.REQUEST, test_aci_receipts.RESPONSE)
    return [aci_answers.encoded(made), aci_answers.encoded({**made, "signature": "00" * 64})]


def _read_secretvm(raw: bytes) -> Claims:
    """Read an answer about the CPU, and one about GPUs if there is one."""
    answers = tuple(raw.split(_BETWEEN, 1))
    return SecretVmService(gpu=len(answers) > 1).read(answers, bytes(32), None, None)


def _secretvm_samples() -> list[bytes]:
    nonce = test_secretvm.gpu_nonce()
    return [test_secretvm.cpu(), test_secretvm.cpu(nonce=nonce) + _BETWEEN + b'{"nonce":"00"}']


def _read_images(raw: bytes) -> tuple[SecretVmImage, ...]:
    return read_secretvm_registry(raw.decode("latin-1"))


def _image_samples() -> list[bytes]:
    rows = f"{test_secretvm.HEADER}\n{test_secretvm.ROW}\n".encode()
    return [rows, rows.split(b"\n")[0]]


def _read_chutes(raw: bytes) -> Claims:
    """Read evidence and instances, which are empty if there is one answer."""
    evidence, _, instances = raw.partition(_BETWEEN)
    return ChutesService().read((evidence, instances), chutes_answers.NONCE, None, None)


def _chutes_samples() -> list[bytes]:
    name = chutes_answers.INSTANCES[0]
    proof = chutes_answers.evidence(chutes_answers.entry(name, gpus=False))
    return [proof + _BETWEEN + chutes_answers.instances(name), proof]


@cache
def _kem_samples() -> tuple[KemOpener, list[bytes]]:
    """Return an opener for its key, and answers to it: whole and streamed, after a byte."""
    sealed = sealed_answers.seal()
    assert isinstance(sealed.opener, KemOpener)
    whole = sealed_answers.answer(sealed)
    stream = b"".join(sealed_answers.stream(sealed)) + b"data: [DONE]\n\n"
    return sealed.opener, [b"\0" + whole, b"\1" + stream]


def _open_kem(raw: bytes) -> bytes:
    """Open an answer; the first byte says whether it is streamed."""
    opener = KemOpener(_kem_samples()[0]._key, streamed=raw[:1] == b"\1")
    opener.start(200, [])
    return opener.feed(raw[1:]) + opener.finish()


@cache
def _e2ee_request() -> SealedRequest:
    """Return the request that all answers are to."""
    return test_aci_e2ee.seal(test_aci_e2ee.Server("x25519"), test_aci_e2ee.chat("a"))


def _e2ee_samples() -> list[bytes]:
    server = test_aci_e2ee.Server("x25519")
    whole = aci_answers.encoded(test_aci_e2ee.answer(server, _e2ee_request()))
    problem = b'{"error":{"type":"e2ee_replay_detected"}}'
    return [b"\0" + whole, b"\1data: {}\n\ndata: [DONE]\n\n", b"\2" + problem]


def _open_e2ee(raw: bytes) -> bytes:
    """Open an answer; the first byte chooses JSON, a stream of events, or an error."""
    inner = _e2ee_request().opener
    assert isinstance(inner, AciOpener)
    fields = copy(inner._fields)
    fields._body = bytearray()  # type: ignore[attr-defined]
    opener = AciOpener(fields)
    kind = "text/event-stream" if raw[:1] == b"\1" else "application/json"
    opener.start(400 if raw[:1] == b"\2" else 200, [("Content-Type", kind)])
    return opener.feed(raw[1:]) + opener.finish()


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    refusals = (FormatError, ServiceError)
    options = {"accepted": _claims, "said": _said, "grows": True}
    return [
        ParserTarget(
            "aci_report", obeys(_read_aci, *refusals, **options), _aci_samples, "json.dict", _REPORT
        ),
        ParserTarget("aci_receipt", obeys(_read_receipt, *refusals), _receipt_samples, "json.dict"),
        ParserTarget(
            "secretvm_answer",
            obeys(_read_secretvm, *refusals, **options),
            _secretvm_samples,
            "json.dict",
            _REPORT,
        ),
        ParserTarget("secretvm_images", obeys(_read_images, FormatError), _image_samples),
        ParserTarget(
            "chutes_answer",
            obeys(_read_chutes, *refusals, **options),
            _chutes_samples,
            "json.dict",
            _REPORT,
        ),
        ParserTarget("aci_sealed", obeys(_open_e2ee, ServiceError, SealingKeyError), _e2ee_samples),
        ParserTarget(
            "kem_answer", obeys(_open_kem, ServiceError), lambda: _kem_samples()[1], "json.dict"
        ),
    ]
