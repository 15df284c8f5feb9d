"""State of a simulated TPM, and the entities that handles name."""

from collections.abc import Callable
from typing import Final, NamedTuple

from attestkit.backends.simulator.software_tpm.model.command_reader import (
    TpmResponseError,
    handle_error,
    u32,
)
from attestkit.backends.simulator.software_tpm.model.key_objects import PrimaryKey, PrimaryKeys
from attestkit.backends.simulator.software_tpm.model.nv_storage import NvIndex, NvStorage
from attestkit.backends.simulator.software_tpm.model.pcr_banks import PcrBanks
from attestkit.backends.simulator.software_tpm.model.sessions import Sessions
from attestkit.tpm import handles
from attestkit.tpm.nv_attributes import AUTH_READ, AUTH_WRITE, CLEAR_AT_STARTUP, NO_DA, WRITTEN
from attestkit.tpm.pcrs import PCR_COUNT
from attestkit.tpm.public_area import NO_DA as KEY_NO_DA
from attestkit.tpm.public_area import USER_WITH_AUTH
from attestkit.tpm.response_codes import RC_HANDLE, RC_REFERENCE_H0

_MOST_FAILURES: Final = 3  # wrong passwords until lockout, as libtpms
_RECOVERY_S: Final = 1000  # until one of them is forgotten

READ: Final = AUTH_READ
WRITE: Final = AUTH_WRITE
READ_AND_WRITE: Final = AUTH_READ | AUTH_WRITE


class TpmIdentity(NamedTuple):
    """Identity that a TPM reports."""

    manufacturer: str = "ATKT"  # 4 characters
    vendor: str = "simulated TPM"  # at most 16 characters
    firmware_version: int = 0x2019102300163636  # as swtpm and NitroTPM


class Entity(NamedTuple):
    """The object that a handle of a command names."""

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
        identity: What the TPM says of itself.
        clock: Returns seconds, monotonic.
        random: Returns a number of random bytes.
        largest_index: Largest size of an NV index that a command may define.
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
        """Lose what a TPM loses without power; it then needs TPM2_Startup."""
        self.pcrs.reset_all()
        self.sessions.clear()
        self.keys.reset(self.random(32))
        for index in self.nv.indices.values():
            if index.attributes & CLEAR_AT_STARTUP:
                index.attributes &= ~WRITTEN
        self.started = False
        self.reset_count += 1
        self.restart_count = 0

    @property
    def clock_ms(self) -> int:
        """Milliseconds since the model was made."""
        return int((self._clock() - self._began) * 1000)

    @property
    def locked_out(self) -> bool:
        """Whether there were too many wrong passwords."""
        self._failures = [at for at in self._failures if self._clock() - at < _RECOVERY_S]
        return len(self._failures) >= _MOST_FAILURES

    @property
    def failures(self) -> int:
        """Number of wrong passwords that count for the lockout."""
        return len(self._failures)

    def count_failure(self) -> None:
        """Count a wrong password."""
        self._failures.append(self._clock())

    def is_context(self, handle: int) -> bool:
        """Return whether a handle is of the type that contexts have, TPMI_DH_CONTEXT."""
        return handle in self.keys.slots or self.sessions.is_session(handle)

    def is_impossible(self, handle: int) -> bool:
        """Return whether a handle is outside of the transient or session handles of this TPM."""
        kind = handle >> 24
        if kind == handles.FIRST_TRANSIENT >> 24:
            return handle not in self.keys.slots
        sessions = (handles.FIRST_HMAC_SESSION >> 24, handles.FIRST_POLICY_SESSION >> 24)
        return kind in sessions and not self.sessions.is_session(handle)

    def find_entity(self, handle: int, number: int) -> Entity:
        """Return what a handle names; `number` counts the command's handles from 1."""
        if handle < PCR_COUNT or handle in handles.HIERARCHIES:
            return Entity(handle, u32(handle))
        if handles.FIRST_HMAC_SESSION <= handle < handles.FIRST_PERMANENT:
            if handle not in self.sessions.loaded:
                raise TpmResponseError(RC_REFERENCE_H0 + number - 1)
            return Entity(handle, u32(handle))
        if handles.FIRST_NV_INDEX <= handle <= handles.LAST_NV_INDEX:
            index = self.nv.indices.get(handle)
            if index is None:
                raise handle_error(RC_HANDLE, number)
            roles = index.attributes & READ_AND_WRITE
            dictionary = not index.attributes & NO_DA
            return Entity(handle, index.name, index.auth, roles, dictionary, nv_index=index)
        return self._find_key(handle, number)

    def _find_key(self, handle: int, number: int) -> Entity:
        if handles.FIRST_PERSISTENT <= handle <= handles.LAST_PERSISTENT:
            self.keys.require_slot()  # a TPM loads the key for the command
            key = self.keys.persistent.get(handle)
            if key is None:
                raise handle_error(RC_HANDLE, number)
        else:
            key = self.keys.transient.get(handle)
            if key is None:
                raise TpmResponseError(RC_REFERENCE_H0 + number - 1)
        attributes = key.public.attributes
        roles = READ_AND_WRITE if attributes & USER_WITH_AUTH else 0
        dictionary = not attributes & KEY_NO_DA
        return Entity(handle, key.public.name, key.auth, roles, dictionary, key)
