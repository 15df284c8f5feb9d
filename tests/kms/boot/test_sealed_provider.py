"""A guest that was launched for another app or key provider does not use the keys."""

import json
from pathlib import Path
from typing import Any

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v1, config_id_v2, config_id_v3
from attestkit.attester import Attester
from attestkit.attester.evidence_source import BootSource
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.td_reports import OWN_APP_OF_KMS
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import events_before_keys
from attestkit.errors import KmsError, UnsupportedError
from attestkit.kms import boot_with_kms
from attestkit.kms.boot import check_sealed_provider
from attestkit.kms.release.roots import KmsRoots
from tests.kms.boot.booting import SEED, guest, kms_of
from tests.raising import raises
from tests.runner.cases import every_case

COMPOSE = AppCompose.parse(OWN_APP_OF_KMS)
HASH, APP_ID = COMPOSE.compose_hash, COMPOSE.default_app_id
SPKI = KmsRoots.from_seed(bytes(32)).ca_spki
OTHER = KmsRoots.from_seed(b"\1" * 32).ca_spki


def document(**fields: Any) -> str:
    """Return an mr_config document."""
    known = {"version": 3, "app_id": APP_ID.hex(), "compose_hash": HASH.hex()}
    return json.dumps({**known, "key_provider": "kms", **fields})


def evidence(**options: Any) -> Attestation:
    """Return evidence of a guest whose log ends at `boot-mr-done`."""
    with guest(**options) as tee:
        source = tee.evidence_source
        assert isinstance(source, BootSource)
        source.continue_boot(events_before_keys(tee.backend.launch()))
        return tee.attest(report_data=bytes(64))


def sealed(config_id: bytes) -> Attestation:
    """Return evidence with a value of MR_CONFIG_ID."""
    return evidence(scenario=Scenario(body=(("mr_config_id", config_id),)))


@every_case(
    "config_id",
    [
        bytes(48),
        config_id_v1(HASH),
        config_id_v2(HASH, APP_ID, "kms", SPKI),
        config_id_v2(HASH, APP_ID, "kms", b""),
    ],
)
def test_own_configuration_is_accepted(config_id: bytes) -> None:
    """It is of the app, and of this KMS or any; zero seals nothing."""
    check_sealed_provider(sealed(config_id), SPKI)


@every_case(
    "config_id",
    [
        config_id_v1(bytes(32)),
        config_id_v2(HASH, APP_ID, "kms", OTHER),
        config_id_v2(HASH, APP_ID, "none", b""),
        config_id_v2(HASH, bytes(20), "kms", SPKI),
        config_id_v3(document()),
        b"\4" + bytes(47),
    ],
)
def test_other_configuration_is_refused(config_id: bytes) -> None:
    """Another app or provider, a document that is missing, and an unknown version."""
    with raises(KmsError, "wrong_provider"):
        check_sealed_provider(sealed(config_id), SPKI)


@every_case(
    ("fields", "is_own"),
    [
        ({}, True),
        ({"key_provider_id": SPKI.hex()}, True),
        ({"key_provider_id": OTHER.hex()}, False),
        ({"key_provider": "none"}, False),
        ({"app_id": "00" * 20}, False),
    ],
)
def test_document_of_the_host_is_compared(fields: dict[str, str], *, is_own: bool) -> None:
    """The document whose hash is sealed must name a KMS, with the id of this one or none."""
    text = document(**fields)
    found = sealed(config_id_v3(text))
    if is_own:
        check_sealed_provider(found, SPKI, text)
        return
    with raises(KmsError, "wrong_provider"):
        check_sealed_provider(found, SPKI, text)


def test_pcr_of_a_nitro_tpm_is_compared() -> None:
    """PCR 8 is of the app and a KMS of any id; of another provider it is refused."""
    found = evidence(platform="aws-nitro-tpm")
    check_sealed_provider(found, SPKI)
    with guest(platform="aws-nitro-tpm", app_id=b"\1" * 20) as tee:
        source = tee.evidence_source
        assert isinstance(source, BootSource)
        launch = tee.backend.launch()._replace(app_id=APP_ID)
        source.continue_boot(events_before_keys(launch))
        with raises(KmsError, "wrong_provider", part="PCR 8"):
            check_sealed_provider(tee.attest(report_data=bytes(64)), SPKI)


def test_boot_of_a_guest_for_another_kms_uses_no_keys(tmp_path: Path) -> None:
    """Keys of the key file are not used if the guest was launched for another KMS."""

    def restarted(provider_id: bytes) -> Attester[Simulator]:
        config_id = config_id_v2(HASH, APP_ID, "kms", provider_id)
        sealed_for = Scenario(body=(("mr_config_id", config_id),))
        return guest(state_dir=tmp_path, app_id=APP_ID, scenario=sealed_for)

    with kms_of(SEED) as kms, guest(state_dir=tmp_path, app_id=APP_ID) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
    with restarted(kms.root.ca_spki) as tee:
        assert boot_with_kms(tee, kms.url, roots=[kms.root]).is_kept
    with restarted(OTHER) as tee:
        before = tee.registers(), tee.event_log().runtime
        with raises(KmsError, "wrong_provider", part="sealed at launch"):
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert (tee.registers(), tee.event_log().runtime) == before
        with raises(UnsupportedError, "no_keys"):
            _ = tee.keys
