"""The simulator as an SEV-SNP guest: its reports are signed, and judged as their scenario says."""

import json
from datetime import datetime, timezone
from hashlib import sha256
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import attestkit
from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import MrConfig, host_data
from attestkit.attestation.launch.os_image import verified_hash
from attestkit.attestation.snp_certificates import SnpCertificates
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
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip, issued_chip
from attestkit.backends.simulator.scenarios.config import Scenario, SnpConfig
from attestkit.backends.simulator.scenarios.named import NAMED
from attestkit.backends.simulator.snp_simulator import SnpSimulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    UnsupportedError,
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.snp_report import SnpReport
from attestkit.testing import BackendContract
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.untyped import untyped

SEED = bytes(range(32))
NOW = 1_790_000_000
ASKED = b"a nonce".ljust(64, b"\0")
SNP = [name for name, named in NAMED.items() if named.scenario.platform == "snp"]
POLICIES = (AppraisalPolicy.strict(), AppraisalPolicy.default(), AppraisalPolicy.development())


class TestContract(BackendContract):
    """The contract of every backend."""

    def make_backend(self) -> Backend:
        """Return a fresh guest."""
        return Simulator(platform="snp")


class TestContractOnDisk(BackendContract):
    """The contract, with a state folder."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_backend(self) -> Backend:
        """Return the guest of the folder."""
        return Simulator(platform="snp", state_dir=self.folder)


def guest(**options: Any) -> SnpSimulator:
    """Return a guest of the one seed, made as everybody makes it."""
    made: object = Simulator(seed=SEED, platform="snp", **options)
    assert isinstance(made, SnpSimulator)
    return made


def test_it_is_an_snp_guest_and_nothing_else() -> None:
    """It has reports and hosts an app; a TD extends registers, and has no reports."""
    made, td = guest(), Simulator(seed=SEED)
    unknown: object = made
    for kind in (Backend, SnpReporter, AppHost, LaunchRecord):
        assert isinstance(made, kind)
    assert not isinstance(unknown, RegisterExtender)
    assert isinstance(td, RegisterExtender)
    assert not isinstance(td, SnpReporter)
    assert made.simulated
    assert (made.name, made.platform, td.platform) == ("simulator", "snp", "tdx")
    assert type(SnpSimulator(seed=SEED)) is type(Simulator(scenario="snp")) is SnpSimulator
    for ask in (methodcaller("collateral"), attrgetter("served_platform")):
        with pytest.raises(UnsupportedError, match="no Intel collateral"):
            ask(made)


def test_a_kind_of_its_own_stays_on_its_platform() -> None:
    """A class that is named is not made into another, so what is of another platform is refused."""

    class Own(Simulator):
        """Somebody's TD."""

    assert Own(seed=SEED, platform="tdx").platform == "tdx"
    with pytest.raises(UsageError, match=r"^Own is of platform tdx, not snp: attestkit\.open "):
        Own(seed=SEED, platform="snp")
    for options in ({"platform": "tdx"}, {"platform": "tdx", "scenario": "ok-v4"}):
        with pytest.raises(UsageError, match=r"^SnpSimulator is of platform snp, not tdx"):
            SnpSimulator(seed=SEED, **untyped(options))
    with pytest.raises(UsageError, match="of platform tdx, not snp"):
        SnpSimulator(seed=SEED, scenario="ok-v4")
    with pytest.raises(UsageError, match="of platform snp, not tdx"):
        Own(seed=SEED, scenario="snp-debug")


# -- evidence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SNP)
@pytest.mark.parametrize("policy", POLICIES, ids=["strict", "default", "development"])
def test_each_scenario_is_judged_as_it_says(name: str, policy: AppraisalPolicy) -> None:
    """Under its root, by every policy; what is refused is refused for that reason."""
    with open_attester("simulator", seed=b"\7" * 32, scenario=name) as tee:
        evidence = tee.attest(ASKED).to_bytes()
        assert isinstance(tee.backend, Simulator)
        verifier = Verifier(tee.backend.trust_anchor, policy=policy)
    expected = NAMED[name].outcome
    if expected == "UpToDate":
        result = verifier.verify(evidence, report_data=ASKED, now=NOW)
        assert str(result.tcb_status) == expected
        assert result.simulated
    else:
        with pytest.raises(AttestKitError) as caught:
            verifier.verify(evidence, report_data=ASKED, now=NOW)
        assert untyped(caught.value).reason == expected


