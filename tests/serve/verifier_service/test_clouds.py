"""POST /verify of scenarios of guests behind a vTPM has the outcome of `Verifier.verify`."""

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import GcpTdx, NitroTpm, td_body
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.scenarios.named_case import NO_STATUS
from attestkit.backends.simulator.scenarios.registry import CLOUDS
from attestkit.errors import AttestKitError, ConfigError
from attestkit.factory import open as open_attester
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import VerifierSettings
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.serve.verifier_service.verifier_factory import open_verifier
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.policy.reference_values import ReferenceValues
from tests.cli.commands.test_clouds import EVIDENCE_NAMES, QUICK
from tests.raising import raises
from tests.serve.asgi import Client
from tests.serve.verifier_service.test_response import respond
from tests.untyped import untyped

OF_POLICY: Final = {"report_data", "vlek_providers"}
ANY_PORT: Final = Address("127.0.0.1", 0)


@pytest.fixture
def threads() -> Iterator[JobThreads]:
    """Return the threads of a service."""
    with JobThreads(1) as found:
        yield found


def options_of(tee: Attester[Simulator], folder: Path, **rules: Any) -> dict[str, Any]:
    """Write what a service has to know of a guest; return its options."""
    simulator, anchor, policy = tee.backend, folder / "root.der", folder / "policy.toml"
    anchor.write_bytes(simulator.trust_anchor)
    named = EVIDENCE_NAMES.get(simulator.platform, simulator.platform)
    found = AppraisalPolicy.default().replace(platforms={named}, **rules)
    policy.write_text(found.to_toml())
    options: dict[str, Any] = {"trust_anchor": str(anchor), "verifier_policy": str(policy)}
    if simulator.platform.endswith("-tdx"):
        collateral = folder / "collateral.json"
        simulator.collateral().save(collateral)
        options["verifier_collateral"] = str(collateral)
    return options


def boot_rules(found: Attestation) -> dict[str, Any]:
    """Return the rules that name what a guest with a TPM boots; none for a guest without."""
    platform = found.evidence.platform
    if isinstance(platform, GcpTdx):
        return {"pcrs": {"sha256:2": platform.tpm_quote.pcr_values[1].value}}
    if isinstance(platform, NitroTpm):
        assert found.nitro_document is not None
        return {"pcrs": {"sha384:4": found.nitro_document.pcr(4)}}
    quoted: Any = getattr(platform, "vtpm_quote", None)
    if quoted is None:
        return {}
    _, bank, value = quoted.pcr_values[4]
    rules: dict[str, Any] = {"pcrs": {f"{bank}:4": value}}
    if found.hcl_report is not None:
        report, quote = found.snp_report, found.quote
        launch = td_body(quote).mrtd if quote is not None else untyped(report).measurement
        rules["paravisor_measurement"] = {launch}
    return rules


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLOUDS]
)
def test_service_has_named_outcome(
    name: str, tmp_path: Path, threads: JobThreads, loop: asyncio.AbstractEventLoop
) -> None:
    """A response is valid, or has the text of the error with the scenario's reason."""
    expected = CLOUDS[name].outcome
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), scenario=name) as tee:
        evidence = tee.attest(nonce=nonce)
        # Without a dstack image, the service requires a rule about what is booted.
        is_of_dstack = evidence.platform.startswith("dstack-") and not name.endswith("-grub")
        rules = {} if is_of_dstack else boot_rules(evidence)
        options = Options(**options_of(tee, tmp_path, **rules))
    verifier = open_verifier(VerifierSettings(options, ANY_PORT, alone=True))
    client = Client(VerifierApp(verifier, threads, fetcher=threads), loop)
    request = {"attestation": evidence.to_bytes().hex()}
    found = client.post(f"/verify?nonce={nonce.hex()}", request).json()
    if expected in {"UpToDate", NO_STATUS}:
        assert (found["is_valid"], found["reason"]) == (True, None)
        assert found["freshness_checked"]
        assert (found["details"]["tcb_status"] or NO_STATUS) == expected
        return
    assert not found["is_valid"]
    with pytest.raises(AttestKitError) as caught:
        verifier.verify(evidence, nonce=nonce)
    assert untyped(caught.value).reason == expected
    step = "Policy: " if expected in OF_POLICY else "Quote verification failed: "
    subject = str(caught.value).partition(":")[0]  # the rest may have the time
    assert found["reason"].startswith(f"{step}{subject}: ")


