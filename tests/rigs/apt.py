"""Debian packages for the rigs, downloaded by the machine's apt and never installed.

Lists, sources and downloads are in a separate directory, `$XDG_CACHE_HOME/attestkit-rig`, so the
machine's apt is unchanged. The sources are the machine's.
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
    """Reason why a rig cannot run here, for a skipped test."""


def cache_folder() -> Path:
    """Return the directory of downloads."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "attestkit-rig"


def codename(what: str) -> str:
    """Return the codename of this Debian release; MissingError if `what` is unavailable here."""
    found = platform.freedesktop_os_release()
    name = found.get("VERSION_CODENAME", "")
    if found.get("ID") != "debian" or not name or platform.machine() != "x86_64":
        raise MissingError(f"{what} needs Debian on x86-64, for its packages")
    for program in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is missing")
    return name


def own_sources(release_name: str) -> list[str]:
    """Return the lines of a sources.list for this release, with this machine's mirrors."""
    own = {release_name, f"{release_name}-updates", f"{release_name}-security"}
    lines = {
        f"deb {signed}{uri} {release} main"
        for release, names, signed, uri in _known_sources()
        if names & own
    }
    return _some(lines, release_name)


def backports_sources(release_name: str) -> list[str]:
    """Return the same for the backports suite, which is next to the release's own."""
    lines = {
        f"deb {signed}{uri} {release_name}-backports main"
        for _, names, signed, uri in _known_sources()
        if release_name in names
    }
    return _some(lines, release_name)


def _known_sources() -> Iterator[tuple[str, set[str], str, str]]:
    """Yield release, names, key option and address of each source of main."""
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
    """apt with sources, lists and downloads in a separate directory."""

    def __init__(self, folder: Path, sources: list[str], what: str, **more: str) -> None:
        """Write the configuration; `what` is the purpose for error texts, `more` are settings.

        Names of settings have `__` for apt's `::`, and `_` for a dash.
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
            "APT::Sandbox::User": "root",  # relevant to root only
        }
        settings |= {
            name.replace("__", "::").replace("_", "-"): value for name, value in more.items()
        }
        config = place / "apt.conf"
        config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        self._archives = place / "cache/archives"
        self._environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}

    def update(self) -> None:
        """Fetch the package lists."""
        command = ["apt-get", "update", "-qq", "--error-on=any"]
        try:
            output(command, self._environment, timeout=_UPDATE_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"Debian's packages of {self._what} cannot be reached") from error

    def run_tool(self, *command: str) -> str:
        """Return the output of a program of apt."""
        return output([*command], self._environment)

    def version(self, package: str) -> str:
        """Return the latest version of a package."""
        rows = self.run_tool("apt-cache", "madison", package).splitlines()
        if not rows:
            raise MissingError(f"{package}: not available for {self._what}")
        return rows[0].split("|")[1].strip()

    def download(self, packages: list[str], folder: Path) -> list[Path]:
        """Download the packages, without dependencies, to `folder`."""
        self._fetch(["apt-get", "download", "-qq", *packages], folder)
        return sorted(folder.glob("*.deb"))

    def plan(self, packages: list[str]) -> str:
        """Return the packages and versions that an installation from scratch would need."""
        command = ["apt-get", "install", "-qq", "--simulate", *packages]
        try:
            lines = self.run_tool(*command).splitlines()
        except subprocess.CalledProcessError as error:
            raise MissingError(f"Debian has not all packages of {self._what}") from error
        return "\n".join(sorted(line for line in lines if line.startswith("Inst ")))

    def download_all(self, packages: list[str]) -> list[Path]:
        """Download the packages and their dependencies."""
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


def apt_from_scratch(folder: Path, what: str, **more: str) -> Apt:
    """Return apt with fresh lists that regards no package as installed, so it plans all of them."""
    installed = folder / "installed"
    installed.write_text("")
    apt = Apt(
        folder,
        own_sources(codename(what)),
        what,
        APT__Install_Recommends="false",
        Dir__State__status=str(installed),
        Debug__NoLocking="true",
        **more,
    )
    apt.update()
    return apt


def unpack(packages: list[Path], root: Path) -> None:
    """Extract packages below a directory, with a merged /usr.

    Packages up to Debian 12 have files in /lib, /bin and /sbin, which an installed system has as
    links.
    """
    for package in packages:
        output(["dpkg", "-x", str(package), str(root)], os.environ.copy())
    for name in ("bin", "lib", "lib64", "sbin"):
        link, place = root / name, root / "usr" / name
        if link.is_dir() and not link.is_symlink():
            place.mkdir(parents=True, exist_ok=True)
            _move_tree(link, place)
        if place.is_dir() and not link.is_symlink():
            link.symlink_to(place.relative_to(root))


def _move_tree(source: Path, target: Path) -> None:
    """Move a directory's entries to another, merging subdirectories."""
    for path in source.iterdir():
        place = target / path.name
        if path.is_dir() and not path.is_symlink() and place.is_dir():
            _move_tree(path, place)
        else:
            path.rename(place)
    source.rmdir()


@contextmanager
def locked_directory(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory."""
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
    """Return the output of a program.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    done = subprocess.run(
        command, env=environment, cwd=folder, timeout=timeout, capture_output=True, check=True
    )
    return done.stdout.decode()
