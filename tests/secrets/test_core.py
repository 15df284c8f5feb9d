"""What of a secret is left in a real core file, after its object was closed or has gone.

A program is given its secret through a pipe, into memory that it wipes itself, uses it, lets it go,
and crashes with core files switched on. What is claimed here is what docs/secrets.md promises.
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from attestkit._crypto.ed25519 import x25519, x25519_public_key
from tests.secrets.marks import Found, search
from tests.secrets.test_marked_keys import KEYS, SECRETS, SEED, key_file
from tests.secrets.test_process import to_a_file, unlimited
from tests.serve.client import call
from tests.serve.server import PATIENCE, environment, running_server

pytestmark = [pytest.mark.slow, to_a_file]

# glibc writes over what is freed, and Python has it do all of it: docs/secrets.md.
WIPING = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.perturb=165"}

TAKE = """if True:
    import os, attestkit
    from attestkit._crypto.zeroize import own_copy, wipe
    secret = bytearray(32)
    os.readv(0, [secret])
    def take():
        copy = own_copy(secret)
        wipe(secret)
        return copy
"""
CRASH = f"""
    os.kill(os.getpid(), {int(signal.SIGABRT)})
"""
USES = {
    "nothing": "wipe(take())",
    "K256Key": """
    from attestkit._crypto.ecdsa import K256Key
    given = take(); key = K256Key(given); wipe(given)
    key.sign(bytes(32)); repr(key); del key""",
    "k256_public_key": """
    from attestkit._crypto.ecdsa import k256_public_key
    given = take(); k256_public_key(given); wipe(given)""",
    "P256Key": """
    from attestkit._crypto.ecdsa import P256Key
    given = take(); key = P256Key.from_scalar(given); wipe(given)
    key.sign(b"data"); repr(key); del key""",
    "Ed25519Key": """
    from attestkit._crypto.ed25519 import Ed25519Key
    given = take(); key = Ed25519Key(given); wipe(given)
    key.sign(b"data"); repr(key); del key""",
    "x25519": """
    from attestkit._crypto.ed25519 import x25519, x25519_public_key
    given = take(); x25519(given, x25519_public_key(given)); wipe(given)""",
    # OpenSSL's own call writes over what it left of the first on the stack and in registers.
    "x25519, shared": """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from attestkit._crypto.ed25519 import x25519, x25519_public_key
    other = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    given = take(); wipe(x25519(given, x25519_public_key(given))); wipe(given)
    other.exchange(other.public_key())""",
    "AppKeys": """
    from attestkit.keys import AppKeys, LocalKeys
    given = take()
    with AppKeys(k256_key=given, ca_cert=None, ca_key=None, disk_crypt_key=given) as app_keys:
        wipe(given)
        keys = LocalKeys(app_keys)
        keys.derive("a"); keys.derive_separated("a", "p256"); keys.sign(b"x", "ed25519")""",
    "AppKeys.from_seed": """
    from attestkit.keys import AppKeys
    given = take()
    with AppKeys.from_seed(given) as app_keys:
        wipe(given)
        app_keys.ca_cert""",
}
# What stands for the secret: the scalar of Ed25519 (RFC 8032, 5.1.5), of which `search` takes the
# middle and so none of the clamped bits, and the bytes that X25519 agrees on in USES.
STANDS_FOR = {
    "Ed25519Key": {"scalar": hashlib.sha512(SEED).digest()[:32]},
    "x25519, shared": {"shared": x25519(SEED, x25519_public_key(SEED))},
}
LOAD = """if True:
    import os
    from attestkit.keys import AppKeys, LocalKeys
    with AppKeys.load("keys.json") as app_keys:
        keys = LocalKeys(app_keys)
        keys.derive("b"); keys.sign(b"x", "ed25519"); keys.sign(b"x", "k256")
        app_keys.ca_key.sign(b"x")
        OPEN
"""


def core_of(
    program: str, folder: Path, given: bytes = b"", environ: Mapping[str, str] | None = None
) -> bytes:
    """Run a program that crashes; return its core file."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=given,
        cwd=folder,
        env=environment(**(environ or {})),
        preexec_fn=unlimited,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT, done.stderr
    [core] = folder.glob("core*")
    return core.read_bytes()


def left(core: bytes, secrets: Mapping[str, bytes]) -> list[Found]:
    """Return what of the secrets is in a core file."""
    assert len(core) > 1 << 20  # of megabytes, and not cut
    return search(core, secrets)


@pytest.mark.parametrize("environ", [{}, WIPING], ids=["usual", "wiping"])
@pytest.mark.parametrize("use", USES)
def test_what_has_gone_has_gone(tmp_path: Path, use: str, environ: dict[str, str]) -> None:
    """No copy of the secret is left, in any form, nor of a key that stands for it."""
    core = core_of(TAKE + "    " + USES[use].lstrip() + CRASH, tmp_path, SEED, environ)
    assert left(core, {"secret": SEED, **STANDS_FOR.get(use, {})}) == []


def test_what_is_held_is_found(tmp_path: Path) -> None:
    """The same search finds a secret that somebody holds."""
    core = core_of(f"{TAKE}    held = take()\n{CRASH}", tmp_path, SEED)
    assert left(core, {"secret": SEED}) == [Found("secret", "raw", 1)]


def test_a_key_file(tmp_path: Path) -> None:
    """After `close()` no copy of the file's keys is left that is not cryptography's.

    That is the authority's key, of which a reader of PEM leaves one in freed memory, or none.
    """
    (tmp_path / "keys.json").write_text(key_file())
    core = core_of(LOAD.replace("OPEN", "pass") + CRASH, tmp_path)
    assert {found.secret for found in left(core, SECRETS)} <= {"ca_key"}


def test_a_key_file_where_freed_memory_is_wiped(tmp_path: Path) -> None:
    """With an allocator that writes over what is freed nothing is left at all."""
    (tmp_path / "keys.json").write_text(key_file())
    core = core_of(LOAD.replace("OPEN", "pass") + CRASH, tmp_path, environ=WIPING)
    assert left(core, SECRETS) == []


def test_a_key_file_in_use(tmp_path: Path) -> None:
    """The same search finds each key while the object is open."""
    (tmp_path / "keys.json").write_text(key_file())
    core = core_of(LOAD.replace("OPEN", CRASH.strip()), tmp_path)
    assert {found.secret for found in left(core, SECRETS)} >= set(KEYS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads a hidden process's memory")
def test_a_running_server(tmp_path: Path) -> None:
    """Root finds the keys in a server at work, as it must hold them; docs/secrets.md says how many.

    Text of them is not among it: what was read as hex has been let go.
    """
    (tmp_path / "keys.json").write_text(key_file())
    (tmp_path / "seed").write_bytes(SEED)
    given = ("--app-keys", str(tmp_path / "keys.json"), "--seed-file", str(tmp_path / "seed"))
    with running_server(*given) as server:
        for _ in range(20):
            assert call(server.dstack, "Sign", {"algorithm": "ed25519", "data": "00"}).status == 200
            assert call(server.dstack, "GetTlsKey", {}).status == 200
        found = search(memory_of(server.process.pid), {**KEYS, "seed": SEED})
    sys.stdout.write(f"{found}\n")
    assert {one.secret for one in found} >= {*KEYS, "seed"}


def memory_of(pid: int) -> bytes:
    """Return all that a process can write to, as root sees it."""
    pieces = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(text, 16) for text in place.split("-"))
                memory.seek(start)
                pieces.append(memory.read(end - start))
    return b"".join(pieces)
