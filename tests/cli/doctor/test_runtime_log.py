"""The runtime log is explained as the journal will judge it, and left as it was."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from attestkit.cli.doctor.runtime_log import LogState, examine_log
from attestkit.event_log.journal import BOOT_ID, LOG, PENDING, VERSION, replay_from
from attestkit.event_log.runtime_events import runtime_event, runtime_line

HERE, BEFORE = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
ZERO = bytes(48)
EVENTS = tuple(runtime_event(f"event-{n}", b"%d" % n) for n in range(3))
LINES = tuple(runtime_line(event) for event in EVENTS)
THREE = b"".join(LINES)


def after(count: int) -> bytes:
    """Return RTMR3 after so many events."""
    return replay_from(ZERO, EVENTS[:count])


def examined(folder: Path, files: Mapping[str, bytes], register: bytes | None) -> LogState:
    """Look at a log of these files, with RTMR3 like this."""
    (folder / "log").mkdir()
    for name, content in files.items():
        (folder / "log" / name).write_bytes(content)
    (folder / "boot_id").write_text(f"{HERE}\n", encoding="ascii")
    return examine_log(folder / "log", folder / "boot_id", lambda: register)


OURS = {BOOT_ID: f"{HERE}\n".encode(), VERSION: b"1"}
OLD = {BOOT_ID: f"{BEFORE}\n".encode(), VERSION: b"1"}
CASES: list[tuple[str, dict[str, bytes], bytes | None, str, str]] = [
    # state, files, register, words of `says`, words of `advice`
    ("empty", {}, ZERO, "nothing was emitted", ""),
    ("empty", {**OURS}, ZERO, "nothing was emitted", ""),
    ("agrees", {**OURS, LOG: THREE}, after(3), "3 events, which replay to RTMR3", ""),
    ("agrees", {LOG: LINES[0]}, after(1), "1 event, which replay", ""),  # an agent's own log
    ("pending", {**OURS, LOG: LINES[0], PENDING: LINES[1]}, after(1), "never happened", ""),
    ("pending", {**OURS, LOG: LINES[0], PENDING: LINES[1]}, after(2), "'event-1' pending", ""),
    ("pending", {**OURS, LOG: THREE, PENDING: b""}, after(3), "never happened", ""),
    ("pending", {**OURS, LOG: LINES[0] + b'{"ev', PENDING: LINES[1]}, after(2), "event-1", ""),
    ("earlier-boot", {**OLD, LOG: THREE}, ZERO, "3 events of an earlier boot", ""),
    ("unknown", {**OURS, LOG: THREE}, None, "RTMR3 cannot be read", ""),
    ("other-boot", {**OLD, LOG: THREE}, after(3), "kexec", "Reboot the guest"),
    ("other-boot", {**OLD, LOG: THREE}, after(1), "without this log", "let one program alone"),
    ("foreign", {}, after(1), "there is no log of it", "a guest agent with another folder"),
    ("foreign", {**OURS, LOG: LINES[0]}, after(3), "1 event that do not replay", "Reboot"),
    (
        "foreign",
        {**OURS, LOG: LINES[0], PENDING: LINES[1]},
        after(3),
        "neither with it nor without it",
        "something else extended RTMR3",
    ),
    ("foreign", {**OURS, PENDING: b'{"torn'}, after(1), "neither with it", "half done"),
    ("behind", {**OURS, LOG: THREE}, after(2), "only the first 2", "a snapshot, a restored VM"),
    ("behind", {**OURS, LOG: THREE}, ZERO, "only the first 0", "the file was edited"),
    ("torn", {**OURS, LOG: LINES[0] + b'{"ev'}, after(1), "without its end", "rebooted"),
    ("damaged", {**OURS, LOG: b"nonsense\n"}, ZERO, "line 1", "move the folder away"),
    ("damaged", {**OURS, VERSION: b"3"}, ZERO, "neither 1 nor 2", "move the folder away"),
]


@pytest.mark.parametrize(("state", "files", "register", "says", "advice"), CASES)
def test_each_state_is_told(
    tmp_path: Path,
    *,
    state: str,
    files: dict[str, bytes],
    register: bytes | None,
    says: str,
    advice: str,
) -> None:
    """In a word for programs, in words for people, with advice only where something is to do."""
    found = examined(tmp_path, files, register)
    assert found.state == state
    assert says in found.says
    assert bool(found.advice) is bool(advice)
    assert advice in (found.advice or "")
    assert found.good is (state in ("empty", "agrees", "pending", "earlier-boot"))
    if advice:
        assert str(tmp_path / "log") in (found.advice or "")


def test_values_are_there_to_compare(tmp_path: Path) -> None:
    """Both, in hex, and how many events there are."""
    found = examined(tmp_path, {**OURS, LOG: THREE}, after(2))
    assert found.events == 3
    assert found.register == after(2).hex()
    assert found.replay == after(3).hex()


def test_nothing_is_made_or_changed(tmp_path: Path) -> None:
    """Not even the lock's file, and a folder that is not there stays so."""
    examined(tmp_path, {**OURS, LOG: LINES[0], PENDING: LINES[1]}, after(2))
    names = {path.name for path in (tmp_path / "log").iterdir()}
    assert names == {BOOT_ID, VERSION, LOG, PENDING}
    assert (tmp_path / "log" / LOG).read_bytes() == LINES[0]
    nowhere = tmp_path / "nowhere"
    assert examine_log(nowhere, tmp_path / "boot_id", lambda: ZERO).state == "empty"
    assert not nowhere.exists()


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    """With the file; here it is a folder, which root may not read either."""
    (tmp_path / LOG).mkdir()
    found = examine_log(tmp_path, tmp_path / "boot_id", lambda: ZERO)
    assert (found.state, found.good) == ("unreadable", False)
    assert "as root" in (found.advice or "")


def test_a_log_that_has_no_end_is_refused(tmp_path: Path) -> None:
    """A file of a terabyte, most of it a hole, is not read."""
    with (tmp_path / LOG).open("wb") as file:
        file.truncate(1 << 40)
    found = examine_log(tmp_path, tmp_path / "boot_id", lambda: ZERO)
    assert found.state == "unreadable"
    assert "longer than" in found.says


def test_the_real_boot_id_is_read(tmp_path: Path) -> None:
    """The kernel refuses to be asked for more than it could ever hold there."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    for name, content in {BOOT_ID: boot_id.read_bytes(), LOG: THREE}.items():
        (tmp_path / name).write_bytes(content)
    assert examine_log(tmp_path, boot_id, lambda: after(3)).state == "agrees"
    (tmp_path / BOOT_ID).write_text(BEFORE, encoding="ascii")
    assert examine_log(tmp_path, boot_id, lambda: after(3)).state == "other-boot"


def test_an_event_that_comes_in_between_is_no_fault(tmp_path: Path) -> None:
    """Register and log are read one after the other; a difference is looked at again."""
    (tmp_path / LOG).write_bytes(LINES[0])

    def emit_meanwhile() -> bytes:
        value = after(len((tmp_path / LOG).read_bytes().splitlines()))
        if value == after(1):
            (tmp_path / LOG).write_bytes(LINES[0] + LINES[1])
        return value

    assert examine_log(tmp_path, tmp_path / "boot_id", emit_meanwhile).state == "agrees"
