"""SecretVM: evidence on a port of its own, about the TLS key of that port."""

import csv
import hmac
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.client.services.service import Binding, BindingKind, Claims, Machine, Question, Where
from attestkit.client.strict_answer import read_answer_object
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, ServiceError, UsageError
from attestkit.gpu.bindings import read_secretvm
from attestkit.gpu.evidence import GpuBinding
from attestkit.snp_report import SnpReport
from attestkit.verifier import ReferenceValues

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
    """A SecretVM (TEE virtual machine of SCRT Labs), whose evidence is served on a separate port.

    Only connections with the attested key are accepted, on any port and under any name. The policy
    must name the app: `secretvm_references` computes reference values from the caller's copy of the
    compose file. The copy that the machine itself serves is not evidence.

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
        """Return the requests for CPU evidence and, if required, that of GPUs.

        Neither contains `nonce` or `model`.
        """
        targets = ("/cpu", "/gpu") if self._gpu else ("/cpu",)
        return tuple(Question(target, origin=self._origin) for target in targets)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the answers; the evidence is verified later.

        Report data are the hash of a TLS key and the nonce of the GPU evidence.

        Args:
            answers: Bodies of the answers: CPU evidence and, if required, GPU evidence.
            nonce: Not used: the service takes none.
            seen: TLS peer of the connection, whose key must be the attested one; None: connections
                are compared later.
            model: Not used.

        Raises:
            FormatError: If an answer is malformed.
            ServiceError: If the evidence is not about the key of the connection (reason
                `other_key`), or not bound to the GPUs (`no_gpu`).
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
    """Return the kinds of binding to a TLS key: by its SPKI (newer images) or by its certificate.

    Args:
        key: SHA-256 in the report data, 32 bytes: of SubjectPublicKeyInfo or certificate.
        seen: TLS peer of the connection; None: which of them is not known, and both are returned.

    Raises:
        ServiceError: If `key` is the hash of neither (reason `other_key`).
    """
    if seen is None:
        return ("tls-spki", "tls-certificate")
    if hmac.compare_digest(key, seen.spki_sha256):
        return ("tls-spki",)
    if hmac.compare_digest(key, sha256(seen.certificate)):
        return ("tls-certificate",)
    message = f"{_CPU}: the evidence must be about the TLS key of this connection"
    raise ServiceError(message, reason="other_key")


def _read_cpu(answer: bytes) -> tuple[bytes, bytes]:
    """Decode a TDX quote in hex or an SEV-SNP report in base64.

    Args:
        answer: The text, with white space at its ends.

    Returns:
        Raw quote or report, and its report data (64 bytes).

    Raises:
        FormatError: If the answer is malformed.
    """
    if len(answer) > MAX_CPU_ANSWER:
        raise FormatError(
            f"{_CPU}: {len(answer)} bytes, at most {MAX_CPU_ANSWER}", reason="too_large"
        )
    try:
        text = answer.decode("ascii").strip(" \r\n")
    except UnicodeDecodeError as error:
        message = f"{_CPU}: must be ASCII"
        raise FormatError(message, reason="encoding", offset=error.start) from error
    if not text:
        raise FormatError(f"{_CPU}: must not be empty", reason="missing")
    try:
        if _HEX.fullmatch(text):
            quote = strict_json.from_hex(text, "quote")
            return quote, td_body(quote).report_data
        report = strict_json.from_base64(text, "report")
        return report, SnpReport.parse(report).report_data
    except FormatError as error:
        raise FormatError(f"{_CPU}: {error}", reason=error.reason) from error


def _read_gpu(answer: bytes, report_data: bytes) -> GpuBinding:
    """Return the evidence of GPUs, whose nonce must be the one in the CPU's report data.

    Args:
        answer: JSON of the GPU evidence.
        report_data: Report data of the CPU's evidence: hash of a TLS key, then the nonce, 32 bytes
            each.

    Raises:
        ServiceError: If the report data have no nonce (reason `no_gpu`).
        FormatError: If the answer is malformed, or has a different nonce.
    """
    stated = read_answer_object(answer, _GPU).hex("nonce", _HASH)
    nonce = report_data[_HASH:]
    if not any(nonce):
        message = f"{_GPU}: the CPU's report data have no GPU nonce; nothing binds the GPUs to it"
        raise ServiceError(message, reason="no_gpu")
    if not hmac.compare_digest(stated, nonce):
        message = f"{_GPU}: nonce: must be {nonce.hex()}, as in the CPU's report data"
        raise FormatError(message, reason="inconsistent")
    return read_secretvm(answer, nonce=nonce, tls_sha256=report_data[:_HASH])


SERVICES: Final = (SecretVmService(),)


MAX_REGISTRY: Final = 4 << 20
"""Maximum size of a registry in characters."""

MAX_IMAGES: Final = 4096
"""Maximum number of rows of a registry."""

_WHAT: Final = "SecretVM registry"
_SIZES: Final = {"mrtd": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rootfs_data": 32}
_NAMES: Final = ("template_name", "vm_type", "artifacts_ver")
_REGISTER: Final = 48  # bytes


class SecretVmImage(NamedTuple):
    """One row of the registry: an image on one size of machine."""

    template: str  # size of the machine, such as small
    kind: str  # prod or dev
    version: str
    mrtd: bytes  # 48 bytes, as the registers below
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rootfs_data: bytes  # 32 bytes, extended into RTMR3


def read_secretvm_registry(text: str) -> tuple[SecretVmImage, ...]:
    """Decode SecretVM's registry of TDX images, CSV text with a header.

    Raises:
        FormatError: If it is malformed, over 4 MiB, has over 4,096 rows, or lacks a column.
    """
    if len(text) > MAX_REGISTRY:
        raise FormatError(f"{_WHAT}: over {MAX_REGISTRY} characters", reason="too_large")
    found = []
    try:
        rows = csv.DictReader(text.splitlines(), strict=True)
        if missing := {*_NAMES, *_SIZES} - set(rows.fieldnames or ()):
            message = f"{_WHAT}: must have a column {min(missing)}"
            raise FormatError(message, reason="missing")
        for number, row in enumerate(rows):
            if number == MAX_IMAGES:
                raise FormatError(f"{_WHAT}: over {MAX_IMAGES} rows", reason="too_many")
            found.append(_image(row, number))
    except csv.Error as error:
        raise FormatError(f"{_WHAT}: must be CSV: {shown(str(error))}", reason="syntax") from error
    return tuple(found)


def _image(row: dict[str, str | None], number: int) -> SecretVmImage:
    what = f"{_WHAT}: rows[{number}]"
    if None in (texts := [row[name] for name in (*_NAMES, *_SIZES)]):
        raise FormatError(f"{what}: has too few columns", reason="truncated")
    # A row of the published registry has a space before a value.
    template, kind, version, *values = [str(text).strip(" ") for text in texts]
    sizes = zip(values, _SIZES.items(), strict=True)
    registers = [strict_json.from_hex(one, f"{what}: {k}", n) for one, (k, n) in sizes]
    mrtd, rtmr0, rtmr1, rtmr2, rootfs_data = registers
    return SecretVmImage(template, kind, version, mrtd, rtmr0, rtmr1, rtmr2, rootfs_data)


def secretvm_rtmr3(compose: bytes, rootfs_data: bytes, docker_files: bytes | None = None) -> bytes:
    """Return RTMR3 (TDX), 48 bytes, of a SecretVM without a dstack app id.

    Args:
        compose: Content of the compose file.
        rootfs_data: That of the image's row in the registry, 32 bytes.
        docker_files: SHA-256 of the archive of docker files, 32 bytes; None if the app has none.

    Raises:
        UsageError: If a value has the wrong size.
    """
    parts = [sha256(compose), rootfs_data, *([] if docker_files is None else [docker_files])]
    for part in parts:
        if len(part) != 32:
            message = f"rootfs_data, docker_files: must be 32 bytes, not {len(part)}"
            raise UsageError(message, reason="wrong_size")
    register = bytes(_REGISTER)
    for part in parts:
        register = sha384(register + part.ljust(_REGISTER, b"\0"))
    return register


def secretvm_references(
    images: Iterable[SecretVmImage], compose: bytes, docker_files: bytes | None = None
) -> ReferenceValues:
    """Return reference values for a policy that accepts one app on any of some images.

    Rows of development and production images differ only in `rootfs_data`. Pass only the rows of
    the kind and versions that you accept. Each register is compared with the values of all rows, so
    that a mixture of several rows also passes.

    Args:
        images: Rows of the registry.
        compose: Content of the app's compose file.
        docker_files: SHA-256 of the archive of docker files, 32 bytes; None if the app has none.

    Raises:
        UsageError: If `images` is empty, or a value has the wrong size.
    """
    rows = tuple(images)
    if not rows:
        raise UsageError("images: must not be empty; pass rows of the registry", reason="missing")
    return ReferenceValues(
        mrtd=[row.mrtd for row in rows],
        rtmr0=[row.rtmr0 for row in rows],
        rtmr1=[row.rtmr1 for row in rows],
        rtmr2=[row.rtmr2 for row in rows],
        rtmr3=[secretvm_rtmr3(compose, row.rootfs_data, docker_files) for row in rows],
    )
