"""A TPM whose answers are malformed, of something else, or endless is an error of the platform."""

from collections.abc import Callable

import pytest

from attestkit.backends.tpm.client import FAMILY, TpmClient
from attestkit.backends.tpm.frames import TpmResponse
from attestkit.backends.tpm.nv_commands import NvPublic
from attestkit.errors import BackendError
from attestkit.tpm import PcrSelection
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.reader import encode_sized
from tests.backends.tpm.tpm_peer import AnsweringTpm
from tests.raising import raises
from tests.runner.cases import every_case
from tests.tpm.samples import MADE_PUBLICS

INDEX = 0x01500000
PCR_0 = (PcrSelection("sha256", (0,)),)
NAME = b"\0\x0b" + bytes(32)
AREA = NvPublic(INDEX, "sha256", 0x00020002, b"", 4).encode()
KEY = MADE_PUBLICS[1].encode()
FLUSHED = TpmResponse(0).encode()


def answer(parameters: bytes, handle: int | None = None) -> bytes:
    """Return the frame of a successful response."""
    return TpmResponse(0, handle, parameters).encode()


def pcrs(selected: bytes, *values: bytes, count: int | None = None) -> bytes:
    """Return the parameters of PCR_Read for one bank of SHA-256."""
    number = len(values) if count is None else count
    head = bytes(4) + b"\0\0\0\1\0\x0b\3" + selected + number.to_bytes(4, "big")
    return head + b"".join(map(encode_sized, values))


@every_case(
    ("call", "parameters"),
    [
        (lambda tpm: tpm.list_handles(0, 9), b"\0\0\0\0\2\0\0\0\0"),  # another capability
        (lambda tpm: tpm.list_handles(0, 9), b"\0\0\0\0\1\0\0\0\1"),
        (lambda tpm: tpm.list_handles(0, 9), b"\0\0\0\0\1\xff\xff\xff\xff"),
        (lambda tpm: tpm.list_handles(0, 9), b"\0\0\0\0\1\0\0\0\0rest"),
        (lambda tpm: tpm.read_property(FAMILY), b"\0\0\0\0\6\0\0\0\1\0\0\1\0"),
        (lambda tpm: tpm.pcr_read(PCR_0), b""),
        (lambda tpm: tpm.pcr_read(PCR_0), pcrs(b"\2\0\0", bytes(32))),  # PCR 1
        (lambda tpm: tpm.pcr_read(PCR_0), pcrs(b"\1\0\0")),
        (lambda tpm: tpm.pcr_read(PCR_0), pcrs(b"\1\0\0", bytes(32), bytes(32))),
        (lambda tpm: tpm.pcr_read(PCR_0), pcrs(b"\1\0\0", bytes(20))),
        (lambda tpm: tpm.pcr_read(PCR_0), pcrs(b"\1\0\0", bytes(32)) + b"rest"),
        (lambda tpm: tpm.pcr_read(PCR_0), pcrs(b"\1\0\0", count=0xFFFFFFFF)),
        (lambda tpm: tpm.nv_read_public(INDEX + 1), encode_sized(AREA) + encode_sized(NAME)),
        (lambda tpm: tpm.nv_read_public(INDEX), encode_sized(AREA)),
        (lambda tpm: tpm.nv_read_public(INDEX), encode_sized(AREA) + encode_sized(bytes(67))),
        (lambda tpm: tpm.nv_read(INDEX, 4), encode_sized(b"123")),
        (lambda tpm: tpm.nv_read(INDEX, 4), encode_sized(b"12345")),
        (lambda tpm: tpm.nv_read(INDEX, 4), encode_sized(b"1234") + b"rest"),
        (lambda tpm: tpm.read_public(1), encode_sized(KEY)),
        (lambda tpm: tpm.read_public(1), encode_sized(KEY[:-1]) + 2 * encode_sized(NAME)),
        (lambda tpm: tpm.quote(1, b"", PCR_0), b"\xff\xff"),
    ],
)
def test_malformed_answer_is_refused(
    call: Callable[[TpmClient], object], parameters: bytes
) -> None:
    """Each answer has what was asked for, and nothing else."""
    with (
        AnsweringTpm([answer(parameters)]) as peer,
        raises(BackendError, "malformed_response", path="peer"),
    ):
        call(TpmClient(peer.transport))


def test_response_with_unknown_tag_is_refused() -> None:
    """A malformed response is an error."""
    frame = b"\x80\3\0\0\0\x0a\0\0\0\0"
    with AnsweringTpm([frame]) as peer, raises(BackendError, "malformed_response"):
        TpmClient(peer.transport).startup()


@pytest.mark.parametrize(
    ("call", "kind", "item"),
    [
        (lambda tpm: tpm.list_handles(0, 0xFFFFFFFF), b"\1", b"\x81\0\0\3"),
        (TpmClient.list_commands, b"\2", b"\0\0\1\x58"),
    ],
)
def test_endless_list_is_refused(
    call: Callable[[TpmClient], object], kind: bytes, item: bytes
) -> None:
    """A TPM that always has more items is asked 64 times."""
    page = answer(b"\1\0\0\0" + kind + b"\0\0\0\1" + item)
    with (
        AnsweringTpm([page] * 65) as peer,
        raises(BackendError, "malformed_response", part="more than 64 answers"),
    ):
        call(TpmClient(peer.transport))
    assert len(peer.commands) == 64


def test_pcrs_that_never_come_end_the_reading() -> None:
    """If an answer has no values, the rest is missing, and the TPM is not asked again."""
    with AnsweringTpm([answer(pcrs(b"\0\0\0"))]) as peer:
        assert TpmClient(peer.transport).pcr_read(PCR_0) == {}
    assert len(peer.commands) == 1


def test_key_that_cannot_be_read_is_flushed() -> None:
    """A malformed public area is an error, and the key's slot is free again."""
    handle = 0x80000002
    frames = [answer(encode_sized(KEY[:-1]), handle), FLUSHED]
    with AnsweringTpm(frames) as peer, raises(BackendError, "malformed_response"):
        TpmClient(peer.transport).create_primary(ENDORSEMENT, b"template")
    assert peer.commands[1][6:] == b"\0\0\1\x65" + handle.to_bytes(4, "big")


def test_failed_block_sends_one_flush() -> None:
    """The key of a block that fails is flushed once, and the block's error is raised."""
    frames = [answer(encode_sized(KEY), 0x80000000), FLUSHED]
    with AnsweringTpm(frames) as peer:
        tpm = TpmClient(peer.transport)
        with pytest.raises(ZeroDivisionError), tpm.primary_key(ENDORSEMENT, b"template"):
            _ = 1 / 0
    assert [command[6:10] for command in peer.commands] == [b"\0\0\1\x31", b"\0\0\1\x65"]
