"""Rules of an appraisal policy: bit masks and key providers, and what all rules share.

The constructors reject rules that accept nothing or contradict themselves. `appraise` returns the
verification step for the result, or raises PolicyError.
"""

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from attestkit._argument_checks import check_text, normalize_members, require_members
from attestkit._formats import strict_json
from attestkit._outcomes.reasons import PolicyReason
from attestkit._outcomes.steps import StepCheck, VerificationStep, passed
from attestkit.errors import FormatError, PolicyError, UsageError
from attestkit.verifier.claims import Claims

Values = Collection[bytes] | None
"""Accepted values; None accepts any. Normalised to a frozenset."""


_SHOWN: Final = 3  # values that an error lists
_SHOWN_BYTES: Final = 64  # of each value

SIZES: Final = {
    "app_id": 20,
    "compose_hash": 32,
    "instance_id": 20,
    "os_image_hash": 32,
    "device_id": 32,
    "mr_aggregated": 32,
    "mr_system": 32,
    "paravisor_measurement": 48,
    "id_key_digest": 48,
    "init_data": 32,
}
"""Sizes of the values that a policy may name, in bytes."""

BOOT_END: Final = "system-ready"
"""Name of the last event of a boot."""

_TD_ATTRIBUTES: Final = {
    "DEBUG": 1 << 0,
    "HGS_PLUS_PROF": 1 << 4,
    "PERF_PROF": 1 << 5,
    "PMT_PROF": 1 << 6,
    "ICSSD": 1 << 16,
    "SERVTD_EXT": 1 << 17,
    "LASS": 1 << 27,
    "SEPT_VE_DISABLE": 1 << 28,
    "MIGRATABLE": 1 << 29,
    "PKS": 1 << 30,
    "KL": 1 << 31,
    "TPA": 1 << 62,
    "PERFMON": 1 << 63,
}

_XFAM: Final = {
    "FP": 1 << 0,
    "SSE": 1 << 1,
    "AVX": 1 << 2,
    "MPX": 3 << 3,
    "AVX512": 7 << 5,
    "PT": 1 << 8,
    "PK": 1 << 9,
    "ENQCMD": 1 << 10,
    "CET": 3 << 11,
    "HDC": 1 << 13,
    "ULI": 1 << 14,
    "LBR": 1 << 15,
    "HWP": 1 << 16,
    "AMX": 3 << 17,
    "APX": 1 << 19,
}

_GUEST_POLICY: Final = {
    "SMT": 1 << 16,
    "MIGRATE_MA": 1 << 18,
    "DEBUG": 1 << 19,
    "SINGLE_SOCKET": 1 << 20,
    "CXL_ALLOW": 1 << 21,
    "MEM_AES_256_XTS": 1 << 22,
    "RAPL_DIS": 1 << 23,
    "CIPHERTEXT_HIDING": 1 << 24,
    "PAGE_SWAP_DISABLE": 1 << 25,
}

_PLATFORM_INFO: Final = {
    "SMT_EN": 1 << 0,
    "TSME_EN": 1 << 1,
    "ECC_EN": 1 << 2,
    "RAPL_DIS": 1 << 3,
    "CIPHERTEXT_HIDING_DRAM_EN": 1 << 4,
    "ALIAS_CHECK_COMPLETE": 1 << 5,
    "TIO_EN": 1 << 7,
}

BIT_NAMES: Final[Mapping[str, Mapping[str, int]]] = {
    "td_attributes": _TD_ATTRIBUTES,
    "xfam": _XFAM,
    "guest_policy": _GUEST_POLICY,
    "platform_info": _PLATFORM_INFO,
}
"""Names of the bits of a TD's attributes and XFAM (Intel TDX Module ABI), and of an SEV-SNP guest's
POLICY and PLATFORM_INFO (SEV-SNP Firmware ABI).

XFAM is numbered as XCR0; some of its features have several bits.
"""


def matches_any(value: bytes, wanted: Iterable[bytes]) -> bool:
    """Return whether `value` is in `wanted`, in constant time."""
    found = False
    for one in wanted:
        found |= hmac.compare_digest(value, one)
    return found


def format_values(values: Iterable[bytes]) -> str:
    """Return the first three values in hex and the number of others, for an error message."""
    ordered = sorted(values)
    text = " or ".join(map(_truncated_hex, ordered[:_SHOWN]))
    left = len(ordered) - _SHOWN
    return f"{text} or one of {left} more" if left > 0 else text


