"""Additions of a platform to a TPM (virtual indices, vendor commands), on model and proxy."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cbor2
import pytest

from attestkit.attestation.nitro_tpm import DocumentRequest
from attestkit.backends.nitro_tpm import request_document
from attestkit.backends.simulator.software_tpm import TpmHooks, TpmModel, VirtualIndex
from attestkit.backends.simulator.software_tpm.in_process import InProcessTransport
from attestkit.backends.simulator.software_tpm.swtpm import SwtpmProcess, TpmProxy
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.hmac_session import SessionCommand, hmac_session
from attestkit.errors import BackendError, QuoteUnavailableError
from attestkit.tpm import PcrSelection, TpmsAttest
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.handles import ENDORSEMENT
from tests.backends.simulator.software_tpm.command_frames import (
    BANKS,
    INDEX,
    OWNER,
    SEED,
    authorized,
    code_of,
    create,
    ecc,
    frame,
    handle_of,
    handles,
    nv_define,
    nv_public,
    nv_read,
    nv_write,
)
from tests.backends.simulator.software_tpm.swtpm_cases import capability
from tests.backends.tpm.templates import ECC_AK, EK, EVERY_PCR, RSA_AK, SHA256
from tests.machines.software_tpm import SWTPM
from tests.raising import raises

AWS_INDEX = 0x01500000
PASSWORD = os.urandom(63) + b"x"
HCL_INDEX = INDEX


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Platform:
    """A platform with a virtual index and a vendor command."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reports = 0
        self.requests: list[bytes] = []
        self.tpm: TpmModel | TpmProxy
        self.hooks = TpmHooks(
            virtual_indices={HCL_INDEX: VirtualIndex(self.report, clock=self.clock)},
            vendor_commands={NITRO_ATTEST: self.attest},
        )

    def report(self) -> bytes:
        """Return a report with a number."""
        self.reports += 1
        return b"HCLA report %d" % self.reports

    def attest(self, request: bytes) -> bytes:
        """Return a PCR and what was requested."""
        self.requests.append(request)
        return self.tpm.read_pcr("sha384", 8) + request[:7]


@pytest.fixture(params=["model", "proxy"])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Platform]:
    """Return a platform on the model, and on swtpm behind the proxy."""
    found = Platform()
    if request.param == "model":
        found.tpm = TpmModel(SEED, banks=BANKS, hooks=found.hooks)
        found.tpm.provision_index(HCL_INDEX, bytes(2600), 0x00020002)
        yield found
        return
    if SWTPM is None:
        pytest.skip("swtpm is not installed")
    with closing(SwtpmProcess(tmp_path)) as process:
        found.tpm = TpmProxy(process, SEED, hooks=found.hooks)
        found.tpm.provision_index(HCL_INDEX, bytes(2600), 0x00020002)
        yield found


@pytest.fixture
def client(platform: Platform) -> TpmClient:
    """Return a client of the platform's TPM."""
    return TpmClient(InProcessTransport(platform.tpm), seconds=60, key_seconds=60)


def test_virtual_index_is_refreshed(platform: Platform, client: TpmClient) -> None:
    """The content is computed at a read of offset 0, at most every 2 seconds."""
    first = client.read_nv_index(HCL_INDEX)
    assert first == b"HCLA report 1".ljust(2600, b"\0")
    platform.clock.now = 1.9
    assert client.read_nv_index(HCL_INDEX) == first
    platform.clock.now = 2.0
    assert client.nv_read(HCL_INDEX, 1, offset=12) == b"1"
    assert client.nv_read(HCL_INDEX, 1, offset=0) == b"H"
    assert client.nv_read(HCL_INDEX, 1, offset=12) == b"2"
    assert platform.reports == 2


def test_unreadable_virtual_index_is_not_computed(platform: Platform, client: TpmClient) -> None:
    """A read that is not authorized computes nothing."""
    with raises(TpmError, "tpm_error", part="0x12f"):
        client.nv_read(HCL_INDEX, 1, authority=HCL_INDEX)
    assert platform.reports == 0


