"""Simulated SEV-SNP guest: reports, certificates, scenarios and faults."""

import json
from datetime import datetime, timezone
from hashlib import sha256
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.cert_path import check_path, read_path_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import MrConfig, host_data
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.attestation.snp import SnpCertificates
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attester import Attester
from attestkit.backends.base import (
    AppHost,
    Backend,
    LaunchRecord,
    RegisterExtender,
    SnpReporter,
)
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki import amd_chip
from attestkit.backends.simulator.scenarios.config import (
    Scenario,
    SnpConfig,
    SnpProduct,
    SnpSigningKey,
)
from attestkit.backends.simulator.scenarios.registry import SCENARIOS
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    PolicyError,
    UnsupportedError,
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.snp_report import SnpReport
from attestkit.testing import BackendContract
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.platforms.snp.authenticator import Snp
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

SEED = bytes(range(32))
NOW = 1_790_000_000
REPORT_DATA = b"a nonce".ljust(64, b"\0")
SNP = [name for name, named in SCENARIOS.items() if named.subject == "snp"]
POLICIES = (AppraisalPolicy.strict(), AppraisalPolicy.default(), AppraisalPolicy.development())


class TestContract(BackendContract):
    """Backend contract."""

    def make_backend(self) -> Backend:
        """Return a fresh guest."""
        return Simulator(platform="snp")


