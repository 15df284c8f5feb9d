"""The server on hardware: a TD, an SNP guest, and the host's files."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import BackendError, QuoteUnavailableError, UsageError
from attestkit.event_log import EventLog
from attestkit.keys import AppKeys
from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from attestkit.verifier import Verifier
from tests.attester.host_files import write_app_compose, write_sys_config
from tests.machines.tees import FakeSnp, FakeTd, Machine
from tests.raising import raises
from tests.serve.asgi import Client
from tests.serve.guests import NOW, GuestClient, MakeGuest

KEYS = AppKeys.from_seed(bytes(32))
DOCUMENT = json.dumps({"app_id": "11" * 20, "compose_hash": "22" * 32, "key_provider": "none"})
VM_CONFIG = json.dumps({"os_image_hash": "ab" * 32})

MakeServer: TypeAlias = Callable[[Backend], Guest]


class ManualClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock in seconds since 1970."""
    return ManualClock()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return the folder that the host shares, with app and machine."""
    write_app_compose(tmp_path, public_tcbinfo=True)
    write_sys_config(tmp_path, VM_CONFIG, mr_config=DOCUMENT)
    return tmp_path


@pytest.fixture
def make(shared: Path, clock: ManualClock) -> Iterator[MakeServer]:
    """Return a factory of guests on a backend, with the host's files and app keys."""
    with contextlib.ExitStack() as stack:

        def make(backend: Backend) -> Guest:
            tee = stack.enter_context(Attester(backend, HostShared(shared)))
            guest = Guest(
                tee,
                app_compose=tee.app_compose,
                app_keys=KEYS,
                now=clock,
                random=lambda size: bytes(range(1, size + 1)),
            )
            stack.callback(guest.close)
            return guest

        yield make


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a TD's hardware."""
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(folder)


class Clients(NamedTuple):
    """Clients of dstack.sock, tappd.sock and the external listener."""

    dstack: Client
    tappd: Client
    external: Client


def create_clients(guest: Guest, loop: asyncio.AbstractEventLoop) -> Clients:
    """Return clients of a guest."""
    makers = (listener_apps.dstack_app, listener_apps.tappd_app, listener_apps.external_app)
    return Clients(*(Client(make(guest), loop) for make in makers))


# -- SEV-SNP -----------------------------------------------------------------------------------


@pytest.fixture
def snp() -> FakeSnp:
    """Return an SNP guest that was launched with the document."""
    return FakeSnp(host_data=host_data(DOCUMENT))


@pytest.fixture
def on_snp(make: MakeServer, snp: FakeSnp, loop: asyncio.AbstractEventLoop) -> Clients:
    """Return clients of a server on the SNP guest."""
    return create_clients(make(snp), loop)


@pytest.mark.parametrize(
    ("listener", "path"),
    [
        *(("dstack", path) for path in ("/GetQuote", "/v0/GetQuote")),
        *(("tappd", f"/prpc/{name}") for name in ("TdxQuote", "Tappd.RawQuote")),
        *(
            ("external", f"/prpc/{name}GetAttestationForAppKey")
            for name in ("", "Worker.", "v0/", "v0/Worker.")
        ),
    ],
)
def test_snp_quote_methods_are_refused(
    on_snp: Clients, snp: FakeSnp, listener: str, path: str
) -> None:
    """Methods that return a TDX quote name Attest, and never return an empty quote."""
    message = {"report_data": "00" * 64, "algorithm": "ed25519"}
    response = getattr(on_snp, listener).post(path, message)
    assert response.status == 400
    assert response.error() == "GetQuote is Intel TDX only, use Attest on this platform"
    assert snp.asked == 0


def test_snp_info_describes_app(on_snp: Clients) -> None:
    """Info has the launch document's identity, without registers and events."""
    info = on_snp.dstack.get("/Info").json()
    assert info["app_id"] == "11" * 20
    assert info["compose_hash"] == "22" * 32
    assert info["os_image_hash"] == "ab" * 32
    assert "CERTIFICATE" in info["app_cert"]
    tcb_info = json.loads(info["tcb_info"])
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        assert tcb_info[name] is None
    assert tcb_info["event_log"] == []
    assert on_snp.tappd.get("/prpc/Info").json() == on_snp.external.get("/prpc/Info").json() == info
    assert on_snp.external.get("/").status == 200


def test_snp_info_without_document_fails(
    make: MakeServer, shared: Path, loop: asyncio.AbstractEventLoop
) -> None:
    """Without the launch document the identity is unknown; quotes still work."""
    write_sys_config(shared, VM_CONFIG)
    dstack = create_clients(make(FakeSnp()), loop).dstack
    response = dstack.get("/Info")
    assert response.status == 500
    assert "mr_config" in response.error()
    assert dstack.post("/Attest").status == 200


def test_snp_keys_work_and_events_fail(on_snp: Clients) -> None:
    """Keys and certificates work; events need registers."""
    assert on_snp.dstack.post("/GetKey", {"path": "a"}).status == 200
    chain = on_snp.dstack.post("/GetTlsKey", {"usage_ra_tls": True}).json()["certificate_chain"]
    assert len(chain) == 2
    response = on_snp.dstack.post("/EmitEvent", {"event": "a", "payload": ""})
    assert response.status == 500
    assert "registers" in response.error()
    assert on_snp.dstack.post("/GetQuote", {"report_data": "00" * 65}).status == 400


