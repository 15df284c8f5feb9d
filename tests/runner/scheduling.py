"""Distribution of the tests over pytest-xdist's processes: those of minutes start first.

By default, pytest-xdist gives each process a share of the tests in their order. A test of ten
minutes may then start when the others are nearly done, and run alone, with the other cores idle.
"""

from typing import Final

from xdist.scheduler import LoadScheduling
from xdist.workermanage import WorkerController

__all__ = ["LONGEST", "LongestFirst"]

LONGEST: Final = (
    "tests/packaging/test_clean_root.py",
    "tests/rigs/test_aarch64.py",
    "tests/rigs/kernel/test_kernel.py",
    "tests/packaging/test_dist.py::test_sdist_passes_its_tests",
    "tests/packaging/test_dist.py::test_build_is_reproducible",
    "tests/packaging/test_dist.py::test_aarch64_wheel_runs",
    "tests/rigs/go_verifiers/test_go_sev_guest.py::test_go_sev_guest_agrees",
    "tests/packaging/test_compilers.py::test_core_of_another_compiler",
    "tests/fuzz/test_memcheck.py::test_whole_and_truncated_samples_are_memory_safe",
    "tests/docs/test_site.py::test_pages_render_in_browser",
    "tests/rigs/run/test_programs.py::test_run_as_ordinary_user",
    "tests/serve/api_docs/test_schemathesis.py",
    "tests/rigs/test_fresh_clone.py",
    "tests/rigs/measured_boot/test_measured_boot.py",
    "tests/kms/boot/test_killed_boot.py::test_boot_killed_at_each_step_can_be_repeated",
)
"""Tests, and files of tests, that take over twenty seconds each, the longest first."""

SHARE: Final = 40
"""The most tests that a process is given at once: others may be done while it still has some."""

FEW: Final = 3
"""So many tests left, and a process is given more."""


class LongestFirst(LoadScheduling):
    """Give each process one of the longest tests after another, then shares of the others.

    Runs without the longest tests are distributed as by default.
    """

    _longest: list[int] | None = None  # indices of the longest tests that no process has
    _shared = False  # whether the run has any

    def check_schedule(self, node: WorkerController, duration: float = 0) -> None:
        """Give a process more tests if it has only few."""
        if not (self._shared and self.pending and len(self.node2pending[node]) > FEW):
            super().check_schedule(node, duration)

    def _send_tests(self, node: WorkerController, num: int) -> None:
        """Send one of the longest tests and another one, or up to `num` of the others.

        A process begins a test when it knows the next one, so it needs two.
        """
        if self._longest is None:
            self._longest = self._find_longest()
            self._shared = bool(self._longest)
        if num > 1 and self._longest:
            first, num = self._longest.pop(0), 2
            others = [at for at in self.pending if at != first and at not in self._longest]
            self.pending[:] = [first, *others, *self._longest]
        super()._send_tests(node, min(num, SHARE) if self._shared else num)

    def _find_longest(self) -> list[int]:
        """Return the indices of the longest tests, in the order of `LONGEST`."""
        assert self.collection is not None
        names = [(test.partition("::")[0], test.partition("[")[0]) for test in self.collection]
        return [at for long in LONGEST for at, these in enumerate(names) if long in these]
