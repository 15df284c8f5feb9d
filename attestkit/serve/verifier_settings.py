"""From options and environment to what the verifier service is to do.

Nothing is made or opened; the caller does that with what this module says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attestkit.errors import UsageError
from attestkit.serve.address import OFF, Address
from attestkit.serve.options import Options, refuse_empty

__all__ = ["VerifierSettings", "decide_verifier"]

_FOR_VERIFIER = ("verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor")
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
}
_NAMES: Mapping[str, str] = {
    "pccs_url": "--verifier-pccs or $PCCS_URL:",
    "collateral": "--verifier-collateral",
    "policy": "--verifier-policy",
    "trust_anchor": "--trust-anchor",
}


class VerifierSettings(NamedTuple):
    """What the verifier service is to do; paths are absolute, None is not at all.

    `alone` says that it is all there is to serve: no agent, and no TEE is opened. `policy` stands
    as it was given, a name or a file. `names` begins what is told of each of the last four.
    """

    address: Address
    alone: bool
    pccs_url: str | None
    collateral: Path | None
    policy: str | None
    trust_anchor: Path | None
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
    pccs_url = options.verifier_pccs
    if pccs_url is None and options.verifier_collateral is None:
        pccs_url = environ.get("PCCS_URL") or None
    return VerifierSettings(
        address=address,
        alone=backend == OFF,
        pccs_url=None if pccs_url == OFF else pccs_url,
        collateral=options.path("verifier_collateral"),
        policy=options.verifier_policy,
        trust_anchor=options.path("trust_anchor"),
        names={**_NAMES, **_sources(options)},
    )


def _given(options: Options, names: Sequence[str]) -> str:
    """Return the first of some options that was given a value; else nothing."""
    return next((name for name in names if getattr(options, name) not in {None, False, OFF}), "")


def _sources(options: Options) -> dict[str, str]:
    """Return where a configuration has what it gave."""
    found = {name: options.sources.get(option) for name, option in _OPTIONS.items()}
    return {name: f"{source}:" for name, source in found.items() if source}