def attest(client: TpmClient, request: bytes, secret: bytes = PASSWORD) -> bytes:
    """Run the vendor command as AWS's tool does; return the index."""
    client.nv_define(AWS_INDEX, 8192, 0x00040004, secret=PASSWORD, name_alg="sha512")
    try:
        client.nv_write(AWS_INDEX, request, authority=AWS_INDEX, secret=PASSWORD)
        name = client.nv_read_public(AWS_INDEX).name
        with (
            client.primary_key(ENDORSEMENT, EK) as key,
            hmac_session(client, key) as session,
        ):
            session.run(SessionCommand(NITRO_ATTEST, (AWS_INDEX,) * 2, (name, name)), secret)
        return client.nv_read(AWS_INDEX, 8192, authority=AWS_INDEX, secret=PASSWORD)
    finally:
        client.nv_undefine(AWS_INDEX)


def test_vendor_command_answers_through_the_index(platform: Platform, client: TpmClient) -> None:
    """The request is the index's content; the answer overwrites its beginning."""
    client.pcr_extend(8, {"sha384": bytes(48)})
    for _ in range(2):
        answer = attest(client, b"request" * 200)
        assert platform.requests.pop() == (b"request" * 200).ljust(8192, b"\xff")
        value = client.pcr_read((PcrSelection("sha384", (8,)),))[("sha384", 8)]
        assert answer[:55] == value + b"request"
        assert answer[55:1400] == (b"request" * 200)[55:]
    assert client.list_handles(0x80000000, 0x80FFFFFF) == ()
    assert client.list_handles(0x02000000, 0x02FFFFFF) == ()
    assert client.list_handles(0x01000000, 0x01FFFFFF) == (HCL_INDEX,)


def test_nitro_client_gets_its_document(platform: Platform, client: TpmClient) -> None:
    """The NitroTPM backend's client gets the document, or the hypervisor's error."""
    answers = [{"Attestation": {"document": b"document" * 600}}, {"Error": "InternalError"}]

    def sign(request: bytes) -> bytes:
        platform.requests.append(request)
        return cbor2.dumps(answers.pop(0))

    platform.hooks.vendor_commands[NITRO_ATTEST] = sign
    request = DocumentRequest(user_data=b"\1" * 64)
    assert request_document(client, request) == b"document" * 600
    assert platform.requests[0].startswith(request.encode())
    with raises(QuoteUnavailableError, "request_failed"):
        request_document(client, request)


def test_vendor_command_needs_the_password(platform: Platform, client: TpmClient) -> None:
    """The session's HMAC is checked before the command runs."""
    with raises(TpmError, "tpm_error", part="0x98e"):
        attest(client, b"request", b"wrong")
    assert platform.requests == []


def test_vendor_command_is_listed(platform: Platform, client: TpmClient) -> None:
    """GetCapability lists it after the others, whatever the page; removed hooks are not."""
    assert NITRO_ATTEST in client.list_commands()
    pages = platform.tpm.execute(capability(2, 0x20000000, 1))
    assert pages[10:] == bytes.fromhex("00 00000002 00000001 24400001")
    first = platform.tpm.execute(capability(2, 0, 3))
    assert first[10] == 1
    assert int.from_bytes(first[15:19], "big") == 3
    platform.hooks.vendor_commands.clear()
    assert NITRO_ATTEST not in client.list_commands()
    command = frame(NITRO_ATTEST, handles(HCL_INDEX, HCL_INDEX))
    assert code_of(platform.tpm.execute(command)) == 0x143


def test_vendor_command_is_checked(platform: Platform) -> None:
    """Handles, authorization and content are checked as of any command."""
    execute = platform.tpm.execute
    assert code_of(execute(frame(NITRO_ATTEST))) == 0x19A
    assert code_of(execute(frame(NITRO_ATTEST, handles(AWS_INDEX, AWS_INDEX)))) == 0x18B
    assert code_of(execute(frame(NITRO_ATTEST, handles(HCL_INDEX, HCL_INDEX)))) == 0x125


