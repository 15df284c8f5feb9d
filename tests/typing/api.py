"""A user program, never executed, in which strict type checkers find no error.

It uses every name of `attestkit.__all__`, and asserts the important types.
"""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import requests
from typing_extensions import assert_type

import attestkit
from attestkit import (
    AppKeys,
    AppraisalPolicy,
    AsyncAttester,
    Attestation,
    AttestationResult,
    Attester,
    Collateral,
    Endpoint,
    Event,
    EventLog,
    EvidenceBundle,
    KeyDeriver,
    Proof,
    Quote,
    ReportData,
    Require,
    SimulatedRoots,
    SnpReport,
    TdReport,
    TpmEventLog,
    Verifier,
    aconnect,
    aopen,
    backends,
    connect,
    errors,
    measure,
    quote_columns,
    ra_tls,
    verify,
    verify_key_chain,
    verify_signature,
)
from attestkit.attestation import AppInfo
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTdx
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.client import ProofBundle, verify_proof
from attestkit.columns import QuoteColumns
from attestkit.dstack import AppCompose
from attestkit.keys import AgentKeys, DerivedKey, LocalKeys, Signature
from attestkit.measure.acpi import find_tables
from attestkit.report_data import ReportDataWarning
from attestkit.testing import BackendContract, SimulatedTee
from attestkit.verifier import ReferenceValues, TcbStatus, VerificationItem, VerificationStep

Registers = tuple[bytes, bytes, bytes, bytes]


def open_by_name(name: str | None) -> None:
    """A literal name determines the class of the backend."""
    with attestkit.open("simulator", seed=bytes(32)) as tee:
        assert_type(tee, Attester[Simulator])
        assert_type(tee.backend.trust_anchor, bytes)
        assert_type(tee.backend.roots, SimulatedRoots)
        assert_type(tee.backend.collateral(), Collateral)
    assert_type(attestkit.open("simulator", platform="snp"), Attester[SnpSimulator])
    assert_type(attestkit.open("configfs_tsm"), Attester[ConfigfsTdx | ConfigfsSnp])
    assert_type(attestkit.open("tdx_ioctl"), Attester[TdxIoctl])
    assert_type(attestkit.open("dstack_agent"), Attester[DstackAgent])
    assert_type(attestkit.open("recording", path="x").backend.complete, bool)
    assert_type(attestkit.open("recording"), Attester[Recording])
    assert_type(attestkit.open(), Attester[Backend])
    assert_type(attestkit.open(name), Attester[Backend])
    assert_type(attestkit.open(Simulator(seed=bytes(32))), Attester[Simulator])


def open_either(backend: str | Backend | None) -> Attester:
    """An Attester of any backend needs no type argument, and accepts any Attester."""
    tee = attestkit.open(backend)
    assert_type(tee, Attester[Backend])
    backend_of_it = tee.backend
    if isinstance(backend_of_it, RegisterExtender):
        assert_type(backend_of_it.read_rtmr(3), bytes)
    return attestkit.open("simulator")


def make_evidence(tee: Attester) -> bytes:
    """Evidence of an Attester."""
    quote = tee.get_quote(b"nonce")
    assert_type(quote, Quote)
    assert_type(quote.rtmrs, Registers)
    log = tee.event_log()
    assert_type(log, EventLog)
    log.check(quote, registers=(0, 1, 2, 3))
    assert_type(log.replay(), Registers)
    assert_type(EventLog.replay_many([log]), list[Registers])
    assert_type(tee.emit_event("model-loaded", b"x"), Event)
    assert_type(tee.registers(), Registers)
    assert_type(tee.app_info, AppInfo)
    assert_type(tee.app_compose, AppCompose)
    assert_type(tee.keys, KeyDeriver)
    assert_type(tee.simulated, bool)
    evidence = tee.attest(report_data=ReportData.bind("tag", b"content"))
    assert_type(evidence, Attestation)
    assert_type(evidence.quote, Quote | None)
    assert_type(evidence.snp_report, SnpReport | None)
    return evidence.to_bytes("v1")


async def make_evidence_async() -> None:
    """Evidence with asyncio."""
    async with aopen("simulator", seed=bytes(32)) as tee:
        assert_type(tee, AsyncAttester[Simulator])
        assert_type(tee.backend.trust_anchor, bytes)
        assert_type(await tee.get_quote(b"nonce"), Quote)
        assert_type(await tee.attest(report_data=b"nonce", pad=True), Attestation)
    assert_type(await aopen(), AsyncAttester[Backend])


