"""A swtpm process, and a proxy in front of it that adds NV indices and vendor commands.

The process is connected by a socket pair, without port or name, and ends with it. NV indices that
are large or virtual are in a second TPM, the model. If there are vendor commands, the model also
has the storage keys of the endorsement hierarchy and the sessions salted with them, because HMACs
of the commands cannot be checked without those keys. All PCRs, attestation keys and other objects
are in swtpm.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Final

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks
from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor
from attestkit.backends.simulator.software_tpm.model.tpm_model import (
    NO_SESSIONS,
    SESSIONS,
    TpmModel,
    encode_error,
)
from attestkit.backends.tpm.command_channel import BUSY
from attestkit.backends.tpm.transports import StreamTransport
from attestkit.errors import BackendError, BackendUnavailableError
from attestkit.tpm import PcrSelection
from attestkit.tpm import command_codes as commands
from attestkit.tpm.algorithms import HASH_IDS, hash_size
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.pcr_selection import encode_selections
from attestkit.tpm.public_area import DECRYPT, RESTRICTED

_EXIT_SECONDS: Final = 10.0
_SECONDS: Final = 60.0  # of a command: RSA keys take long on a busy machine


class SwtpmProcess:
    """swtpm with its state in a folder. Thread-safe.

    Commands pass unchanged, so that busy codes (0x922) reach the client as from a raw TPM.

    Args:
        folder: An existing directory; a second process with the same one is the same TPM.
        program: Name or path of swtpm.
        started: Whether swtpm runs TPM2_Startup itself; otherwise the first command must be it.

    Raises:
        BackendUnavailableError: If swtpm is not installed, or cannot be started.
    """

    def __init__(self, folder: Path, *, program: str = "swtpm", started: bool = True) -> None:
        found = shutil.which(program)
        if found is None:
            message = f'{program}: not found; install swtpm, or open the simulator with tpm="model"'
            raise BackendUnavailableError(message, reason="missing", path=program)
        ours, theirs = socket.socketpair()
        flags = "not-need-init,startup-clear" if started else "not-need-init"
        # An absolute path: with a relative one the TPM is in failure mode.
        state = f"dir={folder.resolve()}"
        command = [found, "socket", "--tpm2", "--tpmstate", state, "--fd", str(theirs.fileno())]
        command += ["--flags", flags, "--terminate"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - arguments are ours
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            message = f"{found}: cannot be started: {error.strerror}"
            raise BackendUnavailableError(message, reason="missing", path=found) from error
        finally:
            theirs.close()
        self._transport = StreamTransport(ours, "swtpm")

    def execute(self, command: bytes) -> bytes:
        """Return the response to a command, both complete frames.

        Raises:
            BackendError: If swtpm does not answer in time, or has ended.
            UsageError: If it is closed, also by an earlier error.
        """
        return self._transport.exchange(command, _SECONDS)

    def close(self) -> None:
        """End the process, and wait for it; a second call has no effect."""
        self._transport.close()  # swtpm ends when its socket does
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_HANDLE_OFFSET: Final = 0x10000  # of the model's keys and sessions
_SWTPM_LARGEST: Final = 2048  # bytes of an NV index

# Offset of the handle that decides, the same with and without authorizations.
_DECIDING: Final = {
    commands.EVICT_CONTROL: 14,
    commands.NV_UNDEFINE_SPACE: 14,
    commands.NV_WRITE: 14,
    commands.NV_READ: 14,
    commands.CONTEXT_LOAD: 18,
    commands.CONTEXT_SAVE: 10,
    commands.FLUSH_CONTEXT: 10,
    commands.NV_READ_PUBLIC: 10,
    commands.READ_PUBLIC: 10,
    commands.START_AUTH_SESSION: 10,
}
_PASSWORD: Final = bytes.fromhex("00000009 40000009 0000 00 0000")
_MOST_RETRIES: Final = 1000


class TpmProxy:
    """swtpm with the additions of `hooks`. Thread-safe.

    Args:
        tpm: The TPM behind the proxy, such as `SwtpmProcess`.
        seed: Seed of the model's keys, 32 bytes.
        hooks: Behaviour that a platform adds; None: no additions.
        sleep: Waits a number of seconds while swtpm is busy, in `read_pcr` and `provision_pcr`.
        random: Returns a number of random bytes, for nonces of the model.
    """

    def __init__(
        self,
        tpm: CommandExecutor,
        seed: bytes,
        *,
        hooks: TpmHooks | None = None,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.hooks: TpmHooks = hooks or TpmHooks()
        self._tpm = tpm
        own = TpmHooks()  # without faults, which the proxy injects
        own.virtual_indices = self.hooks.virtual_indices
        own.vendor_commands = self.hooks.vendor_commands
        self._model = TpmModel(seed, hooks=own, handle_offset=_HANDLE_OFFSET, random=random)
        self._sleep = sleep
        self._lock = RLock()  # a hook may call `execute`

    def execute(self, command: bytes) -> bytes:
        """Return the response to a command, both complete frames.

        Raises:
            BackendError: If swtpm cannot be reached.
            UsageError: If swtpm is closed.
        """
        with self._lock:
            code = _u32(command, 6)
            if self.hooks.fault is not None and (injected := self.hooks.fault(code)):
                return encode_error(injected)
            if code == commands.GET_CAPABILITY:
                return self._merge(command)
            if self._is_for_model(code, command):
                return self._model.execute(command)
            return self._tpm.execute(command)

    def provision_index(
        self,
        index: int,
        content: bytes,
        attributes: int,
        *,
        auth: bytes = b"",
        name_alg: str = "sha256",
    ) -> None:
        """Define an NV index of any size with its content.

        Args:
            index: NV index, 0x01xxxxxx; an existing one is replaced.
            content: Its content.
            attributes: TPMA_NV; "written" is added.
            auth: Its password.
            name_alg: Hash of its name.

        Raises:
            UsageError: As `TpmModel.provision_index`.
        """
        self._model.provision_index(index, content, attributes, auth=auth, name_alg=name_alg)

    def provision_pcr(self, pcr: int, digests: dict[str, bytes]) -> None:
        """Extend PCR number `pcr` in each bank of `digests`, at locality 0.

        `digests` has one digest by the name of each bank, such as "sha256".

        Raises:
            BackendError: If swtpm refuses it, or cannot be reached.
            UsageError: If swtpm is closed.
        """
        body = b"".join(HASH_IDS[bank].to_bytes(2, "big") + one for bank, one in digests.items())
        body = len(digests).to_bytes(4, "big") + body
        self._send_own(SESSIONS, commands.PCR_EXTEND, pcr.to_bytes(4, "big") + _PASSWORD + body)

    def read_pcr(self, bank: str, pcr: int) -> bytes:
        """Return the value of PCR number `pcr` in a bank, such as "sha256".

        Raises:
            BackendError: If swtpm cannot be reached, or does not have the bank.
            UsageError: If the hash or the PCR is unknown, or swtpm is closed.
        """
        response = self._send_own(
            NO_SESSIONS, commands.PCR_READ, encode_selections((PcrSelection(bank, (pcr,)),))
        )
        value = response[-hash_size(bank) :]
        if len(response) != 10 + 4 + 10 + 4 + 2 + len(value):
            message = f"swtpm: no value of PCR {pcr} in the bank {bank}; use an allocated bank"
            raise BackendError(message, reason="malformed_response")
        return value

    def _send_own(self, tag: int, code: int, body: bytes) -> bytes:
        """Send a command of the proxy's own, again while swtpm is busy; return the response.

        Args:
            tag: Tag of the frame (TPM_ST), for a command with or without authorizations.
            code: Command code.
            body: What follows the header.

        Raises:
            BackendError: If the command fails.
        """
        size = 10 + len(body)
        frame = tag.to_bytes(2, "big") + size.to_bytes(4, "big") + code.to_bytes(4, "big") + body
        response = self._execute(frame)
        for _ in range(_MOST_RETRIES):
            if _u32(response, 6) not in BUSY:
                break
            self._sleep(0.01)
            response = self._execute(frame)
        if failure := _u32(response, 6):
            message = f"swtpm: command 0x{code:03x} failed with response code 0x{failure:03x}"
            raise BackendError(message, reason="tpm_error")
        return response

    def _execute(self, frame: bytes) -> bytes:
        with self._lock:
            return self._tpm.execute(frame)

    def _is_for_model(self, code: int, command: bytes) -> bool:
        if code in self.hooks.vendor_commands:
            return True
        if code == commands.NV_DEFINE_SPACE:
            index, size = _find_definition(command)
            return size > _SWTPM_LARGEST or self._model.owns(index)
        if code == commands.CREATE_PRIMARY and self.hooks.vendor_commands:
            return _is_storage_key(command)
        at = _DECIDING.get(code)
        return at is not None and self._model.owns(_u32(command, at))

    def _merge(self, command: bytes) -> bytes:
        """Return swtpm's response to GetCapability, with the model's handles and commands."""
        response = self._tpm.execute(command)
        what, first, count = (_u32(command, at) for at in (10, 14, 18))
        if any(response[6:10]) or what not in (1, 2):
            return response
        ours = self._model.execute(command)
        mask = (
            commands.CODE_MASK if what == commands.CAP_COMMANDS else 0xFFFFFFFF
        )  # commands are sorted by their codes
        vendor = self.hooks.vendor_commands
        found = {word & mask: word for word in _words(response)}
        more = bool(response[10])
        last = max(found, default=0) if more else 0xFFFFFFFF
        for word in _words(ours):
            if what == 1 and first >> 24 in (0x01, 0x02, 0x03, 0x80, 0x81):
                found.setdefault(word, word)
            elif what == 2 and word & mask in vendor:
                found[word & mask] = word
        wanted = [found[key] for key in sorted(found) if key <= last]
        more = more or len(wanted) < len(found) or len(wanted) > count
        wanted = wanted[:count]
        body = b"".join(word.to_bytes(4, "big") for word in (what, len(wanted), *wanted))
        size = 11 + len(body)
        return response[:2] + size.to_bytes(4, "big") + bytes(4) + bytes([more]) + body


def _u32(data: bytes, at: int) -> int:
    """Return the 32-bit integer at the offset `at`, big-endian; 0 if the data end before."""
    return int.from_bytes(data[at : at + 4], "big") if len(data) >= at + 4 else 0


def _words(response: bytes) -> list[int]:
    """Return the 32-bit numbers in the list of a response to GetCapability."""
    return [_u32(response, at) for at in range(19, len(response), 4)]


def _parameters(command: bytes, handles: int) -> int:
    """Return the offset of a command's parameters, after `handles` handles and authorizations."""
    at = 10 + 4 * handles
    return at + 4 + _u32(command, at)


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the content of the TPM2B at the offset `at` of `data`, and the offset of its end.

    If the data end before, the content is truncated.
    """
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    return data[at + 2 : end], end


def _find_definition(command: bytes) -> tuple[int, int]:
    """Return handle and size in bytes of the index that an NV_DefineSpace command defines.

    If the command is malformed, they are zeros.
    """
    _, end = _sized(command, _parameters(command, 1))
    public, _ = _sized(command, end)
    return (_u32(public, 0), int.from_bytes(public[-2:], "big")) if len(public) >= 14 else (0, 0)


def _is_storage_key(command: bytes) -> bool:
    """Return whether a CreatePrimary command makes a storage key of the endorsement hierarchy."""
    _, end = _sized(command, _parameters(command, 1))
    template, _ = _sized(command, end)
    storage = RESTRICTED | DECRYPT
    return _u32(command, 10) == ENDORSEMENT and _u32(template, 4) & storage == storage
