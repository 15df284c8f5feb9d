"""Files that options name: endorsements, evidence of GPUs and roots.

They are configuration: a missing or malformed one is a ConfigError, whose text names the option.
"""

import contextlib
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attestkit._sanitize import shown
from attestkit.cli.input.read_input import read_file
from attestkit.errors import CollateralError, ConfigError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.collateral import Collateral
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots, GpuServices
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.verifier.images.image_store import ImageStore

_Read = TypeVar("_Read")


def read_option_files(
    option: str, paths: Iterable[Path], parse: Callable[[bytes], _Read]
) -> tuple[_Read, ...]:
    """Read the files of an option such as `--crl`, and return what `parse` makes of each content.

    Raises:
        ConfigError: If a file cannot be read or is malformed; the text names option and file.
    """
    found = []
    for path in paths:
        try:
            data = read_file(path)
        except FormatError as error:  # its text names the file
            raise ConfigError(f"{option} {error}", reason="unreadable") from error
        try:
            found.append(parse(data))
        except (CollateralError, FormatError, UsageError) as error:
            raise ConfigError(f"{option} {path}: {error}", reason="unreadable") from error
    return tuple(found)


def read_option_file(
    option: str, path: Path | None, parse: Callable[[bytes], _Read]
) -> _Read | None:
    """Return what `parse` makes of the content of an option's file; None if `path` is None.

    Raises:
        ConfigError: As for `read_option_files`.
    """
    return None if path is None else read_option_files(option, [path], parse)[0]


def parse_collateral(data: bytes) -> "Collateral":
    """Return the collateral in `data`: JSON, or evidence that encloses collateral (a CMW).

    Raises:
        CollateralError: If the data is neither.
    """
    from attestkit.attestation import Attestation  # lazy, as below: --help needs neither
    from attestkit.collateral import Collateral

    try:
        return Collateral.from_json(data)
    except CollateralError:
        with contextlib.suppress(FormatError):
            if (enclosed := Attestation.from_bytes(data).enclosed_collateral) is not None:
                return enclosed
        raise


def parse_anchor(data: bytes) -> "bytes | SimulatedRoots | None":
    """Return the trust anchor in `data`: a root certificate, or the roots of a simulated machine.

    The certificate is DER or PEM and returned in DER, the roots are JSON.

    Raises:
        FormatError: If the JSON of the roots is malformed.
        UsageError: If the certificate is not valid.
    """
    # lazy: loads X.509
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.verifier.authenticators import Authenticators

    if data.lstrip()[:1] == b"{":
        return SimulatedRoots.from_json(data)
    return Authenticators(data).trust_anchor


def parse_certificate(data: bytes) -> bytes:
    """Check `data`, AMD certificates in DER or PEM or as a certificate table; return it unchanged.

    Raises:
        FormatError: If a certificate is malformed, or there is none.
    """
    from attestkit.verifier.platforms.snp.chain import read_endorsements  # lazy: loads X.509

    if not read_endorsements([data]):
        raise FormatError("must have a certificate of AMD", reason="missing")
    return data


def parse_crls(data: bytes) -> bytes:
    """Check the syntax of AMD's CRLs, one in DER or several in PEM; return `data` unchanged.

    Raises:
        FormatError: If a CRL is malformed.
    """
    from attestkit._crypto.x509.crl import read_amd_crls  # lazy: loads X.509

    read_amd_crls(data)
    return data


def parse_ak_certificate(data: bytes) -> bytes:
    """Check `data`, certificates and CRLs of TPM keys in DER or PEM, and return it unchanged.

    Raises:
        UsageError: If a certificate or CRL is malformed.
    """
    from attestkit.verifier.platforms.vtpm.ak_chain import AkChains  # lazy: loads X.509

    AkChains(certificates=[data])
    return data


def open_images(folder: Path) -> "ImageStore":
    """Open the folder of OS images that --images names.

    Raises:
        ConfigError: If the folder cannot be opened; the text names the option.
    """
    from attestkit.verifier.images.image_store import ImageStore  # lazy: loads `measure`

    try:
        return ImageStore(folder)
    except ConfigError as error:
        text = str(error).removeprefix("images: ")
        raise ConfigError(f"--images {text}", reason=error.reason) from error


# -- GPUs: the imports are lazy, as few files are of GPUs ------------------------------------------


def parse_gpu_evidence(data: bytes) -> "GpuEvidence | bytes":
    """Return the GPU evidence in JSON; output of `nvattest attest` at boot is returned unchanged.

    Raises:
        FormatError: If the data is neither.
        GpuEvidenceError: If nvattest failed, or its tokens and their hashes differ.
    """
    from attestkit.verifier.gpu_join import read_gpu_input

    return read_gpu_input(data)


def parse_gpu_endorsements(data: bytes) -> "GpuEndorsements":
    """Return the endorsements of GPUs in JSON: manifests, OCSP answers, keys of NVIDIA's service.

    Raises:
        CollateralError: If the JSON is malformed.
    """
    from attestkit.gpu import GpuEndorsements

    return GpuEndorsements.from_json(data)


def parse_gpu_roots(data: bytes) -> "GpuRoots":
    """Return the root certificates in PEM: that of devices, then that of reference manifests.

    Raises:
        FormatError: If the data are not two certificates in PEM.
    """
    from attestkit.gpu import GpuRoots

    return GpuRoots.from_pem(data)


def write_gpu_roots(roots: "GpuRoots") -> str:
    """Return both roots in PEM, in the order of `parse_gpu_roots`."""
    from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem

    return "".join(encode_pem(CERTIFICATE_LABEL, der) for der in roots)


def choose_gpu_services(
    rim_url: str | None, ocsp_url: str | None, *, fetch: bool
) -> "GpuServices | None":
    """Return the services at the URLs of the options; None if no URL is given: NVIDIA's.

    Args:
        rim_url: URL of the service of reference manifests; None: NVIDIA's.
        ocsp_url: URL of the OCSP responder; None: NVIDIA's.
        fetch: Whether endorsements are fetched at all.

    Raises:
        UsageError: If a URL is given but nothing is fetched, or it is not an http or https URL.
    """
    urls = {"--gpu-rim-url": rim_url, "--gpu-ocsp-url": ocsp_url}
    given = {option: url for option, url in urls.items() if url is not None}
    for option, url in given.items():
        if not fetch:
            message = f"{option}: requires --fetch-gpu-endorsements; give both"
            raise UsageError(message, reason="conflict")
        if not url.startswith(("http://", "https://")):
            message = f"{option}: not an http or https URL: {shown(url)}"
            raise UsageError(message, reason="wrong_value")
    if not given:
        return None
    from attestkit.gpu import GpuServices

    own = GpuServices()
    return own._replace(rim_url=rim_url or own.rim_url, ocsp_url=ocsp_url or own.ocsp_url)


def fetch_gpu_endorsements(
    evidence: "GpuEvidence | None",
    roots: "GpuRoots | SimulatedRoots | None",
    now: datetime,
    services: "GpuServices | None" = None,
) -> "GpuEndorsements | None":
    """Return endorsements for GPU evidence, fetched from `services`; None without evidence.

    Args:
        evidence: The evidence; None: no GPUs.
        roots: Roots of the devices and of their manifests; None: NVIDIA's.
        now: Verification time, aware.
        services: The services; None: NVIDIA's.

    Raises:
        GpuEvidenceError: If a report or its certificates are not valid.
        CollateralError: If a service cannot be reached, or has no manifest for a device.
    """
    if evidence is None:
        return None
    from attestkit.gpu import GpuEndorsements

    return GpuEndorsements.fetch(evidence, services, now=now, roots=roots)
