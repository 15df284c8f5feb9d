"""The emulator behaves as the kernel does, for any program: plain file calls, none of our backends.

What the kernel does was seen on real kernels, or read in their source.
"""

import fcntl
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
from tests.rigs.file_calls import (
    GET_REPORT0,
    MEASUREMENTS,
    NONCE,
    OTHER,
    failure,
    generation,
    get,
    new_entry,
    put,
    td_report,
)

pytestmark = [pytest.mark.rig, requires_fuse]


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    """Return a TDX guest of a kernel with everything, for tests that leave it as it was."""
    with emulator(qgs_port=4050) as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(shared: Emulator) -> Emulator:
    """Return the same one, just booted."""
    shared.reboot()
    return shared


# -- report entries ----------------------------------------------------------------------------


def test_entry_has_four_files(machine: Emulator) -> None:
    """An entry of a TDX guest has exactly these, with these modes and sizes."""
    entry = new_entry(machine)
    found = {
        file.name: (oct(file.stat().st_mode & 0o777), file.stat().st_size)
        for file in entry.iterdir()
    }
    assert found == {
        "inblob": ("0o200", 0),
        "outblob": ("0o444", 0),
        "provider": ("0o444", 4096),
        "generation": ("0o444", 4096),
    }
    assert entry.stat().st_mode & 0o777 == 0o755
    assert get(entry / "provider") == b"tdx_guest\n"
    assert get(entry / "generation") == b"0\n"


def test_quote_verifies(machine: Emulator) -> None:
    """A quote that plain file calls get is accepted by dcap-qvl with the emulator's root."""
    quote = get(new_entry(machine, inblob=NONCE) / "outblob")
    now = int(time.time())
    verdict = dcap.judge(quote, machine.collateral(), machine.trust_anchor, now)
    assert (verdict.status, verdict.text) == ("UpToDate", "")
    assert dcap.judge(quote, machine.collateral(), None, now).status == dcap.REJECT
    assert Quote.parse(quote).report_data == NONCE


def test_shell(machine: Emulator) -> None:
    """A shell gets a quote with mkdir, cat and rmdir."""
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


def test_mkdir(machine: Emulator) -> None:
    """Entries are made in the report folder alone; the machine knows a name once."""
    entry = new_entry(machine)
    assert failure(entry.mkdir) == "EEXIST"
    for place in (
        entry / "inner",
        machine.root / "sys/kernel/config/tsm/other",
        machine.root / "x",
    ):
        assert failure(place.mkdir) == "EPERM"
    assert machine.entries() == ["test"]


def test_rmdir(machine: Emulator) -> None:
    """An entry goes with its files, which cannot be unlinked, renamed or made one by one."""
    entry = new_entry(machine)
    assert failure((entry / "inblob").unlink) == "EPERM"
    assert failure(os.rename, entry / "inblob", entry / "new") == "EPERM"
    assert failure(os.open, entry / "new", os.O_WRONLY | os.O_CREAT) == "EACCES"
    assert failure(os.rmdir, machine.root / REPORTS) == "EPERM"
    entry.rmdir()
    assert machine.entries() == []
    assert failure(entry.rmdir) == "ENOENT"
    assert failure(get, entry / "generation") == "ENOENT"
    assert generation(new_entry(machine)) == 0


def test_inblob_counts_at_close(machine: Emulator) -> None:
    """A write moves nothing before the close; several are joined."""
    entry = new_entry(machine)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    for at in range(0, 64, 16):
        assert os.write(fd, NONCE[at : at + 16]) == 16
    assert generation(entry) == 0
    os.close(fd)
    assert generation(entry) == 1
    assert Quote.parse(get(entry / "outblob")).report_data == NONCE


def test_copies_of_a_descriptor(machine: Emulator) -> None:
    """A second descriptor of the same open file does not make it count twice."""
    entry = new_entry(machine)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    copy = os.dup(fd)
    os.write(fd, NONCE)
    os.close(copy)
    os.close(fd)
    assert generation(entry) == 1


def test_inblob_too_long(machine: Emulator) -> None:
    """65 bytes are EFBIG, at once or bit by bit; the close then commits what was there before."""
    entry = new_entry(machine, inblob=NONCE)
    assert failure(put, entry / "inblob", bytes(65)) == "EFBIG"
    assert generation(entry) == 2
    assert failure(get, entry / "outblob") == "EINVAL"
    fd = os.open(entry / "inblob", os.O_WRONLY)
    os.write(fd, NONCE)
    assert failure(os.write, fd, b"x") == "EFBIG"
    os.close(fd)
    assert Quote.parse(get(entry / "outblob")).report_data == NONCE


