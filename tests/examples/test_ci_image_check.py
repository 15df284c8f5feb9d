"""The job of the example passes what was pinned, and fails for anything else."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.reader import Done, Reader

BELIEF = "--trust-anchor sim/trust-anchor.der --collateral sim/collateral.json"
NIGHTLY = f"sh check_image.sh {BELIEF}"
ATTEST = "attestkit attest --backend simulator --option seed=@sim/seed"
APP = "--option app_compose=@app-compose.json"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader who has typed all of the first block but the last line, the job."""
    with Reader("ci_image_check", tmp_path_factory.mktemp("example")) as reader:
        for command in reader.commands()[:-2]:
            assert reader.run(command).code == 0
        yield reader


def job(reader: Reader, attest: str = f"{ATTEST} {APP}", command: str = NIGHTLY) -> Done:
    """Run the job against what `attest` asks."""
    return reader.run(command, ATTEST=attest)


def test_the_readme_s_commands_do_what_it_says(tmp_path: Path) -> None:
    """The pinned image passes; after one line of app-compose was changed the job fails with 4."""
    with Reader("ci_image_check", tmp_path) as reader:
        whole = "\n".join(re.findall(r"```sh\n(.*?)```", reader.readme, re.DOTALL))
        done = reader.run(f"set -e\n{whole}")
        assert done.code == 4, done.printed
        passed, failed = done.printed.split("accepted", 1)
        assert "SIMULATED" in passed + failed
        assert "launch what the policy was made for" in failed


def test_the_pinned_image_passes(reader: Reader) -> None:
    """And says that what it saw was simulated."""
    done = job(reader)
    assert done.code == 0, done.printed
    assert "SIMULATED evidence" in done.printed


def test_another_app_fails(reader: Reader) -> None:
    """The simulator's own, by the same root."""
    assert job(reader, ATTEST).code == 4


def test_evidence_that_was_kept_fails(reader: Reader) -> None:
    """It was good, and is over another nonce."""
    (reader.folder / "replay.sh").write_text("cat good.bin\n")
    done = job(reader, "sh replay.sh")
    assert "the report data" in done.printed
    assert done.code == 4


@pytest.mark.parametrize(
    "attest", ["false", "no-such-program", "attestkit attest --backend tdx_ioctl"]
)
def test_a_machine_that_does_not_answer_fails(reader: Reader, attest: str) -> None:
    """No evidence is no pass."""
    assert job(reader, attest).code == 3


def test_no_evidence_fails(reader: Reader) -> None:
    """Also where asking for it seemed to work."""
    assert job(reader, "true").code == 5


def test_without_the_simulator_s_root_it_fails(reader: Reader) -> None:
    """A job for hardware does not take a simulator."""
    command = NIGHTLY.replace("--trust-anchor sim/trust-anchor.der", "")
    assert job(reader, command=command).code == 2


def test_without_a_policy_it_fails(reader: Reader) -> None:
    """It does not fall back to one that takes every app."""
    (reader.folder / "policy.toml").rename(reader.folder / "kept.toml")
    try:
        assert job(reader).code == 1
    finally:
        (reader.folder / "kept.toml").rename(reader.folder / "policy.toml")


def test_the_workflow_runs_the_script(reader: Reader) -> None:
    """It is YAML, and its step is the README's with hardware's options."""
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((reader.folder / "workflow.yml").read_text())
    step = found["jobs"]["attested"]["steps"][-1]
    assert "sh check_image.sh --pccs https://" in step["run"]
    assert step["env"]["ATTEST"].endswith("attestkit attest")
    assert "trust-anchor" not in step["run"]
