"""The simulated TPM: `execute` takes a command and returns its response."""

import os
import struct
import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import RLock
from typing import Final

from attestkit._argument_checks import require_size
from attestkit.backends.simulator.software_tpm.hooks import TpmHooks
from attestkit.backends.simulator.software_tpm.model import command_call, tpm_state
from attestkit.backends.simulator.software_tpm.model.authorization import (
    AuthorizedCommand,
    GivenAuthorization,
    check_authorizations,
    encode_response_area,
    read_authorizations,
)
from attestkit.backends.simulator.software_tpm.model.capabilities import answer_capability
from attestkit.backends.simulator.software_tpm.model.command_reader import (
    CommandReader,
    TpmResponseError,
    handle_error,
    u32,
)
from attestkit.backends.simulator.software_tpm.model.commands.command_table import (
    build_command_table,
)
from attestkit.errors import UsageError
from attestkit.tpm import TpmtPublic
from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import hash_size
from attestkit.tpm.command_codes import GET_CAPABILITY, STARTUP
from attestkit.tpm.handles import FIRST_NV_INDEX, LAST_NV_INDEX
from attestkit.tpm.nv_attributes import WRITTEN

NO_SESSIONS: Final = 0x8001
SESSIONS: Final = 0x8002
# TPM_ST of other structures, and of a response of TPM 1.2 (Part 2, section 6.9).
_OTHER_TAGS: Final = frozenset({0x00C4, 0x8000, *range(0x8014, 0x801B), *range(0x8021, 0x8026)})
LARGEST_FRAME: Final = 4096
_USUAL_BANKS: Final = ("sha1", "sha256", "sha384")
_LARGEST_PROVISIONED: Final = 0xFFFF  # its public area has 16 bits for the size
_LARGEST_INDEX: Final = 8192  # NitroTPM's; libtpms has 2048


def encode_error(code: int) -> bytes:
    """Return the response, 10 bytes, of a command that failed with the response code `code`."""
    return struct.pack(">HII", NO_SESSIONS, 10, code)


