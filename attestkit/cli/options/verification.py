"""Options of verification, the same for every command that verifies."""

from collections.abc import Callable
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from click.core import ParameterSource

from attestkit.cli.options import option, option_files
from attestkit.cli.options.option import read_instant
from attestkit.cli.options.report_data import ReportDataOptions, expected_report_data_options
from attestkit.cli.options.shell_values import complete_policy
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.collateral import Collateral
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots, GpuServices
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.verifier.images.image_store import ImageStore
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
    from attestkit.verifier.verifier import Verifier

OWN_INSTANT: Final = "bundle"  # value of --at for the time that an evidence bundle names
DEFAULT: Final = "default"


class VerificationOptions(NamedTuple):
    """Values of the verification options; None or empty for those not given.

    Attributes:
        collateral: Collateral of Intel.
        pccs_url: URL of the PCCS.
        pccs_named: Whether the option names it, not the environment.
        certificates: Certificates of AMD: DER, PEM or certificate table; untrusted.
        trust_anchor: Root in DER, or the roots of a simulated machine; None: the vendors'.
        nonce: Expected nonce.
        report_data: Expected report data; None with a nonce.
        policy: Appraisal policy.
        policy_name: Name of a preset, or the policy's file.
        at: Verification time, aware; None: now, or the time of a bundle.
        own_instant: Whether a bundle is verified at the time that it names.
        inputs: Files that options name; outputs must not overwrite them.
        images: Folder of OS images.
        crls: CRLs of AMD, DER or PEM.
        ak_roots: Roots of TPM keys, DER or PEM.
        ak_certificates: Certificates and CRLs of TPM keys, DER or PEM; untrusted.
        fetch_ak_certificates: Whether missing ones are fetched.
        gpu_evidence: Evidence of GPUs; bytes are the output of `nvattest attest` at boot.
        gpu_endorsements: Endorsements of GPUs.
        gpu_roots: Roots of GPUs and of their manifests; None: NVIDIA's.
        fetch_gpu_endorsements: Whether missing endorsements of GPUs are fetched.
        gpu_services: Services that they are fetched from; None: NVIDIA's.
    """

    collateral: "Collateral | None"
    pccs_url: str | None
    pccs_named: bool  # by the option, not by the environment
    certificates: tuple[bytes, ...]  # AMD: DER, PEM or certificate table; untrusted
    trust_anchor: "bytes | SimulatedRoots | None"  # DER, or those of a simulated machine
    nonce: bytes | None
    report_data: bytes | None  # expected; None with a nonce
    policy: "AppraisalPolicy"
    policy_name: str  # of a preset or a file
    at: datetime | None  # aware; None: now, or the time of a bundle
    own_instant: bool  # verify a bundle at the time that it names
    inputs: tuple[Path, ...]  # files that options name; outputs must not overwrite them
    images: "ImageStore | None" = None
    crls: tuple[bytes, ...] = ()  # of AMD: DER or PEM
    ak_roots: tuple[bytes, ...] = ()  # of TPM keys: DER or PEM
    ak_certificates: tuple[bytes, ...] = ()  # and CRLs: DER or PEM; untrusted
    fetch_ak_certificates: bool = False
    gpu_evidence: "GpuEvidence | bytes | None" = None  # bytes: output of nvattest of the boot
    gpu_endorsements: "GpuEndorsements | None" = None
    gpu_roots: "GpuRoots | None" = None
    fetch_gpu_endorsements: bool = False
    gpu_services: "GpuServices | None" = None  # None: NVIDIA's

    def verifier(
        self, collateral: "Collateral | None" = None, pccs_url: str | None = None
    ) -> "Verifier":
        """Return a verifier with trust anchor, policy and certificates of the options.

        Args:
            collateral: Collateral of Intel for all evidence; None: given for each.
            pccs_url: URL of the PCCS from which missing collateral is fetched; None: not fetched.
        """
        from attestkit.verifier.verifier import Verifier  # lazy: loads the verifier

        return Verifier(
            trust_anchor=self.trust_anchor,
            collateral=collateral,
            pccs_url=pccs_url,
            policy=self.policy,
            snp_certificates=self.certificates,
            amd_crls=self.crls,
            images=self.images,
            ak_roots=self.ak_roots,
            ak_certificates=self.ak_certificates,
            fetch_ak_certificates=self.fetch_ak_certificates,
            gpu_roots=self.gpu_roots,
            gpu_endorsements=self.gpu_endorsements,
        )

    @property
    def roots_of_gpus(self) -> "GpuRoots | SimulatedRoots | None":
        """Roots of GPUs and of their manifests; None: NVIDIA's."""
        anchor = self.trust_anchor
        return self.gpu_roots if anchor is None or isinstance(anchor, bytes) else anchor

    @property
    def expects_report_data(self) -> bool:
        """Whether evidence must be bound to a nonce or have certain report data."""
        return self.nonce is not None or self.report_data is not None


class _Given(NamedTuple):
    """Values of the options, as click passes them; None for those not given."""

    collateral: Path | None
    pccs: str | None
    certificates: tuple[Path, ...]
    crls: tuple[Path, ...]
    trust_anchor: Path | None
    expected: ReportDataOptions
    policy_name: str
    at: str | None
    images: Path | None
    ak_roots: tuple[Path, ...]
    ak_certificates: tuple[Path, ...]
    fetch_ak_certificates: bool
    gpu_evidence: Path | None
    gpu_endorsements: Path | None
    gpu_roots: Path | None
    fetch_gpu_endorsements: bool
    gpu_rim_url: str | None
    gpu_ocsp_url: str | None


