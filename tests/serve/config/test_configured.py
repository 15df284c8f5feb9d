"""The server with a configuration: what it says is what is served, or one line says why not."""

import contextlib
import json
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import attestkit
from attestkit._formats.toml import decode
from attestkit.keys import AppKeys
from attestkit.serve.__main__ import main
from tests.serve.client import Answer, Connection, call
from tests.serve.config.test_agent_config_file import UPSTREAM
from tests.serve.server import SEED, command, environment, refusal, running_server

DISK = "/proc"  # mounted wherever the tests run
KEY = {"path": "a", "purpose": "b"}
COMPOSE = {"manifest_version": 2, "name": "an app", "runner": "bash", "public_sysinfo": True}
KEYS = AppKeys.from_seed(bytes.fromhex(SEED))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


Run: TypeAlias = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process, in the folder; return its code, and what it says."""
    for name in ("ATTESTKIT_BACKEND", "NOTIFY_SOCKET", "LISTEN_FDS", "PCCS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)

    def run(*options: str) -> tuple[int, list[str]]:
        code = main(["--dir", str(folder), *options])
        out, err = capfd.readouterr()
        assert out == ""
        return code, err.splitlines()

    return run


def key_file(keys: AppKeys = KEYS, **changes: Any) -> str:
    """Return the agent's key file."""
    assert keys.ca_key is not None
    fields = {
        "k256_key": keys.k256_key.hex(),
        "k256_signature": "",
        "disk_crypt_key": "",
        "gateway_app_id": "",
        "ca_cert": keys.ca_cert,
        "key_provider": {"None": {"key": keys.ca_key.pkcs8_pem}},
    }
    return json.dumps({**fields, **changes})


def host_shared(folder: Path) -> Path:
    """Make the folder that a host shares with its guest."""
    shared = folder / ".host-shared"
    shared.mkdir()
    (shared / ".appkeys.json").write_text(key_file())
    (shared / "app-compose.json").write_text(json.dumps(COMPOSE))
    (shared / ".sys-config.json").write_text(json.dumps({"vm_config": '{"cpu_count": 3}'}))
    return shared


def upstream(folder: Path) -> str:
    """Return upstream's example with the paths of this test, and any free port."""
    host_shared(folder)
    text = UPSTREAM.replace("/dstack/.host-shared", f"{folder}/.host-shared")
    text = text.replace("unix:/var/run/dstack/", "unix:./")  # relative to where it is started
    return re.sub(r"\"0\.0\.0\.0\"\nport = 8090", '"127.0.0.1"\nport = 0', text)


def test_the_agents_own(folder: Path) -> None:
    """Upstream's example works as it stands: sockets, files, the Server header, and a note."""
    (folder / "agent.toml").write_text(upstream(folder))
    with running_server("-c", "agent.toml", folder=folder) as server:
        assert server.dstack == f"{folder}/dstack.sock"
        assert server.tappd == f"{folder}/tappd.sock"
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", server.url)
        answer = call(server.dstack, "Info")
        info = answer.json()
        assert answer.headers["server"] == "dstack guest agent (attestkit simulator)"
        assert (info["app_name"], info["vm_config"]) == ("an app", '{"cpu_count": 3}')
        chain = call(server.dstack, "GetTlsKey", {"subject": "x"}).json()["certificate_chain"]
        assert chain[-1] == KEYS.ca_cert
        assert call(server.url, "prpc/Worker.Version").status == 200
        [note] = [line for line in server.log().splitlines() if line.startswith("INFO")]
        assert note == (
            "INFO attestkit.serve: agent.toml: not used here: default.workers, "
            "default.max_blocking, default.temp_dir, guest-api (vsock is not served)"
        )


def test_the_same_in_json(folder: Path) -> None:
    """The same as JSON; the command line goes before it."""
    profiles = decode(upstream(folder))
    profiles["external"] = {"address": "unix:external.sock"}
    profiles["default"]["attestkit"] = {
        "http": "none",
        "socket_mode": "640",
        "tappd_socket": "none",
    }
    (folder / "agent.json").write_text(json.dumps(profiles))
    options = ("-c", "agent.json", "--http", "unix:other.sock", "--log-level", "warning")
    with running_server(*options, folder=folder) as server:
        assert server.ready == {"dstack": f"{folder}/dstack.sock", "http": f"{folder}/other.sock"}
        for path in server.ready.values():
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640
        assert call(server.ready["http"], "prpc/Worker.Version").status == 200
        assert call(server.ready["http"], "GetKey", KEY).status == 404
        assert "INFO" not in server.log()
    assert not (folder / "other.sock").exists()


def test_an_external_socket_and_a_seed(folder: Path) -> None:
    """Upstream's simulator has its external listener on a socket, and a seed."""
    (folder / "sim.toml").write_text(
        f"""
        [default]
        ident = "dstack Simulator"
        [default.core.simulator]
        mock_attestation_seed = "{SEED}"
        patch_report_data = true
        [external]
        address = "unix:./external.sock"
        """
    )
    with running_server("-c", "sim.toml", folder=folder) as server:
        assert server.url == f"{folder}/external.sock"
        answer = call(server.url, "prpc/Worker.Version")
        assert answer.headers["server"] == "dstack Simulator"
        key = call(server.dstack, "GetKey", KEY).json()["key"]
        assert SEED not in server.log()
    with attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee:
        assert tee.keys.derive(KEY["path"], purpose=KEY["purpose"]).key.hex() == key


