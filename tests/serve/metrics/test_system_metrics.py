"""System metrics: families, texts and format of the guest agent."""

import os
import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from attestkit.serve.machine_info import Disk, Figures, Load, Memory, read_figures
from attestkit.serve.metrics.agent import encode_system_metrics

FIGURES: Final = Figures(
    os_name="DStack",
    os_version="0.6.6",
    kernel="6.18.0",
    cpu="cpu0 @2600 MHz",
    cpus=4,
    memory=Memory(1000, 700, 500),
    swap=Memory(90, 60, 60),
    uptime=93784,
    load=Load(40, 100, 1234),
    disks=(Disk("/dev/a", "/", 1000, 250), Disk("/dev/b", "/data", 0, 0)),
)
# The tables of the guest agent API: name, HELP, samples; and the replacement of the deprecated.
NEW: Final = """
dstack_guest_info | Static system information: OS, kernel and CPU model. | {I} 1
dstack_guest_cpus | Number of logical CPUs. | 4
dstack_guest_memory_total_bytes | Total memory in bytes. | 1000
dstack_guest_memory_available_bytes | Available memory in bytes. | 700
dstack_guest_memory_used_bytes | Used memory in bytes. | 300
dstack_guest_memory_free_bytes | Free memory in bytes. | 500
dstack_guest_swap_total_bytes | Total swap in bytes. | 90
dstack_guest_swap_used_bytes | Used swap in bytes. | 30
dstack_guest_swap_free_bytes | Free swap in bytes. | 60
dstack_guest_uptime_seconds | System uptime in seconds. | 93784
dstack_guest_load1 | System load average over 1 minute. | 0.40
dstack_guest_load5 | System load average over 5 minutes. | 1.00
dstack_guest_load15 | System load average over 15 minutes. | 12.34
dstack_guest_disk_total_bytes | Disk size in bytes. | {A} 1000 | {B} 0
dstack_guest_disk_free_bytes | Free disk space in bytes. | {A} 250 | {B} 0
dstack_guest_disk_used_bytes | Used disk space in bytes. | {A} 750 | {B} 0
dstack_guest_disk_used_ratio | Used fraction of the disk, 0 to 1. | {A} 0.75 | {B} 0
"""
OLD: Final = """
system_os_name | Operating system name (dstack_guest_info) | {os_name="DStack"} 1
system_os_version | Operating system version (dstack_guest_info) | {os_version="0.6.6"} 1
system_kernel_version | Kernel version (dstack_guest_info) | {kernel_version="6.18.0"} 1
system_cpu_model | CPU model information (dstack_guest_info) | {cpu_model="cpu0 @2600 MHz"} 1
system_num_cpus | Number of logical CPUs (dstack_guest_cpus) | 4
system_memory_total | Total memory in bytes (dstack_guest_memory_total_bytes) | 1000
system_memory_available | Available memory in bytes (dstack_guest_memory_available_bytes) | 700
system_memory_used | Used memory in bytes (dstack_guest_memory_used_bytes) | 300
system_memory_free | Free memory in bytes (dstack_guest_memory_free_bytes) | 500
system_swap_total | Total swap memory in bytes (dstack_guest_swap_total_bytes) | 90
system_swap_used | Used swap memory in bytes (dstack_guest_swap_used_bytes) | 30
system_swap_free | Free swap memory in bytes (dstack_guest_swap_free_bytes) | 60
system_uptime | System uptime in seconds (dstack_guest_uptime_seconds) | 93784
system_load_average_1m | System load average (1 minute) (dstack_guest_load1) | 40
system_load_average_5m | System load average (5 minutes) (dstack_guest_load5) | 100
system_load_average_15m | System load average (15 minutes) (dstack_guest_load15) | 1234
disk_total_size | Disk total size in bytes (dstack_guest_disk_total_bytes) | {A} 1000 | {B} 0
disk_free_size | Disk free size in bytes (dstack_guest_disk_free_bytes) | {A} 250 | {B} 0
disk_used_size | Disk used size in bytes (dstack_guest_disk_used_bytes) | {A} 750 | {B} 0
disk_usage_percentage | Disk usage percentage (dstack_guest_disk_used_ratio) | {A} 75 | {B} 0
"""
LABELS: Final = {
    "{I}": (
        '{os_name="DStack", os_version="0.6.6", kernel_version="6.18.0", '
        'cpu_model="cpu0 @2600 MHz"}'
    ),
    "{A}": '{name="/dev/a", mount_point="/"}',
    "{B}": '{name="/dev/b", mount_point="/data"}',
}


def blocks_of(table: str) -> list[str]:
    """Return the families of a table in the text format."""
    table = re.sub(r" \((dstack_guest_\w+)\) \|", r" (deprecated: use \1) |", table)
    for short, labels in LABELS.items():
        table = table.replace(short, labels)
    found = []
    for row in table.strip().splitlines():
        name, description, *samples = row.split(" | ")
        lines = [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
        lines += [f"{name}{'' if one.startswith('{') else ' '}{one}" for one in samples]
        found.append("\n".join(lines))
    return found


def test_families_match_tables() -> None:
    """New families, a comment and the deprecated ones, with an empty line after each."""
    blocks = encode_system_metrics(FIGURES).decode().split("\n\n")
    assert blocks.pop() == ""
    new, old = blocks_of(NEW), blocks_of(OLD)
    assert blocks[: len(new)] == new
    assert blocks[len(new) + 1 :] == old
    assert re.fullmatch("# The metrics below are deprecated.*", blocks[len(new)])


def test_families_without_samples() -> None:
    """Without a disk at the mount points only help and type are written."""
    text = encode_system_metrics(FIGURES._replace(disks=())).decode()
    for block in (*blocks_of(NEW)[-4:], *blocks_of(OLD)[-4:]):
        help_and_type = block.split("\n")[:2]
        assert "\n".join(help_and_type) + "\n\n" in text
    assert "\ndisk_" not in text
    assert "\ndstack_guest_disk" not in text


def test_values_of_this_machine() -> None:
    """The values are consistent in both generations."""
    figures = read_figures()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(encode_system_metrics(figures).decode())
        for sample in family.samples
    }
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert values["system_memory_total"] == values["dstack_guest_memory_total_bytes"] == total
    assert values["dstack_guest_cpus"] == os.cpu_count()
    percentage = values["disk_usage_percentage"]
    assert 0 < percentage < 100
    assert values["dstack_guest_disk_used_ratio"] == pytest.approx(percentage / 100)
    assert values["dstack_guest_load1"] == pytest.approx(values["system_load_average_1m"] / 100)


# This parser treats a carriage return as the end of a line; promtool does not.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r")))
def test_label_values_are_escaped(value: str) -> None:
    """Any label value is restored by the parser."""
    text = encode_system_metrics(
        FIGURES._replace(os_name=value, disks=(Disk(value, value, 7, 0),))
    ).decode()
    labels = [
        sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels
    ]
    assert [found["os_name"] for found in labels if "os_name" in found] == [value, value]
    disks = [found for found in labels if "mount_point" in found]
    assert disks == [{"name": value, "mount_point": value}] * 8
