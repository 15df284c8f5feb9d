"""The TPM's device nodes of a real kernel: the resource manager, and the raw node."""

import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import pytest

from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.attester import Attester
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tpm import TpmBackend
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.quote_reader import read_tpm_logs
from attestkit.backends.tpm.tpm_device import find_tpm_device, open_tpm
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.event_log import TpmEventLog
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.response_codes import RC_OBJECT_MEMORY, RC_RESMGR_COMMAND_CODE
from tests.backends.tpm.templates import ECC_AK, RSA_AK, SHA256
from tests.raising import raises

RAW: Final = Path("/dev/tpm0")
VENDOR_COMMAND: Final = 0x20000001
PATIENCE: Final = 60.0  # seconds; the processor is emulated
PCR_FILES: Final = Path("/sys/class/tpm/tpm0/pcr-sha256")


@pytest.fixture
def tpm() -> Iterator[TpmClient]:
    """Return a client of the TPM, without time limits for real hardware."""
    with closing(patient(open_tpm())) as client:
        yield client


def patient(client: TpmClient) -> TpmClient:
    """Return a client with the same transport and longer time limits."""
    return TpmClient(client.transport, seconds=PATIENCE, key_seconds=PATIENCE)


def test_resource_manager_is_found() -> None:
    """The kernel has both nodes, and says that it is a TPM 2.0."""
    assert find_tpm_device() == KernelPaths().tpm_nodes[0] == Path("/dev/tpmrm0")
    assert RAW.is_char_device()
    assert Path("/sys/class/tpm/tpm0/tpm_version_major").read_text() == "2\n"


def test_pcrs_are_those_of_the_kernel(tpm: TpmClient) -> None:
    """PCR_Read returns what the kernel shows in its files."""
    values = tpm.pcr_read(SHA256)
    assert len(values) == 24
    for (_, pcr), value in values.items():
        assert (PCR_FILES / str(pcr)).read_text().strip() == value.hex().upper()


def test_attester_attests_through_the_resource_manager() -> None:
    """Evidence has the quote over all PCRs, and the logs of firmware and kernel."""
    with Attester(TpmBackend(client=patient(open_tpm()))) as tee:
        platform = tee.attest(nonce=b"12345678").evidence.platform
    assert isinstance(platform, Tpm)
    part = platform.vtpm_quote
    assert TpmsAttest.parse(part.message).selections == SHA256
    assert TpmtPublic.parse(part.ak_public).scheme == "rsassa"
    logs = read_tpm_logs()
    assert (part.boot_log, part.ima_log) == logs
    assert logs.boot_log
    assert TpmEventLog.parse(logs.boot_log).events
    TpmBackend.probe()


def test_resource_manager_has_slots_for_each_descriptor(tpm: TpmClient) -> None:
    """Each descriptor has three slots, with virtual handles from 80ffffff down, until it closes."""
    handles = [0x80FFFFFF, 0x80FFFFFE, 0x80FFFFFD]
    with closing(patient(open_tpm())) as other:
        for client in (tpm, other):
            keys = [client.create_primary(ENDORSEMENT, ECC_AK) for _ in range(3)]
            assert [key.handle for key in keys] == handles
            assert len({key.raw for key in keys}) == 1
            with raises(TpmError, "tpm_error") as caught:
                client.create_primary(ENDORSEMENT, ECC_AK)
            assert caught.value.code == RC_OBJECT_MEMORY
        for handle in handles:
            tpm.flush_context(handle)
        with raises(BackendError, "io_error", part="EINVAL"):  # of the resource manager
            tpm.read_public(handles[0])
        assert other.read_public(handles[0]).raw == keys[0].raw
    with tpm.primary_key(ENDORSEMENT, ECC_AK) as key:
        assert key.handle == handles[0]


def test_resource_manager_refuses_unknown_commands(tpm: TpmClient) -> None:
    """A command that the TPM does not list is answered by the kernel."""
    with raises(TpmError, "tpm_error", part="resource manager") as caught:
        tpm.execute(VENDOR_COMMAND)
    assert caught.value.code == RC_RESMGR_COMMAND_CODE
    assert caught.value.is_unknown_command
    assert tpm.pcr_read((PcrSelection("sha256", (0,)),))


def test_raw_node_has_one_opener() -> None:
    """A second opener gets an error that the node is in use; the commands are the same."""
    with closing(patient(open_tpm(RAW))) as first:
        assert len(first.pcr_read(SHA256)) == 24
        with raises(BackendBusyError, "device", part="EBUSY"):
            open_tpm(RAW)
        with raises(TpmError, "tpm_error") as caught:
            first.execute(VENDOR_COMMAND)
        assert caught.value.is_unknown_command
    open_tpm(RAW).close()


@pytest.mark.parametrize("node", [None, RAW])
def test_truncated_command_is_refused_and_the_node_is_usable(node: Path | None) -> None:
    """The kernel refuses a command that is shorter than it says; the next one works."""
    with closing(patient(open_tpm(node))) as client:
        for command in (b"\x80\1", b"\x80\1\0\0\0\x0e" + bytes(4)):
            with raises(BackendError, "io_error", part="EINVAL"):
                client.transport.exchange(command, PATIENCE)
        assert len(client.pcr_read(SHA256)) == 24


def test_time_limit_does_not_leave_a_response_behind(tpm: TpmClient) -> None:
    """After a time limit, or a slow command that was waited for, the next response is its own."""
    hurried = TpmClient(tpm.transport, key_seconds=0.001)
    with suppress(BackendBusyError):  # not of a kernel that waits for the command in `poll`
        hurried.create_primary(ENDORSEMENT, RSA_AK)
    selection = (PcrSelection("sha256", (0,)),)
    assert list(tpm.pcr_read(selection)) == [("sha256", 0)]


def test_clients_of_several_threads_do_not_disturb_each_other() -> None:
    """Each descriptor is a conversation of its own, and threads of one client take turns."""
    shared = patient(open_tpm())
    failures: list[BaseException] = []

    def work(client: TpmClient) -> None:
        try:
            for _ in range(5):
                with client.primary_key(ENDORSEMENT, ECC_AK) as key:
                    quote = TpmsAttest.parse(client.quote(key.handle, b"data", SHA256).message)
                    assert quote.qualified_signer == key.qualified_name
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    others = [patient(open_tpm()) for _ in range(2)]
    threads = [threading.Thread(target=work, args=(one,)) for one in (shared, shared, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in (shared, *others):
        client.close()
    assert failures == []


def test_missing_device_is_reported() -> None:
    """A node that does not exist is an error with a remedy."""
    with raises(BackendUnavailableError, "missing", path="/dev/tpm7"):
        open_tpm("/dev/tpm7")