@pytest.mark.parametrize("name", SNP)
def test_each_holds_from_2020_to_2049(name: str) -> None:
    """At the first and the last second; the expired VCEK from 2020-02-01 on."""
    first, last = 1_577_836_800, 2_524_607_999  # of the certificates
    with open_attester("simulator", seed=SEED, scenario=name) as tee:
        evidence = tee.attest(ASKED).to_bytes()
        assert isinstance(tee.backend, Simulator)
        verifier = Verifier(tee.backend.trust_anchor)

    def judged(now: int) -> str:
        try:
            return str(verifier.verify(evidence, report_data=ASKED, now=now).tcb_status)
        except AttestKitError as error:
            return str(untyped(error).reason)

    expected = NAMED[name].outcome
    start = first + 31 * 86400 + 1 if name == "snp-vcek-expired" else first
    assert judged(start) == judged(last) == expected
    if expected == "UpToDate":
        assert judged(first - 1) == judged(last + 1) == "cert_expired"
    if start != first:
        assert judged(start - 1) == "UpToDate"


def test_another_root_of_the_makers_is_not_trusted() -> None:
    """A platform that leads to another root than its owner's, and nobody's root at all."""
    with open_attester("simulator", seed=SEED, scenario=Scenario("snp", maker="other")) as tee:
        evidence = tee.attest(ASKED).to_bytes()
        anchor = guest().trust_anchor
        assert tee.backend.trust_anchor == anchor
    for trusted in (anchor, None):
        with pytest.raises(AttestKitError) as caught:
            attestkit.verify(evidence, trust_anchor=trusted, report_data=ASKED, now=NOW)
        assert untyped(caught.value).reason == "untrusted_root"


def test_the_app_and_the_image_are_in_the_evidence() -> None:
    """HOST_DATA seals who the app is, the measurement is that of the image that is named."""
    compose = b'{"manifest_version":2,"name":"app","runner":"bash","init_script":"true"}'
    with open_attester("simulator", seed=SEED, platform="snp", app_compose=compose) as tee:
        evidence = Attestation.from_bytes(tee.attest(ASKED).to_bytes())
        info, app = tee.info(), tee.app_compose
        result = Verifier(tee.backend.trust_anchor).verify(evidence, report_data=ASKED)
    assert info == evidence.app_info() == result.app_info
    assert info.compose_hash == app.compose_hash
    assert info.app_id == app.compose_hash[:20]
    assert len(info.instance_id) == 20
    assert info.init_script_hashes == app.init_script_hashes != ()
    assert verified_hash(evidence.evidence) == info.os_image_hash
    platform = evidence.evidence.platform
    assert isinstance(platform, SevSnp)
    MrConfig.parse(platform.mr_config).check_lengths()
    assert json.loads(evidence.config)["mr_config"] == platform.mr_config


def test_a_configuration_is_launched_with_as_it_is() -> None:
    """A document in it is the one of the launch; without one there is still an app."""
    document = guest(app_id=b"\7" * 20).mr_config
    text = json.dumps({"mr_config": document, "os_image_hash": "ab" * 32}, indent=1)
    for config in (text, "{}", ""):
        made = guest(vm_config=config)
        assert made.vm_config == config
        assert made.mr_config == (document if config is text else guest().mr_config)
        assert SnpReport.parse(made.get_quote(ASKED)).host_data == host_data(made.mr_config)
        with Attester(made) as tee:
            app_id = b"\7" * 20 if config is text else tee.app_compose.default_app_id
            assert tee.info().app_id == app_id
            assert tee.attest(b"").config == config


def test_a_seed_makes_everything_again(tmp_path: Path) -> None:
    """Same seed, same bytes; another seed shares nothing; a folder keeps one that was drawn."""
    one, two = guest(), guest()
    assert one.get_snp_report(ASKED) == two.get_snp_report(ASKED)
    assert (one.trust_anchor, one.mr_config) == (two.trust_anchor, two.mr_config)
    drawn = [Simulator(platform="snp") for _ in range(2)]
    assert len({made.trust_anchor for made in [one, *drawn]}) == 3
    assert len({SnpReport.parse(made.get_quote(ASKED)).chip_id for made in [one, *drawn]}) == 3
    kept = Simulator(platform="snp", state_dir=tmp_path)
    with pytest.raises(BackendBusyError):
        Simulator(platform="snp", state_dir=tmp_path)
    report = kept.get_quote(ASKED)
    kept.reset()
    assert kept.get_quote(ASKED) == report
    kept.close()
    again = Simulator(platform="snp", state_dir=tmp_path)
    assert again.get_quote(ASKED) == report
    again.close()


def test_the_bytes_of_a_seed_stay_the_same() -> None:
    """On every machine and Python, and from release to release."""
    evidence = guest().get_snp_report(ASKED)
    whole = evidence.report + evidence.certificates + guest().trust_anchor
    assert sha256(whole).hexdigest() == (
        "6ebdf4183569f6b431ff910b0e0d753fb5644e2c80d3feecfb335c30da4149b4"
    )


