"""Untrusted text in errors is printable, on one line, and of limited length."""

import json
from collections.abc import Callable
from typing import cast

import pytest

from attestkit import _sanitize
from attestkit._formats.typed_json import decode_typed
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.backends.recording.recording_file import parse_recording
from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.sys_config import CollateralUrls
from attestkit.emulator.linux_calls import EmulatedKernel
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.serve.container_logs.view import FrameSplitter
from attestkit.verifier.policy.event_rules import RequiredEvent
from tests.runner.cases import every_case

HOSTILE = "\x1b[31m\n\x85\u202e"
LONG = "x" * 5000
HUGE = 10**4000


@every_case("text", [HOSTILE, LONG, LONG + HOSTILE, "\ud800"])
def test_shown_text_is_printable_and_short(text: str) -> None:
    """Any text is shown printable and short."""
    for shown in (_sanitize.shown(text), _sanitize.key(text), _sanitize.one_line(text, 64)):
        assert shown.isprintable()
        assert len(shown) < 500


def test_short_text_is_shown_unchanged() -> None:
    """Short text is shown in quotes, as a key without quotes, or as a sentence."""
    assert _sanitize.shown("é") == "'é'"
    assert _sanitize.shown("x" * 65) == repr("x" * 64) + "..."
    assert _sanitize.key("a.b") == "a.b"
    assert _sanitize.key("é") == "\\xe9"
    assert _sanitize.key("x" * 65) == "x" * 64 + "..."
    assert _sanitize.one_line(" a \n b ", 9) == "a b"
    assert _sanitize.one_line("0123456789", 9) == "012345..."


def test_numbers_over_64_bits_are_not_shown() -> None:
    """Numbers of up to 64 bits are shown; larger ones are replaced."""
    assert _sanitize.shown(-1) == "-1"
    assert _sanitize.shown((1 << 64) - 1) == "18446744073709551615"
    assert _sanitize.shown(HUGE) == _sanitize.shown(-HUGE) == "a number of over 64 bits"


def test_values_that_are_no_text_or_integer_are_shown_by_type() -> None:
    """A value of another type, which may be long or a secret, is not shown itself."""
    assert _sanitize.shown(b"secret") == "bytes"
    assert _sanitize.shown([HUGE]) == "list"


def test_huge_argument_is_a_usage_error() -> None:
    """Python does not write out so many digits; the error does not need them."""
    with pytest.raises(UsageError):
        RequiredEvent(name=cast("str", HUGE**2))


def make_compose(**changes: object) -> bytes:
    """Return the minimal app-compose.json with changes."""
    least = {"manifest_version": 2, "name": "app", "runner": "bash"}
    return json.dumps({**least, **changes}).encode()


def make_log(**changes: object) -> bytes:
    """Return the agent's log of one event with changes."""
    event = {"imr": 3, "event_type": 0x08000001, "digest": "", "event": "", "event_payload": ""}
    return json.dumps([{**event, **changes}]).encode()


def check_log(text: bytes) -> None:
    """Read a log and check its events."""
    EventLog.from_json(text).check_events()


def read_error_frame(text: str) -> None:
    """Read the frame with which a container engine reports an error."""
    data = text.encode()
    list(FrameSplitter().feed(bytes([3, 0, 0, 0]) + len(data).to_bytes(4, "big") + data))


READS: list[Callable[[str], object]] = [
    lambda text: AppCompose.parse(make_compose(runner=text)),
    lambda text: AppCompose.parse(make_compose(requirements={text: 1})),
    lambda text: decode_typed(json.dumps({text: 1}), CollateralUrls, "where"),
    lambda text: MrConfig.parse(json.dumps({text: 1})),
    lambda text: check_log(make_log(event=f"{text}:")),
    lambda text: check_log(make_log(event=text, imr=0)),
    lambda text: runtime_event(f"{text}:", b""),
    lambda text: EventLog.from_json(f"[{{{json.dumps(text)}:1,{json.dumps(text)}:1}}]"),
    EmulatedKernel.parse,
    read_error_frame,
]


@every_case("text", [HOSTILE, LONG], ids=["hostile", "long"])
@every_case("read", READS)
def test_reader_error_with_untrusted_text_is_one_short_line(
    read: Callable[[str], object], text: str
) -> None:
    """A hostile name, key or value does not break or fill the line."""
    with pytest.raises(AttestKitError) as caught:
        read(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@every_case(
    "read",
    [
        lambda: AppCompose.parse(make_compose(manifest_version=HUGE)),
        lambda: AppCompose.parse(make_compose(event_log_version=HUGE)),
        lambda: AppCompose.parse(make_compose(swap_size=HUGE)),
        lambda: AppCompose.parse(make_compose(port_policy={"ports": [{"port": HUGE}]})),
        lambda: EventLog.from_json(make_log(imr=HUGE)),
        lambda: EventLog.from_json(make_log(version=HUGE)),
        lambda: parse_recording(
            b'{"format":"attestkit recording","version":1}\n{"end":%d}\n' % HUGE
        ),
        lambda: parse_recording(
            b'{"format":"attestkit recording","version":1}\n{"end":"%b"}\n' % LONG.encode()
        ),
    ],
)
def test_reader_error_with_huge_number_is_short(read: Callable[[], object]) -> None:
    """A number with thousands of digits is not shown completely."""
    with pytest.raises(AttestKitError) as caught:
        read()
    assert len(str(caught.value)) < 1000


def test_unknown_fault_error_truncates_name() -> None:
    """The unknown name is cut; the remedy remains."""
    with pytest.raises(UsageError, match=r"^unknown fault 'x{64}'\.\.\.; write it as "):
        Fault.parse(LONG)
