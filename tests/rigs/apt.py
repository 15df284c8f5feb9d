"""Debian packages for the rigs: found and downloaded by the machine's own apt, never installed.

Nothing of the machine's apt is changed: lists, sources and downloads are in a folder of our own,
`$XDG_CACHE_HOME/attestkit-rig`. The sources are the machine's.
"""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UPDATE_SECONDS = 120
_DOWNLOAD_SECONDS = 600


class MissingError(Exception):
    """Why a rig cannot run here, for a skipped test's reason."""


def cache_folder() -> Path:
    """Return where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "attestkit-rig"


def codename(what: str) -> str:
    """Return the name of this Debian's release; MissingError if `what` cannot be had here."""
    found = platform.freedesktop_os_release()
    name = found.get("VERSION_CODENAME", "")
    if found.get("ID") != "debian" or not name or platform.machine() != "x86_64":
        raise MissingError(f"{what} needs Debian on x86-64, for its packages")
    for program in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is not here")
    return name


def own_sources(release_name: str) -> list[str]:
    """Return the lines of a sources.list for this release, from where this machine gets it."""
    own = {release_name, f"{release_name}-updates", f"{release_name}-security"}
    lines = {
        f"deb {signed}{uri} {release} main"
        for release, names, signed, uri in _known_sources()
        if names & own
    }
    return _some(lines, release_name)


def backports_sources(release_name: str) -> list[str]:
    """Return the same for the backports suite, which is beside the release's own."""
    lines = {
        f"deb {signed}{uri} {release_name}-backports main"
        for _, names, signed, uri in _known_sources()
        if release_name in names
    }
    return _some(lines, release_name)


def _known_sources() -> Iterator[tuple[str, set[str], str, str]]:
    """Yield release, its names, the key's option and the address of each source of main."""
    fields = "$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    for line in output(command, os.environ.copy()).splitlines():
        release, name, component, uri, key = line.split("|", 4)
        if component != "main" or not uri.startswith(("http", "file", "cdrom", "mirror", "copy")):
            continue
        yield release, {release, name}, f"[signed-by={key}] " if key.startswith("/") else "", uri


def _some(lines: set[str], release_name: str) -> list[str]:
    if not lines:
        raise MissingError(f"apt's sources here do not name {release_name}")
    return sorted(lines)


class Apt:
    """apt with sources, lists and downloads in a folder of our own."""

    def __init__(self, folder: Path, sources: list[str], what: str, **more: str) -> None:
        """Write the configuration; `what` names what is wanted of it, `more` are its settings.

        Their names have `__` for `::` of apt's, and `_` for a dash.
        """
        self._what = what
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
        settings |= {
            name.replace("__", "::").replace("_", "-"): value for name, value in more.items()
        }
        config = place / "apt.conf"
        config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        self._archives = place / "cache/archives"
        self._environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}

    def update(self) -> None:
        """Fetch the lists."""
        command = ["apt-get", "update", "-qq", "--error-on=any"]
        try:
            output(command, self._environment, timeout=_UPDATE_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"Debian's packages of {self._what} cannot be reached") from error

    def say(self, *command: str) -> str:
        """Return what a program of apt's says here."""
        return output([*command], self._environment)

    def version(self, package: str) -> str:
        """Return the latest version there is of a package."""
        rows = self.say("apt-cache", "madison", package).splitlines()
        if not rows:
            raise MissingError(f"there is no {package} for {self._what}")
        return rows[0].split("|")[1].strip()

    def download(self, packages: list[str], folder: Path) -> list[Path]:
        """Return the packages, and not what they need, as files in `folder`."""
        self._fetch(["apt-get", "download", "-qq", *packages], folder)
        return sorted(folder.glob("*.deb"))

    def plan(self, packages: list[str]) -> str:
        """Return which versions of which packages an installation into nothing would need."""
        command = ["apt-get", "install", "-qq", "--simulate", *packages]
        try:
            lines = self.say(*command).splitlines()
        except subprocess.CalledProcessError as error:
            raise MissingError(f"Debian has not all packages of {self._what}") from error
        return "\n".join(sorted(line for line in lines if line.startswith("Inst ")))

    def download_all(self, packages: list[str]) -> list[Path]:
        """Return the packages and all they need as files."""
        for old in self._archives.glob("*.deb"):
            old.unlink()
        command = ["apt-get", "install", "-qq", "--yes", "--download-only", *packages]
        self._fetch(command, self._archives)
        return sorted(self._archives.glob("*.deb"))

    def _fetch(self, command: list[str], folder: Path) -> None:
        try:
            output(command, self._environment, timeout=_DOWNLOAD_SECONDS, folder=folder)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"the packages of {self._what} cannot be downloaded") from error


def unpack(packages: list[Path], root: Path) -> None:
    """Put the packages' files below a folder, on a merged /usr.

    Packages up to Debian 12 still have files in /lib, /bin and /sbin, which an installed system
    has as links.
    """
    for package in packages:
        output(["dpkg", "-x", str(package), str(root)], os.environ.copy())
    for name in ("bin", "lib", "lib64", "sbin"):
        link, place = root / name, root / "usr" / name
        if link.is_dir() and not link.is_symlink():
            place.mkdir(parents=True, exist_ok=True)
            _move(link, place)
        if place.is_dir() and not link.is_symlink():
            link.symlink_to(place.relative_to(root))


def _move(source: Path, target: Path) -> None:
    """Move what is in a folder to another, which may have folders of the same names."""
    for path in source.iterdir():
        place = target / path.name
        if path.is_dir() and not path.is_symlink() and place.is_dir():
            _move(path, place)
        else:
            path.rename(place)
    source.rmdir()


@contextmanager
def only_one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder meanwhile."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def output(
    command: list[str],
    environment: dict[str, str],
    *,
    timeout: float = 60,
    folder: Path | None = None,
) -> str:
    """Return what a program prints.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    done = subprocess.run(
        command, env=environment, cwd=folder, timeout=timeout, capture_output=True, check=True
    )
    return done.stdout.decode()
