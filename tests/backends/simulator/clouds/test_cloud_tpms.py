"""TPMs of guests of clouds: which software they are, and what the clouds put into them."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.public_key import PublicVerificationKey
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.simulated.cloud_certificates import names_simulator
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v2, nitro_tpm_pcr8
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.clouds.azure import STORAGE_ROOT
from attestkit.backends.simulator.software_tpm import TpmModel
from attestkit.backends.simulator.software_tpm.swtpm import SwtpmProcess, TpmProxy
from attestkit.backends.tpm.client import TpmClient
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    CollateralError,
    PolicyError,
    UsageError,
)
from attestkit.event_log.tcg import TpmEventLog
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic
from attestkit.tpm.algorithms import hash_size
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.public_area import DECRYPT, ECC_AK, ECC_EK, RESTRICTED, RSA_AK, RSA_EK, SIGN
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.backends.simulator.clouds.guests import PLATFORMS, open_cloud, verifier_of, verify_once
from tests.machines.software_tpm import needs_swtpm
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

KINDS: Final = ("model", pytest.param("swtpm", marks=needs_swtpm))
WITH_GRUB: Final = ("azure-snp", "gcp-snp", "gcp-tdx", "aws-nitro-tpm", "tpm")
NITRO: Final = ("aws-nitro-tpm", "aws-snp")


@contextmanager
def connected(tee: Attester[Simulator]) -> Iterator[TpmClient]:
    """Return a client of the guest's TPM."""
    client = untyped(tee.backend).vtpm.connect()
    try:
        yield client
    finally:
        client.close()


@pytest.mark.slow
def is_running(process: SwtpmProcess) -> bool:
    """Return whether swtpm has not ended."""
    return process._process.poll() is None


@needs_swtpm
@pytest.mark.parametrize("platform", PLATFORMS)
def test_evidence_over_swtpm_is_verified(platform: str) -> None:
    """With swtpm behind the guest, its evidence is verified as that of the model."""
    providers = {"attestkit-simulator"} if platform == "aws-snp" else frozenset()
    with open_cloud(platform=platform, tpm="swtpm") as tee:
        result = verify_once(tee, vlek_providers=providers)
        assert result.fresh
        assert result.simulated
        assert isinstance(untyped(tee.backend).vtpm.tpm, TpmProxy)


@needs_swtpm
def test_swtpm_ends_with_its_guest() -> None:
    """Closing the guest ends the process, and removes its folder."""
    with open_cloud(platform="tpm", tpm="swtpm") as tee:
        vtpm = untyped(tee.backend).vtpm
        process, folder = vtpm.process, vtpm.paths.tpm_boot_log.parent
        assert is_running(process)
        assert folder.is_dir()
    assert not is_running(process)
    assert not folder.exists()


@every_case("platform", [one for one in PLATFORMS if one != "gcp-snp"])
def test_keys_of_the_model_are_functions_of_the_seed(platform: str) -> None:
    """The default TPM is the model, so a guest of an equal seed has equal keys."""
    keys = []
    for _ in range(2):
        with open_cloud(platform=platform) as tee:
            vtpm = untyped(tee.backend).vtpm
            assert isinstance(vtpm.tpm, TpmModel)
            client = vtpm.connect()
            with client.primary_key(ENDORSEMENT, ECC_AK) as key:
                keys.append(key.public)
            client.close()
    assert keys[0] == keys[1]


