"""`attestkit doctor`: diagnosis of this machine, with remedies.

The exit code is 0 whatever was found, and 1 for a usage error.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit import _native
from attestkit.cli.options import option
from attestkit.cli.options.option import Command
from attestkit.cli.output import console

if TYPE_CHECKING:
    from attestkit.cli.doctor.examine import Diagnosis

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "serve": (
        *("uvicorn", "httptools", "uvloop", "jinja2", "prometheus-client", "psutil"),
        *("aiodocker", "wcwidth", "protobuf"),
    ),
    "cli": ("click", "rich", "jinja2"),
    "fuse": ("mfusepy",),
    "fleet": ("dask", "distributed", "pyarrow"),
    "gpu": ("nvidia-ml-py",),
    "client": ("httpx", "h11"),
}

# Members of the JSON, with the names that they have in HostInspection and Diagnosis.
_OF_HOST: Final = (
    *("cpu", "mounts", "old_nodes", "vsock", "container", "platforms"),
    *("agent_sockets", "app_files"),
)
_OF_DIAGNOSIS: Final = (
    *("signs", "backends", "by_name_only", "named_agent", "agent_api"),
    *("boot_log", "runtime_log", "quotes"),
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def findings(root: Path | None = None, *, quote: bool = False) -> dict[str, Any]:
    """Return the diagnosis, ready for JSON.

    A path status is an object with the members of `host_inspection.PathStatus`. The diagnosis has
    these members:

    * `attestkit`, `python`: versions; `kernel`: release; `machine`: architecture.
    * `core`: `runs` (compiled, python), `reason`, `level` (portable, avx2, avx512, null in the
      plain core); `extras`: versions by package, by extra.
    * `root`: the inspected folder; `tee`: TDX, SEV-SNP, unknown (only signs of a TEE), or null.
    * `signs`: a list of `what`, `positive`, `saw`, as in `HardwareSign`. `platforms`: a list of
      `name`, `saw`, `supported`, `advice`, as in `host_inspection.Platform`. `container`: a list of
      texts, empty outside a container.
    * `linux`: `number` (three integers, zeros if unknown), `features` (by name, whether a release
      of this number has it), `cve_2026_31470_repaired` (by release number).
    * `cpu`: `known`, `tdx`, `sev_snp`, `hypervisor`, `isolation`, as in `host_inspection.Cpu`.
      `mounts`: `configfs`, `sysfs` (read-write, read-only, not mounted, unknown), `firmware`
      (visible, masked, missing).
    * `paths`: path statuses by name: `report`, `tdx_guest`, `sev_guest`, `tpm`, `tpm_log`,
      `measurements`, `rtmr3`, `ccel_table`, `ccel_data`, `attest_conf`, `boot_id`, `runtime_log`,
      `app_folder`.
    * `old_nodes`, `agent_sockets`, `app_files`: lists of path statuses. `report_entries`: names.
    * `quoting_service`: `port`, `error`; `vsock`: `socket` (errno or null), `node` (a path
      status), `transports`.
    * `backends`: by name the reason why it cannot run, or null. `by_name_only`: by name the reason
      why detection skips a backend that can run. `named_agent`: the endpoint that the environment
      names, or null. `agent_api`: the newest API of a usable guest agent (v1 of dstack 0.6, or v0),
      or null.
    * `boot_log`: `size` (bytes), `events` (number), `error`. `runtime_log`: the members of
      `RuntimeLogState`: `state`, `says`, `advice`, `events`, `register`, `replay` (hex or null).
    * `quotes`: null without `quote`, else a list of `backend`, `seconds`, `size` (bytes), `error`.
    * `advice`: remedies, a list of texts in order of urgency.

    Args:
        root: Folder to inspect in place of `/`; None: `/`, with paths of the environment.
        quote: Request a quote from each usable backend, as `examine` does.

    Raises:
        UsageError: If `root` is not a readable folder, or an environment variable is invalid.
    """
    found, package, advice = _diagnose(root, quote=quote)
    return {**package, **_as_json(found), "advice": advice}


def _diagnose(root: Path | None, *, quote: bool) -> tuple["Diagnosis", dict[str, Any], list[str]]:
    # Lazy: loads all backends.
    from attestkit.cli.doctor.examine import examine
    from attestkit.cli.doctor.output import advise

    found, package = examine(root, quote=quote), _package()
    return found, package, [*advise(found), *_package_advice(package)]


def _package() -> dict[str, Any]:
    """Return what is installed, by name.

    These are the versions `attestkit` and `python`, the architecture `machine`, `core` with `runs`,
    `reason` and `level` of the native core, and `extras`, by extra the versions by package (or
    None).
    """
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


def _as_json(found: "Diagnosis") -> dict[str, Any]:
    from attestkit.backends.linux.host_inspection import PathStatus
    from attestkit.backends.linux.kernel_paths import FEATURES

    host = found.host
    kernel = host.kernel
    statuses = {
        name: value for name, value in host._asdict().items() if isinstance(value, PathStatus)
    }
    return {
        "kernel": kernel.text,
        "root": host.root,
        "tee": found.tee,
        "linux": {
            "number": list(kernel.number),
            "features": {name: kernel.has(name) for name in FEATURES},
            "cve_2026_31470_repaired": kernel.repaired,
        },
        "paths": _plain(statuses),
        "report_entries": list(host.entries),
        "quoting_service": _plain(found.service),
        **{name: _plain(getattr(host, name)) for name in _OF_HOST},
        **{name: _plain(getattr(found, name)) for name in _OF_DIAGNOSIS},
    }


def _plain(value: object) -> object:
    """Convert named tuples in a value to objects (dicts), and other tuples to lists."""
    if isinstance(value, tuple):
        as_dict = getattr(value, "_asdict", None)
        return [_plain(item) for item in value] if as_dict is None else _plain(as_dict())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _package_advice(package: dict[str, Any]) -> list[str]:
    """Return advice about missing packages, one sentence or two for each.

    `package` is the result of `_package`.
    """
    advice = []
    if package["core"]["runs"] == "python":
        advice.append(
            "The pure Python core is in use, which is slower. For the compiled core install a C "
            "compiler (Debian: apt install gcc libc6-dev), then install attestkit again."
        )
    for extra, packages in package["extras"].items():
        missing = sorted(name for name, found_version in packages.items() if not found_version)
        if missing:
            advice.append(f"{', '.join(missing)} not installed: pip install 'attestkit[{extra}]'.")
    return advice


@click.command(
    cls=Command, example="doctor --quote", codes="01", meanings={0: "whatever was found"}
)
@option.json
@option.flag("--quote", text="Request and time one quote from each usable backend.")
@option.file("--root", "Inspect DIR instead of /, as a mounted emulator.", metavar="DIR")
def doctor(*, as_json: bool, quote: bool, root: Path | None) -> None:
    """Diagnose this machine and suggest remedies.

    The diagnosis covers the machine, the kernel's TEE interfaces, each backend, keys and logs, and
    the installation. Nothing is changed.
    """
    if as_json:
        console.as_json(findings(root, quote=quote))
        return
    from attestkit.cli.doctor.output import show_page

    with console.progress("inspecting"):
        found = _diagnose(root, quote=quote)
    show_page(*found)
