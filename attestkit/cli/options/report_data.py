"""Options for a nonce or report data.

They are the same for commands that request evidence and for commands that verify it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.cli.exit_codes import print_error
from attestkit.cli.input.read_input import open_input
from attestkit.cli.options.click_types import (
    TEXT_HINT,
    file_option,
    flag_option,
    group_options,
    read_hex,
    read_text,
    section,
    value_option,
)
from attestkit.errors import ConfigError, FormatError, UsageError
from attestkit.report_data import ReportData, check_nonce

_SIZE: Final = 64
_CHUNK: Final = 1 << 20  # bytes of a file that are hashed at a time
_HEX_TEXT: Final = re.compile(r"(?:0x)?(?:[0-9a-fA-F]{2}){16,}")


class ReportDataInput(NamedTuple):
    """Report data of the options."""

    value: bytes  # 64 bytes
    inputs: tuple[Path, ...]  # files that were read
    nonce: bytes | None = None  # of --nonce


def _read_padded(
    *,
    nonce: str | None,
    report_data: str | None,
    text: str | None,
    of_file: Path | None,
    sha512: bool,
) -> ReportDataInput:
    challenge, data = read_report_data(nonce, report_data, text, of_file, sha512=sha512)
    if challenge is not None:
        return ReportDataInput(ReportData.for_nonce(challenge), (), challenge)
    padded = (data or b"").ljust(_SIZE, b"\0")
    return ReportDataInput(padded, () if of_file is None else (of_file,))


def _choices(title: str, nonce: str, raw: str) -> tuple[Callable[[Any], Any], ...]:
    """Return the options of `read_report_data`, with the texts of the first two."""
    return section(
        title,
        value_option("--nonce", "HEX", nonce),
        value_option("--report-data", "HEX", raw),
        value_option("--text", "TEXT", "Report data as UTF-8 text."),
        file_option("--file", "Report data as a file's bytes; - is stdin.", parameter="of_file"),
        flag_option("--sha512", text="Use the SHA-512 of this, which has any length."),
    )


expected_report_data_options: Final = _choices(
    "Expected report data",
    "Nonce, 8 to 64 bytes; shows that FILE is fresh.",
    "Raw report data, up to 64 bytes; not for freshness.",
)
any_freshness_option: Final = section(
    "Expected report data",
    flag_option("--any-freshness", text="Accept without any of these: FILE may be old."),
)[0]


def require_expected(*, expected: bool, any_freshness: bool) -> None:
    """Raise UsageError unless a nonce or report data is expected, or --any-freshness is given."""
    if not expected and not any_freshness:
        raise UsageError(
            "freshness: no nonce to compare; give --nonce HEX, or --any-freshness to accept what "
            "may be old",
            reason="missing",
        )


report_data_options: Final = group_options(
    "report_data",
    _choices(
        "Report data",
        "Nonce of a verifier, 8 to 64 bytes.",
        "Up to 64 bytes; not if another party chose them.",
    ),
    _read_padded,
)


def read_report_data(
    nonce: str | None,
    report_data: str | None,
    text: str | None,
    file: Path | None,
    *,
    sha512: bool,
) -> tuple[bytes | None, bytes | None]:
    """Return nonce and report data of the options, unpadded; at most one is not None.

    Raises:
        UsageError: If two options or --sha512 alone are given, if the value has another size, or is
            not hex or UTF-8.
        FormatError: If the file cannot be read; the text names it.
    """
    if sum(given is not None for given in (nonce, report_data, text, file)) > 1:
        raise UsageError(
            "--nonce, --report-data, --text and --file: mutually exclusive", reason="conflict"
        )
    if nonce is None:
        return None, _read_raw(report_data, text, file, sha512=sha512)
    if sha512:
        raise UsageError("--nonce and --sha512: mutually exclusive", reason="conflict")
    return read_nonce(nonce), None


def read_nonce(nonce: str) -> bytes:
    """Return the nonce of --nonce.

    Raises:
        UsageError: If it is not hex, or not 8 to 64 bytes.
    """
    value = read_hex("--nonce", nonce)
    try:
        check_nonce(value)
    except UsageError as error:
        raise UsageError(f"--{error}", reason=error.reason) from error
    return value


def _read_raw(
    report_data: str | None, text: str | None, file: Path | None, *, sha512: bool
) -> bytes | None:
    if report_data is not None:
        option = "--report-data"
        data = read_hex(option, report_data, TEXT_HINT)
    elif text is not None:
        if _HEX_TEXT.fullmatch(text):
            print_error("--text: looks like hex and is used as text; use --report-data for hex")
        data, option = read_text("--text", text), "--text"
    elif file is not None:
        if sha512:
            return _hash_file(file)
        data, option = _read_start(file), f"--file {file}"
    elif sha512:
        raise UsageError(
            "--sha512: nothing to hash; give --report-data, --text or --file", reason="missing"
        )
    else:
        return None
    if sha512:
        from attestkit._crypto.hashes import digest  # lazy: few runs need it

        return digest("sha512", data)
    if len(data) > _SIZE:
        raise UsageError(
            f"{option}: more than 64 bytes; use --sha512 for its hash", reason="too_large"
        )
    return data


def _read_start(file: Path) -> bytes:
    """Return up to 65 bytes of a file, enough to see that it is too long."""
    with open_input(file) as opened:
        return opened.read(_SIZE + 1)


def _hash_file(file: Path) -> bytes:
    import hashlib  # lazy: few runs need it

    hashed = hashlib.sha512()
    with open_input(file) as opened:
        while chunk := opened.read(_CHUNK):
            hashed.update(chunk)
    return hashed.digest()


def read_expected(
    nonce: str | None,
    report_data: str | None,
    text: str | None,
    file: Path | None,
    *,
    sha512: bool,
) -> tuple[bytes | None, bytes | None]:
    """Return the expected nonce and report data of the options; at most one is not None.

    Raises:
        UsageError: If two are given, or one is empty, too long or not hex or UTF-8.
        ConfigError: If the file cannot be read.
    """
    try:
        challenge, expected = read_report_data(nonce, report_data, text, file, sha512=sha512)
    except FormatError as error:  # its text names the file
        raise ConfigError(f"--file {error}", reason="unreadable") from error
    if expected == b"":  # often an unset variable; all zeros would not show freshness
        raise UsageError(
            "report data: empty; give 1 to 64 bytes with --report-data, --text or --file",
            reason="missing",
        )
    return challenge, expected
