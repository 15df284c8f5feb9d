"""Upstream's calculator dstack-mr on the shared rows: where it differs, its rule gives its value.

Rows that agree are those whose values other tests compute, so they only have to be the same rows.
"""

import hashlib
import json
import struct
from types import MappingProxyType
from typing import Any

import cbor2
import pytest

from attestkit.attestation.launch.td_hob import memory_below_4g
from attestkit.attestation.launch.tdx import BLANK_CFV_DIGEST
from attestkit.measure import MachineShape
from attestkit.measure.expected import ExpectedEvent, replay
from attestkit.measure.firmware.tdvf import TdvfSection
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.kernel.linux_kernel import (
    DirectBoot,
    FirmwareTraits,
    direct_boot_events,
    patch_setup_header,
)
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems, expected_rtmr0
from tests.measure.firmware_images import LAYOUT_202502
from tests.measure.rows import VECTORS, Row, firmware_row
from tests.measure.test_guests import boot_files, tables_of
from tests.runner.cases import every_case
from tests.vectors import SHARED, data, needs_shared

pytestmark = needs_shared

NAME = "dstack/upstream-312dc605/measurement.json"
UPSTREAM: dict[str, Any] = json.loads(data(NAME)) if (SHARED / "data" / NAME).exists() else {}
TRAITS = FirmwareTraits(named_blobs=False, initrd_first=False)
"""Upstream patches every kernel, and has `initrd=initrd` last."""


def vector_rows(table: str) -> dict[str, Row]:
    """Return the rows of a table of the vectors, by name."""
    return {row.get("name") or row["what"]: row for row in VECTORS[table]}


def register(events: list[ExpectedEvent], number: int) -> str:
    """Return the value of a register, as hex."""
    value = replay(events, number)
    assert value is not None
    return value.hex()


def guest_rows() -> list[Any]:
    """Return the parameters of the guests of which upstream's values differ."""
    found = UPSTREAM.get("guests", {}).get("rows", [])
    return [pytest.param(row, id=row["row"]) for row in found if "upstream" in row]


def upstream_rtmr0(row: Row) -> str:
    """Return RTMR0 by upstream's rules: one layout, a constant CFV, and no variables."""
    sections = tuple(firmware_row(row)["sections"])
    tdvf = tuple(TdvfSection(*section) for section in sections)
    firmware = TdxFirmware(tdvf, BLANK_CFV_DIGEST, MappingProxyType({}), LAYOUT_202502)
    memory = MachineShape(**row["vm"]).memory
    events = expected_rtmr0(firmware, memory, FwCfgItems(), acpi=tables_of(row))
    return register(list(events), 0)


@every_case("row", guest_rows())
def test_registers_that_differ_are_explained(row: Row) -> None:
    """With upstream's assumptions the registers are upstream's, and without the row's."""
    guest, upstream = vector_rows("guests")[row["row"]], row["upstream"]
    kernel, initrd = boot_files(guest)
    boot = DirectBoot(kernel, initrd, guest["cmdline"])
    memory_size = guest["vm"]["memory_size"]
    events = direct_boot_events(boot, TRAITS, qemu=(9, 2), memory_size=memory_size)
    found = {"rtmr0": upstream_rtmr0(guest), "rtmr1": register(events, 1)}
    if initrd is not None:  # else upstream has the event of another initrd
        found["rtmr2"] = register(events, 2)
    assert {name: found.get(name, upstream[name]) for name in upstream} == upstream
    assert {name for name in upstream if upstream[name] == guest[name]} == set()
    assert {*row["agree"], *upstream} == {"mrtd", "rtmr0", "rtmr1", "rtmr2"}


def test_kernels_that_differ_are_explained() -> None:
    """Upstream ignores `vga=`: its value is that of the same kernel without it."""
    rows = UPSTREAM["patched_kernel"]
    assert [row["index"] for row in rows] == list(range(len(VECTORS["patched_kernel"])))
    assert sum(row["agree"] for row in rows) == 6
    compared = 0
    for row in rows:
        vector = VECTORS["patched_kernel"][row["index"]]
        if row["agree"] or not row["why"].startswith("`vga=`"):
            continue
        assert vector["cmdline"] == "vga=ask"
        if vector["kernel"].startswith("data/"):
            kernel = data(vector["kernel"].removeprefix("data/"))
            boot = DirectBoot(kernel, bytes(vector["initrd_size"]), "console=ttyS0")
            events = direct_boot_events(boot, TRAITS, qemu=(9, 2), memory_size=vector["memory"])
            assert register(events, 1) == row["upstream_rtmr1"]
            compared += 1
    assert compared == 1


