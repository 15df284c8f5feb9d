"""Table of the commands of a simulated TPM, with the types of their handles."""

from functools import partial
from typing import Final

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks
from attestkit.backends.simulator.software_tpm.model.command_call import CommandDefinition
from attestkit.backends.simulator.software_tpm.model.commands.general_commands import (
    run_get_random,
    run_pcr_extend,
    run_pcr_read,
    run_pcr_reset,
    run_read_clock,
    run_self_test,
    run_shutdown,
    run_startup,
)
from attestkit.backends.simulator.software_tpm.model.commands.key_commands import (
    run_create_primary,
    run_evict_control,
    run_quote,
    run_read_public,
)
from attestkit.backends.simulator.software_tpm.model.commands.nv_commands import (
    run_nv_define_space,
    run_nv_read,
    run_nv_read_public,
    run_nv_undefine_space,
    run_nv_write,
    run_vendor,
)
from attestkit.backends.simulator.software_tpm.model.commands.session_commands import (
    run_context_load,
    run_context_save,
    run_flush_context,
    run_start_auth_session,
)
from attestkit.backends.simulator.software_tpm.model.tpm_state import READ, READ_AND_WRITE, WRITE
from attestkit.tpm import command_codes as commands
from attestkit.tpm import handles
from attestkit.tpm.pcrs import PCR_COUNT

_CONTEXT_TYPES: Final = (0x02, 0x03, 0x80)  # HMAC and policy sessions, transient keys


def _is_pcr(handle: int) -> bool:
    return handle < PCR_COUNT or handle == handles.NULL


def _is_hierarchy(handle: int) -> bool:
    return handle in handles.HIERARCHIES


def _is_provision(handle: int) -> bool:
    return handle in (handles.OWNER, handles.PLATFORM)


def _is_index(handle: int) -> bool:
    return handles.FIRST_NV_INDEX <= handle <= handles.LAST_NV_INDEX


def _is_nv_auth(handle: int) -> bool:
    return _is_provision(handle) or _is_index(handle)


def _is_object(handle: int) -> bool:
    return handles.FIRST_TRANSIENT <= handle <= handles.LAST_PERSISTENT


def _is_object_or_null(handle: int) -> bool:
    return _is_object(handle) or handle == handles.NULL


def _is_context(handle: int) -> bool:
    return handle >> 24 in _CONTEXT_TYPES


def _is_entity(handle: int) -> bool:
    return _is_object(handle) or _is_index(handle) or _is_pcr(handle) or _is_hierarchy(handle)


# Codes: TPM 2.0 Library, Part 2, section 6.5.2. GetCapability is not here: it lists them.
_COMMANDS: Final = (
    CommandDefinition(
        commands.EVICT_CONTROL, run_evict_control, (_is_provision, _is_object), 1, changes_nv=True
    ),
    CommandDefinition(
        commands.NV_UNDEFINE_SPACE,
        run_nv_undefine_space,
        (_is_provision, _is_index),
        1,
        changes_nv=True,
    ),
    CommandDefinition(
        commands.NV_DEFINE_SPACE, run_nv_define_space, (_is_provision,), 1, changes_nv=True
    ),
    CommandDefinition(
        commands.CREATE_PRIMARY, run_create_primary, (_is_hierarchy,), 1, returns_handle=True
    ),
    CommandDefinition(
        commands.NV_WRITE, run_nv_write, (_is_nv_auth, _is_index), 1, WRITE, changes_nv=True
    ),
    CommandDefinition(commands.PCR_RESET, run_pcr_reset, (_is_pcr,), 1, changes_nv=True),
    CommandDefinition(commands.SELF_TEST, run_self_test, changes_nv=True),
    CommandDefinition(commands.STARTUP, run_startup, changes_nv=True, takes_session=False),
    CommandDefinition(commands.SHUTDOWN, run_shutdown, changes_nv=True),
    CommandDefinition(commands.NV_READ, run_nv_read, (_is_nv_auth, _is_index), 1, READ),
    CommandDefinition(commands.QUOTE, run_quote, (_is_object_or_null,), 1),
    CommandDefinition(
        commands.CONTEXT_LOAD, run_context_load, returns_handle=True, takes_session=False
    ),
    CommandDefinition(commands.CONTEXT_SAVE, run_context_save, (_is_context,), takes_session=False),
    CommandDefinition(commands.FLUSH_CONTEXT, run_flush_context, takes_session=False),
    CommandDefinition(commands.NV_READ_PUBLIC, run_nv_read_public, (_is_index,)),
    CommandDefinition(commands.READ_PUBLIC, run_read_public, (_is_object,)),
    CommandDefinition(
        commands.START_AUTH_SESSION,
        run_start_auth_session,
        (_is_object_or_null, _is_entity),
        returns_handle=True,
    ),
    CommandDefinition(commands.GET_RANDOM, run_get_random),
    CommandDefinition(commands.PCR_READ, run_pcr_read),
    CommandDefinition(commands.READ_CLOCK, run_read_clock),
    CommandDefinition(commands.PCR_EXTEND, run_pcr_extend, (_is_pcr,), 1, changes_nv=True),
)


def build_command_table(hooks: TpmHooks) -> dict[int, CommandDefinition]:
    """Return the commands by code, with a platform's vendor commands."""
    table = {command.code: command for command in _COMMANDS}
    for code in hooks.vendor_commands:
        run = partial(run_vendor, code=code)
        table[code] = CommandDefinition(
            code, run, (_is_nv_auth, _is_index), 1, READ_AND_WRITE, changes_nv=True
        )
    return table
