"""The computed TD registers match those measured by hardware."""

import hashlib
from typing import Any

import pytest

from attestkit._formats.cbor import Value, read_value
from attestkit.attestation.launch.kernel_cmdline import load_options_digest
from attestkit.attestation.launch.tdx import (
    TdxImage,
    read_launch,
    td_hob_digest,
)
from attestkit.errors import FormatError
from attestkit.event_log import WireEvent
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

ROW: dict[str, Any] = load("os_image_binding.json").get("tdx_lite", {})
SIZES = [(ROW["memory_size"], ROW["td_hob_sha384"])] if ROW else []
SIZES += [(r["memory_size"], r["sha384"]) for r in ROW.get("td_hob_other_memory_sizes", [])]
WITNESS = bytes.fromhex("80100904000609020b021010")
NAMES = ("acpi-loader", "acpi-rsdp", "acpi-tables")
LOG = tuple([WireEvent(0, 10, bytes([n]) * 48, name, b"ACPI DATA") for n, name in enumerate(NAMES)])
DOCUMENT: dict[Value, Value] = {
    "version": 3,
    "image": {
        "cmdline_sha384": b"\1" * 48,
        "kernel_authenticode": b"\2" * 48,
        "initrd_sha384": b"\3" * 48,
    },
    "tdvf": {
        "ovmf": "pre202505",
        "mrtd": {"single_pass": b"\4" * 48, "two_pass": b"\5" * 48},
        "td_hob": WITNESS,
    },
}
IMAGE = TdxImage.read(DOCUMENT)
CMDLINE = f"console=ttyS0 dstack.rootfs_hash={'1f' * 32} dstack.rootfs_size=4096"
VERSION_4: dict[Value, Value] = DOCUMENT | {
    "version": 4,
    "image": {
        "cmdline": CMDLINE,
        "kernel_authenticode": b"\2" * 48,
        "kernel_header_normalized": True,
        "initrd_sha384": b"\3" * 48,
    },
}
DOCUMENTS: list[dict[str, Any]] = load("guest_v1.json").get("tdx_measurement", [])
CONFIG: dict[str, Any] = {"memory_size": 0x80000000}


@needs_shared
@pytest.mark.parametrize(("memory_size", "digest"), SIZES)
def test_td_hob_digest_matches_vector(memory_size: int, digest: str) -> None:
    """The list of memory ranges has the expected digest for each memory size."""
    witness = bytes.fromhex(ROW["td_hob_witness"])
    assert witness == WITNESS
    assert td_hob_digest(witness, memory_size).hex() == digest


@every_case(
    ("witness", "reason", "offset"),
    [
        ("", "truncated", 0),
        ("00", "truncated", 1),
        ("0000", "truncated", 2),
        ("000001", "wrong_size", None),
        ("00000101", "wrong_size", None),
        ("80", "truncated", 1),
        ("000000 80", "truncated", 4),
        ("00000000", "wrong_size", None),
        ("ffffffffffffffffffff01", "wrong_value", 9),
        ("0000" + "ff" * 8 + "0f" + "00", "wrong_size", None),
        ("ffffffffffffffff7f0000", "wrong_value", None),
    ],
)
def test_td_hob_digest_of_invalid_witness_fails(
    witness: str, reason: str, offset: int | None
) -> None:
    """Truncated witnesses, wrong counts, and addresses over 63 bits are rejected."""
    with raises(FormatError, reason, offset=offset):
        td_hob_digest(bytes.fromhex(witness), 0x80000000)


def test_td_hob_digest_of_oversized_witness_fails() -> None:
    """A witness longer than 64 ranges is rejected by its size, or by its count."""
    with raises(FormatError, "too_large"):
        td_hob_digest(b"\1" * 1_311, 0x80000000)
    with raises(FormatError, "wrong_size"):
        td_hob_digest(b"\1" * 1_310, 0x80000000)
    for count, pairs in ((64, b"\1\0" * 64), (65, b"\1\0" * 65)):
        witness = b"\0\0" + bytes([count]) + pairs
        if count == 64:
            assert td_hob_digest(witness, 0x80000000)
        else:
            with raises(FormatError, "wrong_size"):
                td_hob_digest(witness, 0x80000000)


@pytest.mark.parametrize(("memory", "accepted"), [(0x6000, False), (0x6001, True)])
def test_td_hob_digest_requires_memory_above_ranges(memory: int, *, accepted: bool) -> None:
    """The firmware's ranges, here up to page 6, must be inside the memory."""
    if accepted:
        assert td_hob_digest(b"\0\0\1\5\1", memory)
        return
    with raises(FormatError, "inconsistent", part="memory_size"):
        td_hob_digest(b"\0\0\1\5\1", memory)


