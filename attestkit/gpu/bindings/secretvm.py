"""Evidence of SecretVM: a hash of the TLS key, and the nonce of the GPUs (nvidia-gpu.md, 6)."""

from attestkit._argument_checks import require_bytes, require_size
from attestkit.gpu.bindings.answer_fields import HASH_SIZE, check_nonce_size
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.gpu.evidence import GpuEvidence


def read_secretvm(evidence: bytes | str, *, nonce: bytes, tls_sha256: bytes) -> GpuBinding:
    """Read GPU evidence of a SecretVM.

    Args:
        evidence: JSON of NVIDIA's SDKs.
        nonce: Of the request, 32 bytes.
        tls_sha256: SHA-256 of the TLS key or certificate of the connection, 32 bytes.

    Raises:
        FormatError: If the evidence is malformed.
        UsageError: If an argument has the wrong type or size.
    """
    check_nonce_size(nonce)
    require_bytes("tls_sha256", tls_sha256)
    require_size("tls_sha256", tls_sha256, HASH_SIZE)
    return GpuBinding(
        system="secretvm",
        kind="nonce",
        evidence=GpuEvidence.from_json(evidence),
        nonce=nonce,
        gpu_nonce=nonce,
        report_data=tls_sha256 + nonce,
        committed={"tls_sha256": tls_sha256},
    )
