"""Trust anchors of simulated TEEs, GPUs and KMSs: one value, and the file by which tools pass it.

No verifier trusts them by default, and results of evidence under them say `simulated`.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from attestkit._crypto.ecdsa import P256_SPKI_HEAD, P256PublicKey
from attestkit._crypto.k256_agreement import require_k256_public_key
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats.strict_json import from_base64, from_hex, read_object
from attestkit._sanitize import key as shown_key
from attestkit.errors import FormatError, SignatureError, UsageError

__all__ = ["SimulatedRoots"]

MAX_SIZE: Final = 65_536
"""Maximum size of the JSON in bytes; a real one has at most 8000."""

_SUBJECT: Final = "simulated roots"
_GPU, _KMS = ("device", "rim"), ("ca_spki", "k256_public_key")
_KMS_SIZES: Final = (91, 33)


class SimulatedRoots(NamedTuple):
    """Every trust anchor of one simulated machine, to trust it on request.

    It is passed in one argument, such as `Verifier(trust_anchor=tee.backend.roots)`.
    """

    platform: bytes
    """Root certificate (DER) of quotes, reports, Nitro attestation documents, and keys of TPMs."""

    nitro: bytes | None = None
    """Root certificate (DER) of a NitroTPM's attestation documents; None: it is `platform`."""

    gpu: tuple[bytes, bytes] | None = None
    """Root certificates (DER) of GPUs and of their reference manifests, as in `gpu.GpuRoots`."""

    kms: tuple[bytes, bytes] | None = None
    """Public keys of a KMS: of its CA (DER SubjectPublicKeyInfo, 91 bytes), and secp256k1
    (compressed, 33 bytes), as in `kms.KmsRoot`."""

    def to_json(self) -> bytes:
        """Return the JSON that `from_json` decodes: certificates in base64, keys in hex."""
        fields: dict[str, Any] = {"platform": _encode(self.platform)}
        if self.nitro is not None:
            fields["nitro"] = _encode(self.nitro)
        if self.gpu is not None:
            fields["gpu"] = dict(zip(_GPU, map(_encode, self.gpu), strict=True))
        if self.kms is not None:
            fields["kms"] = dict(zip(_KMS, map(bytes.hex, self.kms), strict=True))
        return json.dumps(fields, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "SimulatedRoots":
        """Decode `data`, the JSON of `to_json`.

        Raises:
            FormatError: If the JSON is malformed or over 65,536 bytes, a key is unknown or missing,
                or a certificate or public key is not valid.
        """
        if len(data) > MAX_SIZE:
            raise FormatError(f"{_SUBJECT}: must be at most {MAX_SIZE} bytes", reason="too_large")
        fields = read_object(data, _SUBJECT)
        _check_keys(fields, _SUBJECT, required=("platform",), optional=cls._fields[1:])
        return cls(
            **{name: _READERS[name](value, f"{_SUBJECT}: {name}") for name, value in fields.items()}
        )


def _encode(certificate: bytes) -> str:
    return b64encode(certificate).decode()


def _check_keys(
    fields: object, what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    if not isinstance(fields, dict):
        raise FormatError(f"{what}: must be a JSON object", reason="wrong_type")
    for name in fields:
        if name not in required + optional:
            raise FormatError(f"{what}: {shown_key(name)}: unknown member", reason="unknown_field")
    for name in required:
        if name not in fields:
            raise FormatError(f"{what}: {name}: missing", reason="missing")


def _certificate(value: object, what: str) -> bytes:
    der = from_base64(value, what)
    try:
        read_path_certificate(der)
    except FormatError as error:
        raise FormatError(f"{what}: {error.message}", reason=error.reason) from error
    return der


def _gpu_roots(value: Any, what: str) -> tuple[bytes, bytes]:  # noqa: ANN401 - any JSON
    _check_keys(value, what, _GPU)
    device, rim = [_certificate(value[name], f"{what}: {name}") for name in _GPU]
    return device, rim


def _kms_keys(value: Any, what: str) -> tuple[bytes, bytes]:  # noqa: ANN401 - any JSON
    _check_keys(value, what, _KMS)
    named = zip(_KMS, _KMS_SIZES, strict=True)
    spki, point = [from_hex(value[name], f"{what}: {name}", size) for name, size in named]
    try:
        P256PublicKey(spki.removeprefix(P256_SPKI_HEAD))
    except (SignatureError, UsageError) as error:
        message = f"{what}: {_KMS[0]}: must be a P-256 public key (SubjectPublicKeyInfo)"
        raise FormatError(message, reason="wrong_value") from error
    try:
        require_k256_public_key(point)
    except (SignatureError, UsageError) as error:
        message = f"{what}: {_KMS[1]}: must be a compressed secp256k1 public key"
        raise FormatError(message, reason="wrong_value") from error
    return spki, point


_READERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    **dict.fromkeys(("platform", "nitro"), _certificate),
    "gpu": _gpu_roots,
    "kms": _kms_keys,
}
