"""Backends on real kernel code: Debian's unmodified tdx-guest.ko in a virtual machine.

Real are /dev/tdx_guest, configfs-tsm, the register files of Linux 6.16 and AF_VSOCK. Simulated are
the three TDCALLs below the driver (by a test module), the host's quote generation service, which
signs like the simulator, and SEV-SNP below configfs-tsm. So the tests cover the interface to the
driver, but neither the verification of a CPU's quotes nor the timing of TDCALLs and hosts.

The tests that run in the guest are in kernel/guest; each is a subtest here. On the older kernel a
run of the slow tests takes those whose result may depend on the kernel, and each machine has one
processor; `make kernels` takes all tests, on two processors.
"""

import faulthandler
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.rigs.apt import MissingError
from tests.rigs.kernel.packages import BACKPORTS, OWN, Kernel, fetch
from tests.rigs.kernel.vm import Outcome, Run, boot, check_programs

pytestmark = [pytest.mark.rig, pytest.mark.slow]

# Features that are untested without one of the kernels.
LEFT_OUT = {
    OWN: "failures that this kernel shows as an empty quote",
    BACKPORTS: "register files, extends, the runtime log on a real register",
}

# Tests that run on a kernel, all if there are none.
TESTS = {
    OWN: (
        *("test_configfs_rules.py", "test_file_responses.py", "test_quote.py"),
        *("test_registers.py", "test_runtime_log.py", "test_td_report.py"),
    ),
    BACKPORTS: (),
}


def _show(outcome: Outcome) -> None:
    """Give a subtest the outcome of the guest's test."""
    if outcome.outcome == "failed":
        pytest.fail(outcome.text, pytrace=False)
    if outcome.outcome == "skipped":
        pytest.skip(outcome.text)


def _check(run: Run) -> None:
    """Check that the run ended with tests, on a kernel without bug reports."""
    found = {outcome.outcome for outcome in run.outcomes}
    if "passed" not in found or run.status != ("failed" in found):
        status = f"status {run.status}" if run.status is not None else "it did not end"
        pytest.fail(f"pytest in the guest: {status}; the console:\n{run.console}", pytrace=False)
    if run.complaints:
        pytest.fail("\n".join(("the kernel complains:", *run.complaints)), pytrace=False)


def _summary(kernel: Kernel, run: Run) -> str:
    """Return the numbers of the guest's tests in one line."""
    found = Counter(outcome.outcome for outcome in run.outcomes)
    reasons = {outcome.text for outcome in run.outcomes if outcome.outcome == "skipped"}
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
    why = f" ({'; '.join(sorted(reasons))})" if reasons else ""
    return f"\nLinux {kernel.release} in QEMU: {counts}{why}\n"


@pytest.mark.parametrize("suite", [OWN, BACKPORTS])
def test_backends_pass_on_the_kernels_driver(
    suite: str,
    tmp_path: Path,
    subtests: pytest.Subtests,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The guest's tests run on Debian's own and on its later kernel."""
    faulthandler.cancel_dump_traceback_later()  # the machine has its own deadline
    try:
        check_programs()
        kernel = fetch(suite)
        run = boot(kernel, tmp_path, () if "ATTESTKIT_KERNELS" in os.environ else TESTS[suite])
    except MissingError as reason:
        pytest.skip(f"{reason}; left out: {LEFT_OUT[suite]}")
    with capsys.disabled():
        sys.stderr.write(_summary(kernel, run))
    for outcome in run.outcomes:
        with subtests.test(f"Linux {kernel.release}: {outcome.name}"):
            _show(outcome)
    _check(run)
