"""C core on aarch64: cross-compiled, and tested with that machine's Python under qemu-user.

It runs on this machine's kernel, so only its correctness is tested, not its speed.
"""

import faulthandler
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.aarch64.core import compile_core, write_starter
from tests.rigs.aarch64.sysroot import check_programs, fetch
from tests.rigs.apt import MissingError
from tests.rigs.checkout import copy_checkout, core_tests, run_tests

pytestmark = [pytest.mark.rig, pytest.mark.slow]

SECONDS = 900
EXAMPLES = 40  # of a property: the emulated Python has a twelfth of the speed
# They take minutes there; other tests feed the same parsers truncated and random input.
LEFT_OUT = "every_byte_replaced_removed_and_doubled or every_flipped_bit"
# They call the core through readers in Python, which tests/native does without.
THROUGH_READERS = {
    "tests/event_log/test_wire_events.py",
    "tests/formats/test_cbor.py",
    "tests/attestation/wire/test_v1_cbor.py",
}
SAY = "import platform; from attestkit import _native as n; print(platform.machine(), n.CORE)"


def test_core_on_aarch64_passes_its_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It compiles without warnings, and is loaded."""
    faulthandler.cancel_dump_traceback_later()  # the run has its own deadline
    try:
        check_programs()
        root = fetch()
    except MissingError as reason:
        pytest.skip(str(reason))
    checkout = copy_checkout(tmp_path)
    try:
        compile_core(root, checkout)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr, pytrace=False)
    python = str(write_starter(root, tmp_path))
    output = subprocess.check_output([python, "-c", SAY], cwd=checkout, text=True)
    assert output == "aarch64 compiled\n"
    command = [python, "-m", "pytest", "-c", "tests/rigs/aarch64/pytest.ini", "--rootdir=."]
    tests = [test for test in core_tests() if test not in THROUGH_READERS]
    command += ["-m", "not rig", "-k", f"not ({LEFT_OUT})", *tests]
    emulated = {"ATTESTKIT_EMULATED_PYTHON": python}
    outcome = run_tests(command, checkout, seconds=SECONDS, examples=EXAMPLES, **emulated)
    with capsys.disabled():
        sys.stderr.write(f"\naarch64 under qemu-user: {outcome}\n")
    if not outcome.good:
        pytest.fail(outcome.text, pytrace=False)
