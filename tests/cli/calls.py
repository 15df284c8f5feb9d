"""A valid call of each command, over simulated evidence and servers."""

import atexit
import functools
from typing import Any

from attestkit.kms import SimulatedKms
from attestkit.serve.verifier_service.ear import encode_key_set
from attestkit.testing import AttestedServer
from attestkit.verifier.ear.result_token import sign_ear
from tests.cli import attested
from tests.cli.commands.test_verify_key import EXPECTED as KEY_EXPECTED
from tests.cli.commands.test_verify_key import KEY
from tests.cli.evidence_files import Files
from tests.cli.program import SEED, SIMULATED
from tests.kms.boot.booting import kms_of
from tests.measure.image_samples import write_folder
from tests.measure.measured_guest import image_files
from tests.verifier.ear import ears


@functools.cache
def running_kms() -> SimulatedKms:
    """Return a KMS for the simulated guest, which runs until the process ends."""
    kms = kms_of(bytes.fromhex(SEED))
    atexit.register(kms.close)
    return kms


@functools.cache
def running_server() -> AttestedServer:
    """Return a server to prove, which runs until the process ends."""
    server = AttestedServer(nothing)
    atexit.register(server.close)
    return server


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """Answer with a line (ASGI)."""
    del receive
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a line\n"})


def list_calls(files: Files) -> dict[str, list[str]]:
    """Return a valid call of each command."""
    kms, root = running_kms(), files.folder / "kms-root.json"
    kms.root.save(root)
    evidence = str(files.evidence)
    server = running_server()
    proven = [server.url, *attested.options(server, files.folder)]
    line = b'{"evidence": "%s"}\n' % files.evidence.read_bytes().hex().encode()
    token = files.put("verdict.jwt", sign_ear(ears.create_small_result(), ears.ED25519))
    keys = files.put("keys.json", encode_key_set(ears.ED25519))
    return {
        "attest": [*SIMULATED],
        "bench": ["--seconds", "0.1"],
        "completion": ["bash"],
        "connect": proven,
        "curl": proven,
        "doctor": [],
        "ear": [str(token), "--key", str(keys), "--at", ears.NOW.isoformat(), "--any-freshness"],
        "emit": [*SIMULATED, "event", "00"],
        "env": ["seal", str(files.put("env", b"NAME=value\n")), "--public-key", "09" * 32],
        "key": [*SIMULATED, "path"],
        "keys": ["fetch", *SIMULATED, "--kms-url", kms.url, "--kms-root", str(root)],
        "measure": measured(files),
        "mount": ["--list-faults"],
        "policy": [evidence, *files.trusted],
        "quote": [*SIMULATED],
        "replay": [evidence],
        "report": [evidence, *files.trusted, "-o", str(files.folder / "page")],
        "run": ["--list-faults"],
        "serve": ["--version"],
        "show": [evidence],
        "verify": [evidence, *files.trusted, "--any-freshness"],
        "verify-key": [str(files.put("key.json", KEY)), *KEY_EXPECTED],
        "verify-many": [str(files.put("lines", line)), *files.trusted, "--workers", "0"],
    }


def measured(files: Files) -> list[str]:
    """Return the options that measure a small image."""
    image = write_folder(files.folder / "image", image_files())
    return ["--image", str(image), "--cpu-count", "2", "--memory-size", "2G"]
