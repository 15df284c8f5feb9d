"""A guest that is killed at any step of its boot boots again, with the same keys."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import attestkit
from attestkit.kms import SimulatedKms
from tests.kms.boot.booting import EVENTS, SEED, kms_of
from tests.thorough import limited

_PROGRAM = "tests.kms.boot.killed_boot"
_MOST_STEPS = 400


def boots(kms: SimulatedKms, folder: Path, steps: Sequence[int]) -> list[list[object]]:
    """Return what the program reports of each step."""
    arguments = [kms.url, kms.root.to_json(), SEED.hex(), str(folder), *map(str, steps)]
    done = subprocess.run(
        [sys.executable, "-m", _PROGRAM, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_boots_again(kms: SimulatedKms, folder: Path, steps: Sequence[int]) -> list[list[object]]:
    """Assert that each boot can be repeated after it was killed."""
    with attestkit.open("simulator", seed=SEED, kms=kms.url, kms_roots=[kms.root]) as tee:
        expected = [tee.keys.derive("path", "secp256k1").public_key.hex(), EVENTS]
    found = boots(kms, folder, steps)
    for step, _, has_file, is_named, again in found:
        assert again == expected, f"step {step}"
        assert not list((folder / str(step)).glob("..appkeys.json.*")), f"step {step}: old keys"
        assert has_file or not is_named, f"step {step}: the log names a provider without keys"
    return found


@pytest.mark.slow
def test_boot_killed_at_each_step_can_be_repeated(tmp_path: Path) -> None:
    """Each step, before and after the key file was written; in continuous integration every third.

    `make kills` kills boots at random moments.
    """
    with kms_of(SEED) as kms:
        found = assert_boots_again(kms, tmp_path, limited(range(1, _MOST_STEPS)))
    assert found[-1][1] is False
    assert {(is_killed, has_file) for _, is_killed, has_file, *_ in found} >= {
        (True, False),
        (True, True),
    }