@pytest.mark.parametrize("size", [1, 32, 63])
def test_inblob_too_short(machine: Emulator, size: int) -> None:
    """A short inblob is taken silently; the read of outblob says EINVAL, again and again."""
    entry = new_entry(machine, inblob=bytes(size))
    assert generation(entry) == 1
    assert [failure(get, entry / "outblob") for _ in range(2)] == ["EINVAL", "EINVAL"]
    put(entry / "inblob", NONCE)
    assert Quote.parse(get(entry / "outblob")).report_data == NONCE


def test_outblob_without_inblob(machine: Emulator) -> None:
    """Nothing was asked: EINVAL."""
    assert failure(get, new_entry(machine) / "outblob") == "EINVAL"


def test_outblob_is_a_snapshot(machine: Emulator) -> None:
    """An open outblob goes on as it began, whatever is written meanwhile."""
    entry = new_entry(machine, inblob=NONCE)
    fd = os.open(entry / "outblob", os.O_RDONLY)
    quote = os.read(fd, 16)
    put(entry / "inblob", OTHER)
    while chunk := os.read(fd, 100):
        quote += chunk
    os.close(fd)
    assert Quote.parse(quote).report_data == NONCE
    assert Quote.parse(get(entry / "outblob")).report_data == OTHER


def test_report_is_cached(machine: Emulator) -> None:
    """A second descriptor gets the same report, until the nonce is written again."""
    entry = new_entry(machine, inblob=NONCE)
    first = get(entry / "outblob")
    put(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
    assert get(entry / "outblob") == first
    put(entry / "inblob", NONCE)
    assert Quote.parse(get(entry / "outblob")).rtmrs != Quote.parse(first).rtmrs


def test_rmdir_with_open_files(machine: Emulator) -> None:
    """An entry goes while its files are open: what was read stays, the rest is ENOENT."""
    entry = new_entry(machine, inblob=NONCE)
    begun, fresh, text = (
        os.open(entry / name, os.O_RDONLY) for name in ("outblob", "outblob", "provider")
    )
    writer = os.open(entry / "inblob", os.O_WRONLY)
    quote = os.read(begun, 100)
    entry.rmdir()
    assert machine.entries() == []
    assert failure(os.read, fresh, 100) == "ENOENT"
    assert failure(os.read, text, 100) == "ENOENT"
    Quote.parse(quote + os.read(begun, 1 << 20))
    assert os.write(writer, NONCE) == 64
    again = new_entry(machine)
    for fd in (begun, fresh, text, writer):
        os.close(fd)
    assert generation(again) == 0


def test_entries_are_apart(machine: Emulator) -> None:
    """What is written into one entry does not show in another."""
    one, two = new_entry(machine, "one", NONCE), new_entry(machine, "two")
    put(two / "inblob", OTHER)
    put(two / "inblob", OTHER)
    assert (generation(one), generation(two)) == (1, 2)
    assert Quote.parse(get(one / "outblob")).report_data == NONCE
    assert Quote.parse(get(two / "outblob")).report_data == OTHER
    assert machine.entries() == ["one", "two"]


def test_many_clients(machine: Emulator) -> None:
    """Whoever asks at the same time gets an answer to its own question, and leaves nothing."""
    said: dict[int, list[bytes]] = {}

    def ask(client: int) -> None:
        nonce = bytes([client]) * 64
        for number in range(20):
            entry = new_entry(machine, f"client-{client}-{number}", nonce)
            quote = Quote.parse(get(entry / "outblob"))
            assert generation(entry) == 1
            said.setdefault(client, []).append(quote.report_data)
            entry.rmdir()

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {client: [bytes([client]) * 64] * 20 for client in range(8)}
    assert machine.entries() == []


def test_many_entries(machine: Emulator) -> None:
    """There is no small limit, and a listing has every one once."""
    names = [f"entry-{number:03}" for number in range(300)]
    for name in names:
        new_entry(machine, name)
    assert machine.entries() == names


# -- registers ---------------------------------------------------------------------------------


def test_measurement_files(machine: Emulator) -> None:
    """The names have colons; the registers of the launch can only be read."""
    folder = machine.root / MEASUREMENTS
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}
    fixed = ("mrconfigid", "mrowner", "mrownerconfig", "mrtd:sha384")
    assert modes == {
        **dict.fromkeys(fixed, "0o444"),
        **{f"rtmr{number}:sha384": "0o644" for number in range(4)},
    }
    assert all(file.stat().st_size == 48 for file in folder.iterdir())
    assert all(len(get(file)) == 48 for file in folder.iterdir())
    for name in fixed:
        assert failure(os.open, folder / name, os.O_WRONLY) == "EACCES"


