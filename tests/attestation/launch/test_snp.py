"""The launch measurement of an SNP guest is what hardware reported."""

from typing import Any

import pytest

from attestkit._formats.cbor import Value
from attestkit.attestation.launch.snp import Section, SnpImage, SnpLaunch, measurement
from attestkit.errors import FormatError
from tests.vectors import load, needs_shared

ROW: dict[str, Any] = load("os_image_binding.json").get("sev_snp", {})
DOCUMENT: dict[Value, Value] = {
    "version": 3,
    "cmdline": "quiet dstack.rootfs_hash=" + "ab" * 32,
    "ovmf_hash": b"\1" * 48,
    "kernel_hash": b"\2" * 32,
    "initrd_hash": b"\3" * 32,
    "hashes_table_gpa": 0x810400,
    "reset_eip": 0x80B004,
    "ovmf_sections": [{"gpa": 0x810000, "size": 4096, "type": 16}],
}
IMAGE = SnpImage.read(DOCUMENT)
LAUNCH = SnpLaunch(2, "EPYC-v4", 1)


def hardware() -> tuple[SnpImage, SnpLaunch]:
    """Return image and launch of the captured guest."""
    image = SnpImage(
        ROW["cmdline"],
        bytes.fromhex(ROW["ovmf_hash"]),
        bytes.fromhex(ROW["kernel_hash"]),
        bytes.fromhex(ROW["initrd_hash"]),
        ROW["hashes_table_gpa"],
        ROW["reset_eip"],
        tuple([Section(s["gpa"], s["size"], s["type"]) for s in ROW["ovmf_sections"]]),
    )
    return image, SnpLaunch(ROW["vcpus"], ROW["vcpu_type"], ROW["guest_features"])


@needs_shared
def test_the_captured_guest_has_its_measurement() -> None:
    """From the listed inputs follows the measurement in the hardware's report."""
    assert measurement(*hardware()).hex() == ROW["measurement"]


@needs_shared
def test_every_input_enters() -> None:
    """Each field changed by a little gives another measurement."""
    image, launch = hardware()
    found = {measurement(image, launch)}
    changes: list[tuple[SnpImage, SnpLaunch]] = [
        (image._replace(cmdline=image.cmdline + " x"), launch),
        (image._replace(ovmf_hash=bytes(48)), launch),
        (image._replace(kernel_hash=bytes(32)), launch),
        (image._replace(initrd_hash=bytes(32)), launch),
        (image._replace(hashes_table_gpa=image.hashes_table_gpa + 1), launch),
        (image._replace(reset_eip=image.reset_eip + 0x10000), launch),
        (image._replace(ovmf_sections=image.ovmf_sections[::-1]), launch),
        (image, launch._replace(vcpus=3)),
        (image, launch._replace(vcpu_type="epyc-milan")),
        (image, launch._replace(guest_features=5)),
    ]
    found.update(measurement(*change) for change in changes)
    assert len(found) == 1 + len(changes)


def test_names_of_cpus_are_trimmed_and_in_any_case() -> None:
    """The names that mean one CPU give one measurement, those of two give two."""
    names = ["epyc", " EPYC-IBPB ", "Epyc-v1", "epyc-v4"]
    assert len({measurement(IMAGE, LAUNCH._replace(vcpu_type=name)) for name in names}) == 1
    names = ["epyc", "epyc-rome-v3", "epyc-milan-v2", "epyc-genoa-v1"]
    assert len({measurement(IMAGE, LAUNCH._replace(vcpu_type=name)) for name in names}) == 4


def test_the_command_line_is_trimmed() -> None:
    """Spaces around the command line are not measured."""
    padded = IMAGE._replace(cmdline=f" {IMAGE.cmdline}\n")
    assert measurement(padded, LAUNCH) == measurement(IMAGE, LAUNCH)


