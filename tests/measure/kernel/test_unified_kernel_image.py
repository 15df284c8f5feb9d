"""Unified kernel images: events of systemd-stub and of the kernel in the image."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.hashes import sha384
from attestkit.errors import FormatError, UsageError
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.kernel.disk_boot import BootImage, GptTable
from attestkit.measure.kernel.pe_image import authenticode_digest
from attestkit.measure.kernel.unified_kernel_image import (
    UnifiedKernelImage,
    join_initrds,
    pack_extra_file,
)
from tests.measure.kernel.samples import gpt_disk, linux_kernel, noise, pe_image

KERNEL = linux_kernel()
OS_RELEASE = b"ID=test\n"
SECTIONS = [
    (".text", b"stub"),
    (".initrd", noise("initrd", 1001)),
    (".pcrsig", b"signature"),
    (".osrel", OS_RELEASE),
    (".cmdline", b" quiet\tro \n\0"),
    (".linux", KERNEL),
]


def uki(*more: tuple[str, bytes], leave_out: str = "") -> UnifiedKernelImage:
    """Return an image with some sections more, or one less."""
    sections = [section for section in SECTIONS if section[0] != leave_out]
    return UnifiedKernelImage.parse(pe_image([*sections, *more]))


def digests(events: list[ExpectedEvent]) -> dict[str, bytes | None]:
    """Return digests by the names of events."""
    return {event.name: event.digest for event in events}


def test_stub_measures_names_and_contents_in_its_order() -> None:
    """Sections are in the stub's order, not that of the file, each after its name."""
    events = uki((".pcrpkey", b"key")).rtmr2_events()[0]
    names = [event.name for event in events]
    order = [".linux", ".osrel", ".cmdline", ".initrd", ".pcrpkey"]
    expected = [name for section in order for name in (f"{section} name", section)]
    assert names == [*expected, "load-options", "initrd"]
    assert {event.event_type for event in events[:-2]} == {0xD}
    assert {event.register for event in events} == {2}
    found = digests(events)
    assert found[".linux name"] == sha384(b".linux\0")
    assert found[".linux"] == sha384(KERNEL)
    assert found[".cmdline"] == sha384(b" quiet\tro \n\0")


def test_stub_without_tpm_support_leaves_the_kernels_events() -> None:
    """Only the load options and the initrd are measured then."""
    found = uki().rtmr2_events()
    assert found[1] == found[0][-2:]
    assert [event.name for event in found[1]] == ["load-options", "initrd"]


def test_command_line_is_cleaned() -> None:
    """White space at the ends is cut, and control characters become spaces."""
    image = uki()
    assert image.cmdline == "quiet ro"
    found = digests(image.rtmr2_events()[1])
    assert found["load-options"] == sha384("quiet ro\0".encode("utf-16-le"))


def test_passed_command_line_is_measured_and_replaces_that_of_the_image() -> None:
    """The command line of the boot loader is one more event of the stub."""
    found = uki().rtmr2_events(" single ")
    options = "single\0".encode("utf-16-le")
    assert digests(found[0])["passed-cmdline"] == sha384(options)
    assert digests(found[1])["load-options"] == sha384(options)


def test_image_without_command_line_and_initrd() -> None:
    """A kernel without load options has no event of them."""
    image = UnifiedKernelImage.parse(pe_image([(".linux", KERNEL)]))
    assert image.rtmr2_events()[1] == []
    assert image.cmdline == ""
    assert image.initrd == b""


def test_initrd_contains_microcode_and_files_of_sections() -> None:
    """The kernel receives archives that the stub makes, behind microcode and initrd."""
    image = uki((".ucode", b"microcode"), (".pcrpkey", b"key"))
    initrd = image.sections[".initrd"]
    parts = [b"microcode\0\0\0", initrd + b"\0\0\0"]
    parts += [
        pack_extra_file("tpm2-pcr-signature.json", b"signature"),
        pack_extra_file("tpm2-pcr-public-key.pem", b"key"),
        pack_extra_file("os-release", OS_RELEASE),
    ]
    assert image.initrd == b"".join(parts)
    assert digests(image.rtmr2_events()[1])["initrd"] == sha384(image.initrd)


def test_single_initrd_is_not_padded() -> None:
    """Only several initrds are padded, when they are joined."""
    assert join_initrds([b"abc"]) == b"abc"
    assert join_initrds([b"abc", b"d"]) == b"abc\0d\0\0\0"
    assert join_initrds([]) == b""


def test_archive_has_folder_file_and_trailer() -> None:
    """The archive is in the format newc."""
    archive = pack_extra_file("os-release", OS_RELEASE)
    assert len(archive) % 4 == 0
    records = io.BytesIO(archive)
    names: list[str] = []
    content = b""
    while not names or names[-1] != "TRAILER!!!":
        head = records.read(110)
        assert head[:6] == b"070701"
        fields = [int(head[at : at + 8], 16) for at in range(6, 110, 8)]
        names.append(records.read(fields[11])[:-1].decode())
        records.seek(-records.tell() % 4, io.SEEK_CUR)
        content += records.read(fields[6])
        records.seek(-records.tell() % 4, io.SEEK_CUR)
    assert names == [".extra", ".extra/os-release", "TRAILER!!!"]
    assert content == OS_RELEASE
    assert records.read() == b""


