"""Results of the verification of GPU evidence; they exist for accepted evidence only."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from attestkit._outcomes.steps import StepCheck, StepOutcome, VerificationStep
from attestkit.gpu.device.topology import DeviceMode

GpuBindingKind = Literal["nonce", "runtime_event", "report_data"]
"""What joins CPU and GPUs, from weak to strong.

`nonce`: both have the nonce of the verifier, or a hash of it. `runtime_event`: the CPU's measured
event log has the hash of the GPU evidence, as of boot. `report_data`: the CPU's report data contain
a hash of the GPU evidence.
"""


class RimFacts(NamedTuple):
    """A verified reference integrity manifest (RIM) that a device was compared with."""

    identifier: str  # as requested, from values of the signed report
    part: Literal["driver", "vbios"]
    version: str
    product: str
    signer: str  # common name of the signing certificate
    sha256: bytes  # of the manifest
    valid_until: datetime  # of the certificates' path

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON: the hash in hex, the time in ISO 8601."""
        return {
            **self._asdict(),
            "sha256": self.sha256.hex(),
            "valid_until": self.valid_until.isoformat(),
        }


class OcspFacts(NamedTuple):
    """Statement of a verified OCSP answer about a certificate of a device or manifest."""

    subject: str  # the certificate's role, such as the provisioner's CA
    status: Literal["good", "hold"]
    this_update: datetime
    next_update: datetime

    def to_dict(self) -> dict[str, object]:
        """Return the fields for JSON, with times in ISO 8601."""
        times = {name: getattr(self, name).isoformat() for name in ("this_update", "next_update")}
        return {"subject": self.subject, "status": self.status, **times}


class DeviceResult(NamedTuple):
    """A device whose evidence was accepted."""

    position: int  # in the evidence
    kind: Literal["gpu", "switch"]
    chip: str  # GH100, GB100, LS10
    architecture: str  # HOPPER, BLACKWELL, LS10
    driver_version: str | None  # None of a switch
    vbios_version: str
    device_serial: str  # hex, of the device's lasting certificate; empty in a result of nvattest
    pdi: bytes  # lasting identifier of the device, 8 bytes; empty in a result of nvattest
    ueid: str  # decimal; changes with the firmware
    mode: DeviceMode | None  # None if the report does not have it
    nvdec0: bool | None
    nonce: bytes  # of the report, 32 bytes
    matched: int  # number of measurements that equal their reference values; 0 without RIMs
    skipped: tuple[int, ...] = ()  # active indexes that were not compared
    mismatches: tuple[int, ...] = ()  # indexes of differing measurements that the rules accept
    rims: tuple[RimFacts, ...] = ()
    ocsp: tuple[OcspFacts, ...] = ()
    matched_indexes: tuple[int, ...] = ()  # those of the `matched` measurements

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex and times in ISO 8601."""
        return {
            **self._asdict(),
            "pdi": self.pdi.hex(),
            "nonce": self.nonce.hex(),
            "matched_indexes": list(self.matched_indexes),
            "skipped": list(self.skipped),
            "mismatches": list(self.mismatches),
            "rims": [rim.to_dict() for rim in self.rims],
            "ocsp": [answer.to_dict() for answer in self.ocsp],
        }


@dataclass(frozen=True, slots=True)
class GpuResult:
    """Result for accepted evidence of GPUs and switches.

    `binding` is None if they were verified without CPU evidence; `nras` has the claims of NVIDIA's
    tokens about each device, or is None without tokens.
    """

    devices: tuple[DeviceResult, ...]
    steps: tuple[VerificationStep, ...]
    nonce: bytes  # that the reports have, 32 bytes
    simulated: bool  # whether a root is not NVIDIA's
    verified_at: datetime
    # SHA-256 of the evidence as sent.
    evidence_sha256: bytes
    # What joins the GPUs to the CPU's evidence; None if they were verified alone.
    binding: GpuBindingKind | None = None
    # Claims of the tokens of NVIDIA's service for each device, if they were verified.
    nras: tuple[dict[str, object], ...] | None = None

    @property
    def gpus(self) -> tuple[DeviceResult, ...]:
        """The GPUs among the devices."""
        return tuple(one for one in self.devices if one.kind == "gpu")

    @property
    def switches(self) -> tuple[DeviceResult, ...]:
        """The switches among the devices."""
        return tuple(one for one in self.devices if one.kind == "switch")

    @property
    def not_proven(self) -> tuple[StepCheck, ...]:
        """Checks that were skipped or passed with a caution; each once, in order."""
        found: dict[StepCheck, StepOutcome] = {
            step.check: step.outcome for step in self.steps if step.outcome != "passed"
        }
        return tuple(found)

    @property
    def claims(self) -> dict[str, object]:
        """Authenticated fields, for JSON: bytes in hex, times in ISO 8601."""
        return {
            "devices": [device.to_dict() for device in self.devices],
            "nonce": self.nonce.hex(),
            "evidence_sha256": self.evidence_sha256.hex(),
            "binding": self.binding,
            "simulated": self.simulated,
            "nras": None if self.nras is None else list(self.nras),
        }

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON: the claims, the time of the verification and the steps."""
        return {
            **self.claims,
            "verified_at": self.verified_at.isoformat(),
            "steps": [step._asdict() for step in self.steps],
        }

    def __hash__(self) -> int:
        return hash((self.devices, self.nonce, self.verified_at))

    def __repr__(self) -> str:
        simulated = ", simulated" if self.simulated else ""
        devices = f"{len(self.gpus)} GPUs, {len(self.switches)} switches"
        return f"<GpuResult {devices}, bound by {self.binding}{simulated}>"
