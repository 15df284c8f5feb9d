"""A core file of a client of a KMS contains no key that was released; a KMS leaves none.

As test_core.py, with a KMS in the test process whose roots are marked.
"""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestkit
from attestkit.kms import KmsClient, KmsRoot, SimulatedKms
from tests.secrets.test_core import CRASH, WIPING, crash_and_read_core, secrets_in
from tests.secrets.test_kms_marked_keys import LOCAL, ROOTS, secrets_of
from tests.secrets.test_process_hardening import allow_core_files, requires_root, to_a_file
from tests.serve.server import running_server

pytestmark = [pytest.mark.slow, to_a_file]

RELEASED = ("disk_crypt_key", "env_crypt_key", "k256_key")
# The first address of the KMS refuses connections: the error has the frames that have the keys.
FETCH = """if True:
    import os, socket, attestkit
    from attestkit.kms import KmsClient, KmsRoot
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    refused = (socket.AF_INET, socket.SOCK_STREAM, 6, "", closed.getsockname())
    look_up = socket.getaddrinfo
    socket.getaddrinfo = lambda *name: [refused, *look_up(*name)]
    with attestkit.open("simulator", seed=bytes(32)) as tee:
        client = KmsClient("URL", roots=[KmsRoot.load("root.json")], attester=tee)
        keys = client.get_app_keys()
        OPEN
        keys.close()
    del keys, client, tee
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Return a program that fetches keys, and the secrets."""
    with (
        attestkit.open("simulator", seed=bytes(32)) as guest,
        SimulatedKms(guest.verifier(), roots=ROOTS) as kms,
    ):
        kms.root.save(tmp_path / "root.json")
        yield FETCH.replace("URL", kms.url), secrets_of(guest)


def test_core_with_open_keys_contains_them(
    tmp_path: Path, program: tuple[str, dict[str, bytes]]
) -> None:
    """The search finds the released keys while the object is open, and never the roots."""
    text, secrets = program
    core = crash_and_read_core(text.replace("OPEN", CRASH.strip()), tmp_path)
    assert {found.secret for found in secrets_in(core, secrets)} == set(RELEASED)


def test_core_after_close_contains_no_key(
    tmp_path: Path, program: tuple[str, dict[str, bytes]]
) -> None:
    """With an allocator that overwrites freed memory nothing remains after `close()`."""
    text, secrets = program
    core = crash_and_read_core(text.replace("OPEN", "pass") + CRASH, tmp_path, environ=WIPING)
    assert secrets_in(core, secrets) == []


def test_core_after_close_contains_no_raw_key(
    tmp_path: Path, program: tuple[str, dict[str, bytes]]
) -> None:
    """With the usual allocator the keys are wiped; only text of the answer can remain."""
    text, secrets = program
    core = crash_and_read_core(text.replace("OPEN", "pass") + CRASH, tmp_path)
    assert {found.form for found in secrets_in(core, secrets)} <= {"hex"}


@requires_root
def test_crash_of_serving_kms_leaves_no_core_file(tmp_path: Path) -> None:
    """The server with a KMS, whose memory is hidden, leaves no core file."""
    mine = resource.getrlimit(resource.RLIMIT_CORE)
    allow_core_files()
    try:
        with running_server("--kms", LOCAL, folder=tmp_path) as server:
            root = KmsRoot.load(tmp_path / "kms-root.json")
            assert KmsClient(server.ready["kms"], roots=[root]).get_meta().is_dev
            assert server.stop(signal.SIGABRT) == -signal.SIGABRT
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, mine)
    assert not list(tmp_path.glob("core*"))
