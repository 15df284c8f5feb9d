"""Fake of Linux's configfs-tsm: file operations, generation counter and report cache.

It follows `drivers/virt/coco/guest/report.c` (tsm.c before 6.16), the TDX and SNP drivers, and
configfs, which delivers a binary attribute at close and drops the driver's error.
"""

import errno
import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from attestkit.backends.tsm.configfs_files import DirectoryEntry, OsFiles, TsmSystem
from attestkit.backends.tsm.report import TsmClient, TsmRequest
from attestkit.errors import AttestKitError

CONFIGFS = "/sys/kernel/config"
FOLDER = f"{CONFIGFS}/tsm/report"
CERTIFICATES = b"certificates of the host"
MANIFEST = b"manifest of the SVSM"

REPORT_DATA = bytes(range(64))
REQUEST = TsmRequest(REPORT_DATA)
SNP_REQUEST = TsmRequest(REPORT_DATA, certificates=True)
SHARED = f"{FOLDER}/com.intel.dcap"


def refuse(number: int) -> OSError:
    """Return the error that the kernel answers with."""
    return OSError(number, os.strerror(number))


@dataclass
class Fault:
    """One injected failure.

    `effect` is an errno; an exception raised during the call; "drop" for a write that the driver
    rejects without an error; or the bytes that a read returns instead of the real content.
    """

    operation: str  # make, write, read, list, remove
    name: str  # of the file; "" for an entry or a directory
    effect: int | BaseException | str | bytes
    times: int = 1
    after: int = 0  # number of successful calls before it


@dataclass
class Entry:
    """State of one entry in the kernel."""

    made_at: float = 0.0
    inblob: bytes = b""
    written: int = 0
    read: int = -1
    blobs: dict[str, bytes] = field(default_factory=dict)
    options: dict[str, bytes] = field(default_factory=dict)


