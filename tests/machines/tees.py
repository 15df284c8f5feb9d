"""TEEs without a kernel: a TD on two files, an SNP guest, and a third-party guest agent.

Like the real ones, they report that they are hardware and that their calls block.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from attestkit.backends.base import SnpEvidence
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.boot_log import boot_log, boot_records, replay_records
from attestkit.backends.simulator.images.os_image import simulated_image
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.errors import BackendError, UnsupportedError, UsageError
from attestkit.event_log import Event, EventLog
from attestkit.event_log.journal import LOCK, Journal, RegisterAccess, RuntimeLog
from attestkit.event_log.journal_files import OsFolder
from attestkit.event_log.runtime_events import runtime_event
from attestkit.keys import AppKeys, KeyDeriver, LocalKeys
from attestkit.quote import Quote

Change: TypeAlias = Callable[[bytes], bytes]
ChangeAnswer: TypeAlias = Callable[[dict[str, str]], dict[str, str]]

SEED: Final = bytes(range(32))
PKI: Final = SimulatedPki(SEED)
CHIP: Final = SimulatedChip(PKI.derive)
ENCLAVE: Final = QuotingEnclave(PKI)
FIRMWARE_LOG: Final = boot_log(simulated_image())
FIRMWARE: Final = replay_records(boot_records(simulated_image()))  # RTMR0 to RTMR2


class Machine:
    """The hardware of a TD in `folder`: RTMR3 and boot id persist across processes."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self._register = folder / "rtmr3"
        self._boot_id = folder / "boot_id"
        if not self._boot_id.exists():
            self.boot("boot-1")

    def boot(self, boot_id: str, register: bytes = bytes(48)) -> None:
        """Boot; after a kexec, pass the register's old value."""
        self._put(self._register, register)
        self._put(self._boot_id, boot_id.encode())

    @property
    def boot_id(self) -> str:
        """The boot id, which changes with every boot."""
        return self._boot_id.read_text()

    def read(self) -> bytes:
        """Return RTMR3."""
        return self._register.read_bytes()

    def extend(self, digest: bytes) -> None:
        """Extend RTMR3."""
        self._put(self._register, hashlib.sha384(self.read() + digest).digest())

    def _put(self, path: Path, data: bytes) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(path)


class FakeTd:
    """A TD on a machine, with the journal of the hardware backends; a quote may take time."""

    name = "fake_td"
    simulated = False
    blocking = True

    def __init__(self, machine: Machine, *, seconds: float = 0) -> None:
        self.machine = machine
        self.seconds = seconds  # for a quote
        self.firmware_log = FIRMWARE_LOG
        self.threads: set[int] = set()  # that called it
        self.closed = 0
        self._journal: Journal | None = None

    @classmethod
    def probe(cls) -> None:
        """Accept: the TD is available."""

    def _record_thread(self) -> None:
        self.threads.add(threading.get_ident())

    def get_quote(self, report_data: bytes) -> bytes:
        """Sign the registers."""
        self._record_thread()
        if len(report_data) != 64:
            raise UsageError("report_data: must be 64 bytes", reason="wrong_size")
        time.sleep(self.seconds)
        zero, one, two = FIRMWARE
        body = TdBody(
            mrtd=simulated_image().mrtd,
            rtmr0=zero,
            rtmr1=one,
            rtmr2=two,
            rtmr3=self.machine.read(),
            report_data=report_data,
        )
        return ENCLAVE.quote(body.td10())

    def read_event_log(self) -> bytes:
        """Return the firmware's log."""
        self._record_thread()
        return self.firmware_log

    def read_rtmr(self, register: int) -> bytes:
        """Read a register."""
        self._record_thread()
        if register not in (0, 1, 2, 3):
            raise UsageError(f"register: must be 0 to 3: {register}", reason="out_of_range")
        return (*FIRMWARE, self.machine.read())[register]

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR3."""
        self._record_thread()
        if register != 3 or len(digest) != 48:
            raise UsageError("digest: must be 48 bytes", reason="wrong_size")
        self.machine.extend(digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events, stored beside the machine's files."""
        self._record_thread()
        if self._journal is None:
            access = RegisterAccess(self.machine.read, self.machine.extend)
            folder = OsFolder(self.machine.log, LOCK)
            boot_id = self.machine.boot_id
            self._journal = Journal(folder, access, boot_id=boot_id, version=version)
        return self._journal

    def close(self) -> None:
        """Close the journal."""
        self.closed += 1
        if self._journal is not None:
            self._journal.close()


class FakeSnp:
    """An SNP guest on the simulated chip."""

    name = "fake_snp"
    simulated = False
    blocking = True

    def __init__(self, *, host_data: bytes = bytes(32), table: bytes | None = None) -> None:
        self.host_data = host_data
        self.table = CHIP.certificates if table is None else table
        self.asked = 0
        self.change: Change = bytes  # applied to each report
        self.refusal: BackendError | None = None

    @classmethod
    def probe(cls) -> None:
        """Accept: the guest is available."""

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a report, and the host's certificate table."""
        if len(report_data) != 64:
            raise UsageError("report_data: must be 64 bytes", reason="wrong_size")
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        report = CHIP.report(report_data, host_data=self.host_data)
        return SnpEvidence(self.change(report), self.table)

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a report."""
        return self.get_snp_report(report_data).report

    def read_event_log(self) -> bytes:
        """Return no log: SEV-SNP has none."""
        return b""

    def close(self) -> None:
        """Do nothing: no resource is open."""


class FakeAgent:
    """A client's view of a guest agent in front of a simulated TD."""

    name = "fake_agent"
    simulated = True
    blocking = True

    def __init__(self) -> None:
        self.td = Simulator(seed=SEED)
        self.hidden = False
        self.deaf = False  # accepts events and drops them
        self.change: ChangeAnswer = dict
        self.asked = 0

    @classmethod
    def probe(cls) -> None:
        """Accept: the agent is available."""

    @property
    def keys(self) -> KeyDeriver:
        """The agent's keys."""
        return LocalKeys(AppKeys.from_seed(SEED))

    def _log(self) -> str:
        events = self.td.open_journal().events()
        return EventLog.from_ccel(FIRMWARE_LOG).with_runtime(events).trimmed().to_json()

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the agent's response to GetQuote."""
        self.asked += 1
        quote = self.td.get_quote(report_data)
        answer = {
            "quote": quote.hex(),
            "event_log": self._log(),
            "report_data": report_data.hex(),
            "vm_config": self.td.vm_config,
        }
        return json.dumps(self.change(answer))

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the quote only."""
        return Quote.parse(self.td.get_quote(report_data)).raw

    def read_event_log(self) -> bytes:
        """Return the log in the encoding of the agent's responses."""
        return self._log().encode()

    def emit_event(self, name: str, payload: bytes) -> None:
        """Emit an event on the TD, unless `deaf`."""
        if not self.deaf:
            self.td.open_journal().emit(self.event(name, payload))

    def event(self, name: str, payload: bytes) -> Event:
        """Return an event in the TD's version."""
        return runtime_event(name, payload, self.td.open_journal().version)

    def read_app_compose(self) -> bytes:
        """Return the app-compose file."""
        if self.hidden:
            raise UnsupportedError("app-compose: hidden by the agent", reason="no_app")
        return self.td.app_compose.raw

    def close(self) -> None:
        """Close the TD."""
        self.td.close()
