"""The emulator is killed, and another machine is mounted at the same paths.

The other machine's registers are 0. Real hardware does not have this fault, so that no scenario
with a recovery exists: the server must refuse, with the reason.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.rigs import emulator
from tests.rigs.guest.system import System, environment, system
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
    r"(runtime log \S+/runtime_events\.log: does not match RTMR3: the register is 0+,"
    r"|RTMR3: the log replays to [0-9a-f]+, the quote has 0+; .*/runtime_events\.log;)"
)


def run(guest: System, *words: str) -> None:
    """Run a program of the system, which must succeed."""
    done = guest.run(*words)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def mount_other_machine(guest: System) -> Iterator[None]:
    """Mount another emulator at the paths of the killed one."""
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


def request_evidence_and_event(server: Server) -> list[Answer]:
    """Request evidence, and emit an event."""
    return [
        call(server.dstack, "GetQuote", {"report_data": "12"}),
        call(server.dstack, "Attest", {"report_data": "12"}),
        call(server.dstack, "EmitEvent", {"event": "e", "payload": "00"}),
    ]


def check_refused(server: Server, why: str) -> None:
    """Evidence and events are refused for that reason; other requests are answered."""
    for answer in request_evidence_and_event(server):
        assert answer.status == 500, answer.body
        assert re.search(why, answer.json()["error"]), answer.body
    assert call(server.dstack, "GetKey", {"path": "a"}).status == 200


def test_server_refuses_evidence_of_other_machine() -> None:
    """Errors name the missing device, then the mismatch; nothing is quoted or extended."""
    with system() as guest, guest.serving_app() as server:
        assert [answer.status for answer in request_evidence_and_event(server)] == [200] * 3
        log = guest.inside("/run/log/dstack/runtime_events.log")
        before = log.read_bytes()
        guest.machine.process.kill()
        guest.machine.process.wait()
        check_refused(server, GONE)
        with mount_other_machine(guest):
            check_refused(server, OTHER)
        assert log.read_bytes() == before
        assert server.process.poll() is None
        assert not [line for line in errors_in(server.log()) if "Traceback" in line]
