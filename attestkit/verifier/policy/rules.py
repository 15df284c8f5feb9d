"""Rules of an appraisal policy: reference values, bit masks, key providers, runtime events.

The constructors reject rules that accept nothing or contradict themselves. `appraise` returns a
sentence for people, or raises PolicyError.
"""

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from attestkit._formats import strict_json
from attestkit._reasons import PolicyReason
from attestkit.errors import FormatError, PolicyError, UsageError
from attestkit.event_log.event import DIGEST_SIZE, RUNTIME_REGISTER, Event
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.verifier.result import Claims

__all__ = [
    "BIT_NAMES",
    "REGISTERS",
    "BitMask",
    "KeyProvider",
    "ReferenceValues",
    "RequiredEvent",
    "Values",
    "accepted_values",
    "bit_names",
    "check_text",
    "format_values",
    "matches_any",
    "normalize_members",
    "policy_error",
]

Values = Collection[bytes] | None
"""Accepted values; None accepts any. Normalised to a frozenset."""

_T = TypeVar("_T")

_SHOWN: Final = 3  # values that an error lists
_SHOWN_BYTES: Final = 64  # of each value
_BOOT_END: Final = "system-ready"  # the last event of a boot

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

BIT_NAMES: Final[Mapping[str, Mapping[str, int]]] = {
    "td_attributes": _TD_ATTRIBUTES,
    "xfam": _XFAM,
}
"""Names of the bits of a TD's attributes and XFAM (Intel TDX Module ABI).

XFAM is numbered as XCR0; some of its features have several bits.
"""

REGISTERS: Final[Mapping[str, tuple[str, int]]] = {
    **dict.fromkeys(
        (
            *("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"),
            *("mr_seam", "mr_signer_seam", "mr_config_id", "mr_owner", "mr_owner_config"),
            "mr_service_td",
        ),
        ("dstack-tdx", 48),
    ),
    **dict.fromkeys(
        ("measurement", "id_key_digest", "author_key_digest"), ("dstack-amd-sev-snp", 48)
    ),
    "host_data": ("dstack-amd-sev-snp", 32),
    **dict.fromkeys(("pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr8"), ("dstack-nitro-enclave", 48)),
    **dict.fromkeys(("mrenclave", "mrsigner"), ("sgx", 32)),
}
"""Platform and size in bytes of the registers that may have reference values."""


def policy_error(reason: PolicyReason, message: str) -> PolicyError:
    """Return the error for a rule that is not met."""
    return PolicyError(message, reason=reason)


def matches_any(value: bytes, wanted: Iterable[bytes]) -> bool:
    """Return whether `value` is in `wanted`, in constant time."""
    found = False
    for one in wanted:
        found |= hmac.compare_digest(value, one)
    return found


def format_values(values: Iterable[bytes]) -> str:
    """Return the first values in hex, for an error text."""
    ordered = sorted(values)
    text = " or ".join(map(_truncated_hex, ordered[:_SHOWN]))
    left = len(ordered) - _SHOWN
    return f"{text} or one of {left} more" if left > 0 else text


def _truncated_hex(value: bytes) -> str:
    if len(value) <= _SHOWN_BYTES:
        return value.hex() or "nothing"
    return f"{value[:_SHOWN_BYTES].hex()}... ({len(value)} bytes)"


def accepted_values(name: str, values: object, size: int) -> frozenset[bytes] | None:
    """Return the accepted values of a rule as a frozenset; None accepts any.

    Raises:
        UsageError: If a value is not `bytes` of `size`, or the collection is empty.
    """
    if values is None:
        return None
    if isinstance(values, (bytes, str)) or not isinstance(values, Collection):
        raise UsageError(f"{name}: must be a collection of {size}-byte values", reason="wrong_type")
    for value in values:
        if type(value) is not bytes:  # a subclass may override ==
            raise UsageError(
                f"{name}: value of wrong type: {type(value).__name__}, must be bytes",
                reason="wrong_type",
            )
        if len(value) != size:
            raise UsageError(
                f"{name}: value of wrong size: {len(value)} bytes, must be {size}",
                reason="wrong_size",
            )
    if not values:
        raise UsageError(
            f"{name}: accepts nothing; add a value, or leave the rule out", reason="missing"
        )
    return frozenset(values)


