"""Registers of a TD are computed from its image as hardware measured them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._formats.cbor import Value
from attestkit.attestation.launch.tdx import TdxImage, _cut, registers, td_hob_digest
from attestkit.errors import FormatError
from attestkit.event_log import WireEvent
from tests.attestation.samples import refused
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
CONFIG: dict[str, Any] = {"memory_size": 0x80000000}


@needs_shared
@pytest.mark.parametrize(("memory_size", "digest"), SIZES)
def test_the_td_hob_is_pinned(memory_size: int, digest: str) -> None:
    """The list of memory ranges has the listed digest for each size of memory."""
    witness = bytes.fromhex(ROW["td_hob_witness"])
    assert witness == WITNESS
    assert td_hob_digest(witness, memory_size).hex() == digest


@pytest.mark.parametrize(
    "witness",
    [
        "",
        "00",
        "0000",
        "000001",
        "00000101",
        "80",
        "000000 80",
        "00000000",
        "000000 00",
        "ffffffffffffffffffff01",
        "0000" + "ff" * 8 + "0f" + "00",
        "ffffffffffffffff7f0000",
    ],
)
def test_other_witnesses_are_refused(witness: str) -> None:
    """Cut, long, or leaving the address space: each is a FormatError."""
    with pytest.raises(FormatError, match="td_hob"):
        td_hob_digest(bytes.fromhex(witness), 0x80000000)


def test_a_long_witness_is_not_even_read() -> None:
    """What is longer than 1024 ranges can be is refused for its size."""
    with pytest.raises(FormatError, match=r"td_hob has 20511 bytes, over 20510"):
        td_hob_digest(b"\1" * 20_511, 0x80000000)


def test_empty_ranges_change_nothing() -> None:
    """A range without pages is skipped."""
    assert td_hob_digest(b"\0\0\1\5\0", 0x80000000) == td_hob_digest(b"\0\0\0", 0x80000000)
    assert td_hob_digest(b"\0\0\1\5\1", 0x80000000) != td_hob_digest(b"\0\0\0", 0x80000000)


@pytest.mark.parametrize(
    ("config", "two_pass"),
    [
        ({}, False),
        ({"qemu_version": "9.0.0"}, False),
        ({"qemu_version": "10.0.2"}, False),
        ({"qemu_version": "8.2.2"}, True),
        ({"qemu_version": "8.2.2", "qemu_single_pass_add_pages": False}, False),
        ({"qemu_version": "9.2.1", "qemu_single_pass_add_pages": True}, True),
    ],
)
def test_mrtd_depends_on_qemu(config: dict[str, Any], two_pass: bool) -> None:
    """Which of two MRTDs holds is stated, or follows from QEMU's version."""
    expected = IMAGE.mrtd_two_pass if two_pass else IMAGE.mrtd_single_pass
    assert registers(IMAGE, CONFIG | config, LOG).mrtd == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"memory_size": 0}, "memory_size"),
        ({"memory_size": 0x80001000}, "memory_size"),
        ({"memory_size": 2**63}, "memory_size"),
        ({"memory_size": "2G"}, "memory_size"),
        ({"ovmf_variant": "other"}, "ovmf_variant"),
        ({"qemu_version": "7.2"}, "qemu_version"),
        ({"qemu_version": "x"}, "qemu_version"),
        ({"qemu_version": ""}, "qemu_version"),
        ({"qemu_version": "٩.0"}, "qemu_version"),
        ({"qemu_version": "9" * 10_000}, "qemu_version"),
        ({"qemu_single_pass_add_pages": 1}, "qemu_single_pass_add_pages"),
    ],
)
def test_other_configurations_are_refused(config: dict[str, Any], text: str) -> None:
    """What cannot be measured in this way is named."""
    with pytest.raises(FormatError, match=text):
        registers(IMAGE, CONFIG | config, LOG)


@pytest.mark.parametrize(
    "log",
    [
        (),
        LOG[:2],
        (*LOG, LOG[0]),
        (LOG[0], LOG[0], LOG[2]),
        (LOG[0], LOG[1], LOG[2]._replace(digest=b"")),
        (LOG[0], LOG[1], LOG[2]._replace(event="")),
        (LOG[0], LOG[1], LOG[2]._replace(imr=1)),
        (LOG[0], LOG[1], LOG[2]._replace(event_payload=b"acpi data")),
    ],
)
def test_other_logs_are_refused(log: tuple[WireEvent, ...]) -> None:
    """There must be exactly one event per ACPI table, with a whole digest."""
    with pytest.raises(FormatError, match="ACPI table"):
        registers(IMAGE, CONFIG, log)


def test_the_order_of_the_acpi_events_does_not_matter() -> None:
    """Names tell the tables apart, not places."""
    assert registers(IMAGE, CONFIG, LOG) == registers(IMAGE, CONFIG, LOG[::-1])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("image",), None),
        (("image", "cmdline_sha384"), b"\1" * 47),
        (("tdvf",), []),
        (("tdvf", "ovmf"), b"pre202505"),
        (("tdvf", "td_hob"), "text"),
        (("tdvf", "mrtd"), None),
        (("tdvf", "mrtd", "two_pass"), "x"),
    ],
)
def test_other_documents_are_refused(path: tuple[str, ...], value: Value) -> None:
    """Missing fields and other types are FormatErrors."""

    def replaced(document: Value, path: tuple[str, ...]) -> Value:
        if not path:
            return value
        assert isinstance(document, dict)
        return document | {path[0]: replaced(document[path[0]], path[1:])}

    changed = replaced(DOCUMENT, path)
    assert isinstance(changed, dict)
    with pytest.raises(FormatError, match="measurement"):
        TdxImage.read(changed)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=40), st.integers(0x80000000, 2**63 - 1))
def test_any_witness_is_read_or_refused(witness: bytes, memory_size: int) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(lambda data: td_hob_digest(data, memory_size), witness)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40))))
def test_what_is_left_of_the_memory(accepted: list[tuple[int, int]]) -> None:
    """It is what no range has, in order and without overlaps, whatever order they come in."""
    left = [(0, 32)]
    for start, end in accepted:
        _cut(left, start, end)
    pages = [page for start, end in left for page in range(start, end)]
    taken = {page for start, end in accepted for page in range(start, end)}
    assert pages == [page for page in range(32) if page not in taken]
    assert all(start < end for start, end in left)