class TestContractOnDisk(BackendContract):
    """Backend contract with a state directory."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_backend(self) -> Backend:
        """Return the guest of the directory."""
        return Simulator(platform="snp", state_dir=self.folder)


def make_guest(**options: Any) -> SnpSimulator:
    """Return a guest with the common seed, constructed by Simulator."""
    made: object = Simulator(seed=SEED, platform="snp", **options)
    assert isinstance(made, SnpSimulator)
    return made


def test_snp_simulator_implements_snp_protocols_only() -> None:
    """A TD extends registers, and has no reports."""
    made, td = make_guest(), Simulator(seed=SEED)
    unknown: object = made
    for kind in (Backend, SnpReporter, AppHost, LaunchRecord):
        assert isinstance(made, kind)
    assert not isinstance(unknown, RegisterExtender)
    assert isinstance(td, RegisterExtender)
    assert not isinstance(td, SnpReporter)
    assert made.simulated
    assert (made.name, made.platform, td.platform) == ("simulator", "snp", "tdx")
    assert type(SnpSimulator(seed=SEED)) is type(Simulator(scenario="snp")) is SnpSimulator
    for read in (methodcaller("collateral"), attrgetter("served_platform")):
        with raises(UnsupportedError, "feature"):
            read(made)


def test_subclass_stays_on_its_platform() -> None:
    """Simulator selects the class by platform; a subclass rejects other platforms."""

    class Own(Simulator):
        """Subclass for TDX."""

    assert Own(seed=SEED, platform="tdx").platform == "tdx"
    with raises(UsageError, "conflict"):
        Own(seed=SEED, platform="snp")
    for options in ({"platform": "tdx"}, {"platform": "tdx", "scenario": "ok-v4"}):
        with raises(UsageError, "conflict"):
            SnpSimulator(seed=SEED, **untyped(options))
    with raises(UsageError, "conflict"):
        SnpSimulator(seed=SEED, scenario="ok-v4")
    with raises(UsageError, "conflict"):
        Own(seed=SEED, scenario="snp-debug")


# -- evidence ----------------------------------------------------------------------------------


@pytest.mark.slow
@every_case("name", SNP)
@every_case("policy", POLICIES, ids=["strict", "default", "development"])
def test_snp_scenario_has_documented_outcome(name: str, policy: AppraisalPolicy) -> None:
    """Each policy accepts or rejects it with the documented status or reason."""
    with open_attester("simulator", seed=b"\7" * 32, scenario=name) as tee:
        evidence = tee.attest(report_data=REPORT_DATA).to_bytes()
        assert isinstance(tee.backend, Simulator)
        verifier = Verifier(trust_anchor=tee.backend.trust_anchor, policy=policy)
    expected = SCENARIOS[name].outcome
    if expected == "UpToDate":
        result = verifier.verify(evidence, report_data=REPORT_DATA, now=NOW)
        assert str(result.tcb.status) == expected
        assert result.simulated
    else:
        with pytest.raises(AttestKitError) as caught:
            verifier.verify(evidence, report_data=REPORT_DATA, now=NOW)
        assert untyped(caught.value).reason == expected


def test_vlek_is_accepted_by_a_policy_that_names_its_provider() -> None:
    """The provider in the VLEK decides; a policy pinned from the result names it, too."""
    with open_attester("simulator", seed=SEED, scenario="snp-vlek") as tee:
        evidence = tee.attest(report_data=REPORT_DATA).to_bytes()
        policy = AppraisalPolicy.strict().replace(vlek_providers={"attestkit-simulator"})
        result = tee.verifier(policy=policy).verify(evidence, report_data=REPORT_DATA)
        assert "vlek_providers" in {step.check for step in result.steps}
        pinned = AppraisalPolicy.from_evidence(result)
        assert pinned.vlek_providers == {"attestkit-simulator"}
        tee.verifier(policy=pinned).verify(evidence, report_data=REPORT_DATA)
        other = policy.replace(vlek_providers={"attestkit"})
        with raises(PolicyError, "vlek_providers"):
            tee.verifier(policy=other).verify(evidence, report_data=REPORT_DATA)


@pytest.mark.parametrize("name", SNP)
def test_snp_scenarios_hold_from_2020_to_2049(name: str) -> None:
    """At the first and the last second; the expired VCEK from 2020-02-01 on."""
    first, last = 1_577_836_800, 2_524_607_999  # of the certificates
    with open_attester("simulator", seed=SEED, scenario=name) as tee:
        evidence = tee.attest(report_data=REPORT_DATA).to_bytes()
        assert isinstance(tee.backend, Simulator)
        verifier = Verifier(trust_anchor=tee.backend.trust_anchor)

    def verify_at(now: int) -> str:
        try:
            return str(verifier.verify(evidence, report_data=REPORT_DATA, now=now).tcb.status)
        except AttestKitError as error:
            return str(untyped(error).reason)

    expected = SCENARIOS[name].outcome
    start = first + 31 * 86400 + 1 if name == "snp-vcek-expired" else first
    assert verify_at(start) == verify_at(last) == expected
    if expected == "UpToDate":
        assert verify_at(first - 1) == verify_at(last + 1) == "cert_expired"
    if start != first:
        assert verify_at(start - 1) == "UpToDate"


def test_other_root_is_not_trusted() -> None:
    """Evidence with another ARK is rejected under the owner's root and AMD's."""
    with open_attester(
        "simulator", seed=SEED, scenario=Scenario("snp", platform_pki="other")
    ) as tee:
        evidence = tee.attest(report_data=REPORT_DATA).to_bytes()
        anchor = make_guest().trust_anchor
        assert tee.backend.trust_anchor == anchor
    for trusted in (anchor, None):
        with pytest.raises(AttestKitError) as caught:
            attestkit.verify(evidence, trust_anchor=trusted, report_data=REPORT_DATA, now=NOW)
        assert untyped(caught.value).reason == "untrusted_root"


def test_app_and_image_are_in_the_evidence() -> None:
    """HOST_DATA binds the app, and the measurement is the image's."""
    compose = b'{"manifest_version":2,"name":"app","runner":"bash","init_script":"true"}'
    with open_attester("simulator", seed=SEED, platform="snp", app_compose=compose) as tee:
        evidence = Attestation.from_bytes(tee.attest(report_data=REPORT_DATA).to_bytes())
        info, app = tee.app_info, tee.app_compose
        result = Verifier(trust_anchor=tee.backend.trust_anchor).verify(
            evidence, report_data=REPORT_DATA
        )
    assert info == evidence.app_info == result.app_info
    assert info.compose_hash == app.compose_hash
    assert info.app_id == app.compose_hash[:20]
    assert len(info.instance_id) == 20
    assert info.init_script_hashes == app.init_script_hashes != ()
    assert verify_os_image(evidence.evidence) == info.os_image_hash
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    MrConfig.parse(platform.mr_config).check_lengths()
    assert json.loads(evidence.config)["mr_config"] == platform.mr_config


def test_vm_config_is_returned_unchanged_by_snp() -> None:
    """A launch document in it is used; without one there is a default app."""
    document = make_guest(app_id=b"\7" * 20).mr_config
    text = json.dumps({"mr_config": document, "os_image_hash": "ab" * 32}, indent=1)
    for config in (text, "{}", ""):
        made = make_guest(vm_config=config)
        assert made.vm_config == config
        assert made.mr_config == (document if config is text else make_guest().mr_config)
        assert SnpReport.parse(made.get_quote(REPORT_DATA)).host_data == host_data(made.mr_config)
        with Attester(made) as tee:
            app_id = b"\7" * 20 if config is text else tee.app_compose.default_app_id
            assert tee.app_info.app_id == app_id
            assert tee.attest(report_data=bytes(64)).config == config


