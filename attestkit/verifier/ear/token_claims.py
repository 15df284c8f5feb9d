"""Claims of an EAR: trustworthiness vectors of the platform and of GPUs; names and CBOR labels.

| claim | 2 or 3, affirming | 32, warning | 96 or more, contraindicated |
|---|---|---|---|
| hardware | UpToDate | every other status | 96: Revoked; 97: simulated |
| configuration | - | every status with ConfigurationNeeded | - |
| executables | 3: the policy names the OS image by its hash; its ACPI tables are known | - | - |
| runtime-opaque | 2: a TD, an SEV-SNP guest, an enclave of SGX; never one in debug mode | - | - |

Other members are not set. An AWS Nitro enclave and a TPM alone have no TCB status, and therefore
neither hardware nor runtime-opaque. Evidence behind a paravisor that no rule identifies has no
runtime-opaque. The facts of a TPM are `vtpm` of the result. ACPI tables are code from the host that
the kernel executes (see `policy.reference_values`): those of a TD are pinned by a reference value
of RTMR0, or recomputed by a verifier with images; an enclave has none from its operator; and those
of an SEV-SNP guest are not measured, so that executables is never set for an SEV-SNP guest. Nor is
it for a guest of Google whose hardware evidence does not name the TPM that measured the image, or
without reference values of MRTD, RTMR1 and RTMR2: the quoted PCRs have UKI, but no command line. If
the root is not the vendor's, hardware is 97 (unrecognized hardware) and is the only claim, because
all others depend on it.

No member is about freshness. The status of evidence that is not bound to a nonce is therefore at
most `warning`, whatever the vector has; draft-ietf-rats-ear allows a status worse than the vector.

GPUs and switches, in submodules:

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
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from attestkit.errors import FormatError
from attestkit.gpu.architectures import NVDEC_INDEX
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.platforms import GCP_TDX
from attestkit.verifier.policy.reference_values import has_pinned_tables
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from attestkit.gpu.result import DeviceResult, GpuResult

RESULT: Final = "attestkit.result"
"""Private claim (RFC 7519, 4.3) with the attestation result, in both encodings."""
# CBOR labels of the claims: RFC 8392, 3.1.1; RFC 9711, 4; draft-ietf-rats-ear, 3.
TOP: Final = {
    "aud": 3,
    "exp": 4,
    "nbf": 5,
    "iat": 6,
    "eat_nonce": 10,
    "eat_profile": 265,
    "submods": 266,
    "ear.raw-evidence": 1002,
    "ear.verifier-id": 1004,
}
REFUSED: Final = ("aud", "nbf")
"""Claims that restrict audience or start of validity; not supported."""
VERIFIER: Final = {"developer": 0, "build": 1}
APPRAISAL: Final = {
    "ear.status": 1000,
    "ear.trustworthiness-vector": 1001,
    "ear.appraisal-policy-id": 1003,
}
VECTOR: Final = {
    "instance-identity": 0,
    "configuration": 1,
    "executables": 2,
    "file-system": 3,
    "hardware": 4,
    "runtime-opaque": 5,
    "storage-opaque": 6,
    "sourced-data": 7,
}
LABELS: Final = TOP | VERIFIER | APPRAISAL | VECTOR
"""CBOR labels by claim name. Names are distinct; one label has several names."""
# Not `hcl-snp` and `hcl-tdx`, whose paravisor is not identified, so that it could be any guest.
_ENCRYPTED: Final = (
    *("dstack-tdx", "dstack-amd-sev-snp", "sgx"),
    *("dstack-gcp-tdx", "gcp-snp", "azure-snp", "azure-tdx"),
)
_MISCONFIGURED: Final = (
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
)
_LOADED: Final = ("mrtd", "rtmr1", "rtmr2")
_PREFIX: Final = "nvidia-"
_MOST: Final = 64
_Claim = Annotated[int, msgspec.Meta(ge=-128, le=127)]


class Tier(IntEnum):
    """Trustworthiness tier (draft-ietf-rats-ar4si)."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96

    @classmethod
    def of(cls, value: int) -> "Tier":
        """Return the tier of a trustworthiness claim, -128 to 127.

        A negative value has the tier of the matching positive range: -2 to -32 as 2 to 31, -33 to
        -96 as 32 to 95, below that as 96 and above. The values -1, 0 and 1 have the tier NONE: they
        make no statement.
        """
        distance = value if value >= 0 else -value - 1  # the range of a tier ends at -value - 1
        if value == -2:
            return cls.AFFIRMING
        return max(tier for tier in cls if tier <= max(distance, 0))

    @classmethod
    def worst(cls, vector: Mapping[str, int]) -> "Tier":
        """Return the worst tier of a vector; NONE if it is empty."""
        return max((cls.of(value) for value in vector.values()), default=cls.NONE)

    @classmethod
    def overall(cls, vector: Mapping[str, int], *, simulated: bool, fresh: bool) -> "Tier":
        """Return the status of an appraisal: the worst tier of its vector, or a worse one.

        Args:
            vector: Trustworthiness claims by name, -128 to 127.
            simulated: Whether the evidence is simulated: the status is then CONTRAINDICATED.
            fresh: Whether the evidence is bound to a nonce; otherwise the status is WARNING or
                worse.
        """
        worst = cls.CONTRAINDICATED if simulated else cls.worst(vector)
        return worst if fresh else max(worst, cls.WARNING)

    def __str__(self) -> str:
        return self.name.lower()


