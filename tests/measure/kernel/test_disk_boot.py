"""Events of a boot from a disk."""

import pytest

from attestkit._crypto.hashes import sha384
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import EventLog
from attestkit.measure.kernel.disk_boot import (
    BootImage,
    GptTable,
    GrubBoot,
    disk_boot_events,
    gpt_event,
    grub_single_events,
)
from attestkit.measure.kernel.pe_image import authenticode_digest
from tests.measure.kernel.samples import gpt_disk, linux_kernel, pe_image
from tests.vectors import data, needs_shared

TABLE = GptTable.parse(gpt_disk())
SHIM = BootImage("shim", pe_image([(".text", b"shim")]))
GRUB = BootImage("grub", pe_image([(".text", b"grub")]))
KERNEL = BootImage("kernel", linux_kernel())


@pytest.mark.parametrize("separator", [False, True])
def test_disk_boot_events_are_in_order(separator: bool) -> None:
    """The partition table comes before the images, which are in the order of loading."""
    events = disk_boot_events(TABLE, [SHIM, GRUB, KERNEL], separator=separator)
    names = [*["calling"], *["separator"] * separator, "gpt", "shim", "grub", "kernel"]
    names += ["exit-invocation", "exit-success"]
    assert [event.name for event in events] == names
    assert {event.register for event in events} == {1}
    found = {event.name: event.digest for event in events}
    assert found["gpt"] == gpt_event(TABLE).digest
    assert found["grub"] == authenticode_digest(GRUB.data)


@pytest.mark.parametrize("count", [0, 65])
def test_disk_boot_events_refuse_number_of_images(count: int) -> None:
    """A boot loads one image at least, and not hundreds."""
    with pytest.raises(UsageError) as caught:
        disk_boot_events(TABLE, [KERNEL] * count, separator=True)
    assert caught.value.reason == "out_of_range"


def test_grub_single_events_have_texts_without_nul() -> None:
    """GRUB neither measures nor passes a final NUL."""
    boot = GrubBoot(KERNEL.data, (b"one", b"twotwo"), "/vmlinuz ro")
    found = {event.name: event.digest for event in grub_single_events(boot)}
    assert found["kernel"] == authenticode_digest(KERNEL.data)
    assert found["grub-kernel-file"] == sha384(KERNEL.data)
    assert found["grub-cmdline"] == sha384(b"/vmlinuz ro")
    assert found["load-options"] == sha384("/vmlinuz ro".encode("utf-16-le"))
    assert found["initrd"] == sha384(b"one\0twotwo")
    files = [e.digest for e in grub_single_events(boot) if e.name == "grub-initrd-file"]
    assert files == [sha384(b"one"), sha384(b"twotwo")]


@needs_shared
@pytest.mark.parametrize(
    "name", ["cc-trusted-api/ccel_data.bin", "go-eventlog/cos-113-intel-tdx.bin"]
)
def test_grub_cmdline_event_has_the_form_of_live_logs(name: str) -> None:
    """Logs of TDs with GRUB have a digest over the command line behind its prefix."""
    log = EventLog.parse(data(f"ccel/{name}"))
    prefix = b"kernel_cmdline: "
    (event,) = [event for event in log.events if event.payload.startswith(prefix)]
    cmdline = event.payload.removeprefix(prefix).rstrip(b"\0").decode()
    boot = GrubBoot(KERNEL.data, cmdline=cmdline)
    (found,) = [one for one in grub_single_events(boot) if one.name == "grub-cmdline"]
    assert (found.register, found.event_type) == (event.register, event.event_type)
    assert found.digest == event.digest


def test_grub_single_events_without_initrd() -> None:
    """Without an initrd the events lack its own."""
    names = [event.name for event in grub_single_events(GrubBoot(KERNEL.data))]
    assert names == ["kernel", "grub-kernel-file", "grub-cmdline", "load-options"]


def test_grub_single_events_refuse_kernel_and_cmdline() -> None:
    """A kernel must be a PE image, a command line ASCII."""
    with pytest.raises(FormatError):
        grub_single_events(GrubBoot(b"\x7fELF"))
    with pytest.raises(UsageError):
        grub_single_events(GrubBoot(KERNEL.data, cmdline="\xe9"))