def _truncated_hex(value: bytes) -> str:
    if len(value) <= _SHOWN_BYTES:
        return value.hex() or "nothing"
    return f"{value[:_SHOWN_BYTES].hex()}... ({len(value)} bytes)"


def require_match(
    reason: PolicyReason, name: str, have: bytes, wanted: Iterable[bytes], remedy: str
) -> None:
    """Check that a value of the evidence is one of the accepted ones.

    Args:
        reason: Reason of the error.
        name: Name of the value in errors.
        have: The value.
        wanted: The accepted values.
        remedy: End of the error's message.

    Raises:
        PolicyError: If `have` is not one of `wanted`.
    """
    if not matches_any(have, wanted):
        message = f"{name}: {format_values([have])}, must be {format_values(wanted)}; {remedy}"
        raise PolicyError(message, reason=reason)


def accept_match(
    rule: str, subject: str, have: bytes, wanted: Iterable[bytes], remedy: str
) -> VerificationStep:
    """Check that a value of the evidence is one of the accepted ones; return the step.

    Args:
        rule: Name of the rule, which step and error have.
        subject: Name of the value in texts.
        have: The value.
        wanted: The accepted values.
        remedy: End of the error's message.

    Raises:
        PolicyError: If `have` is not one of `wanted`.
    """
    require_match(cast("PolicyReason", rule), subject, have, wanted, remedy)
    return passed(cast("StepCheck", rule), f"{subject} {have.hex()} is accepted")


def accepted_values(name: str, values: object, size: int) -> frozenset[bytes] | None:
    """Return the accepted values of a rule as a frozenset; None accepts any.

    Args:
        name: Name of the rule in errors.
        values: A collection of `bytes`; None returns None.
        size: Required size of each value in bytes.

    Raises:
        UsageError: If a value is not `bytes` of `size`, or the collection is empty.
    """
    if values is None:
        return None
    found = normalize_members(name, values, bytes)
    if any(type(value) is not bytes for value in found):  # a subclass may override ==
        raise UsageError(f"{name}: values must be bytes, no subclass", reason="wrong_type")
    if any(len(value) != size for value in found):
        raise UsageError(f"{name}: each value must be {size} bytes", reason="wrong_size")
    require_members(name, found)
    return found


@dataclass(frozen=True, kw_only=True)
class BitMask:
    """Bits of a little-endian 64-bit field that must be set or clear.

    Bit 0 is the lowest bit of the first byte.

    Raises:
        UsageError: If a mask is not an integer of 64 bits, both are 0, or they have a common bit.
    """

    must_be_set: int = 0
    must_be_clear: int = 0

    def __post_init__(self) -> None:
        for name in ("must_be_set", "must_be_clear"):
            bits = getattr(self, name)
            if type(bits) is not int or not 0 <= bits < 1 << 64:
                raise UsageError(
                    f"{name}: must be an integer from 0 to 2**64 - 1", reason="out_of_range"
                )
        if not self.must_be_set | self.must_be_clear:
            message = "bit mask: must require a bit; add one, or leave the rule out"
            raise UsageError(message, reason="missing")
        if both := self.must_be_set & self.must_be_clear:
            raise UsageError(
                f"bit mask: bit {both.bit_length() - 1} is required to be both set and clear; "
                "remove it from must_be_set or must_be_clear",
                reason="conflict",
            )

    @classmethod
    def exactly(cls, value: bytes, mask: bytes = b"\xff" * 8) -> "BitMask":
        """Return the rule for fields that equal `value` in the bits of `mask`.

        Args:
            value: 8 bytes, as in the evidence.
            mask: 8 bytes.

        Raises:
            UsageError: If an argument is not 8 bytes, the mask is zero, or `value` has a bit that
                is not in `mask`.
        """
        for name, given in (("value", value), ("mask", mask)):
            if type(given) is not bytes or len(given) != 8:
                raise UsageError(f"{name}: must be 8 bytes", reason="wrong_size")
        bits, rules = int.from_bytes(value, "little"), int.from_bytes(mask, "little")
        if beside := bits & ~rules:
            raise UsageError(
                f"value: bit {beside.bit_length() - 1} is set, but not in the mask; add it there",
                reason="conflict",
            )
        return cls(must_be_set=bits, must_be_clear=rules & ~bits)

    def find_wrong(self, name: str, have: bytes) -> list[str]:
        """Return phrases on wrong bits of a field for an error; empty if all are right.

        Args:
            name: Name of the field, a key of `BIT_NAMES`.
            have: Value of the field in the evidence, 8 bytes.
        """
        bits = int.from_bytes(have, "little")
        wrong = (
            ("must be set", self.must_be_set & ~bits),
            ("must be clear", self.must_be_clear & bits),
        )
        return [f"{bit_names(name, those)} {must}" for must, those in wrong if those]

    def appraise(self, name: str, claims: Claims, claim: str | None = None) -> VerificationStep:
        """Return the verification step for the field `name`; PolicyError names the wrong bits.

        Args:
            name: Name of the rule, a key of `BIT_NAMES`.
            claims: Claims of the evidence.
            claim: Name of the claim; None if it is `name`.
        """
        have = claims.get(claim or name)
        if have is None or len(have) != 8:
            raise PolicyError(
                f"{name}: missing in {claims.platform} evidence; use a policy for "
                f"{claims.platform}",
                reason="attributes",
            )
        if found := self.find_wrong(name, have):
            raise PolicyError(
                f"{name}: {have.hex()}, but {' and '.join(found)}; launch the guest so, or "
                f"change the policy's {name}",
                reason="attributes",
            )
        text = f"{name} {have.hex()} has the required bits"
        return passed("attributes", text)


