"""The guest agent on simulated guests behind a vTPM: methods, dashboard and certificates."""

import ssl
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from attestkit import Attestation, Quote, Verifier
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.platforms import PLATFORMS
from attestkit.collateral import Collateral
from attestkit.ra_tls import certificate
from attestkit.serve.config.options import CHOICES
from attestkit.serve.services.context import Guest
from attestkit.verifier import AppraisalPolicy
from tests.serve.client import call
from tests.serve.guests import GuestClient, MakeGuest
from tests.serve.server import Server, running_server
from tests.thorough import slow
from tests.untyped import untyped


class Cloud(NamedTuple):
    """Behaviour of a guest agent on a simulated platform."""

    evidence: str  # name of the platform in evidence
    title: str  # on the dashboard
    events: str = ""  # register of EmitEvent; empty: none
    has_app: bool = False  # whether evidence identifies the app


CLOUDS: Final[Mapping[str, Cloud]] = {
    "azure-snp": Cloud("hcl-snp", "AMD SEV-SNP on Azure"),
    "azure-tdx": Cloud("hcl-tdx", "Intel TDX on Azure"),
    "gcp-snp": Cloud("gcp-snp", "AMD SEV-SNP on Google Cloud"),
    "gcp-tdx": Cloud("dstack-gcp-tdx", "Intel TDX on Google Cloud", "RTMR3", has_app=True),
    "aws-snp": Cloud("dstack-amd-sev-snp", "AMD SEV-SNP", has_app=True),
    "aws-nitro-tpm": Cloud("dstack-aws-nitro-tpm", "AWS NitroTPM", "PCR 14", has_app=True),
    "tpm": Cloud("tpm", "TPM without a TEE"),
}
REPORT_DATA: Final = b"\x77" * 64
EVERY_CLOUD: Final = pytest.mark.parametrize("platform", CLOUDS)


def open_guest(make_guest: MakeGuest, platform: str) -> Guest:
    """Return a guest agent on a platform, under the clock of the machine."""
    from time import time

    return make_guest(untyped(partial(Simulator, platform=platform)), now=time)


def make_verifier(anchor: bytes, evidence: str, collateral: Collateral | None = None) -> Verifier:
    """Return a verifier that trusts a simulated guest with evidence of this platform."""
    policy = AppraisalPolicy.default().replace(
        platforms={evidence}, vlek_providers={"attestkit-simulator"}
    )
    return Verifier(trust_anchor=anchor, collateral=collateral, policy=policy)


def verifier_of(guest: Guest, platform: str) -> Verifier:
    """Return a verifier that trusts the guest."""
    simulator = untyped(guest.attester.backend)
    collateral = simulator.collateral() if platform.endswith("-tdx") else None
    return make_verifier(simulator.trust_anchor, CLOUDS[platform].evidence, collateral)


def test_every_simulated_platform_can_be_served() -> None:
    """--platform accepts all platforms of the simulator."""
    assert set(CHOICES["platform"]) == set(PLATFORMS) == {"tdx", "snp", *CLOUDS}