class TpmModel:
    """A TPM 2.0 in Python; keys are functions of a seed. Thread-safe.

    Args:
        seed: Seed of its keys, 32 bytes.
        banks: Names of the hashes of its PCR banks.
        startup_locality: Locality of TPM2_Startup (0 or 3), or 4 for an H-CRTM: PCR 0 starts with
            it.
        started: Whether firmware has sent TPM2_Startup already.
        identity: Manufacturer, vendor and firmware version that the TPM reports; None: the
            defaults of `TpmIdentity`.
        hooks: Behaviour that a platform adds; None: no additions.
        largest_index: Largest size in bytes of an NV index that a command may define.
        handle_offset: Added to the handles of transient keys and sessions, so that two TPMs can
            look like one.
        clock: Returns seconds, monotonic.
        random: Returns a number of random bytes, for nonces and TPM2_GetRandom.

    Raises:
        UsageError: If the seed does not have 32 bytes, or a bank or the locality is not supported.
    """

    def __init__(
        self,
        seed: bytes,
        *,
        banks: Iterable[str] = _USUAL_BANKS,
        startup_locality: int = 0,
        started: bool = True,
        identity: tpm_state.TpmIdentity | None = None,
        hooks: TpmHooks | None = None,
        largest_index: int = _LARGEST_INDEX,
        handle_offset: int = 0,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        require_size("TPM seed", seed, 32)
        self.hooks: TpmHooks = hooks or TpmHooks()
        self._state = tpm_state.TpmState(
            seed,
            tpm_state.PcrBanks(banks, startup_locality),
            identity=identity or tpm_state.TpmIdentity(),
            clock=clock,
            random=random,
            largest_index=largest_index,
            handle_offset=handle_offset,
        )
        self._state.started = started
        self._lock = RLock()  # a hook may call `execute`

    def execute(self, command: bytes) -> bytes:
        """Return the response to a command, both complete frames; only hooks can raise errors."""
        with self._lock:
            try:
                return self._run(command)
            except TpmResponseError as error:
                return encode_error(error.code)

    def power_cycle(self) -> None:
        """Reset the volatile state, as a loss of power does; the TPM then needs TPM2_Startup."""
        with self._lock:
            self._state.power_cycle()

    def provision_index(
        self,
        index: int,
        content: bytes,
        attributes: int,
        *,
        auth: bytes = b"",
        name_alg: str = "sha256",
    ) -> None:
        """Define an NV index of any size with its content, as the platform's vendor does.

        Args:
            index: NV index, 0x01xxxxxx; an existing one is replaced.
            content: Its content.
            attributes: TPMA_NV; "written" is added.
            auth: Its password.
            name_alg: Hash of its name.

        Raises:
            UsageError: If the index is out of its range, the content has more than 65,535 bytes,
                or the hash is unknown.
        """
        hash_size(name_alg)  # raises for an unknown hash
        if not FIRST_NV_INDEX <= index <= LAST_NV_INDEX:
            message = f"NV index: must be 0x01000000 to 0x01ffffff, not 0x{index:08x}"
            raise UsageError(message, reason="out_of_range")
        if len(content) > _LARGEST_PROVISIONED:
            message = f"NV index: must have at most {_LARGEST_PROVISIONED} bytes"
            raise UsageError(f"{message}, not {len(content)}", reason="too_large")
        found = tpm_state.NvIndex(index, name_alg, attributes | WRITTEN, b"", len(content))
        found.auth = auth.rstrip(b"\0")
        found.content[:] = content
        with self._lock:
            self._state.nv.indices[index] = found

    def provision_pcr(self, pcr: int, digests: dict[str, bytes]) -> None:
        """Extend PCR number `pcr` in each bank of `digests`, as firmware does at any locality.

        `digests` are by bank, such as "sha256"; banks that are not allocated are left out.

        Raises:
            UsageError: If the PCR is unknown, or a digest does not have its bank's size.
        """
        pcrs = self._state.pcrs
        allocated = {bank: digest for bank, digest in digests.items() if bank in pcrs.values}
        with self._lock:
            for bank, digest in allocated.items():
                require_size(f"{bank} digest", digest, len(pcrs.get(bank, pcr)))
            for bank, digest in allocated.items():
                self._state.pcrs.extend(pcr, bank, digest)

    def read_pcr(self, bank: str, pcr: int) -> bytes:
        """Return the value of PCR number `pcr` in a bank, such as "sha256".

        Raises:
            UsageError: If bank or PCR is unknown.
        """
        with self._lock:
            return self._state.pcrs.get(bank, pcr)

    def read_primary(self, hierarchy: int, template: TpmtPublic) -> TpmtPublic:
        """Return the public area of the primary key of a template, without loading the key.

        `hierarchy` is a handle of `attestkit.tpm.handles`, such as ENDORSEMENT.
        """
        with self._lock:
            return self._state.keys.create(hierarchy, template, b"", b"").public

    def owns(self, handle: int) -> bool:
        """Return whether a handle belongs to this TPM.

        It does if it is of an NV index or persistent key that exists, or in the range for transient
        keys and sessions, whether it exists or not.
        """
        state = self._state
        places = (state.nv.indices, state.keys.transient, state.keys.persistent)
        with self._lock:
            return any(handle in place for place in places) or self.is_temporary(handle)

    def is_temporary(self, handle: int) -> bool:
        """Return whether a handle is in this TPM's range for transient keys or sessions."""
        return handle in self._state.keys.slots or handle in self._state.sessions.handles

    def _run(self, data: bytes) -> bytes:
        """Run the command in the frame `data`; return the response to it, if it succeeds.

        Checks are in the order of Part 4's ExecuteCommand; TpmResponseError if one fails.
        """
        reader = CommandReader(data)
        tag = reader.u16()
        if tag not in (NO_SESSIONS, SESSIONS):
            raise TpmResponseError(codes.RC_BAD_TAG if tag in _OTHER_TAGS else codes.RC_VALUE)
        if reader.u32() != len(data) or len(data) > LARGEST_FRAME:
            raise TpmResponseError(codes.RC_COMMAND_SIZE)
        code = reader.u32()
        command = self._find_command(code)
        if (code == STARTUP) == self._state.started:
            raise TpmResponseError(codes.RC_INITIALIZE)
        if self.hooks.fault is not None and (injected := self.hooks.fault(code)):
            raise TpmResponseError(injected)
        entities = self._read_handles(reader, command)
        given = self._authorize(reader, command, entities, tag)
        call = command_call.CommandCall(
            self._state, entities, CommandReader(reader.data[reader.at :]), self.hooks
        )
        return self._encode_response(command.code, command.run(call), given)

    def _find_command(self, code: int) -> command_call.CommandDefinition:
        table = build_command_table(self.hooks)
        if code == GET_CAPABILITY:
            listed = [command.attributes for command in table.values()] + [GET_CAPABILITY]
            return command_call.CommandDefinition(code, partial(answer_capability, commands=listed))
        command = table.get(code)
        if command is None:
            raise TpmResponseError(codes.RC_COMMAND_CODE)
        return command

    def _read_handles(
        self, reader: CommandReader, command: command_call.CommandDefinition
    ) -> tuple[tpm_state.Entity, ...]:
        """Read the handles of a command; check the types of all, then that all exist."""
        handles = []
        for number, is_of_type in enumerate(command.handles, 1):
            try:
                handle = reader.u32()
            except TpmResponseError as error:
                raise handle_error(error.code, number) from error
            if not is_of_type(handle) or self._state.is_impossible(handle):
                raise handle_error(codes.RC_VALUE, number)
            handles.append(handle)
        return tuple(
            self._state.find_entity(handle, number) for number, handle in enumerate(handles, 1)
        )

    def _authorize(
        self,
        reader: CommandReader,
        command: command_call.CommandDefinition,
        entities: tuple[tpm_state.Entity, ...],
        tag: int,
    ) -> list[GivenAuthorization]:
        if tag == NO_SESSIONS:
            if command.authorized:
                raise TpmResponseError(codes.RC_AUTH_MISSING)
            return []
        given = read_authorizations(reader, self._state, allowed=command.takes_session)
        checked = AuthorizedCommand(command.code, entities, command.authorized, command.role)
        return check_authorizations(self._state, checked, given, reader.data[reader.at :])

    def _encode_response(
        self, code: int, reply: command_call.CommandReply, given: list[GivenAuthorization]
    ) -> bytes:
        handle = b"" if reply.handle is None else u32(reply.handle)
        if not given:
            body = handle + reply.parameters
            return struct.pack(">HII", NO_SESSIONS, 10 + len(body), 0) + body
        area = encode_response_area(self._state, code, given, reply.parameters)
        body = handle + u32(len(reply.parameters)) + reply.parameters + area
        return struct.pack(">HII", SESSIONS, 10 + len(body), 0) + body
