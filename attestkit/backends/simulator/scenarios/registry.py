"""Registry of the simulator: every named scenario and fault, each with its expected outcome.

docs/scenarios.md is made from it. A scenario is passed as `scenario=`, a fault as `faults=`.
"""

from importlib import import_module
from typing import Final, cast

from attestkit._sanitize import near, shown
from attestkit.backends.simulator.scenarios.cloud_scenarios import CLOUDS
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.named_case import GPU_PREFIX, Cases, describe_cases
from attestkit.backends.simulator.scenarios.tee_scenarios import TEES
from attestkit.errors import UsageError

SCENARIOS: Final[Cases] = {**TEES, **CLOUDS}
"""Scenarios of machines, without those of GPUs."""

_SIMULATOR: Final = __name__.rsplit(".", 2)[0]


def _find_table(module: str, name: str) -> Cases:
    """Return a table of a module above this one, or slow to load."""
    return cast("Cases", getattr(import_module(f"{_SIMULATOR}.{module}"), name))


def gpu_scenarios() -> Cases:
    """Return the scenarios with a fault of GPUs; the outcome is of a verifier of CPU and GPUs."""
    return _find_table("gpu.gpu_faults", "GPU_SCENARIOS")


def all_cases() -> Cases:
    """Return every scenario and fault by name."""
    faults = {
        **_find_table("faults.fault_specs", "NAMED"),
        **_find_table("faults.kms_faults", "KMS_FAULTS"),
    }
    return {**SCENARIOS, **gpu_scenarios(), **faults}


def describe_scenarios() -> tuple[str, ...]:
    """Return one line of help for each scenario."""
    return (*describe_cases(SCENARIOS), *describe_cases(gpu_scenarios()))


def chosen_scenario(chosen: object, platform: object = None) -> Scenario:
    """Return the scenario of an argument: a name, a Scenario, or None for an up-to-date guest.

    Raises:
        UsageError: If the argument has another type, the name is unknown, or the scenario is not
            for `platform`: one of `PLATFORMS`, or None for any.
    """
    if platform is not None and not isinstance(platform, str):
        raise UsageError(f"platform: must be a str, not {platform!r}", reason="wrong_type")
    if chosen is None:
        return Scenario() if platform is None else Scenario(platform=platform)
    if isinstance(chosen, str):
        chosen = _on_platform(scenario(chosen), platform)
    if not isinstance(chosen, Scenario):
        raise UsageError("scenario: must be a name or a Scenario", reason="wrong_type")
    if platform not in (None, chosen.platform):
        text = f"scenario: for the platform {chosen.platform}, not {platform}"
        raise UsageError(text, reason="conflict")
    return chosen


def _on_platform(chosen: Scenario, platform: str | None) -> Scenario:
    """Return the scenario of a name; faults of GPUs apply to every platform."""
    if chosen.gpu_fault is None or platform is None:
        return chosen
    return Scenario(platform=platform, gpu_fault=chosen.gpu_fault)


def scenario(name: str) -> Scenario:
    """Return the scenario of that name.

    Raises:
        UsageError: If the name is unknown; the text suggests similar names.
    """
    if name.startswith(GPU_PREFIX):  # the simulator checks the rest when it attaches the GPUs
        return Scenario(gpu_fault=name.removeprefix(GPU_PREFIX))
    found = SCENARIOS[name].scenario if name in SCENARIOS else None
    if found is None:
        text = f"unknown scenario {shown(name)}{near(name, SCENARIOS)}; for a list run attestkit"
        raise UsageError(f"{text} serve --list-scenarios", reason="unknown_name")
    return found
