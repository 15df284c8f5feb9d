"""Debian's OVMF and systemd-stub, downloaded and unpacked, not installed."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.rigs.apt import Apt, cache_folder, codename, locked_directory, own_sources, unpack

_PACKAGES = ("ovmf", "systemd-boot-efi")


class BootPackages(NamedTuple):
    """Files of the packages."""

    code: Path  # OVMF without variables
    variables: Path
    stub: bytes  # systemd-stub


def fetch_packages() -> BootPackages:
    """Return the files of this Debian release, from the cache if it has these versions.

    Raises:
        MissingError: If they are unavailable.
    """
    folder = cache_folder() / "measured-boot"
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder):
        apt = Apt(folder, own_sources(codename("the measured boot")), "the measured boot")
        apt.update()
        versions = [f"{name}={apt.version(name)}" for name in _PACKAGES]
        root = folder / "-".join(versions).replace("/", "_")
        if not root.is_dir():
            for old in folder.glob("ovmf=*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unpacked = Path(scratch) / "root"
                unpack(apt.download(versions, Path(scratch)), unpacked)
                unpacked.rename(root)
    firmware = root / "usr/share/OVMF"
    stub = root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    return BootPackages(
        firmware / "OVMF_CODE_4M.fd", firmware / "OVMF_VARS_4M.fd", stub.read_bytes()
    )