def normalize_members(name: str, given: object, kind: type[_T]) -> frozenset[_T]:
    """Return the members of a collection as a frozenset.

    Raises:
        UsageError: If it is not a collection of `kind`.
    """
    wanted = UsageError(f"{name}: must be a collection of {kind.__name__}", reason="wrong_type")
    if not isinstance(given, Collection) or isinstance(given, (str, bytes)):
        raise wanted
    found = [one for one in given if isinstance(one, kind)]
    if len(found) != len(given):
        raise wanted
    return frozenset(found)


def check_text(name: str, value: object) -> str:
    """Return a non-empty string.

    Raises:
        UsageError: If it is empty, or has an unpaired surrogate.
    """
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name}: must be a non-empty string", reason="wrong_type")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: unpaired surrogate", reason="encoding") from error
    return value


@dataclass(frozen=True, kw_only=True)
class ReferenceValues:
    """Accepted values of registers.

    None accepts any value. All registers must be of one platform, because evidence without a
    register of the policy is rejected.
    """

    # Intel TDX, 48 bytes each (TDREPORT and TDINFO).
    mrtd: Values = None  # initial contents of the TD: its firmware
    rtmr0: Values = None  # the virtual machine: firmware's configuration and ACPI tables
    rtmr1: Values = None  # kernel
    rtmr2: Values = None  # kernel command line and initial file system
    rtmr3: Values = None  # runtime events, those of the application included
    mr_seam: Values = None  # the TDX module
    mr_signer_seam: Values = None  # its signer; zero for Intel's
    mr_config_id: Values = None  # set by the owner at launch
    mr_owner: Values = None
    mr_owner_config: Values = None
    mr_service_td: Values = None  # TDX 1.5: bound service TDs
    # AMD SEV-SNP (ATTESTATION_REPORT).
    measurement: Values = None  # 48 bytes: initial contents of the guest
    host_data: Values = None  # 32 bytes: set at launch
    id_key_digest: Values = None  # 48 bytes
    author_key_digest: Values = None  # 48 bytes
    # AWS Nitro enclaves, 48 bytes each.
    pcr0: Values = None  # the enclave's image
    pcr1: Values = None  # its kernel and boot file system
    pcr2: Values = None  # its application
    pcr3: Values = None  # role of the parent instance
    pcr4: Values = None  # id of the parent instance
    pcr8: Values = None  # signing certificate of the image
    # Intel SGX, 32 bytes each.
    mrenclave: Values = None
    mrsigner: Values = None

    def __post_init__(self) -> None:
        owners = {}
        for name in REGISTERS:
            found = accepted_values(name, getattr(self, name), REGISTERS[name][1])
            object.__setattr__(self, name, found)
            if found is not None:
                owners[REGISTERS[name][0]] = name
        named = {name: getattr(self, name) for name in REGISTERS}
        rules = {name: values for name, values in named.items() if values is not None}
        object.__setattr__(self, "_rules", rules)  # for every verification
        if len(owners) > 1:
            (one, first), (other, second), *_ = owners.items()
            raise UsageError(
                f"{second}: a register of {other}, but {first} is one of {one}; make a policy for "
                "each platform",
                reason="conflict",
            )

    @property
    def rules(self) -> dict[str, frozenset[bytes]]:
        """Accepted values by register."""
        found: dict[str, frozenset[bytes]] = self.__dict__["_rules"]
        return found

    def appraise(self, claims: Claims) -> str:
        """Return the finding; PolicyError names the first register that does not match."""
        for name, wanted in self.rules.items():
            have = claims.register(name)
            if have is None:
                raise policy_error(
                    "reference_value",
                    f"{name}: must be {format_values(wanted)}, but {claims.platform} evidence has "
                    f"no such register; use a policy for {claims.platform}",
                )
            if not matches_any(have, wanted):
                raise policy_error(
                    "reference_value",
                    f"{name}: {have.hex()}, must be {format_values(wanted)}; launch what the "
                    f"policy was made for, or accept this value in reference_values.{name}",
                )
        rules = self.rules
        return f"{', '.join(rules)}: a reference value each" if rules else ""


