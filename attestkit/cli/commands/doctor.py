"""`attestkit doctor`: what runs here, what does not, and what to do about it.

What it finds is no failure of its own: the exit code is 0 unless it was called wrongly.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit import _native
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.output import console

if TYPE_CHECKING:
    from attestkit.cli.doctor.examine import Examined

__all__ = ["doctor", "findings"]

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "serve": ("uvicorn", "httptools", "uvloop"),
    "verify": ("dcap-qvl",),
    "cli": ("click", "rich", "jinja2"),
    "fuse": ("mfusepy",),
    "fleet": ("dask", "distributed", "pyarrow"),
}

_EPILOG: Final = "Example: attestkit doctor --quote\n\nExit codes: 0 whatever was found, 1 usage."


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def findings(root: Path | None = None, *, quote: bool = False) -> dict[str, Any]:
    """Return everything the doctor knows, ready for JSON.

    A door is an object with the names and meanings of `surroundings.Door`. The keys:

    * `attestkit`, `python`: versions; `kernel`: release; `machine`: architecture.
    * `core`: `runs` (compiled, python), `reason`, `level` (portable, avx2, avx512, null in the
      plain core); `extras`: by extra, version by package.
    * `root`: where was looked; `tee`: TDX, SEV-SNP, unknown (signs of one), null (none).
    * `signs`: a list of `what`, `positive`, `saw`. `platforms`: a list of `name`, `saw`,
      `supported`, `advice`. `container`: a list of texts, empty outside of one.
    * `linux`: `number` (three, zeros if unknown), `features` (by name, what a release of this
      number has), `cve_2026_31470_repaired` (by its number).
    * `cpu`: `known`, `tdx`, `sev_snp`, `hypervisor`, `isolation`. `mounts`: `configfs`, `sysfs`
      (read-write, read-only, not mounted, unknown), `firmware` (visible, masked, missing).
    * `doors`: by name a door: `report`, `tdx_guest`, `sev_guest`, `measurements`, `rtmr3`,
      `ccel_table`, `ccel_data`, `attest_conf`, `boot_id`, `runtime_log`, `app_folder`.
    * `old_nodes`, `agent_sockets`, `app_files`: lists of doors. `report_entries`: names.
    * `quoting_service`: `port`, `error`; `vsock`: `socket` (errno or null), `node` (a door),
      `transports`.
    * `backends`: by name why it cannot run, null if it can. `by_name_only`: by name why one that
      can run is not taken where none is named. `named_agent`: the endpoint that the environment
      names, or null.
    * `boot_log`: `size`, `events`, `error`. `runtime_log`: `state`, `says`, `advice`, `events`,
      `register`, `replay` (hex or null).
    * `quotes`: null if not asked, else a list of `backend`, `seconds`, `size`, `error`.
    * `advice`: what to do, a list of texts in order.

    `root` is where to look in place of `/`; `quote` asks as `examine` does. UsageError: a variable
    of the environment is wrong.
    """
    found, package, advice = _everything(root, quote=quote)
    return {**package, **_as_json(found), "advice": advice}


def _everything(root: Path | None, *, quote: bool) -> tuple["Examined", dict[str, Any], list[str]]:
    # All backends: late, so that no other command pays for them.
    from attestkit.cli.doctor.advice import advise
    from attestkit.cli.doctor.examine import examine

    found, package = examine(root, quote=quote), _package()
    return found, package, [*advise(found), *_package_advice(package)]


def _package() -> dict[str, Any]:
    """Return what is installed."""
    return {
        "attestkit": _version("attestkit"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "core": {"runs": _native.CORE, "reason": _native.CORE_REASON, "level": _native.CPU_LEVEL},
        "extras": {
            extra: {package: _version(package) for package in packages}
            for extra, packages in EXTRAS.items()
        },
    }


def _as_json(found: "Examined") -> dict[str, Any]:
    from attestkit.backends.linux.host_inspection import Door
    from attestkit.backends.linux.release import FEATURES

    around = found.around
    kernel = around.kernel
    doors = {name: door for name, door in around._asdict().items() if isinstance(door, Door)}
    return {
        "kernel": kernel.text,
        "root": around.root,
        "tee": found.tee,
        "signs": _plain(found.signs),
        "linux": {
            "number": list(kernel.number),
            "features": {name: kernel.has(name) for name in FEATURES},
            "cve_2026_31470_repaired": kernel.repaired,
        },
        "cpu": _plain(around.cpu),
        "mounts": _plain(around.mounts),
        "doors": _plain(doors),
        "old_nodes": _plain(around.old_nodes),
        "report_entries": list(around.entries),
        "quoting_service": _plain(found.service),
        "vsock": _plain(around.vsock),
        "container": list(around.container),
        "platforms": _plain(around.platforms),
        "agent_sockets": _plain(around.agent_sockets),
        "app_files": _plain(around.app_files),
        "backends": found.backends,
        "by_name_only": found.by_name_only,
        "named_agent": found.named_agent,
        "boot_log": _plain(found.boot_log),
        "runtime_log": _plain(found.runtime_log),
        "quotes": _plain(found.quotes),
    }


def _plain(value: object) -> object:
    """Turn named tuples into objects, and tuples into lists."""
    if isinstance(value, tuple):
        as_dict = getattr(value, "_asdict", None)
        return [_plain(item) for item in value] if as_dict is None else _plain(as_dict())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _package_advice(package: dict[str, Any]) -> list[str]:
    """Say what to install, one sentence each."""
    advice = []
    if package["core"]["runs"] == "python":
        advice.append(
            "Plain Python runs, with the same results and slower. For the compiled core install "
            "a C compiler (Debian: apt install gcc libc6-dev) and install attestkit again."
        )
    for extra, packages in package["extras"].items():
        missing = sorted(name for name, found_version in packages.items() if not found_version)
        if missing:
            advice.append(
                f"{', '.join(missing)} not installed: pip install 'attestkit[{extra}]' brings it."
            )
    return advice


@click.command(epilog=_EPILOG)
@json_option
@click.option("--quote", is_flag=True, help="Ask each usable backend for one quote, and time it.")
@click.option(
    "--root",
    metavar="DIR",
    type=PATH,
    help="Look below DIR: a mounted emulator, or a host's tree seen from a container.",
)
def doctor(*, as_json: bool, quote: bool, root: Path | None) -> None:
    """Say what was found, what is missing, and what to do.

    It looks at the machine, the kernel's doors to a TEE, each backend, keys and logs, and at what
    is installed. It changes nothing.
    """
    if as_json:
        console.as_json(findings(root, quote=quote))
        return
    from attestkit.cli.doctor.page import show_page

    show_page(*_everything(root, quote=quote))
