"""The resource manager: the rules of /dev/tpmrm0, on both TPMs."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from errno import EBUSY, EINVAL, ENOMEM
from os import strerror
from pathlib import Path

import pytest

from attestkit.backends.simulator.software_tpm import TpmHooks, TpmModel
from attestkit.backends.simulator.software_tpm.resource_manager import ManagedFile, ResourceManager
from attestkit.backends.simulator.software_tpm.swtpm import SwtpmProcess
from attestkit.tpm.command_codes import NITRO_ATTEST
from tests.backends.simulator.software_tpm.command_frames import (
    PERSISTENT,
    code_of,
    create,
    ecc,
    frame,
    handle_of,
    handles,
    new_model,
    quote,
    start_session,
)
from tests.backends.simulator.software_tpm.swtpm_cases import capability, evict
from tests.machines.software_tpm import SWTPM

FIRST = 0x80FFFFFF
AK = ecc(attributes=0x00050472)


@pytest.fixture(params=["model", "swtpm"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResourceManager]:
    """Return a resource manager before the model, and before swtpm."""
    if request.param == "model":
        yield ResourceManager(new_model())
        return
    if SWTPM is None:
        pytest.skip("swtpm is not installed")
    with closing(SwtpmProcess(tmp_path)) as process:
        yield ResourceManager(process)


@contextmanager
def raises_errno(number: int) -> Iterator[None]:
    """Expect an OSError with an errno."""
    with pytest.raises(OSError, match=strerror(number)) as caught:
        yield
    assert caught.value.errno == number


def ask(device: ManagedFile, command: bytes) -> bytes:
    """Return the response to a command, again while the TPM is busy."""
    for _ in range(1000):
        assert device.write(command) == len(command)
        response = device.read(4096)
        if code_of(response) not in {0x922, 0x90A}:
            break
    return response


def listed(device: ManagedFile, first: int) -> list[int]:
    """Return the handles from one on."""
    response = ask(device, capability(1, first))
    return [int.from_bytes(response[at : at + 4], "big") for at in range(19, len(response), 4)]


def test_handles_are_virtual(manager: ResourceManager) -> None:
    """Keys have handles from 80ffffff downwards, for each opener; a freed one is reused."""
    with closing(manager.open()) as device, closing(manager.open()) as other:
        for number in range(3):
            assert handle_of(ask(device, create(AK))) == FIRST - number
        assert handle_of(ask(other, create(AK))) == FIRST
        assert listed(device, 0x80000000) == [FIRST, FIRST - 1, FIRST - 2]
        assert listed(other, 0x80000000) == [FIRST]
        assert code_of(ask(device, frame(0x165, handles(FIRST - 1)))) == 0
        assert listed(device, 0x80000000) == [FIRST, FIRST - 2]
        assert handle_of(ask(device, create(AK))) == FIRST - 1
    assert listed(manager.open(), 0x80000000) == []


def test_fourth_key_finds_no_room(manager: ResourceManager) -> None:
    """An opener has three keys; the TPM has no slot for a fourth."""
    with closing(manager.open()) as device:
        for _ in range(3):
            ask(device, create(AK))
        assert code_of(ask(device, create(AK))) == 0x902
        assert code_of(ask(device, quote(FIRST - 2))) == 0


def test_keys_work_by_their_virtual_handles(manager: ResourceManager) -> None:
    """Quote, ReadPublic and EvictControl take virtual handles; persistent ones are shared."""
    with closing(manager.open()) as device, closing(manager.open()) as other:
        ask(device, create(AK))
        assert code_of(ask(device, quote(FIRST))) == 0
        public = ask(device, frame(0x173, handles(FIRST)))
        assert code_of(ask(device, evict(FIRST))) == 0
        assert ask(other, frame(0x173, handles(PERSISTENT))) == public
        assert listed(other, 0x81000000) == [PERSISTENT]


def test_unknown_virtual_handle_is_an_error_of_the_read(manager: ResourceManager) -> None:
    """The kernel knows no such key: EINVAL; the opener's keys remain, its sessions end."""
    with closing(manager.open()) as device, closing(manager.open()) as other:
        ask(device, create(AK))
        session = handle_of(ask(device, start_session()))
        for handle in (FIRST - 1, FIRST - 5, 0x80000000):
            device.write(quote(handle))
            with raises_errno(EINVAL):
                device.read(4096)
            assert device.read(4096) == b""
        assert code_of(ask(device, quote(FIRST))) == 0
        assert code_of(ask(device, frame(0x165, handles(session)))) == 0x1CB
        other.write(quote(FIRST))
        with raises_errno(EINVAL):
            other.read(4096)