def read(data: bytes) -> None:
    """Values parsed from bytes."""
    assert_type(Quote.parse(data), Quote)
    assert_type(Quote.parse(data).pck_chain, tuple[bytes, ...])
    assert_type(TdReport.parse(data).mrtd, bytes)
    assert_type(SnpReport.parse(data).signing_key, str)
    assert_type(TpmEventLog.parse(data).replay(), dict[int, bytes])
    assert_type(EventLog.parse(data).events, tuple[Event, ...])
    assert_type(Attestation.from_bytes(data), Attestation)
    columns = quote_columns(data, offsets=[0, 5000])
    assert_type(columns, QuoteColumns)
    assert_type(columns.mrtd, memoryview[int])


def verify_evidence(evidence: bytes, collateral: Collateral) -> TcbStatus | None:
    """Verification by a relying party."""
    policy = AppraisalPolicy(
        accepted_statuses=frozenset({TcbStatus.UP_TO_DATE}), reference_values=ReferenceValues()
    )
    result = verify(evidence, report_data=b"nonce", collateral=collateral, policy=policy)
    assert_type(result, AttestationResult)
    assert_type(result.app_info, AppInfo | None)
    assert_type(result.advisory_ids, tuple[str, ...])
    assert_type(result.policy, AppraisalPolicy)
    verifier = Verifier(collateral=Collateral.load("collateral.json"))
    assert_type(Attester(Simulator()).verifier(policy=policy), Verifier)
    assert_type(Verifier(images={"00" * 32: Path("image.tar.gz")}), Verifier)
    assert_type(Verifier(images="images"), Verifier)
    assert_type(result.claims.os_image_version, str | None)
    assert_type(result.claims.os_image_is_dev, bool | None)
    assert_type(result.claims.acpi_tables_verified, bool)
    for found in verifier.verify_many([VerificationItem(b"", nonce=b"a challenge")]):
        assert_type(found, AttestationResult | errors.AttestKitError)
    for place, outcome in verifier.verify_stream(iter(()), window=16):
        assert_type(place, int)
        assert_type(outcome, AttestationResult | errors.AttestKitError)
    bundle = EvidenceBundle.load("bundle.json")
    try:
        verifier.verify_bundle(bundle, report_data=None, use_bundle_time=True)
    except errors.PolicyError as error:
        assert_type(error.steps, tuple[VerificationStep, ...])
    return result.tcb.status


def use_keys(tee: Attester, agent: AgentClient) -> None:
    """Keys of the app, local or at an agent."""
    key = tee.keys.derive_compat("wallet/eth", purpose="signing", algorithm="secp256k1")
    assert_type(key, DerivedKey)
    with AppKeys.from_seed(bytes(32)) as app_keys:
        assert_type(app_keys, AppKeys)
        local: KeyDeriver = LocalKeys(app_keys)
        signature = local.sign(b"data", "ed25519")
    assert_type(signature, Signature)
    remote: KeyDeriver = AgentKeys(agent)
    assert_type(remote.derive("wallet", "ed25519"), DerivedKey)
    newer = remote.derive_v1("wallet", "ed25519")
    assert_type(newer, DerivedKey)
    public, chain, roots = newer.public_key, newer.signature_chain, {bytes(33)}
    verify_key_chain(public, chain, app_id=b"", kms_roots=roots, domain="", algorithm="ed25519")
    verify_key_chain(public, [*chain], app_id=b"", kms_roots=roots, purpose="")
    verify_key_chain(public, chain, app_root=bytes(33), purpose="")
    verify_signature(signature.public_key, signature.signature, b"data", algorithm="ed25519")


def use_ra_tls(verifier: Verifier, certificate: bytes, issued: ra_tls.Issued) -> None:
    """Certificates and connections that carry evidence."""
    assert_type(ra_tls.read(certificate), Attestation)
    assert_type(ra_tls.verify(certificate, verifier), AttestationResult)
    context = ra_tls.client_context(verifier, max_lifetime=None, any_app=True)
    assert_type(context, ssl.SSLContext)
    assert_type(ra_tls.HTTPTransport(context), ra_tls.HTTPTransport)
    assert_type(ra_tls.server_context(verifier, issued=issued, any_app=True), ssl.SSLContext)


def list_backends() -> None:
    """The registry of backends."""
    assert_type(backends.names(), tuple[str, ...])
    assert_type(backends.load("simulator"), type[Backend])
    assert_type(backends.detect(), type[Backend])
    assert_type(backends.probe_all(), dict[str, str | None])
    assert issubclass(ReportDataWarning, UserWarning)


