"""configfs-tsm: the folder of report entries (Documentation/ABI/testing/configfs-tsm-report).

Source: drivers/virt/coco/tsm.c of Linux 6.12. A `Provider` makes the reports.
"""

from collections.abc import Callable
from dataclasses import dataclass
from errno import EFBIG, EINVAL, ENOENT, ENXIO, ERANGE
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.emulator import kernel_files

_INBLOB_LIMIT: Final = 64
_PAGE: Final = 4096  # st_size of text files of configfs
_PRIVLEVEL_MAX: Final = 3
_UINT_MAX: Final = (1 << 32) - 1
_OTHER: Final = {"tdx_guest": "sev_guest", "sev_guest": "tdx_guest"}


@dataclass(slots=True)
class Request:
    """The attributes written to a report entry; they are named like its files.

    `inblob` is the report data; `privlevel` is the VMPL; `service_guid` has 16 bytes, as UUID's
    `bytes_le`, zeros for all services.
    """

    inblob: bytes = b""
    privlevel: int = 0
    service_provider: str | None = None
    service_guid: bytes = bytes(16)
    service_manifest_version: int = 0


class Blobs(NamedTuple):
    """A report (outblob) with the other blobs of the response, which may be empty.

    `auxblob` has the certificates, `manifestblob` the manifest of an SVSM's services.
    """

    outblob: bytes
    auxblob: bytes = b""
    manifestblob: bytes = b""


class Provider:
    """A TEE driver behind configfs-tsm, which makes the reports."""

    name = ""  # content of the provider file
    extras: tuple[str, ...] = ()  # names of the additional files of an entry
    privlevel_floor = 0  # the lowest privlevel that can be requested

    def report(self, request: Request) -> Blobs:
        """Return a report on the attributes in `request`, or raise the driver's OSError."""
        raise NotImplementedError  # each driver has its own

    def failed(self, number: int) -> None:
        """Handle the errno `number` of a failed read of a report; by default do nothing."""

    def reboot(self) -> None:
        """Reset the driver at a reboot, but not at a kexec."""


class TsmReports(kernel_files.Folder):
    """`/sys/kernel/config/tsm/report`.

    Args:
        provider: The loaded driver; None: no driver.
        outblob_limit: Maximum size of an outblob in bytes.
        faults: The armed faults.
    """

    def __init__(self, provider: Provider | None, outblob_limit: int, faults: Faults) -> None:
        super().__init__()
        self.provider = provider
        self.outblob_limit = outblob_limit
        self.faults = faults

    def make(self, _name: str) -> kernel_files.Folder:
        """Create and return an entry; its name has no effect. Raises ENXIO without a provider."""
        self.faults.check("mkdir")
        if self.faults.strike("unload"):
            self.provider = None
        return _Entry(self, self.driver())

    def remove(self, name: str) -> None:
        """Remove the entry `name`, even if its files are open."""
        self.faults.check("rmdir")
        self.mark_removed(name)

    def mark_removed(self, name: str) -> None:
        """Make open files of the entry `name` fail with ENOENT."""
        entry = self.names[name]
        assert isinstance(entry, _Entry)
        entry.removed = True

    def driver(self) -> Provider:
        """Return the provider; raises ENXIO without one."""
        if self.provider is None:
            raise kernel_files.os_error(ENXIO)
        return self.provider


