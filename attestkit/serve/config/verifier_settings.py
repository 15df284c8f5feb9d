"""Settings of the verifier service, with all defaults, from options and the environment.

This module opens and creates nothing.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from attestkit.errors import UsageError
from attestkit.serve.config.option_values import OFF, Address
from attestkit.serve.config.options import Options, list_options

MOST_WORKERS: Final = 64
"""Limit of --workers; more processes than processors gain nothing."""

_FOR_VERIFIER = list_options("verifier_pccs", "log_format")
_FOR_AGENT = tuple(
    name for name in (*list_options("dir", "verifier"), "limited_sockets") if name != "limits"
)


class VerifierSettings(NamedTuple):
    """Settings of the verifier service.

    `alone` means that no agent is served and no TEE is opened. `workers` is the number of worker
    processes; with None, this process serves. `metrics` is the address of GET /metrics for all
    workers. Values that are used as given are in `options`.
    """

    options: Options
    address: Address
    alone: bool
    pccs_url: str | None = None
    workers: int | None = None
    metrics: Address | None = None


def decide_verifier(options: Options, environ: Mapping[str, str]) -> VerifierSettings | None:
    """Return the settings of the verifier service; None if it is off.

    `environ` has the environment variables. The PCCS is that of the option, else `$PCCS_URL`, but
    none if a collateral file is given.

    Raises:
        UsageError: If an option is invalid, conflicts with another or requires one, or nothing is
            left to serve.
        ConfigError: If such an option is from a configuration file.
    """
    backend = options.backend or environ.get("ATTESTKIT_BACKEND")
    address = options.address("verifier")
    if address is None:
        if backend == OFF:
            text = f"--backend {OFF}: nothing to serve without --verifier HOST:PORT"
            raise UsageError(text, reason="missing")
        if option := options.first_given(_FOR_VERIFIER):
            raise options.error(option, "requires the verifier service; give --verifier too")
        return None
    if backend == OFF and (option := options.first_given(_FOR_AGENT)):
        raise options.error(option, f"requires an agent, which --backend {OFF} does not serve")
    if options.verifier_pccs not in {None, OFF} and options.verifier_collateral is not None:
        other = options.named("verifier_collateral")
        raise options.error("verifier_pccs", f"excludes {other}; give one of them")
    metrics = options.address("verifier_metrics")
    if backend != OFF:
        required = f"requires --backend {OFF}"
        if options.workers is not None:
            raise options.error("workers", f"{required}; an agent runs in one process")
        if metrics is not None:
            raise options.error(
                "verifier_metrics", f"{required}; an agent serves /metrics at --http"
            )
    pccs_url = _pccs_url(options, environ)
    if options.verifier_cache is not None and pccs_url is None:
        raise options.error("verifier_cache", "requires --verifier-pccs or $PCCS_URL")
    return VerifierSettings(options, address, backend == OFF, pccs_url, _workers(options), metrics)


def _pccs_url(options: Options, environ: Mapping[str, str]) -> str | None:
    found = options.verifier_pccs
    if found is None and options.verifier_collateral is None:
        found = environ.get("PCCS_URL") or None
    return None if found == OFF else found


def _workers(options: Options) -> int | None:
    text = options.workers
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MOST_WORKERS):
        raise options.wrong_value("workers", f"must be a number from 1 to {MOST_WORKERS}")
    return int(text)
