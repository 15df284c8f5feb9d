"""The RPC examples of the agent's API document work, apart from the socket's path."""

import json
import re
import shutil
from collections import Counter
from typing import Any, NamedTuple

import pytest

from tests.serve.server import Server, run_program
from tests.vectors import SHARED

DOCUMENT_PATH = "/var/run/dstack.sock"
RPC = ("GetTlsKey", "GetKey", "GetQuote", "Info", "EmitEvent", "Sign", "Verify", "Attest")


class Example(NamedTuple):
    """A command of the document, and the members of its documented response."""

    method: str
    command: str
    members: frozenset[str]


def _examples() -> list[Example]:
    found = []
    for document in sorted(SHARED.glob("seeds/*.txt")):
        for section in re.split(r"^### \d+\. ", document.read_text(), flags=re.MULTILINE):
            shown = (
                section.partition("**Response:**")[2].partition("```json")[2].partition("```")[0]
            )
            members = frozenset(re.findall(r'^  "(\w+)":', shown, flags=re.MULTILINE))
            for command in re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL):
                if DOCUMENT_PATH in command:
                    method = re.search(r"http://dstack/(\w+)", command)
                    assert method
                    found.append(Example(method[1], command, members))
    return found


EXAMPLES = _examples()
DOCUMENTS = "\n".join(path.read_text() for path in sorted(SHARED.glob("seeds/*.txt")))
PAGES = [
    (page[2], page[1])
    for page in re.finditer(r'^(curl "http://[^/]+(/\w*).*)$', DOCUMENTS, re.MULTILINE)
]
needs_document = pytest.mark.skipif(not EXAMPLES, reason="the API document is not here")
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def run_command(command: str, dev_server: Server) -> tuple[int, Any]:
    """Run a command against the server; return status and JSON body."""
    command = command.replace(DOCUMENT_PATH, dev_server.dstack).rstrip()
    # The document does not quote URLs, which a shell would split at `&`.
    command = re.sub(r"(?<=\s)(http://dstack/\S+)", r"'\1'", command)
    done = run_program(["/bin/sh", "-c", f"{command} -sS --write-out '\\n%{{http_code}}'"])
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


@needs_document
def test_every_method_has_example() -> None:
    """The parser finds every example of the document."""
    assert {example.method for example in EXAMPLES} == set(RPC)
    assert len(EXAMPLES) == 11
    # The examples of logs are tested in tests/rigs/docker/test_container_logs.py.
    pages = Counter(page for page, _ in PAGES)
    assert pages == {"/logs": 4, "/metrics": 1, "/": 1}
    assert len(re.findall(r"^curl ", DOCUMENTS, re.MULTILINE)) == len(EXAMPLES) + pages.total()


@needs_document
@pytest.mark.parametrize(
    ("page", "content"),
    [("/", "Node Information"), ("/metrics", "# HELP system_os_name Operating system")],
)
def test_page_example_works(page: str, content: str, dev_server: Server) -> None:
    """The command, with another host and port, returns the page."""
    command = re.sub(r"http://[^/]+", dev_server.url, dict(PAGES)[page])
    done = run_program(["/bin/sh", "-c", f"{command} -sS --fail"])
    assert content in done.stdout


@needs_document
@pytest.mark.parametrize("header", ["as written", "no content type"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.method}-{'POST' in e.command}")
def test_example_works(example: Example, header: str, dev_server: Server) -> None:
    """The command returns 200 and the documented members, also without content type."""
    command = example.command
    if header == "no content type":
        command = re.sub(r" -H 'Content-Type: application/json' \\\n", "", command)
        if command == example.command:
            pytest.skip("this one has none")
    status, answer = run_command(command, dev_server)
    if example.method == "Verify":  # its placeholders are not a valid signature and key
        assert (status, list(answer)) == (400, ["error"])
        return
    assert status == 200, answer
    if example.method == "EmitEvent":
        assert answer is None
    else:
        assert example.members
        assert example.members <= answer.keys()


@needs_document
def test_verify_example_with_real_signature(dev_server: Server) -> None:
    """The Verify example accepts the signature of Sign."""
    sign = next(example for example in EXAMPLES if example.method == "Sign")
    verify = next(example for example in EXAMPLES if example.method == "Verify")
    _, signed = run_command(sign.command, dev_server)
    command = verify.command
    for name in ("signature", "public_key"):
        command = command.replace(f'"{name}": "deadbeef"', f'"{name}": "{signed[name]}"')
    assert run_command(command, dev_server) == (200, {"valid": True})
