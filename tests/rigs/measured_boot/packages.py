"""Debian's OVMF and systemd-stub."""

from pathlib import Path
from typing import NamedTuple

from attestkit.measure.firmware.bios_strings import BiosStrings
from tests.measure.debian_packages import package_sources
from tests.rigs.unpacked_packages import unpacked_packages

RECENT = "2026.08+ds-2"
"""Version of a firmware that measures more than that of Debian 13."""
RECENT_STRINGS = BiosStrings("Debian distribution of EDK II", RECENT, "09/26/2026")
"""Its strings in the SMBIOS table."""


class BootPackages(NamedTuple):
    """Files of the packages."""

    code: Path  # OVMF without variables
    variables: Path
    stub: bytes = b""  # systemd-stub


def fetch_packages() -> BootPackages:
    """Return the files of this Debian release.

    Raises:
        MissingError: If they are unavailable.
    """
    root = unpacked_packages("measured-boot", ("ovmf", "systemd-boot-efi"))
    stub = root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    return _firmware(root)._replace(stub=stub.read_bytes())


def fetch_recent_firmware() -> BootPackages:
    """Return the firmware `RECENT`.

    Raises:
        MissingError: If it is unavailable.
    """
    packages = (f"ovmf-generic={RECENT}",)
    return _firmware(unpacked_packages("measured-boot-sid", packages, package_sources("sid")))


def _firmware(root: Path) -> BootPackages:
    firmware = root / "usr/share/OVMF"
    return BootPackages(firmware / "OVMF_CODE_4M.fd", firmware / "OVMF_VARS_4M.fd")
