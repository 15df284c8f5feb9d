"""Options of verification, the same for every command that verifies.

Files that options name are configuration: a missing or malformed file is a ConfigError, whose text
names the option.
"""

import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, overload

import click
from click.core import ParameterSource

from attestkit.attestation import Attestation
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.click_types import PATH, group_options
from attestkit.cli.options.gpu_files import (
    GPU_OPTIONS,
    choose_gpu_services,
    read_gpu_endorsements,
    read_gpu_evidence,
    read_gpu_roots,
)
from attestkit.cli.options.report_data import read_report_data, report_data_choices
from attestkit.cli.options.shell_values import complete_policy
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, ConfigError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements, GpuEvidence, GpuRoots, GpuServices
    from attestkit.verifier.images import ImageStore
    from attestkit.verifier.pipeline import Verifier
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

_Read = TypeVar("_Read")

OWN_INSTANT: Final = "bundle"  # value of --at for the time that an evidence bundle names
DEFAULT: Final = "default"


class VerificationOptions(NamedTuple):
    """Values of the verification options."""

    collateral: Collateral | None
    pccs_url: str | None
    pccs_named: bool  # by the option, not by the environment
    certificates: tuple[bytes, ...]  # AMD: DER, PEM or certificate table; untrusted
    trust_anchor: bytes | None  # DER
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
        self, collateral: Collateral | None = None, pccs_url: str | None = None
    ) -> "Verifier":
        """Return a verifier with trust anchor, policy and certificates of the options."""
        from attestkit.verifier.pipeline import Verifier  # lazy: loads the verifier

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
    def expects_report_data(self) -> bool:
        """Whether evidence must be bound to a nonce or have certain report data."""
        return self.nonce is not None or self.report_data is not None


class _Given(NamedTuple):
    """Values of the options, as click passes them."""

    collateral: Path | None
    pccs: str | None
    certificates: tuple[Path, ...]
    crls: tuple[Path, ...]
    trust_anchor: Path | None
    nonce: str | None
    report_data: str | None
    text: str | None
    of_file: Path | None
    sha512: bool
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


def _read_options(given: _Given) -> VerificationOptions:
    pccs_url, pccs_named = _choose_pccs(given.pccs, given.collateral)
    lists = {"certificates": given.certificates, "crls": given.crls}
    lists |= {"ak_roots": given.ak_roots, "ak_certificates": given.ak_certificates}
    urls = given.gpu_rim_url, given.gpu_ocsp_url
    services = choose_gpu_services(*urls, fetch=given.fetch_gpu_endorsements)
    of_gpus = (given.gpu_evidence, given.gpu_endorsements, given.gpu_roots)
    files = (given.collateral, given.trust_anchor, given.of_file, Path(given.policy_name))
    values = given.nonce, given.report_data, given.text, given.of_file
    challenge, expected = read_expected(*values, sha512=given.sha512)
    return VerificationOptions(
        collateral=read_option_file("--collateral", given.collateral, parse_collateral),
        pccs_url=pccs_url,
        pccs_named=pccs_named,
        trust_anchor=read_option_file("--trust-anchor", given.trust_anchor, parse_anchor),
        nonce=challenge,
        report_data=expected,
        policy=_policy(given.policy_name),
        policy_name=given.policy_name,
        at=None if given.at in {None, OWN_INSTANT} else read_instant(given.at or "", OWN_INSTANT),
        own_instant=given.at == OWN_INSTANT,
        inputs=tuple(
            path for path in (*files, *chain(*lists.values()), *of_gpus) if path is not None
        ),
        images=None if given.images is None else _open_images(given.images),
        fetch_ak_certificates=given.fetch_ak_certificates,
        gpu_evidence=read_option_file("--gpu-evidence", given.gpu_evidence, read_gpu_evidence),
        gpu_endorsements=read_option_file(
            "--gpu-endorsements", given.gpu_endorsements, read_gpu_endorsements
        ),
        gpu_roots=read_option_file("--gpu-roots", given.gpu_roots, read_gpu_roots),
        fetch_gpu_endorsements=given.fetch_gpu_endorsements,
        gpu_services=services,
        **_read_lists(lists),
    )


