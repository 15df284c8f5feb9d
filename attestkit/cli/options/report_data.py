"""The options that say what a quote or evidence is over, and the 64 bytes that they mean.

Who asks for it and who verifies it say it in the same words.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from attestkit.cli.exit_codes import complain
from attestkit.cli.input.read_input import open_input
from attestkit.cli.options.click_types import PATH, gathered, read_hex
from attestkit.errors import UsageError

__all__ = ["Sealed", "given_report_data", "report_data_choices", "report_data_options"]

_SIZE: Final = 64
_PIECE: Final = 1 << 20  # bytes of a file that are hashed at a time
_HEX_TEXT: Final = re.compile(r"(?:0x)?(?:[0-9a-fA-F]{2}){16,}")


class Sealed(NamedTuple):
    """What evidence is over."""

    report_data: bytes  # 64 bytes
    inputs: tuple[Path, ...]  # the files it came from


def _sealed(
    *, report_data: str | None, text: str | None, of_file: Path | None, sha512: bool
) -> Sealed:
    sealed = given_report_data(report_data, text, of_file, sha512=sha512) or b""
    return Sealed(sealed.ljust(_SIZE, b"\0"), () if of_file is None else (of_file,))


def report_data_choices(report_data: str, sha512: str) -> tuple[Callable[[Any], Any], ...]:
    """Return the options for `given_report_data`, with the help of the first and the last."""
    return (
        click.option("--report-data", metavar="HEX", help=report_data),
        click.option("--text", metavar="TEXT", help="The same as text, in UTF-8."),
        click.option(
            "--file",
            "of_file",  # several commands have an argument FILE
            metavar="FILE",
            type=PATH,
            help="The same as the bytes of a file; - is stdin.",
        ),
        click.option("--sha512", is_flag=True, help=sha512),
    )


report_data_options: Final = gathered(
    "sealed",
    report_data_choices(
        "What it is over, up to 64 bytes that zeros fill up: a verifier's nonce.",
        "Seal the SHA-512 of what --report-data, --text or --file gives, of any length.",
    ),
    _sealed,
)


def given_report_data(
    report_data: str | None, text: str | None, file: Path | None, *, sha512: bool
) -> bytes | None:
    """Return the up to 64 bytes that the options give, not filled up; None if none was given.

    Raises:
        UsageError: Two are given, --sha512 alone, more than 64 bytes, or what is not hex or UTF-8.
        FormatError: The file cannot be read; the text names it.
    """
    if sum(given is not None for given in (report_data, text, file)) > 1:
        raise UsageError("--report-data, --text and --file: one of them")
    if report_data is not None:
        data, option = read_hex("--report-data", report_data), "--report-data"
    elif text is not None:
        data, option = _encoded(text), "--text"
    elif file is not None:
        if sha512:
            return _hash_of(file)
        data, option = _head_of(file), f"--file {file}"
    elif sha512:
        raise UsageError("--sha512 of what? --report-data, --text or --file")
    else:
        return None
    if sha512:
        from attestkit._crypto.hashes import digest  # late: few ask for it

        return digest("sha512", data)
    if len(data) > _SIZE:
        raise UsageError(
            f"{option} has more than 64 bytes, which report data has: --sha512 takes its hash"
        )
    return data


def _encoded(text: str) -> bytes:
    if _HEX_TEXT.fullmatch(text):
        complain("--text looks like hex, and is taken as text: --report-data takes hex")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("--text is not UTF-8") from error


def _head_of(file: Path) -> bytes:
    """Return the bytes of a file as far as they matter: one more than may be."""
    with open_input(file) as opened:
        return opened.read(_SIZE + 1)


def _hash_of(file: Path) -> bytes:
    import hashlib  # late: few ask for it

    hashed = hashlib.sha512()
    with open_input(file) as opened:
        while piece := opened.read(_PIECE):
            hashed.update(piece)
    return hashed.digest()
