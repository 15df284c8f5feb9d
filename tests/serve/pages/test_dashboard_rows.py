"""Rows of the dashboard, in the guest agent's format."""

import pytest

from attestkit.serve.machine_info import Disk, Figures, Load, Memory
from attestkit.serve.pages.dashboard_rows import (
    DashboardRow,
    duration_text,
    identity_rows,
    machine_rows,
    size_text,
)
from attestkit.serve.rpc.messages import AppInfo

FIGURES = Figures(
    os_name="DStack",
    os_version="0.5.4",
    kernel="6.9.0-dstack",
    cpu="cpu0 @2600 MHz",
    cpus=4,
    memory=Memory(4 * 1024**3, 3 * 1024**3, 2 * 1024**3),
    swap=Memory(0, 0, 0),
    uptime=93784,
    load=Load(28, 150, 1200),
    disks=(Disk("/dev/a", "/", 1000, 250), Disk("/dev/b", "/data\n", 0, 0)),
)


def _label_and_value(rows: list[DashboardRow]) -> list[tuple[str, str]]:
    return [(row.label, row.value) for row in rows]


def test_machine_rows() -> None:
    """Labels, order and values of the machine."""
    assert _label_and_value(machine_rows(FIGURES)) == [
        ("Operating System", "DStack 0.5.4"),
        ("Kernel Version", "6.9.0-dstack"),
        ("CPU", "cpu0 @2600 MHz (4 cores)"),
        ("Memory Usage", "1.00 GB / 4.00 GB / 3.00 GB"),
        ("Swap Usage", "0.00 B / 0.00 B / 0.00 B"),
        ("Load Average", "0.28% / 1.50% / 12.00%"),
        ("System Uptime", "93784 seconds"),
        ("Disk 0", "250.00 B / 1000.00 B"),
        ("Disk 1", "0.00 B / 0.00 B"),
    ]


def test_machine_rows_usage() -> None:
    """Usage in percent where there is a size; mount points are escaped."""
    rows = {row.label: row for row in machine_rows(FIGURES)}
    assert rows["Memory Usage"].full == 25.0
    assert rows["Swap Usage"].full is None
    assert rows["Disk 0"].full == 75.0
    assert rows["Disk 1"].full == 0.0
    assert rows["Disk 1"].note == "Free / Total of /data\\u000a"


def test_identity_rows() -> None:
    """Labels and order of the app; vendor and hashes only if present."""
    info = AppInfo(app_id=b"\1", instance_id=b"\2", app_name="a", device_id=b"\3")
    plain = [
        ("App Name", "a"),
        ("App ID", "01"),
        ("Instance ID", "02"),
        ("Device ID", "03"),
        ("Key Provider Info", ""),
    ]
    assert _label_and_value(identity_rows(info)) == plain
    for vendor, product, provider in (("v", "p", "v (p)"), ("", "p", " (p)"), ("v", "", "v ()")):
        made = info._replace(cloud_vendor=vendor, cloud_product=product)
        assert _label_and_value(identity_rows(made)) == [*plain, ("Machine Provider", provider)]
    hashed = info._replace(compose_hash=b"\4", os_image_hash=b"\5")
    assert _label_and_value(identity_rows(hashed)) == [
        *plain,
        ("Compose Hash", "04"),
        ("OS Image Hash", "05"),
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.00 B"),
        (1023, "1023.00 B"),
        (1024, "1.00 KB"),
        (1536, "1.50 KB"),
        (1024**2 - 1, "1024.00 KB"),
        (25276502016, "23.54 GB"),
        (5 * 1024**4, "5.00 TB"),
        (1024**7, "1024.00 EB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    """Sizes are divided by 1024, with two decimals."""
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, ""),
        (59, "59 s"),
        (3600, "1 h 0 min"),
        (93784, "1 d 2 h"),
        (86400 * 400, "400 d 0 h"),
    ],
)
def test_duration_text(seconds: int, text: str) -> None:
    """The two largest units."""
    assert duration_text(seconds) == text