@dataclass
class TsmKernel(OsFiles):
    """Fake kernel with one TSM driver and a virtual clock."""

    provider: str | None = "tdx_guest"
    svsm: bool = False
    floor: int = 0
    level: int = 0  # of an SNP guest: the lowest VMPL that it may request
    mounted: bool = True
    loaded: bool = True
    folder: str = FOLDER
    faults: list[Fault] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)  # "write inblob"
    written: list[tuple[str, bytes]] = field(default_factory=list)  # file and content
    reports: list[bytes] = field(default_factory=list)  # all reports made
    slept: list[float] = field(default_factory=list)
    time: float = 1000.0
    living: set[int] = field(default_factory=set)
    locked: bool = False
    release_at: float = float("inf")  # time at which another process releases the lock
    key_wiped: bool = False
    make_report: Callable[[bytes], bytes] | None = None
    before: Callable[[str, str], None] = lambda _operation, _path: None

    def system(self) -> TsmSystem:
        """Return the system interface of the TSM client, backed by this fake."""
        return TsmSystem(
            files=self,
            clock=lambda: self.time,
            sleep=self._sleep,
            now=lambda: self.time,
            pid=lambda: 77,
            alive=lambda pid: pid in self.living,
            permissions=lambda path: f"{path} has mode 0755, owner uid 0; process uid 1000",
            try_lock=self._try_lock,
        )

    def _sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.time += seconds

    def _try_lock(self, path: str) -> Callable[[], None] | None:
        if self._find(path)[0] is None:
            raise refuse(errno.ENOENT)
        if self.locked and self.time < self.release_at:
            return None
        self.locked = True

        def unlock() -> None:
            self.locked = False

        return unlock

    # -- file operations ---------------------------------------------------------------------------

    def make(self, path: str) -> None:
        """Create an entry; an injected signal is raised after the entry exists."""
        folder, _, name = path.rpartition("/")
        fault = self._begin("make", "", path)
        if isinstance(fault, int):
            raise refuse(fault)
        if folder != self.folder or not (self.mounted and self.loaded):
            raise refuse(errno.ENOENT)
        if self.provider is None:
            raise refuse(errno.ENXIO)
        if name in self.entries:
            raise refuse(errno.EEXIST)
        self.entries[name] = Entry(made_at=self.time)
        if isinstance(fault, BaseException):
            raise fault

    def write(self, path: str, data: bytes) -> None:
        """Write to a file and close it."""
        entry, name = self._find(path)
        fault = self._begin("write", name, path)
        if isinstance(fault, BaseException):
            raise fault
        if isinstance(fault, int):
            raise refuse(fault)
        if entry is None or name not in self._files():
            raise refuse(errno.ENOENT)
        if not data:
            raise refuse(errno.EFAULT)
        self.written.append((name, data))
        if name == "inblob":
            self._write_inblob(entry, data, dropped=fault == "drop")
        else:
            self._write_option(entry, name, data)

    def _write_inblob(self, entry: Entry, data: bytes, *, dropped: bool) -> None:
        if len(data) > 64:
            raise refuse(errno.EFBIG)
        if not dropped:  # the driver receives the data at close, which cannot report an error
            entry.inblob = data
            entry.written += 1

    def _write_option(self, entry: Entry, name: str, data: bytes) -> None:
        if name == "privlevel":
            text = data.decode().strip()
            if not text.isdigit() or not self.floor <= int(text) <= 3:
                raise refuse(errno.EINVAL)
        elif not name.startswith("service_"):
            raise refuse(errno.EACCES)
        entry.options[name] = data
        entry.written += 1

    def read(self, path: str, limit: int) -> bytes:
        """Read from a file to its end."""
        entry, name = self._find(path)
        fault = self._begin("read", name, path)
        if isinstance(fault, BaseException):
            raise fault
        if entry is None or name not in self._files():
            raise refuse(errno.ENOENT)
        blob = name in ("outblob", "auxblob", "manifestblob")
        if isinstance(fault, int):
            self.key_wiped |= blob and self._is_snp() and fault in (errno.EIO, errno.ETIMEDOUT)
            raise refuse(fault)
        data = self._blob(entry, name, fault) if blob else self._text(entry, name, fault)
        return data[: limit + 1]

    def _text(self, entry: Entry, name: str, fault: object) -> bytes:
        if isinstance(fault, bytes):
            return fault
        if name == "provider":
            if self.provider is None:
                raise refuse(errno.ENXIO)
            return self.provider.encode() + b"\n"
        if name == "privlevel_floor":
            return b"%d\n" % self.floor
        assert name == "generation", name
        return b"%d\n" % entry.written

    def _blob(self, entry: Entry, name: str, fault: object) -> bytes:
        """Return the report for the last write, made once and cached, even if it is empty."""
        if self.provider is None:
            raise refuse(errno.ENXIO)
        if not entry.inblob:
            raise refuse(errno.EINVAL)
        if not entry.blobs or entry.read != entry.written:
            entry.blobs = {}
            entry.blobs = self._report(entry)
            entry.read = entry.written
        if isinstance(fault, bytes):
            entry.blobs[name] = fault
        return entry.blobs[name]

    def _report(self, entry: Entry) -> dict[str, bytes]:
        if self._is_snp() and self.key_wiped:
            raise refuse(errno.ENOTTY)
        if len(entry.inblob) != 64:
            raise refuse(errno.EINVAL)
        if self._is_snp() and int(entry.options.get("privlevel", b"0")) < self.level:
            raise refuse(errno.EINVAL)
        if self.make_report is None:
            size = 1184 if self._is_snp() else 4998
            report = expected_report(entry.inblob, len(self.reports), size)
        else:
            report = self.make_report(entry.inblob)
        self.reports.append(report)
        return {
            "outblob": report,
            "auxblob": CERTIFICATES + report[:72],
            "manifestblob": MANIFEST if b"svsm" in entry.options.values() else b"",
        }

    def list(self, path: str) -> list[DirectoryEntry]:
        """List a folder."""
        fault = self._begin("list", "", path)
        if isinstance(fault, BaseException):
            raise fault
        if isinstance(fault, int):
            raise refuse(fault)
        if path == self.folder and self.mounted and self.loaded:
            return [DirectoryEntry(name, entry.made_at) for name, entry in self.entries.items()]
        if path == CONFIGFS:
            return [DirectoryEntry("nvmet", 0.0)] if self.mounted else []
        entry, name = self._find(f"{path}/")
        if entry is None or name:
            raise refuse(errno.ENOENT)
        return [DirectoryEntry(name, 0.0) for name in self._files()]

    def remove(self, path: str) -> None:
        """Remove an entry, even with open files."""
        name = path.rpartition("/")[2]
        fault = self._begin("remove", "", path)
        if isinstance(fault, int):
            raise refuse(fault)
        if self.entries.pop(name, None) is None:
            raise refuse(errno.ENOENT)
        if isinstance(fault, BaseException):
            raise fault

    # -- private -----------------------------------------------------------------------------------

    def _is_snp(self) -> bool:
        return (self.provider or "").startswith("sev")

    def _files(self) -> set[str]:
        files = {"generation", "inblob", "outblob", "provider"}
        if self._is_snp():
            files |= {"auxblob", "privlevel", "privlevel_floor"}
            if self.svsm:
                files |= {"service_provider", "service_guid", "service_manifest_version"}
                files.add("manifestblob")
        return files

    def _find(self, path: str) -> tuple[Entry | None, str]:
        folder, _, name = path.rpartition("/")
        parent, _, entry = folder.rpartition("/")
        return (self.entries.get(entry) if parent == self.folder else None), name

    def _begin(self, operation: str, name: str, path: str) -> int | BaseException | str | bytes:
        """Record a call, and return its injected failure."""
        self.before(operation, path)
        self.calls.append(f"{operation} {name}".strip())
        for fault in self.faults:
            if (fault.operation, fault.name) == (operation, name):
                if fault.after:
                    fault.after -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault.effect
        return ""


def expected_report(report_data: bytes, serial: int, size: int) -> bytes:
    """Return the report over `report_data`, unique by its serial number."""
    head = struct.pack("<Q", serial) + report_data
    return (head + hashlib.sha256(head).digest() * (size // 32))[:size]


def snp(*, svsm: bool = False, floor: int = 0, level: int = 0) -> TsmKernel:
    """Return the kernel of an SNP guest."""
    return TsmKernel(provider="sev_guest", svsm=svsm, floor=floor, level=level)


def make_client(kernel: TsmKernel, entry: str | None = None) -> TsmClient:
    """Return a client of this kernel, with the call log empty."""
    reports = TsmClient(FOLDER, entry, kernel.system())
    reports.identify()
    kernel.calls.clear()
    return reports


def add_shared_entry(kernel: TsmKernel) -> Entry:
    """Create the entry that several processes share."""
    return kernel.entries.setdefault("com.intel.dcap", Entry())


def request_error(
    kernel: TsmKernel, *faults: Fault, request: TsmRequest = REQUEST
) -> AttestKitError:
    """Return the error of a request with these faults, and assert that no entry is left."""
    reports = make_client(kernel)
    kernel.faults += faults
    with pytest.raises(AttestKitError) as caught:
        reports.request(request)
    assert not kernel.entries
    return caught.value