def trustworthiness_vector(result: AttestationResult) -> dict[str, int]:
    """Return the trustworthiness vector of a result, by the table in the module's docstring."""
    if result.simulated:
        return {"hardware": 97}
    found: dict[str, int] = {}
    status = result.tcb.status
    if status in _MISCONFIGURED:
        found["configuration"] = 32
    if _names_executables(result):
        found["executables"] = 3
    if status is not None:
        found["hardware"] = _hardware(status)
    if result.claims.platform in _ENCRYPTED and status not in {None, TcbStatus.REVOKED}:
        found["runtime-opaque"] = 2
    return found


def _names_executables(result: AttestationResult) -> bool:
    """Return whether the policy pins all executables loaded at boot, so that the claim is 3."""
    policy, vtpm = result.policy, result.claims.vtpm
    if vtpm is not None and vtpm.joins == ("ak_to_hardware",):
        return False  # the TPM that measured the image may be another machine's
    pinned = policy.reference_values.rules
    if result.claims.platform == GCP_TDX and not all(
        result.claims.get(name) in pinned.get(name, ()) for name in _LOADED
    ):
        return False  # the quoted PCRs contain neither the command line nor what the kernel loads
    image = result.claims.os_image_hash in (policy.os_image_hash or ())
    return image and has_pinned_tables(result.claims, pinned)


def _hardware(status: TcbStatus) -> int:
    if status is TcbStatus.UP_TO_DATE:
        return 2
    return 96 if status is TcbStatus.REVOKED else 32


def claims_by_name(claims: Mapping[Any, Any], labels: Mapping[str, int]) -> dict[str, Any]:
    """Return claims by name in place of CBOR label; drop those that `labels` lacks.

    Args:
        claims: Claims by label.
        labels: Labels by name.
    """
    names: dict[int | str, str] = {number: name for name, number in labels.items()}
    names[RESULT] = RESULT
    # The type is compared, because True == 1.
    return {
        names[key]: value
        for key, value in claims.items()
        if type(key) in {int, str} and key in names
    }


class EarSubmodule(msgspec.Struct, frozen=True):
    """Status and trustworthiness vector of one GPU or switch."""

    status: Tier
    vector: dict[str, int]


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    status: int | str = msgspec.field(name="ear.status")
    vector: dict[str, _Claim] = msgspec.field(name="ear.trustworthiness-vector")


def gpu_submodules(result: "GpuResult | None", *, fresh: bool) -> dict[str, dict[str, Any]]:
    """Return an EAR's submodules about the devices of a result by name, such as `nvidia-gpu-0`.

    Each is a mapping of `ear.status` to a Tier, and of `ear.trustworthiness-vector` to claims by
    name.

    Args:
        result: Result for the GPUs; None: there are no submodules.
        fresh: Whether the evidence is bound to a nonce.
    """
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
    """Return an EAR's submodules about GPUs and switches by name, after checks.

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
        message = "EAR: submodules must be the platform and the devices of its result"
        raise FormatError(message, reason="inconsistent")
    found: dict[str, EarSubmodule] = {}
    for name, value in submods.items():
        try:
            signed = msgspec.convert(value, _Signed)
        except msgspec.ValidationError as error:
            message = f"EAR: submodule {name}: malformed status or vector"
            raise FormatError(message, reason="wrong_value") from error
        simulated = stated.get("simulated") is not False
        binding = stated.get("binding")
        status = _status(signed.vector, binding, simulated=simulated, fresh=fresh)
        if signed.status != (str(status) if as_text else int(status)):
            message = f"EAR: ear.status of submodule {name} must be {status}, by its claims"
            raise FormatError(message, reason="inconsistent")
        found[name] = EarSubmodule(status, signed.vector)
    return found


def _name(device: object) -> str:
    if not isinstance(device, dict):
        return ""
    return f"{_PREFIX}{device.get('kind')}-{device.get('position')}"
