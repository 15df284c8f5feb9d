"""Commands about the TPM as a whole, PCRs, NV indices (Part 3, section 31), and vendor commands.

Parts are those of the TPM 2.0 Library. Each function runs one command; it raises TpmResponseError
with the response code of a failure.
"""

from functools import partial
from typing import Final

from attestkit.backends.simulator.software_tpm.model import tpm_state
from attestkit.backends.simulator.software_tpm.model.command_call import CommandCall, CommandReply
from attestkit.backends.simulator.software_tpm.model.command_reader import (
    MAX_NV_BUFFER,
    TpmResponseError,
    encode_pcr_selections,
    handle_error,
    parameter_error,
    u32,
    u64,
)
from attestkit.tpm import nv_attributes as nv
from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import LARGEST_DIGEST, hash_size
from attestkit.tpm.handles import NULL, OWNER, PLATFORM
from attestkit.tpm.reader import encode_sized

_CLEAR: Final = 0
_STATE: Final = 1
_LARGEST_RANDOM: Final = 64


def run_startup(call: CommandCall) -> CommandReply:
    """Run TPM2_Startup; resuming (1) is not possible, because no state is saved."""
    kind = call.reader.next().u16()
    if kind != _CLEAR:
        raise call.reader.error(codes.RC_VALUE)
    call.reader.finish()
    call.state.started = True
    return CommandReply()


def run_shutdown(call: CommandCall) -> CommandReply:
    """Run TPM2_Shutdown: check the parameter; nothing is saved."""
    if call.reader.next().u16() not in (_CLEAR, _STATE):
        raise call.reader.error(codes.RC_VALUE)
    call.reader.finish()
    return CommandReply()


def run_self_test(call: CommandCall) -> CommandReply:
    """Run TPM2_SelfTest: always successful."""
    if call.reader.next().u8() > 1:
        raise call.reader.error(codes.RC_VALUE)
    call.reader.finish()
    return CommandReply()


def run_get_random(call: CommandCall) -> CommandReply:
    """Run TPM2_GetRandom: at most 64 bytes."""
    count = call.reader.next().u16()
    call.reader.finish()
    return CommandReply(encode_sized(call.state.random(min(count, _LARGEST_RANDOM))))


def encode_clock(state: tpm_state.TpmState) -> bytes:
    """Return TPMS_CLOCK_INFO, 17 bytes, with `safe` set, as nothing sets the clock back."""
    return u64(state.clock_ms) + u32(state.reset_count) + u32(state.restart_count) + b"\1"


def run_read_clock(call: CommandCall) -> CommandReply:
    """Run TPM2_ReadClock."""
    call.reader.finish()
    return CommandReply(u64(call.state.clock_ms) + encode_clock(call.state))


def run_pcr_read(call: CommandCall) -> CommandReply:
    """Run TPM2_PCR_Read: at most eight values."""
    selections = call.reader.next().selections()
    call.reader.finish()
    pcrs = call.state.pcrs
    found, values = pcrs.read(selections, tpm_state.MAX_DIGESTS)
    digests = u32(len(values)) + b"".join(map(encode_sized, values))
    return CommandReply(u32(pcrs.updates) + encode_pcr_selections(found) + digests)


def run_pcr_extend(call: CommandCall) -> CommandReply:
    """Run TPM2_PCR_Extend, at locality 0: PCR 17 to 22 are refused, the null handle is ignored."""
    digests = call.reader.next().tagged_digests()
    call.reader.finish()
    pcr = call.entities[0].handle
    if pcr in tpm_state.DYNAMIC_PCRS:
        raise TpmResponseError(codes.RC_LOCALITY)
    if pcr != NULL:
        for bank, digest in digests:
            call.state.pcrs.extend(pcr, bank, digest)
    return CommandReply()


def run_pcr_reset(call: CommandCall) -> CommandReply:
    """Run TPM2_PCR_Reset, at locality 0: PCR 16 or 23 is set to zeros, others are refused."""
    call.reader.finish()
    pcr = call.entities[0].handle
    if pcr not in (tpm_state.DEBUG_PCR, tpm_state.APPLICATION_PCR):
        raise TpmResponseError(codes.RC_LOCALITY)
    call.state.pcrs.reset(pcr)
    return CommandReply()


_READERS: Final = nv.PP_READ | nv.OWNER_READ | nv.AUTH_READ | nv.POLICY_READ
_WRITERS: Final = nv.PP_WRITE | nv.OWNER_WRITE | nv.AUTH_WRITE | nv.POLICY_WRITE
_SET_BY_THE_TPM: Final = nv.WRITTEN | nv.WRITE_LOCKED | nv.READ_LOCKED


