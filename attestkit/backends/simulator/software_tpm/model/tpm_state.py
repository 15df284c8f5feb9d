"""State of a simulated TPM, and the entities that handles name: PCRs, NV indices, keys, sessions.

PCRs are in several banks, as of a PC (TCG PC Client Platform TPM Profile, section 4.6); NV indices
have definition, attributes and content (TPM 2.0 Library, Part 2, section 13).
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from attestkit.backends.simulator.software_tpm.model.command_reader import (
    CommandReader,
    Selection,
    TpmResponseError,
    handle_error,
    u16,
    u32,
)
from attestkit.backends.simulator.software_tpm.model.key_objects import PrimaryKey, PrimaryKeys
from attestkit.backends.simulator.software_tpm.model.sessions import Sessions
from attestkit.errors import UsageError
from attestkit.tpm import handles, nv_attributes
from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import HASH_IDS, LARGEST_DIGEST, compute_digest, hash_size
from attestkit.tpm.pcrs import PCR_COUNT
from attestkit.tpm.public_area import NO_DA as KEY_NO_DA
from attestkit.tpm.public_area import USER_WITH_AUTH
from attestkit.tpm.reader import encode_sized

MAX_DIGESTS: Final = 8  # of a TPML_DIGEST, so of one PCR_Read
DEBUG_PCR: Final = 16
APPLICATION_PCR: Final = 23
# PCRs of a dynamic launch: extended at localities 1 to 4 only, start as ones.
DYNAMIC_PCRS: Final = range(17, 23)
_NOT_COUNTED: Final = (DEBUG_PCR, 21, 22, APPLICATION_PCR)


class PcrBanks:
    """Values of 24 PCRs in each bank.

    Args:
        banks: Names of their hashes, such as "sha256".
        startup_locality: Locality of TPM2_Startup (0 or 3), or 4 for an H-CRTM: the start value of
            PCR 0.

    Raises:
        UsageError: If no bank is given, a hash is unknown, or the locality is not 0, 3 or 4.
    """

    def __init__(self, banks: Iterable[str], startup_locality: int = 0) -> None:
        if startup_locality not in (0, 3, 4):
            message = f"startup locality: must be 0, 3 or 4, not {startup_locality}"
            raise UsageError(message, reason="out_of_range")
        self.locality = startup_locality
        self.values: dict[str, list[bytes]] = {name: [] for name in banks}
        if not self.values:
            raise UsageError("PCR banks: must not be empty; give one", reason="missing")
        self.updates: int = 0
        self.reset_all()

    def reset_all(self) -> None:
        """Set all PCRs to the values after a reset of the TPM."""
        for name in self.values:
            size = hash_size(name)
            zeros, ones = bytes(size), b"\xff" * size
            values = [ones if pcr in DYNAMIC_PCRS else zeros for pcr in range(PCR_COUNT)]
            values[0] = self.locality.to_bytes(size, "big")
            self.values[name] = values
        # libtpms counts the 20 PCRs that count and are set at startup.
        self.updates = PCR_COUNT - len(_NOT_COUNTED)

    def get(self, bank: str, pcr: int) -> bytes:
        """Return the value of PCR number `pcr` in `bank`; UsageError if one of them is unknown."""
        values = self.values.get(bank)
        if values is None:
            message = f"PCR bank: must be one of {', '.join(self.values)}, not {bank!r}"
            raise UsageError(message, reason="unknown_name")
        if not 0 <= pcr < PCR_COUNT:
            raise UsageError(f"PCR: must be 0 to {PCR_COUNT - 1}, not {pcr}", reason="out_of_range")
        return values[pcr]

    def extend(self, pcr: int, bank: str, digest: bytes) -> None:
        """Extend PCR number `pcr` of a bank by a digest; an absent bank is ignored, as by a TPM."""
        if values := self.values.get(bank):
            values[pcr] = compute_digest(bank, values[pcr] + digest)
            if pcr not in _NOT_COUNTED:
                self.updates += 1

    def reset(self, pcr: int) -> None:
        """Set PCR number `pcr` to zeros in all banks."""
        for bank, values in self.values.items():
            values[pcr] = bytes(hash_size(bank))

    def filter(self, selections: list[Selection]) -> list[Selection]:
        """Return the selections with empty bitmaps for absent banks."""
        return [(bank, bits if bank in self.values else 0) for bank, bits in selections]

    def read(self, selections: list[Selection], most: int) -> tuple[list[Selection], list[bytes]]:
        """Return the first selected PCRs, at most `most`: their selections, and their values."""
        found: list[Selection] = []
        values: list[bytes] = []
        for bank, bits in self.filter(selections):
            got = 0
            for pcr in range(PCR_COUNT):
                if bits >> pcr & 1 and len(values) < most:
                    got |= 1 << pcr
                    values.append(self.values[bank][pcr])
            found.append((bank, got))
        return found, values

    def digest(self, selections: list[Selection], hash_name: str) -> bytes:
        """Return the digest, by the hash `hash_name`, of the joined values of all selected PCRs."""
        _, values = self.read(selections, len(selections) * PCR_COUNT)
        return compute_digest(hash_name, b"".join(values))


_MOST_INDICES: Final = 256  # a bound of the model; a TPM has less space


class NvIndex:
    """An NV index of the simulated TPM, with its content, which is 0xFF at first.

    `index` is its handle, `attributes` TPMA_NV, `policy` a digest or empty, `auth` the password.
    """

    __slots__ = ("attributes", "auth", "content", "index", "name_alg", "policy")

    def __init__(
        self, index: int, name_alg: str, attributes: int, policy: bytes, size: int
    ) -> None:
        self.index: int = index
        self.name_alg: str = name_alg
        self.attributes: int = attributes
        self.policy: bytes = policy
        self.content: bytearray = bytearray(b"\xff" * size)
        self.auth: bytes = b""

    @property
    def public(self) -> bytes:
        """The public area, TPMS_NV_PUBLIC."""
        head = u32(self.index) + u16(HASH_IDS[self.name_alg]) + u32(self.attributes)
        return head + encode_sized(self.policy) + u16(len(self.content))

    @property
    def name(self) -> bytes:
        """The name: nameAlg and the digest of the public area."""
        return u16(HASH_IDS[self.name_alg]) + compute_digest(self.name_alg, self.public)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data`, which must fit, at `offset` in bytes, and mark the index as written."""
        self.content[offset : offset + len(data)] = data
        self.attributes |= nv_attributes.WRITTEN


