"""`attestkit doctor`: what runs here, what does not, and what to do about it."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import click

from attestkit import _native, backends
from attestkit.cli import render

__all__ = ["doctor", "findings"]

EXTRAS: Final = {
    "serve": ("uvicorn", "httptools", "uvloop"),
    "verify": ("dcap-qvl",),
    "cli": ("click", "rich"),
    "fuse": ("mfusepy",),
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def findings() -> dict[str, Any]:
    """Return everything the doctor knows, ready for JSON."""
    extras = {
        extra: {package: _version(package) for package in packages}
        for extra, packages in EXTRAS.items()
    }
    return {
        "attestkit": _version("attestkit"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "core": {"runs": _native.CORE, "reason": _native.CORE_REASON},
        "backends": dict(backends.probe_all()),
        "extras": extras,
    }


def _advice(found: dict[str, Any]) -> list[str]:
    """Say what to do next, one sentence each."""
    advice = []
    if found["core"]["runs"] == "python":
        advice.append(
            "Plain Python runs, with the same results and slower. For the compiled core install "
            "a C compiler (Debian: apt install gcc libc6-dev) and install attestkit again."
        )
    if all(
        found["backends"][name] is not None for name in found["backends"] if name != "simulator"
    ):
        advice.append(
            "No TEE was found: attestkit.open() will say so. For development name the simulator: "
            'attestkit.open("simulator"), or make serve.'
        )
    for extra, packages in found["extras"].items():
        missing = sorted(name for name, found_version in packages.items() if not found_version)
        if missing:
            advice.append(
                f"{', '.join(missing)} not installed: pip install 'attestkit[{extra}]' brings it."
            )
    return advice


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
def doctor(*, as_json: bool) -> None:
    """Say what was found, what is missing, and what to do about it."""
    found = findings()
    advice = _advice(found)
    if as_json:
        render.as_json({**found, "advice": advice})
        return
    core = "compiled (C)" if found["core"]["runs"] == "compiled" else "plain Python"
    render.fields(
        "attestkit doctor",
        {
            "attestkit": found["attestkit"] or "not installed, run from a checkout",
            "Python": found["python"],
            "kernel": f"{found['kernel']} {found['machine']}",
            "core": f"{core}: {found['core']['reason']}",
            **{
                f"backend {name}": "usable" if why is None else why
                for name, why in found["backends"].items()
            },
            **{
                f"extra {extra}": ", ".join(
                    f"{name} {found_version or 'missing'}"
                    for name, found_version in packages.items()
                )
                for extra, packages in found["extras"].items()
            },
        },
    )
    render.lines(advice)
