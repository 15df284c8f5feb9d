"""What a verdict says in the words of AR4SI, and the two ways to write it: names, and numbers.

| member of the vector | is 2 or 3, affirming | is a warning, 32 | is contraindicated |
|---|---|---|---|
| hardware | UpToDate | every other status | 96: Revoked; 97: simulated |
| configuration | - | ConfigurationNeeded and its kin | - |
| executables | 3: the policy names the OS image by its hash, and pins its ACPI tables | - | - |
| runtime-opaque | 2: a TD, an SEV-SNP guest, an enclave of SGX; never one in debug mode | - | - |

A member that is not in the table, or has no such ground, is left out: no claim. So an AWS Nitro
enclave, of whose platform nobody says how current it is, has neither hardware nor runtime-opaque.
ACPI tables are code of the host's that the kernel runs (see `acpi`): a TD's are pinned by a
reference value of RTMR0, an enclave has none of its operator's, and those of an SEV-SNP guest are
measured nowhere, so that executables are never claimed of one. Where the root is not the maker's,
hardware is 97 (hardware that is not recognised and should be) and nothing else is claimed, for
everything else rests on it.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from attestkit.verifier import acpi
from attestkit.verifier.result import AttestationResult, TcbStatus

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

__all__ = [
    "APPRAISAL",
    "REFUSED",
    "RESULT",
    "TOP",
    "VECTOR",
    "VERIFIER",
    "Tier",
    "named",
    "numbered",
    "trust",
]

RESULT: Final = "attestkit.result"
"""The one claim of our own, private (RFC 7519, 4.3), in either form under this text."""

# CBOR's number of each claim: RFC 8392, 3.1.1; RFC 9711, 4; draft-ietf-rats-ear, 3.
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
"""Claims that narrow for whom, or from when, a token is good; no EAR of ours has them."""

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

_ENCRYPTED: Final = ("dstack-tdx", "dstack-amd-sev-snp", "sgx")
_MISCONFIGURED: Final = (
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
)


class Tier(IntEnum):
    """How much is to be thought of something (draft-ietf-rats-ar4si, trustworthiness tiers)."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96

    @classmethod
    def of(cls, value: int) -> "Tier":
        """Return the tier of a member of the vector, -128 to 127; negative ones mirror the others.

        0 is no claim; -1 and 1 say that the verifier could not judge, which claims nothing too.
        """
        distance = value if value >= 0 else -value - 1  # -1 goes with 0 and 1, -2 with them
        if value == -2:
            return cls.AFFIRMING
        return max(tier for tier in cls if tier <= max(distance, 0))

    @classmethod
    def worst(cls, vector: Mapping[str, int]) -> "Tier":
        """Return the tier of the worst member; NONE where nothing is claimed."""
        return max((cls.of(value) for value in vector.values()), default=cls.NONE)

    def __str__(self) -> str:
        return self.name.lower()


def trust(result: AttestationResult, policy: "AppraisalPolicy | None") -> dict[str, int]:
    """Return the trustworthiness vector that a result has grounds for; see the table above.

    Args:
        result: What was verified.
        policy: The rules it was accepted by; None claims nothing that only a rule can tell.
    """
    if result.simulated:
        return {"hardware": 97}
    found: dict[str, int] = {}
    status = result.tcb_status
    if status in _MISCONFIGURED:
        found["configuration"] = 32
    if policy is not None and _names_executables(result, policy):
        found["executables"] = 3
    if status is not None:
        found["hardware"] = _hardware(status)
    if result.claims.platform in _ENCRYPTED and status not in {None, TcbStatus.REVOKED}:
        found["runtime-opaque"] = 2
    return found


def _names_executables(result: AttestationResult, policy: "AppraisalPolicy") -> bool:
    """Tell whether the policy knows all that was loaded at boot, which is what AR4SI's 3 says."""
    image = result.claims.os_image_hash in (policy.os_image_hash or ())
    return image and acpi.are_pinned(result.claims, policy.reference_values.rules)


def _hardware(status: TcbStatus) -> int:
    if status is TcbStatus.UP_TO_DATE:
        return 2
    return 96 if status is TcbStatus.REVOKED else 32


def numbered(claims: Mapping[str, Any], labels: Mapping[str, int]) -> dict[Any, Any]:
    """Return claims under their numbers; what has none keeps its name."""
    return {labels.get(name, name): value for name, value in claims.items()}


def named(claims: Mapping[Any, Any], labels: Mapping[str, int]) -> dict[str, Any]:
    """Return the claims that have a number, and our own, under their names; others are left out."""
    names: dict[int | str, str] = {number: name for name, number in labels.items()}
    names[RESULT] = RESULT
    # By the type too: to Python, True is 1.
    return {
        names[key]: value
        for key, value in claims.items()
        if type(key) in {int, str} and key in names
    }
