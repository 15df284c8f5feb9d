"""Table of the commands of a simulated TPM, with the types of their handles."""

from functools import partial
from typing import Final

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks
from attestkit.backends.simulator.software_tpm.model.command_call import CommandDefinition
from attestkit.backends.simulator.software_tpm.model.commands import key_commands as keys
from attestkit.backends.simulator.software_tpm.model.commands import tpm_commands as nv
from attestkit.backends.simulator.software_tpm.model.tpm_state import READ, READ_AND_WRITE, WRITE
from attestkit.tpm import command_codes as commands
from attestkit.tpm import handles
from attestkit.tpm.pcrs import PCR_COUNT

_CONTEXT_TYPES: Final = (0x02, 0x03, 0x80)  # HMAC and policy sessions, transient keys


_is_pcr: Final = frozenset({*range(PCR_COUNT), handles.NULL}).__contains__
_is_hierarchy: Final = frozenset(handles.HIERARCHIES).__contains__
_is_provision: Final = frozenset({handles.OWNER, handles.PLATFORM}).__contains__
_is_index: Final = range(handles.FIRST_NV_INDEX, handles.LAST_NV_INDEX + 1).__contains__
_is_object: Final = range(handles.FIRST_TRANSIENT, handles.LAST_PERSISTENT + 1).__contains__


def _is_nv_auth(handle: int) -> bool:
    return _is_provision(handle) or _is_index(handle)


def _is_object_or_null(handle: int) -> bool:
    return _is_object(handle) or handle == handles.NULL


def _is_context(handle: int) -> bool:
    return handle >> 24 in _CONTEXT_TYPES


def _is_entity(handle: int) -> bool:
    return _is_object(handle) or _is_index(handle) or _is_pcr(handle) or _is_hierarchy(handle)


# Codes: TPM 2.0 Library, Part 2, section 6.5.2. GetCapability is not here: it lists them.
_COMMANDS: Final = (
    CommandDefinition(
        commands.EVICT_CONTROL,
        keys.run_evict_control,
        (_is_provision, _is_object),
        1,
        changes_nv=True,
    ),
    CommandDefinition(
        commands.NV_UNDEFINE_SPACE,
        nv.run_nv_undefine_space,
        (_is_provision, _is_index),
        1,
        changes_nv=True,
    ),
    CommandDefinition(
        commands.NV_DEFINE_SPACE, nv.run_nv_define_space, (_is_provision,), 1, changes_nv=True
    ),
    CommandDefinition(
        commands.CREATE_PRIMARY, keys.run_create_primary, (_is_hierarchy,), 1, returns_handle=True
    ),
    CommandDefinition(
        commands.NV_WRITE, nv.run_nv_write, (_is_nv_auth, _is_index), 1, WRITE, changes_nv=True
    ),
    CommandDefinition(commands.PCR_RESET, nv.run_pcr_reset, (_is_pcr,), 1, changes_nv=True),
    CommandDefinition(commands.SELF_TEST, nv.run_self_test, changes_nv=True),
    CommandDefinition(commands.STARTUP, nv.run_startup, changes_nv=True, takes_session=False),
    CommandDefinition(commands.SHUTDOWN, nv.run_shutdown, changes_nv=True),
    CommandDefinition(commands.NV_READ, nv.run_nv_read, (_is_nv_auth, _is_index), 1, READ),
    CommandDefinition(commands.QUOTE, keys.run_quote, (_is_object_or_null,), 1),
    CommandDefinition(
        commands.CONTEXT_LOAD, keys.run_context_load, returns_handle=True, takes_session=False
    ),
    CommandDefinition(
        commands.CONTEXT_SAVE, keys.run_context_save, (_is_context,), takes_session=False
    ),
    CommandDefinition(commands.FLUSH_CONTEXT, keys.run_flush_context, takes_session=False),
    CommandDefinition(commands.NV_READ_PUBLIC, nv.run_nv_read_public, (_is_index,)),
    CommandDefinition(commands.READ_PUBLIC, keys.run_read_public, (_is_object,)),
    CommandDefinition(
        commands.START_AUTH_SESSION,
        keys.run_start_auth_session,
        (_is_object_or_null, _is_entity),
        returns_handle=True,
    ),
    CommandDefinition(commands.GET_RANDOM, nv.run_get_random),
    CommandDefinition(commands.PCR_READ, nv.run_pcr_read),
    CommandDefinition(commands.READ_CLOCK, nv.run_read_clock),
    CommandDefinition(commands.PCR_EXTEND, nv.run_pcr_extend, (_is_pcr,), 1, changes_nv=True),
)


def build_command_table(hooks: TpmHooks) -> dict[int, CommandDefinition]:
    """Return all commands but GetCapability by code, with a platform's vendor commands."""
    table = {command.code: command for command in _COMMANDS}
    for code in hooks.vendor_commands:
        run = partial(nv.run_vendor, code=code)
        table[code] = CommandDefinition(
            code, run, (_is_nv_auth, _is_index), 1, READ_AND_WRITE, changes_nv=True
        )
    return table
