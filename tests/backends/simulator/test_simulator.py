"""The simulator is a TD in software: what it says of itself is consistent, also across programs."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from attestkit.attester import Attester
from attestkit.backends.base import AppHost, Backend, RegisterExtender
from attestkit.backends.simulator import Simulator
from attestkit.collateral import Collateral
from attestkit.errors import (
    ConfigError,
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.keys import AppKeys
from attestkit.quote import Quote, TdQuoteBody
from attestkit.testing import BackendContract
from tests.dcap import REJECT, judge
from tests.untyped import untyped
from tests.vectors import data, needs_shared

SEED = bytes(range(32))
NOW = 1_764_000_000
ROOT = Path(__file__).parents[3]


class TestInMemory(BackendContract):
    """The contract, with nothing on disk."""

    def make_backend(self) -> Backend:
        """Return a fresh TD."""
        return Simulator()


class TestVersion5(BackendContract):
    """The contract, with quotes of version 5."""

    def make_backend(self) -> Backend:
        """Return a fresh TD."""
        return Simulator(quote_version=5)


class TestOnDisk(BackendContract):
    """The contract, with a state folder."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_backend(self) -> Backend:
        """Return the TD in the folder."""
        return Simulator(state_dir=self.folder)


def test_it_has_every_ability() -> None:
    """It extends registers and hosts an app, and says that it is simulated."""
    backend = Simulator()
    assert isinstance(backend, Backend)
    assert isinstance(backend, RegisterExtender)
    assert isinstance(backend, AppHost)
    assert backend.simulated
    assert not backend.blocking


# -- quotes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
def test_verifiers_accept_its_quotes_under_its_root_only(version: int) -> None:
    """dcap-qvl says UpToDate with the simulator's root, and refuses with Intel's."""
    with open_attester("simulator", quote_version=version, now=lambda: NOW) as tee:
        simulator = tee.backend
        assert isinstance(simulator, Simulator)
        quote = tee.get_quote(b"nonce")
        assert quote.version == version
        verdict = judge(quote.raw, simulator.collateral(), simulator.trust_anchor, NOW)
        assert verdict.status == "UpToDate", verdict.text
        assert judge(quote.raw, simulator.collateral(), None, NOW).status == REJECT
        with simulator_of_another_seed() as other:
            anchor = untyped(other.backend).trust_anchor
            assert judge(quote.raw, simulator.collateral(), anchor, NOW).status == REJECT


def simulator_of_another_seed() -> Attester:
    """Return a TD under another root."""
    return open_attester("simulator", seed=SEED)


def test_collateral_is_that_of_the_asked_time() -> None:
    """By default now, as the clock that was handed in says."""
    simulator = Simulator(seed=SEED, now=lambda: NOW)
    assert isinstance(simulator.collateral(), Collateral)
    assert simulator.collateral() == simulator.collateral(NOW)
    assert simulator.collateral(NOW + 40 * 86400) != simulator.collateral()
    assert abs(Simulator(seed=SEED).collateral().valid_from.timestamp() - NOW) < 3e9


def test_the_body_is_that_of_this_td() -> None:
    """Registers, report data and configuration id are where the format has them."""
    simulator = Simulator(seed=SEED)
    report_data = bytes(range(64))
    quote = Quote.parse(simulator.get_quote(report_data))
    body = quote.body
    assert isinstance(body, TdQuoteBody)
    assert body.report_data == report_data
    assert quote.rtmrs == tuple(map(simulator.read_rtmr, range(4)))
    assert body.mr_config_id == b"\1" + simulator.app_compose.compose_hash + bytes(15)
    assert body.mr_td != bytes(48)
    assert body.mr_owner == body.mr_owner_config == bytes(48)
    five = Quote.parse(Simulator(seed=SEED, quote_version=5).get_quote(report_data)).body
    assert isinstance(five, TdQuoteBody)
    assert five.mr_service_td == bytes(48)
    assert five[:15] == body[:15]


