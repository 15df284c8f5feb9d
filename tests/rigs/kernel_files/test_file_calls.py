"""The emulator's files behave like the kernel's, without attestkit's backends.

The kernel's behaviour was observed on real kernels, or read in the source.
"""

import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from attestkit.event_log import EventLog
from attestkit.quote import Quote
from tests import dcap
from tests.rigs.emulator import PATIENCE, REPORTS, Emulator, emulator, requires_fuse
from tests.rigs.kernel_files.file_calls import (
    MEASUREMENTS,
    NONCE,
    OTHER,
    errno_name_of,
    get_td_report,
    new_entry,
    read_generation,
    read_once,
    write_once,
)

pytestmark = [pytest.mark.rig, requires_fuse]


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Run a TDX guest with all features, for tests that leave it unchanged."""
    with emulator(qgs_port=4050) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(shared: Emulator) -> Emulator:
    """Return the rebooted guest."""
    shared.reboot()
    return shared


# -- report entries ----------------------------------------------------------------------------


def test_fs_quote_verifies(machine: Emulator) -> None:
    """dcap-qvl accepts it under the emulator's root."""
    quote = read_once(new_entry(machine, inblob=NONCE) / "outblob")
    now = int(time.time())
    verdict = dcap.judge(quote, machine.collateral(), machine.trust_anchor, now)
    assert (verdict.status, verdict.text) == ("UpToDate", "")
    assert dcap.judge(quote, machine.collateral(), None, now).status == dcap.REJECT
    assert Quote.parse(quote).report_data == NONCE


def test_fs_shell_gets_a_quote(machine: Emulator) -> None:
    """mkdir, cat and rmdir are sufficient."""
    script = """
        cd "$1"; mkdir shell
        printf %064d 7 > shell/inblob
        cat shell/provider shell/generation >&2
        cat shell/outblob
        rmdir shell
    """
    words = ["sh", "-euc", script, "sh", str(machine.root / REPORTS)]
    done = subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE)
    assert done.stderr == b"tdx_guest\n1\n"
    assert Quote.parse(done.stdout).report_data == b"%064d" % 7
    assert machine.entries() == []


def test_fs_inblob_write_counts_at_close(machine: Emulator) -> None:
    """Several writes to one descriptor are joined."""
    entry = new_entry(machine)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    for at in range(0, 64, 16):
        assert os.write(fd, NONCE[at : at + 16]) == 16
    assert read_generation(entry) == 0
    os.close(fd)
    assert read_generation(entry) == 1
    assert Quote.parse(read_once(entry / "outblob")).report_data == NONCE


def test_fs_duplicated_descriptor_counts_once(machine: Emulator) -> None:
    """Only the last close counts."""
    entry = new_entry(machine)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    copy = os.dup(fd)
    os.write(fd, NONCE)
    os.close(copy)
    os.close(fd)
    assert read_generation(entry) == 1