class NvStorage:
    """NV indices by their handles.

    Args:
        largest: Largest size in bytes of an index that a command may define.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.indices: dict[int, NvIndex] = {}

    def define(self, index: NvIndex) -> None:
        """Add an index; TpmResponseError if it is defined already, or storage is full."""
        if index.index in self.indices:
            raise TpmResponseError(codes.RC_NV_DEFINED)
        if len(self.indices) >= _MOST_INDICES:
            raise TpmResponseError(codes.RC_NV_SPACE)
        self.indices[index.index] = index


def read_nv_public(reader: CommandReader, largest: int) -> NvIndex:
    """Read TPMS_NV_PUBLIC of an index of at most `largest` bytes; return a new, undefined index.

    Raises:
        TpmResponseError: If it is malformed, or the index is larger.
    """
    index = reader.u32()
    if not handles.FIRST_NV_INDEX <= index <= handles.LAST_NV_INDEX:
        raise reader.error(codes.RC_VALUE)
    name_alg = reader.hash_name()
    attributes = reader.u32()
    if attributes & nv_attributes.RESERVED:
        raise reader.error(codes.RC_RESERVED_BITS)
    policy = reader.sized(LARGEST_DIGEST)
    if (size := reader.u16()) > largest:
        raise reader.error(codes.RC_SIZE)
    return NvIndex(index, name_alg, attributes, policy, size)


_MOST_FAILURES: Final = 3  # wrong passwords until lockout, as libtpms
_RECOVERY_S: Final = 1000  # until one of them is forgotten

READ: Final = nv_attributes.AUTH_READ
WRITE: Final = nv_attributes.AUTH_WRITE
READ_AND_WRITE: Final = nv_attributes.AUTH_READ | nv_attributes.AUTH_WRITE


class TpmIdentity(NamedTuple):
    """Manufacturer, vendor and firmware version that a TPM reports."""

    manufacturer: str = "ATKT"  # 4 characters
    vendor: str = "simulated TPM"  # at most 16 characters
    firmware_version: int = 0x2019102300163636  # as swtpm and NitroTPM


class Entity(NamedTuple):
    """The object that a handle of a command names: its TPM name, password, and key or NV index."""

    handle: int
    name: bytes
    auth: bytes = b""
    auth_roles: int = READ_AND_WRITE  # for which its password may be used
    dictionary: bool = False  # wrong passwords count for the lockout
    key: PrimaryKey | None = None
    nv_index: NvIndex | None = None


class TpmState:
    """State of a TPM.

    Args:
        seed: Seed of its keys, 32 bytes.
        pcrs: Its PCRs.
        identity: Manufacturer, vendor and firmware version that the TPM reports.
        clock: Returns seconds, monotonic.
        random: Returns a number of random bytes.
        largest_index: Largest size in bytes of an NV index that a command may define.
        handle_offset: Added to the handles of transient keys and sessions.
    """

    def __init__(
        self,
        seed: bytes,
        pcrs: PcrBanks,
        *,
        identity: TpmIdentity,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        largest_index: int,
        handle_offset: int,
    ) -> None:
        self.identity: TpmIdentity = identity
        self.random: Callable[[int], bytes] = random
        self.pcrs: PcrBanks = pcrs
        self.nv: NvStorage = NvStorage(largest_index)
        self.keys: PrimaryKeys = PrimaryKeys(seed, handle_offset)
        self.sessions: Sessions = Sessions(handle_offset)
        self.started: bool = False
        self.reset_count: int = 0
        self.restart_count: int = 0
        self.contexts: int = 0  # number of saved contexts
        self._clock = clock
        self._began = clock()
        self._failures: list[float] = []  # times of wrong passwords
        self.keys.reset(random(32))

    def power_cycle(self) -> None:
        """Reset the volatile state, as a loss of power does; the TPM then needs TPM2_Startup."""
        self.pcrs.reset_all()
        self.sessions.clear()
        self.keys.reset(self.random(32))
        for index in self.nv.indices.values():
            if index.attributes & nv_attributes.CLEAR_AT_STARTUP:
                index.attributes &= ~nv_attributes.WRITTEN
        self.started = False
        self.reset_count += 1
        self.restart_count = 0

    @property
    def clock_ms(self) -> int:
        """Milliseconds since the model was made."""
        return int((self._clock() - self._began) * 1000)

    @property
    def locked_out(self) -> bool:
        """Whether there were 3 wrong passwords in the last 1000 s."""
        self._failures = [at for at in self._failures if self._clock() - at < _RECOVERY_S]
        return len(self._failures) >= _MOST_FAILURES

    @property
    def failures(self) -> int:
        """Number of wrong passwords that count for the lockout.

        `locked_out` forgets those of 1000 s ago or earlier.
        """
        return len(self._failures)

    def count_failure(self) -> None:
        """Count a wrong password."""
        self._failures.append(self._clock())

    def is_context(self, handle: int) -> bool:
        """Return whether a handle can be in a context: TPMI_DH_CONTEXT, a key or a session."""
        return handle in self.keys.slots or self.sessions.is_session(handle)

    def is_impossible(self, handle: int) -> bool:
        """Return whether a handle is transient or a session's, but not in this TPM's ranges."""
        kind = handle >> 24
        if kind == handles.FIRST_TRANSIENT >> 24:
            return handle not in self.keys.slots
        sessions = (handles.FIRST_HMAC_SESSION >> 24, handles.FIRST_POLICY_SESSION >> 24)
        return kind in sessions and not self.sessions.is_session(handle)

    def find_entity(self, handle: int, number: int) -> Entity:
        """Return the object that a handle names; `number` is its place in the command, from 1.

        Raises:
            TpmResponseError: If it does not exist.
        """
        if handle < PCR_COUNT or handle in handles.HIERARCHIES:
            return Entity(handle, u32(handle))
        if handles.FIRST_HMAC_SESSION <= handle < handles.FIRST_PERMANENT:
            if handle not in self.sessions.loaded:
                raise TpmResponseError(codes.RC_REFERENCE_H0 + number - 1)
            return Entity(handle, u32(handle))
        if handles.FIRST_NV_INDEX <= handle <= handles.LAST_NV_INDEX:
            index = self.nv.indices.get(handle)
            if index is None:
                raise handle_error(codes.RC_HANDLE, number)
            roles = index.attributes & READ_AND_WRITE
            dictionary = not index.attributes & nv_attributes.NO_DA
            return Entity(handle, index.name, index.auth, roles, dictionary, nv_index=index)
        return self._find_key(handle, number)

    def _find_key(self, handle: int, number: int) -> Entity:
        if handles.FIRST_PERSISTENT <= handle <= handles.LAST_PERSISTENT:
            self.keys.require_slot()  # a TPM loads the key for the command
            key = self.keys.persistent.get(handle)
            if key is None:
                raise handle_error(codes.RC_HANDLE, number)
        else:
            key = self.keys.transient.get(handle)
            if key is None:
                raise TpmResponseError(codes.RC_REFERENCE_H0 + number - 1)
        attributes = key.public.attributes
        roles = READ_AND_WRITE if attributes & USER_WITH_AUTH else 0
        dictionary = not attributes & KEY_NO_DA
        return Entity(handle, key.public.name, key.auth, roles, dictionary, key)
