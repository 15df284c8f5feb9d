"""Table of the commands of a simulated TPM, with the types of their handles."""

from functools import partial
from typing import Final

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks
from attestkit.backends.simulator.software_tpm.model.command_call import CommandDefinition
from attestkit.backends.simulator.software_tpm.model.command_reader import PCR_COUNT
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
from attestkit.backends.simulator.software_tpm.model.key_objects import (
    FIRST_TRANSIENT,
    HIERARCHIES,
    LAST_PERSISTENT,
    NULL,
    OWNER,
    PLATFORM,
)
from attestkit.backends.simulator.software_tpm.model.nv_storage import FIRST_INDEX, LAST_INDEX
from attestkit.backends.simulator.software_tpm.model.tpm_state import READ, READ_AND_WRITE, WRITE

STARTUP: Final = 0x144
GET_CAPABILITY: Final = 0x17A
_CONTEXT_TYPES: Final = (0x02, 0x03, 0x80)  # HMAC and policy sessions, transient keys


def _is_pcr(handle: int) -> bool:
    return handle < PCR_COUNT or handle == NULL


def _is_hierarchy(handle: int) -> bool:
    return handle in HIERARCHIES


def _is_provision(handle: int) -> bool:
    return handle in (OWNER, PLATFORM)


def _is_index(handle: int) -> bool:
    return FIRST_INDEX <= handle <= LAST_INDEX


def _is_nv_auth(handle: int) -> bool:
    return _is_provision(handle) or _is_index(handle)


def _is_object(handle: int) -> bool:
    return FIRST_TRANSIENT <= handle <= LAST_PERSISTENT


def _is_object_or_null(handle: int) -> bool:
    return _is_object(handle) or handle == NULL


def _is_context(handle: int) -> bool:
    return handle >> 24 in _CONTEXT_TYPES


def _is_entity(handle: int) -> bool:
    return _is_object(handle) or _is_index(handle) or _is_pcr(handle) or _is_hierarchy(handle)


# Codes: TPM 2.0 Library, Part 2, section 6.5.2. GetCapability is not here: it lists them.
_COMMANDS: Final = (
    CommandDefinition(0x120, run_evict_control, (_is_provision, _is_object), 1, changes_nv=True),
    CommandDefinition(0x122, run_nv_undefine_space, (_is_provision, _is_index), 1, changes_nv=True),
    CommandDefinition(0x12A, run_nv_define_space, (_is_provision,), 1, changes_nv=True),
    CommandDefinition(0x131, run_create_primary, (_is_hierarchy,), 1, returns_handle=True),
    CommandDefinition(0x137, run_nv_write, (_is_nv_auth, _is_index), 1, WRITE, changes_nv=True),
    CommandDefinition(0x13D, run_pcr_reset, (_is_pcr,), 1, changes_nv=True),
    CommandDefinition(0x143, run_self_test, changes_nv=True),
    CommandDefinition(STARTUP, run_startup, changes_nv=True, takes_session=False),
    CommandDefinition(0x145, run_shutdown, changes_nv=True),
    CommandDefinition(0x14E, run_nv_read, (_is_nv_auth, _is_index), 1, READ),
    CommandDefinition(0x158, run_quote, (_is_object_or_null,), 1),
    CommandDefinition(0x161, run_context_load, returns_handle=True, takes_session=False),
    CommandDefinition(0x162, run_context_save, (_is_context,), takes_session=False),
    CommandDefinition(0x165, run_flush_context, takes_session=False),
    CommandDefinition(0x169, run_nv_read_public, (_is_index,)),
    CommandDefinition(0x173, run_read_public, (_is_object,)),
    CommandDefinition(
        0x176, run_start_auth_session, (_is_object_or_null, _is_entity), returns_handle=True
    ),
    CommandDefinition(0x17B, run_get_random),
    CommandDefinition(0x17E, run_pcr_read),
    CommandDefinition(0x181, run_read_clock),
    CommandDefinition(0x182, run_pcr_extend, (_is_pcr,), 1, changes_nv=True),
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
