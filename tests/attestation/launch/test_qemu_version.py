"""Tests of QemuVersion: numbers, releases, and release lines."""

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import FormatError
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
        ("10.1.92 (v10.2.0-rc2-dirty)", (10, 1, 92), "10.0"),
        ("8.2.2+tdx", (8, 2, 2), "8.2"),
        ("9.2.1-foo", (9, 2, 1), "9.2"),
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


@every_case(
    "text",
    [
        *("", "v8.2", "8", "8.", "8.2.2.1", "1234.0", "a.b", "8.2.", "-8.2"),
        *("٩.2", "9.2.1\n", "9.2.1 ", "9.2.1 -device x", "9.2.1-", "9.2.1-a/b", "9.2.1 ()"),
        *("9.2.1 (a\nb)", f"9.2.1-{'a' * 65}", f"9.2.1 ({'a' * 257})"),
    ],
)
def test_parse_rejects_other_text(text: str) -> None:
    """A version has two or three numbers of at most three digits, and no other text than these."""
    with raises(FormatError, "syntax"):
        QemuVersion.parse(text)
