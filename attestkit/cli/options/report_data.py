"""Options for a nonce or report data.

They are the same for commands that request evidence and for commands that verify it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.cli.exit_codes import print_error
from attestkit.cli.input.read_input import open_input
from attestkit.cli.options import option
from attestkit.cli.options.option import TEXT_HINT, read_hex, read_text
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.report_data import ReportData, check_nonce

_SIZE: Final = 64
_CHUNK: Final = 1 << 20  # bytes of a file that are hashed at a time
_HEX_TEXT: Final = re.compile(r"(?:0x)?(?:[0-9a-fA-F]{2}){16,}")


class ReportDataInput(NamedTuple):
    """Report data to request evidence with, from the options.

    Attributes:
        value: Report data, 64 bytes.
        inputs: Files that were read.
        nonce: Value of --nonce; None without it.
    """

    value: bytes  # 64 bytes
    inputs: tuple[Path, ...]  # files that were read
    nonce: bytes | None = None  # of --nonce


class ExpectedData(NamedTuple):
    """Nonce or report data, unpadded; at most one is not None."""

    nonce: bytes | None
    report_data: bytes | None


class ReportDataOptions(NamedTuple):
    """Values of the options, as given; None for those not given.

    `nonce` and `report_data` are hex, `text` is text, `of_file` a file with raw bytes. With
    `sha512` the report data are the SHA-512 of one of them.
    """

    nonce: str | None
    report_data: str | None
    text: str | None
    of_file: Path | None
    sha512: bool

    def read(self) -> ExpectedData:
        """Return the nonce or the report data that the options give; both are None without one.

        Raises:
            UsageError: If two options or --sha512 alone are given, or the value is too short, too
                long, or not hex or UTF-8.
            FormatError: If the file cannot be read; the text names it.
        """
        if sum(given is not None for given in self[:4]) > 1:
            raise UsageError(
                "--nonce, --report-data, --text and --file: mutually exclusive", reason="conflict"
            )
        if self.nonce is None:
            return ExpectedData(None, _read_raw(self))
        if self.sha512:
            raise UsageError("--nonce and --sha512: mutually exclusive", reason="conflict")
        nonce = read_hex("--nonce", self.nonce)
        try:
            check_nonce(nonce)
        except UsageError as error:
            raise UsageError(f"--{error}", reason=error.reason) from error
        return ExpectedData(nonce, None)

    def read_expected(self) -> ExpectedData:
        """Return the nonce or report data that evidence must have by the options.

        Raises:
            UsageError: If two are given, or one is empty, too long or not hex or UTF-8.
            ConfigError: If the file cannot be read.
        """
        try:
            found = self.read()
        except FormatError as error:  # its text names the file
            raise ConfigError(f"--file {error}", reason="unreadable") from error
        if found.report_data == b"":  # often an unset variable; all zeros would not show freshness
            raise UsageError(
                "report data: empty; give 1 to 64 bytes with --report-data, --text or --file",
                reason="missing",
            )
        return found


def _read_padded(given: ReportDataOptions) -> ReportDataInput:
    nonce, data = given.read()
    if nonce is not None:
        return ReportDataInput(ReportData.for_nonce(nonce), (), nonce)
    padded = (data or b"").ljust(_SIZE, b"\0")
    return ReportDataInput(padded, () if given.of_file is None else (given.of_file,))


def _choices(title: str, nonce: str, raw: str) -> tuple[Callable[[Any], Any], ...]:
    """Return the options of `ReportDataOptions`, under `title` in --help.

    `nonce` and `raw` are the descriptions of --nonce and --report-data.
    """
    return option.section(
        title,
        option.value("--nonce", "HEX", nonce),
        option.value("--report-data", "HEX", raw),
        option.value("--text", "TEXT", "Report data as UTF-8 text."),
        option.file("--file", "Report data as a file's bytes; - is stdin.", parameter="of_file"),
        option.flag("--sha512", text="Use the SHA-512 of this, which has any length."),
    )


expected_report_data_options: Final = option.group(
    "expected",
    _choices(
        "Expected report data",
        "Nonce, 8 to 64 bytes; shows that FILE is fresh.",
        "Raw report data, up to 64 bytes; not for freshness.",
    ),
    ReportDataOptions,
)
any_freshness_option: Final = option.section(
    "Expected report data",
    option.flag("--any-freshness", text="Accept without any of these: FILE may be old."),
)[0]


def require_expected(*, expected: bool, any_freshness: bool) -> None:
    """Raise UsageError if neither argument is true.

    `expected` is whether a nonce or report data is expected, `any_freshness` whether
    --any-freshness is given.
    """
    if not expected and not any_freshness:
        raise UsageError(
            "freshness: no nonce to compare; give --nonce HEX, or --any-freshness to accept what "
            "may be old",
            reason="missing",
        )


report_data_options: Final = option.group(
    "report_data",
    _choices(
        "Report data",
        "Nonce of a verifier, 8 to 64 bytes.",
        "Up to 64 bytes; not if another party chose them.",
    ),
    _read_padded,
    ReportDataOptions,
)


def _read_raw(given: ReportDataOptions) -> bytes | None:
    if given.report_data is not None:
        name = "--report-data"
        data = read_hex(name, given.report_data, TEXT_HINT)
    elif given.text is not None:
        if _HEX_TEXT.fullmatch(given.text):
            print_error("--text: looks like hex and is used as text; use --report-data for hex")
        data, name = read_text("--text", given.text), "--text"
    elif given.of_file is not None:
        if given.sha512:
            return _hash_file(given.of_file)
        with open_input(given.of_file) as opened:
            data = opened.read(_SIZE + 1)  # enough to see that it is too long
        name = f"--file {given.of_file}"
    elif given.sha512:
        raise UsageError(
            "--sha512: nothing to hash; give --report-data, --text or --file", reason="missing"
        )
    else:
        return None
    if given.sha512:
        from attestkit._crypto.hashes import digest  # lazy: few runs need it

        return digest("sha512", data)
    if len(data) > _SIZE:
        message = f"{name}: more than 64 bytes; use --sha512 for its hash"
        raise UsageError(message, reason="too_large")
    return data


def _hash_file(file: Path) -> bytes:
    import hashlib  # lazy: few runs need it

    hashed = hashlib.sha512()
    with open_input(file) as opened:
        while chunk := opened.read(_CHUNK):
            hashed.update(chunk)
    return hashed.digest()
