"""Files of options about GPUs: evidence, endorsements and trust anchors."""

from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from attestkit._sanitize import shown
from attestkit.cli.options.click_types import PATH
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots, GpuServices

GPU_OPTIONS: Final = (
    click.option(
        "--gpu-evidence",
        type=PATH,
        help="Evidence of the GPUs: JSON of NVIDIA's SDKs, or output of nvattest at boot. "
        "Without it, that enclosed in the evidence is used.",
    ),
    click.option(
        "--gpu-endorsements",
        type=PATH,
        help="Reference manifests and OCSP answers for GPUs: JSON of GpuEndorsements. Keys of "
        "NVIDIA's attestation service in it are trusted.",
    ),
    click.option(
        "--fetch-gpu-endorsements",
        is_flag=True,
        help="Fetch them from NVIDIA's services if there are none.",
    ),
    click.option(
        "--gpu-rim-url",
        metavar="URL",
        help="Fetch reference manifests from this service, such as a mirror, not from NVIDIA's.",
    ),
    click.option(
        "--gpu-ocsp-url",
        metavar="URL",
        help="Use this OCSP responder, not NVIDIA's.",
    ),
    click.option(
        "--gpu-roots",
        type=PATH,
        help="Root certificates to trust in place of NVIDIA's: that of devices, then that of "
        "reference manifests, PEM.",
    ),
)


def read_gpu_evidence(data: bytes) -> "GpuEvidence | bytes":
    """Parse GPU evidence; return output of nvattest of the boot unchanged."""
    from attestkit.verifier.gpu_join import read_gpu_input  # lazy: only with GPUs

    return read_gpu_input(data)


def read_gpu_endorsements(data: bytes) -> "GpuEndorsements":
    """Parse endorsements of GPUs."""
    from attestkit.gpu import GpuEndorsements  # lazy: only with GPUs

    return GpuEndorsements.from_json(data)


def read_gpu_roots(data: bytes) -> "GpuRoots":
    """Parse the two roots: that of devices, then that of reference manifests.

    Raises:
        FormatError: If they are not two certificates in PEM.
    """
    from attestkit.gpu import GpuRoots  # lazy: only with GPUs

    return GpuRoots.from_pem(data)


def choose_gpu_services(
    rim_url: str | None, ocsp_url: str | None, *, fetch: bool
) -> "GpuServices | None":
    """Return the services at the URLs of the options; None for NVIDIA's.

    Raises:
        UsageError: If a URL is given but nothing is fetched, or it is not an http or https URL.
    """
    urls = {"--gpu-rim-url": rim_url, "--gpu-ocsp-url": ocsp_url}
    for option, url in urls.items():
        if url is None:
            continue
        if not fetch:
            message = f"{option}: nothing is fetched; give --fetch-gpu-endorsements, too"
            raise UsageError(message, reason="conflict")
        if not url.startswith(("http://", "https://")):
            message = f"{option}: not an http or https URL: {shown(url)}"
            raise UsageError(message, reason="wrong_value")
    if rim_url is None and ocsp_url is None:
        return None
    from attestkit.gpu import GpuServices  # lazy: only with GPUs

    own = GpuServices()
    return own._replace(rim_url=rim_url or own.rim_url, ocsp_url=ocsp_url or own.ocsp_url)


def fetch_gpu_endorsements(
    evidence: "GpuEvidence | None",
    roots: "GpuRoots | None",
    now: datetime,
    services: "GpuServices | None" = None,
) -> "GpuEndorsements | None":
    """Fetch endorsements from services, NVIDIA's if None; None without evidence of GPUs.

    Raises:
        GpuEvidenceError: If a report or its certificates are not valid.
        CollateralError: If a service cannot be reached, or has no manifest for a device.
    """
    if evidence is None:
        return None
    from attestkit.gpu import GpuEndorsements  # lazy: only with GPUs

    return GpuEndorsements.fetch(evidence, services, now=now, roots=roots)


def write_gpu_roots(roots: "GpuRoots") -> str:
    """Return the two roots in PEM."""
    from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem  # lazy: only with GPUs

    return "".join(encode_pem(CERTIFICATE_LABEL, der) for der in roots)
