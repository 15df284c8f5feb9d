"""A core file of a process contains no secret of an object that was closed or released.

The process receives its secret through a pipe into memory that it wipes itself, uses it, releases
it, and crashes with core files enabled. The expectations are those of docs/security/secrets.md.
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
from attestkit._crypto.hashes import hkdf_sha256
from tests.secrets.marks import Found, search
from tests.secrets.test_marked_keys import KEYS, SECRETS, SEED, make_key_file
from tests.secrets.test_process_hardening import allow_core_files, to_a_file
from tests.serve.client import call
from tests.serve.server import PATIENCE, environment, running_server

pytestmark = [pytest.mark.slow, to_a_file]

# glibc overwrites freed memory, and Python allocates with it: docs/security/secrets.md.
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
    # OpenSSL's own call overwrites the remains of the first on the stack and in registers.
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
        keys.derive_compat("a"); keys.derive("a", "p256"); keys.sign(b"x", "ed25519")
        keys.derive_v1("a", "secp256k1"); keys.derive_v1("a", "ed25519")""",
    "AppKeys.from_seed": """
    from attestkit.keys import AppKeys
    given = take()
    with AppKeys.from_seed(given) as app_keys:
        wipe(given)
        app_keys.ca_cert""",
    # The last derivation overwrites the remains of the others on the stack, as above.
    "KmsRoots": """
    from attestkit._crypto.ecdsa import P256Key
    from attestkit.keys import derive_bytes
    from attestkit.kms.release.roots import release_app_keys
    from attestkit.kms.release.roots import KmsRoots
    other = P256Key.from_scalar(bytes(range(1, 33)))
    given = take()
    roots = KmsRoots(ca_key=other, k256_secret=given, temp_ca_key=other, rpc_key=other)
    wipe(given)
    keys = release_app_keys(roots, bytes(20), b"")
    del keys, roots
    derive_bytes(bytes(32), bytes(20), b"app-key")""",
    "KmsRoots.from_seed": """
    from attestkit.kms.release.roots import KmsRoots
    given = take(); roots = KmsRoots.from_seed(given); wipe(given)
    roots.serial_number("root-ca")
    del roots""",
}
# Derived secrets: the scalar of Ed25519 (RFC 8032, 5.1.5), whose middle half contains no
# clamped bits, and the shared secret of X25519 in USES.
STANDS_FOR = {
    "KmsRoots": {"app root": hkdf_sha256(SEED, bytes(20) + b"app-key", 32, b"RATLS")},
    "Ed25519Key": {"scalar": hashlib.sha512(SEED).digest()[:32]},
    "x25519, shared": {"shared": x25519(SEED, x25519_public_key(SEED))},
}
LOAD = """if True:
    import os
    from attestkit.keys import AppKeys, LocalKeys
    with AppKeys.load("keys.json") as app_keys:
        keys = LocalKeys(app_keys)
        keys.derive_compat("b"); keys.sign(b"x", "ed25519"); keys.sign(b"x", "k256")
        app_keys.ca_key.sign(b"x")
        OPEN
"""


def crash_and_read_core(
    program: str, folder: Path, given: bytes = b"", environ: Mapping[str, str] | None = None
) -> bytes:
    """Run a program that crashes; return its core file."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=given,
        cwd=folder,
        env=environment(**(environ or {})),
        preexec_fn=allow_core_files,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT, done.stderr
    [core] = folder.glob("core*")
    return core.read_bytes()


def secrets_in(core: bytes, secrets: Mapping[str, bytes]) -> list[Found]:
    """Return the secrets found in a core file."""
    assert len(core) > 1 << 20  # of megabytes, not truncated
    return search(core, secrets)


@pytest.mark.parametrize("environ", [{}, WIPING], ids=["usual", "wiping"])
@pytest.mark.parametrize("use", USES)
def test_core_after_release_contains_no_secret(
    tmp_path: Path, use: str, environ: dict[str, str]
) -> None:
    """No copy of the secret or of a derived key remains, in any encoding."""
    core = crash_and_read_core(TAKE + "    " + USES[use].lstrip() + CRASH, tmp_path, SEED, environ)
    assert secrets_in(core, {"secret": SEED, **STANDS_FOR.get(use, {})}) == []


def test_core_with_held_secret_contains_it(tmp_path: Path) -> None:
    """The search finds a secret that is still referenced."""
    core = crash_and_read_core(f"{TAKE}    held = take()\n{CRASH}", tmp_path, SEED)
    assert secrets_in(core, {"secret": SEED}) == [Found("secret", "raw", 1)]


def test_core_after_close_of_key_file_contains_only_ca_key(tmp_path: Path) -> None:
    """After `close()` only copies made by cryptography can remain.

    These are copies of the CA key: a PEM parser leaves at most one in freed memory.
    """
    (tmp_path / "keys.json").write_text(make_key_file())
    core = crash_and_read_core(LOAD.replace("OPEN", "pass") + CRASH, tmp_path)
    assert {found.secret for found in secrets_in(core, SECRETS)} <= {"ca_key"}


def test_core_with_wiping_allocator_contains_no_key(tmp_path: Path) -> None:
    """With an allocator that overwrites freed memory nothing remains."""
    (tmp_path / "keys.json").write_text(make_key_file())
    core = crash_and_read_core(LOAD.replace("OPEN", "pass") + CRASH, tmp_path, environ=WIPING)
    assert secrets_in(core, SECRETS) == []


def test_core_with_open_key_file_contains_its_keys(tmp_path: Path) -> None:
    """The search finds each key while the object is open."""
    (tmp_path / "keys.json").write_text(make_key_file())
    core = crash_and_read_core(LOAD.replace("OPEN", CRASH.strip()), tmp_path)
    assert {found.secret for found in secrets_in(core, SECRETS)} >= set(KEYS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read a hidden process's memory")
def test_memory_of_running_server_contains_documented_copies(tmp_path: Path) -> None:
    """Root finds as many copies of the keys in a running server as docs/security/secrets.md states.

    Their hex text is not among them: it was released after parsing.
    """
    (tmp_path / "keys.json").write_text(make_key_file())
    (tmp_path / "seed").write_bytes(SEED)
    given = ("--app-keys", str(tmp_path / "keys.json"), "--seed-file", str(tmp_path / "seed"))
    with running_server(*given) as server:
        for _ in range(20):
            assert call(server.dstack, "Sign", {"algorithm": "ed25519", "data": "00"}).status == 200
            assert call(server.dstack, "GetTlsKey", {}).status == 200
        found = search(read_memory(server.process.pid), {**KEYS, "seed": SEED})
    sys.stdout.write(f"{found}\n")
    assert {one.secret for one in found} >= {*KEYS, "seed"}


def read_memory(pid: int) -> bytes:
    """Return all writable memory of a process, read as root."""
    pieces = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            address_range, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(text, 16) for text in address_range.split("-"))
                memory.seek(start)
                pieces.append(memory.read(end - start))
    return b"".join(pieces)