def bit_names(field: str, bits: int) -> str:
    """Return the names of `bits`, set in a field of `BIT_NAMES`; unnamed bits as `bit 5`."""
    found = []
    for name, mask in BIT_NAMES.get(field, {}).items():
        if bits & mask:
            found.append(name)
            bits &= ~mask
    found.extend(f"bit {n}" for n in range(bits.bit_length()) if bits >> n & 1)
    return ", ".join(found) or "no bit"


@dataclass(frozen=True, kw_only=True)
class KeyProvider:
    """Required key provider of an application: its name, its id, or both, as in `AppInfo`.

    Raises:
        UsageError: If both are missing, or one is empty or has the wrong type.
    """

    name: str | None = None  # none, local-sgx, kms, tpm
    id: bytes | None = None  # KMS: root public key in DER; SGX: a measurement

    def __post_init__(self) -> None:
        if self.name is None and self.id is None:
            raise UsageError("key provider: missing; pass name, id or both", reason="missing")
        if self.name is not None:
            check_text("name", self.name)
        if self.id is not None and (type(self.id) is not bytes or not self.id):
            raise UsageError("id: must be non-empty bytes", reason="wrong_type")

    def __str__(self) -> str:
        id_text = "" if self.id is None else f"id {format_values([self.id])}"
        return " with ".join(filter(None, (self.name, id_text)))

    @staticmethod
    def appraise(wanted: Collection["KeyProvider"], info: bytes) -> VerificationStep:
        """Return the verification step for the key provider of an app.

        Args:
            wanted: Accepted key providers.
            info: `AppInfo.key_provider_info`, JSON.

        Raises:
            PolicyError: If `info` is malformed, or its key provider matches none of `wanted`.
        """
        try:
            name, provider_id = read_key_provider(info)
        except FormatError as error:
            message = f"event key-provider: malformed: {error}"
            raise PolicyError(message, reason="key_provider") from error
        for one in wanted:
            same_name = one.name is None or matches_any(name.encode(), [one.name.encode()])
            if same_name and (one.id is None or matches_any(provider_id, [one.id])):
                return passed("key_provider", f"the key provider is {one}")
        want = " or ".join(sorted(str(one) for one in wanted)[:_SHOWN])
        raise PolicyError(
            f"key provider: {name[:_SHOWN_BYTES]!r} with id {format_values([provider_id])}, must "
            f"be {want}; deploy the application with that one, or accept this one in key_provider",
            reason="key_provider",
        )


def read_key_provider(info: bytes) -> tuple[str, bytes]:
    """Decode `AppInfo.key_provider_info`, and return name and id.

    Raises:
        FormatError: If `info` is empty or malformed.
    """
    found = strict_json.read_object(info, "key-provider")
    return strict_json.string(found, "name"), strict_json.hex_field(found, "id")
