"""Rules of a relying party for GPUs: those of the verification, and those of the appraisal.

Verification options say which endorsements are needed and how strictly they are compared. The other
rules accept devices by chip, version, number, mode, and binding to the CPU's evidence.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from attestkit._argument_checks import check_number, normalize_members, require_members, wrong_type
from attestkit._outcomes.steps import VerificationStep, passed
from attestkit._sanitize import shown
from attestkit._system.fork_safety import unlocked_property
from attestkit.errors import GpuEvidenceError, UsageError
from attestkit.gpu.architectures import DeviceLabel
from attestkit.gpu.result import GpuBindingKind

if TYPE_CHECKING:
    from attestkit._outcomes.steps import GpuReason
    from attestkit.gpu.result import DeviceResult

OcspUse = Literal["required", "off"]
"""Whether the certificates of devices and manifests need a current OCSP answer."""

NrasUse = Literal["off", "beside", "instead"]
"""Tokens of NVIDIA's remote attestation service: unused, required besides, or in place of
manifests and OCSP answers."""

BINDINGS: Final[tuple[str, ...]] = get_args(GpuBindingKind)

_MAX_DEVICES: Final = 64
_MAX_INDEX: Final = 63
_MAX_TEXT: Final = 64  # characters of a name or version
_CHOICES: Final = {
    "binding": BINDINGS,
    "ocsp": get_args(OcspUse),
    "nras": get_args(NrasUse),
}
_TEXTS: Final = ("chips", "drivers", "vbios")
_APPRAISED: Final = (  # by `appraise`; in the order of their definition
    *("chips", "count", "switch_count", "drivers", "min_driver", "vbios", "min_vbios"),
    *("protected_pcie", "allow_mpt"),
)
_OF_DEVICES: Final = {*_APPRAISED, "ready_state", "binding"} - {"allow_mpt"}
# Rules that switches alone can meet.
_OF_SWITCHES: Final = {"chips", "switch_count"}
_FLAGS: Final = (
    *("required", "ready_state", "protected_pcie", "allow_mpt"),
    *("allow_hold", "allow_absent_fwid", "allow_trailing_nul"),
    *("allow_runtime_event", "allow_boot_result"),
)


@dataclass(frozen=True, kw_only=True)
class GpuRules:
    """Rules for the evidence of GPUs; None switches a rule off.

    Chips are compared by name (`GH100`, `GB100`, `LS10`), versions without case. The rules about
    versions and number apply to GPUs, not to switches. docs/policy.md describes each field.
    Immutable, hashable, picklable.

    Raises:
        UsageError: If a rule has the wrong type or accepts nothing, or two rules contradict.
    """

    # Evidence of the CPU without GPUs is rejected; a rule about devices has the same effect.
    required: bool = False
    chips: Collection[str] | None = None
    count: int | None = None  # of GPUs
    switch_count: int | None = None
    drivers: Collection[str] | None = None
    min_driver: str | None = None
    vbios: Collection[str] | None = None
    min_vbios: str | None = None
    # The CPU's measured event log has the event of GPUs whose memory is protected.
    ready_state: bool = False
    # GPUs and switches are in protected PCIe mode, and their topology was compared.
    protected_pcie: bool = False
    allow_mpt: bool = True  # multi-GPU passthrough
    # The weakest binding to the CPU's evidence that is accepted.
    binding: GpuBindingKind = "nonce"
    ocsp: OcspUse = "required"
    max_ocsp_age: timedelta | None = None
    # Period after the nextUpdate of an OCSP answer in which it is accepted with a caution.
    ocsp_grace: timedelta | None = None
    # The certificate of a reference manifest's signer may be on hold; those of CAs never.
    allow_hold: bool = False
    # GPU reports without the FWID field, of drivers 535 and 545.
    allow_absent_fwid: bool = False
    # One NUL after the signature of a report, as in a collector's buffer.
    allow_trailing_nul: bool = False
    # Evidence of any nonce whose hash the measured event log has: it is as old as the boot.
    allow_runtime_event: bool = False
    # The result of nvattest at boot, which only the measured event log authenticates.
    allow_boot_result: bool = False
    accepted_mismatches: Collection[int] = frozenset()  # indexes of measurements
    nras: NrasUse = "off"

    def __post_init__(self) -> None:
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise wrong_type(name, "true or false", getattr(self, name))
        for name in _TEXTS:
            self._set(name, _texts(name, getattr(self, name)))
        self._check_numbers()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                message = f"{name}: must be one of {', '.join(choices)}"
                raise UsageError(message, reason="wrong_value")
        self._check_binding()
        if self.min_driver is not None:
            driver_key(self.min_driver)
        if self.min_vbios is not None:
            vbios_key(self.min_vbios)
        for name in ("max_ocsp_age", "ocsp_grace"):
            _check_period(name, getattr(self, name))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        for name, least in (("count", 1), ("switch_count", 0)):
            if (number := getattr(self, name)) is not None:
                check_number(name, number, _MAX_DEVICES, least)
        accepted = normalize_members("accepted_mismatches", self.accepted_mismatches, int)
        for index in self.accepted_mismatches:
            check_number("accepted_mismatches", index, _MAX_INDEX)
        self._set("accepted_mismatches", accepted)

    def _check_binding(self) -> None:
        allowed = self.allow_runtime_event or self.allow_boot_result
        if self.binding == "runtime_event" and not allowed:
            message = (
                "binding: runtime_event is not accepted by itself; set allow_runtime_event, or "
                "allow_boot_result"
            )
            raise UsageError(message, reason="conflict")

    @property
    def named(self) -> dict[str, Any]:
        """The rules that differ from the defaults, by name, in the order of their definition."""
        found = ((name, getattr(self, name), default) for name, default in _DEFAULTS.items())
        return {name: value for name, value, default in found if value != default}

    @unlocked_property  # read in every verification
    def needs_gpus(self) -> bool:
        """Whether evidence without GPUs is rejected: by `required`, or a rule about devices."""
        return self.required or not self.named.keys().isdisjoint(_OF_DEVICES)

    def appraise(self, devices: Sequence["DeviceResult"]) -> tuple[VerificationStep, ...]:
        """Appraise verified devices; return a step that names the rules met, none without rules.

        Raises:
            GpuEvidenceError: If a rule is not met; its `device` is the first device that fails.
        """
        gpus = [device for device in devices if device.kind == "gpu"]
        if not gpus and (self.required or self.named.keys() & (_OF_DEVICES - _OF_SWITCHES)):
            message = (
                "GPU evidence: must have GPUs, not only switches, by the policy's rules; request "
                "evidence of all devices"
            )
            raise GpuEvidenceError(message, reason="device_count", by_policy=True)
        self._appraise_count("GPUs", "count", self.count, len(gpus))
        switches = len(devices) - len(gpus)
        self._appraise_count("switches", "switch_count", self.switch_count, switches)
        for device in devices:
            self._appraise_device(device)
        met = [name for name in _APPRAISED if getattr(self, name) != _DEFAULTS[name]]
        if not met:
            return ()
        return (passed("gpu_rules", f"the GPUs meet the rules {', '.join(met)}"),)

    def _appraise_count(self, what: str, rule: str, wanted: int | None, found: int) -> None:
        if wanted is not None and found != wanted:
            raise GpuEvidenceError(
                f"GPU evidence: must have {wanted} {what}, not {found}; request evidence of all "
                f"devices, or change the policy's gpu.{rule}",
                reason="device_count",
                by_policy=True,
            )

    def _appraise_device(self, device: "DeviceResult") -> None:
        _require(device, "chips", self.chips, device.chip, "chip")
        if device.kind != "gpu":
            return
        driver, vbios = device.driver_version or "", device.vbios_version
        _require(device, "drivers", self.drivers, driver, "driver_version")
        if self.min_driver is not None and not _at_least(driver_key, driver, self.min_driver):
            raise _refused(device, "min_driver", f"driver {shown(driver)}", "driver_version")
        _require(device, "vbios", self.vbios, vbios, "vbios_version")
        if self.min_vbios is not None and not _at_least(vbios_key, vbios, self.min_vbios):
            raise _refused(device, "min_vbios", f"VBIOS {shown(vbios)}", "vbios_version")
        if self.protected_pcie and device.mode != "protected_pcie":
            raise _refused(device, "protected_pcie", "not in protected PCIe mode", "modes")
        if not self.allow_mpt and device.mode == "multi":
            raise _refused(device, "allow_mpt", "in multi-GPU passthrough mode", "modes")


def driver_key(version: str) -> tuple[int, ...]:
    """Return the numbers of a driver version such as `550.90.07`, for a comparison.

    Raises:
        UsageError: If the version is not decimal numbers separated by dots, or over 64 characters.
    """
    return _version_key("driver", version, 10)


def vbios_key(version: str) -> tuple[int, ...]:
    """Return the numbers of a VBIOS version such as `96.00.9F.00.01` (hex), for a comparison.

    Raises:
        UsageError: If the version is not hex numbers separated by dots, or over 64 characters.
    """
    return _version_key("vbios", version, 16)


def _version_key(what: str, version: object, base: int) -> tuple[int, ...]:
    if not isinstance(version, str) or not 0 < len(version) <= _MAX_TEXT:
        message = f"min_{what}: must be a version as text of 1 to {_MAX_TEXT} characters"
        raise UsageError(message, reason="wrong_type")
    digits = "0123456789abcdefABCDEF"[: 10 if base == 10 else None]
    parts = version.split(".")
    if not all(part and all(one in digits for one in part) for part in parts):
        message = f"min_{what}: must be numbers and dots, such as 550.90.07: {shown(version)}"
        raise UsageError(message, reason="wrong_value")
    return tuple(int(part, base) for part in parts)


def _at_least(key: Any, version: str, minimum: str) -> bool:  # noqa: ANN401 - one of two functions
    try:
        return bool(key(version) >= key(minimum))
    except UsageError:  # of the report: not a version that can be compared
        return False


def _require(
    device: "DeviceResult",
    rule: str,
    accepted: Iterable[str] | None,
    have: str,
    reason: "GpuReason",
) -> None:
    if accepted is not None and have.upper() not in accepted:
        raise _refused(device, rule, shown(have), reason)


def _refused(
    device: "DeviceResult", rule: str, problem: str, reason: "GpuReason"
) -> GpuEvidenceError:
    refusal = (
        f"{problem}, which the policy's gpu.{rule} does not accept; use another machine, or "
        "change that rule"
    )
    return DeviceLabel(device.kind, device.position).error(refusal, reason, by_policy=True)


def _texts(name: str, values: object) -> frozenset[str] | None:
    if values is None:
        return None
    found = normalize_members(name, values, str)
    if not all(0 < len(one) <= _MAX_TEXT for one in found):
        message = f"{name}: each value must be text of 1 to {_MAX_TEXT} characters"
        raise UsageError(message, reason="wrong_type")
    require_members(name, found)
    return frozenset(one.upper() for one in found)


def _check_period(name: str, value: object) -> None:
    if not isinstance(value, timedelta | None):
        raise wrong_type(name, "a timedelta", value)
    if value is not None and value < timedelta():
        raise UsageError(f"{name}: must not be negative", reason="out_of_range")


DEFAULT_RULES: Final = GpuRules()

_DEFAULTS: Final = {one.name: getattr(DEFAULT_RULES, one.name) for one in fields(GpuRules)}
