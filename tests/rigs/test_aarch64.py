"""C core on aarch64: cross-compiled, and tested with that machine's Python under qemu-user.

It runs on this machine's kernel, so only its correctness is tested, not its speed. A run of the
slow tests takes the tests that call the core directly, but for those of input cut at every length
and of very large input; `make aarch64` takes all tests of the core, and more examples of each
property.
"""

import faulthandler
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.aarch64.core import compile_core, write_starter
from tests.rigs.aarch64.sysroot import check_programs, fetch
from tests.rigs.apt import MissingError
from tests.rigs.checkout import ROOT, copy_checkout, core_tests, run_tests

pytestmark = [pytest.mark.rig, pytest.mark.slow]

SECONDS = 1800  # beside other emulated machines
MOST = os.environ.get("ATTESTKIT_EXAMPLES")  # of each property; set by `make aarch64`
EXAMPLES = int(MOST or 3)  # the emulated Python has a twelfth of the speed
DIRECTLY = ("tests/native",)  # these call the core, and not through readers
# They take minutes there; other tests feed the same parsers truncated and random input.
LEFT_OUT = ("every_byte_edit", "every_flipped_bit", "every_changed_element")
# By a run of the slow tests: of many or very large inputs.
LEFT_TO_MAKE = (
    *("truncated", "cut_at_any_length", "flipped_bits", "every_byte", "at_every_position"),
    *("nearly_valid_events", "number_of_values", "number_of_events_in_version_1"),
    *("every_padding_byte", "invalid_digit_at_any_position", "collateral_of_cmw_is_returned"),
    *("over_limits_fails", "over_16_mib_is_left", "over_65536_events", "entries_is_limited"),
)
# Levels of x86 kernels: this machine has the portable ones only, which have tests of that level.
OTHER_LEVELS = ("[avx2", "[best")
TWIN = "python"  # in the names of tests of the twin in Python, which is the same on all machines
# They call the core through readers in Python, which tests/native does without.
THROUGH_READERS = {
    "tests/event_log/test_wire_events.py",
    "tests/formats/test_cbor.py",
    "tests/attestation/wire/test_v1_cbor.py",
}
SAY = "import platform; from attestkit import _native as n; print(platform.machine(), n.CORE)"


def is_test_of(tests: list[str], name: str) -> bool:
    """Return whether a test in the files or folders has a name with these words."""
    files = [file for test in tests for file in (ROOT / test, *(ROOT / test).rglob("test_*.py"))]
    wanted = re.compile(rf"^def test_\w*{name}", re.MULTILINE)
    return any(wanted.search(file.read_text()) for file in files if file.is_file())


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
    left_out = LEFT_OUT if MOST else (*LEFT_OUT, *LEFT_TO_MAKE)
    assert [name for name in left_out if not is_test_of(tests, name)] == []
    tests = tests if MOST else [test for test in tests if test in DIRECTLY]
    words = " or ".join((*left_out, *OTHER_LEVELS, TWIN))
    command += ["-m", "not rig and not slow", "-k", f"not ({words})", *tests]
    emulated = {"ATTESTKIT_EMULATED_PYTHON": python}
    emulated["HYPOTHESIS_STORAGE_DIRECTORY"] = str(root / "hypothesis")  # its table of Unicode
    outcome = run_tests(command, checkout, seconds=SECONDS, examples=EXAMPLES, **emulated)
    with capsys.disabled():
        sys.stderr.write(f"\naarch64 under qemu-user: {outcome}\n")
    if not outcome.good:
        pytest.fail(outcome.text, pytrace=False)