def test_what_the_guest_writes_at_boot(folder: Path) -> None:
    """/dstack/agent.json says which disks are told about; limits may stand beside it."""
    path = folder / "agent.json"
    profiles: dict[str, Any] = {"default": {"core": {"data_disks": [DISK]}}}
    profiles["default"]["attestkit"] = {"limits": {"body": "1MiB", "head": "2KiB"}}
    path.write_text(json.dumps(profiles))
    host_shared(folder)
    options = ("-c", str(path), "--http", "127.0.0.1:0", "--limit", "body=128KiB")
    app = ("--app-compose", ".host-shared/app-compose.json")  # whose figures are public
    with running_server(*options, *app, folder=folder) as server:
        assert server.ready["dstack"] == f"{folder}/dstack.sock"
        figures = call_get(server.url, "/metrics")
        assert f'mount_point="{DISK}"' in figures
        assert 'mount_point="/"' not in figures
        assert call(server.dstack, "Info").headers["server"] == "attestkit simulator"
        connection = Connection(server.dstack)
        answer = connection.call("GetKey", {"path": "x" * (128 << 10)})
        connection.close()
        assert answer.status == 400
        assert "too large" in answer.json()["error"]


def test_the_log_as_json(folder: Path, run: Run) -> None:
    """Every line on stderr is an object, from the first to why it ends."""
    (folder / "x.toml").write_text(
        "[default]\ncolour = 1\n[default.attestkit]\nlog_format = 'json'\nhttp = 'none'"
    )
    with running_server("-c", "x.toml", folder=folder) as server:
        told = [json.loads(line) for line in server.log().splitlines()]
        assert told[0]["message"] == "x.toml: unknown and ignored: default.colour"
        assert told[-1]["places"]["dstack"] == server.dstack
        code, lines = run("--backend=simulator", "-c", "x.toml")
        assert code == 3
        [_, entry] = map(json.loads, lines)
        assert (entry["level"], "another server is live" in entry["message"]) == ("critical", True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[default]\nkeep_alive = 'x'", "agent.toml: default.keep_alive: want whole seconds"),
        ("[default.attestkit]\nhttp = 'x'", "agent.toml: default.attestkit.http: x: want HOST:"),
        ("[default.attestkit]\nseed = 's3cret'", "agent.toml: default.attestkit.seed: not hex"),
        ("[default.attestkit]\nverifier_policy = 'x'", "agent.toml: default.attestkit.verifier_p"),
        ("[default.core]\nkeys_file = 'nowhere'", "nowhere: No such file"),
        ("[internal]\naddress = 'unix:/nowhere/x'", "/nowhere/x: No such file"),
        ("[internal", "agent.toml: not TOML"),
        ("[external]\naddress = '192.0.2.1'", "192.0.2.1:8090: "),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, run: Run, text: str, told: str) -> None:
    """The file, the key and the reason, with the code for a configuration; no secret."""
    (folder / "agent.toml").write_text(text)
    http = () if "http" in text or "external" in text else ("--http", "none")
    code, [line] = run("--backend", "simulator", "-c", "agent.toml", *http)
    assert code == 1
    assert line.startswith("attestkit serve: ")
    assert told in line
    assert "s3cret" not in line


def test_no_configuration_at_all(folder: Path) -> None:
    """So is a file that is not there, or has no name."""
    assert "nowhere: No such file" in refusal("-c", "nowhere", folder=folder, code=1)
    assert "--config: the value is empty" in refusal("-c", "", folder=folder, code=1)


def test_an_authority_with_another_key(folder: Path, run: Run) -> None:
    """The agent does not start with a certificate that is not its key's."""
    other = AppKeys.from_seed(bytes(32)).ca_cert
    (folder / "keys").write_text(key_file(ca_cert=other))
    code, [line] = run("--backend", "simulator", "--app-keys", "keys")
    assert code == 1
    assert re.search(r"/keys: ca_cert: its public key is not that of key_provider\.None\.key", line)
    assert KEYS.k256_key.hex() not in line


def test_a_deployments_configuration_is_no_simulators(folder: Path, run: Run) -> None:
    """Without hardware, one that names keys needs somebody to say `simulator`."""
    (folder / "agent.toml").write_text(upstream(folder))
    code, lines = run("-c", "agent.toml")
    assert code == 1
    assert "with agent.toml: default.core.keys_file the simulator is not picked" in lines[-1]


@pytest.mark.parametrize("stderr", ["full", "gone"])
def test_who_reads_does_not_matter(folder: Path, stderr: str) -> None:
    """With nobody at stdout, and at stderr nobody or one who is stuck, it serves all the same."""
    reader, writer = os.pipe()
    if stderr == "full":
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 4096):
                pass
        os.set_blocking(writer, True)
    else:
        os.close(reader)
    nobody, stdout = os.pipe()
    os.close(nobody)
    with subprocess.Popen(
        command("--backend", "simulator", "--dir", str(folder), "--http", "none"),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=writer,
    ) as process:
        try:
            assert wait_for(folder / "dstack.sock").status == 200
        finally:
            process.terminate()
        assert process.wait(60) == 0
    for end in (stdout, writer, *([reader] if stderr == "full" else [])):
        os.close(end)


def call_get(endpoint: str, path: str) -> str:
    """Return what a path shows."""
    connection = Connection(endpoint)
    try:
        return connection.send_request("GET", path).body.decode()
    finally:
        connection.close()


def wait_for(path: Path) -> Answer:
    """Return the answer to Info as soon as there is one."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call(str(path), "Info")
        except OSError:  # not there yet
            assert time.monotonic() < deadline
            time.sleep(0.02)
