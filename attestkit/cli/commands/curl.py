"""`attestkit curl URL`: one request over a proven connection."""

import codecs
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Final

import click

from attestkit._sanitize import printable, shown
from attestkit.cli.exit_codes import set_exit_code, write_stderr
from attestkit.cli.options import option
from attestkit.cli.options.connection import (
    TOKEN,
    ConnectionOptions,
    connection_options,
    header_files,
    http_errors,
    read_at_file,
    read_headers,
    warn_of_weak_policy,
)
from attestkit.cli.options.option import Command
from attestkit.cli.output.write_output import check_outputs, is_stdout, print_bytes
from attestkit.errors import AttestKitError, UsageError

_HTTP_ERROR: Final = 22  # exit code of curl --fail
_MAX_BODY: Final = 1 << 30  # bytes

_request: Final = option.section(
    "Request",
    click.option("-X", "--request", "method", metavar="METHOD", help="Method; GET, with -d POST."),
    click.option("-d", "--data", metavar="TEXT|@FILE", help="Body; @FILE reads a file, @- stdin."),
    click.option(
        *("-H", "--header", "headers"),
        metavar="HEADER",
        multiple=True,
        help="NAME: VALUE, or @FILE with a line for each.",
    ),
    option.flag("-i", "--include", text="Print status and headers, too."),
    option.flag("-f", "--fail", text="Exit with 22 at a status of 400 or more."),
    option.output("Write the body of the answer to FILE."),
    option.flag("--show-proof", text="Print the proof on stderr."),
)


@click.command(
    cls=Command,
    example="curl https://app.example.com/secret --policy policy.toml -d @body.json",
    codes="012345",
    meanings={2: "refused", 5: "unreadable answer", 22: "HTTP status of 400 or more with --fail"},
)
@click.argument("url", metavar="URL")
@connection_options
@option.add(*_request)
def curl(
    *,
    url: str,
    connection: ConnectionOptions,
    method: str | None,
    data: str | None,
    headers: tuple[str, ...],
    include: bool,
    fail: bool,
    output: Path | None,
    show_proof: bool,
) -> int:
    """Send one request to a proven server.

    The server's evidence is verified first, as by attestkit connect: nothing of the request is sent
    if the server is refused. Redirects are not followed.
    """
    body_file = Path(data[1:]) if data is not None and data[:1] == "@" and data != "@-" else None
    inputs = (*connection.inputs, *header_files(headers), *([body_file] if body_file else []))
    check_outputs((("-o", output),), inputs, writable=True)
    fields = read_headers("-H", headers)
    if not any(name.lower() == "accept-encoding" for name, _ in fields):
        fields.append(("Accept-Encoding", "identity"))  # the body is not decoded
    body = None if data is None else _body(data)
    chosen = ("GET" if body is None else "POST") if method is None else method
    if not TOKEN.fullmatch(chosen) or chosen.upper() == "CONNECT":
        raise UsageError(f"-X {shown(chosen)}: not a supported HTTP method", reason="wrong_value")
    limits = (connection.timeout, None, None, None)  # of a connection alone, as curl's
    with connection.connect(_origin(url)) as endpoint, endpoint.client(timeout=limits) as client:
        if show_proof:
            write_stderr(f"{endpoint.proof}\n")
        warn_of_weak_policy(endpoint.proof)
        with (
            http_errors(endpoint),
            client.stream(chosen, url, content=body, headers=fields) as answer,
        ):
            code = set_exit_code(_HTTP_ERROR if fail and answer.status_code >= 400 else 0)
            head = _head(answer.status_code, answer.headers.multi_items()) if include else b""
            _write_body(output, head, answer.iter_raw())
    return code


def _origin(url: str) -> str:
    """Return the part of a URL before its path, as `https://host:8443`; `connect` checks it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{re.split('[/?#]', rest, maxsplit=1)[0]}"


def _body(data: str) -> bytes:
    if not data.startswith("@"):
        return os.fsencode(data)
    return read_at_file("-d", data[1:], _MAX_BODY, partial(_open, data[1:]))


def _open(name: str) -> AbstractContextManager[IO[bytes]]:
    if name != "-":
        return Path(name).open("rb")
    if sys.stdin is None:
        raise ValueError("stdin is closed")
    return nullcontext(sys.stdin.buffer)


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(printable(line) for line in lines).encode()


def _write_body(output: Path | None, head: bytes, pieces: Iterable[bytes]) -> None:
    if output is None or is_stdout(output):
        write = _write_terminal() if sys.stdout.isatty() else print_bytes
        write(head)
        for piece in pieces:
            write(piece)
            sys.stdout.flush()
        return
    try:
        with output.open("wb") as file:
            file.write(head)
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        if isinstance(error, AttestKitError):
            raise
        message = f"-o {output}: cannot write: {error.strerror or error}"
        raise UsageError(message, reason="cannot_write") from error


def _write_terminal() -> Callable[[bytes], None]:
    """Return a function that writes UTF-8 to stdout, a terminal, without control characters.

    The function is called with the next bytes of the text.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def write(data: bytes) -> None:
        lines = decode(data).replace("\r\n", "\n").split("\n")
        sys.stdout.write("\n".join("\t".join(map(printable, one.split("\t"))) for one in lines))

    return write