@dataclass(frozen=True, kw_only=True)
class BitMask:
    """Bits of a little-endian 64-bit field that must be set or clear.

    Bit 0 is the lowest bit of the first byte.
    """

    must_be_set: int = 0
    must_be_clear: int = 0

    def __post_init__(self) -> None:
        for name in ("must_be_set", "must_be_clear"):
            bits = getattr(self, name)
            if type(bits) is not int or not 0 <= bits < 1 << 64:
                raise UsageError(
                    f"{name}: must be an integer of at most 64 bits", reason="out_of_range"
                )
        if not self.must_be_set | self.must_be_clear:
            raise UsageError("bit mask: no bit; add one, or leave the rule out", reason="missing")
        if both := self.must_be_set & self.must_be_clear:
            raise UsageError(
                f"bit mask: bit {both.bit_length() - 1} is in must_be_set and in must_be_clear",
                reason="conflict",
            )

    @classmethod
    def exactly(cls, value: bytes, mask: bytes = b"\xff" * 8) -> "BitMask":
        """Return the rule for fields that equal `value` in the bits of `mask`.

        Args:
            value: 8 bytes, as in the evidence.
            mask: 8 bytes.

        Raises:
            UsageError: If one is not 8 bytes, the mask is zero, or the value has other bits.
        """
        for name, given in (("value", value), ("mask", mask)):
            if type(given) is not bytes or len(given) != 8:
                raise UsageError(f"{name}: must be 8 bytes", reason="wrong_size")
        bits, rules = int.from_bytes(value, "little"), int.from_bytes(mask, "little")
        if beside := bits & ~rules:
            raise UsageError(
                f"value: bit {beside.bit_length() - 1} is set but not in the mask",
                reason="conflict",
            )
        return cls(must_be_set=bits, must_be_clear=rules & ~bits)

    def appraise(self, name: str, claims: Claims) -> str:
        """Return the finding for the field `name`; PolicyError names the wrong bits."""
        have = claims.register(name)
        if have is None or len(have) != 8:
            raise policy_error(
                "attributes",
                f"{name}: {claims.platform} evidence has no such field of 8 bytes; use a policy "
                f"for {claims.platform}",
            )
        bits = int.from_bytes(have, "little")
        wrong = (
            ("must be set", self.must_be_set & ~bits),
            ("must be clear", self.must_be_clear & bits),
        )
        found = [f"{bit_names(name, those)} {must}" for must, those in wrong if those]
        if found:
            raise policy_error(
                "attributes",
                f"{name}: {have.hex()}, where {' and '.join(found)}; launch the guest so, or "
                f"change the policy's {name}",
            )
        return f"{name} {have.hex()} has the required bits"


def bit_names(field: str, bits: int) -> str:
    """Return the names of `bits`, or their numbers."""
    found = []
    for name, mask in BIT_NAMES[field].items():
        if bits & mask:
            found.append(name)
            bits &= ~mask
    found.extend(f"bit {n}" for n in range(bits.bit_length()) if bits >> n & 1)
    return ", ".join(found) or "no bit"


@dataclass(frozen=True, kw_only=True)
class KeyProvider:
    """Key provider of an application, by name, id, or both, as in `AppInfo`."""

    name: str | None = None  # none, local-sgx, kms, tpm
    id: bytes | None = None  # KMS: root public key in DER; SGX: a measurement

    def __post_init__(self) -> None:
        if self.name is None and self.id is None:
            raise UsageError("key provider: must have a name or an id", reason="missing")
        if self.name is not None:
            check_text("name", self.name)
        if self.id is not None and (type(self.id) is not bytes or not self.id):
            raise UsageError("id: must be non-empty bytes", reason="wrong_type")

    def __str__(self) -> str:
        id_text = "" if self.id is None else f"id {format_values([self.id])}"
        return " with ".join(filter(None, (self.name, id_text)))

    @staticmethod
    def appraise(wanted: Collection["KeyProvider"], info: bytes) -> str:
        """Return the finding for `AppInfo.key_provider_info`; PolicyError if it does not match."""
        try:
            fields = strict_json.read_object(info, "key-provider")
            name, provider_id = (
                strict_json.string(fields, "name"),
                strict_json.hex_field(fields, "id"),
            )
        except FormatError as error:
            raise PolicyError(
                f"key provider: cannot be read: {error}",
                reason="key_provider",
            ) from error
        for one in wanted:
            same_name = one.name is None or matches_any(name.encode(), [one.name.encode()])
            if same_name and (one.id is None or matches_any(provider_id, [one.id])):
                return f"the key provider is {one}"
        want = " or ".join(sorted(str(one) for one in wanted)[:_SHOWN])
        raise policy_error(
            "key_provider",
            f"key provider: {name[:_SHOWN_BYTES]!r} with id {format_values([provider_id])}, must "
            f"be {want}; deploy the application with that one, or accept this one in key_provider",
        )


