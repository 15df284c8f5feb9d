"""Report data: the 64 bytes of the caller in a report or quote.

Bindings follow the dstack guest agent: a hash over tag, colon and content. The tag separates
purposes, so that a hash for one purpose is not valid for another. A nonce has a tag of its own: a
challenger cannot choose bytes that are also the binding of a TLS key.
"""

import re
import warnings
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import require_bytes, require_size, unsupported_algorithm, utf8
from attestkit._crypto.hashes import digest, sha256
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import UsageReason

__all__ = ["ReportData", "ReportDataWarning", "check_nonce", "gpu_nonce", "requested_report_data"]

_SIZE: Final = 64
_NONCE_SIZE: Final = range(8, 65)  # bytes, as in RFC 9711, 4.1
_GPU_NONCE_TAG: Final = b"attestkit-gpu-nonce:"
_HEX_TEXT: Final = re.compile(rb"(?:0x)?(?:[0-9a-fA-F]{2}){16,32}")
_APP_KEY_TEXTS: Final = {
    "ed25519": ("dip1::ed25519-pk:", 32),
    "secp256k1": ("dip1::secp256k1c-pk:", 33),
    "k256": ("dip1::secp256k1c-pk:", 33),
}


class ReportDataWarning(UserWarning):
    """Warning that report data is probably wrong, such as hex text instead of bytes."""


class ReportData:
    """Functions that return the 64 bytes of report data.

    `SIZE` is 64; the other constants are tags, for `bind`.
    """

    SIZE: Final = _SIZE
    APP_DATA: Final = "app-data"
    RATLS_CERT: Final = "ratls-cert"
    KMS_ROOT_CA: Final = "kms-root-ca"
    NONCE: Final = "nonce"
    NONCE_AND_AK: Final = "nonce+ak"
    NONCE_AND_GPU: Final = "nonce+gpu"
    NONCE_AND_GPU_AND_AK: Final = "nonce+gpu+ak"

    @staticmethod
    def pad(data: bytes) -> bytes:
        """Return `data` (0 to 64 bytes), zero-padded on the right to 64 bytes.

        Issues a `ReportDataWarning` if `data` is 32 or more hex digits: the caller probably meant
        the bytes that they encode (`from_hex`).

        Raises:
            UsageError: If `data` is longer than 64 bytes or not `bytes`.
        """
        require_bytes("report data", data)
        if len(data) > _SIZE:
            raise UsageError("Report data is too long", reason="too_large")
        if len(data) >= 32 and _HEX_TEXT.fullmatch(data):
            warnings.warn(
                "report data looks like hex text; ReportData.from_hex() turns it into bytes",
                ReportDataWarning,
                stacklevel=2,
            )
        return data.ljust(_SIZE, b"\0")

    @staticmethod
    def bind(tag: str, content: bytes, algorithm: str = "sha512") -> bytes:
        """Return the hash over `tag`, a colon and `content`, zero-padded to 64 bytes.

        Args:
            tag: Type of the content: `app-data`, `ratls-cert`, `kms-root-ca`, `nonce`, `nonce+ak`,
                `nonce+gpu`, `nonce+gpu+ak`, or any other text.
            content: Bytes of any length.
            algorithm: sha256, sha384, sha512 (also the empty name), sha3-256, sha3-384, sha3-512,
                keccak256, keccak384 or keccak512; `raw` returns `content`, which must have 64
                bytes, and ignores `tag`.

        Raises:
            UsageError: If the algorithm is unknown, `content` is not `bytes`, `raw` content is not
                64 bytes, or `tag` has an unpaired surrogate.
        """
        require_bytes("content", content)
        if algorithm == "raw":
            if len(content) != _SIZE:
                raise UsageError("invalid content length", reason="wrong_size")
            return content
        hashed = digest(algorithm or "sha512", utf8(tag, "tag", UsageError) + b":" + content)
        return hashed.ljust(_SIZE, b"\0")

    @staticmethod
    def for_nonce(nonce: bytes) -> bytes:
        """Return the report data that binds evidence to a nonce: `bind("nonce", nonce)`.

        Raises:
            UsageError: If `nonce` is not 8 to 64 `bytes`.
        """
        check_nonce(nonce)
        return ReportData.bind(ReportData.NONCE, nonce)

    @staticmethod
    def for_nonce_and_ak(nonce: bytes, spki: bytes) -> bytes:
        """Return the report data that binds hardware evidence to a nonce and to a TPM's key.

        It is `bind("nonce+ak", SHA-256(nonce) || SHA-256(spki))`, so that a quote of another TPM
        cannot replace that of this machine.

        Args:
            nonce: 8 to 64 bytes.
            spki: The attestation key of the TPM, a SubjectPublicKeyInfo in DER.

        Raises:
            UsageError: If `nonce` is not 8 to 64 `bytes`, or `spki` is not `bytes`.
        """
        check_nonce(nonce)
        require_bytes("attestation key", spki)
        return ReportData.bind(ReportData.NONCE_AND_AK, sha256(nonce) + sha256(spki))

    @staticmethod
    def for_nonce_and_gpu(nonce: bytes, gpu_evidence: bytes) -> bytes:
        """Return the report data that binds evidence to a nonce and to the evidence of GPUs.

        It is `bind("nonce+gpu", SHA-256(nonce) || SHA-256(gpu_evidence))`, so that evidence of the
        GPUs of another machine cannot replace that of this one.

        Args:
            nonce: 8 to 64 bytes.
            gpu_evidence: The evidence of the GPUs as sent (`GpuEvidence.raw`), whose reports have
                the nonce `gpu_nonce(nonce)`.

        Raises:
            UsageError: If `nonce` is not 8 to 64 `bytes`, or `gpu_evidence` is not `bytes`.
        """
        check_nonce(nonce)
        require_bytes("GPU evidence", gpu_evidence)
        content = sha256(nonce) + sha256(gpu_evidence)
        return ReportData.bind(ReportData.NONCE_AND_GPU, content)

    @staticmethod
    def for_gpu_and_ak(bound: bytes, spki: bytes) -> bytes:
        """Return the report data that bind hardware evidence to GPUs and to a TPM's key.

        It is `bind("nonce+gpu+ak", SHA-256(bound) || SHA-256(spki))`. The tag differs from that of
        `for_nonce_and_ak`, because a challenger could choose `bound` as a nonce.

        Args:
            bound: The report data `for_nonce_and_gpu`, 64 bytes.
            spki: The attestation key of the TPM, a SubjectPublicKeyInfo in DER.

        Raises:
            UsageError: If an argument is not `bytes`, or `bound` does not have 64 bytes.
        """
        require_bytes("report data", bound)
        require_size("report data", bound, _SIZE)
        require_bytes("attestation key", spki)
        return ReportData.bind(ReportData.NONCE_AND_GPU_AND_AK, sha256(bound) + sha256(spki))

    @staticmethod
    def from_hex(text: str) -> bytes:
        """Return the bytes of hex text, with or without `0x`, zero-padded to 64 bytes.

        White space between bytes is ignored.

        Raises:
            UsageError: If `text` is not hex, or encodes more than 64 bytes.
        """
        try:
            data = bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
        except ValueError as error:
            raise UsageError("report data: must be hex digits", reason="encoding") from error
        return _zero_pad(data)

    @staticmethod
    def from_text(text: str) -> bytes:
        """Return `text` in UTF-8, zero-padded to 64 bytes.

        Raises:
            UsageError: If the encoding is longer than 64 bytes, or `text` has an unpaired
                surrogate.
        """
        return _zero_pad(utf8(text, "report data", UsageError))

    @staticmethod
    def for_app_key(algorithm: str, public_key: bytes) -> bytes:
        """Return the report data that binds an application's signing key to evidence.

        It is ASCII: `dip1::ed25519-pk:` or `dip1::secp256k1c-pk:` and the key in base64url without
        padding, as in GetAttestationForAppKey of the dstack guest agent.

        Args:
            algorithm: ed25519 or secp256k1; k256 is another name of the latter.
            public_key: Ed25519 key (32 bytes) or compressed secp256k1 key (33 bytes).

        Raises:
            UsageError: If the algorithm is unknown, or the key does not have that size.
        """
        if algorithm not in _APP_KEY_TEXTS:
            raise unsupported_algorithm(algorithm, _APP_KEY_TEXTS)
        head, size = _APP_KEY_TEXTS[algorithm]
        if len(public_key) != size:
            message = f"{algorithm} public key: must be {size} bytes, not {len(public_key)}"
            raise UsageError(message, reason="wrong_size")
        return _zero_pad(head.encode() + urlsafe_b64encode(public_key).rstrip(b"="))