def test_seed_is_random_and_stored_in_a_state_dir(tmp_path: Path) -> None:
    """Two guests share nothing; the guest of a state directory is exclusive, and stays."""
    made = [make_guest(), *(Simulator(platform="snp") for _ in range(2))]
    assert len({guest.trust_anchor for guest in made}) == 3
    kept = Simulator(platform="snp", state_dir=tmp_path)
    with pytest.raises(BackendBusyError):
        Simulator(platform="snp", state_dir=tmp_path)
    report = kept.get_quote(REPORT_DATA)
    kept.reset()
    assert kept.get_quote(REPORT_DATA) == report
    kept.close()
    again = Simulator(platform="snp", state_dir=tmp_path)
    assert again.get_quote(REPORT_DATA) == report
    again.close()


def test_snp_evidence_of_a_seed_is_stable() -> None:
    """It is the same on each machine, Python version and release."""
    evidence = make_guest().get_snp_report(REPORT_DATA)
    whole = evidence.report + evidence.certificates + make_guest().trust_anchor
    assert sha256(whole).hexdigest() == (
        "e5e96b08ef6eb502db8d1b8b718b0ceeed9b77f2fcfa051ab92ea62fd0703dc2"
    )


# -- certificates ------------------------------------------------------------------------------


def test_snp_certificates_have_amds_names_and_extensions() -> None:
    """Each is valid X.509, signed by its issuer."""
    evidence = make_guest().get_snp_report(REPORT_DATA)
    table, report = SnpCertificates.parse(evidence.certificates), SnpReport.parse(evidence.report)
    assert table.vcek is not None
    assert table.ask is not None
    assert table.ark is not None
    assert table.ark == make_guest().trust_anchor
    path = [read_path_certificate(der) for der in (table.vcek, table.ask, table.ark)]
    names = ("SEV-VCEK", "SEV-Genoa", "ARK-Genoa")
    for certificate, name in zip(path, names, strict=True):
        assert certificate.subject.endswith(name.encode())
    check_path([*zip(names, path, strict=True)], datetime(2026, 11, 1, tzinfo=timezone.utc))
    own = read_amd_extension(path[0].extensions)
    assert own is not None
    assert (own.kind, own.product, own.hardware_id) == ("VCEK", "Genoa", report.chip_id)
    tcb = report.tcb("reported")
    assert (own.boot_loader, own.tee, own.snp, own.microcode, own.fmc) == tcb


@every_case("product", ["Milan", "Genoa", "Turin"])
@every_case("key", ["VCEK", "VLEK"])
@every_case("version", [2, 3, 4, 5])
def test_each_product_key_and_version_verifies(
    product: SnpProduct, key: SnpSigningKey, version: int
) -> None:
    """The report has what the scenario says, and its certificates fit."""
    config = SnpConfig(product=product, signing_key=key, report_version=version)
    guest = make_guest(scenario=Scenario(platform="snp", snp=config))
    evidence = guest.get_snp_report(REPORT_DATA)
    report = SnpReport.parse(evidence.report)
    assert (report.version, report.signing_key) == (version, key)
    assert report.product == (product if version >= 3 else None)
    assert any(report.chip_id[8:]) == (product != "Turin")
    platform = SevSnp(evidence.report, (evidence.certificates,), "")
    trusted = Snp(guest.trust_anchor)
    tcb = trusted.authenticate(platform, datetime.fromtimestamp(NOW, timezone.utc)).tcb
    assert ("fmc" in dict(tcb.components)) == (product == "Turin")
    assert not trusted.genuine


def test_snp_certificates_are_issued_when_first_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest starts and reports without RSA keys; its certificates and root need them."""

    def derive(_seed: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr(amd_chip, "RsaKey", derive)
    amd_chip._make_authority.cache_clear()
    guest = make_guest()
    with open_attester("simulator", seed=SEED, platform="snp") as tee:
        assert tee.simulated
    assert SnpReport.parse(guest._report(REPORT_DATA)).report_data == REPORT_DATA
    for read in (attrgetter("trust_anchor"), methodcaller("get_snp_report", REPORT_DATA)):
        with pytest.raises(AssertionError):
            read(guest)


def test_crl_is_that_of_the_root() -> None:
    """It is current by the guest's clock."""
    guest = make_guest(now=lambda: NOW)
    assert guest.crl() == guest.crl(NOW) != guest.crl(NOW + 86400)
    with raises(UsageError, "out_of_range"):
        guest.crl(0)
