"""A server process started with a configuration file."""

import contextlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from attestkit._formats.toml import decode
from attestkit.keys import AppKeys
from tests.serve.client import call, get
from tests.serve.config.test_agent_config_file import UPSTREAM
from tests.serve.server import SEED, command, environment, refusal, run_to_end, running_server
from tests.serve.verifier_service.test_verifier_instances import wait_until

DISK = "/proc"  # mounted wherever the tests run
KEY = {"path": "a", "purpose": "b"}
COMPOSE = {"manifest_version": 2, "name": "an app", "runner": "bash", "public_sysinfo": True}
KEYS = AppKeys.from_seed(bytes.fromhex(SEED))


def encode_key_file(keys: AppKeys = KEYS, **changes: Any) -> str:
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


def create_host_shared(folder: Path) -> Path:
    """Create the folder that a host shares with its guest."""
    shared = folder / ".host-shared"
    shared.mkdir()
    (shared / ".appkeys.json").write_text(encode_key_file())
    (shared / "app-compose.json").write_text(json.dumps(COMPOSE))
    (shared / ".sys-config.json").write_text(json.dumps({"vm_config": '{"cpu_count": 3}'}))
    return shared


def adapt_upstream_example(folder: Path) -> str:
    """Return dstack's example with this test's paths and a free port."""
    create_host_shared(folder)
    text = UPSTREAM.replace("/dstack/.host-shared", f"{folder}/.host-shared")
    text = text.replace("unix:/var/run/dstack/", "unix:./")  # relative to the working directory
    return re.sub(r"\"0\.0\.0\.0\"\nport = 8090", '"127.0.0.1"\nport = 0', text)


def test_serve_upstream_example_works_unchanged(folder: Path) -> None:
    """The upstream example sets sockets, files and the Server header; unused keys are logged."""
    (folder / "agent.toml").write_text(adapt_upstream_example(folder))
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
            "INFO attestkit.serve: agent.toml: keys without effect in attestkit: default.workers, "
            "default.max_blocking, default.temp_dir, guest-api (off by default; see --guest-api)"
        )


@pytest.mark.slow
def test_serve_json_configuration_command_line_precedes(folder: Path) -> None:
    """A JSON configuration is applied; the command line precedes it."""
    profiles = decode(adapt_upstream_example(folder))
    profiles["default"]["ident"] = "dstack Simulator"
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
        answer = call(server.ready["http"], "prpc/Worker.Version")
        assert answer.headers["server"] == "dstack Simulator"
        assert call(server.ready["http"], "GetKey", KEY).status == 404
        assert "INFO" not in server.log()
    assert not (folder / "other.sock").exists()


@pytest.mark.slow
def test_serve_boot_file_sets_disks_and_limits(folder: Path) -> None:
    """/dstack/agent.json sets the disks in /metrics and the limits."""
    path = folder / "agent.json"
    profiles: dict[str, Any] = {"default": {"core": {"data_disks": [DISK]}}}
    profiles["default"]["attestkit"] = {"limits": {"body": "1MiB", "head": "2KiB"}}
    path.write_text(json.dumps(profiles))
    create_host_shared(folder)
    options = ("-c", str(path), "--http", "127.0.0.1:0", "--limit", "body=128KiB")
    app = ("--app-compose", ".host-shared/app-compose.json")  # makes metrics public
    with running_server(*options, *app, folder=folder) as server:
        assert server.ready["dstack"] == f"{folder}/dstack.sock"
        figures = get(server.url, "/metrics").body.decode()
        assert f'mount_point="{DISK}"' in figures
        assert 'mount_point="/"' not in figures
        assert call(server.dstack, "Info").headers["server"] == "attestkit simulator"
        answer = call(server.dstack, "GetKey", {"path": "x" * (128 << 10)})
        assert answer.status == 413
        assert "too large" in answer.json()["error"]


@pytest.mark.slow
def test_serve_json_log_format_applies_to_every_line(folder: Path) -> None:
    """Every stderr line is a JSON object, from the first to the fatal error."""
    (folder / "x.toml").write_text(
        "[default]\ncolour = 1\n[default.attestkit]\nlog_format = 'json'\nhttp = 'none'"
    )
    with running_server("-c", "x.toml", folder=folder) as server:
        message = [json.loads(line) for line in server.log().splitlines()]
        assert message[0]["message"] == "x.toml: unknown keys, which are ignored: default.colour"
        assert message[-1]["places"]["dstack"] == server.dstack
        second = run_to_end("--dir", str(folder), "-c", "x.toml", folder=folder)
        assert (second.returncode, second.stdout) == (3, "")
        [_, entry] = map(json.loads, second.stderr.splitlines())
        assert (entry["level"], "in use by another server" in entry["message"]) == (
            "critical",
            True,
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default.attestkit]\nhttp = 'x'", "agent.toml: default.attestkit.http: must be "),
        ("[default.attestkit]\nseed = 's3cret'", "agent.toml: default.attestkit.seed: not valid"),
        ("[default.attestkit]\nverifier_policy = 'x'", "agent.toml: default.attestkit.verifier_p"),
        ("[internal]\naddress = 'unix:/nowhere/x'", "/nowhere/x: No such file"),
        ("[external]\naddress = '192.0.2.1'", "192.0.2.1:8090: "),
    ],
)
def test_serve_invalid_configuration_prints_one_line(folder: Path, text: str, message: str) -> None:
    """The error line names file, key and reason, without secrets; the exit code is 1."""
    (folder / "agent.toml").write_text(text)
    http = () if "http" in text or "external" in text else ("--http", "none")
    options = ("--backend", "simulator", "--dir", str(folder), "-c", "agent.toml", *http)
    line = refusal(*options, folder=folder, code=1)
    assert message in line
    assert "s3cret" not in line


def test_serve_missing_configuration_file_is_refused(folder: Path) -> None:
    """A missing file and an empty file name are refused."""
    for name, problem in (("nowhere", "nowhere: No such file"), ("", "--config: the value is")):
        assert problem in refusal("-c", name, folder=folder, code=1)


def test_serve_ca_certificate_of_other_key_is_refused(folder: Path) -> None:
    """The agent does not start with a CA certificate of another key."""
    other = AppKeys.from_seed(bytes(32)).ca_cert
    (folder / "keys").write_text(encode_key_file(ca_cert=other))
    options = ("--backend", "simulator", "--dir", str(folder), "--app-keys", "keys")
    line = refusal(*options, folder=folder, code=1)
    assert re.search(r"/keys: ca_cert: its public key must be that of key_provider\.None", line)
    assert KEYS.k256_key.hex() not in line


@pytest.mark.slow
@pytest.mark.parametrize("stderr", ["full", "gone"])
def test_serve_blocked_or_closed_stderr_keeps_serving(folder: Path, stderr: str) -> None:
    """The server works with a closed stdout and a full or closed stderr."""
    reader, writer = os.pipe()
    if stderr == "full":
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 4096):
                pass
        os.set_blocking(writer, True)
    else:
        os.close(reader)
    closed_reader, stdout = os.pipe()
    os.close(closed_reader)

    def is_served() -> bool:
        with contextlib.suppress(OSError):  # not listening yet
            return call(f"{folder}/dstack.sock", "Info").status == 200
        return False

    with subprocess.Popen(
        command("--backend", "simulator", "--dir", str(folder), "--http", "none"),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=writer,
    ) as process:
        try:
            wait_until(is_served, "the server does not answer")
        finally:
            process.terminate()
        assert process.wait(60) == 0
    for end in (stdout, writer, *([reader] if stderr == "full" else [])):
        os.close(end)