def test_td_hob_digest_skips_empty_ranges() -> None:
    """A range without pages is skipped."""
    assert td_hob_digest(b"\0\0\1\5\0", 0x80000000) == td_hob_digest(b"\0\0\0", 0x80000000)
    assert td_hob_digest(b"\0\0\1\5\1", 0x80000000) != td_hob_digest(b"\0\0\0", 0x80000000)


@every_case(
    ("config", "two_pass"),
    [
        ({}, False),
        ({"qemu_version": "9.0.0"}, False),
        ({"qemu_version": "8.2.2"}, True),
        ({"qemu_version": "8.2.91"}, True),
        ({"qemu_version": "8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)"}, True),
        ({"qemu_version": "9.2.1-foo"}, False),
        ({"qemu_version": "8.2.2", "qemu_single_pass_add_pages": False}, False),
        ({"qemu_version": "9.2.1", "qemu_single_pass_add_pages": True}, True),
    ],
)
def test_registers_mrtd_variant_follows_from_configuration(
    config: dict[str, Any], two_pass: bool
) -> None:
    """The MRTD variant is given, or follows from QEMU's version."""
    expected = IMAGE.mrtd_two_pass if two_pass else IMAGE.mrtd_single_pass
    assert read_launch(IMAGE, CONFIG | config).registers(LOG).mrtd == expected


@every_case(
    ("config", "reason"),
    [
        ({"memory_size": 0}, "unsupported"),
        ({"memory_size": 0x80001000}, "unsupported"),
        ({"memory_size": 2**63}, "wrong_value"),
        ({"memory_size": "2G"}, "wrong_type"),
        ({"ovmf_variant": "other"}, "inconsistent"),
        ({"qemu_version": "7.2"}, "unsupported"),
        ({"qemu_version": ""}, "unsupported"),
        ({"qemu_version": "7.2.50"}, "unsupported"),
        ({"qemu_version": "8"}, "unsupported"),
        ({"qemu_version": "8.x"}, "unsupported"),
        ({"qemu_version": "9.2.1.2"}, "unsupported"),
        ({"qemu_version": 8.2}, "wrong_type"),
        ({"qemu_version": "٩.0"}, "unsupported"),
        ({"qemu_version": "9" * 10_000}, "unsupported"),
        ({"qemu_single_pass_add_pages": 1}, "wrong_type"),
    ],
)
def test_registers_of_unsupported_configuration_names_the_key(
    config: dict[str, Any], reason: str
) -> None:
    """A configuration without lite measurement is rejected with the key."""
    with raises(FormatError, reason, part=next(iter(config))):
        read_launch(IMAGE, CONFIG | config).registers(LOG)


@every_case(
    ("log", "reason"),
    [
        ((), "missing"),
        (LOG[:2], "missing"),
        ((*LOG, LOG[0]), "duplicate"),
        ((LOG[0], LOG[0], LOG[2]), "missing"),
        ((LOG[0], LOG[1], LOG[2]._replace(digest=b"")), "wrong_size"),
        ((LOG[0], LOG[1], LOG[2]._replace(event="")), "missing"),
        ((LOG[0], LOG[1], LOG[2]._replace(imr=1)), "missing"),
        ((LOG[0], LOG[1], LOG[2]._replace(event_payload=b"acpi data")), "missing"),
    ],
)
def test_registers_of_invalid_acpi_events_fails(log: tuple[WireEvent, ...], reason: str) -> None:
    """There must be exactly one event per ACPI table, with a complete digest."""
    with raises(FormatError, reason):
        read_launch(IMAGE, CONFIG).registers(log)


def test_registers_do_not_depend_on_order_of_acpi_events() -> None:
    """ACPI tables are identified by name, not by position."""
    launch = read_launch(IMAGE, CONFIG)
    assert launch.registers(LOG) == launch.registers(LOG[::-1])


@every_case(
    ("path", "value", "reason"),
    [
        (("version",), 2, "unsupported_version"),
        (("version",), 5, "unsupported_version"),
        (("version",), True, "unsupported_version"),
        (("image",), None, "wrong_type"),
        (("image", "cmdline_sha384"), b"\1" * 47, "wrong_size"),
        (("tdvf", "ovmf"), b"pre202505", "wrong_type"),
        (("tdvf", "ovmf"), "202505", "unsupported"),
        (("tdvf", "td_hob"), "text", "wrong_type"),
        (("tdvf", "mrtd"), None, "wrong_type"),
        (("tdvf", "mrtd", "two_pass"), "x", "wrong_size"),
    ],
)
def test_read_of_invalid_document_names_the_field(
    path: tuple[str, ...], value: Value, reason: str
) -> None:
    """Missing fields and invalid values are rejected with the name of the field."""
    changed = replace_field(DOCUMENT, path, value)
    assert isinstance(changed, dict)
    with raises(FormatError, reason, part=path[-1]):
        TdxImage.read(changed)


