"""Single rules of an appraisal policy: accepted values, bits, key providers, runtime events.

Each is a value that checks itself when it is made, so that a rule which accepts nothing, or
contradicts itself, cannot exist. Each judges claims: it returns a sentence for people, or raises
PolicyError.
"""

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from attestkit._formats import strict_json
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
    "any_of",
    "bit_names",
    "members",
    "refused",
    "shown",
    "text_of",
]

Values = Collection[bytes] | None
"""Values of which one must be there; None: any. Kept as a frozenset, whatever was handed in."""

_T = TypeVar("_T")

_SHOWN: Final = 3  # values that an error lists
_SHOWN_BYTES: Final = 64  # of each; the rest of a payload is left out
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
"""Registers that may have reference values: the platform that has them, and their bytes."""


def refused(reason: str, message: str) -> PolicyError:
    """Return the error for evidence that is true and not accepted."""
    return PolicyError(message, reason=reason)


def any_of(value: bytes, wanted: Iterable[bytes]) -> bool:
    """Tell whether `value` is among `wanted`, in a time that does not say which it is like."""
    found = False
    for one in wanted:
        found |= hmac.compare_digest(value, one)
    return found


def shown(values: Iterable[bytes]) -> str:
    """Return a few of the values in hex, for an error."""
    ordered = sorted(values)
    text = " or ".join(map(_clipped, ordered[:_SHOWN]))
    left = len(ordered) - _SHOWN
    return f"{text} or one of {left} more" if left > 0 else text


def _clipped(value: bytes) -> str:
    if len(value) <= _SHOWN_BYTES:
        return value.hex() or "nothing"
    return f"{value[:_SHOWN_BYTES].hex()}... ({len(value)} bytes)"


def accepted_values(name: str, values: object, size: int) -> frozenset[bytes] | None:
    """Return the values of a rule; None if it has none.

    Raises:
        UsageError: They are no byte strings of `size` bytes, or there are none of them.
    """
    if values is None:
        return None
    if isinstance(values, (bytes, str)) or not isinstance(values, Collection):
        raise UsageError(f"{name}: want several values of {size} bytes, in a tuple or a set")
    for value in values:
        if type(value) is not bytes:  # a subclass may compare as it likes
            raise UsageError(f"{name}: a value is bytes, not {type(value).__name__}")
        if len(value) != size:
            raise UsageError(f"{name}: a value has {len(value)} bytes, want {size}")
    if not values:
        raise UsageError(f"{name}: no value would be accepted; name one, or leave the rule out")
    return frozenset(values)


def members(name: str, given: object, kind: type[_T]) -> frozenset[_T]:
    """Return the members of a rule, whatever collection holds them.

    Raises:
        UsageError: They are not several of `kind`.
    """
    wanted = UsageError(f"{name}: want several of {kind.__name__}, in a tuple or a set")
    if not isinstance(given, Collection) or isinstance(given, (str, bytes)):
        raise wanted
    found = [one for one in given if isinstance(one, kind)]
    if len(found) != len(given):
        raise wanted
    return frozenset(found)


def text_of(name: str, value: object) -> str:
    """Return a name that a rule looks for.

    Raises:
        UsageError: It is empty, or cannot be written in UTF-8.
    """
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name}: want text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: text has half a surrogate pair") from error
    return value