@pytest.mark.parametrize("platform", ["tpm", "aws-snp"])
def test_swtpm_that_is_not_installed_is_named(
    platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without swtpm the option is refused with what to do, and nothing is left behind."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with raises(BackendUnavailableError, "missing") as refused:
        open_cloud(platform=platform, tpm="swtpm")
    assert 'tpm="model"' in str(refused.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("platform", ["tpm", "aws-snp", "gcp-snp"])
def test_boot_that_fails_leaves_nothing_behind(
    platform: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If the TPM refuses a measurement of the boot, its process and folder are removed."""

    def refuse(_: TpmModel | TpmProxy, pcr: int, digests: dict[str, bytes]) -> None:
        raise BackendError(f"PCR {pcr}: {len(digests)} banks refused", reason="tpm_error")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for tpm in (TpmModel, TpmProxy):
        monkeypatch.setattr(tpm, "provision_pcr", refuse)
    processes: list[SwtpmProcess] = []
    start = SwtpmProcess.__init__

    def note(process: SwtpmProcess, *args: Any, **options: Any) -> None:
        processes.append(process)
        start(process, *args, **options)

    monkeypatch.setattr(SwtpmProcess, "__init__", note)
    with raises(BackendError, "tpm_error"):
        open_cloud(platform=platform, tpm=kind)
    assert not any(tmp_path.iterdir())
    assert [is_running(process) for process in processes] == [False] * (kind == "swtpm")


@every_case("platform", PLATFORMS)
def test_unknown_tpm_is_refused(platform: str) -> None:
    """The option takes the two kinds only."""
    with raises(UsageError, "wrong_value"):
        open_cloud(platform=platform, tpm="hardware")


@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_tpm_of_a_guest_without_one_is_refused(platform: str) -> None:
    """Guests that have no vTPM refuse the option."""
    with raises(UsageError, "not_applicable"):
        open_cloud(platform=platform, tpm="model")


def test_report_and_document_of_one_instance_share_a_nonce() -> None:
    """An EC2 instance on SEV-SNP has a NitroTPM under a root of its own: two pieces of evidence."""
    nonce = secrets.token_bytes(32)
    with open_cloud(platform="aws-snp") as tee:
        simulator: Any = tee.backend
        verifier = verifier_of(tee, vlek_providers={"attestkit-simulator"})
        assert verifier.verify(tee.attest(nonce=nonce), nonce=nonce).fresh
        policy = AppraisalPolicy.default().replace(platforms={"dstack-aws-nitro-tpm"})
        verifier = Verifier(trust_anchor=simulator.roots.nitro, policy=policy)
        with Attester(simulator.open_nitro_tpm()) as other:
            document = other.attest(nonce=nonce)
            assert other.simulated
        result = verifier.verify(document.to_bytes(), nonce=nonce)
    assert result.fresh
    assert result.simulated
    assert result.claims.platform == "dstack-aws-nitro-tpm"


@pytest.mark.parametrize("kind", KINDS)
def test_google_tpm_has_both_keys_and_their_certificates(kind: str) -> None:
    """Templates and certificates in NV indices are of keys that the TPM makes."""
    templates = {0x01C10002: 0x01C10003, 0x01C10000: 0x01C10001}
    known = {0x01C00002: RSA_EK, 0x01C0000A: ECC_EK}
    with open_cloud(platform="gcp-snp", tpm=kind) as tee, connected(tee) as client:
        for index in (*templates, *known):
            template: TpmtPublic | bytes | None = known.get(index)
            if template is None:
                template = client.read_nv_index(templates[index])
            stored = client.read_nv_index(index)
            assert template is not None
            assert stored is not None
            found = read_path_certificate(DerReader(stored).whole(SEQUENCE))
            with client.primary_key(ENDORSEMENT, template) as key:
                made = PublicVerificationKey(key.public.spki).spki
            assert PublicVerificationKey(found.spki).spki == made
            is_signing = index in templates
            assert bool(key.public.attributes & SIGN) == is_signing
            assert ("2.5.29.37" in found.extensions) != is_signing


def test_certificate_of_google_is_read_with_full_slots() -> None:
    """The keys of certificates need none of the TPM's three slots."""
    with open_cloud(platform="gcp-snp") as tee, connected(tee) as client:
        for _ in range(3):
            client.create_primary(ENDORSEMENT, RSA_AK)
        assert any(client.read_nv_index(0x01C00002) or b"")


def test_intermediate_of_google_has_to_be_given() -> None:
    """Of two CAs with one name only that of the right key completes the path."""
    with open_cloud(scenario="gcp-tdx-intermediate") as tee:
        simulator = untyped(tee.backend)
        other, issuer = simulator.ak_intermediates
        names = [read_path_certificate(der).subject for der in (other, issuer)]
        assert names[0] == names[1]
        nonce = secrets.token_bytes(32)
        evidence = tee.attest(nonce=nonce).to_bytes()
        options = {
            "trust_anchor": simulator.trust_anchor,
            "collateral": simulator.collateral(),
            "policy": verifier_of(tee).policy,
        }
        verifier = Verifier(**options, ak_certificates=[other, issuer])
        assert verifier.verify(evidence, nonce=nonce).fresh
        with pytest.raises(CollateralError, match="EK/AK CA Intermediate"):
            Verifier(**options, ak_certificates=[other]).verify(evidence, nonce=nonce)


@pytest.mark.parametrize("platform", ["azure-snp", "azure-tdx"])
def test_azure_tpm_has_a_storage_root_key(platform: str) -> None:
    """A restricted key for decryption is persistent at 0x81000001."""
    with open_cloud(platform=platform) as tee, connected(tee) as client:
        found = client.read_public(STORAGE_ROOT).public
    assert (found.type, found.bits, found.symmetric) == ("rsa", 2048, 128)
    assert found.attributes & (RESTRICTED | DECRYPT | SIGN) == RESTRICTED | DECRYPT


def test_nitro_tpm_measures_the_configuration_of_the_app() -> None:
    """PCR 8 is extended once by dstack's configuration id (mr_config)."""
    with open_cloud(platform="aws-nitro-tpm") as tee:
        found = verify_once(tee).claims
        compose, keys = tee.backend.app_compose, tee.backend.app_keys
    provider = keys.key_provider, bytes.fromhex(keys.key_provider_id)
    config_id = config_id_v2(compose.compose_hash, compose.default_app_id, *provider)
    assert dict(found.registers)["pcr8"] == nitro_tpm_pcr8(config_id)


@every_case("name", [*PLATFORMS, *(f"{one}-grub" for one in WITH_GRUB)])
def test_log_explains_the_firmware_and_its_loader(name: str) -> None:
    """The log replays to every PCR that the boot extended; GRUB and shim extend 8 and 14."""
    with open_cloud(scenario=name) as tee, connected(tee) as client:
        log = TpmEventLog.parse(untyped(tee.backend).vtpm.paths.tpm_boot_log.read_bytes())
        values = client.pcr_read((PcrSelection("sha384", tuple(range(17))),))
    replayed = log.replay("sha384")
    assert ({8, 14} <= set(replayed)) == name.endswith("-grub")
    of_app = {8, 14} if name == "aws-nitro-tpm" else set()
    for (bank, pcr), value in values.items():
        assert pcr in of_app or value == replayed.get(pcr, bytes(hash_size(bank)))


@pytest.mark.parametrize("name", ["azure-snp-grub", "gcp-snp-grub", "tpm-grub"])
def test_pcrs_of_shim_and_grub_are_replayed(name: str) -> None:
    """A verifier finds PCRs 8 and 14 explained by the log in the evidence."""
    with open_cloud(scenario=name) as tee:
        facts = verify_once(tee).claims.vtpm
    assert facts is not None
    assert {("sha256", 8), ("sha256", 14)} <= set(facts.replayed)


@every_case("platform", [one for one in PLATFORMS if one not in NITRO])
def test_simulated_tpm_is_marked(platform: str) -> None:
    """Quotes and certificates say that they are simulated, whatever the verifier trusts."""
    with open_cloud(platform=platform) as tee:
        platform_evidence = untyped(tee.attest(nonce=bytes(32)).evidence.platform)
    quote = getattr(platform_evidence, "vtpm_quote", None) or platform_evidence.tpm_quote
    assert TpmsAttest.parse(quote.message).is_simulated
    certificates = getattr(quote, "ak_certificates", None) or (quote.ak_cert,)
    assert all(names_simulator(der) for der in certificates)


@pytest.mark.parametrize("kind", KINDS)
def test_listed_key_of_a_simulated_tpm_is_simulated(kind: str) -> None:
    """With a key in `trusted_aks`, the certificate or the model's quote gives a simulated result.

    Nothing in swtpm's quotes without a certificate says that they are simulated
    (docs/guides/testing/pytest.md).
    """
    nonce = secrets.token_bytes(32)
    with open_cloud(platform="tpm", tpm=kind) as tee:
        whole = untyped(tee.attest(nonce=nonce))
        listed = untyped(tee.backend).attestation_key
    quote = whole.evidence.platform.vtpm_quote._replace(ak_certificates=())
    bare = Attestation(whole.evidence._replace(platform=Tpm(quote)))
    policy = AppraisalPolicy.default().replace(platforms={"tpm"}, trusted_aks={listed})
    strict = policy.replace(refuse_simulated=True)
    for evidence, simulated in ((whole, True), (bare, kind == "model")):
        assert Verifier(policy=policy).verify(evidence, nonce=nonce).simulated is simulated
        if simulated:
            with raises(PolicyError, "simulated"):
                Verifier(policy=strict).verify(evidence, nonce=nonce)
        else:
            assert Verifier(policy=strict).verify(evidence, nonce=nonce).fresh


def test_certificates_of_a_nitro_document_are_marked() -> None:
    """Each certificate of the bundle has the mark."""
    with open_cloud(platform="aws-nitro-tpm") as tee:
        document = tee.attest(nonce=bytes(32)).nitro_document
    assert document is not None
    assert all(map(names_simulator, (document.certificate, *document.cabundle)))
