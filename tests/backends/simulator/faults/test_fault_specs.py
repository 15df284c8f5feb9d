"""A fault is read from one line, strikes when it says, and shows what is left of it."""

import errno
import threading

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


def armed(*texts: str) -> Faults:
    """Return faults of these lines."""
    return Faults(map(Fault.parse, texts))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_fault_has_a_line(name: str) -> None:
    """Every name is read, strikes its operation once, and is listed for people."""
    text = f"{name}:2s" if NAMED[name].argument else name
    faults = armed(text)
    struck = faults.strike(NAMED[name].operation)
    assert struck is not None
    assert struck.name == name
    assert faults.strike(NAMED[name].operation) is None
    [line] = [line for line in named_faults() if line.split()[0] == text]
    assert line.endswith(NAMED[name].text)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_can_fail(operation: str) -> None:
    """The general form takes each operation, with the errno that it names."""
    with pytest.raises(OSError, match=r"too large") as caught:
        armed(f"{operation}=EFBIG").check(operation)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
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
def test_text(text: str, shown: str) -> None:
    """A fault shows itself in the form that it is read from."""
    fault = Fault.parse(text)
    assert str(fault) == shown
    assert Fault.parse(shown) == fault


@pytest.mark.parametrize(
    "text",
    [
        *("", "ebsuy", "ebusy:", "ebusy:-1", "ebusy:3:3", "ebusy:2s", "slow", "slow:3", "ebusy@"),
        *("mkdir=EWHAT", "mkdir=ENOSYS", "chmod=EIO", "read:inblob=EIO", "read:outblob=", "=EIO"),
        *("mkdir=EIO=EIO", "ioctl:GET_REPORT=EIO", "ebusy:3\nebusy:3", "ebusy:٣", "slow:٢s"),
    ],
)
def test_unknown_fault_says_who_lists_all(text: str) -> None:
    """What is no fault is a caller's mistake, told in a short line."""
    with pytest.raises(UsageError) as caught:
        Fault.parse(text)
    assert repr(text.strip()) in str(caught.value)
    assert "attestkit serve --list-faults" in str(caught.value)
    assert len(str(caught.value)) < 240


def test_slow_has_a_limit() -> None:
    """A host that takes longer than a minute is refused, for nobody would wait."""
    assert Fault.parse("slow:60s").seconds == 60
    with pytest.raises(UsageError, match="at most 60s"):
        Fault.parse("slow:61s")


def test_count_and_skip() -> None:
    """A fault lets as many operations pass as it skips, then strikes as often as it counts."""
    faults = armed("mkdir=EIO:2@3")
    assert [bool(faults.strike("mkdir")) for _ in range(7)] == [False] * 3 + [True] * 2 + [
        False
    ] * 2
    assert faults.armed() == ()


def test_always() -> None:
    """A star strikes until it is disarmed."""
    faults = armed("mkdir=EIO:*")
    assert all(faults.strike("mkdir") for _ in range(100))
    faults.clear()
    assert faults.strike("mkdir") is None


def test_none() -> None:
    """A count of zero arms nothing."""
    assert armed("ebusy:0").armed() == ()


def test_order() -> None:
    """Faults of one operation strike one after the other, those of others do not wait."""
    faults = armed("eintr", "ebusy:2", "rmdir=EPERM")
    assert [str(fault) for fault in faults.armed()] == ["eintr:1", "ebusy:2", "rmdir=EPERM:1"]
    struck = [faults.strike("read:outblob") for _ in range(4)]
    assert [fault and fault.number for fault in struck] == [errno.EINTR, *[errno.EBUSY] * 2, None]
    assert [str(fault) for fault in faults.armed()] == ["rmdir=EPERM:1"]


def test_other_operations_go_well() -> None:
    """A fault of one operation does not touch another."""
    faults = armed("write:rtmr3=EIO")
    faults.check("write:rtmr2")
    faults.check("read:rtmr3")
    assert [str(fault) for fault in faults.armed()] == ["write:rtmr3=EIO:1"]


def test_threads_share_a_count() -> None:
    """However many threads ask, a fault strikes exactly as often as it counts."""
    faults = armed("mkdir=EIO:500@100")
    struck: list[bool] = []

    def ask() -> None:
        struck.extend([bool(faults.strike("mkdir")) for _ in range(400)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(struck) == 500
    assert faults.armed() == ()


@given(st.text())
def test_any_text(text: str) -> None:
    """Any text is a fault, or a UsageError."""
    try:
        fault = Fault.parse(text)
    except UsageError:
        return
    assert Fault.parse(str(fault)) == fault


def test_faults_without_any_are_faults_to_arm() -> None:
    """An object that has none yet is not false: nobody may take another in its place."""
    faults = Faults()
    assert bool(faults)
    before = faults.any
    faults.arm("ebusy")
    assert (before, faults.any) == (False, True)
    assert Faults.of(faults) is faults


@pytest.mark.parametrize(
    ("text", "proposed"),
    [
        ("ebsuy:3@1", "; did you mean ebusy"),
        ("write:rmtr3=EIO", "; did you mean write:rtmr3"),
        ("write:rtmr3=EBUSSY:2", "; did you mean EBUSY"),
        ("slow", "; write it as ebusy:3@1, slow:2s"),
        ("zzzz", "; write it as"),
    ],
)
def test_a_slip_is_told_the_nearest(text: str, proposed: str) -> None:
    """In a line that fits on a screen, with who lists the rest: and that list has all of them."""
    with pytest.raises(UsageError) as caught:
        Fault.parse(text)
    told = str(caught.value)
    assert told.startswith(f"no fault is called {text!r}{proposed}")
    assert told.endswith("attestkit serve --list-faults has them all")
    assert len(told) < 220
    listed = "\n".join(named_faults())
    assert all(name in listed for name in (*NAMED, *OPERATIONS, "EBUSY"))


def test_of_several_that_are_armed_at_once_all_count_or_none() -> None:
    """A slip in the last of them arms none of the others."""
    faults = Faults()
    faults.arm("ebusy:2, eio")
    assert [str(fault) for fault in faults.armed()] == ["ebusy:2", "eio:1"]
    with pytest.raises(UsageError, match="no fault is called 'eoi'"):
        faults.arm("eintr eoi")
    assert [str(fault) for fault in faults.armed()] == ["ebusy:2", "eio:1"]


def test_counts_by_name_are_refused() -> None:
    """Of a mapping the names alone would count: three times busy would be once."""
    with pytest.raises(UsageError, match="faults are text, as in 'ebusy:3 slow:2s', or a list"):
        Faults.of({"ebusy": 3})
    faults = Faults()
    with pytest.raises(UsageError, match="faults are text"):
        faults.arm({"ebusy": 3})
    assert not faults.any