@pytest.mark.parametrize("separator", [False, True])
def test_rtmr1_events_of_a_disk(separator: bool) -> None:
    """On a disk, boot loader, image and kernel follow the partition table."""
    image, table = uki(), GptTable.parse(gpt_disk())
    loader = BootImage("boot", pe_image([(".text", b"loader")]))
    events = image.rtmr1_events(table, separator=separator, boot_loaders=[loader])
    names = ["calling", *["separator"] * separator, "gpt", "boot", "uki", "kernel"]
    assert [event.name for event in events] == [*names, "exit-invocation", "exit-success"]
    found = digests(events)
    assert found["uki"] == authenticode_digest(image.data)
    assert found["kernel"] == authenticode_digest(KERNEL)


def test_rtmr1_events_of_direct_boot() -> None:
    """QEMU's image is loaded before the boot option is called, the kernel in it after."""
    image = uki()
    events = image.rtmr1_events(None, separator=True)
    names = ["uki", "calling", "separator", "kernel", "exit-invocation", "exit-success"]
    assert [event.name for event in events] == names
    on_disk = image.rtmr1_events(GptTable.parse(gpt_disk()), separator=True)
    assert set(events) == {event for event in on_disk if event.name != "gpt"}


def test_first_profile_overrides_the_base() -> None:
    """Sections behind the first `.profile` replace those before; later profiles do not count."""
    image = uki(
        (".profile", b"ID=main"),
        (".cmdline", b"main"),
        (".profile", b"ID=other"),
        (".cmdline", b"other"),
    )
    assert image.cmdline == "main"
    assert image.sections[".profile"] == b"ID=main"
    assert image.initrd.endswith(pack_extra_file("profile", b"ID=main"))


def test_first_of_equal_sections_counts() -> None:
    """A second section of the same name is ignored."""
    assert uki((".cmdline", b"second")).cmdline == "quiet ro"


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ([(".text", b"stub")], "missing"),
        ([*SECTIONS, (".dtbauto", b"x")], "unsupported"),
        ([*SECTIONS, (".hwids", b"x")], "unsupported"),
    ],
)
def test_parse_refuses_image(sections: list[tuple[str, bytes]], reason: str) -> None:
    """An image without a kernel, or one that depends on the machine, is refused."""
    with pytest.raises(FormatError) as caught:
        UnifiedKernelImage.parse(pe_image(sections))
    assert caught.value.reason == reason


def test_command_line_has_only_characters_of_16_bits() -> None:
    """The stub drops other characters, and keeps those of two and three bytes."""
    text = "a\xe9\u20ac\U0001f512b"
    image = uki((".cmdline", text.encode()), leave_out=".cmdline")
    assert image.cmdline == "a\xe9\u20acb"
    found = digests(image.rtmr2_events()[1])
    assert found["load-options"] == sha384("a\xe9\u20acb\0".encode("utf-16-le"))


@pytest.mark.parametrize("cmdline", ["\xe9", "a\0b", "\ud800"])
def test_passed_command_line_must_be_ascii(cmdline: str) -> None:
    """Firmware would convert other characters byte by byte."""
    with pytest.raises(UsageError) as caught:
        uki().rtmr2_events(cmdline)
    assert caught.value.reason == "encoding"


def test_boot_loaders_need_a_disk() -> None:
    """QEMU starts the image itself."""
    loader = BootImage("boot", KERNEL)
    with pytest.raises(UsageError) as caught:
        uki().rtmr1_events(None, separator=True, boot_loaders=[loader])
    assert caught.value.reason == "not_applicable"


def test_command_line_must_be_utf8() -> None:
    """Other bytes have no defined conversion."""
    image = uki((".cmdline", b"\xff"), leave_out=".cmdline")
    with pytest.raises(FormatError) as caught:
        image.rtmr2_events()
    assert caught.value.reason == "encoding"


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (b"\x7fELF", "unrecognized"),
        (pe_image([(".text", b"old")], image_version=0), "unsupported_version"),
    ],
)
def test_rtmr1_events_refuse_kernel(kernel: bytes, reason: str) -> None:
    """A kernel that the firmware does not load is not measured."""
    image = uki((".linux", kernel), leave_out=".linux")
    with pytest.raises(FormatError) as caught:
        image.rtmr1_events(None, separator=True)
    assert caught.value.reason == reason


@given(st.lists(st.tuples(st.integers(0, 0x260), st.integers(0, 255)), max_size=6))
def test_parse_accepts_or_refuses_changed_headers(changes: list[tuple[int, int]]) -> None:
    """Changed headers are parsed, or refused by FormatError."""
    data = bytearray(pe_image(SECTIONS))
    for at, value in changes:
        data[at] = value
    try:
        image = UnifiedKernelImage.parse(bytes(data))
        image.rtmr1_events(None, separator=True)
        image.rtmr2_events()
    except FormatError:
        return
    assert ".linux" in image.sections
