"""A program that checks a freshly installed wheel, without the sources.

    python installed.py CORE [EXTRA...]

CORE is the expected core, `compiled` or `python`; the extras are those that were installed. A
missing `cli` (without `serve` and `fleet`), and on Linux a missing `serve` or `fuse`, must be named
in an error. It needs only the package and an empty folder.
"""

import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import attestkit
from attestkit import _native
from attestkit.backends.simulator import Simulator
from attestkit.emulator.fuse_mount import load_fuse
from attestkit.errors import BackendUnavailableError, ServiceError, VerificationError

EXTRAS = ("serve", "cli", "fuse", "fleet", "gpu", "client")
PROGRAM = (sys.executable, "-m", "attestkit")


def check_package(core: str) -> attestkit.Attestation:
    """Check that the installed package runs, with the expected core; return evidence it made."""
    place = Path(attestkit.__file__).parent
    assert "site-packages" in place.parts, place
    assert (place / "py.typed").exists()
    assert core == _native.CORE, _native.CORE_REASON
    with attestkit.open("simulator") as tee:
        tee.event_log().check(tee.get_quote(b"nonce"))
        evidence = tee.attest(report_data=b"nonce", pad=True)
    again = attestkit.Attestation.from_bytes(evidence.to_bytes())
    assert again.to_bytes() == evidence.to_bytes()
    return evidence


def refusal(call: Callable[[], object], *kinds: type[Exception]) -> Exception | None:
    """Return the error of one of these classes that a call raises; None if it raises none."""
    try:
        call()
    except kinds as error:
        return error
    return None


def check_verify() -> None:
    """Evidence is verified with the right nonce, and rejected with a wrong one."""
    with attestkit.open("simulator") as tee:
        evidence = tee.attest(report_data=b"nonce", pad=True).to_bytes()
        assert isinstance(tee.backend, Simulator)
        root, collateral = tee.backend.trust_anchor, tee.backend.collateral()
    verifier = attestkit.Verifier(trust_anchor=root, collateral=collateral)
    right = partial(verifier.verify, evidence, report_data=b"nonce")
    assert right().simulated
    wrong = partial(verifier.verify, evidence, report_data=b"another")
    refused = refusal(wrong, VerificationError)
    assert isinstance(refused, VerificationError), "another request's evidence was accepted"
    assert refused.reason == "report_data", refused


def check_cli(evidence: bytes, *, installed: bool) -> None:
    """The command line shows evidence."""
    Path("evidence.bin").write_bytes(evidence)
    words = (*PROGRAM, "show", "evidence.bin")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if installed:
        assert done.returncode == 0, done.stderr
        assert "dstack-tdx" in done.stdout, done.stdout
    else:
        assert done.returncode == 1, done.stdout
        assert "pip install 'attestkit[cli]'" in done.stderr, done.stderr


def check_serve(*, installed: bool) -> None:
    """The server starts, answers on its socket, and ends on SIGTERM."""
    words = (*PROGRAM, "serve", "--backend", "simulator", "--dir", "tee", "--http", "127.0.0.1:0")
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as server:
        if not installed:
            _, said = server.communicate(timeout=60)
            assert server.returncode == 1, said
            assert "pip install 'attestkit[serve]'" in said, said
            return
        assert server.stdout is not None
        try:
            ready = server.stdout.readline()
            assert ready.startswith("ready"), ready
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect("tee/dstack.sock")
                connection.sendall(b"GET /Version HTTP/1.0\r\nHost: dstack\r\n\r\n")
                assert b" 200 " in connection.recv(4096)
        finally:
            server.terminate()
    assert server.returncode == 0, server.returncode


def check_fuse(*, installed: bool) -> None:
    """The module can be imported; FUSE itself is not required."""
    missing = str(refusal(load_fuse, BackendUnavailableError) or "")
    if "/dev/fuse" not in missing:
        assert ("pip install 'attestkit[fuse]'" in missing) != installed, missing


def check_fleet() -> None:
    """The dependencies of the extra can be imported."""
    for name in ("distributed", "pyarrow.parquet"):
        import_module(name)


def check_client() -> None:
    """The clients of the extra can be used: here no server listens."""
    from attestkit.client import connect

    for name in ("httpx", "h11"):
        import_module(name)
    refused = refusal(lambda: connect("https://127.0.0.1:9", policy="hardware-only"), ServiceError)
    assert isinstance(refused, ServiceError), "a connection to nobody"
    assert refused.reason == "connection", refused


def main() -> None:
    """Run all checks; a failed one raises and ends the program."""
    core, *extras = sys.argv[1:]
    assert set(extras) <= set(EXTRAS), extras
    evidence = check_package(core).to_bytes()
    check_verify()
    # uvicorn and dask depend on click, which may suffice
    if "cli" in extras or not {"serve", "fleet"} & set(extras):
        check_cli(evidence, installed="cli" in extras)
    if "fleet" in extras:
        check_fleet()
    if "gpu" in extras:
        import_module("pynvml")
    if "client" in extras:
        check_client()
    if sys.platform == "linux":  # server and FUSE support Linux only
        check_serve(installed="serve" in extras)
        check_fuse(installed="fuse" in extras)


if __name__ == "__main__":
    main()
