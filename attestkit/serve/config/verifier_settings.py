"""From options and environment to what the verifier service is to do.

Nothing is made or opened; the caller does that with what this module says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.errors import UsageError
from attestkit.serve.config.command_line import Options, refuse_empty
from attestkit.serve.config.option_values import OFF, Address

__all__ = ["MOST_WORKERS", "VerifierSettings", "decide_verifier"]

MOST_WORKERS: Final = 64
"""Processes of one service; more than that many processors gain nothing."""

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
    """What the verifier service is to do; paths are absolute, None is not at all.

    `alone` says that it is all there is to serve: no agent, and no TEE is opened. `policy` stands
    as it was given, a name or a file. `cache` is a folder of fetched collateral; `workers` is how
    many processes serve, None is this one alone; `metrics` is where their counts are shown. `names`
    begins what is told of the others.
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
    """Return what the verifier service is to do; None where there is none.

    Where collateral is fetched was asked for by option, or else by `$PCCS_URL`.

    Raises:
        UsageError: Options contradict each other.
        ConfigError: The same, where a configuration gave one of them.
    """
    refuse_empty(options)
    backend = options.backend or environ.get("ATTESTKIT_BACKEND")
    address = options.address("verifier")
    if address is None:
        if backend == OFF:
            raise UsageError(f"--backend {OFF} serves no agent: it needs --verifier HOST:PORT")
        if given := _given(options, _FOR_VERIFIER):
            raise options.refusal(given, "is for the verifier service, which needs --verifier")
        return None
    if backend == OFF and (given := _given(options, _FOR_AGENT)):
        raise options.refusal(given, f"is for an agent, and with --backend {OFF} there is none")
    if options.verifier_pccs not in {None, OFF} and options.verifier_collateral is not None:
        raise options.refusal(
            "verifier_pccs", f"and {options.named('verifier_collateral')}: one of them is enough"
        )
    metrics = options.address("verifier_metrics")
    if backend != OFF:
        _refuse_beside_an_agent(options, metrics)
    pccs_url = _pccs_url(options, environ)
    if options.verifier_cache is not None and pccs_url is None:
        reason = "keeps what is fetched, and nothing is without --verifier-pccs or $PCCS_URL"
        raise options.refusal("verifier_cache", reason)
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
    alone = f"is for the verifier alone (--backend {OFF}): an agent"
    if options.workers is not None:
        raise options.refusal("workers", f"{alone} is one process")
    if metrics is not None:
        raise options.refusal("verifier_metrics", f"{alone} has /metrics at --http")


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
        raise options.wrong("workers", f"want a number from 1 to {MOST_WORKERS}")
    return int(text)


def _given(options: Options, names: Sequence[str]) -> str:
    """Return the first of some options that was given a value; else nothing."""
    return next((name for name in names if getattr(options, name) not in {None, False, OFF}), "")


def _sources(options: Options) -> dict[str, str]:
    """Return where a configuration has what it gave."""
    found = {name: options.sources.get(option) for name, option in _OPTIONS.items()}
    return {name: f"{source}:" for name, source in found.items() if source}
