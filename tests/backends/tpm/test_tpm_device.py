"""The device node of a TPM: which one is used, and what an error says."""

import errno
import os
import socket
from pathlib import Path

import pytest

from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tpm.tpm_device import find_tpm_device, open_tpm
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from tests.raising import raises


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPM_DEVICE", raising=False)


def make_root(root: Path, *nodes: str, version: str = "") -> KernelPaths:
    """Return the paths of a machine with these nodes, which are sockets here."""
    (root / "dev").mkdir()
    for node in nodes:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(root / "dev" / node))
    if version:
        folder = root / "sys/class/tpm/tpm0"
        folder.mkdir(parents=True)
        (folder / "tpm_version_major").write_text(f"{version}\n")
    return KernelPaths.below(root)


def failing(number: int) -> DeviceCalls:
    """Return system calls with which no node can be opened."""

    def open_file(path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        if flags & os.O_ACCMODE == os.O_RDWR:
            raise OSError(number, os.strerror(number))
        return os.open(path, flags, dir_fd=folder)

    return DeviceCalls(open_file=open_file)


@pytest.mark.parametrize(
    ("nodes", "chosen"),
    [(("tpmrm0", "tpm0"), "tpmrm0"), (("tpm0",), "tpm0"), (("tpmrm0",), "tpmrm0")],
)
def test_resource_manager_is_preferred(tmp_path: Path, nodes: tuple[str, ...], chosen: str) -> None:
    """/dev/tpmrm0 comes before /dev/tpm0."""
    paths = make_root(tmp_path, *nodes)
    assert find_tpm_device(None, paths) == tmp_path / "dev" / chosen


def test_argument_comes_before_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of the caller wins over $TPM_DEVICE, and that over the default nodes."""
    paths = make_root(tmp_path, "tpmrm0")
    monkeypatch.setenv("TPM_DEVICE", "/dev/tpm7")
    assert find_tpm_device(None, paths) == Path("/dev/tpm7")
    assert find_tpm_device("/dev/tpm8", paths) == Path("/dev/tpm8")
    monkeypatch.setenv("TPM_DEVICE", "")
    assert find_tpm_device(None, paths) == tmp_path / "dev/tpmrm0"
    monkeypatch.setenv("TPM_DEVICE", "tpm7")
    with raises(UsageError, "wrong_value", start="$TPM_DEVICE: "):
        find_tpm_device(None, paths)


def test_missing_nodes_are_named(tmp_path: Path) -> None:
    """Without a TPM, the error names both nodes and a remedy."""
    paths = make_root(tmp_path)
    with raises(BackendUnavailableError, "missing", part="enable the virtual TPM") as caught:
        open_tpm(None, paths)
    for name in ("tpmrm0", "tpm0"):
        assert f"dev/{name}" in str(caught.value)
    with raises(BackendUnavailableError, "missing", part="ENOENT"):
        open_tpm(tmp_path / "dev/tpm9", paths)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_missing_permission_names_the_group(tmp_path: Path, number: int) -> None:
    """If the node belongs to a group, the error says which, and how to join it."""
    paths = make_root(tmp_path, "tpmrm0")
    node = tmp_path / "dev/tpmrm0"
    node.chmod(0o660)
    calls = failing(number)
    with raises(BackendUnavailableError, "permission_denied", path=str(node)) as caught:
        open_tpm(None, paths, calls=calls)
    assert "mode 0660" in str(caught.value)
    if os.geteuid() == 0:
        os.chown(node, -1, 1)  # the group daemon or bin
        with raises(BackendUnavailableError, "permission_denied", part="usermod -aG ") as caught:
            open_tpm(None, paths, calls=calls)
        assert "belongs to the group" in str(caught.value)
        os.chown(node, -1, 54321)  # of no name
        with raises(BackendUnavailableError, "permission_denied", part="the group 54321"):
            open_tpm(None, paths, calls=calls)


@pytest.mark.parametrize("node", ["tpm0", "tpmrm0"])
def test_tpm_12_is_named(tmp_path: Path, node: str) -> None:
    """A TPM 1.2 is an error of its own, before it is opened."""
    paths = make_root(tmp_path, node, version="1")
    with raises(BackendUnavailableError, "wrong_platform", part="TPM 1.2"):
        open_tpm(None, paths, calls=failing(errno.EACCES))


def test_other_errors_of_opening_are_told_apart(tmp_path: Path) -> None:
    """A raw node in use is busy, a removed device is missing, others are errors of the system."""
    paths = make_root(tmp_path, "tpm0", version="2")
    with raises(BackendBusyError, "device", part="use /dev/tpmrm0"):
        open_tpm(None, paths, calls=failing(errno.EBUSY))
    for number in (errno.ENODEV, errno.ENXIO):
        with raises(BackendUnavailableError, "missing"):
            open_tpm(None, paths, calls=failing(number))
    with raises(BackendError, "io_error", part="EMFILE"):
        open_tpm(None, paths, calls=failing(errno.EMFILE))


def test_regular_file_is_not_written(tmp_path: Path) -> None:
    """A file in place of a device is refused and unchanged."""
    file = tmp_path / "tpmrm0"
    file.write_bytes(b"content")
    with raises(BackendError, "io_error", part="must be a device"):
        open_tpm(file, make_root(tmp_path))
    assert file.read_bytes() == b"content"
