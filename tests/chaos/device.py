"""The device below the server: its files vanish and come back, its driver hangs and goes on."""

import os
import signal
from typing import Any, Final

from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial
from tests.rigs.emulator import missing as no_fuse
from tests.rigs.system import AppFiles, System, system

_PLACES: Final = ("/sys/kernel/config", "/sys/devices/virtual/misc/tdx_guest", "/dev/tdx_guest")
_ERRORS: Final = r"(?!.*Traceback).*(/sys/|/dev/|configfs|device|TDX|tsm|RTMR|Errno).*"


def _missing() -> str:
    return no_fuse() or ("" if os.geteuid() == 0 else "only root makes a mount namespace")


def _options(guest: System) -> tuple[str, ...]:
    app = AppFiles.make(guest.folder / "app", public_sysinfo=True)
    return ("--backend", "configfs_tsm", "--measure-app", *app.options)


def _mounts(guest: System, *words: str) -> None:
    done = guest.run(*words)
    assert done.returncode == 0, done.stderr


@scenario(
    "device vanishes",
    "configfs, the registers and /dev/tdx_guest are gone, then there again",
    _missing,
)
def vanishes(form: Form) -> dict[str, Any]:
    """What needs no device goes on; evidence is refused with the path that is missing."""
    with (
        system() as guest,
        guest.serving(*_options(guest)) as server,
        Trial(server) as trial,
        trial.fault(),
    ):
        for place in _PLACES:
            _mounts(guest, "umount", "-l", place)
        for method in ("GetQuote", "EmitEvent"):
            trial.wait_refused(method)
        trial.wait_answered("GetKey", "/metrics")
        trial.last(form.seconds(0.5, 5))
        for place in _PLACES:
            _mounts(guest, "mount", "--bind", f"{guest.machine.root}{place}", place)
    return trial.result({"GetQuote": _ERRORS, "EmitEvent": _ERRORS}, {"Info": _ERRORS})


@scenario("driver unloaded", "the TSM provider is gone until the machine has one again", _missing)
def provider_leaves(form: Form) -> dict[str, Any]:
    """The emulator takes it out of its tree, and puts it back."""
    with (
        system() as guest,
        guest.serving(*_options(guest)) as server,
        Trial(server) as trial,
        trial.fault(),
    ):
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
    """Calls into it do not return; only who needs the device waits."""
    with (
        system() as guest,
        guest.serving(*_options(guest)) as server,
        Trial(server) as trial,
        trial.fault(),
    ):
        os.kill(guest.machine.pid, signal.SIGSTOP)
        try:
            trial.wait_answered("GetKey", "/metrics", times=5)
            trial.last(form.seconds(2, 20))
        finally:
            os.kill(guest.machine.pid, signal.SIGCONT)
    return trial.result({})
