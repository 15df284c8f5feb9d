"""Detection of a usable backend, and the probe of each."""

from typing import TYPE_CHECKING, Any, Final

from attestkit.backends.hardware_signs import check_hardware_signs
from attestkit.backends.registry import HARDWARE, load, names
from attestkit.errors import AttestKitError, BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Container

    from attestkit.backends.base import Backend
    from attestkit.backends.linux.kernel_paths import KernelPaths

# Order of detection. Without the simulator and recordings, whose evidence is never used by default,
# and without a plain TPM, whose evidence is not of a TEE.
AUTO_ORDER: Final = ("dstack_agent", "azure", "gcp", "configfs_tsm", "tdx_ioctl", "nitro_tpm")


def detect(*, leave_out: "Container[str]" = ()) -> "type[Backend]":
    """Return the class of the first usable backend in `AUTO_ORDER`; never the simulator.

    A class with a method `probe_for_detection` is probed by it, otherwise by `probe`: detection may
    require more than a backend selected by name. Only BackendUnavailableError continues the search.

    Args:
        leave_out: Names of backends to skip.

    Raises:
        BackendUnavailableError: If no backend is usable; the text has the error of each.
        BackendError: If a backend is available but fails.
        UsageError: If an environment variable is invalid.
    """
    reports = []
    for name in AUTO_ORDER:
        if name in leave_out:
            continue
        backend = load(name)
        try:
            getattr(backend, "probe_for_detection", backend.probe)()
        except BackendUnavailableError as error:
            reports.append(f"{name}: {error}")
        else:
            return backend
    raise BackendUnavailableError(_no_backend_text(reports), reason="no_backend")


def _no_backend_text(reports: list[str]) -> str:
    from attestkit.backends.linux.host_inspection import detect_platforms  # only for the error

    signs = check_hardware_signs()
    lines = ["no usable TEE found"]
    lines += reports
    lines += [f"{sign.what}: {sign.saw}" for sign in signs]
    lines += [f"{found.name} ({found.saw}): {found.advice}" for found in detect_platforms()]
    if any(sign.positive for sign in signs):
        lines.append("a TEE was detected; run `attestkit doctor` to find out why it is not usable")
    lines.append(
        'for development, use the simulator: attestkit.open("simulator") or '
        "ATTESTKIT_BACKEND=simulator"
    )
    return "; ".join(lines)


def probe_all(paths: "KernelPaths | None" = None) -> dict[str, str | None]:
    """Probe all backends, including plugins; return the error of each by name, None if usable.

    Args:
        paths: The paths for the backends in `HARDWARE`. None: `find_kernel_paths()`.
    """
    found: dict[str, str | None] = {}
    for name in names():
        arguments = () if paths is None or name not in HARDWARE else (paths,)
        try:
            probe: Any = load(name).probe
            probe(*arguments)
        except AttestKitError as error:
            found[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a bug in one plugin must not hide the others
            found[name] = f"probe failed: {type(error).__name__}: {error}"
        else:
            found[name] = None
    return found
