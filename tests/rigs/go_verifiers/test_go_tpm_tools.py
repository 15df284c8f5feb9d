"""go-tpm-tools accepts messages that attestkit writes, where its Go module can be downloaded.

No distribution packages go-tpm-tools. Without a module proxy the tests skip, and its verdicts in
the shared samples stand in: `tests/verifier/platforms/test_go_tpm_tools.py`.
"""

import os
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.tpm import TpmsAttest, TpmtPublic
from tests.attestation.go_messages import simulated_evidence
from tests.rigs.go_verifiers.verdicts import verify_with_go
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.tpm_samples import GO_TPM_TOOLS, go_cases

pytestmark = [pytest.mark.rig, pytest.mark.slow]

VERSION: Final = "github.com/google/go-tpm-tools@v0.4.4"  # of the verdicts in the samples
_SECONDS: Final = 600


def run_go(folder: Path, *arguments: str, seconds: int = _SECONDS) -> None:
    """Run go in a module's folder, with downloads and caches below it."""
    subprocess.run(
        ["go", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "GOPATH": str(folder / "gopath"),
            "GOCACHE": str(folder / "cache"),
            "GO111MODULE": "on",
            "GOFLAGS": "-modcacherw",
            "GOTOOLCHAIN": "local",
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download go-tpm-tools and build the verifier; skip with go's error where that fails."""
    if shutil.which("go") is None:
        pytest.skip("go is missing (Debian: apt install golang-go)")
    folder = tmp_path_factory.mktemp("module")
    for name in ("main.go", "attestation.go"):
        shutil.copy(Path(__file__).with_name(name), folder)
    run_go(folder, "mod", "init", "verifier")
    try:
        run_go(folder, "get", VERSION, seconds=120)
    except subprocess.CalledProcessError as error:
        *_, why = error.stderr.splitlines()[-1].rpartition(": ")  # without addresses
        pytest.skip(f"not run: {VERSION} cannot be downloaded: {why}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"not run: {VERSION} cannot be downloaded within 120 s")
    run_go(folder, "mod", "tidy")
    run_go(folder, "build", "-o", "verifier", ".")
    return folder / "verifier"


def make_case(raw: bytes, nonce: bytes, key: bytes) -> dict[str, Any]:
    """Return a case for the program."""
    content = {"Message": raw, "Nonce": nonce, "Key": key}
    return {name: b64encode(value).decode() for name, value in content.items()}


def test_go_tpm_tools_accepts_the_message_of_a_simulated_tpm(program: Path) -> None:
    """With the key in its list; another nonce and another key are refused."""
    written = GoTpmToolsMessage.parse(simulated_evidence().to_bytes("go-tpm-tools"))
    raw = written._replace(ak_certificate=b"", intermediates=()).encode()
    nonce = TpmsAttest.parse(written.quotes[0].message).extra_data
    key = TpmtPublic.parse(written.ak_public).spki
    other = TpmtPublic.parse(written.ak_public)._replace(modulus=b"\xff" * 256).spki
    cases = [(raw, nonce, key), (raw, bytes(32), key), (raw, nonce, other)]
    accepted, *refused = verify_with_go(program, [make_case(*case) for case in cases])
    assert accepted == ""
    assert all(refused)


@needs_shared
def test_go_tpm_tools_has_the_verdicts_of_the_samples(program: Path) -> None:
    """The program accepts exactly the messages that the samples say it accepts."""
    cases = [
        case
        for group in ("attestations", "attacks", "extra")
        for case in go_cases(group)
        if "nonce" not in case
    ]
    nonce = data(f"{GO_TPM_TOOLS}/nonce.bin")
    read = [
        (data(f"{GO_TPM_TOOLS}/{c['file']}"), data(f"{GO_TPM_TOOLS}/keys/{c['key']}.spki.der"))
        for c in cases
    ]
    errors = verify_with_go(program, [make_case(raw, nonce, key) for raw, key in read])
    for case, error in zip(cases, errors, strict=True):
        assert (error == "") == case["go_tpm_tools_0_4_4"]["accepts"], (case, error)
