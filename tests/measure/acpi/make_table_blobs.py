"""Make `attestkit/measure/acpi/blobs`: ACPI tables of common machines, a file for each QEMU line.

```
python -m tests.measure.acpi.make_table_blobs QEMU     # this QEMU's line, `common_machines`
python -m tests.measure.acpi.make_table_blobs vectors  # 8.2 and 9.2, measured machines
```

Then correct `sources.toml` in that folder.

Debian has no QEMU of the lines 8.2 and 9.2. Their tables are those of `vectors/measurement.json`,
which a QEMU of that line made; with them the registers of real guests were computed.
"""

import base64
import hashlib
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.measure.acpi.acpi_inputs import AcpiInputs, acpi_inputs
from attestkit.measure.acpi.acpi_tables import AcpiTables
from attestkit.measure.acpi.qemu.qemu_command import inputs_command
from attestkit.measure.acpi.qemu.qemu_machine import read_machine, read_version
from attestkit.measure.acpi.table_entry import TableEntry, TableKey, encode_entry
from tests.measure.acpi.machines import machine
from tests.vectors import load

BLOBS = Path(__file__).parents[3] / "attestkit" / "measure" / "acpi" / "blobs"
MADE_WITH = {"8.2": QemuVersion(8, 1, 90), "9.2": QemuVersion(9, 1, 50)}

_LOW = 0x80000000
_MANY_VCPUS = (72, 80, 96, 112, 128, 160, 192, 224)
_FEW_VCPUS = (1, 2, 4, 8, 16, 32, 64)
_GPU_VCPUS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 160, 192)
_WINDOWS = (0, 1 << 44, 1 << 50)  # sizes seen on hosts with one and with eight GPUs

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 23}]
"""Readers allocate the dictionary, and a line has less than 8 MiB."""


def common_machines() -> Iterator[AcpiInputs]:
    """Yield the machines whose tables are shipped, of QEMU 9.0 and later."""
    plain = AcpiInputs(1, _LOW, 5, 0, hotplug_off=False, pci_hole64_size=0, pic=False)
    for hotplug_off in (False, True):
        base = plain._replace(hotplug_off=hotplug_off)
        for count in (*range(1, 65), *_MANY_VCPUS):
            yield base._replace(cpu_count=count)
        for endpoints in (4, 6, 7, 8):  # without network, and with verity volumes
            for count in _FEW_VCPUS:
                yield base._replace(cpu_count=count, endpoints=endpoints)
        for mebibytes in (512, 1024, 1536):
            for count in (1, 2):
                yield base._replace(cpu_count=count, low_memory=mebibytes << 20)
    for ports in (1, 2, 4, 8, 12):  # GPUs; 12 are 8 with 4 NVSwitches
        for window in _WINDOWS:
            base = plain._replace(root_ports=ports, hotplug_off=True, pci_hole64_size=window)
            for count in _GPU_VCPUS:
                yield base._replace(cpu_count=count)


def make_entries(program: str, machines: Iterable[AcpiInputs]) -> Iterator[TableEntry]:
    """Yield the tables that a QEMU makes."""
    version = read_version(program)
    for inputs in machines:
        files = read_machine(inputs_command(inputs, program, memory_size=inputs.low_memory)).acpi
        yield TableEntry(version, TableKey(inputs).numbers(), files)


def vector_entries() -> Iterator[TableEntry]:
    """Yield the tables of the measured machines."""
    rows: list[dict[str, Any]] = load("measurement.json")["real_rtmr0"]
    for row in rows:
        shape = machine(row["vm"])
        blobs = row["qemu_blobs"]
        files = AcpiTables(
            zlib.decompress(base64.b64decode(blobs["loader"])),
            bytes.fromhex(blobs["rsdp"]),
            zlib.decompress(base64.b64decode(blobs["tables"])),
        )
        made_with = MADE_WITH[QemuVersion.parse(shape.qemu_version).line]
        yield TableEntry(made_with, TableKey(acpi_inputs(shape)).numbers(), files)


def write(entries: Iterable[TableEntry]) -> None:
    """Write a file for each line."""
    lines: dict[str, list[bytes]] = {}
    for entry in entries:
        lines.setdefault(entry.qemu_version.line, []).append(encode_entry(entry))
    BLOBS.mkdir(exist_ok=True)
    for line, content in lines.items():
        path = BLOBS / f"qemu-{line}.xz"
        path.write_bytes(lzma.compress(b"".join(content), filters=FILTERS))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sys.stdout.write(f"{path.name}: machines = {len(content)}, sha256 = {digest}\n")


if __name__ == "__main__":
    source = sys.argv[1]
    write(vector_entries() if source == "vectors" else make_entries(source, common_machines()))