def replace_field(document: Value, path: tuple[str, ...], value: Value) -> Value:
    """Return a document with one member replaced."""
    if not path:
        return value
    assert isinstance(document, dict)
    return document | {path[0]: replace_field(document.get(path[0]), path[1:], value)}


# -- version 4 -------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("row", DOCUMENTS, ids=lambda row: row["name"])
def test_registers_of_published_documents_match_vector(row: dict[str, Any]) -> None:
    """Documents of versions 3 and 4 give the registers of upstream's golden vectors."""
    raw = bytes.fromhex(row["cbor"])
    assert hashlib.sha256(raw).hexdigest() == row["sha256"]
    document = read_value(raw)
    assert isinstance(document, dict)
    if row["cmdline"] is not None:  # version 4
        digest = load_options_digest(f"{row['cmdline']} initrd=initrd")
        assert digest.hex() == row["cmdline_event"]
    if row["upstream"] == "rejected":
        with raises(FormatError, "missing", part="dstack.rootfs_hash"):
            TdxImage.read(document)
        return
    image = TdxImage.read(document)
    assert (image.version, image.kernel_header_normalized) == (
        row["version"],
        row["kernel_header_normalized"],
    )
    assert image.cmdline.hex() == row["cmdline_event"]
    registers = read_launch(image._replace(td_hob=WITNESS), CONFIG).registers(LOG)  # it has none
    assert (registers.rtmr1.hex(), registers.rtmr2.hex()) == (row["rtmr1"], row["rtmr2"])


@every_case(
    ("field", "value", "reason"),
    [
        ("cmdline", None, "wrong_type"),
        ("cmdline", CMDLINE.encode(), "wrong_type"),
        ("cmdline", CMDLINE + " " * 2048, "too_large"),
        ("cmdline", "", "missing"),
        ("cmdline", f"xdstack.rootfs_hash={'1f' * 32}", "missing"),
        ("cmdline", f"dstack.rootfs_hash={'1f' * 31}", "missing"),
        ("cmdline", f"dstack.rootfs_hash={'1f' * 31}1", "missing"),
        ("cmdline", f"dstack.rootfs_hash={'1f' * 33}", "missing"),
        ("cmdline", f"quiet\0 dstack.rootfs_hash={'1f' * 32}", "missing"),
        ("cmdline", f"quiet\u2003dstack.rootfs_hash={'1f' * 32}", "missing"),
        ("kernel_header_normalized", 1, "wrong_type"),
        ("kernel_header_normalized", None, "wrong_type"),
        ("initrd_sha384", b"\3" * 32, "wrong_size"),
    ],
)
def test_read_of_invalid_version_4_names_the_field(field: str, value: Value, reason: str) -> None:
    """The command line must contain the hash of the root file system as a word."""
    changed = replace_field(VERSION_4, ("image", field), value)
    assert isinstance(changed, dict)
    with raises(FormatError, reason, part=field):
        TdxImage.read(changed)


def test_versions_differ_only_in_command_line_and_header() -> None:
    """Version 4 hashes its command line with the initrd of OVMF; 3 has the hash, and no flag."""
    newer = TdxImage.read(VERSION_4)
    assert newer.kernel_header_normalized
    digest = hashlib.sha384(f"{CMDLINE} initrd=initrd\0".encode("utf-16-le")).digest()
    older = replace_field(DOCUMENT, ("image", "cmdline_sha384"), digest)
    older = replace_field(older, ("image", "kernel_header_normalized"), value=True)
    assert isinstance(older, dict)
    assert TdxImage.read(older) == newer._replace(version=3, kernel_header_normalized=False)
    image = VERSION_4["image"]
    assert isinstance(image, dict)
    without = {name: value for name, value in image.items() if "normalized" not in str(name)}
    assert not TdxImage.read(VERSION_4 | {"image": without}).kernel_header_normalized


@every_case("memory", [0x40000000, 0x7FFFFFFF, 0x80001000, 0xAFFFFFFF])
def test_memory_size_is_free_only_with_normalized_header(memory: int) -> None:
    """QEMU's address of the initrd depends on these sizes; a normalized header has another."""
    image, config = TdxImage.read(VERSION_4), {"memory_size": memory}
    assert read_launch(image, config).registers(LOG).rtmr1
    for older in (image._replace(kernel_header_normalized=False), IMAGE):
        with raises(FormatError, "unsupported", part="memory_size"):
            read_launch(older, config)
