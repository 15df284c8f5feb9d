"""Emulated machine: its file tree, and its control files.

The tree is that of a root directory: `/sys/kernel/config/tsm/report`, `/dev/tdx_guest` and so on.
Control files are below `/attestkit`.
"""

import os
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.boot_log import AREA_SIZE, boot_log
from attestkit.backends.simulator.faults.fault_specs import Fault, Faults
from attestkit.backends.simulator.gpu.gpu_host import GpuHost
from attestkit.backends.simulator.images.os_image import simulated_image
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip, find_amd_root, issue_chip
from attestkit.backends.simulator.platforms import CLOUDS, PLATFORMS
from attestkit.backends.simulator.roots import platform_anchor, roots_of
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.td_reports import EmulatedTd, ReportQuoter, issue_platform
from attestkit.emulator import kernel_files, tdx_driver
from attestkit.emulator.linux_calls import EmulatedKernel
from attestkit.emulator.snp_driver import SnpProvider, snp_device
from attestkit.emulator.tsm_entries import Provider, TsmReports
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
    from attestkit.emulator.cloud_guest import CloudFiles
    from attestkit.emulator.nvml.stub_server import StubServer

PROVIDERS: Final = ("tdx_guest", "sev_guest", "none")
REPORTS: Final = "/sys/kernel/config/tsm/report"
_ACPI: Final = "/sys/firmware/acpi/tables"
_LOG_ADDRESS: Final = 0x7F000000
_HEALTHY: Final = Scenario()


@dataclass(frozen=True, slots=True)
class Setup:
    """Properties of an emulated machine.

    Attributes:
        provider: The loaded driver: `tdx_guest`, `sev_guest`, or `none` (a TDX guest without one).
        kernel: The emulated release of Linux.
        driver: Ioctls of /dev/tdx_guest, a key of `tdx_driver.DRIVERS`.
        quote_version: 4, or 5 (TDX 1.5).
        scenario: Platform, and content of its evidence.
        mr_config_id: MRCONFIGID of a TDX guest, 48 bytes.
        host_data: HOST_DATA of an SEV-SNP guest, 32 bytes.
        vmpl: VMPL of an SEV-SNP guest's kernel, 0 to 3; above 0 there is an SVSM.
        certificates: Whether the host of an SEV-SNP guest has certificates.
        qgs_port: Port in /etc/tdx-attest.conf; None: no such file.
        runtime_log: Target of the link /run/log/dstack; None: no link.
        gpus: Simulated GPUs, or their number; None: those that the scenario needs.

    Raises:
        UsageError: If a value is invalid, or two values contradict each other.
    """

    provider: str = "tdx_guest"  # the loaded driver; "none": a TDX guest without a driver
    kernel: str = "6.18"  # the emulated release
    driver: str = "mainline"  # the ioctls of /dev/tdx_guest, see tdx_driver.DRIVERS
    quote_version: int = 4  # 5: TDX 1.5
    scenario: Scenario = _HEALTHY  # platform, and content of its evidence
    mr_config_id: bytes = bytes(48)  # of a TDX guest
    host_data: bytes = bytes(32)  # of an SEV-SNP guest
    vmpl: int = 0  # of an SEV-SNP guest's kernel; above 0 there is an SVSM
    certificates: bool = True  # whether the host of an SEV-SNP guest has certificates
    qgs_port: int | None = None  # port in /etc/tdx-attest.conf; None: no such file
    runtime_log: str | None = None  # target of the link /run/log/dstack; None: no link
    gpus: "int | GpuConfig | None" = None  # simulated GPUs; None: those that the scenario needs

    @property
    def hardware(self) -> Scenario:
        """The scenario of the hardware.

        For a guest of a cloud, it is that of the hardware below the guest.
        """
        scenario, snp = self.scenario, self.scenario.snp
        if scenario.platform not in CLOUDS:
            return scenario
        if scenario.platform == "aws-snp":  # reports are signed by the key of the provider
            snp = msgspec.structs.replace(snp, signing_key="VLEK")
        hardware = CLOUDS[scenario.platform].hardware
        return msgspec.structs.replace(scenario, platform=hardware, snp=snp)

    @property
    def has_metadata_service(self) -> bool:
        """Whether programs need the metadata service of the cloud for evidence."""
        return PLATFORMS[self.scenario.platform].has_imds

    @property
    def has_gpus(self) -> bool:
        """Whether the machine has simulated GPUs."""
        return self.gpus is not None or self.scenario.gpu_fault is not None

    def __post_init__(self) -> None:
        _check_name("provider", self.provider, PROVIDERS)
        _check_name("driver", self.driver, tdx_driver.DRIVERS)
        if self.quote_version not in (4, 5):
            text = f"quote_version: must be 4 or 5, not {self.quote_version!r}"
            raise UsageError(text, reason="wrong_value")
        if (wanted := self.scenario.quote_version) not in {None, self.quote_version}:
            text = f"quote_version: must be {wanted} with this scenario, not {self.quote_version}"
            raise UsageError(text, reason="conflict")
        if self.hardware.platform == "snp" and self.provider != "sev_guest":
            text = f"provider: must be sev_guest with a scenario of SEV-SNP, not {self.provider}"
            raise UsageError(text, reason="conflict")
        check_bytes("mr_config_id", self.mr_config_id, 48)
        check_bytes("host_data", self.host_data, 32)
        if self.vmpl not in range(4):
            raise UsageError(f"vmpl: must be 0 to 3, not {self.vmpl!r}", reason="out_of_range")
        if self.qgs_port is not None and not 0 <= self.qgs_port < 1 << 32:
            raise UsageError(
                f"qgs_port: must be 0 to 4294967295, not {self.qgs_port}", reason="out_of_range"
            )
        EmulatedKernel.parse(self.kernel)
        self._check_cloud()

    def _check_cloud(self) -> None:
        platform = self.scenario.platform
        if platform not in CLOUDS:
            return
        if self.provider != (wanted := CLOUDS[platform].provider):
            text = f"provider: must be {wanted} on the platform {platform}, not {self.provider}"
            raise UsageError(text, reason="conflict")
        if wanted != "none":
            return
        given = {
            "mr_config_id": any(self.mr_config_id),
            "host_data": any(self.host_data),
            "vmpl": self.vmpl != 0,
            "qgs_port": self.qgs_port is not None,
        }
        for name, is_given in given.items():
            if is_given:
                text = f"{name}: does not apply to the platform {platform}; omit it"
                raise UsageError(text, reason="not_applicable")


