"""The options of a verification, the same for every command that verifies, and what they say.

A file that an option names is part of the configuration: one that is missing or malformed is a
ConfigError, and its text names the option.
"""

import contextlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, overload

import click
from click.core import ParameterSource

from attestkit.attestation import Attestation
from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.click_types import PATH, gathered
from attestkit.cli.options.report_data import given_report_data, report_data_choices
from attestkit.cli.options.shell_values import complete_policy
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, ConfigError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

__all__ = ["Asked", "instant", "verification_options"]

_Read = TypeVar("_Read")

OWN_INSTANT: Final = "bundle"  # what --at says where a bundle is to be judged at its own
DEFAULT: Final = "default"


class Asked(NamedTuple):
    """What the options of a verification say, as values."""

    collateral: Collateral | None
    pccs_url: str | None
    pccs_named: bool  # by the option; else the URL is the environment's
    certificates: tuple[bytes, ...]  # of AMD's, DER, PEM, or a kernel's table; none are trusted
    trust_anchor: bytes | None  # DER
    report_data: bytes | None
    policy: "AppraisalPolicy"
    policy_name: str  # of a preset, or of a file
    at: datetime | None  # aware; None: now, or a bundle's own
    own_instant: bool  # a bundle is judged at the instant that it names
    inputs: tuple[Path, ...]  # files that options name: nothing may be written over them


def _asked(
    *,
    collateral: Path | None,
    pccs: str | None,
    certificates: tuple[Path, ...],
    trust_anchor: Path | None,
    report_data: str | None,
    text: str | None,
    of_file: Path | None,
    sha512: bool,
    policy_name: str,
    at: str | None,
) -> Asked:
    from attestkit.serve.config.option_values import (
        read_policy,  # late: commands without options of ours
    )

    source = click.get_current_context().get_parameter_source("pccs")
    from_environment = source is ParameterSource.ENVIRONMENT
    if collateral is not None and pccs is not None:
        if not from_environment:
            raise UsageError("--collateral and --pccs: one of them")
        pccs = None
    named = (collateral, *certificates, trust_anchor, of_file, Path(policy_name))
    return Asked(
        collateral=_read("--collateral", collateral, _collateral),
        pccs_url=pccs or None,
        pccs_named=bool(pccs) and not from_environment,
        certificates=tuple(_read("--certificate", path, _certificate) for path in certificates),
        trust_anchor=_read("--trust-anchor", trust_anchor, _anchor),
        report_data=_report_data(report_data, text, of_file, sha512=sha512),
        policy=read_policy("--policy", policy_name),
        policy_name=policy_name,
        at=None if at in {None, OWN_INSTANT} else instant(at or "", OWN_INSTANT),
        own_instant=at == OWN_INSTANT,
        inputs=tuple(path for path in named if path is not None),
    )


verification_options: Final = gathered(
    "asked",
    (
        click.option(
            "--collateral",
            metavar="FILE",
            type=PATH,
            help="Intel's word about the platform: the nine-field JSON, or a CMW that holds it.",
        ),
        click.option(
            "--pccs",
            metavar="URL",
            envvar="PCCS_URL",
            show_envvar=True,
            help="Fetch collateral there. Nothing is fetched without this option or its variable.",
        ),
        click.option(
            "--certificate",
            "certificates",
            metavar="FILE",
            type=PATH,
            multiple=True,
            help="AMD's certificates (VCEK or VLEK, and its issuer) for SEV-SNP evidence without "
            "its own; may be repeated.",
        ),
        click.option(
            "--trust-anchor",
            metavar="FILE",
            type=PATH,
            help="The one root to trust, DER or PEM, in place of those of Intel, AMD and AWS.",
        ),
        *report_data_choices(
            "Up to 64 bytes that the evidence must be about: shows that it is fresh.",
            "It must be about the SHA-512 of what --report-data, --text or --file gives.",
        ),
        click.option(
            "--policy",
            "policy_name",
            metavar="NAME|FILE",
            shell_complete=complete_policy,
            default=DEFAULT,
            show_default=True,
            help="What to accept: strict, default or development; or a TOML file, as attestkit "
            "policy writes it (./strict is a file).",
        ),
        click.option(
            "--at",
            metavar="TIME",
            help="The instant to verify at, else now: ISO 8601 (UTC if no zone is given), seconds "
            f"since 1970, or {OWN_INSTANT}: the one that an evidence bundle names.",
        ),
    ),
    _asked,
)


@overload
def _read(option: str, path: Path, parse: Callable[[bytes], _Read]) -> _Read: ...
@overload
def _read(option: str, path: None, parse: Callable[[bytes], _Read]) -> None: ...
@overload
def _read(option: str, path: Path | None, parse: Callable[[bytes], _Read]) -> _Read | None: ...
def _read(option: str, path: Path | None, parse: Callable[[bytes], _Read]) -> _Read | None:
    """Return what an option's file holds; what is wrong with it is told with the option."""
    if path is None:
        return None
    try:
        data = read_file(path)
    except FormatError as error:  # whose text names the file
        raise ConfigError(f"{option} {error}") from error
    try:
        return parse(data)
    except (CollateralError, FormatError, UsageError) as error:
        raise ConfigError(f"{option} {path}: {error}") from error


def _collateral(data: bytes) -> Collateral:
    """Read collateral, or evidence that it lies beside: whoever names that file chose it."""
    try:
        return Collateral.from_json(data)
    except CollateralError:
        with contextlib.suppress(FormatError):
            if (beside := Attestation.from_bytes(data).enclosed_collateral) is not None:
                return beside
        raise


def _anchor(data: bytes) -> bytes | None:
    from attestkit.verifier.authenticators import Makers  # late: loads X.509

    return Makers(data).trust_anchor


def _certificate(data: bytes) -> bytes:
    """Return certificates of AMD's as they came, once they are some."""
    from attestkit.verifier.platforms.snp_chain import read_endorsements  # late: loads X.509

    if not read_endorsements([data]):
        raise FormatError("there is no certificate in it")
    return data


def _report_data(
    report_data: str | None, text: str | None, file: Path | None, *, sha512: bool
) -> bytes | None:
    try:
        wanted = given_report_data(report_data, text, file, sha512=sha512)
    except FormatError as error:  # whose text names the file
        raise ConfigError(f"--file {error}") from error
    if wanted == b"":  # often a variable that is not set; zeros alone would show nothing
        raise UsageError(
            "the report data is empty, and has to be 1 to 64 bytes: "
            "--report-data, --text or --file has none"
        )
    return wanted


def instant(text: str, *words: str) -> datetime:
    """Return the instant that `--at` gives, aware; where `words` would do too, the error says so.

    Raises:
        UsageError: It is no time, or none of the years 1970 to 9998.
    """
    try:
        if text.replace(".", "", 1).isdecimal() and text.isascii():
            return datetime.fromtimestamp(float(text), timezone.utc)
        # datetime of Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except (ValueError, OverflowError, OSError) as error:
        others = "".join(f", nor {word}" for word in words)
        raise UsageError(f"--at {text}: neither a date of ISO 8601, nor seconds{others}") from error
    moment = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment
    if not 1970 <= moment.year <= 9998:  # whatever the zone, it is a time of X.509's and ours
        raise UsageError(f"--at {text}: no verification is before 1970, or after 9998")
    return moment