@dataclass(frozen=True, kw_only=True)
class RequiredEvent:
    """Runtime event that must be in the event log at least once, in any order.

    Reserved names of boot events match up to `system-ready` only, because the application may emit
    events of any name later.
    """

    name: str
    payload: bytes | None = None  # None: any
    digest: bytes | None = None  # 48 bytes, SHA-384; instead of a payload
    during: Literal["boot", "app"] | None = None  # None: any; reserved names: boot

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if self.payload is not None and type(self.payload) is not bytes:
            raise UsageError("payload: must be bytes", reason="wrong_type")
        if self.digest is not None:
            accepted_values("digest", (self.digest,), DIGEST_SIZE)
            if self.payload is not None:
                raise UsageError(
                    "digest: cannot be combined with payload; pass one of them", reason="conflict"
                )
        if self.during not in {"boot", "app", None}:
            raise UsageError('during: must be "boot" or "app"', reason="wrong_value")
        if self.name in RESERVED_NAMES:
            if self.during == "app":
                raise UsageError(f"during: {self.name!r} is a boot event", reason="conflict")
            object.__setattr__(self, "during", "boot")

    def appraise(self, claims: Claims) -> str:
        """Return the finding; PolicyError if the event is missing or has another payload."""
        if RUNTIME_REGISTER not in claims.event_registers:
            raise policy_error(
                "required_event",
                f"event {self.name!r}: required, but {_missing_log(claims.platform)}",
            )
        named = [event for event in claims.events if event.name == self.name]
        timely = [event for event in self._when(claims.events) if event.name == self.name]
        if any(self._matches(event) for event in timely):
            return f"the log has event {self.name!r}"
        if not timely:
            beside = " at that time" if named else ""
            raise policy_error(
                "required_event",
                f"event {self.name!r}: required{self._period_text()}, but not in the log{beside}; "
                "have the guest emit it, or drop it from required_events",
            )
        raise policy_error(
            "required_event",
            f"event {self.name!r}: {self._measured_field(timely)}, must be "
            f"{self._measured_field([None])}; have the guest emit that, or change required_events",
        )

    def _when(self, events: tuple[Event, ...]) -> tuple[Event, ...]:
        if self.during is None:
            return events
        # Without a boot sequence, all events are of the app.
        end = next((at for at, event in enumerate(events) if event.name == _BOOT_END), -1)
        return events[: end + 1] if self.during == "boot" else events[end + 1 :]

    def _matches(self, event: Event) -> bool:
        if self.digest is not None:
            return matches_any(event.digest, [self.digest])
        return self.payload is None or matches_any(event.payload, [self.payload])

    def _period_text(self) -> str:
        return {"boot": f" up to {_BOOT_END}", "app": f" after {_BOOT_END}"}.get(
            self.during or "", ""
        )

    def _measured_field(self, events: Iterable[Event | None]) -> str:
        """Return payload or digest of events, or for None of the rule, as text."""
        which = "payload" if self.digest is None else "digest"
        values = [getattr(self if event is None else event, which) for event in events]
        return f"{which} {format_values(values)}"


def _missing_log(platform: str) -> str:
    if platform in {"dstack-tdx", "sgx"}:
        return (
            "a bare quote has no log; request complete evidence from the attester, or drop the "
            "rule from the policy"
        )
    return f"{platform} does not measure runtime events; drop the rule from the policy"
