"""The process behind the device's files is killed, and another one is mounted at the same place.

That is another machine: its registers are 0. No fault ends like this on a real one, so there is
nothing to recover to, and no scenario: the server may only refuse, and say why.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.rigs import emulator
from tests.rigs.system import AppFiles, System, environment, system
from tests.serve.client import Answer, call
from tests.serve.server import Server, errors_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rig,
    emulator.requires_fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a mount namespace"),
]
PLACES = (
    *("/sys/kernel/config", "/sys/devices/virtual/misc/tdx_guest", "/sys/firmware/acpi/tables"),
    *("/dev/tdx_guest", "/proc/sys/kernel/random/boot_id"),
)
GONE = r"ENOTCONN"
OTHER = (
    r"RTMR3 (and the runtime log \S+/runtime_events\.log disagree: the register is 0+,"
    r"|replays to [0-9a-f]+, but the quote has 0+; .*/runtime_events\.log;)"
)


def run(guest: System, *words: str) -> None:
    """Run a program of the system's, which must succeed."""
    done = guest.run(*words)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def another_machine(guest: System) -> Iterator[None]:
    """Mount another emulator where the dead one was, and lead all paths there."""
    root = guest.machine.root
    for place in (*PLACES, str(root)):
        run(guest, "umount", "-l", place)
    words = guest.words(*emulator.command(root))
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            for place in PLACES:
                run(guest, "mount", "--bind", f"{root}{place}", place)
            yield
        finally:
            process.terminate()


def ask(server: Server) -> list[Answer]:
    """Ask for evidence, and for an event."""
    return [
        call(server.dstack, "GetQuote", {"report_data": "12"}),
        call(server.dstack, "Attest", {"report_data": "12"}),
        call(server.dstack, "EmitEvent", {"event": "e", "payload": "00"}),
    ]


def check_refused(server: Server, why: str) -> None:
    """Evidence and events are refused for that reason; what needs no device goes on."""
    for answer in ask(server):
        assert answer.status == 500, answer.body
        assert re.search(why, answer.json()["error"]), answer.body
    assert call(server.dstack, "GetKey", {"path": "a"}).status == 200


def test_another_machine_at_the_same_place() -> None:
    """Errors name what is gone, then what disagrees; no quote of the other one, no event in it."""
    with system() as guest:
        app = AppFiles.make(guest.folder / "app")
        options = ("--backend", "configfs_tsm", "--measure-app", *app.options)
        with guest.serving(*options) as server:
            assert [answer.status for answer in ask(server)] == [200] * 3
            log = guest.inside("/run/log/dstack/runtime_events.log")
            before = log.read_bytes()
            guest.machine.process.kill()
            guest.machine.process.wait()
            check_refused(server, GONE)
            with another_machine(guest):
                check_refused(server, OTHER)
            assert log.read_bytes() == before
            assert server.process.poll() is None
            assert not [line for line in errors_in(server.log()) if "Traceback" in line]