def test_few_chips_are_kept_and_none_that_was_drawn() -> None:
    """The last four chips of seeds are, as with TDs; that of a drawn seed comes never again."""
    issued_chip.clear()
    Simulator(platform="snp")
    assert len(issued_chip) == 0
    for number in range(20):
        Simulator(platform="snp", seed=bytes([number] * 32))
    assert len(issued_chip) == 4


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("ebusy", "EBUSY"),
        ("wrong_report_data", "other report data"),
        ("short_outblob", "1000 bytes"),
    ],
)
def test_its_reports_can_fail_by_name(fault: str, text: str) -> None:
    """Faults of reports strike it, in any scenario; those of registers it has none of."""
    with open_attester("simulator", scenario="snp-debug", faults=fault) as tee:
        with pytest.raises(BackendError, match=text):
            tee.attest(ASKED)
        assert tee.attest(ASKED).report_data == ASKED
    with pytest.raises(UsageError, match="rtmr_extend_fails cannot go wrong"):
        Simulator(platform="snp", faults="rtmr_extend_fails")


# -- the stand-in for AMD ----------------------------------------------------------------------


def test_certificates_are_as_amds() -> None:
    """Names, AMD's extensions and SPLs; each is signed by the one above, over valid X.509."""
    evidence = guest().get_snp_report(ASKED)
    table, report = SnpCertificates.parse(evidence.certificates), SnpReport.parse(evidence.report)
    assert table.vcek is not None
    assert table.ask is not None
    assert table.ark == guest().trust_anchor
    vcek, ask, ark = map(x509.load_der_x509_certificate, (table.vcek, table.ask, table.ark))
    names = [found.subject.rfc4514_string().split(",")[0] for found in (vcek, ask, ark)]
    assert names == ["CN=SEV-VCEK", "CN=SEV-Genoa", "CN=ARK-Genoa"]
    vcek.verify_directly_issued_by(ask)
    ask.verify_directly_issued_by(ark)
    ark.verify_directly_issued_by(ark)
    own = read_amd_extension(read_path_certificate(table.vcek).extensions)
    assert own is not None
    assert (own.kind, own.product, own.hardware_id) == ("VCEK", "Genoa", report.chip_id)
    tcb = report.tcb("reported")
    assert (own.boot_loader, own.tee, own.snp, own.microcode, own.fmc) == tcb


@pytest.mark.parametrize(
    ("knob", "text"),
    [
        ({"snp_tcb": bytes(7)}, "snp_tcb is 8 bytes, not 7"),
        ({"vcek_tcb": bytes(9)}, "vcek_tcb is 8 bytes, not 9"),
        ({"policy": 1 << 64}, "policy must be in 0 to"),
        ({"policy": None}, "policy must be an integer"),
        ({"snp_tcb": 8}, "snp_tcb is 8 bytes, not int"),
        ({"not_after": 5}, "not_after must be an aware datetime in 1950 to 9999"),
        ({"not_before": datetime.fromisoformat("2020-01-01")}, "not_before must be an aware"),
        ({"not_before": datetime(1900, 1, 1, tzinfo=timezone.utc)}, "not_before must be an aware"),
        ({"not_after": datetime(2010, 1, 1, tzinfo=timezone.utc)}, "not_after is before not_bef"),
        ({"vcek_not_after": datetime(2010, 1, 1, tzinfo=timezone.utc)}, "vcek_not_after is before"),
    ],
)
def test_configuration_out_of_range_is_named(knob: dict[str, Any], text: str) -> None:
    """A value of the wrong size or range is refused by its name."""
    with pytest.raises(UsageError, match=text):
        SnpConfig(**knob)


def test_the_edges_of_all_times_can_be_certified() -> None:
    """What is not refused can be issued: the first year and the last."""
    first = datetime(1950, 1, 1, tzinfo=timezone.utc)
    config = SnpConfig(not_before=first, not_after=datetime.max.replace(tzinfo=timezone.utc))
    own = Simulator(seed=SEED, scenario=Scenario("snp", snp=config))
    ark = x509.load_der_x509_certificate(own.trust_anchor)
    assert ark.not_valid_before_utc == first
    assert ark.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)


def test_keys_are_those_of_their_labels() -> None:
    """A chip asks for secrets by label, so that no two of its keys are one."""
    asked: dict[str, int] = {}

    def derive(label: str, length: int) -> bytes:
        asked[label] = length
        return len(asked).to_bytes(length, "big")

    SimulatedChip(derive)
    keys = {label for label in asked if label.startswith("p384/")}
    assert keys == {"p384/snp/ark", "p384/snp/ask", "p384/snp/chip/0"}
    assert {asked[label] for label in keys} == {72}
