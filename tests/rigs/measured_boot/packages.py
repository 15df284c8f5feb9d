"""Debian's OVMF and systemd-stub."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attestkit.measure.rtmr0 import BiosStrings
from tests.measure.debian_firmware import suite_sources
from tests.rigs.apt import Apt, cache_folder, codename, locked_directory, own_sources, unpack

_PACKAGES = ("ovmf", "systemd-boot-efi")


class BootPackages(NamedTuple):
    """Files of the packages."""

    code: Path  # OVMF without variables
    variables: Path
    stub: bytes = b""  # systemd-stub


RECENT = "2026.08+ds-2"
"""Version of a firmware that measures more than that of Debian 13."""
RECENT_STRINGS = BiosStrings("Debian distribution of EDK II", RECENT, "09/26/2026")
"""Its strings in the SMBIOS table."""


def fetch_packages() -> BootPackages:
    """Return the files of this Debian release.

    Raises:
        MissingError: If they are unavailable.
    """
    root = _fetch("measured-boot", own_sources(codename("the measured boot")), _PACKAGES)
    stub = root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    return _firmware(root)._replace(stub=stub.read_bytes())


def fetch_recent_firmware() -> BootPackages:
    """Return the firmware `RECENT`.

    Raises:
        MissingError: If it is unavailable.
    """
    sources = suite_sources("sid")
    return _firmware(_fetch("measured-boot-sid", sources, ("ovmf-generic",), RECENT))


def _fetch(name: str, sources: list[str], packages: Sequence[str], version: str = "") -> Path:
    """Return the folder of the unpacked packages of one version, by default the latest."""
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder):
        apt = Apt(folder, sources, "the measured boot")
        apt.update()
        versions = [f"{package}={version or apt.version(package)}" for package in packages]
        root = folder / "-".join(versions).replace("/", "_")
        if not root.is_dir():
            for old in folder.glob("ovmf*=*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unpacked = Path(scratch) / "root"
                unpack(apt.download(versions, Path(scratch)), unpacked)
                unpacked.rename(root)
    return root


def _firmware(root: Path) -> BootPackages:
    firmware = root / "usr/share/OVMF"
    return BootPackages(firmware / "OVMF_CODE_4M.fd", firmware / "OVMF_VARS_4M.fd")
