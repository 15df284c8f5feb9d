"""The backends on the kernel's own code: Debian's unmodified tdx-guest.ko in a virtual machine.

What is real: /dev/tdx_guest, configfs-tsm, the register files of Linux 6.16 and AF_VSOCK. What is
made up: the three TDCALLs under the driver, which a module of ours answers, the host's quoting
service, which signs as the simulator does, and all of SEV-SNP under configfs-tsm. So this proves
how we speak to the driver. It does not prove that quotes of a CPU verify, nor anything about the
time that TDCALLs and hosts take.

The tests that run in the guest are in kernel/guest; each is a subtest here.
"""

import faulthandler
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.rigs.apt import MissingError
from tests.rigs.kernel.packages import BACKPORTS, OWN, Kernel, fetch
from tests.rigs.kernel.vm import Outcome, Run, boot, check_programs

pytestmark = [pytest.mark.rig, pytest.mark.slow]

# What is not seen when one of the two kernels is missing.
LEFT_OUT = {
    OWN: "failures that this kernel shows as an empty quote",
    BACKPORTS: "register files, extends, the runtime log on a real register",
}


def _show(outcome: Outcome) -> None:
    """Let a subtest end as the guest's test did."""
    if outcome.outcome == "failed":
        pytest.fail(outcome.text, pytrace=False)
    if outcome.outcome == "skipped":
        pytest.skip(outcome.text)


def _check(run: Run) -> None:
    """Believe a run that ended by itself, with tests in it, on a kernel that did not complain."""
    found = {outcome.outcome for outcome in run.outcomes}
    if "passed" not in found or run.status != ("failed" in found):
        said = f"status {run.status}" if run.status is not None else "it did not end"
        pytest.fail(f"pytest in the guest: {said}; the console:\n{run.console}", pytrace=False)
    if run.complaints:
        pytest.fail("\n".join(("the kernel complains:", *run.complaints)), pytrace=False)


def _summary(kernel: Kernel, run: Run) -> str:
    """Return how many tests there were in the guest, in one line."""
    found = Counter(outcome.outcome for outcome in run.outcomes)
    reasons = {outcome.text for outcome in run.outcomes if outcome.outcome == "skipped"}
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
    why = f" ({'; '.join(sorted(reasons))})" if reasons else ""
    return f"\nLinux {kernel.release} in QEMU: {counts}{why}\n"


@pytest.mark.parametrize("suite", [OWN, BACKPORTS])
def test_backends_on_the_driver(
    suite: str,
    tmp_path: Path,
    subtests: pytest.Subtests,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that the backends do, they do on the driver of Debian's own and of its later kernel."""
    faulthandler.cancel_dump_traceback_later()  # the machine has a deadline of its own
    try:
        check_programs()
        kernel = fetch(suite)
        run = boot(kernel, tmp_path)
    except MissingError as reason:
        pytest.skip(f"{reason}; left out: {LEFT_OUT[suite]}")
    with capsys.disabled():
        sys.stderr.write(_summary(kernel, run))
    for outcome in run.outcomes:
        with subtests.test(f"Linux {kernel.release}: {outcome.name}"):
            _show(outcome)
    _check(run)