@EVERY_CLOUD
def test_attest_of_v0_returns_evidence_with_all_parts(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Attest of v0 has SCALE where dstack defines it, else a CMW collection; both verify."""
    guest = open_guest(make_guest, platform)
    response = guest_client("dstack", guest).post("/Attest", {"report_data": REPORT_DATA.hex()})
    evidence = bytes.fromhex(response.json()["attestation"])
    found = Attestation.from_bytes(evidence)
    named = CLOUDS[platform].evidence
    assert found.platform == named
    assert found.encoding == ("v0" if named.startswith("dstack-") else "cbor")
    result = verifier_of(guest, platform).verify(evidence, report_data=REPORT_DATA)
    assert result.simulated


@EVERY_CLOUD
def test_attest_of_v1_never_omits_the_tpm(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Attest of v1 has the same parts, or its error names the method and command that have them."""
    guest, named = open_guest(make_guest, platform), CLOUDS[platform].evidence
    client = guest_client("dstack", guest)
    response = client.post("/v1/Attest", {"report_data": REPORT_DATA.hex()})
    if named.startswith("dstack-"):
        evidence = bytes.fromhex(response.json()["attestation"])
        found = Attestation.from_bytes(evidence)
        assert (found.platform, found.encoding) == (named, "v1")
        assert verifier_of(guest, platform).verify(evidence, report_data=REPORT_DATA).claims
        return
    assert response.status == 501
    text = f"Failed to get attestation: evidence of version 1 cannot represent {named}; use "
    assert response.error().startswith(text)
    assert "Attest of / or /v0" in response.error()
    assert "attestkit attest --encoding cbor" in response.error()
    certificate = client.post("/v1/IssueCert", {"subject": "a", "usage_ra_tls": True})
    assert certificate.status == 501
    assert f"cannot represent {named}; use Attest of / or /v0" in certificate.error()
    assert client.post("/v1/IssueCert", {"subject": "a"}).status == 501


@EVERY_CLOUD
def test_get_quote_is_of_tdx_only(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Only a TD that signs the report data has quotes; elsewhere the error is upstream's."""
    client = guest_client("dstack", open_guest(make_guest, platform))
    response = client.post("/GetQuote", {"report_data": REPORT_DATA.hex()})
    if platform == "gcp-tdx":
        quote = Quote.parse(bytes.fromhex(response.json()["quote"]))
        assert quote.report_data == REPORT_DATA
        return
    assert response.status == 400
    assert response.error() == "GetQuote is Intel TDX only, use Attest on this platform"


@EVERY_CLOUD
def test_info_has_identity_that_evidence_proves(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Info names the app only if the platform measures it, in both generations."""
    guest, cloud = open_guest(make_guest, platform), CLOUDS[platform]
    client = guest_client("dstack", guest)
    for path in ("/Info", "/v1/Info"):
        found = client.post(path).json()
        assert found["compose_hash"] == (
            guest.app_compose.compose_hash.hex() if cloud.has_app else ""
        )
        assert bool(found["app_id"]) == cloud.has_app


@EVERY_CLOUD
def test_event_is_in_next_evidence_and_info(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """EmitEvent extends the register of the platform, which Info and evidence then show."""
    guest, cloud = open_guest(make_guest, platform), CLOUDS[platform]
    client = guest_client("dstack", guest)
    before = client.post("/Info").json()
    response = client.post("/EmitEvent", {"event": "model-loaded", "payload": "abcd"})
    if not cloud.events:
        assert response.status == 500
        assert "no run-time registers" in response.error()
        return
    assert response.status == 200
    assert client.post("/Info").json()["mr_aggregated"] != before["mr_aggregated"]
    evidence = Attestation.from_bytes(
        bytes.fromhex(client.post("/v1/Attest").json()["attestation"])
    )
    assert evidence.runtime_events[-1].name == "model-loaded"
    result = verifier_of(guest, platform).verify(evidence, report_data=bytes(64))
    assert result.app_info is not None
    assert result.app_info.mr_aggregated.hex() == client.post("/Info").json()["mr_aggregated"]


@EVERY_CLOUD
def test_dashboard_names_platform_and_register(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """The dashboard names the platform, and the register of the events."""
    guest, cloud = open_guest(make_guest, platform), CLOUDS[platform]
    if cloud.events:
        guest.attester.emit_event("model-loaded", b"v1")
    text = guest_client("external", guest).get("/").body.decode()
    assert f'<span class="pill">{cloud.title}</span>' in text
    assert ("model-loaded" in text) == bool(cloud.events)
    assert (f'<span class="register">{cloud.events or "none"}</span>' in text) == bool(cloud.events)
    note = "This platform has no measurement registers."
    assert (note in text) == (platform == "aws-snp")


@EVERY_CLOUD
def test_certificate_has_evidence_that_verifies(
    platform: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """The certificate of GetTlsKey has evidence over its key, also in a CMW collection."""
    guest = open_guest(make_guest, platform)
    client = guest_client("dstack", guest)
    found = client.post("/GetTlsKey", {"subject": "a", "usage_ra_tls": True}).json()
    leaf = found["certificate_chain"][0]
    result = certificate.verify(leaf, verifier=verifier_of(guest, platform), max_lifetime=None)
    assert result.bound_to == "report_data"


SERVED: Final = ["azure-tdx", *slow(*[(name,) for name in CLOUDS if name != "azure-tdx"])]


@pytest.mark.slow
@pytest.mark.parametrize("platform", SERVED)
def test_server_process_serves_guest_of_cloud(platform: str) -> None:
    """`attestkit serve --platform` serves evidence that its trust anchor verifies."""
    cloud = CLOUDS[platform]
    pccs = ("--pccs-http", "127.0.0.1:0") if platform.endswith("-tdx") else ()
    with running_server("--platform", platform, *pccs) as server:
        answer = call(server.dstack, "Attest", {"report_data": REPORT_DATA.hex()}).json()
        evidence = bytes.fromhex(answer["attestation"])
        verifier = make_verifier(read_anchor(server), cloud.evidence, fetch(server, evidence))
        assert verifier.verify(evidence, report_data=REPORT_DATA).simulated
        assert call(server.dstack, "EmitEvent", {"event": "a"}).status == (
            200 if cloud.events else 500
        )
        method = "GetQuote" if platform == "gcp-tdx" else "Attest"
        assert f"http://dstack/{method}\n" in server.log()
        server.check_log()


def read_anchor(server: Server) -> bytes:
    """Return the server's root certificate (DER)."""
    return ssl.PEM_cert_to_DER_cert((server.folder / "trust-anchor.pem").read_text())


def fetch(server: Server, evidence: bytes) -> Collateral | None:
    """Return the collateral of a TD from the server's PCCS."""
    quote = Attestation.from_bytes(evidence).quote
    return None if quote is None else Collateral.fetch(quote, server.ready["pccs"])


@pytest.mark.slow
def test_cloud_keeps_its_seed_between_starts(tmp_path: Path) -> None:
    """A guest of a cloud boots at each start, with the same root; --reset changes nothing."""
    options: tuple[Any, ...] = ("--platform", "tpm", "--state-dir", str(tmp_path / "state"))
    anchors = []
    for more in ((), ("--reset",)):
        with running_server(*options, *more) as server:
            anchors.append(read_anchor(server))
    assert anchors[0] == anchors[1]