def test_fs_report_is_cached_until_the_next_write(machine: Emulator) -> None:
    """A second descriptor reads the same report."""
    entry = new_entry(machine, inblob=NONCE)
    first = read_once(entry / "outblob")
    write_once(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
    assert read_once(entry / "outblob") == first
    write_once(entry / "inblob", NONCE)
    assert Quote.parse(read_once(entry / "outblob")).rtmrs != Quote.parse(first).rtmrs


def test_fs_entries_are_independent(machine: Emulator) -> None:
    """A write to one entry does not affect another."""
    one, two = new_entry(machine, "one", NONCE), new_entry(machine, "two")
    write_once(two / "inblob", OTHER)
    write_once(two / "inblob", OTHER)
    assert (read_generation(one), read_generation(two)) == (1, 2)
    assert Quote.parse(read_once(one / "outblob")).report_data == NONCE
    assert Quote.parse(read_once(two / "outblob")).report_data == OTHER
    assert machine.entries() == ["one", "two"]


def test_fs_concurrent_clients_get_their_own_quotes(machine: Emulator) -> None:
    """No entry is left."""
    quoted: dict[int, list[bytes]] = {}

    def run_client(client: int) -> None:
        nonce = bytes([client]) * 64
        for number in range(20):
            entry = new_entry(machine, f"client-{client}-{number}", nonce)
            quote = Quote.parse(read_once(entry / "outblob"))
            assert read_generation(entry) == 1
            quoted.setdefault(client, []).append(quote.report_data)
            entry.rmdir()

    threads = [threading.Thread(target=run_client, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert quoted == {client: [bytes([client]) * 64] * 20 for client in range(8)}
    assert machine.entries() == []


def test_fs_lists_300_entries(machine: Emulator) -> None:
    """Each is listed once."""
    names = [f"entry-{number:03}" for number in range(300)]
    for name in names:
        new_entry(machine, name)
    assert machine.entries() == names


# -- registers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_fs_write_extends_a_register(machine: Emulator, number: int) -> None:
    """Report and quote have the new value; other registers are unchanged."""
    before = Quote.parse(read_once(new_entry(machine, "before", NONCE) / "outblob")).rtmrs
    digest = hashlib.sha384(b"event").digest()
    file = machine.root / MEASUREMENTS / f"rtmr{number}:sha384"
    fd = os.open(file, os.O_RDWR)
    assert os.read(fd, 48) == before[number]
    assert os.pwrite(fd, digest, 0) == 48
    after = list(before)
    after[number] = hashlib.sha384(before[number] + digest).digest()
    assert os.pread(fd, 100, 0) == after[number]
    os.close(fd)
    assert read_once(file) == after[number]
    assert list(get_td_report(machine, NONCE).rtmrs) == after
    assert list(Quote.parse(read_once(new_entry(machine, inblob=NONCE) / "outblob")).rtmrs) == after


def test_fs_register_can_be_read_in_parts(machine: Emulator) -> None:
    """The parts are the complete value."""
    file = machine.root / MEASUREMENTS / "mrtd:sha384"
    with file.open("rb", buffering=0) as opened:
        pieces = [opened.read(20) for _ in range(4)]
    assert list(map(len, filter(None, pieces))) == [20, 20, 8]
    assert b"".join(filter(None, pieces)) == read_once(file) != bytes(48)


# -- the device --------------------------------------------------------------------------------


def test_fs_get_report0_matches_files_and_quote(machine: Emulator) -> None:
    """The report is well formed."""
    report = get_td_report(machine, NONCE)
    quote = Quote.parse(read_once(new_entry(machine, inblob=NONCE) / "outblob"))
    assert report.report_data == NONCE
    assert report.rtmrs == quote.rtmrs
    assert report.quote_body() == quote.raw[48 : 48 + 584]
    folder = machine.root / MEASUREMENTS
    assert report.rtmrs == tuple(read_once(folder / f"rtmr{number}:sha384") for number in range(4))
    assert report.mrtd == read_once(folder / "mrtd:sha384")
    assert report.mr_config_id == read_once(folder / "mrconfigid")
    assert report.mac not in (bytes(32), get_td_report(machine, OTHER).mac)


# -- boot log, boot id, configuration ----------------------------------------------------------


def test_fs_ccel_table_is_valid(machine: Emulator) -> None:
    """Type, checksum and log length are those of a TDX guest."""
    table = read_once(machine.root / "sys/firmware/acpi/tables/CCEL")
    assert (table[:4], len(table), table[36]) == (b"CCEL", 56, 2)
    assert struct.unpack_from("<I", table, 4) == (56,)
    assert sum(table) & 0xFF == 0
    data = machine.root / "sys/firmware/acpi/tables/data/CCEL"
    assert struct.unpack_from("<Q", table, 40) == (len(data.read_bytes()),)
    assert data.stat().st_size == 65536
    assert data.stat().st_mode & 0o777 == 0o400


def test_fs_boot_log_replays_to_the_registers(machine: Emulator) -> None:
    """RTMR3 is zero after the boot."""
    log = EventLog.parse((machine.root / "sys/firmware/acpi/tables/data/CCEL").read_bytes())
    rtmrs = get_td_report(machine, NONCE).rtmrs
    assert log.replay() == rtmrs
    assert rtmrs[3] == bytes(48)
    assert bytes(48) not in rtmrs[:3]


def test_fs_boot_id_is_a_constant_uuid(machine: Emulator) -> None:
    """A newline follows."""
    text = read_once(machine.root / "proc/sys/kernel/random/boot_id").decode()
    assert len(text) == 37
    assert text.endswith("\n")
    assert text.strip() == machine.boot_id


def test_fs_attest_conf_has_the_port(machine: Emulator) -> None:
    """The option qgs_port sets it."""
    lines = read_once(machine.root / "etc/tdx-attest.conf").decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["port = 4050"]


def test_fs_runtime_log_is_outside_of_the_mount(machine: Emulator) -> None:
    """`/run/log/dstack` is a link to an ordinary directory."""
    folder = machine.root / "run/log/dstack"
    assert folder.is_symlink()
    (folder / "file").write_text("kept")
    assert [file.name for file in folder.resolve().iterdir()] == ["file"]
    (folder / "file").unlink()


# -- control -----------------------------------------------------------------------------------


def test_fs_reboot_resets_registers_and_entries(machine: Emulator) -> None:
    """The boot ID changes, and names of entries are free."""
    boot_id, rtmrs = machine.boot_id, get_td_report(machine, NONCE).rtmrs
    entry = new_entry(machine, inblob=NONCE)
    for number in range(4):
        write_once(machine.root / MEASUREMENTS / f"rtmr{number}:sha384", bytes(48))
    opened = os.open(entry / "outblob", os.O_RDONLY)
    machine.reboot()
    assert errno_name_of(os.read, opened, 1) == "ENOENT"
    os.close(opened)
    assert get_td_report(machine, NONCE).rtmrs == rtmrs
    assert machine.boot_id != boot_id
    assert machine.entries() == []
    assert read_generation(new_entry(machine)) == 0


@pytest.mark.parametrize("name", ["reset", "kexec"])
def test_fs_reset_removes_entries_at_once(machine: Emulator, name: str) -> None:
    """Entries without rmdir leave no trace."""
    for _ in range(2):
        entry = new_entry(machine, inblob=NONCE)
        assert read_generation(entry) == 1
        write_once(machine.root / "attestkit" / name, b"1")
    assert machine.entries() == []
    assert errno_name_of(entry.stat) == "ENOENT"
    assert errno_name_of(read_once, entry / "generation") == "ENOENT"
    assert errno_name_of(entry.rmdir) == "ENOENT"


def test_fs_kexec_keeps_the_registers(machine: Emulator) -> None:
    """The boot ID changes, and entries are removed."""
    new_entry(machine)
    write_once(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
    boot_id, rtmrs = machine.boot_id, get_td_report(machine, NONCE).rtmrs
    machine.kexec()
    assert machine.boot_id != boot_id
    assert machine.entries() == []
    assert get_td_report(machine, NONCE).rtmrs == rtmrs


def test_fs_killed_client_leaves_its_entry(machine: Emulator) -> None:
    """The emulator still works."""
    program = f"""
import os, signal, sys
os.mkdir({str(machine.root / REPORTS / "left")!r})
os.chdir({str(machine.root / REPORTS / "left")!r})
w = os.open("inblob", os.O_WRONLY); os.write(w, bytes(40))
r = os.open("provider", os.O_RDONLY); os.read(r, 3)
d = os.open({str(machine.root / "dev/tdx_guest")!r}, os.O_RDWR)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=PATIENCE)
    assert done.returncode == -9
    assert machine.entries() == ["left"]
    assert Quote.parse(read_once(new_entry(machine, inblob=NONCE) / "outblob")).report_data == NONCE
    (machine.root / REPORTS / "left").rmdir()
