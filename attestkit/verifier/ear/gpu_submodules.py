"""Submodules of an EAR about GPUs and switches: their trustworthiness vectors.

| claim | value |
|---|---|
| hardware | 2: certificates, firmware identity and report are valid; 32: a report has no identity |
| configuration | 2: modes and topology were checked; 32: topology was not, or NVDEC0 differs |
| executables | 3: measurements equal the reference values; 33: some differ, as the policy accepts |
| instance-identity | 2: no certificate of the device is revoked |

NVDEC0 is the video decoder: its measurement differs, as the policy accepts.

A claim about what was not checked is left out. Under another root than NVIDIA's, hardware is 97 and
the only claim. The status is at most `warning` if the evidence may be old, or if CPU and GPUs have
only a nonce in common. The facts about the devices are in `gpu` of the result of the platform.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from attestkit.errors import FormatError
from attestkit.gpu.architectures import NVDEC_INDEX
from attestkit.verifier.ear.claims import Tier

if TYPE_CHECKING:
    from attestkit.gpu.result import DeviceResult, GpuResult

_PREFIX: Final = "nvidia-"
_MOST: Final = 64
_Claim = Annotated[int, msgspec.Meta(ge=-128, le=127)]


class EarSubmodule(msgspec.Struct, frozen=True):
    """Status and trustworthiness vector of one device."""

    status: Tier
    vector: dict[str, int]


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    status: int | str = msgspec.field(name="ear.status")
    vector: dict[str, _Claim] = msgspec.field(name="ear.trustworthiness-vector")


def gpu_submodules(result: "GpuResult | None", *, fresh: bool) -> dict[str, dict[str, Any]]:
    """Return the submodules of a result by name, such as `nvidia-gpu-0`."""
    if result is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for device in result.devices:
        vector = _vector(device, result)
        status = _status(vector, result.binding, simulated=result.simulated, fresh=fresh)
        found[f"{_PREFIX}{device.kind}-{device.position}"] = {
            "ear.status": status,
            "ear.trustworthiness-vector": vector,
        }
    return found


def _status(vector: Mapping[str, int], binding: object, *, simulated: bool, fresh: bool) -> Tier:
    bound = binding == "report_data"
    return Tier.overall(vector, simulated=simulated, fresh=fresh and bound)


def _vector(device: "DeviceResult", result: "GpuResult") -> dict[str, int]:
    if result.simulated:
        return {"hardware": 97}
    checked = "gpu_topology" not in result.not_proven and NVDEC_INDEX not in device.mismatches
    found = {"configuration": 2 if checked else 32}
    if device.matched:
        found["executables"] = 33 if device.mismatches else 3
    found["hardware"] = 32 if "gpu_report" in result.not_proven else 2
    if device.ocsp:
        found["instance-identity"] = 2
    return found


def read_gpu_submodules(
    submods: Mapping[str, object], result: Mapping[str, Any], *, as_text: bool, fresh: bool
) -> dict[str, EarSubmodule]:
    """Return the submodules about devices.

    Args:
        submods: Submodules of the EAR, except that of the platform.
        result: Result of the platform, whose `gpu` must name these devices.
        as_text: Whether a status is text, as in a JWT.
        fresh: Whether the EAR has a nonce.

    Raises:
        FormatError: If a submodule is malformed, or does not match the result.
    """
    gpu = result.get("gpu")
    stated = gpu if isinstance(gpu, dict) else {}
    devices = stated.get("devices")
    names = set(map(_name, devices)) if isinstance(devices, list) else set()
    if len(submods) > _MOST or submods.keys() != names:
        message = "EAR: the submodules are not the platform and the devices of its result"
        raise FormatError(message, reason="inconsistent")
    found: dict[str, EarSubmodule] = {}
    for name, value in submods.items():
        try:
            signed = msgspec.convert(value, _Signed)
        except msgspec.ValidationError as error:
            message = f"EAR: submodule {name} is malformed"
            raise FormatError(message, reason="wrong_value") from error
        simulated = stated.get("simulated") is not False
        binding = stated.get("binding")
        status = _status(signed.vector, binding, simulated=simulated, fresh=fresh)
        if signed.status != (str(status) if as_text else int(status)):
            message = f"EAR: ear.status of submodule {name} is not that of its claims"
            raise FormatError(message, reason="inconsistent")
        found[name] = EarSubmodule(status, signed.vector)
    return found


def _name(device: object) -> str:
    if not isinstance(device, dict):
        return ""
    return f"{_PREFIX}{device.get('kind')}-{device.get('position')}"