# The option of a field, and the function that parses its files.
_FILES: Final[dict[str, tuple[str, Callable[[bytes], Any]]]] = {
    "collateral": ("--collateral", option_files.parse_collateral),
    "trust_anchor": ("--trust-anchor", option_files.parse_anchor),
    "gpu_evidence": ("--gpu-evidence", option_files.parse_gpu_evidence),
    "gpu_endorsements": ("--gpu-endorsements", option_files.parse_gpu_endorsements),
    "gpu_roots": ("--gpu-roots", option_files.parse_gpu_roots),
}
_LISTS: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "certificates": ("--certificate", option_files.parse_certificate),
    "crls": ("--crl", option_files.parse_crls),
    "ak_roots": ("--ak-root", option_files.parse_ak_certificate),
    "ak_certificates": ("--ak-certificate", option_files.parse_ak_certificate),
}


def _read_options(given: _Given) -> VerificationOptions:
    pccs_url, pccs_named = _choose_pccs(given.pccs, given.collateral)
    services = option_files.choose_gpu_services(
        given.gpu_rim_url, given.gpu_ocsp_url, fetch=given.fetch_gpu_endorsements
    )
    paths = given._asdict()
    named = [given.expected.of_file, Path(given.policy_name), *(paths[name] for name in _FILES)]
    found: dict[str, Any] = given.expected.read_expected()._asdict()
    found |= {
        name: option_files.read_option_file(option, paths[name], parse)
        for name, (option, parse) in _FILES.items()
    }
    found |= {
        name: option_files.read_option_files(option, paths[name], parse)
        for name, (option, parse) in _LISTS.items()
    }
    return VerificationOptions(
        pccs_url=pccs_url,
        pccs_named=pccs_named,
        policy=_policy(given.policy_name),
        policy_name=given.policy_name,
        at=None if given.at in {None, OWN_INSTANT} else read_instant(given.at or "", OWN_INSTANT),
        own_instant=given.at == OWN_INSTANT,
        inputs=tuple(filter(None, [*named, *chain(*(paths[name] for name in _LISTS))])),
        images=None if given.images is None else option_files.open_images(given.images),
        fetch_ak_certificates=given.fetch_ak_certificates,
        fetch_gpu_endorsements=given.fetch_gpu_endorsements,
        gpu_services=services,
        **found,
    )


def _choose_pccs(pccs: str | None, collateral: Path | None) -> tuple[str | None, bool]:
    """Return the URL of the PCCS (None without one), and whether the option names it.

    `pccs` is the value of --pccs or $PCCS_URL. --collateral overrides $PCCS_URL.

    Raises:
        UsageError: If both options are given.
    """
    source = click.get_current_context().get_parameter_source("pccs")
    from_environment = source is ParameterSource.ENVIRONMENT
    if collateral is not None and pccs is not None:
        if not from_environment:
            raise UsageError("--collateral and --pccs: mutually exclusive", reason="conflict")
        pccs = None
    return pccs or None, bool(pccs) and not from_environment


def _policy(name: str) -> "AppraisalPolicy":
    from attestkit.serve.config.option_values import read_policy  # lazy: loads the server's

    return read_policy("--policy", name)


verification_options: Final = option.group(
    "options",
    (
        option.value(
            "--policy",
            "NAME|FILE",
            "strict, default, development, or a TOML file.",
            parameter="policy_name",
            shell_complete=complete_policy,
            default=DEFAULT,
        ),
        option.at(f"Time of verification; or {OWN_INSTANT}: that of FILE."),
        expected_report_data_options,
        *option.section(
            "Endorsements",
            option.file("--collateral", "Collateral of Intel: JSON, or a CMW with it."),
            option.value(
                "--pccs", "URL", "PCCS to fetch it from; else $PCCS_URL.", envvar="PCCS_URL"
            ),
            option.file("--certificate", "VCEK or VLEK of AMD and its issuer.", many=True),
            option.file("--crl", "AMD's revocation list, then required.", many=True),
            option.file("--trust-anchor", "Root, or JSON of simulated ones; not the vendors'."),
            option.file("--ak-certificate", "Certificate or CRL of TPM keys.", many=True),
            option.file("--ak-root", "Root of TPM keys, for a TPM alone.", many=True),
            option.flag("--fetch-ak-certificates", text="Fetch what Google's certificates name."),
            option.file("--images", "Folder of dstack images, named by hash.", metavar="DIR"),
        ),
        *option.section(
            "GPUs",
            option.file("--gpu-evidence", "Evidence of GPUs; else the enclosed one."),
            option.file("--gpu-endorsements", "Manifests and OCSP answers, JSON."),
            option.flag("--fetch-gpu-endorsements", text="Fetch them from NVIDIA if missing."),
            option.value("--gpu-rim-url", "URL", "Service of manifests, not NVIDIA's."),
            option.value("--gpu-ocsp-url", "URL", "OCSP responder, not NVIDIA's."),
            option.file("--gpu-roots", "Roots of devices and of manifests, PEM."),
        ),
    ),
    _read_options,
    _Given,
)
