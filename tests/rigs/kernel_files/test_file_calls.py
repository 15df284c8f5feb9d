"""The emulator's files behave like the kernel's, without attestkit's backends.

The kernel's behaviour was observed on real kernels, or read in the source.
"""

import hashlib
import os
import subprocess
import sys
import threading
import time

import pytest

from attestkit.quote import Quote
from tests.clients import python_dcap_qvl as dcap
from tests.rigs.emulator import PATIENCE, REPORTS, Emulator, requires_fuse
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

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse]


# -- report entries ----------------------------------------------------------------------------


def test_fs_quote_verifies(machine: Emulator) -> None:
    """dcap-qvl accepts it under the emulator's root."""
    quote = read_once(new_entry(machine, inblob=NONCE) / "outblob")
    now = int(time.time())
    verdict = dcap.verify_with_dcap_qvl(quote, machine.collateral(), machine.trust_anchor, now)
    assert (verdict.status, verdict.text) == ("UpToDate", "")
    assert dcap.verify_with_dcap_qvl(quote, machine.collateral(), None, now).status == dcap.REJECT
    assert Quote.parse(quote).report_data == NONCE


def test_fs_inblob_write_counts_at_last_close(machine: Emulator) -> None:
    """Several writes are joined, and a duplicate of the descriptor adds none."""
    entry = new_entry(machine)
    fd = os.open(entry / "inblob", os.O_WRONLY)
    copy = os.dup(fd)
    for at in range(0, 64, 16):
        assert os.write(fd, NONCE[at : at + 16]) == 16
    assert read_generation(entry) == 0
    os.close(copy)
    os.close(fd)
    assert read_generation(entry) == 1
    assert Quote.parse(read_once(entry / "outblob")).report_data == NONCE


def test_fs_report_is_cached_until_the_next_write(machine: Emulator) -> None:
    """A second descriptor reads the same report."""
    entry = new_entry(machine, inblob=NONCE)
    first = read_once(entry / "outblob")
    write_once(machine.root / MEASUREMENTS / "rtmr3:sha384", bytes(48))
    assert read_once(entry / "outblob") == first
    write_once(entry / "inblob", NONCE)
    assert Quote.parse(read_once(entry / "outblob")).rtmrs != Quote.parse(first).rtmrs


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
