"""Faults of the device below the server: missing files, a missing driver, a hanging driver."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any, Final

from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial
from tests.rigs.emulator import missing_for_fuse as no_fuse
from tests.rigs.guest.system import System, system

_PLACES: Final = ("/sys/kernel/config", "/sys/devices/virtual/misc/tdx_guest", "/dev/tdx_guest")
_ERRORS: Final = r"(?!.*Traceback).*(/sys/|/dev/|configfs|device|TDX|tsm|RTMR|Errno).*"


def _missing() -> str:
    return no_fuse() or ("" if os.geteuid() == 0 else "only root makes a mount namespace")


@contextlib.contextmanager
def _fault_on_guest() -> Iterator[tuple[System, Trial]]:
    """Try a server on an emulated guest, whose device has a fault in the block."""
    with (
        system() as guest,
        guest.serving_app(public_sysinfo=True) as server,
        Trial(server) as trial,
        trial.fault(),
    ):
        yield guest, trial


def _run_mount(guest: System, *words: str) -> None:
    done = guest.run(*words)
    assert done.returncode == 0, done.stderr


@scenario(
    "device vanishes",
    "configfs, the registers and /dev/tdx_guest are gone, then there again",
    _missing,
)
def vanishes(form: Form) -> dict[str, Any]:
    """Requests without device are answered; evidence is refused with the missing path."""
    with _fault_on_guest() as (guest, trial):
        for place in _PLACES:
            _run_mount(guest, "umount", "-l", place)
        for method in ("GetQuote", "EmitEvent"):
            trial.wait_refused(method)
        trial.wait_answered("GetKey", "/metrics")
        trial.last(form.seconds(0.5, 5))
        for place in _PLACES:
            _run_mount(guest, "mount", "--bind", f"{guest.machine.root}{place}", place)
    return trial.result({"GetQuote": _ERRORS, "EmitEvent": _ERRORS}, {"Info": _ERRORS})


@scenario("driver unloaded", "the TSM provider is gone until the machine has one again", _missing)
def provider_leaves(form: Form) -> dict[str, Any]:
    """The emulator removes the TSM provider, and restores it."""
    with _fault_on_guest() as (guest, trial):
        guest.machine.fault("read:outblob=ENXIO:*")
        trial.wait_refused("GetQuote")
        trial.wait_answered("GetKey", "/metrics", "EmitEvent")
        trial.last(form.seconds(0.5, 5))
        guest.machine.clear_faults()
    return trial.result({"GetQuote": _ERRORS}, {"Info": _ERRORS})


@scenario(
    "driver hangs", "the process behind the device's files is stopped, then goes on", _missing
)
def hangs(form: Form) -> dict[str, Any]:
    """Calls to the device do not return; only requests that need it wait."""
    with _fault_on_guest() as (guest, trial):
        os.kill(guest.machine.pid, signal.SIGSTOP)
        try:
            trial.wait_answered("GetKey", "/metrics", times=5)
            trial.last(form.seconds(2, 20))
        finally:
            os.kill(guest.machine.pid, signal.SIGCONT)
    return trial.result({})
