"""TPM of this machine: its device node, and the base class of backends that use it.

The resource manager (/dev/tpmrm0) has room for any number of keys and sessions and lets several
processes use the TPM. The raw node (/dev/tpm0) can be opened by one process at a time. If a node
cannot be opened, the error has the cause and a remedy.
"""

import errno
import grp
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attestkit.backends.linux import device_errors
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.transports import DeviceTransport
from attestkit.errors import BackendError, UnsupportedError, UsageError

DEVICE_VARIABLE: Final = "TPM_DEVICE"  # as of AWS's and dstack's tools
_GONE: Final = device_errors.ABSENT | {errno.ENODEV, errno.ENXIO}
_NODE: Final = re.compile(r"tpm(?:rm)?(\d{1,4})")
_VERSION_SIZE: Final = 16  # bytes


def find_tpm_device(
    device: str | os.PathLike[str] | None = None,
    paths: KernelPaths | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """Return the device node to use.

    Args:
        device: The node to use. None: `$TPM_DEVICE`, or else /dev/tpmrm0 or /dev/tpm0, the first
            that exists.
        paths: The kernel's paths; None: the default paths.
        environment: Environment variables by name.

    Raises:
        BackendUnavailableError: If neither `device` nor the variable is set, and no node exists.
        UsageError: If the variable is not an absolute path.
    """
    if device is not None:
        return Path(device)
    if named := environment.get(DEVICE_VARIABLE):
        if not named.startswith("/"):
            message = f"${DEVICE_VARIABLE}: must be an absolute path, not {named!r}"
            raise UsageError(message, reason="wrong_value")
        return Path(named)
    nodes = (KernelPaths() if paths is None else paths).tpm_nodes
    for node in nodes:
        try:
            node.stat()
        except OSError as error:
            if error.errno in device_errors.ABSENT:
                continue
        return node
    text = (
        f"no TPM: {' and '.join(map(str, nodes))} do not exist; enable the virtual TPM of this VM, "
        f"load its driver, or in a container pass the device through (--device {nodes[0]})"
    )
    raise device_errors.unavailable(nodes[0], text, "missing")


def open_tpm(
    device: str | os.PathLike[str] | None = None,
    paths: KernelPaths | None = None,
    *,
    calls: DeviceCalls = REAL_CALLS,
) -> TpmClient:
    """Open the TPM of this machine; return a client, which the caller closes.

    Args:
        device: The node to use. None: `$TPM_DEVICE`, or else /dev/tpmrm0 or /dev/tpm0.
        paths: The kernel's paths; None: the default paths.
        calls: The system calls.

    Raises:
        BackendUnavailableError: If the node is missing (`missing`) or not accessible to this
            process (`permission_denied`), or belongs to a TPM 1.2 (`wrong_platform`).
        BackendBusyError: If another process has opened a raw node.
        BackendError: If the node cannot be opened for another reason.
        UsageError: If `$TPM_DEVICE` is not an absolute path.
    """
    paths = KernelPaths() if paths is None else paths
    node = find_tpm_device(device, paths)
    _check_version(node, paths.tpm_class, calls)
    transport = DeviceTransport(str(node), lambda: _open_node(node, calls), calls=calls)
    transport.open()
    return TpmClient(transport)


def _check_version(node: Path, tpm_class: Path, calls: DeviceCalls) -> None:
    """Raise BackendUnavailableError for a TPM 1.2, if sysfs has the version (Linux 5.6)."""
    found = _NODE.fullmatch(node.name)
    if found is None:
        return
    try:
        file = tpm_class / f"tpm{found[1]}" / "tpm_version_major"
        version = read_file(file, _VERSION_SIZE, calls=calls).strip()
    except OSError:
        return
    if version == b"1":
        text = "must be a TPM 2.0, not a TPM 1.2; enable it in the settings of the VM or firmware"
        raise device_errors.unavailable(node, text, "wrong_platform")


def _open_node(node: Path, calls: DeviceCalls) -> int:
    try:
        fd = calls.open_file(node, os.O_RDWR | os.O_NONBLOCK, None)
    except OSError as error:
        raise _open_error(node, error) from error
    if stat.S_ISREG(os.fstat(fd).st_mode) and _is_seekable(fd):
        os.close(fd)
        raise device_errors.failed(node, "must be a device, not a file", "io_error")
    return fd


def _is_seekable(fd: int) -> bool:
    """Return whether the descriptor `fd` has a position; device nodes, even emulated, have none."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def _open_error(node: Path, error: OSError) -> BackendError:
    problem = f"cannot be opened ({device_errors.error_name(error)})"
    if error.errno in _GONE:
        text = f"{problem}; enable the virtual TPM, or set ${DEVICE_VARIABLE} to its device node"
        return device_errors.unavailable(node, text, "missing")
    if error.errno in device_errors.DENIED:
        return device_errors.access_error(
            node, "cannot be opened", error, f"; {_access_remedy(node)}"
        )
    if error.errno == errno.EBUSY:
        return device_errors.busy(
            node, f"{problem}: another process uses it; use /dev/tpmrm0", "device"
        )
    return device_errors.failed(node, problem, "io_error")


def _access_remedy(node: Path) -> str:
    """Return the remedy for a missing permission: join the node's group, or run as root."""
    try:
        found = node.stat()
    except OSError:
        return "grant access by a udev rule"
    if found.st_mode & 0o060 != 0o060 or found.st_gid in {os.getegid(), *os.getgroups()}:
        return "run as root, or allow the device in the container's or LSM's rules"
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"the node belongs to the group {group}: add this user to it (usermod -aG {group} USER)"


class TpmGuest:
    """Base class of backends that read a TPM, which they own and close.

    A subclass has `name` and `collect_evidence`. Thread-safe. After a fork, create another backend.
    """

    name = ""
    simulated = False
    blocking = True

    def __init__(self, client: TpmClient, paths: KernelPaths) -> None:
        """Take ownership of the TPM behind `client`; `paths` are those of the kernel."""
        self._client = client
        self._paths = paths

    def get_quote(self, report_data: bytes) -> bytes:
        """Raise UnsupportedError, whatever `report_data` is: the evidence has several parts."""
        del report_data
        message = f"{self.name}: the evidence has several parts; use attest()"
        raise UnsupportedError(message, reason="no_quote")

    def read_event_log(self) -> bytes:
        """Return an empty log: there are no RTMRs, and the TPM's logs are in the evidence."""
        return b""

    def read_attestation_key(self) -> bytes:
        """Raise UnsupportedError: the Attester need not put this key into the report data.

        On Azure the hardware's evidence names the key; the other platforms have no such evidence.
        """
        message = f"{self.name}: the key is not needed for report data; use attest()"
        raise UnsupportedError(message, reason="feature")

    def close(self) -> None:
        """Close the TPM. A second call has no effect."""
        self._client.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._client.path}>"
