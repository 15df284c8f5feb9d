"""Options of SEV-SNP guests: virtual CPUs, and the VMM's conventions."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.click_types import PATH, group_options
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.measure import ExpectedMeasurements, SnpInputs
    from attestkit.measure.sev_snp import Vmm

_MAX_IMAGE: Final = 64 << 20  # bytes

_OPTIONS: Final = (
    click.option("--snp", is_flag=True, help="Measure an SEV-SNP guest, not a TD."),
    click.option("--vcpus", type=int, metavar="N", help="SEV-SNP: virtual CPUs."),
    click.option("--cpu-type", metavar="NAME", help="SEV-SNP: CPU type of QEMU, as EPYC-v4."),
    click.option("--cpu-signature", metavar="NUMBER", help="SEV-SNP: EAX of CPUID leaf 1."),
    click.option(
        "--guest-features",
        metavar="NUMBER",
        help="SEV-SNP: SEV_FEATURES. Default: 0x1; 0x21 on hosts with debug swap.",
    ),
    click.option(
        "--vmm",
        type=click.Choice(["qemu", "ec2", "gce"]),
        help="SEV-SNP: the VMM. Default: qemu.",
    ),
    click.option("--svsm", type=PATH, help="SEV-SNP: image of COCONUT-SVSM."),
    click.option("--vars-size", metavar="BYTES", help="SEV-SNP: variables below the firmware."),
)


class SnpOptions(NamedTuple):
    """Values of the options."""

    snp: bool
    vcpus: int | None
    cpu_type: str | None
    cpu_signature: int | None
    guest_features: int | None
    vmm: "Vmm | None"
    svsm: Path | None
    vars_size: int | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read."""
        return () if self.svsm is None else (self.svsm,)

    def measure(
        self, firmware: bytes, kernel: bytes | None, initrd: bytes | None, cmdline: str | None
    ) -> "ExpectedMeasurements":
        """Return the expected launch digest.

        Raises:
            FormatError: If a file is malformed.
            UsageError: If a value is missing or out of range.
        """
        from attestkit.measure import snp
        from attestkit.measure.snp_guest import DEFAULT_VARIABLES_SIZE

        if self.vcpus is None:
            raise UsageError("--vcpus: missing", reason="missing")
        size = DEFAULT_VARIABLES_SIZE if self.vars_size is None else self.vars_size
        return snp(
            firmware=firmware,
            vcpus=self.vcpus,
            cpu_type=self.cpu_type,
            cpu_signature=self.cpu_signature,
            guest_features=1 if self.guest_features is None else self.guest_features,
            vmm=self.vmm or "qemu",
            kernel=kernel,
            initrd=initrd,
            cmdline=cmdline,
            svsm=None if self.svsm is None else read_file(self.svsm, _MAX_IMAGE),
            variables_size=size,
        )

    def inputs_of(
        self, firmware: bytes, kernel: bytes | None, initrd: bytes | None, cmdline: str | None
    ) -> "SnpInputs | None":
        """Return what `measure` uses, for a diagnosis; None with COCONUT-SVSM."""
        from attestkit.measure import SnpInputs
        from attestkit.measure.sev_snp import KernelFiles, SnpMachine, find_cpu_signature

        if self.svsm is not None or self.vcpus is None:
            return None
        signature = self.cpu_signature or 0
        if self.cpu_type is not None:
            signature = find_cpu_signature(self.cpu_type)
        machine = SnpMachine(self.vcpus, signature, self.guest_features or 1, self.vmm or "qemu")
        files = None if kernel is None else KernelFiles(kernel, initrd or b"", cmdline or "")
        return SnpInputs(firmware=firmware, machine=machine, kernel=files)


def _gather(
    *,
    snp: bool,
    vcpus: int | None,
    cpu_type: str | None,
    cpu_signature: str | None,
    guest_features: str | None,
    vmm: "Vmm | None",
    svsm: Path | None,
    vars_size: str | None,
) -> SnpOptions:
    found = SnpOptions(
        snp,
        vcpus,
        cpu_type,
        _read_number("--cpu-signature", cpu_signature),
        _read_number("--guest-features", guest_features),
        vmm,
        svsm,
        _read_number("--vars-size", vars_size),
    )
    if not snp and any(value is not None for value in found[1:]):
        message = "--vcpus, --cpu-type and other options of SEV-SNP: need --snp"
        raise UsageError(message, reason="not_applicable")
    return found


def _read_number(option: str, text: str | None) -> int | None:
    """Return a number, decimal or with 0x."""
    if text is None:
        return None
    try:
        return int(text, 0)
    except ValueError:
        message = f"{option}: must be a number, such as 0x21"
        raise UsageError(message, reason="wrong_value") from None


snp_options: Final = group_options("snp", _OPTIONS, _gather)