def test_fault_is_injected_once(platform: Platform) -> None:
    """Each command is one chance for a fault, also where two TPMs are behind the interface."""
    calls = []

    def fault(code: int) -> int:
        calls.append(code)
        return 0x922 if len(calls) == 1 else 0

    platform.hooks.fault = fault
    command = frame(0x169, handles(HCL_INDEX))
    assert [code_of(platform.tpm.execute(command)) for _ in range(2)] == [0x922, 0]
    assert calls == [0x169, 0x169]


# -- the proxy alone -------------------------------------------------------------------------------


def test_vendor_command_is_for_one_index(platform: Platform) -> None:
    """The authorizing handle is the index itself; a never written index has no request."""
    execute = platform.tpm.execute
    own = handles(AWS_INDEX, AWS_INDEX)
    execute(nv_define(nv_public(index=AWS_INDEX, size=4000, attributes=0x00060006)))
    assert code_of(execute(authorized(NITRO_ATTEST, own))) == 0x14A
    execute(nv_write(b"request", 0, index=AWS_INDEX))
    assert code_of(execute(authorized(NITRO_ATTEST, handles(OWNER, AWS_INDEX)))) == 0x149
    assert code_of(execute(authorized(NITRO_ATTEST, own, b"x"))) == 0x95
    assert platform.requests == []
    assert code_of(execute(authorized(NITRO_ATTEST, own))) == 0


def test_answer_must_fit_in_the_index(platform: Platform) -> None:
    """An answer that is larger than the index is refused, and leaves the index unchanged."""
    execute = platform.tpm.execute
    execute(nv_define(nv_public(index=AWS_INDEX, size=4000, attributes=0x00060006)))
    execute(nv_write(b"request", 0, index=AWS_INDEX))
    platform.hooks.vendor_commands[NITRO_ATTEST] = lambda request: request + b"x"
    command = authorized(NITRO_ATTEST, handles(AWS_INDEX, AWS_INDEX))
    assert code_of(execute(command)) == 0x146
    assert execute(nv_read(7, 0, index=AWS_INDEX))[16:23] == b"request"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[TpmProxy]:
    """Return a proxy before swtpm, with a vendor command."""
    if SWTPM is None:
        pytest.skip("swtpm is not installed")
    with closing(SwtpmProcess(tmp_path)) as process:
        yield TpmProxy(process, SEED, hooks=TpmHooks(vendor_commands={NITRO_ATTEST: bytes}))


def test_proxy_keeps_both_tpms_apart(proxy: TpmProxy) -> None:
    """Storage keys are the model's, attestation keys swtpm's; each handle leads to its TPM."""
    client = TpmClient(InProcessTransport(proxy), seconds=60, key_seconds=60)
    with client.primary_key(ENDORSEMENT, EK) as ek, client.primary_key(ENDORSEMENT, ECC_AK) as ak:
        assert (ek.handle, ak.handle) == (0x80010000, 0x80000000)
        assert client.list_handles(0x80000000, 0x80FFFFFF) == (ak.handle, ek.handle)
        assert client.read_public(ek.handle).public == ek.public
        assert client.read_public(ak.handle).public == ak.public
        found = client.quote(ak.handle, b"nonce", SHA256)
        assert TpmsAttest.parse(found.message).extra_data == b"nonce"
        client.evict_control(ek.handle, 0x81010001)
        assert client.read_public(0x81010001).public == ek.public
        assert client.list_handles(0x81000000, 0x81FFFFFF) == (0x81010001,)
        client.evict_control(0x81010001, 0x81010001)
        saved = proxy.execute(frame(0x162, handles(ek.handle)))
    assert handle_of(proxy.execute(frame(0x161, saved[10:]))) == 0x80010000
    assert client.list_handles(0x80000000, 0x80FFFFFF) == (0x80010000,)


