"""Files of options about GPUs: evidence, endorsements and trust anchors."""

from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options.click_types import PATH
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots

GPU_OPTIONS: Final = (
    click.option(
        "--gpu-evidence",
        type=PATH,
        help="Evidence of the machine's GPUs: JSON of NVIDIA's SDKs. Without it, that enclosed in "
        "the evidence is used.",
    ),
    click.option(
        "--gpu-endorsements",
        type=PATH,
        help="Reference manifests and OCSP answers for GPUs: JSON of GpuEndorsements.",
    ),
    click.option(
        "--fetch-gpu-endorsements",
        is_flag=True,
        help="Fetch them from NVIDIA's services if there are none.",
    ),
    click.option(
        "--gpu-roots",
        type=PATH,
        help="Root certificates to trust in place of NVIDIA's: that of devices, then that of "
        "reference manifests, PEM.",
    ),
)


def read_gpu_evidence(data: bytes) -> "GpuEvidence":
    """Parse GPU evidence."""
    from attestkit.gpu import GpuEvidence  # lazy: only with GPUs

    return GpuEvidence.from_json(data)


def read_gpu_endorsements(data: bytes) -> "GpuEndorsements":
    """Parse endorsements of GPUs."""
    from attestkit.gpu import GpuEndorsements  # lazy: only with GPUs

    return GpuEndorsements.from_json(data)


def read_gpu_roots(data: bytes) -> "GpuRoots":
    """Parse the two roots: that of devices, then that of reference manifests.

    Raises:
        FormatError: If they are not two certificates in PEM.
    """
    # lazy: only with GPUs
    from attestkit._crypto.pem import split_pem
    from attestkit._crypto.x509.cert_path import read_path_certificate
    from attestkit.gpu import GpuRoots

    try:
        found = split_pem(data.decode("ascii"))
    except UnicodeDecodeError as error:
        raise FormatError("not ASCII text", reason="encoding") from error
    if len(found) != 2:
        message = f"{len(found)} certificates, must be 2: the roots of devices and of manifests"
        raise FormatError(message, reason="wrong_size")
    for der in found:
        read_path_certificate(der)
    return GpuRoots(*found)


def fetch_gpu_endorsements(
    evidence: "GpuEvidence | None", roots: "GpuRoots | None", now: datetime
) -> "GpuEndorsements | None":
    """Fetch endorsements from NVIDIA's services; None without evidence of GPUs.

    Raises:
        GpuEvidenceError: If a report or its certificates are not valid.
        CollateralError: If a service cannot be reached, or has no manifest for a device.
    """
    if evidence is None:
        return None
    from attestkit.gpu import GpuEndorsements  # lazy: only with GPUs

    return GpuEndorsements.fetch(evidence, now=now, roots=roots)


def write_gpu_roots(roots: "GpuRoots") -> str:
    """Return the two roots in PEM."""
    from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem  # lazy: only with GPUs

    return "".join(encode_pem(CERTIFICATE_LABEL, der) for der in roots)
