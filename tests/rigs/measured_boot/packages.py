"""Debian's OVMF and systemd-stub."""

from pathlib import Path
from typing import NamedTuple

from tests.rigs.unpacked_packages import unpacked_packages


class BootPackages(NamedTuple):
    """Files of the packages."""

    code: Path  # OVMF without variables
    variables: Path
    stub: bytes  # systemd-stub


def fetch_packages() -> BootPackages:
    """Return the files of this Debian release.

    Raises:
        MissingError: If they are unavailable.
    """
    root = unpacked_packages("measured-boot", ("ovmf", "systemd-boot-efi"))
    firmware = root / "usr/share/OVMF"
    stub = root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    return BootPackages(
        firmware / "OVMF_CODE_4M.fd", firmware / "OVMF_VARS_4M.fd", stub.read_bytes()
    )