class UserBackend:
    """A user's backend: no base class, only the protocol."""

    name = "mine"
    simulated = True
    blocking = False

    @classmethod
    def probe(cls) -> None:
        """Report that it is available."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a quote."""
        return report_data

    def read_event_log(self) -> bytes:
        """Return an empty log."""
        return b""

    def close(self) -> None:
        """Do nothing."""

    def own(self) -> int:
        """Return a value that only this backend has."""
        return 1


def open_user_backend() -> None:
    """The type of the Attester has the backend's own methods."""
    assert_type(attestkit.open(UserBackend()).backend.own(), int)
    assert_type(Attester(UserBackend()), Attester[UserBackend])


class TestUserBackend(BackendContract):
    """A user's backend meets the contract."""

    def make_backend(self) -> Backend:
        """Return the backend."""
        return UserBackend()


def measure_image(folder: Path, firmware: bytes) -> None:
    """Expected measurements, and the policy that they make."""
    expected = measure.dstack_image(folder, {"cpu_count": 2, "memory_size": 2 << 30})
    assert_type(expected, measure.ExpectedMeasurements)
    assert_type(expected.mrtd, bytes | None)
    assert_type(expected.rtmrs, tuple[bytes | None, bytes | None, bytes | None])
    assert_type(expected.bases["rtmr0"], measure.Basis)
    assert_type(AppraisalPolicy.from_measurements(expected), AppraisalPolicy)
    shape = measure.MachineShape(cpu_count=2, memory_size=2 << 30)
    tables = find_tables(shape)
    found = measure.tdx(firmware=firmware, kernel=b"kernel", shape=shape, acpi=tables)
    assert_type(found.events[0], measure.ExpectedEvent)
    measure.tdx(firmware=firmware, uki=b"", cpu_count=2, memory_size=2 << 30, qemu_version="9.2.1")
    found_difference = measure.explain(expected, Attestation.from_bytes(firmware))
    assert_type(found_difference, measure.Difference | None)
    if found_difference is not None:
        assert_type(found_difference.cause, measure.Cause)
    inputs = measure.GuestInputs(firmware=firmware, shape=shape)
    boot = measure.LoggedBoot(Quote.parse(firmware), EventLog())
    assert_type(
        measure.find_differences(expected, boot, inputs=inputs), tuple[measure.Difference, ...]
    )
    guest = measure.snp(firmware=firmware, vcpus=2, cpu_type="EPYC-v4", vmm="qemu")
    assert_type(guest.launch_digest, bytes | None)
    assert_type(guest.to_toml(), str)


async def connect_to_server(bundle: Path) -> None:
    """Endpoints, their clients and their proofs."""
    required = Require(freshness="key possession", channel="gateway", gpu=True)
    with connect("https://app.example.com", policy="policy.toml", require=required) as endpoint:
        assert_type(endpoint, Endpoint)
        assert_type(endpoint.proof, Proof)
        assert_type(endpoint.proof.to_dict(), dict[str, object])
        assert_type(endpoint.proof.result, AttestationResult)
        assert_type(endpoint.client(timeout=3), httpx.Client)
        assert_type(endpoint.async_client(http="httpx2"), httpx.AsyncClient)
        assert_type(endpoint.requests_session(), requests.Session)
        assert_type(endpoint.ssl_context, ssl.SSLContext)
        assert_type(endpoint.openai(api_key="key"), openai.OpenAI)
        endpoint.proof.bundle.save(bundle)
    other = await aconnect("https://app.example.com", policy=AppraisalPolicy.strict())
    assert_type(await other.aprove(), Proof)
    saved = verify_proof(ProofBundle.load(bundle), policy="policy.toml", use_bundle_time=True)
    assert_type(saved.machines[0].collateral, Collateral | None)


def test_with_fixtures(
    tee: SimulatedTee, tee_factory: Callable[..., SimulatedTee], tmp_path: Path
) -> Iterator[None]:
    """The fixtures of the pytest plugin."""
    assert_type(tee.trust_anchor, bytes)
    assert_type(tee.collateral, Collateral)
    assert_type(tee.url, str)
    assert_type(tee.socket, str)
    assert_type(
        tee.verify(tee.attest(report_data=b"x", pad=True), report_data=b"x"), AttestationResult
    )
    with tee_factory(seed=bytes(32)) as other:
        assert_type(other, SimulatedTee)
        yield
    del tmp_path