def test_proxy_defines_large_indices_only(proxy: TpmProxy) -> None:
    """Indices over libtpms's 2048 bytes are the model's; a handle is defined once."""
    client = TpmClient(InProcessTransport(proxy), seconds=60, key_seconds=60)
    for index, size in ((INDEX, 2048), (INDEX + 1, 2049)):
        client.nv_define(index, size)
        client.nv_write(index, b"\1" * size)
        assert client.read_nv_index(index) == b"\1" * size
        with raises(TpmError, "tpm_error", part="0x14c"):
            client.nv_define(index, 8)
    assert client.list_handles(0x01000000, 0x01FFFFFF) == (INDEX, INDEX + 1)
    for index in (INDEX, INDEX + 1):
        client.nv_undefine(index)
    assert client.list_handles(0x01000000, 0x01FFFFFF) == ()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_proxy_lists_handles_in_pages(proxy: TpmProxy, count: int) -> None:
    """Pages of any size have all handles of both TPMs, in their order."""
    client = TpmClient(InProcessTransport(proxy), seconds=60, key_seconds=60)
    sizes = {INDEX: 2049, INDEX + 1: 8, INDEX + 2: 2049, INDEX + 3: 8, INDEX + 4: 8}
    for index, size in sizes.items():
        client.nv_define(index, size)
    found: list[int] = []
    first, more = 0x01000000, True
    while more:
        response = proxy.execute(capability(1, first, count))
        more = bool(response[10])
        words = [int.from_bytes(response[at : at + 4], "big") for at in range(19, len(response), 4)]
        assert 0 < len(words) <= count
        found += words
        first = words[-1] + 1
    assert found == list(sizes)


def test_proxy_reads_and_extends_pcrs(proxy: TpmProxy) -> None:
    """The platform reads and extends swtpm's PCRs; a PCR of a dynamic launch is refused."""
    assert proxy.read_pcr("sha256", 17) == b"\xff" * 32
    proxy.provision_pcr(4, {"sha256": bytes(32), "sha1": bytes(20)})
    client = TpmClient(InProcessTransport(proxy), seconds=60)
    values = client.pcr_read((PcrSelection("sha256", EVERY_PCR), PcrSelection("sha1", (4,))))
    for bank in ("sha256", "sha1"):
        assert proxy.read_pcr(bank, 4) == values[(bank, 4)] != bytes(len(values[(bank, 4)]))
    with raises(BackendError, "tpm_error"):
        proxy.provision_pcr(17, {"sha256": bytes(32)})


def test_proxy_passes_everything_without_hooks(tmp_path: Path) -> None:
    """Without hooks, storage keys are swtpm's as well."""
    if SWTPM is None:
        pytest.skip("swtpm is not installed")
    with closing(SwtpmProcess(tmp_path)) as process:
        proxy = TpmProxy(process, SEED)
        storage = ecc(attributes=0x00030072, symmetric="000600800043", scheme="0010")
        assert handle_of(proxy.execute(create(storage))) == 0x80000000
        assert code_of(proxy.execute(frame(NITRO_ATTEST, handles(INDEX, INDEX)))) == 0x143


@pytest.mark.parametrize("code", [0x12A, 0x131, 0x14E, 0x165, 0x176, 0x17A, NITRO_ATTEST])
def test_cut_commands_are_passed_on(proxy: TpmProxy, code: int) -> None:
    """A command that ends before what the proxy looks at is refused by the TPM."""
    for size in range(30):
        command = frame(code, bytes(size), 0x8002)
        assert code_of(proxy.execute(command)) != 0 or size >= 12


def test_rsa_key_of_the_proxy_is_swtpm_s(proxy: TpmProxy) -> None:
    """An RSA attestation key is made by swtpm."""
    client = TpmClient(InProcessTransport(proxy), seconds=60, key_seconds=60)
    with client.primary_key(ENDORSEMENT, RSA_AK) as key:
        model = TpmClient(InProcessTransport(TpmModel(SEED)))
        assert key.public.modulus != model.create_primary(ENDORSEMENT, RSA_AK).public.modulus
