"""Tests of the ci_image_check example: its job passes for the pinned image only."""

import re
from collections.abc import Iterator

import pytest

from tests.examples.reader import Done, Reader

pytestmark = pytest.mark.slow  # its tests start programs

TRUST_OPTIONS = "--trust-anchor sim/trust-anchor.der --collateral sim/collateral.json"
NIGHTLY = f"sh check_image.sh {TRUST_OPTIONS}"
ATTEST = "attestkit attest --backend simulator --option seed=@sim/seed"
APP = "--option app_compose=@app-compose.json"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Done]]:
    """Return a copy of the example in which all commands have run, and their result."""
    with Reader("ci_image_check", tmp_path_factory.mktemp("example")) as reader:
        whole = "\n".join(re.findall(r"```sh\n(.*?)```", reader.readme, re.DOTALL))
        yield reader, reader.run(f"set -e\n{whole}")


@pytest.fixture
def reader(ran: tuple[Reader, Done]) -> Reader:
    """Return the copy."""
    return ran[0]


def test_ci_image_check_readme_commands_succeed(ran: tuple[Reader, Done]) -> None:
    """The pinned image passes; after a change of app-compose the job exits with 4."""
    _, done = ran
    assert done.code == 4, done.printed
    passed, failed = done.printed.split("accepted", 1)
    assert "SIMULATED" in passed + failed
    assert "launch what the policy was made for" in failed


def run_job(reader: Reader, attest: str = f"{ATTEST} {APP}", command: str = NIGHTLY) -> Done:
    """Run the job with this command for evidence."""
    return reader.run(command, ATTEST=attest)


def test_ci_job_replayed_evidence_fails(reader: Reader) -> None:
    """Evidence for another nonce exits with 4."""
    (reader.folder / "replay.sh").write_text("cat good.bin\n")
    done = run_job(reader, "sh replay.sh")
    assert "report data: " in done.printed
    assert done.code == 4


def test_ci_job_failing_attester_fails(reader: Reader) -> None:
    """A failing attester exits with 3."""
    assert run_job(reader, "false").code == 3


def test_ci_job_without_trust_anchor_fails(reader: Reader) -> None:
    """Simulated evidence exits with 2 unless the simulator's root is passed."""
    command = NIGHTLY.replace("--trust-anchor sim/trust-anchor.der", "")
    assert run_job(reader, command=command).code == 2


def test_ci_job_without_policy_fails(reader: Reader) -> None:
    """A missing policy exits with 1; no default policy is used."""
    (reader.folder / "policy.toml").rename(reader.folder / "kept.toml")
    try:
        assert run_job(reader).code == 1
    finally:
        (reader.folder / "kept.toml").rename(reader.folder / "policy.toml")