def test_initrd_address_differs_where_upstream_tests_another_flag() -> None:
    """The kernel agrees exactly where both rules place the initrd at one address (28 rows)."""
    rows = UPSTREAM["kernel_rules"]["xlf"]
    assert len(rows) == 28
    for row in rows:
        kernel = bytearray(data("measurement/kernel.bin"))
        struct.pack_into("<H", kernel, 0x236, row["xlf"])
        memory = row["memory"]
        patched = patch_setup_header(
            bytes(kernel), memory_size=memory, initrd_size=5000, cmdline=""
        )
        (ours,) = struct.unpack_from("<I", patched, 0x218)
        highest = 0xFFFFFFFF if row["xlf"] & 0x40 else 0x37FFFFFF
        theirs = (min(highest, memory_below_4g(memory) - 0x28001) - 5000) & ~4095
        assert (ours == theirs) is row["agree"], row


def test_rows_are_those_of_the_vectors() -> None:
    """Upstream was asked for every row, and agrees with as many as the documentation says."""
    real = {row["row"]: row["agree"] for row in UPSTREAM["real_rtmr0"]}
    assert real.keys() == vector_rows("real_rtmr0").keys()
    assert sum(real.values()) == 4
    launches = UPSTREAM["snp"]["rows"]
    assert [row["index"] for row in launches] == list(range(len(VECTORS["snp"])))
    assert sum(row["agree"] for row in launches) == 8
    for row in launches:
        vector = VECTORS["snp"][row["index"]]
        unknown = vector["kernel"] is None or vector["cpu_type"] == "EPYC-Turin"
        assert row["agree"] is not unknown
        assert row.get("upstream") != vector["measurement"]
    refused = {row["row"]: row["upstream"] != "accepted" for row in UPSTREAM["firmware_errors"]}
    assert refused.keys() == vector_rows("firmware_errors").keys()
    assert [name for name in refused if not refused[name]] == ["section type 9"]
    files = [row.get("file") or row["path"].rpartition("/")[2] for row in VECTORS["firmware"]]
    assert sorted(files) == UPSTREAM["mrtd"]["firmware"]


def test_documents_have_the_values_of_the_vectors() -> None:
    """MRTD, kernel and launch digest that upstream wrote are those that the vectors have."""
    documents = UPSTREAM["documents"]
    checksums = documents["sha256sum.txt"].encode()
    assert hashlib.sha256(checksums).hexdigest() == documents["os_image_hash"]
    listed = dict(reversed(line.split("  ")) for line in checksums.decode().splitlines())
    firmware = {row.get("package"): row for row in VECTORS["firmware"]}
    assert listed["ovmf.fd"] == firmware["ovmf"]["sha256"]
    assert listed["ovmf-sev.fd"] == firmware["ovmf-amdsev"]["sha256"]
    metadata = documents["metadata.json"].encode()
    assert hashlib.sha256(metadata).hexdigest() == listed["metadata.json"]
    encoded = {
        name: bytes.fromhex(documents[f"measurement.{name}.cbor"]) for name in ("tdx", "snp")
    }
    for name, content in encoded.items():
        assert hashlib.sha256(content).hexdigest() == listed[f"measurement.{name}.cbor"]
    tdx, snp = (cbor2.loads(encoded[name]) for name in ("tdx", "snp"))
    mrtds = {order: value.hex() for order, value in tdx["tdvf"]["mrtd"].items()}
    names = ("single_pass", "two_pass")
    assert mrtds == {name: firmware["ovmf"][f"mrtd_{name}"] for name in names}
    kernels = [row for row in VECTORS["patched_kernel"] if row["sha256"] == listed["bzImage"]]
    plain = {row["authenticode_sha384"] for row in kernels if "vga" not in row["cmdline"]}
    assert tdx["image"]["kernel_authenticode"].hex() in plain
    assert snp["ovmf_hash"].hex() == firmware["ovmf-amdsev"]["snp_firmware_digest"]
    assert snp["kernel_hash"].hex() == listed["bzImage"]
    sev = firmware["ovmf-amdsev"]["sev"]
    assert (snp["reset_eip"], snp["hashes_table_gpa"]) == (sev["reset_eip"], sev["hashes_gpa"])
    sections = [[one["gpa"], one["size"], one["type"]] for one in snp["ovmf_sections"]]
    assert sections == sev["sections"]
