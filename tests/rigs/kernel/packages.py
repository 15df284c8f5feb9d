"""Debian's kernels for the rig: found, downloaded and unpacked by the machine's own apt.

Nothing is installed and nothing of the machine's apt is changed: lists, sources and downloads are
in a folder of our own, `$XDG_CACHE_HOME/attestkit-rig`. The sources are the machine's; the later
kernel is in the backports suite beside the machine's own.
"""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# The suites that a kernel can come from.
OWN = "stable"
BACKPORTS = "backports"

IMAGE = "linux-image-amd64"
HEADERS = "linux-headers-amd64"
# What the two metapackages lead to, and of that what the rig uses.
_WANTED = re.compile(r"linux-(?:image|headers|modules|binary|kbuild)-[0-9]\S*(?<!-unsigned)")
_DEPENDS = re.compile(r"^ [ |](?:Pre)?Depends: (\S+)$", re.MULTILINE)

_UPDATE_SECONDS = 120
_DOWNLOAD_SECONDS = 600


class MissingError(Exception):
    """Why the rig cannot run here, for a skipped test's reason."""


class Kernel(NamedTuple):
    """One kernel, unpacked."""

    release: str  # as uname says it
    root: Path  # of the files that the packages would have installed

    @property
    def number(self) -> tuple[int, int]:
        """The first two parts of its release."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)

    @property
    def image(self) -> Path:
        """The bootable file, which moved with Debian's packaging."""
        old = self.root / "boot" / f"vmlinuz-{self.release}"
        return old if old.exists() else self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The folder of its modules."""
        return self.root / "usr/lib/modules" / self.release

    @property
    def headers(self) -> Path:
        """The folder that modules are built in."""
        return self.root / "usr/src" / f"linux-headers-{self.release}"


def cache_folder() -> Path:
    """Return where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "attestkit-rig"


def codename() -> str:
    """Return the name of this Debian's release; MissingError if this is no Debian on x86-64."""
    found = platform.freedesktop_os_release()
    name = found.get("VERSION_CODENAME", "")
    if found.get("ID") != "debian" or not name or platform.machine() != "x86_64":
        raise MissingError("the kernel rig needs Debian on x86-64, for its kernel packages")
    for program in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is not here")
    return name


def fetch(suite: str) -> Kernel:
    """Return the latest kernel of a suite, unpacked in the cache.

    Raises:
        MissingError: It cannot be had; the text says why.
    """
    release_name = codename()
    folder = cache_folder() / suite
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one_at_a_time(folder):
        try:
            apt = _Apt(folder, _sources(suite, release_name))
            apt.update()
        except MissingError:
            if kept := _kept(folder):
                return kept
            raise
        return _unpacked(apt, folder)


def _unpacked(apt: "_Apt", folder: Path) -> Kernel:
    """Return the kernel that apt offers, from the cache if it is the one that is there."""
    version = apt.version(IMAGE)
    place = folder / f"kernel-{version}"
    if not place.exists():
        for other in folder.glob("kernel-*"):
            shutil.rmtree(other)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            root = Path(scratch) / "root"
            for package in apt.download(apt.needed(version), version, Path(scratch)):
                _output(["dpkg", "-x", str(package), str(root)], os.environ.copy())
            _make_headers_usable(root, place)
            root.rename(place)
    return _kernel_in(place)


def _kept(folder: Path) -> Kernel | None:
    """Return what an earlier run left, for a machine that is off the network today."""
    return next(map(_kernel_in, folder.glob("kernel-*")), None)


def _kernel_in(place: Path) -> Kernel:
    (modules,) = (place / "usr/lib/modules").iterdir()
    return Kernel(modules.name, place)


def _make_headers_usable(root: Path, place: Path) -> None:
    """Let the headers work below `place`, where they will be, and not below /usr/src only."""
    for makefile in (root / "usr/src").glob("linux-headers-*-amd64/Makefile"):
        text = makefile.read_text()
        makefile.write_text(text.replace("/usr/src", f"{place}/usr/src"))
        # Types of the whole kernel, from which a module's are made where pahole is installed.
        (makefile.parent / "vmlinux").unlink(missing_ok=True)


@contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- apt -------------------------------------------------------------------------------------------


def _sources(suite: str, release_name: str) -> list[str]:
    """Return the lines of a sources.list for a suite, by where this machine gets its packages."""
    fields = "$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    lines = []
    for line in _output(command, os.environ.copy()).splitlines():
        release, name, component, uri, key = line.split("|", 4)
        names = {release, name}
        if component != "main" or not uri.startswith(("http", "file", "cdrom", "mirror", "copy")):
            continue
        signed = f"[signed-by={key}] " if key.startswith("/") else ""
        if suite == BACKPORTS and release_name in names:
            lines.append(f"deb {signed}{uri} {release_name}-backports main")
        own = names & {release_name, f"{release_name}-updates", f"{release_name}-security"}
        if suite == OWN and own:
            lines.append(f"deb {signed}{uri} {release} main")
    if not lines:
        raise MissingError(f"apt's sources here do not name {release_name}")
    return sorted(set(lines))


class _Apt:
    """apt with sources, lists and downloads in a folder of our own."""

    def __init__(self, folder: Path, sources: list[str]) -> None:
        self._what = folder.name
        place = folder / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (place / part).mkdir(parents=True, exist_ok=True)
        (place / "sources.list").write_text("\n".join((*sources, "")))
        settings = {
            "Dir::State::Lists": f"{place}/lists",
            "Dir::Cache": f"{place}/cache",
            "Dir::Etc::SourceList": f"{place}/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "APT::Sandbox::User": "root",  # which only matters to root
        }
        config = place / "apt.conf"
        config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        self._environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}

    def update(self) -> None:
        """Fetch the lists."""
        command = ["apt-get", "update", "-qq", "--error-on=any"]
        try:
            _output(command, self._environment, timeout=_UPDATE_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise MissingError(
                f"the Debian suite of the {self._what} kernel cannot be reached"
            ) from error

    def version(self, package: str) -> str:
        """Return the latest version there is of a package."""
        rows = _output(["apt-cache", "madison", package], self._environment).splitlines()
        if not rows:
            raise MissingError(f"the {self._what} suite has no {package}")
        return rows[0].split("|")[1].strip()

    def needed(self, version: str) -> list[str]:
        """Return the packages with the kernel of this version and with its headers."""
        found: list[str] = []
        level = [IMAGE, HEADERS]
        while level:
            names = [f"{name}={version}" for name in level]
            said = _output(["apt-cache", "depends", "--important", *names], self._environment)
            wanted = filter(_WANTED.fullmatch, _DEPENDS.findall(said))
            level = sorted(set(wanted) - set(found))
            found += level
        return found

    def download(self, packages: list[str], version: str, folder: Path) -> list[Path]:
        """Return the packages as files in `folder`."""
        names = [f"{name}={version}" for name in packages]
        command = ["apt-get", "download", "-qq", *names]
        try:
            _output(command, self._environment, timeout=_DOWNLOAD_SECONDS, folder=folder)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"the {self._what} kernel cannot be downloaded") from error
        return sorted(folder.glob("*.deb"))


def _output(
    command: list[str],
    environment: dict[str, str],
    *,
    timeout: float = 60,
    folder: Path | None = None,
) -> str:
    done = subprocess.run(  # noqa: S603 - our own words
        command, env=environment, cwd=folder, timeout=timeout, capture_output=True, check=True
    )
    return done.stdout.decode()