def test_a_section_counts_started_pages() -> None:
    """A section of 4097 bytes has two pages."""
    sections = (Section(0x1000, 4097, 1), *IMAGE.ovmf_sections)
    whole = (Section(0x1000, 8192, 1), *IMAGE.ovmf_sections)
    one, two = IMAGE._replace(ovmf_sections=sections), IMAGE._replace(ovmf_sections=whole)
    assert measurement(one, LAUNCH) == measurement(two, LAUNCH)


def test_an_empty_initrd_is_hashed() -> None:
    """No hash of an initrd means that of nothing."""
    empty = SnpImage.read(DOCUMENT | {"initrd_hash": b""})
    assert empty.initrd_hash.hex().startswith("e3b0c44298fc1c14")


KERNEL_HASHES = IMAGE.ovmf_sections[0]


@pytest.mark.parametrize(
    ("image", "launch", "text"),
    [
        ({}, {"guest_features": 0}, "guest_features"),
        ({"cmdline": "quiet"}, {}, "rootfs_hash"),
        ({"cmdline": "xdstack.rootfs_hash=" + "ab" * 32}, {}, "rootfs_hash"),
        ({"cmdline": "dstack.rootfs_hash=" + "ab" * 33}, {}, "rootfs_hash"),
        ({}, {"vcpus": 0}, "vcpus"),
        ({}, {"vcpus": 513}, "vcpus"),
        ({}, {"vcpu_type": "host"}, "vcpu_type"),
        ({"ovmf_sections": ()}, {}, "1 to 64"),
        ({"ovmf_sections": (KERNEL_HASHES,) * 65}, {}, "1 to 64"),
        ({"ovmf_sections": (KERNEL_HASHES, Section(0, 0, 1))}, {}, "empty"),
        ({"ovmf_sections": (KERNEL_HASHES, Section(0, 2**40, 1))}, {}, "too many pages"),
        ({"ovmf_sections": (KERNEL_HASHES, Section(0, 65_536 * 4096, 1))}, {}, "too many pages"),
        ({"ovmf_sections": (KERNEL_HASHES, Section(2**64 - 1, 4096, 1))}, {}, "leaves"),
        ({"ovmf_sections": (KERNEL_HASHES, Section(0, 1, 5))}, {}, "unknown type"),
        ({"ovmf_sections": (Section(0, 1, 1),)}, {}, "kernel hashes"),
        ({"hashes_table_gpa": 0}, {}, "hashes_table_gpa"),
        ({"hashes_table_gpa": 0x1F51}, {}, "crosses a page"),
        ({"reset_eip": 0}, {}, "reset_eip"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    image: dict[str, Any], launch: dict[str, Any], text: str
) -> None:
    """Each input rule is held, and named."""
    with pytest.raises(FormatError, match=text):
        measurement(IMAGE._replace(**image), LAUNCH._replace(**launch))


def test_the_edges_are_allowed() -> None:
    """512 CPUs, 65,536 pages, and a table of hashes that just fits into its page."""
    pages = (KERNEL_HASHES, Section(0, 65_535 * 4096, 1))
    assert measurement(IMAGE._replace(ovmf_sections=pages), LAUNCH)
    assert measurement(IMAGE._replace(hashes_table_gpa=0x1F50), LAUNCH)
    assert measurement(IMAGE, LAUNCH._replace(vcpus=512))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("cmdline", b"bytes"),
        ("ovmf_sections", {}),
        ("ovmf_sections", [1]),
        ("ovmf_sections", [{"gpa": 1, "size": 1}]),
        ("ovmf_sections", [{"gpa": -1, "size": 1, "type": 16}]),
        ("ovmf_sections", [{"gpa": 1, "size": True, "type": 16}]),
        ("ovmf_hash", b"\1" * 32),
        ("kernel_hash", b""),
        ("initrd_hash", "text"),
        ("hashes_table_gpa", None),
        ("reset_eip", 2**32),
    ],
)
def test_other_documents_are_refused(name: str, value: Value) -> None:
    """Missing fields, other types and sizes are FormatErrors."""
    with pytest.raises(FormatError, match="measurement"):
        SnpImage.read(DOCUMENT | {name: value})
