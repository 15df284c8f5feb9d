"""Tests of QemuVersion: numbers, and release lines."""

import pytest

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_inputs import QemuVersion
from tests.raising import raises
from tests.runner.cases import every_case


@every_case(
    ("text", "version", "line"),
    [
        ("8.2.2", (8, 2, 2), "8.2"),
        ("8.1.90", (8, 1, 90), "8.2"),
        ("8.1.5", (8, 1, 5), "8.1"),
        ("8.2.50", (8, 2, 50), "9.0"),
        ("9.1.50", (9, 1, 50), "9.2"),
        ("9.2", (9, 2, 0), "9.2"),
        ("9.0.2", (9, 0, 2), "9.0"),
        ("10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", (10, 0, 13), "10.0"),
        ("10.1.0", (10, 1, 0), "10.1"),
        ("10.2.1", (10, 2, 1), "10.0"),
        ("10.1.92-rc2", (10, 1, 92), "10.0"),
        ("11.1.3", (11, 1, 3), "11.1"),
    ],
)
def test_parse_returns_numbers_and_line(text: str, version: tuple[int, ...], line: str) -> None:
    """Development versions are of the next release; only releases that were compared share one."""
    found = QemuVersion.parse(text)
    assert found == version
    assert found.line == line


def test_str_is_parsed_again() -> None:
    """A version is written as QEMU prints it."""
    assert str(QemuVersion(10, 0, 13)) == "10.0.13"


@pytest.mark.parametrize(
    "text", ["", "v8.2", "8", "8.", "8.2.2.1", "1234.0", "a.b", "8.2.", "-8.2"]
)
def test_parse_rejects_other_text(text: str) -> None:
    """A version has two or three numbers of at most three digits."""
    with raises(FormatError, "syntax"):
        QemuVersion.parse(text)
