"""The RPC examples of the agent's API document work, apart from the socket's path."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.serve.server import Server, running_server
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
needs_document = pytest.mark.skipif(not EXAMPLES, reason="the API document is not here")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a running server; skip without curl."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with running_server() as server:
        yield server
        server.check_log()


def run_command(command: str, server: Server) -> tuple[int, Any]:
    """Run a command against the server; return status and JSON body."""
    command = command.replace(DOCUMENT_PATH, server.dstack).rstrip()
    # The document does not quote URLs, which a shell would split at `&`.
    command = re.sub(r"(?<=\s)(http://dstack/\S+)", r"'\1'", command)
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} -sS --write-out '\\n%{{http_code}}'"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


@needs_document
def test_every_method_has_example() -> None:
    """The parser finds every example of the document."""
    assert {example.method for example in EXAMPLES} == set(RPC)
    assert len(EXAMPLES) == 11
    documents = [path.read_text() for path in sorted(SHARED.glob("seeds/*.txt"))]
    commands = re.findall(r"^curl .*", "\n".join(documents), flags=re.MULTILINE)
    of_pages = [re.fullmatch(r'curl "http://[^/]+(/\w*)\S*"', command) for command in commands]
    # Tested in test_logs_of_docker.py, test_metrics.py and test_pages.py.
    pages = Counter(page[1] for page in of_pages if page)
    assert pages == {"/logs": 4, "/metrics": 1, "/": 1}
    assert len(commands) == len(EXAMPLES) + pages.total()


@needs_document
@pytest.mark.parametrize("header", ["as written", "no content type"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.method}-{'POST' in e.command}")
def test_example_works(example: Example, header: str, server: Server) -> None:
    """The command returns 200 and the documented members, also without content type."""
    command = example.command
    if header == "no content type":
        command = re.sub(r" -H 'Content-Type: application/json' \\\n", "", command)
        if command == example.command:
            pytest.skip("this one has none")
    status, answer = run_command(command, server)
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
def test_post_and_get_examples_agree(server: Server) -> None:
    """Both examples of GetKey return the same key."""
    post, get = (
        run_command(example.command, server)[1]
        for example in EXAMPLES
        if example.method == "GetKey"
    )
    assert post == get


@needs_document
def test_verify_example_with_real_signature(server: Server) -> None:
    """The Verify example accepts the signature of Sign."""
    sign = next(example for example in EXAMPLES if example.method == "Sign")
    verify = next(example for example in EXAMPLES if example.method == "Verify")
    _, signed = run_command(sign.command, server)
    command = verify.command
    for name in ("signature", "public_key"):
        command = command.replace(f'"{name}": "deadbeef"', f'"{name}": "{signed[name]}"')
    assert run_command(command, server) == (200, {"valid": True})


@needs_document
def test_error_examples(server: Server) -> None:
    """Errors are 400 and 404, with the reason in JSON."""
    quote = next(example for example in EXAMPLES if example.method == "GetQuote")
    status, answer = run_command(quote.command.replace("1234deadbeaf", "zz"), server)
    assert (status, list(answer)) == (400, ["error"])
    status, answer = run_command(quote.command.replace("/GetQuote", "/GetNothing"), server)
    assert (status, answer) == (404, {"error": "Service not found: GetNothing"})
