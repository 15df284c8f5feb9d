"""Emulated TPM: device nodes, sysfs and securityfs, without a mount."""

import os
import select
import threading
from collections.abc import Iterator
from contextlib import closing
from errno import E2BIG, EACCES, EBUSY, EINVAL

import pytest

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.scenarios.config import CloudConfig, Scenario
from attestkit.backends.simulator.software_tpm.resource_manager import RawNode
from attestkit.emulator.machine import REPORTS, Machine, Setup
from attestkit.errors import UsageError
from tests.backends.simulator.simulated_cases import NOW, SEED
from tests.runner.cases import every_case
from tests.untyped import untyped

GET_RANDOM = bytes.fromhex("80010000000c0000017b0008")
READ_PCRS = bytes.fromhex("8001000000140000017e00000001000b03800000")  # PCR 7, SHA-256
BOOT_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
READABLE = select.POLLIN | select.POLLRDNORM
WRITABLE = select.POLLOUT | select.POLLWRNORM
OF_CLOUDS = {
    "azure-snp": ("none", "Microsoft Corporation"),
    "azure-tdx": ("none", "Microsoft Corporation"),
    "gcp-snp": ("sev_guest", "Google"),
    "gcp-tdx": ("tdx_guest", "Google"),
    "aws-snp": ("sev_guest", "Amazon EC2"),
    "aws-nitro-tpm": ("none", "Amazon EC2"),
    "tpm": ("none", "attestkit"),
}


def boot(platform: str, kernel: str = "6.18", cloud: CloudConfig | None = None) -> Machine:
    """Return a running machine, without a mount; the caller closes it."""
    scenario = Scenario(platform=platform, cloud=cloud or CloudConfig())
    return Machine(
        Setup(provider=OF_CLOUDS[platform][0], kernel=kernel, scenario=scenario),
        SEED,
        faults=Faults(),
        now=lambda: NOW,
        clock=lambda: 0.0,
        wait=lambda _: True,
        random=bytes,
    )


@pytest.fixture(name="machine", scope="module")
def make_machine() -> Iterator[Machine]:
    """Boot a machine with a TPM alone."""
    machine = boot("tpm")
    yield machine
    machine.close()


def read(machine: Machine, path: str) -> bytes:
    """Return the content of a file."""
    return machine.tree.file(path).open(os.O_RDONLY).read(1 << 20, 0)


def exists(machine: Machine, path: str) -> bool:
    """Return whether a file exists."""
    try:
        machine.tree.find(path)
    except FileNotFoundError:
        return False
    return True


def refusal(number: int) -> "pytest.RaisesExc[OSError]":
    """Return a context that expects an errno."""
    return pytest.raises(OSError, match=rf"^\[Errno {number}\]")


@pytest.mark.parametrize("node", ["/dev/tpmrm0", "/dev/tpm0"])
def test_node_is_one_conversation(machine: Machine, node: str) -> None:
    """A write is a command, reads give its response in pieces, and a second write is refused."""
    opened = machine.tree.file(node).open(os.O_RDWR)
    assert (opened.poll(), opened.read(4096, 0)) == (WRITABLE, b"")
    assert opened.write(GET_RANDOM + b"more", 0) == 16  # bytes after the command are ignored
    assert opened.poll() == READABLE
    with refusal(EBUSY):
        opened.write(GET_RANDOM, 0)
    header = opened.read(10, 16)
    assert (header, opened.poll()) == (bytes.fromhex("80010000001400000000"), READABLE)
    assert len(opened.read(4096, 26)) == 10
    assert (opened.poll(), opened.read(4096, 36)) == (WRITABLE, b"")
    opened.release()


@pytest.mark.parametrize("node", ["/dev/tpmrm0", "/dev/tpm0"])
@pytest.mark.parametrize(
    ("command", "number"),
    [
        *((GET_RANDOM[:size], EINVAL) for size in range(len(GET_RANDOM))),
        (GET_RANDOM[:2] + bytes.fromhex("00000009") + GET_RANDOM[6:], EINVAL),
        (GET_RANDOM + bytes(4096), E2BIG),
    ],
)
def test_node_refuses_frames(machine: Machine, node: str, command: bytes, number: int) -> None:
    """A command shorter than its header or its size field has no effect."""
    opened = machine.tree.file(node).open(os.O_RDWR)
    with refusal(number):
        opened.write(command, 0)
    assert opened.poll() == WRITABLE
    assert opened.write(GET_RANDOM, 0) == len(GET_RANDOM)
    opened.release()


def test_openers_do_not_share_conversations(machine: Machine) -> None:
    """Each opener of the resource manager reads its own response."""
    first, second = (machine.tree.file("/dev/tpmrm0").open(os.O_RDWR) for _ in range(2))
    first.write(GET_RANDOM, 0)
    second.write(READ_PCRS, 0)
    assert (len(first.read(4096, 0)), len(second.read(4096, 0))) == (20, 62)
    first.release()
    second.release()


def test_raw_node_has_one_opener(machine: Machine) -> None:
    """A second one gets EBUSY until the first has closed; the resource manager is not affected."""
    node = machine.tree.file("/dev/tpm0")
    first = node.open(os.O_RDWR)
    with refusal(EBUSY):
        node.open(os.O_RDWR)
    machine.tree.file("/dev/tpmrm0").open(os.O_RDWR).release()
    first.release()
    first.release()
    node.open(os.O_RDWR).release()


