"""Arguments and results of the implementation of a command."""

from collections.abc import Callable
from typing import NamedTuple

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks
from attestkit.backends.simulator.software_tpm.model.command_reader import CommandReader
from attestkit.backends.simulator.software_tpm.model.tpm_state import READ, Entity, TpmState
from attestkit.tpm.command_codes import VENDOR


class CommandCall(NamedTuple):
    """A command to run, whose handles and authorizations were checked.

    `state` is that of the TPM, `entities` are the objects that the command's handles name.
    """

    state: TpmState
    entities: tuple[Entity, ...]
    reader: CommandReader  # at the first parameter
    hooks: TpmHooks


class CommandReply(NamedTuple):
    """Result of a command that succeeded: encoded parameters, and the new handle, if any.

    Failures are TpmResponseErrors.
    """

    parameters: bytes = b""
    handle: int | None = None


class CommandDefinition(NamedTuple):
    """A command that the simulated TPM implements: code, function that runs it, and handles.

    `changes_nv` and `returns_handle` are for its attributes (TPMA_CC).
    """

    code: int
    run: Callable[[CommandCall], CommandReply]
    handles: tuple[Callable[[int], bool], ...] = ()  # whether a value is of the handle's type
    authorized: int = 0  # number of handles, from the first, that need an authorization
    role: int = READ  # use for which a password must be valid
    changes_nv: bool = False
    returns_handle: bool = False
    takes_session: bool = True  # whether it may have an authorization area

    @property
    def attributes(self) -> int:
        """Attributes of the command, as TPMA_CC (TPM 2.0 Library, Part 2, section 8.9)."""
        vendor = self.code & VENDOR
        handles = len(self.handles) << 25 | self.returns_handle << 28
        return vendor | handles | self.changes_nv << 22 | self.code & 0xFFFF
