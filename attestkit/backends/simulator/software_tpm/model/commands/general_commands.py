"""Commands about the TPM as a whole, and about PCRs."""

from typing import Final

from attestkit.backends.simulator.software_tpm.model.command_call import CommandCall, CommandReply
from attestkit.backends.simulator.software_tpm.model.command_reader import (
    TpmResponseError,
    encode_pcr_selections,
    sized,
    u32,
    u64,
)
from attestkit.backends.simulator.software_tpm.model.pcr_banks import (
    APPLICATION_PCR,
    DEBUG_PCR,
    DYNAMIC_PCRS,
    MAX_DIGESTS,
)
from attestkit.backends.simulator.software_tpm.model.tpm_state import TpmState
from attestkit.tpm.handles import NULL
from attestkit.tpm.response_codes import RC_LOCALITY, RC_VALUE

_CLEAR: Final = 0
_STATE: Final = 1
_LARGEST_RANDOM: Final = 64


def run_startup(call: CommandCall) -> CommandReply:
    """TPM2_Startup; resuming (1) is not possible, because no state is saved."""
    kind = call.reader.next().u16()
    if kind != _CLEAR:
        raise call.reader.error(RC_VALUE)
    call.reader.finish()
    call.state.started = True
    return CommandReply()


def run_shutdown(call: CommandCall) -> CommandReply:
    """TPM2_Shutdown: nothing to save."""
    if call.reader.next().u16() not in (_CLEAR, _STATE):
        raise call.reader.error(RC_VALUE)
    call.reader.finish()
    return CommandReply()


def run_self_test(call: CommandCall) -> CommandReply:
    """TPM2_SelfTest: always successful."""
    if call.reader.next().u8() > 1:
        raise call.reader.error(RC_VALUE)
    call.reader.finish()
    return CommandReply()


def run_get_random(call: CommandCall) -> CommandReply:
    """TPM2_GetRandom."""
    count = call.reader.next().u16()
    call.reader.finish()
    return CommandReply(sized(call.state.random(min(count, _LARGEST_RANDOM))))


def encode_clock(state: TpmState) -> bytes:
    """Return TPMS_CLOCK_INFO: it is safe, as nothing sets the clock back."""
    return u64(state.clock_ms) + u32(state.reset_count) + u32(state.restart_count) + b"\1"


def run_read_clock(call: CommandCall) -> CommandReply:
    """TPM2_ReadClock."""
    call.reader.finish()
    return CommandReply(u64(call.state.clock_ms) + encode_clock(call.state))


def run_pcr_read(call: CommandCall) -> CommandReply:
    """TPM2_PCR_Read: at most eight values."""
    selections = call.reader.next().selections()
    call.reader.finish()
    pcrs = call.state.pcrs
    found, values = pcrs.read(selections, MAX_DIGESTS)
    digests = u32(len(values)) + b"".join(map(sized, values))
    return CommandReply(u32(pcrs.updates) + encode_pcr_selections(found) + digests)


def run_pcr_extend(call: CommandCall) -> CommandReply:
    """TPM2_PCR_Extend, at locality 0."""
    digests = call.reader.next().tagged_digests()
    call.reader.finish()
    pcr = call.entities[0].handle
    if pcr in DYNAMIC_PCRS:
        raise TpmResponseError(RC_LOCALITY)
    if pcr != NULL:
        for bank, digest in digests:
            call.state.pcrs.extend(pcr, bank, digest)
    return CommandReply()


def run_pcr_reset(call: CommandCall) -> CommandReply:
    """TPM2_PCR_Reset, at locality 0."""
    call.reader.finish()
    pcr = call.entities[0].handle
    if pcr not in (DEBUG_PCR, APPLICATION_PCR):
        raise TpmResponseError(RC_LOCALITY)
    call.state.pcrs.reset(pcr)
    return CommandReply()