@pytest.mark.parametrize("number", range(4))
def test_write_extends(machine: Emulator, number: int) -> None:
    """48 bytes extend a register, which report and quote then show; the others stay."""
    before = Quote.parse(get(new_entry(machine, "before", NONCE) / "outblob")).rtmrs
    digest = hashlib.sha384(b"event").digest()
    file = machine.root / MEASUREMENTS / f"rtmr{number}:sha384"
    fd = os.open(file, os.O_RDWR)
    assert os.read(fd, 48) == before[number]
    assert os.pwrite(fd, digest, 0) == 48
    after = list(before)
    after[number] = hashlib.sha384(before[number] + digest).digest()
    assert os.pread(fd, 100, 0) == after[number]
    os.close(fd)
    assert get(file) == after[number]
    assert list(td_report(machine, NONCE).rtmrs) == after
    assert list(Quote.parse(get(new_entry(machine, inblob=NONCE) / "outblob")).rtmrs) == after


def test_wrong_write_changes_nothing(machine: Emulator) -> None:
    """Fewer bytes, or another offset: EINVAL; behind the register: EFBIG."""
    file = machine.root / MEASUREMENTS / "rtmr3:sha384"
    fd = os.open(file, os.O_RDWR)
    assert failure(os.write, fd, bytes(47)) == "EINVAL"
    assert failure(os.pwrite, fd, bytes(48), 1) == "EINVAL"
    assert failure(os.pwrite, fd, bytes(48), 48) == "EFBIG"
    os.close(fd)
    assert get(file) == bytes(48)


def test_longer_write_is_cut(machine: Emulator) -> None:
    """Sysfs takes no more than a file's size: of 49 bytes 48 extend, and the count says so."""
    file = machine.root / MEASUREMENTS / "rtmr3:sha384"
    assert put(file, b"\x11" * 49) == 48
    assert get(file) == hashlib.sha384(bytes(48) + b"\x11" * 48).digest()


def test_parts_of_a_register(machine: Emulator) -> None:
    """A register may be read in pieces."""
    file = machine.root / MEASUREMENTS / "mrtd:sha384"
    with file.open("rb", buffering=0) as opened:
        pieces = [opened.read(20) for _ in range(4)]
    assert list(map(len, filter(None, pieces))) == [20, 20, 8]
    assert b"".join(filter(None, pieces)) == get(file) != bytes(48)


# -- the device --------------------------------------------------------------------------------


def test_get_report0(machine: Emulator) -> None:
    """The device makes a well-formed report whose fields are those of files and quote."""
    report = td_report(machine, NONCE)
    quote = Quote.parse(get(new_entry(machine, inblob=NONCE) / "outblob"))
    assert report.report_data == NONCE
    assert report.rtmrs == quote.rtmrs
    assert report.quote_body() == quote.raw[48 : 48 + 584]
    folder = machine.root / MEASUREMENTS
    assert report.rtmrs == tuple(get(folder / f"rtmr{number}:sha384") for number in range(4))
    assert report.mr_td == get(folder / "mrtd:sha384")
    assert report.mr_config_id == get(folder / "mrconfigid")
    assert report.mac not in (bytes(32), td_report(machine, OTHER).mac)


@pytest.mark.parametrize(
    "number",
    [
        0x80315403,
        0x40315403,
        0x80105404,
        0xC0105404,
        0xC0105402,
        0x80105402,
        0xC0085401,
        0xC4415401,
    ],
)
def test_other_commands(machine: Emulator, number: int) -> None:
    """A mainline driver knows one command; one byte more in its size is another."""
    fd = os.open(machine.root / "dev/tdx_guest", os.O_RDWR)
    assert failure(fcntl.ioctl, fd, number, bytearray(1089)) == "ENOTTY"
    os.close(fd)
    assert get(machine.root / MEASUREMENTS / "rtmr2:sha384") == machine.rtmr(2)