def test_sessions_belong_to_an_opener(manager: ResourceManager) -> None:
    """Each opener has three sessions, which others do not see; closing ends them."""
    devices = [manager.open() for _ in range(3)]
    found = [handle_of(ask(device, start_session())) for device in devices for _ in range(3)]
    assert len(set(found)) == 9
    entry = handles(9, found[0]) + bytes(5)
    command = frame(0x182, handles(8) + entry + handles(0), 0x8002)
    assert code_of(ask(devices[0], command)) == 0
    assert code_of(ask(devices[1], command)) == 0x918
    for device in devices:
        device.close()
    assert listed(manager.open(), 0x02000000) == listed(manager.open(), 0x03000000) == []


def test_fourth_session_is_refused(manager: ResourceManager) -> None:
    """The TPM has no room for a fourth session of an opener; another opener has its own."""
    with closing(manager.open()) as device:
        for _ in range(3):
            ask(device, start_session())
        assert code_of(ask(device, start_session())) == 0x903
        with closing(manager.open()) as other:
            assert code_of(ask(other, start_session())) == 0


def test_ended_session_frees_its_place(manager: ResourceManager) -> None:
    """A session that does not continue is gone."""
    with closing(manager.open()) as device:
        for _ in range(5):
            session = handle_of(ask(device, start_session()))
            entry = handles(9, session) + bytes(5)
            command = frame(0x182, handles(8) + entry + handles(0), 0x8002)
            assert code_of(ask(device, command)) == 0
            assert listed(device, 0x02000000) == []


def test_unknown_commands_do_not_reach_the_tpm() -> None:
    """Only commands that GetCapability lists pass, also a platform's vendor commands."""
    hooks = TpmHooks(vendor_commands={NITRO_ATTEST: bytes})
    reached = []

    class Watched(TpmModel):
        def execute(self, command: bytes) -> bytes:
            reached.append(command[6:10].hex())
            return super().execute(command)

    manager = ResourceManager(Watched(bytes(32), hooks=hooks))
    with closing(manager.open()) as device:
        assert ask(device, frame(0x1FF)).hex() == "80010000000a000b0143"
        assert "000001ff" not in reached
        assert code_of(ask(device, frame(NITRO_ATTEST))) == 0x19A
        hooks.vendor_commands.clear()
        assert code_of(ask(device, frame(NITRO_ATTEST))) == 0x000B0143


def test_device_rules(manager: ResourceManager) -> None:
    """One write, one read; short commands are refused, longer ones cut; reads come in pieces."""
    with closing(manager.open()) as device:
        states = [device.readable]
        assert device.read(10) == b""
        command = frame(0x17B, b"\0\x08")
        for bad in (b"", command[:9], command[:-1], command[:2] + bytes(4) + command[6:]):
            with raises_errno(EINVAL):
                device.write(bad)
        device.write(command + b"rest")
        states.append(device.readable)
        assert states == [False, True]
        with raises_errno(EBUSY):
            device.write(command)
        pieces = [device.read(7) for _ in range(4)]
        assert [len(piece) for piece in pieces] == [7, 7, 6, 0]
        assert code_of(b"".join(pieces)) == 0


def test_closed_file_takes_nothing(manager: ResourceManager) -> None:
    """A closed file refuses writes, and has no pending response."""
    device = manager.open()
    device.write(frame(0x181))
    device.close()
    assert device.read(4096) == b""
    with raises_errno(EINVAL):
        device.write(frame(0x181))


def test_reset_loses_contexts() -> None:
    """After a reset of the TPM the opener's keys are unknown."""
    model = new_model()
    with closing(ResourceManager(model).open()) as device:
        ask(device, create(AK))
        model.power_cycle()
        model.execute(frame(0x144, b"\0\0"))
        device.write(quote(FIRST))
        with raises_errno(EINVAL):
            device.read(4096)


def test_room_of_the_opener_is_limited() -> None:
    """A TPM with more slots than the kernel has virtual handles: ENOMEM, and the key is flushed."""

    class Roomy:
        def __init__(self) -> None:
            self.flushed: list[bytes] = []
            self.created = 0

        def execute(self, command: bytes) -> bytes:
            code = int.from_bytes(command[6:10], "big")
            if code == 0x17A:
                listed = (0x12000131, 0x10000161, 0x02000162, 0x00000165, 0x17A)
                return frame(0, b"\0" + handles(2, len(listed), *listed))
            if code == 0x131:
                self.created += 1
                return frame(0, handles(0x80000000 + self.created))
            if code == 0x165:
                self.flushed.append(command[10:])
            if code == 0x161:
                return frame(0, command[10:14])
            return frame(0, command[10:])

    tpm = Roomy()
    device = ResourceManager(tpm).open()
    for number in range(3):
        assert handle_of(ask(device, create(AK))) == FIRST - number
    device.write(create(AK))
    with raises_errno(ENOMEM):
        device.read(4096)
    assert handles(0x80000004) in tpm.flushed