def test_a_seed_makes_everything_again() -> None:
    """The same seed: the same keys, certificates, identity and quotes; without one, others."""
    one, two = Simulator(seed=SEED), Simulator(seed=SEED)
    assert one.get_quote(bytes(64)) == two.get_quote(bytes(64))
    assert one.trust_anchor == two.trust_anchor
    assert one.app_keys.k256_key == two.app_keys.k256_key == AppKeys.from_seed(SEED).k256_key
    drawn = [Simulator(), Simulator()]
    assert len({simulator.trust_anchor for simulator in [one, *drawn]}) == 3
    assert len({simulator.app_keys.k256_key for simulator in [one, *drawn]}) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": b"short"}, "a seed is 32 bytes"),
        ({"seed": "00" * 32}, "a seed is 32 bytes"),
        ({"seed": bytearray(32)}, "a seed is 32 bytes"),
        ({"quote_version": 3}, "4 and 5"),
        ({"platform": "sgx"}, "platform is tdx or snp, not 'sgx'"),
        ({"platform": "snp", "scenario": "td-debug"}, "of platform tdx, not snp"),
        ({"platform": "tdx", "scenario": "snp-debug"}, "of platform snp, not tdx"),
        ({"platform": "snp", "quote_version": 4}, "no version of quotes"),
        ({"platform": "snp", "vm_config": "["}, "vm_config"),
        ({"platform": "snp", "no_such_option": 1}, "no_such_option"),
        ({"scenario": {}}, "a scenario is a name or a Scenario"),
        ({"scenario": "no such"}, "no scenario is called 'no such'; attestkit serve"),
        ({"scenario": "module-update", "quote_version": 4}, "of version 5, not 4"),
        ({"faults": "ebsuy"}, "no fault is called .ebsuy.; did you mean ebusy"),
        ({"faults": 5}, "faults are text"),
        ({"faults": [5]}, "a fault is text"),
        ({"app_id": bytes(19)}, "an app id is 20 bytes"),
        ({"vm_config": "[]"}, "vm_config"),
        ({"vm_config": '{"os_image_hash":"x"}'}, "vm_config"),
        ({"app_compose": "{}"}, "bytes"),
        ({"vm_config": b"{}"}, "vm_config is JSON text"),
        ({"app_keys": "appkeys.json"}, "AppKeys.load"),
        ({"state_dir": 5}, "state_dir is a path"),
        ({"no_such_option": 1}, "no_such_option"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    """Every option that is wrong, or not there yet, is a UsageError that says so."""
    with pytest.raises(UsageError, match=reason):
        open_attester("simulator", **options)


def test_a_bad_app_is_a_configuration_error() -> None:
    """The app's file is somebody's configuration: the error names the key."""
    with pytest.raises(ConfigError, match="manifest_version"):
        Simulator(app_compose=b'{"name":"x","runner":"bash"}')


# -- the boot sequence -------------------------------------------------------------------------


def boot_of(**options: Any) -> list[tuple[str, bytes]]:
    """Return names and payloads of what a simulator measures at its boot."""
    with open_attester("simulator", **options) as tee:
        return [(event.name, event.payload) for event in tee.event_log().runtime]


def app(**fields: object) -> bytes:
    """Return an app-compose.json."""
    base = {"manifest_version": 2, "name": "app", "runner": "docker-compose"}
    return json.dumps({**base, **fields}).encode()


def test_the_boot_sequence_of_its_own_app() -> None:
    """Names and order of the guest agent, payloads that agree with all else it says."""
    simulator = Simulator(seed=SEED)
    compose = simulator.app_compose
    boot = boot_of(seed=SEED)
    assert [name for name, _ in boot] == [
        "system-preparing",
        "app-id",
        "compose-hash",
        "gpu-policy-hash",
        "instance-id",
        "boot-mr-done",
        "key-provider",
        "storage-fs",
        "system-ready",
    ]
    found = dict(boot)
    assert compose.public_logs
    assert compose.public_sysinfo
    assert found["compose-hash"] == sha256(compose.raw).digest()
    assert found["app-id"] == found["compose-hash"][:20]
    assert found["gpu-policy-hash"] == sha256(b"{}").digest()
    assert len(found["instance-id"]) == 20
    assert found["key-provider"] == b'{"name":"none","id":""}'
    assert found["storage-fs"] == b"zfs"
    assert found["system-ready"] == found["system-preparing"] == found["boot-mr-done"] == b""


def test_the_boot_sequence_follows_the_app() -> None:
    """Scripts, policy, storage, version and the wish for no instance id are measured."""
    raw = app(
        init_script=["one", "two"],
        requirements={"gpu_policy": {"attest_gpu": False}},
        storage_fs="ext4",
        no_instance_id=True,
        event_log_version=2,
    )
    boot = boot_of(app_compose=raw, app_id=b"\7" * 20)
    assert [payload for name, payload in boot if name == "init-script-hash"] == [
        sha256(b"one").digest(),
        sha256(b"two").digest(),
    ]
    found = dict(boot)
    assert found["app-id"] == b"\7" * 20
    assert found["compose-hash"] == sha256(raw).digest()
    assert found["gpu-policy-hash"] == sha256(b'{"attest_gpu":false}').digest()
    assert found["instance-id"] == b""
    assert found["storage-fs"] == b"ext4"
    with open_attester("simulator", app_compose=raw) as tee:
        assert {event.version for event in tee.event_log().runtime} == {2}
        assert tee.emit_event("with:colon", b"").version == 2
        assert tee.attest(b"").to_bytes()[0] != 0  # version 1 of the format, which can say so


@needs_shared
def test_the_agents_files_are_measured_and_given_back() -> None:
    """With the files of an agent whose keys come from a KMS, the image is measured as well."""
    system = json.loads(data("dstack/simulator/sys-config.json"))
    own = AppKeys.from_json(data("dstack/simulator/appkeys.json"))
    keys = AppKeys(
        k256_key=own.k256_key,
        ca_cert=own.ca_cert,
        ca_key=None,
        key_provider="kms",
        key_provider_id="3059aa",
    )
    raw = data("dstack/simulator/app-compose.json")
    simulator = Simulator(app_compose=raw, app_keys=keys, vm_config=system["vm_config"])
    with Attester(simulator) as tee:
        found = {event.name: event.payload for event in tee.event_log().runtime}
        image = json.loads(system["vm_config"])["os_image_hash"]
        assert list(found) == [
            "system-preparing",
            "app-id",
            "compose-hash",
            "gpu-policy-hash",
            "instance-id",
            "boot-mr-done",
            "os-image-hash",
            "key-provider",
            "storage-fs",
            "system-ready",
        ]
        assert found["os-image-hash"].hex() == image
        assert json.loads(found["key-provider"]) == {"name": "kms", "id": "3059aa"}
        assert tee.vm_config == system["vm_config"]
        assert tee.app_compose.raw == raw
        assert tee.info().os_image_hash.hex() == image
    assert keys.k256_key  # they are the caller's, and still open


def test_a_vm_config_is_never_altered() -> None:
    """Whatever it looks like, the text comes back as it went in."""
    text = '{ "os_image_hash" : "' + "ab" * 32 + '",\n "unknown": 1.50 }'
    with open_attester("simulator", vm_config=text) as tee:
        assert tee.vm_config == text
        assert tee.attest(b"").config == text
        assert tee.info().os_image_hash == b"\xab" * 32
    with open_attester("simulator", vm_config="") as tee:
        assert tee.info().os_image_hash == b""