def test_simulated_snp_evidence_verifies(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """The evidence verifies with report data, app and certificates; a PCCS is refused."""
    guest = make_guest(SnpSimulator, {"public_tcbinfo": True})
    answer = guest_client("dstack", guest).post("/Attest", {"report_data": "12" * 64}).json()
    simulator = guest.attester.backend
    assert isinstance(simulator, SnpSimulator)
    result = Verifier(trust_anchor=simulator.trust_anchor).verify(
        bytes.fromhex(answer["attestation"]), report_data=b"\x12" * 64, now=NOW
    )
    assert result.simulated
    assert result.app_info is not None
    assert result.app_info.compose_hash == guest.attester.app_compose.compose_hash
    with raises(UsageError, "not_applicable"):
        listener_apps.collateral_app(guest)


# -- a device that fails -----------------------------------------------------------------------


def test_device_failure_is_cached_for_external_clients(
    on_snp: Clients, snp: FakeSnp, clock: ManualClock
) -> None:
    """A failure is cached for five seconds on the external listener only."""
    snp.refusal = QuoteUnavailableError("the firmware refused", reason="quoting_service")

    def collect_errors() -> list[str]:
        responses = (on_snp.external.get("/prpc/Info"), on_snp.external.get("/"))
        assert {response.status for response in responses} == {500}
        return [response.error() for response in responses]

    first = collect_errors()
    assert all("the firmware refused" in error for error in first)
    tries = snp.asked
    for _ in range(20):
        assert collect_errors() == first
    assert snp.asked == tries
    assert on_snp.dstack.post("/Attest").status == 500
    assert snp.asked == tries + 1  # dstack.sock is not limited
    clock.now += 4.9
    collect_errors()
    assert snp.asked == tries + 1
    clock.now += 0.2
    snp.refusal = None
    assert on_snp.external.get("/prpc/Info").status == 200


def test_failure_cache_survives_clock_set_back(
    on_snp: Clients, snp: FakeSnp, clock: ManualClock
) -> None:
    """A clock set back does not extend the cache."""
    snp.refusal = BackendError("no", reason="io_error")
    assert on_snp.external.get("/prpc/Info").status == 500
    snp.refusal = None
    clock.now -= 10_000
    assert on_snp.external.get("/prpc/Info").status == 200


def test_invalid_requests_are_not_cached(
    make: MakeServer, snp: FakeSnp, loop: asyncio.AbstractEventLoop
) -> None:
    """Unknown algorithm names use no memory."""
    guest = make(snp)
    external = Client(listener_apps.external_app(guest), loop)
    for number in range(50):
        name = f"algorithm-{number}"
        assert external.post("/prpc/GetAttestationForAppKey", {"algorithm": name}).status == 400
    assert guest._cache == {}
    assert guest._failures == {}


# -- a TD --------------------------------------------------------------------------------------


def call_device_methods(dstack: Client, tappd: Client, external: Client) -> Iterator[Any]:
    """Call every method that uses the device."""
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


def test_event_loop_never_calls_device(
    make: MakeServer, machine: Machine, loop: asyncio.AbstractEventLoop
) -> None:
    """All device calls run in the device thread."""
    td = FakeTd(machine)
    guest = make(td)
    td.threads.clear()
    for response in call_device_methods(*create_clients(guest, loop)):
        assert response.status == 200, response.body
    assert len(td.threads) == 1
    assert threading.get_ident() not in td.threads


@pytest.fixture
def on_td(make: MakeServer, machine: Machine, loop: asyncio.AbstractEventLoop) -> Clients:
    """Return clients of a server on the TD."""
    return create_clients(make(FakeTd(machine)), loop)


def test_host_files_are_in_evidence(on_td: Clients) -> None:
    """vm_config is in GetQuote's response and in the evidence."""
    dstack = on_td.dstack
    response = dstack.post("/GetQuote").json()
    assert response["vm_config"] == VM_CONFIG
    assert list(response) == ["quote", "event_log", "report_data", "vm_config"]
    quote = Quote.parse(bytes.fromhex(response["quote"]))
    EventLog.from_json(response["event_log"]).check(quote)
    evidence = Attestation.from_bytes(bytes.fromhex(dstack.post("/Attest").json()["attestation"]))
    assert evidence.config == VM_CONFIG
    assert dstack.get("/Info").json()["os_image_hash"] == "ab" * 32


def test_oversized_event_is_400(on_td: Clients, machine: Machine) -> None:
    """An event too large for evidence is refused, and nothing is extended."""
    # A body of 10 MiB has 5 MiB of payload, which evidence contains twice.
    response = on_td.dstack.post("/EmitEvent", {"event": "a", "payload": "00" * ((5 << 20) - 100)})
    assert response.status == 400
    assert "bytes of evidence" in response.error()
    assert machine.read() == bytes(48)
