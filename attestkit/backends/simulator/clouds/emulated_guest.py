"""A simulated guest behind a vTPM whose devices other programs use."""

from collections.abc import Callable
from typing import Any, Final, cast

from attestkit.backends.simulator.clouds.vtpm_guest import VtpmGuest
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.scenarios.config import CloudConfig, Scenario
from attestkit.backends.simulator.tdx import find_class
from attestkit.errors import UsageError

# Faults of the program that collects the evidence.
_OF_COLLECTORS: Final = ("stale_nonce", "bank", "relayed")


def boot_guest(
    scenario: Scenario,
    seed: bytes,
    *,
    faults: Faults,
    now: Callable[[], float],
    random: Callable[[int], bytes],
) -> VtpmGuest:
    """Boot the guest of a scenario whose platform has a vTPM; the caller closes it.

    Raises:
        UsageError: If the scenario changes what the program decides that collects the evidence, or
            the key of a TPM alone.
    """
    _check_scenario(scenario)
    kind = find_class(scenario.platform)
    emulated: Any = type(kind.__name__, (kind,), {"emulated": True})
    made = emulated(seed=seed, scenario=scenario, faults=faults, now=now, random=random)
    return cast("VtpmGuest", made)


def _check_scenario(scenario: Scenario) -> None:
    names = _OF_COLLECTORS + (("foreign_ak",) if scenario.platform == "tpm" else ())
    for name in names:
        if getattr(scenario.cloud, name) != getattr(CloudConfig(), name):
            text = (
                f"scenario: {name} changes how evidence is collected, which here the program does; "
                "use the simulator as a backend"
            )
            raise UsageError(text, reason="not_applicable")
