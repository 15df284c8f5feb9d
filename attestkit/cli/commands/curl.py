"""`attestkit curl URL`: one request over a proven connection."""

import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from attestkit._sanitize import printable
from attestkit.cli.exit_codes import set_exit_code, write_stderr
from attestkit.cli.options.click_types import PATH, output_option
from attestkit.cli.options.connection import (
    ConnectionOptions,
    connection_options,
    warn_of_weak_policy,
)
from attestkit.cli.output.write_output import check_outputs, check_writable, print_bytes
from attestkit.errors import UsageError

_HTTP_ERROR: Final = 22  # exit code of curl --fail
_MAX_BODY: Final = 1 << 30  # bytes
_EPILOG: Final = (
    "Example: attestkit curl https://app.example.com/v1/secret --policy policy.toml -d @body.json\n\n"
    "Exit codes: 0 good, 1 usage, 2 refused, 3 network, 4 refused by policy, 5 unreadable answer, "
    "22 HTTP status of 400 or more with --fail."
)


@click.command(epilog=_EPILOG)
@click.argument("url", metavar="URL")
@connection_options
@click.option("-X", "--request", "method", metavar="METHOD", help="Method; GET, with -d POST.")
@click.option("-d", "--data", metavar="TEXT|@FILE", help="Body; @FILE reads a file, @- stdin.")
@click.option(
    "-H", "--header", "headers", metavar="NAME: VALUE", multiple=True, help="May be repeated."
)
@click.option("-i", "--include", is_flag=True, help="Print status and headers of the answer, too.")
@click.option("-f", "--fail", is_flag=True, help="Exit with 22 at a status of 400 or more.")
@output_option("Write the body of the answer to FILE.")
@click.option("--show-proof", is_flag=True, help="Print the proof on stderr.")
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
) -> None:
    """Send one request, after the server is proven.

    Redirects are not followed, and nothing is sent if the server is refused.
    """
    check_outputs((("-o", output),), connection.inputs)
    check_writable((("-o", output),))
    fields = [_header(text) for text in headers]
    body = None if data is None else _body(data)
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    with connection.connect(origin) as endpoint, endpoint.client(timeout=None) as client:
        if show_proof:
            write_stderr(f"{endpoint.proof}\n")
        warn_of_weak_policy(endpoint)
        chosen = method or ("GET" if body is None else "POST")
        with client.stream(chosen, url, content=body, headers=fields) as answer:
            if include:
                _print_head(answer.status_code, answer.headers.multi_items())
            if output is None:
                for piece in answer.iter_raw():
                    print_bytes(piece)
            else:
                with output.open("wb") as file:
                    for piece in answer.iter_raw():
                        file.write(piece)
            status: int = answer.status_code
    if fail and status >= 400:
        set_exit_code(_HTTP_ERROR)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or "\n" in text or "\r" in text:
        raise UsageError("-H: must be NAME: VALUE, ASCII in one line", reason="wrong_value")
    return name.strip(), value.strip()


def _body(data: str) -> bytes:
    if not data.startswith("@"):
        return data.encode()
    if data == "@-":
        found = sys.stdin.buffer.read(_MAX_BODY + 1)
    else:
        try:
            with Path(data[1:]).open("rb") as file:
                found = file.read(_MAX_BODY + 1)
        except (OSError, ValueError) as error:
            message = f"-d {data}: cannot be read: {error}"
            raise UsageError(message, reason="cannot_read") from error
    if len(found) > _MAX_BODY:
        raise UsageError(f"-d {data}: over {_MAX_BODY} bytes", reason="too_large")
    return found


def _print_head(status: int, headers: list[tuple[str, str]]) -> None:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    print_bytes("\r\n".join(printable(line) for line in lines).encode())