def test_device_is_no_file(machine: Emulator) -> None:
    """It can neither be read nor written, and only its owner may open it."""
    node = machine.root / "dev/tdx_guest"
    assert node.stat().st_mode & 0o777 == 0o600
    assert failure(get, node) == "EINVAL"
    assert failure(put, node, b"x") == "EINVAL"
    fd = os.open(machine.root / REPORTS, os.O_RDONLY)
    assert failure(fcntl.ioctl, fd, GET_REPORT0, bytearray(1088)) == "ENOTTY"
    os.close(fd)


# -- boot log, boot id, configuration ----------------------------------------------------------


def test_ccel_table(machine: Emulator) -> None:
    """The ACPI table is that of a TDX guest, its checksum right, its length the log's."""
    table = get(machine.root / "sys/firmware/acpi/tables/CCEL")
    assert (table[:4], len(table), table[36]) == (b"CCEL", 56, 2)
    assert struct.unpack_from("<I", table, 4) == (56,)
    assert sum(table) & 0xFF == 0
    data = machine.root / "sys/firmware/acpi/tables/data/CCEL"
    assert struct.unpack_from("<Q", table, 40) == (len(data.read_bytes()),)
    assert data.stat().st_size == 65536
    assert data.stat().st_mode & 0o777 == 0o400


def test_boot_log_explains_the_registers(machine: Emulator) -> None:
    """Right after the boot the log replays to registers and quote; RTMR3 is zero."""
    log = EventLog.parse((machine.root / "sys/firmware/acpi/tables/data/CCEL").read_bytes())
    rtmrs = td_report(machine, NONCE).rtmrs
    assert log.replay() == rtmrs
    assert rtmrs[3] == bytes(48)
    assert bytes(48) not in rtmrs[:3]


def test_boot_id(machine: Emulator) -> None:
    """It is a UUID and a newline, and the same at every look."""
    text = get(machine.root / "proc/sys/kernel/random/boot_id").decode()
    assert len(text) == 37
    assert text.endswith("\n")
    assert text.strip() == machine.boot_id


def test_attest_conf(machine: Emulator) -> None:
    """The port of the quote generation service is told where asked for."""
    lines = get(machine.root / "etc/tdx-attest.conf").decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["port = 4050"]


def test_runtime_log_is_a_real_folder(machine: Emulator) -> None:
    """`/run/log/dstack` leads out of the mount, to where files are kept."""
    folder = machine.root / "run/log/dstack"
    assert folder.is_symlink()
    (folder / "file").write_text("kept")
    assert [file.name for file in folder.resolve().iterdir()] == ["file"]
    (folder / "file").unlink()


# -- control -----------------------------------------------------------------------------------


def test_reboot(machine: Emulator) -> None:
    """A reboot resets the registers and the boot id; entries are gone, and their names free."""
    boot_id, rtmrs = machine.boot_id, td_report(machine, NONCE).rtmrs
    entry = new_entry(machine, inblob=NONCE)
    for number in range(4):
        put(machine.root / MEASUREMENTS / f"rtmr{number}:sha384", bytes(48))
    opened = os.open(entry / "outblob", os.O_RDONLY)
    machine.reboot()
    assert failure(os.read, opened, 1) == "ENOENT"
    os.close(opened)
    assert td_report(machine, NONCE).rtmrs == rtmrs
    assert machine.boot_id != boot_id
    assert machine.entries() == []
    assert generation(new_entry(machine)) == 0


@pytest.mark.parametrize("name", ["reset", "kexec"])
def test_entries_are_gone_at_once(machine: Emulator, name: str) -> None:
    """Names that go without anybody's rmdir are free, and nothing remembers what was there."""
    for _ in range(2):
        entry = new_entry(machine, inblob=NONCE)
        assert generation(entry) == 1
        put(machine.root / "attestkit" / name, b"1")
    assert machine.entries() == []
    assert failure(entry.stat) == "ENOENT"
    assert failure(get, entry / "generation") == "ENOENT"
    assert failure(entry.rmdir) == "ENOENT"


def test_kexec(machine: Emulator) -> None:
    """Another kernel is another boot id and no entries, with the registers as they were."""
    new_entry(machine)
    put(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
    boot_id, rtmrs = machine.boot_id, td_report(machine, NONCE).rtmrs
    machine.kexec()
    assert machine.boot_id != boot_id
    assert machine.entries() == []
    assert td_report(machine, NONCE).rtmrs == rtmrs


def test_client_killed(machine: Emulator) -> None:
    """A client that is killed in the middle leaves its entry, and an emulator that works."""
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
    assert Quote.parse(get(new_entry(machine, inblob=NONCE) / "outblob")).report_data == NONCE
    (machine.root / REPORTS / "left").rmdir()