def gpu_nonce(nonce: bytes) -> bytes:
    """Return the nonce, 32 bytes, of GPU reports that accompany CPU evidence for `nonce`.

    It is SHA-256("attestkit-gpu-nonce:" || nonce).

    Raises:
        UsageError: If `nonce` is not 8 to 64 `bytes`.
    """
    check_nonce(nonce)
    return sha256(_GPU_NONCE_TAG + nonce)


def check_nonce(nonce: bytes) -> None:
    """Check the type and size of a nonce.

    Raises:
        UsageError: If the nonce is not `bytes`, or has not 8 to 64 of them.
    """
    require_bytes("nonce", nonce)
    if len(nonce) not in _NONCE_SIZE:
        raise UsageError(f"nonce: must be 8 to 64 bytes, not {len(nonce)}", reason="wrong_size")


def requested_report_data(
    nonce: bytes | None, report_data: bytes | None, *, pad: bool = False
) -> bytes:
    """Return the 64 bytes for a request of evidence: exactly one of nonce and report data.

    Args:
        nonce: 8 to 64 bytes.
        report_data: 64 bytes.
        pad: Whether report data of 0 to 63 bytes is accepted, and zero-padded.

    Raises:
        UsageError: If none or both are given, `pad` is given with a nonce, or the given one has a
            wrong type or size.
    """
    if (nonce is None) == (report_data is None):
        reason: UsageReason = "missing" if nonce is None else "conflict"
        raise UsageError("nonce, report_data: give exactly one of the two", reason=reason)
    if nonce is not None:
        if pad:
            raise UsageError("pad: applies to report_data, not to a nonce", reason="conflict")
        return ReportData.for_nonce(nonce)
    assert report_data is not None
    if pad:
        return ReportData.pad(report_data)
    require_bytes("report_data", report_data)
    if len(report_data) != _SIZE:
        message = f"report_data: must be 64 bytes, not {len(report_data)}; pad=True zero-pads it"
        raise UsageError(message, reason="wrong_size")
    return report_data


def _zero_pad(data: bytes) -> bytes:
    if len(data) > _SIZE:
        raise UsageError("Report data is too long", reason="too_large")
    return data.ljust(_SIZE, b"\0")
