"""Life of an app whose keys are released by a simulated KMS."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.simulator.images.os_image import ImageConfig
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import events_before_keys
from attestkit.errors import KmsError, SignatureError
from attestkit.keys import DerivedKey, verify_key_chain
from attestkit.kms import (
    CertRequest,
    KmsClient,
    KmsRoot,
    SimulatedKms,
    TimeLimits,
    boot_with_kms,
    open_env,
    seal_env,
    verify_app_certificate,
)
from attestkit.kms.https_call import call_kms, rooted_context
from attestkit.kms.url import parse_kms_url
from attestkit.report_data import ReportData
from tests.kms.app_owner import APP_ID, Owner, app, assert_refused, boot, keys_of, machine
from tests.kms.boot.booting import EVENTS, PREFIX, SEED, guest, kms_of, names
from tests.raising import raises

DEAD: Final = "https://localhost:1"
KEY_FILE: Final = ".appkeys.json"
NONCE: Final = b"challenge"


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """Return an owner who allows version 1 of the app."""
    return Owner(tmp_path / "auth-config.json")


@pytest.fixture
def kms(owner: Owner) -> Iterator[SimulatedKms]:
    """Return a KMS that releases keys as the owner allows."""
    with kms_of(SEED, auth=owner.path) as found:
        yield found


# -- boots and instances ------------------------------------------------------------------------


def test_second_boot_has_the_keys_of_the_first(kms: SimulatedKms, tmp_path: Path) -> None:
    """A reboot of an instance gets all its keys again, also that of its disk."""
    folder = tmp_path / "state"
    first = boot(kms, state_dir=folder)
    file = (folder / KEY_FILE).read_bytes()
    with machine(state_dir=folder) as tee:
        tee.backend.reset()
        assert not boot_with_kms(tee, kms.url, roots=[kms.root]).is_kept
        assert keys_of(tee) == first
    assert json.loads((folder / KEY_FILE).read_bytes()) == json.loads(file)


def test_second_instance_differs_in_the_disk_key_only(kms: SimulatedKms) -> None:
    """Instances share the app's root key and its environment key."""
    first, second = boot(kms), boot(kms, scenario="ok-second-platform")
    assert (first.root, first.derived, first.env) == (second.root, second.derived, second.env)
    assert first.disk != second.disk


def test_instances_without_id_share_the_disk_key(kms: SimulatedKms, owner: Owner) -> None:
    """`no_instance_id` in the app-compose leaves the app id alone to derive from."""
    compose = app(1, no_instance_id=True)
    owner.rules["composeHashes"] = [AppCompose.parse(compose).compose_hash.hex()]
    owner.save()
    disks = set()
    for scenario in (None, "ok-second-platform"):
        with guest(app_id=APP_ID, app_compose=compose, scenario=scenario) as tee:
            boot_with_kms(tee, kms.url, roots=[kms.root])
            disks.add(tee.backend.app_keys.disk_crypt_key)
    assert len(disks) == 1


# -- upgrade and revocation ----------------------------------------------------------------------


def test_upgrade_gets_the_same_keys_once_it_is_allowed(kms: SimulatedKms, owner: Owner) -> None:
    """Another compose file is refused with the reason until the owner allows its hash."""
    first = boot(kms)
    with machine(2) as tee:
        assert_refused(kms, tee, "App not allowed: Boot denied: compose hash not allowed")
        owner.allow(1, 2)
        boot_with_kms(tee, kms.url, roots=[kms.root])
        assert keys_of(tee) == first
        assert names(tee) == EVENTS


def test_revocation_does_not_reach_a_running_guest(kms: SimulatedKms, owner: Owner) -> None:
    """A revoked version gets no keys and no certificates, but keeps those that it has."""
    with machine() as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        before = keys_of(tee)
        assert sign(kms, tee)
        owner.allow(2)
        assert keys_of(tee) == before
        with raises(KmsError, "refused", part="Boot denied: compose hash not allowed"):
            sign(kms, tee)
        tee.backend.reset()
        assert_refused(kms, tee, "Boot denied: compose hash not allowed")


def test_unknown_app_is_refused(kms: SimulatedKms) -> None:
    """An app that the owner has not registered gets no keys."""
    with guest(app_id=bytes(20), app_compose=app(1)) as tee:
        assert_refused(kms, tee, "Boot denied: app not registered")


# -- machines --------------------------------------------------------------------------------------


def test_other_or_revoked_device_is_refused(kms: SimulatedKms, owner: Owner) -> None:
    """With a list of devices, the same build on a machine that is not in it gets no keys."""
    with machine() as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        result = tee.verifier().verify(tee.attest(nonce=NONCE), nonce=NONCE)
        assert result.app_info is not None
        device = result.app_info.device_id
    owner.rules |= {"devices": [device.hex()], "allowAnyDevice": False}
    owner.save()
    boot(kms)
    with machine(scenario="ok-second-platform") as tee:
        assert_refused(kms, tee, "Boot denied: app is not allowed to boot on this device")
    owner.rules["devices"] = ["00" * 32]
    owner.save()
    with machine() as tee:
        assert_refused(kms, tee, "Boot denied: app is not allowed to boot on this device")


