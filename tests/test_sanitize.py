"""What a stranger wrote gets into an error on one line, printable, and cut."""

import json
from collections.abc import Callable

import pytest

from attestkit import _sanitize
from attestkit._formats.typed_json import decode_typed
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.backends.recording.recording_file import parse_recording
from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.sys_config import CollateralUrls
from attestkit.emulator.kernel_version import EmulatedKernel
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.serve.container_logs.docker_frames import Frames

NASTY = "\x1b[31m\n\x85\u202e"
LONG = "x" * 5000
HUGE = 10**4000


@pytest.mark.parametrize("text", [NASTY, LONG, LONG + NASTY, "\ud800"])
def test_text(text: str) -> None:
    """Whatever it is, what is shown is printable and short."""
    for told in (_sanitize.shown(text), _sanitize.key(text), _sanitize.one_line(text, 64)):
        assert told.isprintable()
        assert len(told) < 500


def test_what_is_short_is_shown_as_it_is() -> None:
    """As text in quotes, as a key without, as a sentence."""
    assert _sanitize.shown("é") == "'é'"
    assert _sanitize.shown("x" * 65) == repr("x" * 64) + "..."
    assert _sanitize.key("a.b") == "a.b"
    assert _sanitize.key("é") == "\\xe9"
    assert _sanitize.key("x" * 65) == "x" * 64 + "..."
    assert _sanitize.one_line(" a \n b ", 9) == "a b"
    assert _sanitize.one_line("0123456789", 9) == "012345..."


def test_numbers() -> None:
    """Those that a field of 64 bits could hold are shown; the others would fill a line."""
    assert _sanitize.shown(-1) == "-1"
    assert _sanitize.shown((1 << 64) - 1) == "18446744073709551615"
    assert _sanitize.shown(HUGE) == _sanitize.shown(-HUGE) == "a number of over 64 bits"


def compose(**changes: object) -> bytes:
    """Return the least app-compose.json, with changes."""
    least = {"manifest_version": 2, "name": "app", "runner": "bash"}
    return json.dumps({**least, **changes}).encode()


def log(**changes: object) -> bytes:
    """Return the agent's log of one event, with changes."""
    event = {"imr": 3, "event_type": 0x08000001, "digest": "", "event": "", "event_payload": ""}
    return json.dumps([{**event, **changes}]).encode()


def check(text: bytes) -> None:
    """Read a log and check its events."""
    EventLog.from_json(text).check_events()


def frames(text: str) -> None:
    """Read the frame by which an engine tells that it failed."""
    data = text.encode()
    list(Frames().feed(bytes([3, 0, 0, 0]) + len(data).to_bytes(4, "big") + data))


READS: list[Callable[[str], object]] = [
    lambda text: AppCompose.parse(compose(runner=text)),
    lambda text: AppCompose.parse(compose(requirements={text: 1})),
    lambda text: decode_typed(json.dumps({text: 1}), CollateralUrls, "where"),
    lambda text: MrConfig.parse(json.dumps({text: 1})),
    lambda text: check(log(event=f"{text}:")),
    lambda text: check(log(event=text, imr=0)),
    lambda text: runtime_event(f"{text}:", b""),
    lambda text: EventLog.from_json(f"[{{{json.dumps(text)}:1,{json.dumps(text)}:1}}]"),
    EmulatedKernel.parse,
    frames,
]


@pytest.mark.parametrize("text", [NASTY, LONG], ids=["nasty", "long"])
@pytest.mark.parametrize("read", READS)
def test_readers_of_text(read: Callable[[str], object], text: str) -> None:
    """The name, key or value that is wrong does not get out of the line, nor fill it."""
    with pytest.raises(AttestKitError) as caught:
        read(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "read",
    [
        lambda: AppCompose.parse(compose(manifest_version=HUGE)),
        lambda: AppCompose.parse(compose(event_log_version=HUGE)),
        lambda: AppCompose.parse(compose(swap_size=HUGE)),
        lambda: AppCompose.parse(compose(port_policy={"ports": [{"port": HUGE}]})),
        lambda: EventLog.from_json(log(imr=HUGE)),
        lambda: EventLog.from_json(log(version=HUGE)),
        lambda: parse_recording(
            b'{"format":"attestkit recording","version":1}\n{"end":%d}\n' % HUGE
        ),
        lambda: parse_recording(
            b'{"format":"attestkit recording","version":1}\n{"end":"%b"}\n' % LONG.encode()
        ),
    ],
)
def test_readers_of_numbers(read: Callable[[], object]) -> None:
    """A number of thousands of digits does not get into the line."""
    with pytest.raises(AttestKitError) as caught:
        read()
    assert len(str(caught.value)) < 1000


def test_a_fault_that_is_not_known() -> None:
    """What was asked for is cut; the rest says who lists those there are."""
    with pytest.raises(UsageError, match=r"^no fault is called 'x{64}'\.\.\.; write it as "):
        Fault.parse(LONG)
