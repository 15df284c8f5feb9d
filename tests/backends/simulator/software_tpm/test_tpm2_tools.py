"""tpm2-tools use the model as any TPM, and accept its quotes."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from attestkit.backends.simulator.software_tpm import TpmModel
from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor
from attestkit.backends.simulator.software_tpm.resource_manager import ResourceManager
from tests.backends.simulator.software_tpm.command_frames import new_model
from tests.backends.simulator.software_tpm.tpm_connection import serve_connection

pytestmark = pytest.mark.skipif(
    shutil.which("tpm2_quote") is None, reason="tpm2-tools are not installed"
)

# Copies frames between standard input and output (the TCTI "cmd") and a Unix socket.
BRIDGE: Final = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
def copy(read, write):
    data = b""
    while len(data) < 10 or len(data) < int.from_bytes(data[2:6], "big"):
        size = int.from_bytes(data[2:6], "big") if len(data) >= 10 else 10
        piece = read(size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    write(data)
while True:
    copy(lambda size: os.read(0, size), connection.sendall)
    copy(connection.recv, lambda data: os.write(1, data))
"""
AK_ATTRIBUTES: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
NV_ATTRIBUTES: Final = "ownerread|ownerwrite|authread|authwrite"

Tool = Callable[..., str]
Start = Callable[[Callable[[], CommandExecutor]], Tool]


class OpenedDevice:
    """An opened /dev/tpmrm0."""

    def __init__(self, manager: ResourceManager) -> None:
        self.file = manager.open()

    def execute(self, command: bytes) -> bytes:
        """Write a command and read its response."""
        self.file.write(command)
        return self.file.read(4096)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that runs tools on a TPM, opened anew for each."""
    path = tmp_path / "tpm"
    bridge = tmp_path / "bridge.py"
    bridge.write_text(BRIDGE)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads: list[Thread] = []

    def serve_tools(open_tpm: Callable[[], CommandExecutor]) -> Tool:
        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    opened = open_tpm()
                    serve_connection(opened, connection)
                    if isinstance(opened, OpenedDevice):
                        opened.file.close()

        threads.append(Thread(target=serve))
        threads[0].start()

        def run(line: str, *, fails: bool = False) -> str:
            done = subprocess.run(
                line.split(),
                env={
                    "TPM2TOOLS_TCTI": f"cmd:{sys.executable} -S {bridge} {path}",
                    "PATH": "/usr/bin:/bin",
                    "TSS2_LOG": "all+NONE",
                },
                cwd=tmp_path,
                capture_output=True,
                check=False,
                timeout=120,
            )
            assert (done.returncode != 0) == fails, done.stderr.decode()
            return done.stdout.decode()

        return run

    yield serve_tools
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


def check_quote(run: Tool, key: str, pcrs: str, digest: str = "sha256", more: str = "") -> None:
    """Quote and verify the quote; with another nonce it is refused."""
    run(f"tpm2_quote -Q -c {key} -l {pcrs} -q 6e6f -m q.msg -s q.sig -o q.pcrs -g {digest} {more}")
    check = f"tpm2_checkquote -Q -u ak.pem -m q.msg -s q.sig -f q.pcrs -g {digest}"
    run(f"{check} -q 6e6f")
    run(f"{check} -q 00", fails=True)


@pytest.mark.slow  # 26 programs
def test_raw_tpm(start: Start, tmp_path: Path) -> None:
    """The programs use a key, an NV index, PCRs and a quote."""
    model = new_model()
    run = start(lambda: model)
    assert "sha384" in run("tpm2_getcap pcrs")
    run(f"tpm2_createprimary -Q -C e -G rsa2048:rsassa-sha256:null -c ak.ctx -a {AK_ATTRIBUTES}")
    run("tpm2_evictcontrol -Q -C o -c ak.ctx 0x81000003")
    run("tpm2_flushcontext -t")
    run("tpm2_readpublic -Q -c 0x81000003 -f pem -o ak.pem")
    run(f"tpm2_pcrextend 8:sha256={'01' * 32}")
    assert model.read_pcr("sha256", 8).hex().upper() in run("tpm2_pcrread sha256:8")
    check_quote(run, "0x81000003", "sha256:all")
    check_quote(run, "0x81000003", "sha384:4,7+sha256:1")
    content = bytes(range(256)) * 8
    (tmp_path / "part").write_bytes(content)
    run(f"tpm2_nvdefine -Q -C o -s 2048 0x01400001 -a {NV_ATTRIBUTES}")
    run("tpm2_nvwrite -Q -C o -i part 0x01400001")
    run("tpm2_nvread -C o -o read 0x01400001")
    assert (tmp_path / "read").read_bytes() == content
    assert "size: 2048" in run("tpm2_nvreadpublic 0x01400001")
    run("tpm2_nvundefine -C o 0x01400001")
    for what in ("algorithms", "commands", "properties-fixed", "properties-variable"):
        assert run(f"tpm2_getcap {what}")
    assert run("tpm2_getcap ecc-curves")
    assert "0x81000003" in run("tpm2_getcap handles-persistent")


@pytest.mark.parametrize(
    ("kind", "scheme", "digest"),
    [
        ("ecc256:ecdsa-sha256:null", "ecdsa", "sha256"),
        pytest.param("ecc384:ecdsa-sha384:null", "ecdsa", "sha384", marks=pytest.mark.slow),
        pytest.param("rsa2048:rsapss-sha256:null", "rsapss", "sha256", marks=pytest.mark.slow),
    ],
)
def test_managed_tpm(start: Start, kind: str, scheme: str, digest: str) -> None:
    """Through the resource manager each program is an opener; contexts pass between them."""
    manager = ResourceManager(TpmModel(bytes(32)))
    run = start(lambda: OpenedDevice(manager))
    run(f"tpm2_createprimary -Q -C e -G {kind} -g sha256 -c ak.ctx -a {AK_ATTRIBUTES}")
    run("tpm2_readpublic -Q -c ak.ctx -f pem -o ak.pem")
    check_quote(run, "ak.ctx", "sha256:0,7,17", digest, f"--scheme {scheme}")
    run("tpm2_createek -Q -c ek.ctx -G rsa -u ek.pub")
    assert not run("tpm2_getcap handles-transient")
