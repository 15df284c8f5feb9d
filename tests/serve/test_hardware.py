"""The server on hardware: a TD whose app it measures, an SNP guest, and files of the host."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import BackendError, QuoteUnavailableError
from attestkit.event_log import EventLog
from attestkit.keys import AppKeys
from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from tests.attester.host_files import app_compose, sys_config
from tests.serve.asgi import Client
from tests.serve.guests import NOW
from tests.tees import FakeSnp, FakeTd, Machine

KEYS = AppKeys.from_seed(bytes(32))
DOCUMENT = json.dumps({"app_id": "11" * 20, "compose_hash": "22" * 32, "key_provider": "none"})
VM_CONFIG = json.dumps({"os_image_hash": "ab" * 32})

MakeServer: TypeAlias = Callable[[Backend], Guest]


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        """Return it."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Seconds since 1970."""
    return Clock()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder that the host shares, with an app and a machine."""
    app_compose(tmp_path, public_tcbinfo=True)
    sys_config(tmp_path, VM_CONFIG, mr_config=DOCUMENT)
    return tmp_path


@pytest.fixture
def make(shared: Path, clock: Clock) -> Iterator[MakeServer]:
    """Make guests on a backend, with the host's files and app keys."""
    with contextlib.ExitStack() as stack:

        def make(backend: Backend) -> Guest:
            tee = stack.enter_context(Attester(backend, HostShared(shared)))
            guest = Guest(
                tee,
                app_compose=tee.app_compose,
                app_keys=KEYS,
                vm_config=tee.vm_config,
                now=clock,
                random=lambda size: bytes(range(1, size + 1)),
            )
            stack.callback(guest.close)
            return guest

        yield make


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A TD's hardware."""
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(folder)


def clients(guest: Guest, loop: asyncio.AbstractEventLoop) -> tuple[Client, Client, Client]:
    """Return clients of dstack.sock, tappd.sock and of the external listener."""
    makers = (listener_apps.dstack_app, listener_apps.tappd_app, listener_apps.external_app)
    dstack, tappd, external = (Client(make(guest), loop) for make in makers)
    return dstack, tappd, external


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture
def snp() -> FakeSnp:
    """An SNP guest that was launched with the document."""
    return FakeSnp(host_data=host_data(DOCUMENT))


@pytest.fixture
def on_snp(
    make: MakeServer, snp: FakeSnp, loop: asyncio.AbstractEventLoop
) -> tuple[Client, Client, Client]:
    """Clients of a server on it."""
    return clients(make(snp), loop)


def test_a_quote_of_snp_is_its_evidence(on_snp: tuple[Client, Client, Client]) -> None:
    """GetQuote answers with an empty quote and log, and with `attestation`."""
    dstack, _, _ = on_snp
    answer = dstack.post("/GetQuote", {"report_data": "1234"}).json()
    assert list(answer) == ["quote", "event_log", "report_data", "vm_config", "attestation"]
    assert (answer["quote"], answer["event_log"]) == ("", "")
    assert answer["report_data"] == "1234" + "00" * 62
    assert answer["vm_config"] == VM_CONFIG
    evidence = Attestation.from_agent_response(answer)
    assert evidence.platform == "dstack-amd-sev-snp"
    assert evidence.snp_report is not None
    assert evidence.snp_report.report_data.hex() == answer["report_data"]
    same = dstack.post("/Attest", {"report_data": "1234"}).json()["attestation"]
    assert same == answer["attestation"]


def test_info_on_snp(on_snp: tuple[Client, Client, Client]) -> None:
    """Who the app is stands in the document of the launch; there are no registers, no events."""
    dstack, tappd, external = on_snp
    info = dstack.get("/Info").json()
    assert info["app_id"] == "11" * 20
    assert info["compose_hash"] == "22" * 32
    assert info["os_image_hash"] == "ab" * 32
    assert "CERTIFICATE" in info["app_cert"]
    tcb_info = json.loads(info["tcb_info"])
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        assert tcb_info[name] is None
    assert tcb_info["event_log"] == []
    assert tappd.get("/prpc/Info").json() == external.get("/prpc/Info").json() == info
    assert external.get("/").status == 200


def test_info_without_a_document_says_so(
    make: MakeServer, shared: Path, loop: asyncio.AbstractEventLoop
) -> None:
    """Nobody knows who the app is, so nobody is told something."""
    sys_config(shared, VM_CONFIG)
    dstack, _, _ = clients(make(FakeSnp()), loop)
    response = dstack.get("/Info")
    assert response.status == 500
    assert "mr_config" in response.error()
    assert dstack.post("/GetQuote").status == 200


@pytest.mark.parametrize("method", ["TdxQuote", "RawQuote"])
def test_tdx_quotes_on_snp_are_an_error_that_says_so(
    on_snp: tuple[Client, Client, Client], snp: FakeSnp, method: str
) -> None:
    """The older methods have no place for other evidence."""
    _, tappd, _ = on_snp
    response = tappd.post(f"/prpc/Tappd.{method}", {"report_data": "00" * 64})
    assert response.status == 500
    for word in ("no TDX quote", "Attest", "GetQuote"):
        assert word in response.error()
    assert tappd.post("/prpc/TdxQuote", {"hash_algorithm": "md5"}).status == 400
    assert snp.asked == 0


def test_what_else_works_on_snp(on_snp: tuple[Client, Client, Client]) -> None:
    """Keys and certificates do, events do not."""
    dstack, _, _ = on_snp
    assert dstack.post("/GetKey", {"path": "a"}).status == 200
    chain = dstack.post("/GetTlsKey", {"usage_ra_tls": True}).json()["certificate_chain"]
    assert len(chain) == 2
    response = dstack.post("/EmitEvent", {"event": "a", "payload": ""})
    assert response.status == 500
    assert "registers" in response.error()
    assert dstack.post("/GetQuote", {"report_data": "00" * 65}).status == 400


