"""Settings of the verifier service, with all defaults, from options and the environment.

This module opens and creates nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.errors import UsageError
from attestkit.serve.config.command_line import Options, refuse_empty
from attestkit.serve.config.option_values import OFF, Address

__all__ = ["MOST_WORKERS", "VerifierSettings", "decide_verifier"]

MOST_WORKERS: Final = 64
"""Limit of --workers; more processes than processors gain nothing."""

_FOR_VERIFIER = (
    *("verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor"),
    *("ear_key", "verifier_cache", "verifier_metrics", "workers"),
)
_FOR_AGENT = (
    *("dir", "state_dir", "socket", "tappd_socket", "socket_mode", "socket_group", "http"),
    *("dev_http", "pccs", "app_keys", "app_compose", "sys_config", "app_id", "measure_app"),
    *("seed", "seed_file", "reset", "platform", "quote_version", "scenario", "fault"),
)


_OPTIONS = {
    "pccs_url": "verifier_pccs",
    "collateral": "verifier_collateral",
    "policy": "verifier_policy",
    "trust_anchor": "trust_anchor",
    "ear_key": "ear_key",
    "cache": "verifier_cache",
}
_NAMES: Mapping[str, str] = {
    "pccs_url": "--verifier-pccs or $PCCS_URL:",
    "collateral": "--verifier-collateral",
    "policy": "--verifier-policy",
    "trust_anchor": "--trust-anchor",
    "ear_key": "--ear-key",
    "cache": "--verifier-cache",
}


class VerifierSettings(NamedTuple):
    """Settings of the verifier service, with absolute paths.

    `alone` means that no agent is served and no TEE is opened. `policy` is a preset or a file.
    `cache` is the folder of cached collateral. `workers` is the number of worker processes, or
    None for this process. `metrics` is the address of their metrics. `names` has the start of
    error texts about the other fields.
    """

    address: Address
    alone: bool
    pccs_url: str | None
    collateral: Path | None
    policy: str | None
    trust_anchor: Path | None
    ear_key: Path | None = None
    cache: Path | None = None
    workers: int | None = None
    metrics: Address | None = None
    names: Mapping[str, str] = _NAMES


def decide_verifier(options: Options, environ: Mapping[str, str]) -> VerifierSettings | None:
    """Return the settings of the verifier service; None if it is off.

    The PCCS is that of the option, else `$PCCS_URL`.

    Raises:
        UsageError: If options conflict.
        ConfigError: If an option from a configuration file conflicts or is invalid.
    """
    refuse_empty(options)
    backend = options.backend or environ.get("ATTESTKIT_BACKEND")
    address = options.address("verifier")
    if address is None:
        if backend == OFF:
            raise UsageError(
                f"--backend {OFF}: nothing to serve without --verifier HOST:PORT", reason="missing"
            )
        if option := _first_given(options, _FOR_VERIFIER):
            raise options.conflict(option, "for the verifier service; give --verifier too")
        return None
    if backend == OFF and (option := _first_given(options, _FOR_AGENT)):
        raise options.conflict(option, f"for an agent, which --backend {OFF} does not serve")
    if options.verifier_pccs not in {None, OFF} and options.verifier_collateral is not None:
        raise options.conflict(
            "verifier_pccs",
            f"excludes {options.named('verifier_collateral')}; give one of them",
        )
    metrics = options.address("verifier_metrics")
    if backend != OFF:
        _refuse_beside_an_agent(options, metrics)
    pccs_url = _pccs_url(options, environ)
    if options.verifier_cache is not None and pccs_url is None:
        raise options.conflict(
            "verifier_cache", "nothing is fetched without --verifier-pccs or $PCCS_URL"
        )
    return VerifierSettings(
        address=address,
        alone=backend == OFF,
        pccs_url=pccs_url,
        collateral=options.path("verifier_collateral"),
        policy=options.verifier_policy,
        trust_anchor=options.path("trust_anchor"),
        ear_key=options.path("ear_key"),
        cache=options.path("verifier_cache"),
        workers=_workers(options),
        metrics=metrics,
        names={**_NAMES, **_sources(options)},
    )


def _refuse_beside_an_agent(options: Options, metrics: Address | None) -> None:
    alone = f"only with --backend {OFF}; an agent"
    if options.workers is not None:
        raise options.conflict("workers", f"{alone} is one process")
    if metrics is not None:
        raise options.conflict("verifier_metrics", f"{alone} has /metrics at --http")


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


def _first_given(options: Options, names: Sequence[str]) -> str:
    """Return the first of the options that has a value; empty if none has."""
    return next((name for name in names if getattr(options, name) not in {None, False, OFF}), "")


def _sources(options: Options) -> dict[str, str]:
    """Return file and key of each value from a configuration file."""
    found = {name: options.sources.get(option) for name, option in _OPTIONS.items()}
    return {name: f"{source}:" for name, source in found.items() if source}
