"""SecretVM: evidence on a port of its own, about the TLS key of that port.

Source: attested-client.md, 2.8.
"""

import hmac
import re
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.client.services.service import (
    Binding,
    BindingKind,
    Claims,
    Machine,
    ObservedPeer,
    Question,
    Where,
)
from attestkit.client.services.strict_answer import lower_hex, read_answer_object
from attestkit.errors import FormatError, ServiceError
from attestkit.gpu.bindings import read_secretvm
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.snp_report import SnpReport

MAX_CPU_ANSWER: Final = 1 << 18
"""Maximum size of the answer with the quote or report, in bytes."""

_CPU: Final = "SecretVM /cpu"
_GPU: Final = "SecretVM /gpu"
_DOMAIN: Final = ".vm.scrtlabs.com"
_HEX: Final = re.compile("[0-9a-f]+")
_HASH: Final = 32  # bytes
_NOT_PROVEN: Final = (
    "that the evidence is fresh: it has no nonce of the client",
    "the app, unless the policy has reference values of the image and of RTMR3",
)


class SecretVmService:
    """A SecretVM, proven apart: by its attestation port, then by the key of each connection.

    Only a connection with the attested key is accepted, on whatever port and under whatever name.
    Which app runs is the policy's question: `secretvm_references` makes its reference values from
    a compose file of the caller's. The one that the machine itself serves says nothing.

    Args:
        gpu: Whether the machine must have evidence of GPUs.
        port: The attestation port: 29343, or 21434 behind a proxy in the guest.
    """

    name: Final = "secretvm"
    where: Final[Where] = "apart"

    def __init__(self, *, gpu: bool = False, port: int = 29343) -> None:
        self._gpu = gpu
        self._origin = f":{port}"

    def recognizes(self, host: str) -> bool:
        """Return whether a host has a name of the operator's domain."""
        return host.lower().endswith(_DOMAIN)

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the requests for CPU evidence and, if required, that of GPUs."""
        targets = ("/cpu", "/gpu") if self._gpu else ("/cpu",)
        return tuple(Question(target, origin=self._origin) for target in targets)

    def read(
        self,
        answers: tuple[bytes, ...],
        nonce: bytes,
        seen: ObservedPeer | None,
        model: str | None,
    ) -> Claims:
        """Return the claims of the answers; see `Service.read`.

        Report data are the hash of a key and the nonce of GPUs. The key becomes the binding: it is
        compared with that of each connection, so that here it may be any.
        """
        evidence, report_data = _read_cpu(answers[0])
        key = report_data[:_HASH]
        gpu = _read_gpu(answers[1], report_data) if self._gpu else None
        missing = () if gpu else ("GPUs: their evidence was not required",)
        return Claims(
            machines=(Machine("server", evidence, report_data, gpu),),
            bindings=tuple(Binding(kind, key, "server") for kind in _kinds(key, seen)),
            freshness="key possession",
            not_proven=(*_NOT_PROVEN, *missing),
        )


def _kinds(key: bytes, seen: ObservedPeer | None) -> tuple[BindingKind, ...]:
    """Return what the key is a hash of: of newer images the SPKI, of older ones the certificate."""
    if seen is None:
        return ("tls-spki", "tls-certificate")
    if hmac.compare_digest(key, seen.spki_sha256):
        return ("tls-spki",)
    if hmac.compare_digest(key, sha256(seen.certificate)):
        return ("tls-certificate",)
    message = f"{_CPU}: the evidence is about another key than that of this connection"
    raise ServiceError(message, reason="other_key")


def _read_cpu(answer: bytes) -> tuple[bytes, bytes]:
    """Return the evidence and its report data: a TDX quote in hex, or an SNP report in base64."""
    if len(answer) > MAX_CPU_ANSWER:
        raise FormatError(f"{_CPU}: over {MAX_CPU_ANSWER} bytes", reason="too_large")
    try:
        text = answer.decode("ascii").strip(" \r\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{_CPU}: not ASCII", reason="encoding", offset=error.start) from error
    if not text:
        raise FormatError(f"{_CPU}: empty", reason="missing")
    try:
        if _HEX.fullmatch(text):
            quote = strict_json.from_hex(text, "quote")
            return quote, td_body(quote).report_data
        report = strict_json.from_base64(text, "report")
        return report, SnpReport.parse(report).report_data
    except FormatError as error:
        raise FormatError(f"{_CPU}: {error}", reason=error.reason) from error


def _read_gpu(answer: bytes, report_data: bytes) -> GpuBinding:
    """Return the evidence of GPUs, whose nonce must be the one in the CPU's report data."""
    stated = lower_hex(read_answer_object(answer, _GPU), "nonce", _GPU, _HASH)
    nonce = report_data[_HASH:]
    if not any(nonce):
        message = f"{_GPU}: the report data have no nonce of GPUs; nothing joins GPUs and CPU"
        raise ServiceError(message, reason="no_gpu")
    if not hmac.compare_digest(stated, nonce):
        message = f"{_GPU}: nonce: is not the one in the report data"
        raise FormatError(message, reason="inconsistent")
    return read_secretvm(answer, nonce=nonce, tls_sha256=report_data[:_HASH])


SERVICES: Final = (SecretVmService(),)
