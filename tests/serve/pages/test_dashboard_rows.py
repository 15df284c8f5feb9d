"""The facts of the dashboard are written as the guest agent writes them."""

import pytest

from attestkit.serve.machine_info import Disk, Figures, Load, Memory
from attestkit.serve.pages.dashboard_rows import (
    Row,
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


def _said(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.label, row.value) for row in rows]


def test_the_machine() -> None:
    """Labels, their order, and the values in them."""
    assert _said(machine_rows(FIGURES)) == [
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


def test_how_full_it_is() -> None:
    """In percent where there is something to fill; what a mount point is called stays harmless."""
    rows = {row.label: row for row in machine_rows(FIGURES)}
    assert rows["Memory Usage"].full == 25.0
    assert rows["Swap Usage"].full is None
    assert rows["Disk 0"].full == 75.0
    assert rows["Disk 1"].full == 0.0
    assert rows["Disk 1"].note == "Free / Total of /data\\u000a"


def test_the_app() -> None:
    """Labels, their order; the maker of the machine and the hashes only where there are some."""
    info = AppInfo(app_id=b"\1", instance_id=b"\2", app_name="a", device_id=b"\3")
    plain = [
        ("App Name", "a"),
        ("App ID", "01"),
        ("Instance ID", "02"),
        ("Device ID", "03"),
        ("Key Provider Info", ""),
    ]
    assert _said(identity_rows(info)) == plain
    for vendor, product, maker in (("v", "p", "v (p)"), ("", "p", " (p)"), ("v", "", "v ()")):
        made = info._replace(cloud_vendor=vendor, cloud_product=product)
        assert _said(identity_rows(made)) == [*plain, ("Machine Provider", maker)]
    hashed = info._replace(compose_hash=b"\4", os_image_hash=b"\5")
    assert _said(identity_rows(hashed)) == [
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
def test_sizes(size: int, text: str) -> None:
    """Divided by 1024 until below it, two digits behind the point."""
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
def test_durations(seconds: int, text: str) -> None:
    """The two largest units."""
    assert duration_text(seconds) == text