def test_evidence_for_the_key_is_kept_for_good_on_snp(
    on_snp: tuple[Client, Client, Client], snp: FakeSnp, clock: Clock
) -> None:
    """Nothing changes there, so strangers make the device work once per algorithm."""
    _, _, external = on_snp
    names = ("ed25519", "secp256k1", "k256")
    for _ in range(3):
        for name in names:
            answer = external.post("/prpc/GetAttestationForAppKey", {"algorithm": name}).json()
            assert Attestation.from_agent_response(answer).report_data.startswith(b"dip1::")
        clock.now += 1000
    assert snp.asked == 2


# -- a device that fails -----------------------------------------------------------------------


def test_strangers_cannot_work_a_device_that_fails(
    on_snp: tuple[Client, Client, Client], snp: FakeSnp, clock: Clock
) -> None:
    """A failure is told again for five seconds, and then there is another try."""
    dstack, _, external = on_snp
    snp.refusal = QuoteUnavailableError("the firmware refused")

    def ask() -> list[str]:
        asked = {"algorithm": "ed25519"}
        responses = (
            external.post("/prpc/GetAttestationForAppKey", asked),
            external.get("/prpc/Info"),
            external.get("/"),
        )
        assert {response.status for response in responses} == {500}
        return [response.error() for response in responses]

    first = ask()
    assert all("the firmware refused" in error for error in first)
    tries = snp.asked
    for _ in range(20):
        assert ask() == first
    assert snp.asked == tries
    assert dstack.post("/GetQuote").status == 500
    assert snp.asked == tries + 1  # the app itself may always ask
    clock.now += 4.9
    ask()
    assert snp.asked == tries + 1
    clock.now += 0.2
    snp.refusal = None
    assert external.get("/prpc/Info").status == 200
    assert external.post("/prpc/GetAttestationForAppKey", {"algorithm": "ed25519"}).status == 200


def test_a_clock_that_was_set_back_is_no_trap(
    on_snp: tuple[Client, Client, Client], snp: FakeSnp, clock: Clock
) -> None:
    """Five seconds are not until the clock has caught up."""
    _, _, external = on_snp
    snp.refusal = BackendError("no")
    assert external.get("/prpc/Info").status == 500
    snp.refusal = None
    clock.now -= 10_000
    assert external.get("/prpc/Info").status == 200


def test_what_strangers_ask_wrongly_is_not_kept(
    make: MakeServer, snp: FakeSnp, loop: asyncio.AbstractEventLoop
) -> None:
    """Names that they make up take no memory."""
    guest = make(snp)
    external = Client(listener_apps.external_app(guest), loop)
    for number in range(50):
        name = f"algorithm-{number}"
        assert external.post("/prpc/GetAttestationForAppKey", {"algorithm": name}).status == 400
    assert guest._kept == {}
    assert guest._failed == {}


# -- a TD --------------------------------------------------------------------------------------


def calls(dstack: Client, tappd: Client, external: Client) -> Iterator[Any]:
    """Call everything that may ask the device."""
    for method in ("GetTlsKey", "GetQuote", "Attest", "Info"):
        yield dstack.post(f"/{method}")
    yield dstack.post("/EmitEvent", {"event": "a", "payload": "00"})
    yield tappd.post("/prpc/DeriveKey", {"path": "a"})
    yield tappd.post("/prpc/TdxQuote")
    yield tappd.post("/prpc/RawQuote", {"report_data": "00" * 64})
    yield tappd.post("/prpc/Info")
    yield external.post("/prpc/Info")
    yield external.post("/prpc/GetAttestationForAppKey", {"algorithm": "ed25519"})
    yield external.get("/")


def test_the_event_loop_never_waits_for_the_device(
    make: MakeServer, machine: Machine, loop: asyncio.AbstractEventLoop
) -> None:
    """Whatever is asked of the TEE is asked in the thread that is for that."""
    td = FakeTd(machine)
    guest = make(td)
    td.threads.clear()
    for response in calls(*clients(guest, loop)):
        assert response.status == 200, response.body
    assert len(td.threads) == 1
    assert threading.get_ident() not in td.threads


def test_the_machines_files_are_in_evidence(
    make: MakeServer, machine: Machine, loop: asyncio.AbstractEventLoop
) -> None:
    """GetQuote gives the configuration back, and evidence has it inside."""
    dstack, _, _ = clients(make(FakeTd(machine)), loop)
    answer = dstack.post("/GetQuote").json()
    assert answer["vm_config"] == VM_CONFIG
    assert "attestation" not in answer
    quote = Quote.parse(bytes.fromhex(answer["quote"]))
    EventLog.from_json(answer["event_log"]).check(quote)
    evidence = Attestation.from_bytes(bytes.fromhex(dstack.post("/Attest").json()["attestation"]))
    assert evidence.config == VM_CONFIG
    assert dstack.get("/Info").json()["os_image_hash"] == "ab" * 32


def test_an_event_that_evidence_has_no_room_for_is_a_400(
    make: MakeServer, machine: Machine, loop: asyncio.AbstractEventLoop
) -> None:
    """Nothing is extended."""
    dstack, _, _ = clients(make(FakeTd(machine)), loop)
    # A body of 10 MiB has 5 MiB of payload, which are in evidence twice.
    response = dstack.post("/EmitEvent", {"event": "a", "payload": "00" * ((5 << 20) - 100)})
    assert response.status == 400
    assert "bytes of evidence" in response.error()
    assert machine.read() == bytes(48)