@pytest.mark.parametrize(
    ("scenario", "part"),
    [("module-OutOfDate", "TCB status: OutOfDate"), ("td-debug", "debug mode")],
)
def test_guest_of_insecure_platform_is_refused(kms: SimulatedKms, scenario: str, part: str) -> None:
    """A TD whose TCB is out of date, or that its host can debug, gets no keys."""
    with machine(scenario=scenario) as tee:
        assert_refused(kms, tee, part)


def test_guest_of_foreign_root_is_refused(kms: SimulatedKms) -> None:
    """Evidence of a TEE whose vendor the KMS does not trust is worth nothing."""
    with guest(seed=bytes(31) + b"\1", app_id=APP_ID, app_compose=app(1)) as tee:
        assert_refused(kms, tee, "trust anchor")


def test_app_that_emits_an_app_id_keeps_its_own(kms: SimulatedKms, owner: Owner) -> None:
    """Only events before `boot-mr-done` identify an app; an app cannot pose as another."""
    other = bytes.fromhex("66" * 20)
    owner.config["apps"][other.hex()] = owner.rules
    owner.save()
    with machine() as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        own = keys_of(tee)
        # `emit_event` reserves the name, which the app can write to the device nevertheless.
        posing = events_before_keys(tee.backend.launch()._replace(app_id=other))[1]
        assert (posing.name, posing.payload) == ("app-id", other)
        tee.backend.open_journal().emit(posing)
        keys = KmsClient(kms.url, roots=[kms.root], attester=tee).get_app_keys()
        with keys:
            assert keys.root_public_key == own.root
        with raises(KmsError, "wrong_identity"):
            KmsClient(kms.url, roots=[kms.root], attester=tee, app_id=other).get_app_keys()


def test_events_of_another_image_are_not_believed(kms: SimulatedKms) -> None:
    """An image without boot events can emit any; the rule about images refuses it."""
    image = ImageConfig(measurement_version=3)
    with machine(scenario=Scenario(image=image)) as tee:
        assert_refused(kms, tee, "Boot denied: OS image is not allowed")


# -- outages and rollovers -------------------------------------------------------------------------


def test_boot_succeeds_once_the_kms_is_up(owner: Owner) -> None:
    """A guest whose KMS is down stops at `boot-mr-done`, and continues when it is tried again."""
    with kms_of(SEED, auth=owner.path) as kms:
        url, root = kms.url, kms.root
    port = int(url.rpartition(":")[2])
    with machine() as tee:
        with raises(KmsError, "connection"):
            boot_with_kms(tee, url, roots=[root])
        assert names(tee) == PREFIX
        with kms_of(SEED, auth=owner.path, address=("127.0.0.1", port)):
            boot_with_kms(tee, url, roots=[root])
        assert names(tee) == EVENTS


def test_second_url_releases_the_keys_if_the_first_is_wrong(kms: SimulatedKms) -> None:
    """A dead URL, another KMS and one that refuses are skipped; all failures are reported."""
    expected = boot(kms)
    refusing = kms_of(SEED, faults="kms_refuses:*")
    with refusing, kms_of(SEED, seed=b"\7" * 32) as foreign, machine() as tee:
        wrong = [DEAD, foreign.url, refusing.url]
        with pytest.raises(KmsError) as caught:
            boot_with_kms(tee, wrong, roots=[kms.root])
        reasons = [failure.reason for failure in caught.value.failures]
        assert reasons == ["connection", "wrong_root", "refused"]
        assert boot_with_kms(tee, [*wrong, kms.url], roots=[kms.root]).url == f"{kms.url}/prpc"
        assert keys_of(tee) == expected


def test_rollover_needs_new_pins_and_gives_new_keys(kms: SimulatedKms, tmp_path: Path) -> None:
    """Kept keys go on; a new fetch fails at the old pin, and gets other keys with the new one."""
    folder, old_root = tmp_path / "state", kms.root
    old = boot(kms, state_dir=folder)
    kms.arm("kms_rollover")
    with machine() as tee:
        with raises(KmsError, "wrong_root"):
            boot_with_kms(tee, kms.url, roots=[old_root])
        assert kms.root != old_root
    with machine(state_dir=folder) as tee:
        assert boot_with_kms(tee, kms.url, roots=[old_root]).is_kept
        assert keys_of(tee) == old
    with machine() as tee:
        boot_with_kms(tee, kms.url, roots=[old_root, kms.root])
        new = keys_of(tee)
    assert new.root != old.root
    with raises(SignatureError, "untrusted_root"):
        verify_chain(new.derived, [old_root])
    for one in (old, new):
        verify_chain(one.derived, [old_root, kms.root])


