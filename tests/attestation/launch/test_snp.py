"""The computed SNP launch measurement matches the hardware's report."""

from typing import Any

from attestkit._formats.cbor import Value
from attestkit.attestation.launch.snp import OvmfSection, SnpImage, SnpLaunch, compute_measurement
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case
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


def captured_launch() -> tuple[SnpImage, SnpLaunch]:
    """Return image and launch of the captured guest."""
    image = SnpImage(
        ROW["cmdline"],
        bytes.fromhex(ROW["ovmf_hash"]),
        bytes.fromhex(ROW["kernel_hash"]),
        bytes.fromhex(ROW["initrd_hash"]),
        ROW["hashes_table_gpa"],
        ROW["reset_eip"],
        tuple([OvmfSection(s["gpa"], s["size"], s["type"]) for s in ROW["ovmf_sections"]]),
    )
    return image, SnpLaunch(ROW["vcpus"], ROW["vcpu_type"], ROW["guest_features"])


@needs_shared
def test_launch_measurement_matches_captured_report() -> None:
    """The recorded inputs give the measurement of the hardware's report."""
    assert compute_measurement(*captured_launch()).hex() == ROW["measurement"]


@needs_shared
def test_launch_measurement_depends_on_every_input() -> None:
    """Each changed field gives another measurement."""
    image, launch = captured_launch()
    found = {compute_measurement(image, launch)}
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
    found.update(compute_measurement(*change) for change in changes)
    assert len(found) == 1 + len(changes)


def test_launch_measurement_accepts_cpu_name_variants() -> None:
    """Equivalent CPU names give one measurement, different CPUs another."""
    names = ["epyc", " EPYC-IBPB ", "Epyc-v1", "epyc-v4"]
    assert len({compute_measurement(IMAGE, LAUNCH._replace(vcpu_type=name)) for name in names}) == 1
    names = ["epyc", "epyc-rome-v3", "epyc-milan-v2", "epyc-genoa-v1"]
    assert len({compute_measurement(IMAGE, LAUNCH._replace(vcpu_type=name)) for name in names}) == 4


def test_launch_measurement_trims_command_line() -> None:
    """Spaces around the command line are not measured."""
    padded = IMAGE._replace(cmdline=f" {IMAGE.cmdline}\n")
    assert compute_measurement(padded, LAUNCH) == compute_measurement(IMAGE, LAUNCH)


def test_launch_measurement_rounds_sections_up_to_pages() -> None:
    """A section of 4097 bytes has two pages."""
    sections = (OvmfSection(0x1000, 4097, 1), *IMAGE.ovmf_sections)
    whole = (OvmfSection(0x1000, 8192, 1), *IMAGE.ovmf_sections)
    one, two = IMAGE._replace(ovmf_sections=sections), IMAGE._replace(ovmf_sections=whole)
    assert compute_measurement(one, LAUNCH) == compute_measurement(two, LAUNCH)


def test_launch_measurement_hashes_empty_initrd() -> None:
    """A missing initrd is measured as the hash of no bytes."""
    empty = SnpImage.read(DOCUMENT | {"initrd_hash": b""})
    assert empty.initrd_hash.hex().startswith("e3b0c44298fc1c14")


KERNEL_HASHES = IMAGE.ovmf_sections[0]


@every_case(
    ("image", "launch", "reason"),
    [
        ({}, {"guest_features": 0}, "wrong_value"),
        ({"cmdline": "xdstack.rootfs_hash=" + "ab" * 32}, {}, "missing"),
        ({"cmdline": "dstack.rootfs_hash=" + "ab" * 33}, {}, "missing"),
        ({}, {"vcpus": 0}, "wrong_value"),
        ({}, {"vcpus": 513}, "wrong_value"),
        ({}, {"vcpu_type": "host"}, "unsupported"),
        ({"ovmf_sections": ()}, {}, "wrong_size"),
        ({"ovmf_sections": (KERNEL_HASHES,) * 65}, {}, "wrong_size"),
        ({"ovmf_sections": (KERNEL_HASHES, OvmfSection(0, 0, 1))}, {}, "wrong_value"),
        ({"ovmf_sections": (KERNEL_HASHES, OvmfSection(0, 65_536 * 4096, 1))}, {}, "too_large"),
        ({"ovmf_sections": (KERNEL_HASHES, OvmfSection(2**64 - 1, 4096, 1))}, {}, "wrong_value"),
        ({"ovmf_sections": (KERNEL_HASHES, OvmfSection(0, 1, 5))}, {}, "unsupported"),
        ({"ovmf_sections": (OvmfSection(0, 1, 1),)}, {}, "missing"),
        ({"hashes_table_gpa": 0}, {}, "wrong_value"),
        ({"hashes_table_gpa": 0x1F51}, {}, "wrong_value"),
        ({"reset_eip": 0}, {}, "wrong_value"),
    ],
)
def test_measurement_of_invalid_input_names_the_field(
    image: dict[str, Any], launch: dict[str, Any], reason: str
) -> None:
    """Each input rule is enforced, and the error names the field."""
    with raises(FormatError, reason, part=next(iter(image | launch))):
        compute_measurement(IMAGE._replace(**image), LAUNCH._replace(**launch))


def test_launch_measurement_at_limits_is_computed() -> None:
    """512 CPUs, 65,536 pages, and a hash table that fills its page are accepted."""
    pages = (KERNEL_HASHES, OvmfSection(0, 65_535 * 4096, 1))
    assert compute_measurement(IMAGE._replace(ovmf_sections=pages), LAUNCH)
    assert compute_measurement(IMAGE._replace(hashes_table_gpa=0x1F50), LAUNCH)
    assert compute_measurement(IMAGE, LAUNCH._replace(vcpus=512))


@every_case(
    ("name", "value", "reason", "field"),
    [
        ("version", 2, "unsupported_version", "version"),
        ("cmdline", b"bytes", "wrong_type", "cmdline"),
        ("ovmf_sections", {}, "wrong_type", "ovmf_sections"),
        ("ovmf_sections", [{"gpa": 1, "size": 1}], "wrong_value", "type"),
        ("ovmf_sections", [{"gpa": -1, "size": 1, "type": 16}], "wrong_value", "gpa"),
        ("ovmf_sections", [{"gpa": 1, "size": True, "type": 16}], "wrong_value", "size"),
        ("ovmf_hash", b"\1" * 32, "wrong_size", "ovmf_hash"),
        ("initrd_hash", "text", "wrong_size", "initrd_hash"),
        ("hashes_table_gpa", None, "wrong_value", "hashes_table_gpa"),
        ("reset_eip", 2**32, "wrong_value", "reset_eip"),
    ],
)
def test_read_of_invalid_document_names_the_field(
    name: str, value: Value, reason: str, field: str
) -> None:
    """Missing fields and invalid values are rejected with the name of the field."""
    with raises(FormatError, reason, part=field):
        SnpImage.read(DOCUMENT | {name: value})