class _Entry(kernel_files.Folder):
    """A report entry: the attributes written to it, and the report on them."""

    def __init__(self, reports: TsmReports, provider: Provider) -> None:
        super().__init__()
        self.reports = reports
        self.removed = False
        self._request = Request()
        self._blobs: Blobs | None = None
        self._generation = 0  # of the attributes
        self._read_generation = 0  # of `_blobs`
        faults = reports.faults
        texts: dict[str, Callable[[], bytes]] = {
            "provider": self._provider,
            "generation": lambda: b"%d\n" % self._generation,
            "privlevel_floor": lambda: b"%d\n" % reports.driver().privlevel_floor,
        }
        stores: dict[str, Callable[[bytes], None]] = {
            "privlevel": self._store_privlevel,
            "service_provider": self._store_service_provider,
            "service_guid": self._store_service_guid,
            "service_manifest_version": self._store_service_manifest_version,
        }
        writer = partial(kernel_files.BinaryWriter, limit=_INBLOB_LIMIT, commit=self.commit)
        self.names["inblob"] = kernel_files.File("inblob", faults, writer, mode=0o200)
        for name in ("outblob", "provider", "generation", *provider.extras):
            if name in texts:
                show = self.if_present(texts[name])
                self.names[name] = kernel_files.text_file(name, faults, show, size=_PAGE)
            elif name in stores:
                opened = partial(_OptionWriter, self, stores[name])
                self.names[name] = kernel_files.File(name, faults, opened, mode=0o200, size=_PAGE)
            else:
                self.names[name] = kernel_files.File(name, faults, partial(_BlobReader, self))

    def if_present(self, show: Callable[[], bytes]) -> Callable[[], bytes]:
        """Return a function that returns `show()`; it raises ENOENT after the entry is removed."""

        def checked() -> bytes:
            if self.removed:
                raise kernel_files.os_error(ENOENT)
            return show()

        return checked

    def _provider(self) -> bytes:
        name = self.reports.driver().name
        if self.reports.faults.strike("provider"):
            name = _OTHER[name]
        return name.encode() + b"\n"

    def commit(self, inblob: bytes) -> None:
        """Store the content of the file inblob, up to 64 bytes, for the next report."""
        self._advance()
        self._request.inblob = inblob
        if self.reports.faults.strike("commit"):  # another process writes to the entry
            self._advance()

    def _advance(self) -> None:
        self._generation += 1

    def blob(self, name: str) -> bytes:
        """Return the blob `name` of a report on the current attributes, requested if they changed.

        It is `outblob`, `auxblob` or `manifestblob`.
        """
        if self.removed:
            raise kernel_files.os_error(ENOENT)
        if not self._request.inblob:
            raise kernel_files.os_error(EINVAL)
        if self._blobs is None or self._read_generation != self._generation:
            self._blobs = None
            blobs = self.reports.driver().report(self._request)
            self._blobs, self._read_generation = blobs, self._generation
        blob: bytes = getattr(self._blobs, name)
        if len(blob) > self.reports.outblob_limit:
            raise kernel_files.os_error(EFBIG)
        return blob

    def _store_privlevel(self, data: bytes) -> None:
        level = _kstrtouint(data)
        if not self.reports.driver().privlevel_floor <= level <= _PRIVLEVEL_MAX:
            raise kernel_files.os_error(EINVAL)
        self._advance()
        self._request.privlevel = level

    def _store_service_provider(self, data: bytes) -> None:
        self._advance()
        text = data.removesuffix(b"\n").split(b"\0")[0]
        self._request.service_provider = text.decode("utf-8", "replace")

    def _store_service_guid(self, data: bytes) -> None:
        self._advance()  # before parsing: an invalid value counts as a write
        self._request.service_guid = bytes(16)
        text = data[:36]
        if len(text) != 36 or any(text[at] != 0x2D for at in (8, 13, 18, 23)):
            raise kernel_files.os_error(EINVAL)
        try:
            self._request.service_guid = UUID(text.decode("ascii")).bytes_le
        except ValueError:
            raise kernel_files.os_error(EINVAL) from None

    def _store_service_manifest_version(self, data: bytes) -> None:
        version = _kstrtouint(data)
        self._advance()
        self._request.service_manifest_version = version


def _kstrtouint(data: bytes) -> int:
    """Parse a number in ASCII as the kernel's kstrtouint: C prefixes, and at most one newline."""
    text = data.split(b"\0")[0].removesuffix(b"\n").removeprefix(b"+")
    base, digits = 10, text
    if text[:2].lower() == b"0x":
        base, digits = 16, text[2:]
    elif text[:1] == b"0":
        base, digits = 8, text
    try:
        if not digits.isalnum():
            raise kernel_files.os_error(EINVAL)
        number = int(digits, base)
    except ValueError:
        raise kernel_files.os_error(EINVAL) from None
    if number > _UINT_MAX:
        raise kernel_files.os_error(ERANGE)
    return number


class _BlobReader(kernel_files.Snapshot):
    """An open blob. An empty blob is not cached, so the next read requests it again."""

    seekable = False

    def __init__(self, entry: _Entry, file: kernel_files.File) -> None:
        super().__init__(file, lambda: entry.blob(file.label))
        self._reports = entry.reports

    def read(self, size: int, offset: int) -> bytes:
        try:
            data = super().read(size, offset)
        except OSError as error:
            if self._reports.provider is not None:
                self._reports.provider.failed(error.errno or 0)
            raise
        if not self._content:
            self._content = None
        return data


@dataclass(eq=False, repr=False)
class _OptionWriter(kernel_files.OpenFile):
    """An open option of an entry; each write is stored immediately."""

    entry: _Entry
    store: Callable[[bytes], None]
    file: kernel_files.File

    def write(self, data: bytes, _offset: int) -> int:
        self.file.faults.check(f"write:{self.file.label}")
        if self.entry.removed:
            raise kernel_files.os_error(ENOENT)
        self.store(data[: kernel_files.WRITE_LIMIT])
        return min(len(data), kernel_files.WRITE_LIMIT)