def _check_name(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        text = f"{what}: must be one of {', '.join(known)}, not {name!r}"
        raise UsageError(text, reason="unknown_name")


class Machine(GpuHost):
    """A running emulated machine, and the tree of its files.

    Args:
        setup: Properties of the machine.
        seed: 32 bytes from which the simulated PKIs of Intel and AMD are derived.
        faults: The armed faults.
        now: Returns Unix time in seconds, for the collateral.
        clock: A monotonic clock in seconds, for delays.
        wait: Sleeps for a number of seconds; returns False if the caller has a pending signal.
        random: Returns a number of random bytes.
        metadata_address: IPv4 address and port at which the metadata service of a cloud listens;
            port 0: a free one.

    Raises:
        BackendError: If that address cannot be bound.
        UsageError: If the scenario alters how evidence is collected; see `vtpm_guest.boot_guest`.
    """

    def __init__(
        self,
        setup: Setup,
        seed: bytes,
        *,
        faults: Faults,
        now: Callable[[], float],
        clock: Callable[[], float],
        wait: Callable[[float], bool],
        random: Callable[[int], bytes] = os.urandom,
        metadata_address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.tree: kernel_files.Tree = kernel_files.Tree()
        self._faults = faults
        scenario = setup.hardware
        self._pki, enclave = issue_platform(seed, scenario)
        self._chip: SimulatedChip | None = None
        if setup.provider == "sev_guest":
            self._chip = issue_chip(seed, scenario)
        self._now, self._seed = now, seed
        self._release = EmulatedKernel.parse(setup.kernel)
        self._td = self._launch_td(setup, random)
        self.quoter: ReportQuoter = ReportQuoter(
            self._pki, version=setup.quote_version, enclave=enclave, td10=scenario.td10
        )
        self._host = tdx_driver.Host(self.quoter, faults, wait, clock)
        self._setup = setup
        self._cloud: CloudFiles | None = None
        if setup.scenario.platform in CLOUDS:
            self._cloud = self._boot_cloud(seed, random, metadata_address)
        self._gpu_driver: StubServer | None = None
        self._attach_gpus(seed, setup.gpus, setup.scenario.gpu_fault)
        self._add_files()
        self._provider = self._add_driver(wait)
        self._reports = TsmReports(self._provider, self._release.outblob_limit, faults)
        if self._release.has("configfs_tsm") and not self._is_paravisor_guest:
            self.tree.add(REPORTS, self._reports)

    def _launch_td(self, setup: Setup, random: Callable[[int], bytes]) -> EmulatedTd:
        return EmulatedTd(
            self._pki,
            extended=setup.quote_version == 5,
            mr_config_id=setup.mr_config_id,
            random=random,
            scenario=setup.hardware,
        )

    def _add_files(self) -> None:
        """Add the kernel's common files, the trust anchors and, in a TD, the boot log."""
        self._add_common()
        self._add_trust()
        if self._chip is None and not self._is_paravisor_guest:
            self._add_boot_log()

    def _boot_cloud(
        self, seed: bytes, random: Callable[[int], bytes], metadata_address: tuple[str, int]
    ) -> "CloudFiles":
        """Boot the cloud's guest, and add its files.

        Args:
            seed: 32 bytes from which the simulated keys are derived.
            random: Returns a number of random bytes.
            metadata_address: IPv4 address and port of the metadata service; port 0: a free one.
        """
        # Lazy: most machines have no cloud, and it takes a third of their start to import.
        from attestkit.emulator.cloud_guest import CloudFiles

        setup = self._setup
        cloud = CloudFiles(
            msgspec.structs.replace(setup.scenario, quote_version=setup.quote_version),
            seed,
            faults=self._faults,
            now=self._now,
            random=random,
            metadata_address=metadata_address,
        )
        cloud.add_files(self.tree, self._release)
        return cloud

    def start_gpu_driver(self, folder: str | os.PathLike[str]) -> None:
        """Compile the stub driver of the GPUs into an empty folder, and start its server.

        Raises:
            UnsupportedError: If the machine has no GPUs (`has_gpus`).
            BackendUnavailableError: If there is no C compiler.
            BackendError: If the driver cannot be compiled or started.
        """
        # Lazy: most machines have no GPUs.
        from attestkit.emulator.nvml.simulated_machine import add_gpu_files, start_stub_driver

        is_snp = self._setup.hardware.platform == "snp"
        self._gpu_driver = start_stub_driver(self.gpus, Path(folder), is_snp=is_snp)
        add_gpu_files(self.tree, self, self._faults, folder)

    def unix_time(self) -> float:
        """Return the Unix time of the machine in seconds."""
        return self._now()

    def _add_common(self) -> None:
        add, faults, setup = self.tree.add, self._faults, self._setup
        boot_id = "/proc/sys/kernel/random/boot_id"
        add(boot_id, kernel_files.text_file("boot_id", faults, self._boot_id))
        if setup.qgs_port is not None:
            text = f"# Port of the quote generation service.\nport = {setup.qgs_port}\n"
            add(
                "/etc/tdx-attest.conf",
                kernel_files.constant_file("tdx_attest_conf", faults, text.encode()),
            )
        if setup.runtime_log is not None:
            add("/run/log/dstack", kernel_files.Link(setup.runtime_log))
        add("/attestkit/faults", faults_file(faults))
        if self._cloud is None:  # a TPM has no reset here
            add("/attestkit/reset", trigger_file(faults, self.reboot))
            add("/attestkit/kexec", trigger_file(faults, self.kexec))

    def _add_trust(self) -> None:
        """Add the trust anchors, and the collateral of evidence with a TDX quote."""
        files = {"trust-anchor.der": self._find_root, "roots.json": self._roots}
        if self._chip is None and (self._cloud is None or self._cloud.has_intel_collateral):
            files["collateral.json"] = self._collateral  # AMD's certificates come with the report
        for name, content in files.items():
            self.tree.add(f"/attestkit/{name}", kernel_files.text_file("", self._faults, content))

    def _roots(self) -> bytes:
        roots = roots_of(self._seed, self._setup.scenario)  # whose hardware may be of another kind
        return roots._replace(platform=self._find_root()).to_json()

    def _find_root(self) -> bytes:
        if self._chip is not None:
            return find_amd_root(self._seed, self._setup.hardware)
        return platform_anchor(self._seed, self._setup.scenario)

    @property
    def _is_paravisor_guest(self) -> bool:
        """Whether a guest of a cloud has a vTPM in place of the hardware's files."""
        return self._cloud is not None and self._setup.provider == "none"

    def _add_boot_log(self) -> None:
        faults = self._faults
        table = kernel_files.constant_file("ccel_table", faults, ccel_table(), mode=0o400)
        self.tree.add(f"{_ACPI}/CCEL", table)
        if self._release.has("ccel"):
            image = simulated_image(self._setup.hardware.image)
            log = kernel_files.constant_file("ccel_data", faults, boot_log(image), mode=0o400)
            self.tree.add(f"{_ACPI}/data/CCEL", log)

    def _add_driver(self, wait: Callable[[float], bool]) -> Provider | None:
        """Add the files of the platform's driver; return the provider of reports, or None.

        `wait` sleeps for a number of seconds; it returns False if the caller has a pending signal.
        """
        setup, faults = self._setup, self._faults
        if setup.provider == "tdx_guest":
            self._add_tdx()
            return tdx_driver.TdxProvider(self._td, self._host, self._release, faults)
        if self._chip is not None:
            self.tree.add("/dev/sev-guest", snp_device(faults))
            return SnpProvider(
                self._chip,
                vmpl=setup.vmpl,
                host_data=setup.host_data,
                services=self._release.has("svsm_services"),
                certificates=setup.certificates,
                faults=faults,
                wait=wait,
            )
        return None

    def _add_tdx(self) -> None:
        if not self._release.has("tdx_guest") and self._setup.driver == "mainline":
            return
        registers = tdx_driver.Registers(self._td, self._faults, self._setup.runtime_log)
        device = tdx_driver.tdx_device(registers, self._host, self._setup.driver, self._faults)
        self.tree.add("/dev/tdx_guest", device)
        misc = "/sys/devices/virtual/misc/tdx_guest"
        self.tree.add(f"{misc}/dev", kernel_files.constant_file("", self._faults, b"10:126\n"))
        self.tree.add(
            "/sys/class/misc/tdx_guest", kernel_files.Link("../../devices/virtual/misc/tdx_guest")
        )
        if self._release.has("rtmr_files"):
            self.tree.add(
                f"{misc}/measurements", tdx_driver.measurement_files(registers, self._faults)
            )

    def _boot_id(self) -> bytes:
        return f"{self._td.boot_id}\n".encode()

    def _collateral(self) -> bytes:
        collateral = self._pki.collateral(self._now(), self._setup.scenario.collateral)
        return collateral.to_json().encode()

    def close(self) -> None:
        """Stop the metadata service, the TPM and the stub driver of GPUs, if any."""
        if self._gpu_driver is not None:
            self._gpu_driver.close()
        if self._cloud is not None:
            self._cloud.close()

    def reboot(self) -> None:
        """Reboot: reset the registers, change the boot id, and remove report entries."""
        self._td.reboot()
        if self._provider is not None:
            self._provider.reboot()
        self._restart()

    def kexec(self) -> None:
        """Start another kernel: change the boot id, and remove report entries."""
        self._td.kexec()
        self._restart()

    def _restart(self) -> None:
        self._reports.provider = self._provider
        for name in list(self._reports.names):
            self._reports.mark_removed(name)
            self.tree.drop(f"{REPORTS}/{name}")


def ccel_table() -> bytes:
    """Return the ACPI table CCEL, 56 bytes, for a log area of `AREA_SIZE` bytes."""
    head = struct.pack(
        "<4sIBB6s8sI4sIBBHQQ",
        *(b"CCEL", 56, 1, 0, b"AKSIM ", b"AKSIMTD ", 1, b"AKIT", 1),
        *(2, 0, 0, AREA_SIZE, _LOG_ADDRESS),
    )
    return head[:9] + bytes([-sum(head) & 0xFF]) + head[10:]


def faults_file(faults: Faults) -> kernel_files.File:
    """Return `/attestkit/faults`: the armed faults; each written line arms a fault.

    Truncation, as by the shell's `>`, disarms all. A write with an invalid line fails with EINVAL
    and arms nothing.
    """
    return kernel_files.File("", faults, _OpenFaults, mode=0o600, truncate=faults.clear)


class _OpenFaults(kernel_files.Snapshot):
    """An open file of the armed faults.

    Reading gives those armed at the first read. Writing arms one per line; if a line is invalid,
    none, and it fails with EINVAL.
    """

    def __init__(self, file: kernel_files.File) -> None:
        self._armed = file.faults
        super().__init__(
            file, lambda: "".join(f"{fault}\n" for fault in self._armed.armed()).encode()
        )

    def write(self, data: bytes, _offset: int) -> int:
        try:
            new = [Fault.parse(line) for line in data.decode().splitlines() if line.strip()]
        except ValueError:  # UsageError is one
            raise kernel_files.os_error(EINVAL) from None
        for fault in new:
            self._armed.arm(fault)
        return len(data)


def trigger_file(faults: Faults, action: Callable[[], None]) -> kernel_files.File:
    """Return a write-only file that calls `action` at every write, whatever is written.

    `faults` are the armed faults; this file has no label, so none applies to it.
    """
    return kernel_files.File(
        "", faults, lambda _: kernel_files.WriteOnly(lambda _data: action()), mode=0o200
    )
