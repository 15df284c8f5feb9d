"""Settings from environment variables: the backend, the kernel's paths, and the guest agent."""

import os
from pathlib import Path

from attestkit.backends.linux import kernel_paths
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.errors import BackendUnavailableError, UsageError


def backend_from_environment() -> str | None:
    """Return the name of a backend in `$ATTESTKIT_BACKEND`; None if it is unset or empty."""
    return os.environ.get("ATTESTKIT_BACKEND") or None


def recording_from_environment() -> Path | None:
    """Return the file to replay, `$ATTESTKIT_RECORDING`; None if it is unset or empty."""
    return Path(text) if (text := os.environ.get("ATTESTKIT_RECORDING")) else None


def find_kernel_paths(root: str | os.PathLike[str] | None = None) -> KernelPaths:
    """Return the paths of the kernel's interfaces.

    Without `root`, these environment variables override the defaults; each is an absolute path:
    `$DCAP_TDX_QUOTE_CONFIGFS_PATH` (an existing report entry), `$DCAP_TDX_RTMR_SYSFS_PATH` (the
    directory of the RTMR files) and `$DSTACK_CCEL_FILE` (a copy of the boot log).

    Args:
        root: The directory to use in place of `/`; the environment is then ignored.

    Raises:
        UsageError: If a variable is not an absolute path, or is longer than 4095 bytes (the entry:
            239 bytes).
    """
    if root is not None:
        return KernelPaths.below(root)
    paths = KernelPaths()
    if (entry := _path_from("DCAP_TDX_QUOTE_CONFIGFS_PATH", longest=239)) is not None:
        paths = paths._replace(tsm_entry=entry)
    if (folder := _path_from("DCAP_TDX_RTMR_SYSFS_PATH")) is not None:
        paths = paths._replace(measurements=folder, measurements_configured=True)
    if (file := _path_from("DSTACK_CCEL_FILE")) is not None:
        paths = paths._replace(ccel_file=file)
    return paths


def _path_from(variable: str, longest: int = 4095) -> Path | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.startswith("/"):
        raise UsageError(
            f"${variable}: must be an absolute path, not {text!r}", reason="wrong_value"
        )
    if len(os.fsencode(text)) > longest:
        raise UsageError(f"${variable}: must be at most {longest} bytes long", reason="too_large")
    return Path(text)


def find_host_shared_folder() -> Path:
    """Return `$DSTACK_HOST_SHARED_DIR`, the directory with the host's files about the app.

    If the variable is unset or empty, it is dstack's default, /dstack/.host-shared.

    Raises:
        UsageError: If the variable is not an absolute path, or is longer than 4095 bytes.
    """
    return _path_from("DSTACK_HOST_SHARED_DIR") or Path("/dstack/.host-shared")


def find_agent_endpoint() -> tuple[str, bool]:
    """Return the endpoint of the guest agent, and whether the environment selected it.

    The endpoint is `$DSTACK_SIMULATOR_ENDPOINT`, a URL or the path of a socket, which is not
    checked; otherwise the first of `kernel_paths.AGENT_SOCKETS` that exists.

    Raises:
        BackendUnavailableError: If the variable is not set and no socket exists.
    """
    if named := os.environ.get("DSTACK_SIMULATOR_ENDPOINT"):
        return named, True
    for path in kernel_paths.AGENT_SOCKETS:
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it may exist; the connection will report the error
        return path, False
    raise BackendUnavailableError(
        f"guest agent: no socket found at {', '.join(kernel_paths.AGENT_SOCKETS)}; set "
        "$DSTACK_SIMULATOR_ENDPOINT, or mount the host's socket into the container",
        reason="missing",
    )