def test_closed_file_releases_the_raw_node_once() -> None:
    """A second close of an old file does not release the node of the next opener."""
    node = RawNode(_NoTpm(), threading.RLock())
    with closing(node.open()) as first:
        pass
    with closing(node.open()):
        first.close()
        with refusal(EBUSY):
            node.open()


class _NoTpm:
    def execute(self, command: bytes) -> bytes:
        """Return the command."""
        return command


def test_resource_manager_passes_only_listed_commands(machine: Machine) -> None:
    """The raw node lets the TPM itself refuse an unknown command."""
    unknown = bytes.fromhex("80010000000a20000001")
    codes = []
    for node in ("/dev/tpmrm0", "/dev/tpm0"):
        opened = machine.tree.file(node).open(os.O_RDWR)
        opened.write(unknown, 0)
        codes.append(opened.read(4096, 0)[6:].hex())
        opened.release()
    assert codes == ["000b0143", "00000143"]


def test_sysfs_shows_pcrs_of_the_tpm(machine: Machine) -> None:
    """Upper-case digits and a newline, the current value."""
    opened = machine.tree.file("/dev/tpmrm0").open(os.O_RDWR)
    opened.write(READ_PCRS, 0)
    value = opened.read(4096, 0)[-32:]
    opened.release()
    shown = read(machine, "/sys/class/tpm/tpm0/pcr-sha256/7")
    assert shown == value.hex().upper().encode() + b"\n"
    assert len(read(machine, "/sys/class/tpm/tpm0/pcr-sha384/23")) == 97
    assert read(machine, "/sys/class/tpm/tpm0/tpm_version_major") == b"2\n"


@pytest.mark.parametrize(
    ("kernel", "has_files"),
    [("5.4", (False, False)), ("5.10", (True, False)), ("5.12", (True, True))],
)
def test_sysfs_files_depend_on_the_kernel(kernel: str, has_files: tuple[bool, bool]) -> None:
    """Linux 5.6 added the version, 5.12 the PCRs."""
    machine = boot("tpm", kernel)
    paths = (f"/sys/class/tpm/tpm0/{name}" for name in ("tpm_version_major", "pcr-sha256/0"))
    found = tuple(exists(machine, path) for path in paths)
    machine.close()
    assert found == has_files


def test_boot_log_has_size_zero_and_is_read_only(machine: Machine) -> None:
    """As securityfs has it: a reader reads to the end."""
    file = machine.tree.file(BOOT_LOG)
    assert (file.size, file.mode) == (0, 0o440)
    assert b"Spec ID Event03" in read(machine, BOOT_LOG)[:64]
    with refusal(EACCES):
        file.open(os.O_WRONLY)


@pytest.mark.parametrize("platform", OF_CLOUDS)
def test_machine_has_the_files_of_its_cloud(platform: str) -> None:
    """DMI names the cloud; hardware files, collateral and IMDS exist where the cloud has them."""
    machine = boot(platform)
    provider, vendor = OF_CLOUDS[platform]
    paths = (
        *(REPORTS, "/dev/tpmrm0", "/dev/tdx_guest", "/dev/sev-guest"),
        *("/sys/firmware/acpi/tables/CCEL", "/attestkit/imds-url", "/attestkit/collateral.json"),
    )
    found = {path.rpartition("/")[2]: exists(machine, path) for path in paths}
    vendor_file = read(machine, "/sys/class/dmi/id/sys_vendor")
    machine.close()
    assert vendor_file.decode() == f"{vendor}\n"
    assert found == {
        "report": provider != "none",
        "tpmrm0": True,
        "tdx_guest": provider == "tdx_guest",
        "sev-guest": provider == "sev_guest",
        "CCEL": provider == "tdx_guest",
        "imds-url": platform.startswith("azure"),
        "collateral.json": platform.endswith("-tdx"),
    }


@every_case(
    ("platform", "cloud"),
    [
        ("azure-snp", CloudConfig(stale_nonce=True)),
        ("azure-tdx", CloudConfig(bank="sha384")),
        ("gcp-tdx", CloudConfig(relayed=True)),
        ("tpm", CloudConfig(foreign_ak=True)),
    ],
)
def test_scenario_of_collectors_is_refused(platform: str, cloud: CloudConfig) -> None:
    """Report data and bank are chosen by the program, so devices cannot change them."""
    with pytest.raises(UsageError, match="use the simulator as a backend") as refused:
        boot(platform, cloud=cloud)
    assert refused.value.reason == "not_applicable"


def test_setup_refuses_another_version_of_quotes() -> None:
    """Versions 4 and 5 exist."""
    for version in (7, untyped([4])):
        with pytest.raises(UsageError) as refused:
            Setup(quote_version=version)
        assert refused.value.reason == "wrong_value"


def test_setup_refuses_what_the_cloud_does_not_have() -> None:
    """A provider of another platform, and values of hardware that the guest does not see."""
    azure = Scenario(platform="azure-snp")
    with pytest.raises(UsageError) as conflict:
        Setup(provider="sev_guest", scenario=azure)
    assert conflict.value.reason == "conflict"
    with pytest.raises(UsageError) as unused:
        Setup(provider="none", scenario=azure, vmpl=1)
    assert unused.value.reason == "not_applicable"
