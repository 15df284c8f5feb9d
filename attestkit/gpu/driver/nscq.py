"""NVIDIA's library NSCQ, as far as evidence of NVSwitches needs it.

Calls, structures and codes are those in NVIDIA's nv-attestation-sdk (PyPI). NVIDIA has no Python
package for it alone.
"""

import contextlib
import ctypes
from collections.abc import Callable, Container, Iterable
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int8, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.gpu.driver.driver_calls import DriverSession

T = TypeVar("T")

TIME_LIMIT: Final = 30.0  # seconds per call
MAX_SWITCHES: Final = 64
MAX_REPORT: Final = 0x2000
MAX_CERTIFICATES: Final = 0x1400
_LIBRARY: Final = "libnvidia-nscq.so.2"
_MOUNT_DEVICES: Final = 1
_LS10: Final = 2

PcieMode = Literal["unknown", "disabled", "enabled", "failure", "locked"]
_PCIE_MODES: Final[dict[int, PcieMode]] = {
    -1: "unknown",
    0: "disabled",
    1: "enabled",
    2: "failure",
    3: "locked",
}
_UUIDS: Final = b"/drv/nvswitch/{device}/uuid"
_ARCHITECTURE: Final = b"/{nvswitch}/id/arch"
_PCIE_MODE: Final = b"/{nvswitch}/config/pcie_mode"
_CERTIFICATE: Final = b"/{nvswitch}/config/certificate"
_REPORT: Final = b"/{nvswitch}/config/attestation_report"

_INSTALL: Final = "install nvidia-nscq or libnvidia-nscq of the driver's version"
_MEANINGS: Final = {
    -1: "not implemented by this version of the library",
    -2: "invalid UUID",
    -3: "a switch cannot be opened; check nvidia-fabricmanager",
    -4: "overflow",
    -5: "unexpected value; update the driver",
    -6: f"the driver's version is not that of the library; {_INSTALL}",
    -7: "error of the driver; see the kernel log",
    -8: "timeout in the driver; retry",
    -127: "error of another library; see the kernel log",
    -128: "unspecified error; see the kernel log",
}
_UNSUPPORTED_DRIVER: Final = -6
_TIMEOUT: Final = -8
_UNSPECIFIED: Final = -128


class _Uuid(Structure):
    _fields_ = (("bytes", c_uint8 * 16),)


class _Label(Structure):
    _fields_ = (("data", c_char * 64),)


class _Report(Structure):
    _fields_ = (("size", c_uint32), ("data", c_uint8 * MAX_REPORT))


class _Certificate(Structure):
    _fields_ = (("data", c_uint8 * MAX_CERTIFICATES), ("size", c_uint32))


class _SessionResult(Structure):
    _fields_ = (("rc", c_int8), ("session", c_void_p))


# Callbacks have the arguments switch, return code, value, and an unused pointer.
_HEAD: Final = (None, POINTER(_Uuid), c_int8)
_UUID_CALLBACK: Final = ctypes.CFUNCTYPE(*_HEAD, POINTER(_Uuid), c_void_p)
_BYTE_CALLBACK: Final = ctypes.CFUNCTYPE(*_HEAD, c_int8, c_void_p)
_CERTIFICATE_CALLBACK: Final = ctypes.CFUNCTYPE(*_HEAD, _Certificate, c_void_p)
_REPORT_CALLBACK: Final = ctypes.CFUNCTYPE(*_HEAD, _Report, c_void_p)
_Callback = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class SwitchReading:
    """Values of one NVSwitch as its driver returns them, not verified: report, PEM chain, mode."""

    uuid: bytes  # 16 bytes
    label: str  # the driver's name of the switch
    pcie_mode: PcieMode
    certificates: bytes  # PEM, leaf first
    report: bytes


def nscq_error(subject: str, code: int) -> BackendError:
    """Return the error for a negative return code of NSCQ; `subject` names the call.

    It is a BackendBusyError for a timeout, a BackendUnavailableError for another driver version.
    """
    meaning = _MEANINGS.get(code, "undocumented error; see the kernel log")
    text = f"{subject}: {meaning} (NSCQ error {code})"
    if code == _TIMEOUT:
        return BackendBusyError(text, reason="timed_out", path=_LIBRARY)
    if code == _UNSUPPORTED_DRIVER:
        return BackendUnavailableError(text, reason="unsupported_driver", path=_LIBRARY)
    return BackendError(text, reason="gpu_error", path=_LIBRARY)


def read_switches(nonce: bytes, time_limit: float = TIME_LIMIT) -> tuple[SwitchReading, ...]:
    """Read certificates and reports of all NVSwitches of this machine.

    Args:
        nonce: Exactly 32 bytes, for all reports.
        time_limit: Seconds per call.

    Raises:
        BackendUnavailableError: If the library is missing or its version is not the driver's, or a
            switch is not an LS10.
        BackendBusyError: If a call exceeds the time limit.
        BackendError: If the library returns any other error, or invalid data.
    """
    with contextlib.closing(_Session(time_limit)) as session:
        labels = session.labels()
        architectures = session.bytes_of(_ARCHITECTURE)
        for label, architecture in architectures.items():
            if architecture != _LS10:
                text = f"switch {label}: its architecture (number {architecture} of NSCQ) cannot "
                text += "create evidence; use NVSwitches of LS10"
                raise BackendUnavailableError(text, reason="wrong_platform")
        modes = session.bytes_of(_PCIE_MODE)
        certificates = session.blobs_of(_CERTIFICATE, _CERTIFICATE_CALLBACK)
        session.set_nonce(nonce)
        reports = session.blobs_of(_REPORT, _REPORT_CALLBACK)
    _check_complete(labels, architectures, modes, certificates, reports)
    return tuple(
        SwitchReading(
            uuid,
            label,
            _PCIE_MODES.get(modes[label], "unknown"),
            certificates[label],
            reports[label],
        )
        for label, uuid in labels.items()
    )