@pytest.mark.parametrize("platform", ["gcp-tdx", "aws-nitro-tpm"])
def test_service_accepts_a_tpm_without_image_by_policy(
    platform: str,
    tmp_path: Path,
    threads: JobThreads,
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Outside of images of dstack, a rule of the policy must name what is booted, not the owner."""
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), platform=platform) as tee:
        found = tee.attest(nonce=nonce).evidence
        evidence = Attestation(found._replace(stack=found.stack._replace(config="")))
        answers = []
        owner = {"gce_project": {"attestkit-simulated"}} if platform == "gcp-tdx" else {}
        programs = {"pcrs": {"sha384:16": bytes(48)}} if platform == "aws-nitro-tpm" else {}
        for rules in ({}, owner, programs, boot_rules(evidence)):
            options = Options(**options_of(tee, tmp_path, **rules))
            verifier = open_verifier(VerifierSettings(options, ANY_PORT, alone=True))
            client = Client(VerifierApp(verifier, threads, fetcher=threads), loop)
            request = {"attestation": evidence.to_bytes().hex()}
            answers.append(client.post(f"/verify?nonce={nonce.hex()}", request).json())
    *without, named = answers
    for answer in without:
        assert not answer["is_valid"]
        assert answer["reason"].startswith("OS image hash verification failed: ")
        assert "reference_values" not in answer["reason"]  # the text about the image, of upstream
    assert (named["is_valid"], named["reason"]) == (True, None)
    assert not named["details"]["os_image_hash_verified"]


def test_service_has_certificates_and_roots_of_tpms(
    tmp_path: Path, threads: JobThreads, loop: asyncio.AbstractEventLoop
) -> None:
    """Under the vendors' roots, a plain TPM is accepted by a root of --verifier-ak-roots."""
    nonce = secrets.token_bytes(32)
    with open_attester("simulator", seed=bytes(32), platform="tpm") as tee:
        evidence = tee.attest(nonce=nonce)
        request = {"attestation": evidence.to_bytes().hex()}
        options = options_of(tee, tmp_path, **boot_rules(evidence))
    root = options.pop("trust_anchor")
    for roots, valid in ((None, False), (root, True)):
        given = Options(**options, verifier_ak_roots=roots, verifier_ak_certificates=roots)
        verifier = open_verifier(VerifierSettings(given, ANY_PORT, alone=True))
        client = Client(VerifierApp(verifier, threads, fetcher=threads), loop)
        found = client.post(f"/verify?nonce={nonce.hex()}", request).json()
        assert found["is_valid"] is valid, found["reason"]
    for name in ("verifier_ak_roots", "verifier_ak_certificates"):
        for content in (b"", b"-----BEGIN CERTIFICATE-----", b"\x30\0"):
            (tmp_path / "bad").write_bytes(content)
            wrong: dict[str, Any] = {name: str(tmp_path / "bad")}
            given = Options(**wrong)
            with raises(ConfigError, "wrong_value", part="bad"):
                open_verifier(VerifierSettings(given, ANY_PORT, alone=True))


def test_service_fetches_certificates_of_tpm_keys_by_its_own_option_only() -> None:
    """A PCCS alone does not make the service send requests for certificates of TPM keys."""
    for fetch in (False, True):
        options = Options(verifier_fetch_ak_certificates=fetch)
        settings = VerifierSettings(options, ANY_PORT, alone=True, pccs_url="https://pccs.example")
        assert open_verifier(settings)._authenticators.ak_settings.fetch is fetch


@pytest.mark.parametrize("platform", ["azure-snp", "gcp-snp"])
def test_verify_guest_without_image_requires_a_policy_that_names_it(platform: str) -> None:
    """Clients of dstack's service take `is_valid` for the image's; no preset names any guest."""
    with open_attester("simulator", platform=platform, seed=bytes(32)) as tee:
        request = VerificationRequest(tee.attest(nonce=bytes(32)).to_bytes())
        anchor = tee.backend.trust_anchor
    result = Verifier(trust_anchor=anchor).verify(request.attestation or b"", report_data=None)
    pinned = AppraisalPolicy.from_evidence(result)
    digest = b"\1" * 32
    # Other guests can have all of these values, too.
    unnamed: list[dict[str, Any]] = [
        {},
        {"console_enabled": False},
        {"pcrs": {"sha256:7": digest}},
        {"pcrs": {"sha256:23": bytes(32)}},
        {"pcrs": {"sha256:4": bytes(32)}},  # of a bank that the firmware does not extend
        {"init_data": {digest}},
        {"paravisor_measurement": {bytes(48)}},
        {"id_key_digest": {b"\1" * 48}},
        {"gce_instance": {"simulated-vm"}},
        {"reference_values": ReferenceValues(measurement={bytes(48)})},
        {"reference_values": ReferenceValues(report_id={digest})},
    ]
    for rules in unnamed:
        policy = AppraisalPolicy.default().replace(**rules)
        found = respond(Verifier(trust_anchor=anchor, policy=policy), request)
        assert not found["is_valid"]
        assert found["reason"].startswith("OS image hash verification failed: ")
        assert "names no OS image and no app" in found["reason"]
    found = respond(Verifier(trust_anchor=anchor, policy=pinned), request)
    assert found["is_valid"], found["reason"]
    assert found["details"]["tee_variant"] == platform


@pytest.mark.parametrize("rules", [{"gce_project": {"attestkit-simulated"}}, {"gce_instance": {}}])
def test_verify_guest_of_named_machine_is_valid(rules: dict[str, Any]) -> None:
    """A Google project, or the number of a VM, names machines, whatever they boot."""
    with open_attester("simulator", platform="gcp-snp", seed=bytes(32)) as tee:
        request = VerificationRequest(tee.attest(nonce=bytes(32)).to_bytes())
        anchor = tee.backend.trust_anchor
    if "gce_instance" in rules:
        result = Verifier(trust_anchor=anchor).verify(request.attestation or b"", report_data=None)
        assert result.claims.vtpm is not None
        rules = {"gce_instance": {dict(result.claims.vtpm.details)["gce_instance_id"]}}
    policy = AppraisalPolicy.default().replace(**rules)
    found = respond(Verifier(trust_anchor=anchor, policy=policy), request)
    assert found["is_valid"], found["reason"]