def _choose_pccs(pccs: str | None, collateral: Path | None) -> tuple[str | None, bool]:
    """Return the URL of the PCCS, and whether the option names it.

    --collateral overrides $PCCS_URL.

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


verification_options: Final = group_options(
    "options",
    (
        click.option(
            "--collateral",
            type=PATH,
            help="Collateral of an Intel platform: JSON with nine fields, or a CMW with it.",
        ),
        click.option(
            "--pccs",
            metavar="URL",
            envvar="PCCS_URL",
            show_envvar=True,
            help="Fetch collateral from this PCCS. Without it, nothing is fetched.",
        ),
        click.option(
            "--certificate",
            "certificates",
            type=PATH,
            multiple=True,
            help="AMD certificates (VCEK or VLEK, and its issuer) for SEV-SNP evidence without "
            "them; may be repeated.",
        ),
        click.option(
            "--crl",
            "crls",
            type=PATH,
            multiple=True,
            help="Revocation list of AMD, DER or PEM; SEV-SNP evidence is then rejected without a "
            "current one of its product. May be repeated.",
        ),
        click.option(
            "--trust-anchor",
            type=PATH,
            help="Root certificate to trust, DER or PEM, in place of those of the vendors.",
        ),
        click.option(
            "--ak-certificate",
            "ak_certificates",
            type=PATH,
            multiple=True,
            help="Certificates and CRLs of CAs that certify keys of TPMs, DER or PEM; may be "
            "repeated.",
        ),
        click.option(
            "--ak-root",
            "ak_roots",
            type=PATH,
            multiple=True,
            help="Root of keys of TPMs, DER or PEM, instead of Google's and AWS's, for evidence of "
            "a TPM alone; may be repeated.",
        ),
        click.option(
            "--fetch-ak-certificates",
            is_flag=True,
            help="Fetch missing ones from the addresses that Google's certificates name.",
        ),
        click.option(
            "--images",
            type=PATH,
            help="Folder of dstack OS images, each in a folder or .tar.gz named by its hash. They "
            "prove the OS image and the ACPI tables of TDs.",
        ),
        *GPU_OPTIONS,
        *report_data_choices(
            "Expected nonce, 8 to 64 bytes; shows that the evidence is fresh.",
            "Expected raw report data, up to 64 bytes; alone no proof of freshness.",
            "Expect the SHA-512 of --report-data, --text or --file.",
        ),
        click.option(
            "--policy",
            "policy_name",
            metavar="NAME|FILE",
            shell_complete=complete_policy,
            default=DEFAULT,
            show_default=True,
            help="Appraisal policy: strict, default or development; or a TOML file, as attestkit "
            "policy writes it (./strict is a file).",
        ),
        click.option(
            "--at",
            metavar="TIME",
            help="Verification time, default now: ISO 8601 (UTC if no zone is given), seconds "
            f"since 1970, or {OWN_INSTANT} for the time that an evidence bundle names.",
        ),
    ),
    _read_options,
    _Given,
)


@overload
def read_option_file(option: str, path: Path, parse: Callable[[bytes], _Read]) -> _Read: ...
@overload
def read_option_file(option: str, path: None, parse: Callable[[bytes], _Read]) -> None: ...
@overload
def read_option_file(
    option: str, path: Path | None, parse: Callable[[bytes], _Read]
) -> _Read | None: ...
def read_option_file(
    option: str, path: Path | None, parse: Callable[[bytes], _Read]
) -> _Read | None:
    """Parse the file of an option; errors name the option."""
    if path is None:
        return None
    try:
        data = read_file(path)
    except FormatError as error:  # its text names the file
        raise ConfigError(f"{option} {error}", reason="unreadable") from error
    try:
        return parse(data)
    except (CollateralError, FormatError, UsageError) as error:
        raise ConfigError(f"{option} {path}: {error}", reason="unreadable") from error


def _read_lists(lists: Mapping[str, tuple[Path, ...]]) -> dict[str, tuple[bytes, ...]]:
    """Return the content of the files of options that may be repeated, by field."""
    options = {
        "certificates": ("--certificate", parse_certificate),
        "crls": ("--crl", _crls),
        "ak_roots": ("--ak-root", _ak_certificate),
        "ak_certificates": ("--ak-certificate", _ak_certificate),
    }
    return {
        field: tuple(read_option_file(option, path, parse) for path in lists[field])
        for field, (option, parse) in options.items()
    }


def _policy(name: str) -> "AppraisalPolicy":
    from attestkit.serve.config.option_values import read_policy  # lazy: loads the server's

    return read_policy("--policy", name)


def parse_collateral(data: bytes) -> Collateral:
    """Parse collateral, or evidence in a CMW that contains collateral."""
    try:
        return Collateral.from_json(data)
    except CollateralError:
        with contextlib.suppress(FormatError):
            if (enclosed := Attestation.from_bytes(data).enclosed_collateral) is not None:
                return enclosed
        raise


def _open_images(folder: Path) -> "ImageStore":
    from attestkit.verifier.images import ImageStore  # lazy: loads `measure`

    try:
        return ImageStore(folder)
    except ConfigError as error:
        text = str(error).removeprefix("images: ")
        raise ConfigError(f"--images {text}", reason=error.reason) from error


def parse_anchor(data: bytes) -> bytes | None:
    """Return a root certificate in DER; UsageError if it is not valid."""
    from attestkit.verifier.authenticators import Authenticators  # lazy: loads X.509

    return Authenticators(data).trust_anchor


def parse_certificate(data: bytes) -> bytes:
    """Return AMD certificates unchanged, if there is at least one."""
    from attestkit.verifier.platforms.snp.chain import read_endorsements  # lazy: loads X.509

    if not read_endorsements([data]):
        raise FormatError("no certificate found", reason="missing")
    return data


def _crls(data: bytes) -> bytes:
    """Return CRLs of AMD unchanged, if they are well-formed."""
    from attestkit._crypto.x509.crl import read_amd_crls  # lazy: loads X.509

    read_amd_crls(data)
    return data


def _ak_certificate(data: bytes) -> bytes:
    """Return certificates and CRLs of TPM keys unchanged, if they are well formed."""
    from attestkit.verifier.platforms.vtpm.ak_chain import AkChains  # lazy: loads X.509

    AkChains(certificates=[data])
    return data


def read_expected(
    nonce: str | None,
    report_data: str | None,
    text: str | None,
    file: Path | None,
    *,
    sha512: bool,
) -> tuple[bytes | None, bytes | None]:
    """Return the expected nonce and report data of the options; at most one is not None.

    Raises:
        UsageError: If two are given, or one is empty, too long or not hex or UTF-8.
        ConfigError: If the file cannot be read.
    """
    try:
        challenge, expected = read_report_data(nonce, report_data, text, file, sha512=sha512)
    except FormatError as error:  # its text names the file
        raise ConfigError(f"--file {error}", reason="unreadable") from error
    if expected == b"":  # often an unset variable; all zeros would not show freshness
        raise UsageError(
            "report data: empty; give 1 to 64 bytes with --report-data, --text or --file",
            reason="missing",
        )
    return challenge, expected


def read_instant(text: str, *words: str) -> datetime:
    """Return the aware time of `--at`; the error text also lists `words` as valid values.

    Raises:
        UsageError: If it is not a time, or not in the years 1970 to 9998.
    """
    try:
        if text.replace(".", "", 1).isdecimal() and text.isascii():
            return datetime.fromtimestamp(float(text), timezone.utc)
        # datetime of Python 3.10 does not accept Z.
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except (ValueError, OverflowError, OSError) as error:
        others = "".join(f", or {word}" for word in words)
        raise UsageError(
            f"--at: not a valid time: {text}; use ISO 8601, seconds since 1970{others}",
            reason="encoding",
        ) from error
    moment = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment
    if not 1970 <= moment.year <= 9998:  # in any zone it can be compared with X.509 times
        raise UsageError(f"--at: not in the years 1970 to 9998: {text}", reason="out_of_range")
    return moment