@dataclass(frozen=True, kw_only=True)
class ReferenceValues:
    """The measurements that are expected; of each rule one value must be the evidence's.

    A rule that is None accepts any value. A register that the evidence's platform does not have is
    refused, so values of two platforms cannot stand together.
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
        judged = {name: values for name, values in named.items() if values is not None}
        object.__setattr__(self, "_judged", judged)  # at every verification
        if len(owners) > 1:
            (one, first), (other, second), *_ = owners.items()
            raise UsageError(
                f"{second}: a register of {other}, and {first} is one of {one}: no evidence has "
                "both; make a policy for each platform"
            )

    @property
    def rules(self) -> dict[str, frozenset[bytes]]:
        """The registers that are judged, and what is accepted there."""
        found: dict[str, frozenset[bytes]] = self.__dict__["_judged"]
        return found

    def judge(self, claims: Claims) -> str:
        """Return what was found; PolicyError names the first register that is another."""
        for name, wanted in self.rules.items():
            have = claims.register(name)
            if have is None:
                raise refused(
                    "reference_value",
                    f"{name} must be {shown(wanted)}, and evidence of {claims.platform} has no "
                    f"such register; judge it by a policy made for {claims.platform}",
                )
            if not any_of(have, wanted):
                raise refused(
                    "reference_value",
                    f"{name} is {have.hex()}, want {shown(wanted)}; launch what the policy was "
                    f"made for, or accept this value in reference_values.{name}",
                )
        judged = self.rules
        return f"{', '.join(judged)}: a reference value each" if judged else ""


@dataclass(frozen=True, kw_only=True)
class BitMask:
    """Bits of a 64-bit field that must be set, and others that must be clear.

    Bit 0 is the lowest bit of the first byte: the evidence has these fields little-endian.
    """

    must_be_set: int = 0
    must_be_clear: int = 0

    def __post_init__(self) -> None:
        for name in ("must_be_set", "must_be_clear"):
            bits = getattr(self, name)
            if type(bits) is not int or not 0 <= bits < 1 << 64:
                raise UsageError(f"{name}: want a number of 64 bits")
        if not self.must_be_set | self.must_be_clear:
            raise UsageError("no bit is asked for; name one, or leave the rule out")
        if both := self.must_be_set & self.must_be_clear:
            raise UsageError(f"bit {both.bit_length() - 1} must be set and must be clear")

    @classmethod
    def exactly(cls, value: bytes, mask: bytes = b"\xff" * 8) -> "BitMask":
        """Return the rule for fields that equal `value` where `mask` has ones.

        Args:
            value: 8 bytes, as in the evidence.
            mask: 8 bytes.

        Raises:
            UsageError: They are not 8 bytes, the mask is zero, or the value has bits beside it.
        """
        for name, given in (("value", value), ("mask", mask)):
            if type(given) is not bytes or len(given) != 8:
                raise UsageError(f"{name}: want 8 bytes")
        bits, judged = int.from_bytes(value, "little"), int.from_bytes(mask, "little")
        if beside := bits & ~judged:
            raise UsageError(f"value: bit {beside.bit_length() - 1} is set and not in the mask")
        return cls(must_be_set=bits, must_be_clear=judged & ~bits)

    def judge(self, name: str, claims: Claims) -> str:
        """Return what was found in the field called `name`; PolicyError names the wrong bits."""
        have = claims.register(name)
        if have is None or len(have) != 8:
            raise refused(
                "attributes",
                f"{name}: evidence of {claims.platform} has no such field of 8 bytes; judge it "
                f"by a policy made for {claims.platform}",
            )
        bits = int.from_bytes(have, "little")
        wrong = (
            ("must be set", self.must_be_set & ~bits),
            ("must be clear", self.must_be_clear & bits),
        )
        found = [f"{bit_names(name, those)} {must}" for must, those in wrong if those]
        if found:
            raise refused(
                "attributes",
                f"{name} is {have.hex()}, where {' and '.join(found)}; launch the guest so, or "
                f"change the policy's {name}",
            )
        return f"{name} {have.hex()} has the bits that are wanted"


def bit_names(field: str, bits: int) -> str:
    """Return the names of `bits`, and the numbers of those without one."""
    found = []
    for name, mask in BIT_NAMES[field].items():
        if bits & mask:
            found.append(name)
            bits &= ~mask
    found.extend(f"bit {n}" for n in range(bits.bit_length()) if bits >> n & 1)
    return ", ".join(found) or "no bit"


@dataclass(frozen=True, kw_only=True)
class KeyProvider:
    """Who gave the application its keys: its name, its id, or both, as `AppInfo` has them."""

    name: str | None = None  # none, local-sgx, kms, tpm
    id: bytes | None = None  # of a KMS the DER of its root's public key; of SGX a measurement

    def __post_init__(self) -> None:
        if self.name is None and self.id is None:
            raise UsageError("want a name, an id, or both")
        if self.name is not None:
            text_of("name", self.name)
        if self.id is not None and (type(self.id) is not bytes or not self.id):
            raise UsageError("id: want bytes that are not empty")

    def __str__(self) -> str:
        told = "" if self.id is None else f"id {shown([self.id])}"
        return " with ".join(filter(None, (self.name, told)))

    @staticmethod
    def judge(wanted: Collection["KeyProvider"], info: bytes) -> str:
        """Return what was found in `AppInfo.key_provider_info`; PolicyError if it is another."""
        try:
            told = strict_json.read_object(info, "key-provider")
            name, provider_id = strict_json.string(told, "name"), strict_json.hex_field(told, "id")
        except FormatError as error:
            raise PolicyError(
                f"the key provider cannot be read ({error}), and the policy asks who it is",
                reason="key_provider",
            ) from error
        for one in wanted:
            same_name = one.name is None or any_of(name.encode(), [one.name.encode()])
            if same_name and (one.id is None or any_of(provider_id, [one.id])):
                return f"the key provider is {one}"
        want = " or ".join(sorted(str(one) for one in wanted)[:_SHOWN])
        raise refused(
            "key_provider",
            f"the key provider is {name[:_SHOWN_BYTES]!r} with id {shown([provider_id])}, want "
            f"{want}; deploy the application with that one, or accept this one in key_provider",
        )


@dataclass(frozen=True, kw_only=True)
class RequiredEvent:
    """A runtime event that must be in the log, at least once; the order does not matter.

    Names of an agent's boot are looked for up to `system-ready` only: whatever the application
    emits later cannot stand in for them.
    """

    name: str
    payload: bytes | None = None  # None: any
    digest: bytes | None = None  # 48 bytes, SHA-384; in place of the payload
    during: Literal["boot", "app"] | None = None  # None: whenever; reserved names: the boot

    def __post_init__(self) -> None:
        text_of("name", self.name)
        if self.payload is not None and type(self.payload) is not bytes:
            raise UsageError("payload: want bytes")
        if self.digest is not None:
            accepted_values("digest", (self.digest,), DIGEST_SIZE)
            if self.payload is not None:
                raise UsageError("digest: it covers the payload; give one of the two")
        if self.during not in {"boot", "app", None}:
            raise UsageError('during: want "boot" or "app"')
        if self.name in RESERVED_NAMES:
            if self.during == "app":
                raise UsageError(f"during: {self.name!r} is an event of the boot")
            object.__setattr__(self, "during", "boot")

    def judge(self, claims: Claims) -> str:
        """Return what was found; PolicyError tells whether the event is missing or another."""
        if RUNTIME_REGISTER not in claims.event_registers:
            raise refused(
                "required_event",
                f"event {self.name!r} is required, and {_why_no_log(claims.platform)}",
            )
        named = [event for event in claims.events if event.name == self.name]
        timely = [event for event in self._when(claims.events) if event.name == self.name]
        if any(self._is_meant(event) for event in timely):
            return f"the log has event {self.name!r}"
        if not timely:
            beside = " at that time" if named else ""
            raise refused(
                "required_event",
                f"event {self.name!r} is required{self._in_words()}, and the log has no such "
                f"event{beside}; have the guest emit it, or drop it from required_events",
            )
        raise refused(
            "required_event",
            f"event {self.name!r} has {self._told(timely)}, want {self._told([None])}; have the "
            "guest emit that, or change required_events",
        )

    def _when(self, events: tuple[Event, ...]) -> tuple[Event, ...]:
        if self.during is None:
            return events
        # Without a boot sequence all events are the app's.
        end = next((at for at, event in enumerate(events) if event.name == _BOOT_END), -1)
        return events[: end + 1] if self.during == "boot" else events[end + 1 :]

    def _is_meant(self, event: Event) -> bool:
        if self.digest is not None:
            return any_of(event.digest, [self.digest])
        return self.payload is None or any_of(event.payload, [self.payload])

    def _in_words(self) -> str:
        return {"boot": f" up to {_BOOT_END}", "app": f" after {_BOOT_END}"}.get(
            self.during or "", ""
        )

    def _told(self, events: Iterable[Event | None]) -> str:
        """Return what the rule looks at, of events or, for None, of itself."""
        which = "payload" if self.digest is None else "digest"
        values = [getattr(self if event is None else event, which) for event in events]
        return f"{which} {shown(values)}"


def _why_no_log(platform: str) -> str:
    if platform in {"dstack-tdx", "sgx"}:
        return (
            "a bare quote has no log: ask the attester for whole evidence, or drop the rule "
            "from the policy"
        )
    return f"nothing measures runtime events on {platform}: drop the rule from the policy"
