"""Type of an entry in the registry: a scenario of a machine, or a fault of its calls."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from attestkit.backends.simulator.scenarios.config import Scenario

GPU_PREFIX: Final = "gpu-"
"""Prefix of the names of scenarios with a fault of GPUs."""

NO_STATUS: Final = "accepted"
"""Outcome of scenarios that a policy accepts on a platform without a TCB status."""


class NamedCase(NamedTuple):
    """A scenario, which is chosen when a machine is made, or a fault, which is armed later.

    Its name is the key in the registry, such as `ebusy`. `scenario` is set for scenarios only;
    `operation`, `number` and `argument` are set for faults only.

    Attributes:
        subject: Of a scenario: its platform, or `gpu`. Of a fault: `tee`, `tdx`, `qgs`, `tpm`,
            `tpm_quote`, `imds` or `kms`.
        outcome: Of a scenario: the TCB status with which a verifier accepts the evidence, if its
            policy accepts that status, else the reason of its error. Of a fault: what the call
            returns or raises; of a KMS what its client does.
        text: One line of help.
        scenario: Configuration of the machine; None for a fault.
        operation: Name of the operation that a fault affects, such as `quote`.
        number: Errno with which that operation fails; 0 if it fails in another way.
        argument: What follows the fault's name after a colon, as in `slow:2s`; empty if nothing.
    """

    subject: str
    outcome: str
    text: str
    scenario: "Scenario | None" = None
    operation: str = ""
    number: int = 0
    argument: Literal["", "seconds"] = ""

    @property
    def kind(self) -> Literal["scenario", "fault"]:
        """Kind of the case: it is applied as `scenario=` or as `faults=`."""
        return "fault" if self.scenario is None else "scenario"


Cases = Mapping[str, NamedCase]
"""Scenarios or faults by name."""


def describe_cases(cases: Cases, width: int = 0) -> tuple[str, ...]:
    """Return lines of help: each has a name, padded to `width` characters or more, and a text."""
    examples = {name: f"{name}:2s" if one.argument else name for name, one in cases.items()}
    width = max(width, *map(len, examples.values()))
    return tuple([f"{examples[name]:<{width}}  {one.text}" for name, one in cases.items()])
