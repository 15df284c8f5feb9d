"""Tests of the attested_api example."""

import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.testing import AttestedServer
from tests.examples.reader import Done, Reader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the README uses openssl"),
]

Make = Callable[..., AttestedServer]
SECRET: Final = "a secret of four words"
OTHER_APP: Final = b'{"manifest_version":2,"name":"other","runner":"bash"}'


@pytest.mark.slow
def test_attested_api_readme_commands_succeed(tmp_path: Path) -> None:
    """The client prints what was proven, and the answer."""
    with Reader("attested_api", tmp_path) as reader:
        done = reader.run_all()[-1]
        assert done.code == 0, done.printed
        assert re.search(r"PROVEN .*SIMULATED.*\(attestkit, ", done.printed)
        assert done.printed.endswith("\n5 words\n")
        # The vendors' roots accept no simulator, and another CA no server.
        command = reader.commands()[-1]
        refused = reader.run(re.sub(r"--trust-anchor \S+", "", command))
        assert (refused.code, refused.printed.partition(":")[0]) == (1, "refused, untrusted_root")
        refused = reader.run(command.replace("--server-ca sim/leaf.pem", ""))
        assert (refused.code, refused.printed.partition(":")[0]) == (1, "refused, unknown_service")


@pytest.fixture(scope="module")
def run_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Done]]:
    """Return a function that runs the client of the example in this process."""
    with Reader("attested_api", tmp_path_factory.mktemp("example")) as reader:
        main = reader.load("client").main

        def run(server: AttestedServer, policy: AttestedServer | None = None) -> Done:
            files = {
                "policy": (policy or server).policy.policy.to_toml().encode(),
                "trust-anchor": server.tee.trust_anchor,
                "collateral": server.tee.collateral.to_json().encode(),
                "server-ca": server.ca.encode(),
            }
            arguments = ["client.py", server.url, SECRET]
            for name, content in files.items():
                path = reader.folder / name
                path.write_bytes(content)
                arguments += [f"--{name}", str(path)]
            printed, code = io.StringIO(), 0
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
                patch.setattr("sys.argv", arguments)
                try:
                    main()
                except SystemExit as ended:  # its text goes to stderr, and the code is 1
                    printed.write(str(ended.code))
                    code = 1
            return Done(code, printed.getvalue())

        yield run


def received_secret(server: AttestedServer) -> bool:
    """Return whether any byte of the secret text reached a server."""
    return any(SECRET.encode() in one for one in server.received)


def test_attested_api_service_is_accepted(
    attested_server: Make, run_client: Callable[..., Done], tmp_path: Path
) -> None:
    """The application of the example, behind the middleware, gets the text."""
    with Reader("attested_api", tmp_path) as reader:
        server = attested_server(reader.load("service").app)
    done = run_client(server)
    assert done.code == 0, done.printed
    assert done.printed.endswith("\n5 words\n")
    assert received_secret(server)


REFUSALS: Final[dict[str, tuple[Callable[[AttestedServer], None], dict[str, Any], str]]] = {
    "relay": (AttestedServer.relay, {}, "other_key"),
    "changed key": (lambda server: server.relay(rewrite=True), {}, "report_data"),
    "old evidence": (AttestedServer.stale, {}, "nonce_echo"),
    "out of date": (lambda _: None, {"scenario": "tcb-OutOfDate"}, "tcb_status"),
    "another app": (lambda _: None, {"app_compose": OTHER_APP}, "reference_value"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_attested_api_other_server_is_refused(
    attested_server: Make, run_client: Callable[..., Done], name: str
) -> None:
    """A server that is not proven is refused with the reason of the README, and gets nothing."""
    attack, options, reason = REFUSALS[name]
    server = attested_server(**options)
    attack(server)
    done = run_client(server, attested_server())
    assert (done.code, done.printed.partition(":")[0]) == (1, f"refused, {reason}")
    assert not received_secret(server)


def test_attested_api_ordinary_server_is_refused(
    attested_server: Make, run_client: Callable[..., Done]
) -> None:
    """A server without evidence gets nothing."""
    server = attested_server()
    server.change_document(lambda _: b"not found")
    done = run_client(server)
    assert done.code == 1
    assert not received_secret(server)
