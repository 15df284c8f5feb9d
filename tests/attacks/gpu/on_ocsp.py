"""Attempts on OCSP answers about GPUs, which the attacker supplies."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from time import process_time
from typing import Any, Final, cast

from attestkit._crypto.der import encode_integer, encode_sequence
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer_writer import (
    OcspResponder,
    write_ocsp_answer,
    write_ocsp_error,
)
from attestkit._crypto.x509.ocsp.request import cert_id
from attestkit.backends.simulator.pki.cloud_pki import CloudRoot
from attestkit.errors import GpuEvidenceError
from attestkit.gpu.result import GpuResult
from attestkit.gpu.rules import GpuRules
from tests.attacks.attempts import Surfaces
from tests.attacks.gpu.on_manifests import GOOD, GPUS, L3, MODEL, OWN, PKI, SIGNER, SIGNER_KEY
from tests.gpu.simulated_machine import NOW, verify_machine
from tests.raising import raises

attacks = Surfaces("gpu")
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)

BROM: Final = PKI.brom("gpu/0", MODEL)
PROVISIONER: Final = PKI.provisioner(MODEL)
RESPONDER: Final = PKI.responder(PROVISIONER)
FORGER: Final = P384Key(78), RESPONDER[1]


def ocsp(
    by: tuple[P384Key, bytes] = RESPONDER,
    *,
    start: datetime = NOW,
    end: timedelta = _DAY,
    subject: bytes = BROM.der,
    issuer: CloudRoot = PROVISIONER,
    **options: Any,
) -> bytes:
    """Return an answer about the certificate of the boot ROM, good by default."""
    key, certificate = by

    def sign(data: bytes) -> bytes:
        return encode_sequence(*map(encode_integer, key.sign(data)))

    asked = cert_id(read_path_certificate(subject), read_path_certificate(issuer.der), "sha384")
    given = {"status": "good", "reason": None, "revoked_at": None, **options}
    return write_ocsp_answer(OcspResponder(certificate, sign), asked, start, start + end, **given)


OTHERS: Final = tuple(
    one for one in GOOD.ocsp if f"{read_path_certificate(BROM.der).serial:x}" not in one.hex()
)
assert len(OTHERS) == len(GOOD.ocsp) - 1
REVOKED: Final[dict[str, Any]] = {
    "status": "revoked",
    "reason": "key_compromise",
    "revoked_at": NOW - _DAY,
}


def with_ocsp(*answers: bytes, now: datetime = NOW, **rules: Any) -> GpuResult:
    """Verify the machine with these answers about its boot ROM."""
    found = replace(GOOD, ocsp=(*answers, *OTHERS))
    return verify_machine(GPUS, endorsements=found, now=now, rules=GpuRules(**rules))


assert with_ocsp(ocsp()).devices
OCSP: Final[dict[str, Callable[[], GpuResult]]] = {
    "answer by the certificate that it is about": lambda: with_ocsp(
        ocsp((cast("P384Key", BROM.authority.key), BROM.der))
    ),
    "answer by the leaf of the device": lambda: with_ocsp(
        ocsp((OWN.device.key, OWN.device.chain[0]))
    ),
    "answer by the responder of another CA": lambda: with_ocsp(
        ocsp(PKI.responder(PKI.identity(MODEL)))
    ),
    "answer by the responder of the manifests": lambda: with_ocsp(ocsp(PKI.responder(L3))),
    "answer by a responder without its usage": lambda: with_ocsp(
        ocsp(PKI.responder(PROVISIONER, may_sign=False))
    ),
    "answer by the signer of manifests": lambda: with_ocsp(ocsp((SIGNER_KEY, SIGNER[0]))),
    "answer with the certificate of a responder and another key": lambda: with_ocsp(ocsp(FORGER)),
    "answer for the same serial number of another CA": lambda: with_ocsp(
        ocsp(PKI.responder(L3), issuer=L3)
    ),
    "answer about the CA above": lambda: with_ocsp(
        ocsp(subject=PROVISIONER.der, issuer=PKI.identity(MODEL))
    ),
    "answer that the status is unknown": lambda: with_ocsp(ocsp(status="unknown")),
    "answer that the responder is busy": lambda: with_ocsp(write_ocsp_error("unauthorized")),
    "good answer before a revocation": lambda: with_ocsp(ocsp(), ocsp(**REVOKED)),
    "newer good answer behind a revocation": lambda: with_ocsp(
        ocsp(start=NOW - _HOUR, **REVOKED), ocsp()
    ),
    "revocation hidden behind newer forged answers": lambda: with_ocsp(
        *(
            ocsp((P384Key(79), RESPONDER[1]), start=NOW + at * timedelta(seconds=1))
            for at in range(20)
        ),
        ocsp(start=NOW - _HOUR, **REVOKED),
    ),
    "revocation that begins in the future": lambda: with_ocsp(
        ocsp(**{**REVOKED, "revoked_at": NOW + _DAY})
    ),
    "device on hold where signers may be": lambda: with_ocsp(
        ocsp(**{**REVOKED, "reason": "certificate_hold"}), allow_hold=True
    ),
    "answer a second past the allowed skew": lambda: with_ocsp(
        ocsp(start=NOW - _DAY), now=NOW + timedelta(minutes=5, seconds=1)
    ),
    "answer a second before the allowed skew": lambda: with_ocsp(
        ocsp(start=NOW + timedelta(minutes=5, seconds=1))
    ),
    "answer that ends before it begins": lambda: with_ocsp(ocsp(end=-_DAY)),
    "answer older than the highest age of zero": lambda: with_ocsp(
        ocsp(start=NOW - timedelta(minutes=6)), max_ocsp_age=timedelta()
    ),
    "revocation older than the grace": lambda: with_ocsp(
        ocsp(start=NOW - 2 * _DAY, **REVOKED), ocsp_grace=timedelta(hours=1)
    ),
}
for _name, _run in OCSP.items():
    attacks.add(
        "replay" if "answer a" in _name else "forge", _name, _run, GpuEvidenceError, "device_ocsp"
    )


@attacks.attempt("replay", GpuEvidenceError, "device_ocsp")
def answer_kept_by_a_policy_with_grace() -> GpuResult:
    """A policy without grace rejects a late answer that another policy accepted before."""
    found = replace(GOOD, ocsp=GOOD.ocsp)
    late, lenient = NOW + timedelta(hours=30), GpuRules(ocsp_grace=_DAY)
    for _ in range(2):
        assert verify_machine(GPUS, endorsements=found, now=late, rules=lenient).devices
    return verify_machine(GPUS, endorsements=found, now=late)


@attacks.attempt("exhaust")
def five_hundred_answers_of_junk() -> None:
    """Answers that cannot be read, and forged ones about one certificate."""
    forged = [ocsp(FORGER, end=_DAY + at * _HOUR) for at in range(100)]
    junk = [b"\x30\x82\x01" + bytes([at % 256]) * 300 for at in range(400)]
    started = process_time()
    with raises(GpuEvidenceError, "device_ocsp"):
        verify_machine(GPUS, endorsements=replace(GOOD, ocsp=(*junk, *forged)))
    assert process_time() - started < 1