# -- relying parties ---------------------------------------------------------------------------


def verify_chain(key: DerivedKey, roots: list[KmsRoot], app_id: bytes = APP_ID) -> None:
    """Verify a key as a relying party that knows pins and app id alone."""
    pins = [root.k256_public_key for root in roots if root.k256_public_key]
    public, chain = key.public_key, key.signature_chain
    verify_key_chain(public, chain, app_id=app_id, kms_roots=pins, purpose="ethereum")


def test_key_chain_leads_to_the_pinned_root(kms: SimulatedKms) -> None:
    """It proves a key of this app, and of no other app or KMS."""
    key = boot(kms).derived
    verify_chain(key, [kms.root])
    with raises(SignatureError, "untrusted_root"):
        verify_chain(key, [kms.root], bytes(20))
    with kms_of(SEED, seed=b"\7" * 32) as foreign, raises(SignatureError, "untrusted_root"):
        verify_chain(key, [foreign.root])


def sign(kms: SimulatedKms, tee: Attester[Backend]) -> tuple[str, ...]:
    """Have the KMS sign a certificate of a guest for the name of another host."""
    key = P256Key.from_scalar(b"\x31" * 32)
    bound = ReportData.bind(ReportData.RATLS_CERT, key.spki_der)
    request = CertRequest(
        pubkey=key.spki_der,
        subject="bank.example",
        evidence=tee.attest(report_data=bound),
        subject_alt_names=("bank.example",),
        usage_server_auth=True,
        ext_quote=True,
    )
    return KmsClient(kms.url, roots=[kms.root]).sign_certificate(request, key)


def test_certificate_chain_leads_to_the_pinned_root(kms: SimulatedKms) -> None:
    """It names the app, whatever host name the app asked for, and has verifiable evidence."""
    with machine() as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        chain, now = sign(kms, tee), time.time()
        found = verify_app_certificate(chain, app_id=APP_ID, kms_roots=[kms.root], now=now)
        assert (found.app_id, found.root) == (APP_ID, kms.root)
        result = ra_tls.verify(found.der, tee.verifier(), max_lifetime=None)
        assert result.app_info is not None
        assert result.app_info.app_id == APP_ID
        with raises(SignatureError, "untrusted_root"), kms_of(SEED, seed=b"\7" * 32) as foreign:
            verify_app_certificate(chain, app_id=APP_ID, kms_roots=[foreign.root], now=now)


# -- sealed environments -----------------------------------------------------------------------


def seal_with_sdk(variables: dict[str, str], public_key: bytes) -> str:
    """Seal variables with dstack's SDK for Python."""
    sdk = pytest.importorskip("dstack_sdk", reason="dstack-sdk is not installed")
    pairs = [sdk.EnvVar(name, value) for name, value in variables.items()]
    sealed: str = sdk.encrypt_env_vars_sync(pairs, public_key.hex())
    return sealed


def seal_with_attestkit(variables: dict[str, str], public_key: bytes) -> str:
    """Seal variables with attestkit."""
    return seal_env(variables.items(), public_key)


def test_sdk_verifies_the_public_key_with_the_pin(kms: SimulatedKms) -> None:
    """The signature over key, app and time, as dstack's SDK checks it, is of the pinned root."""
    sdk = pytest.importorskip("dstack_sdk", reason="dstack-sdk is not installed")
    answer = call_kms(
        parse_kms_url(kms.url),
        "GetAppEnvEncryptPubKey",
        {"app_id": APP_ID.hex()},
        rooted_context(read_certificate(kms.root_cert)),
        limits=TimeLimits(),
    )
    found = json.loads(answer)
    key, signature = (bytes.fromhex(found[name]) for name in ("public_key", "signature_v1"))
    time_of_signature = int(found["timestamp"])
    signer = sdk.verify_env_encrypt_public_key(key, signature, APP_ID.hex(), time_of_signature)
    assert kms.root.k256_public_key is not None
    assert signer == f"0x{kms.root.k256_public_key.hex()}"
    other = sdk.verify_env_encrypt_public_key(key, signature, "00" * 20, time_of_signature)
    assert other != signer


@pytest.mark.parametrize("seal", [seal_with_sdk, seal_with_attestkit])
def test_sealed_environment_opens_in_the_guest(
    kms: SimulatedKms, seal: Callable[[dict[str, str], bytes], str]
) -> None:
    """The owner seals to the key that the pinned KMS signed; the app's key opens it."""
    variables = {"TOKEN": "s3cret", "EVIL": "1"}
    public_key = KmsClient(kms.url, roots=[kms.root]).env_public_key(APP_ID)
    sealed = seal(variables, public_key)
    secret = boot(kms).env
    assert dict(open_env(sealed, secret)) == variables
    assert dict(open_env(sealed, secret, allowed=["TOKEN"])) == {"TOKEN": "s3cret"}