def _check_complete(labels: Iterable[str], *values: Container[str]) -> None:
    """Raise BackendError unless each label of a switch is in each of `values`, by label."""
    for label in labels:
        if not all(label in found for found in values):
            problem = "architecture, PCIe mode, certificates or report is missing"
            raise _malformed(f"switch {label}", problem)


class _Session(DriverSession):
    """A session of NSCQ."""

    def __init__(self, time_limit: float) -> None:
        super().__init__(time_limit)
        self._library = _load_library()
        created: _SessionResult = self._call(
            "NVSwitch session", self._library.nscq_session_create, c_uint32(_MOUNT_DEVICES)
        )
        if created.rc < 0:
            raise nscq_error("NVSwitch session", created.rc)
        self._session = c_void_p(created.session)

    def close(self) -> None:
        """Destroy the session, unless a call in it hangs.

        A timeout of this call is ignored: results and errors of earlier calls are final.
        """
        if not self._hangs:
            destroy = self._library.nscq_session_destroy
            with contextlib.suppress(BackendBusyError):
                self._call("NVSwitch session", destroy, self._session)

    def set_nonce(self, nonce: bytes) -> None:
        """Set the nonce of the reports that are read after this call."""
        buffer = (c_uint8 * len(nonce))(*nonce)
        arguments = (self._session, c_uint32(0), byref(buffer), c_uint32(len(nonce)))
        code = self._call("NVSwitch nonce", self._library.nscq_session_set_input, *arguments)
        if code < 0:
            raise nscq_error("NVSwitch nonce", code)

    def labels(self) -> dict[str, bytes]:
        """Return the UUID of each switch by its label."""
        uuids = [uuid for uuid, _ in self._observe(_UUIDS, _UUID_CALLBACK, lambda _: None)]
        labels = {self._label(uuid): uuid for uuid in uuids}
        if len(labels) != len(uuids):
            raise _malformed("NVSwitch", "labels of switches must be unique")
        return labels

    def bytes_of(self, path: bytes) -> dict[str, int]:
        """Return the property (a number) of each switch that NSCQ's `path` selects, by label."""
        return self._by_label(path, _BYTE_CALLBACK, int)

    def blobs_of(self, path: bytes, callback: _Callback) -> dict[str, bytes]:
        """Return certificates or report of each switch, as NSCQ's `path` selects, by label."""
        found: dict[str, bytes] = self._by_label(path, callback, _content)
        for label, data in found.items():
            if not data:
                raise _malformed(f"switch {label}", "wrong size of report or certificates")
        return found

    def _by_label(
        self, path: bytes, callback: _Callback, convert: Callable[[Any], T]
    ) -> dict[str, T]:
        observed = self._observe(path, callback, convert)
        return {self._label(uuid): value for uuid, value in observed}

    def _observe(
        self, path: bytes, callback: _Callback, convert: Callable[[Any], T]
    ) -> list[tuple[bytes, T]]:
        """Return UUID and value of each switch for NSCQ's path; `convert` runs in the callback."""
        found: list[tuple[bytes, T]] = []
        codes: list[int] = []

        def observe(
            device: "ctypes._Pointer[_Uuid] | None", code: int, value: object, _data: object
        ) -> None:
            codes.append(code if device else _UNSPECIFIED)
            if device and code >= 0 and len(found) <= MAX_SWITCHES:
                found.append((bytes(device.contents.bytes), convert(value)))

        subject = f"NVSwitch {path.decode()}"
        code = self._call(
            subject,
            self._library.nscq_session_path_observe,
            *(self._session, c_char_p(path), callback(observe), None, c_uint32(0)),
        )
        if failures := [each for each in (code, *codes) if each < 0]:
            raise nscq_error(subject, failures[0])
        if len(found) > MAX_SWITCHES:
            raise _malformed(subject, f"more than {MAX_SWITCHES} switches")
        return found

    def _label(self, uuid: bytes) -> str:
        label = _Label()
        code = self._call(
            "NVSwitch label",
            self._library.nscq_uuid_to_label,
            *(byref(_Uuid((c_uint8 * 16)(*uuid))), byref(label), c_uint32(0)),
        )
        if code < 0:
            raise nscq_error("NVSwitch label", code)
        return ascii(bytes(label.data).decode("latin-1"))[1:-1]


def _content(value: _Report | _Certificate) -> bytes:
    """Return the used part of a buffer of NSCQ; b"" if the stated size exceeds the buffer.

    Callbacks cannot raise errors.
    """
    return bytes(value.data[: value.size]) if value.size <= len(value.data) else b""


def _load_library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        text = f"{_LIBRARY}: cannot be loaded; {_INSTALL}"
        raise BackendUnavailableError(text, reason="missing", path=_LIBRARY) from error
    try:
        library.nscq_session_create.restype = _SessionResult
        library.nscq_session_destroy.restype = None
        for name in ("session_set_input", "session_path_observe", "uuid_to_label"):
            getattr(library, f"nscq_{name}").restype = c_int8
    except AttributeError as error:
        text = f"{_LIBRARY}: the library is too old; {_INSTALL}"
        raise BackendUnavailableError(text, reason="unsupported_driver", path=_LIBRARY) from error
    return library


def _malformed(subject: str, problem: str) -> BackendError:
    text = f"{subject}: invalid answer of the library: {problem}; update the driver"
    return BackendError(text, reason="malformed_response", path=_LIBRARY)