def run_nv_define_space(call: CommandCall) -> CommandReply:
    """Run TPM2_NV_DefineSpace of an ordinary index: counters, bit fields and others are refused."""
    reader = call.reader
    auth = reader.next().sized(LARGEST_DIGEST).rstrip(b"\0")
    index = reader.next().sized_structure(
        partial(tpm_state.read_nv_public, largest=call.state.nv.largest)
    )
    reader.finish()
    size = hash_size(index.name_alg)
    if len(auth) > size:
        raise parameter_error(codes.RC_SIZE, 1)
    if len(index.policy) not in (0, size):
        raise parameter_error(codes.RC_SIZE, 2)
    attributes = index.attributes
    if (
        attributes & (nv.TYPE | _SET_BY_THE_TPM | nv.POLICY_DELETE)
        or not attributes & _READERS
        or not attributes & _WRITERS
    ):
        raise parameter_error(codes.RC_ATTRIBUTES, 2)
    if bool(attributes & nv.PLATFORM_CREATE) != (call.entities[0].handle == PLATFORM):
        raise handle_error(codes.RC_ATTRIBUTES, 1)
    index.auth = auth
    call.state.nv.define(index)
    return CommandReply()


def run_nv_undefine_space(call: CommandCall) -> CommandReply:
    """Run TPM2_NV_UndefineSpace."""
    call.reader.finish()
    index = _index_of(call.entities[1])
    if index.attributes & nv.PLATFORM_CREATE and call.entities[0].handle != PLATFORM:
        raise TpmResponseError(codes.RC_NV_AUTHORIZATION)
    del call.state.nv.indices[index.index]
    return CommandReply()


def run_nv_read_public(call: CommandCall) -> CommandReply:
    """Run TPM2_NV_ReadPublic."""
    call.reader.finish()
    index = _index_of(call.entities[0])
    return CommandReply(encode_sized(index.public) + encode_sized(index.name))


def run_nv_read(call: CommandCall) -> CommandReply:
    """Run TPM2_NV_Read; at offset 0 the content of a virtual index is refreshed first."""
    size, offset = call.reader.next().u16(), call.reader.next().u16()
    call.reader.finish()
    index = _index_of(call.entities[1])
    _check_way(call, index, nv.OWNER_READ, nv.PP_READ)
    call.hooks.refresh(index.index, offset, index.content)
    if not index.attributes & nv.WRITTEN:
        raise TpmResponseError(codes.RC_NV_UNINITIALIZED)
    if size > MAX_NV_BUFFER:
        raise parameter_error(codes.RC_VALUE, 1)
    if offset > len(index.content):
        raise parameter_error(codes.RC_VALUE, 2)
    if offset + size > len(index.content):
        raise TpmResponseError(codes.RC_NV_RANGE)
    return CommandReply(encode_sized(bytes(index.content[offset : offset + size])))


def run_nv_write(call: CommandCall) -> CommandReply:
    """Run TPM2_NV_Write."""
    data, offset = call.reader.next().sized(MAX_NV_BUFFER), call.reader.next().u16()
    call.reader.finish()
    index = _index_of(call.entities[1])
    _check_way(call, index, nv.OWNER_WRITE, nv.PP_WRITE)
    if offset > len(index.content):
        raise parameter_error(codes.RC_VALUE, 2)
    if offset + len(data) > len(index.content):
        raise TpmResponseError(codes.RC_NV_RANGE)
    if index.attributes & nv.WRITE_ALL and len(data) < len(index.content):
        raise TpmResponseError(codes.RC_NV_RANGE)
    index.write(offset, data)
    return CommandReply()


def run_vendor(call: CommandCall, code: int) -> CommandReply:
    """Run the vendor command `code`, whose request and answer are the content of an NV index.

    Bytes after the answer remain, as after any write.
    """
    call.reader.finish()
    index = _index_of(call.entities[1])
    if call.entities[0].handle != index.index:
        raise TpmResponseError(codes.RC_NV_AUTHORIZATION)
    if not index.attributes & nv.WRITTEN:
        raise TpmResponseError(codes.RC_NV_UNINITIALIZED)
    answer = call.hooks.vendor_commands[code](bytes(index.content))
    if len(answer) > len(index.content):
        raise TpmResponseError(codes.RC_NV_RANGE)
    index.write(0, answer)
    return CommandReply()


def _check_way(call: CommandCall, index: tpm_state.NvIndex, owner: int, platform: int) -> None:
    """Check that the authorizing handle may use the index (Part 4, NvReadAccessChecks).

    `owner` and `platform` are the attributes (TPMA_NV) that permit it to these hierarchies.
    """
    handle = call.entities[0].handle
    if handle == OWNER:
        allowed = bool(index.attributes & owner)
    elif handle == PLATFORM:
        allowed = bool(index.attributes & platform)
    else:
        allowed = handle == index.index  # its attributes were checked with its password
    if not allowed:
        raise TpmResponseError(codes.RC_NV_AUTHORIZATION)


def _index_of(entity: tpm_state.Entity) -> tpm_state.NvIndex:
    assert entity.nv_index is not None  # the command's table says that it is an NV index
    return entity.nv_index
