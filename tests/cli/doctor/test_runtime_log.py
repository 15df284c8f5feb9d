"""Diagnosis of the runtime log, without changing it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from attestkit.cli.doctor.runtime_log import RuntimeLogState, examine_runtime_log
from attestkit.event_log.journal import BOOT_ID, LOG, PENDING, VERSION, replay_from
from attestkit.event_log.runtime_events import runtime_event, runtime_line

THIS_BOOT, OTHER_BOOT = (
    "11111111-1111-1111-1111-111111111111",
    "22222222-2222-2222-2222-222222222222",
)
ZERO = bytes(48)
EVENTS = tuple(runtime_event(f"event-{n}", b"%d" % n) for n in range(3))
LINES = tuple(runtime_line(event) for event in EVENTS)
THREE = b"".join(LINES)


def after(count: int) -> bytes:
    """Return RTMR3 after `count` events."""
    return replay_from(ZERO, EVENTS[:count])


def examine_files(
    folder: Path, files: Mapping[str, bytes], register: bytes | None
) -> RuntimeLogState:
    """Examine a log with these files and this RTMR3."""
    (folder / "log").mkdir()
    for name, content in files.items():
        (folder / "log" / name).write_bytes(content)
    (folder / "boot_id").write_text(f"{THIS_BOOT}\n", encoding="ascii")
    return examine_runtime_log(folder / "log", folder / "boot_id", lambda: register)


FILES = {BOOT_ID: f"{THIS_BOOT}\n".encode(), VERSION: b"1"}
OLD_FILES = {BOOT_ID: f"{OTHER_BOOT}\n".encode(), VERSION: b"1"}
CASES: list[tuple[str, dict[str, bytes], bytes | None, str, str]] = [
    # state, files, register, part of `says`, part of `advice`
    ("empty", {}, ZERO, "no events in this boot", ""),
    ("empty", {**FILES}, ZERO, "no events in this boot", ""),
    ("agrees", {**FILES, LOG: THREE}, after(3), "3 events, which replay to RTMR3", ""),
    ("agrees", {LOG: LINES[0]}, after(1), "1 event, which replay", ""),  # an agent's own log
    ("pending", {**FILES, LOG: LINES[0], PENDING: LINES[1]}, after(1), "not extended", ""),
    ("pending", {**FILES, LOG: LINES[0], PENDING: LINES[1]}, after(2), "pending 'event-1'", ""),
    ("pending", {**FILES, LOG: THREE, PENDING: b""}, after(3), "not extended", ""),
    ("pending", {**FILES, LOG: LINES[0] + b'{"ev', PENDING: LINES[1]}, after(2), "event-1", ""),
    ("earlier-boot", {**OLD_FILES, LOG: THREE}, ZERO, "3 events of an earlier boot", ""),
    ("unknown", {**FILES, LOG: THREE}, None, "RTMR3 is unreadable", ""),
    ("other-boot", {**OLD_FILES, LOG: THREE}, after(3), "kexec", "Reboot the guest"),
    ("other-boot", {**OLD_FILES, LOG: THREE}, after(1), "another program", "from one program only"),
    ("foreign", {}, after(1), "the log is empty", "a guest agent with another folder"),
    ("foreign", {**FILES, LOG: LINES[0]}, after(3), "1 event do not replay", "Reboot"),
    (
        "foreign",
        {**FILES, LOG: LINES[0], PENDING: LINES[1]},
        after(3),
        "does not agree with or without it",
        "another program has extended RTMR3",
    ),
    ("foreign", {**FILES, PENDING: b'{"torn'}, after(1), "does not agree", "is pending"),
    ("behind", {**FILES, LOG: THREE}, after(2), "only the first 2", "a snapshot or restored VM"),
    ("behind", {**FILES, LOG: THREE}, ZERO, "only the first 0", "the file was edited"),
    ("torn", {**FILES, LOG: LINES[0] + b'{"ev'}, after(1), "an incomplete line", "rebooted"),
    ("damaged", {**FILES, LOG: b"nonsense\n"}, ZERO, "line 1", "move the folder away"),
    ("damaged", {**FILES, VERSION: b"3"}, ZERO, "is not 1 or 2", "move the folder away"),
]


@pytest.mark.parametrize(("state", "files", "register", "says", "advice"), CASES)
def test_examine_runtime_log_reports_state(
    tmp_path: Path,
    *,
    state: str,
    files: dict[str, bytes],
    register: bytes | None,
    says: str,
    advice: str,
) -> None:
    """Each state has a word, a text, and a remedy only for problems."""
    found = examine_files(tmp_path, files, register)
    assert found.state == state
    assert says in found.says
    assert bool(found.advice) is bool(advice)
    assert advice in (found.advice or "")
    assert found.good is (state in ("empty", "agrees", "pending", "earlier-boot"))
    if advice:
        assert str(tmp_path / "log") in (found.advice or "")


def test_examine_runtime_log_has_register_and_replay(tmp_path: Path) -> None:
    """The result has the number of events, RTMR3 and the replay in hex."""
    found = examine_files(tmp_path, {**FILES, LOG: THREE}, after(2))
    assert found.events == 3
    assert found.register == after(2).hex()
    assert found.replay == after(3).hex()


def test_examine_runtime_log_names_its_register(tmp_path: Path) -> None:
    """On a NitroTPM the log is compared with PCR 14, which texts and remedies name."""
    one = b"\1" * 48
    found = examine_runtime_log(tmp_path, tmp_path / "boot_id", lambda: one, "PCR 14")
    assert (found.state, found.register) == ("foreign", one.hex())
    assert "PCR 14 is not zero" in found.says
    assert "extend PCR 14 from one program only" in (found.advice or "")
    assert "RTMR3" not in f"{found.says} {found.advice}"


def test_examine_runtime_log_does_not_write(tmp_path: Path) -> None:
    """No file is created or changed, not even the lock file."""
    examine_files(tmp_path, {**FILES, LOG: LINES[0], PENDING: LINES[1]}, after(2))
    names = {path.name for path in (tmp_path / "log").iterdir()}
    assert names == {BOOT_ID, VERSION, LOG, PENDING}
    assert (tmp_path / "log" / LOG).read_bytes() == LINES[0]
    nowhere = tmp_path / "nowhere"
    assert examine_runtime_log(nowhere, tmp_path / "boot_id", lambda: ZERO).state == "empty"
    assert not nowhere.exists()


def test_examine_runtime_log_unreadable_names_root(tmp_path: Path) -> None:
    """An unreadable log has a remedy that names root."""
    (tmp_path / LOG).mkdir()
    found = examine_runtime_log(tmp_path, tmp_path / "boot_id", lambda: ZERO)
    assert (found.state, found.good) == ("unreadable", False)
    assert "as root" in (found.advice or "")


def test_examine_runtime_log_refuses_huge_file(tmp_path: Path) -> None:
    """A log larger than the limit is not read."""
    with (tmp_path / LOG).open("wb") as file:
        file.truncate(1 << 40)
    found = examine_runtime_log(tmp_path, tmp_path / "boot_id", lambda: ZERO)
    assert found.state == "unreadable"
    assert "longer than" in found.says


def test_examine_runtime_log_reads_kernel_boot_id(tmp_path: Path) -> None:
    """The kernel's boot_id file, which rejects large reads, is read."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    for name, content in {BOOT_ID: boot_id.read_bytes(), LOG: THREE}.items():
        (tmp_path / name).write_bytes(content)
    assert examine_runtime_log(tmp_path, boot_id, lambda: after(3)).state == "agrees"
    (tmp_path / BOOT_ID).write_text(OTHER_BOOT, encoding="ascii")
    assert examine_runtime_log(tmp_path, boot_id, lambda: after(3)).state == "other-boot"


def test_examine_runtime_log_repeats_on_concurrent_event(tmp_path: Path) -> None:
    """An event between the reads of log and register is not an error."""
    (tmp_path / LOG).write_bytes(LINES[0])

    def emit_meanwhile() -> bytes:
        value = after(len((tmp_path / LOG).read_bytes().splitlines()))
        if value == after(1):
            (tmp_path / LOG).write_bytes(LINES[0] + LINES[1])
        return value

    assert examine_runtime_log(tmp_path, tmp_path / "boot_id", emit_meanwhile).state == "agrees"
