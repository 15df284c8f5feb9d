"""Texts of faults are parsed, listed, counted and triggered in order."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.simulator.faults.fault_specs import (
    NAMED,
    OPERATIONS,
    Fault,
    Faults,
    named_faults,
)
from attestkit.errors import UsageError
from tests.raising import raises
from tests.runner.cases import every_case


def make_faults(*texts: str) -> Faults:
    """Return faults of these specifications."""
    return Faults(map(Fault.parse, texts))


@every_case("name", sorted(NAMED))
def test_named_fault_is_parsed_triggered_and_listed(name: str) -> None:
    """Each name triggers its operation once, and is in the list for users."""
    text = f"{name}:2s" if NAMED[name].argument else name
    faults = make_faults(text)
    triggered = faults.strike(NAMED[name].operation)
    assert triggered is not None
    assert triggered.name == name
    assert faults.strike(NAMED[name].operation) is None
    [line] = [line for line in named_faults() if line.split()[0] == text]
    assert line.endswith(NAMED[name].text)


@every_case("operation", OPERATIONS)
def test_errno_fault_applies_to_each_operation(operation: str) -> None:
    """OPERATION=ERRNO raises that errno."""
    with pytest.raises(OSError, match=r"too large") as caught:
        make_faults(f"{operation}=EFBIG").check(operation)
    assert caught.value.errno == errno.EFBIG


@every_case(
    ("text", "shown"),
    [
        ("ebusy:3", "ebusy:3"),
        (" eintr\n", "eintr:1"),
        ("slow:2s", "slow:2s:1"),
        ("slow:1.5s:*", "slow:1.5s:*"),
        ("slow:250ms:4@1", "slow:0.25s:4@1"),
        ("empty_outblob:*", "empty_outblob:*"),
        ("write:rtmr3=EIO@2", "write:rtmr3=EIO:1@2"),
        ("mkdir=ENXIO:2", "mkdir=ENXIO:2"),
        ("ioctl:GET_REPORT0=EBUSY:7@3", "ioctl:GET_REPORT0=EBUSY:7@3"),
    ],
)
def test_fault_text_round_trips(text: str, shown: str) -> None:
    """str() gives the canonical specification."""
    fault = Fault.parse(text)
    assert str(fault) == shown
    assert Fault.parse(shown) == fault


@every_case(
    "text",
    [
        *("", "ebsuy", "ebusy:", "ebusy:-1", "ebusy:3:3", "ebusy:2s", "slow", "slow:3", "ebusy@"),
        *("mkdir=EWHAT", "mkdir=ENOSYS", "chmod=EIO", "read:inblob=EIO", "read:outblob=", "=EIO"),
        *("mkdir=EIO=EIO", "ioctl:GET_REPORT=EIO", "ebusy:3\nebusy:3", "ebusy:٣", "slow:٢s"),
    ],
)
def test_unknown_fault_names_the_list_command(text: str) -> None:
    """The error is short, and names the command that lists all faults."""
    with raises(UsageError, "unknown_name", part=repr(text.strip())) as caught:
        Fault.parse(text)
    assert "attestkit serve --list-faults" in str(caught.value)
    assert len(str(caught.value)) < 240


def test_slow_is_limited_to_60_s() -> None:
    """A longer delay is rejected."""
    assert Fault.parse("slow:60s").seconds == 60
    with raises(UsageError, "out_of_range"):
        Fault.parse("slow:61s")


def test_fault_count_and_skip() -> None:
    """`:COUNT@SKIP` skips operations, and is then triggered that often."""
    faults = make_faults("mkdir=EIO:2@3")
    assert [bool(faults.strike("mkdir")) for _ in range(7)] == [False] * 3 + [True] * 2 + [
        False
    ] * 2
    assert faults.armed() == ()


def test_fault_star_is_triggered_until_cleared() -> None:
    """The count `*` has no limit, and with 0 nothing is armed."""
    faults = make_faults("mkdir=EIO:*", "ebusy:0")
    assert all(faults.strike("mkdir") for _ in range(100))
    assert len(faults.armed()) == 1
    faults.clear()
    assert faults.strike("mkdir") is None


def test_faults_of_one_operation_are_triggered_in_order() -> None:
    """Faults of other operations do not wait."""
    faults = make_faults("eintr", "ebusy:2", "rmdir=EPERM")
    assert [str(fault) for fault in faults.armed()] == ["eintr:1", "ebusy:2", "rmdir=EPERM:1"]
    triggered = [faults.strike("read:outblob") for _ in range(4)]
    assert [fault and fault.number for fault in triggered] == [
        errno.EINTR,
        *[errno.EBUSY] * 2,
        None,
    ]
    assert [str(fault) for fault in faults.armed()] == ["rmdir=EPERM:1"]


@given(st.text())
def test_any_text_is_a_fault_or_usage_error(text: str) -> None:
    """Arbitrary text never raises another exception."""
    try:
        fault = Fault.parse(text)
    except UsageError:
        return
    assert Fault.parse(str(fault)) == fault


@every_case(
    ("text", "proposed"),
    [
        ("ebsuy:3@1", "; did you mean ebusy"),
        ("write:rmtr3=EIO", "; did you mean write:rtmr3"),
        ("write:rtmr3=EBUSSY:2", "; did you mean EBUSY"),
        ("slow", "; write it as ebusy:3@1, slow:2s"),
        ("zzzz", "; write it as"),
    ],
)
def test_unknown_fault_suggests_nearest_name(text: str, proposed: str) -> None:
    """The text fits in one line, and the listing command shows all faults."""
    with raises(UsageError, "unknown_name", start=f"unknown fault {text!r}{proposed}"):
        Fault.parse(text)
    listed = "\n".join(named_faults())
    assert all(name in listed for name in (*NAMED, *OPERATIONS, "EBUSY"))


def test_arm_several_faults_is_atomic() -> None:
    """An invalid specification arms none of the faults."""
    faults = Faults()
    faults.arm("ebusy:2, eio")
    assert [str(fault) for fault in faults.armed()] == ["ebusy:2", "eio:1"]
    with raises(UsageError, "unknown_name"):
        faults.arm("eintr eoi")
    assert [str(fault) for fault in faults.armed()] == ["ebusy:2", "eio:1"]


def test_mapping_of_counts_is_rejected() -> None:
    """Iterating a mapping would ignore the counts."""
    with raises(UsageError, "wrong_type"):
        Faults.of({"ebusy": 3})
    faults = Faults()
    with raises(UsageError, "wrong_type"):
        faults.arm({"ebusy": 3})
    assert not faults.any
