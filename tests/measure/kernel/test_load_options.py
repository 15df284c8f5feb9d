"""Load options of a direct boot."""

from typing import Any

import pytest

from attestkit._crypto.hashes import sha384
from attestkit.errors import UsageError
from attestkit.measure.kernel.kernel_events import direct_boot_options, encode_options
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, load

ROWS: list[dict[str, Any]] = load("measurement.json").get("load_options", [])


@every_case(
    "row",
    ROWS,
    ids=lambda row: bytes.fromhex(row["load_options"]).decode("utf-16-le").rstrip("\0") or "empty",
)
def test_load_options_vectors(row: dict[str, Any]) -> None:
    """Prefix, suffix and shim are where the firmware puts them."""
    options = direct_boot_options(
        row["cmdline"],
        has_initrd=row["initrd"],
        initrd_first=row["initrd_first"],
        shim=row["shim"],
    )
    assert options.hex() == row["load_options"]
    assert row["sha384"] == (sha384(options).hex() if options else None)


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_load_options_vectors_are_complete() -> None:
    """All six rows are known."""
    assert len(ROWS) == 6


def test_encode_options_of_grub_have_no_nul() -> None:
    """GRUB does not terminate load options."""
    assert encode_options("ro") == b"r\0o\0\0\0"
    assert encode_options("ro", terminated=False) == b"r\0o\0"


@pytest.mark.parametrize(
    ("cmdline", "reason"),
    [("\u20ac", "encoding"), ("a\0", "encoding"), ("x" * 65_537, "too_large")],
)
def test_direct_boot_options_refuse_cmdline(cmdline: str, reason: str) -> None:
    """Firmware would convert other characters byte by byte, and stop at a NUL."""
    with pytest.raises(UsageError) as caught:
        direct_boot_options(cmdline, has_initrd=True, initrd_first=False)
    assert caught.value.reason == reason
