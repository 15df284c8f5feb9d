"""`attestkit.open(kms=…)` boots the app with keys of a KMS, on simulators and on hardware."""

import asyncio
import json
from pathlib import Path

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import KmsError, UnsupportedError, UsageError
from attestkit.event_log.journal import RuntimeLog
from attestkit.kms import boot_with_kms
from tests.kms.boot.booting import EVENTS, PREFIX, SEED, guest, kms_of, names
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

APP = b'{"manifest_version":2,"name":"app","runner":"bash","key_provider":"kms"}'


def test_open_boots_with_keys_of_the_kms() -> None:
    """Keys are those of the KMS; what the pins do not prove is listed."""
    with kms_of(SEED) as kms:
        with attestkit.open("simulator", seed=SEED, kms=kms.url, kms_roots=[kms.root]) as tee:
            assert tee.not_proven == ()
            key = tee.keys.derive("a", "secp256k1").key
        options = {"kms": [kms.url], "kms_roots": "first-use"}
        with attestkit.open("simulator", seed=SEED, **options) as tee:
            assert tee.not_proven == ("kms_root", "kms_k256_root")
            assert tee.keys.derive("a", "secp256k1").key == key

        async def open_async() -> bytes:
            async with attestkit.aopen("simulator", seed=SEED, **options) as tee:
                assert tee.not_proven == ("kms_root", "kms_k256_root")
                return tee.keys.derive("a", "secp256k1").key

        assert asyncio.run(open_async()) == key


@every_case(
    ("options", "reason"),
    [
        ({"kms": "https://localhost:1"}, "missing"),
        ({"kms_roots": "first-use"}, "missing"),
        ({"kms": "https://localhost:1", "kms_roots": "any"}, "wrong_type"),
        ({"kms": "https://localhost:1", "kms_roots": "first-use", "platform": "snp"}, ""),
    ],
)
def test_open_with_invalid_options_fails(options: dict[str, object], reason: str) -> None:
    """Without roots, or with a platform without registers, nothing is opened."""
    with pytest.raises(UsageError) as caught:
        attestkit.open("simulator", seed=SEED, **options)
    assert reason in {"", caught.value.reason}


def test_failed_boot_closes_the_tee(tmp_path: Path) -> None:
    """The state folder can be used again."""
    options = {"seed": SEED, "state_dir": tmp_path, "kms_roots": "first-use"}
    for _ in range(2):
        with raises(KmsError, "connection"):
            attestkit.open("simulator", kms="https://localhost:1", **options)
    with kms_of(SEED) as kms, attestkit.open("simulator", kms=kms.url, **options) as tee:
        assert names(untyped(tee)) == EVENTS


@pytest.mark.parametrize("platform", ["gcp-tdx", "aws-nitro-tpm"])
def test_clouds_with_registers_boot_with_a_kms(platform: str) -> None:
    """Events extend RTMR3 and the TPM's PCR, or PCR 14 of a NitroTPM alone."""
    accepted = {"dstack-gcp-tdx", "dstack-aws-nitro-tpm"}
    policy = attestkit.AppraisalPolicy.development().replace(platforms=accepted)
    with attestkit.open("simulator", seed=SEED, platform=platform) as own:
        verifier = own.verifier(policy=policy)
    released = ["dstack-aws-nitro-tpm"]
    with (
        attestkit.kms.SimulatedKms(
            verifier, seed=SEED, released_platforms=released, image_verify=False
        ) as kms,
        guest(platform=platform) as tee,
    ):
        booted = boot_with_kms(tee, kms.url, roots=[kms.root])
        assert [event.name for event in booted.events] == EVENTS
        evidence = tee.attest(nonce=b"challenge")
        result = tee.verifier(policy=policy).verify(evidence, nonce=b"challenge")
        assert result.app_info is not None
        assert kms.root.provider_id.encode() in result.app_info.key_provider_info


class Hardware:
    """A TD whose system has not measured its app: a simulated one, without what is simulated."""

    name, simulated, blocking = "hardware", False, False

    def __init__(self) -> None:
        self._td = Simulator(seed=SEED, kms_boot=True, app_compose=APP)
        self.vm_configuration = self._td.vm_config
        self.get_quote = self._td.get_quote
        self.read_event_log = self._td.read_event_log
        self.read_rtmr = self._td.read_rtmr
        self.extend_rtmr = self._td.extend_rtmr
        self.reset = self._td.reset

    @classmethod
    def probe(cls) -> None:
        """Do nothing."""

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the journal."""
        return self._td.open_journal(version)

    def close(self) -> None:
        """Close the TD."""
        self._td.close()


def test_hardware_boots_with_files_of_its_host(tmp_path: Path) -> None:
    """The app is described by the host's files, and the key file is written among them."""
    (tmp_path / "app-compose.json").write_bytes(APP)
    with kms_of(SEED) as kms:
        td = Hardware()
        config = {"vm_config": td.vm_configuration, "kms_urls": [kms.url]}
        (tmp_path / ".sys-config.json").write_text(json.dumps(config))
        host = HostShared(tmp_path)
        assert host.kms_urls == (kms.url,)
        with Attester(untyped(td), host) as tee:
            with raises(UnsupportedError, "no_keys"):
                _ = tee.keys
            with raises(KmsError, "connection"):
                boot_with_kms(tee, "https://localhost:1", roots=[kms.root])
            assert names(tee) == PREFIX
            assert not (tmp_path / ".appkeys.json").exists()
            boot_with_kms(tee, host.kms_urls, roots=[kms.root])
            assert names(tee) == EVENTS
            key = tee.keys.derive("a", "secp256k1").key
            file = tmp_path / ".appkeys.json"
            assert file.stat().st_mode & 0o777 == 0o600
            again = boot_with_kms(tee, "https://localhost:1", roots=[kms.root])
            assert again.is_kept
            assert tee.keys.derive("a", "secp256k1").key == key
        host.close()
