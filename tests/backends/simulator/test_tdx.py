"""Simulated TD: quotes, determinism, options and boot sequence."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from attestkit.backends.base import AppHost, Backend, RegisterExtender
from attestkit.backends.simulator import Simulator
from attestkit.collateral import Collateral
from attestkit.errors import (
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.keys import AppKeys
from attestkit.testing import BackendContract
from tests.raising import raises, repeated_subjects
from tests.runner.cases import every_case

SEED = bytes(range(32))
NOW = 1_764_000_000
ROOT = Path(__file__).parents[3]


class TestInMemory(BackendContract):
    """Backend contract without a state directory."""

    def make_backend(self) -> Backend:
        """Return a fresh TD."""
        return Simulator()


class TestOnDisk(BackendContract):
    """Backend contract with a state directory."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_backend(self) -> Backend:
        """Return the TD of the directory."""
        return Simulator(state_dir=self.folder)


def test_simulator_implements_all_td_protocols() -> None:
    """It extends registers, hosts an app, and is simulated."""
    backend = Simulator()
    assert isinstance(backend, Backend)
    assert isinstance(backend, RegisterExtender)
    assert isinstance(backend, AppHost)
    assert backend.simulated
    assert not backend.blocking


# -- quotes ------------------------------------------------------------------------------------


def test_collateral_is_that_of_the_given_time() -> None:
    """The default is the simulator's clock."""
    simulator = Simulator(seed=SEED, now=lambda: NOW)
    assert isinstance(simulator.collateral(), Collateral)
    assert simulator.collateral() == simulator.collateral(NOW)
    assert simulator.collateral(NOW + 40 * 86400) != simulator.collateral()
    assert abs(Simulator(seed=SEED).collateral().valid_from.timestamp() - NOW) < 3e9


def test_seed_determines_keys_and_quotes() -> None:
    """Without a seed they are random."""
    one, two = Simulator(seed=SEED), Simulator(seed=SEED)
    assert one.get_quote(bytes(64)) == two.get_quote(bytes(64))
    assert one.trust_anchor == two.trust_anchor
    assert one.app_keys.k256_key == two.app_keys.k256_key == AppKeys.from_seed(SEED).k256_key
    drawn = [Simulator(), Simulator()]
    assert len({simulator.trust_anchor for simulator in [one, *drawn]}) == 3
    assert len({simulator.app_keys.k256_key for simulator in [one, *drawn]}) == 3


@every_case(
    ("options", "reason", "subject"),
    [
        ({"seed": b"short"}, "wrong_size", "seed: must be 32 bytes"),
        ({"seed": "00" * 32}, "wrong_type", "seed: "),
        ({"quote_version": 3}, "wrong_value", "quote_version: "),
        ({"platform": "sgx"}, "wrong_value", "platform: "),
        ({"platform": "snp", "scenario": "td-debug"}, "conflict", "scenario: "),
        ({"platform": "snp", "quote_version": 4}, "not_applicable", "quote_version: "),
        ({"platform": "snp", "vm_config": "["}, "wrong_value", "vm_config: "),
        ({"scenario": {}}, "wrong_type", "scenario: "),
        ({"scenario": "no such"}, "unknown_name", "scenario 'no such'"),
        ({"scenario": "module-update", "quote_version": 4}, "conflict", "quote_version: "),
        ({"faults": "ebsuy"}, "unknown_name", "fault 'ebsuy'; did you mean ebusy"),
        ({"faults": 5}, "wrong_type", "faults: "),
        ({"faults": [5]}, "wrong_type", "fault: "),
        ({"app_id": bytes(19)}, "wrong_size", "app_id: must be 20 bytes"),
        ({"vm_config": '{"os_image_hash":"x"}'}, "wrong_value", "vm_config: "),
        ({"app_compose": "{}"}, "wrong_type", ""),
        ({"vm_config": b"{}"}, "wrong_type", "vm_config: "),
        (
            {"app_keys": "appkeys.json"},
            "wrong_type",
            "app_keys: must be AppKeys, such as of AppKeys.load",
        ),
        ({"state_dir": 5}, "wrong_type", "state_dir: "),
        ({"no_such_option": 1}, "unknown_name", "no_such_option"),
    ],
)
def test_simulator_invalid_option_is_rejected(
    options: dict[str, Any], reason: str, subject: str
) -> None:
    """The error names the option."""
    with raises(UsageError, reason, part=subject) as caught:
        open_attester("simulator", **options)
    assert not repeated_subjects(caught.value)


# -- the boot sequence -------------------------------------------------------------------------


def boot_events(**options: Any) -> list[tuple[str, bytes]]:
    """Return names and payloads of a simulator's boot events."""
    with open_attester("simulator", **options) as tee:
        return [(event.name, event.payload) for event in tee.event_log().runtime]


def make_app_compose(**fields: object) -> bytes:
    """Return an app-compose.json."""
    base = {"manifest_version": 2, "name": "app", "runner": "docker-compose"}
    return json.dumps({**base, **fields}).encode()


def test_boot_sequence_follows_app_compose() -> None:
    """Scripts, policy, storage, version and no_instance_id are measured."""
    raw = make_app_compose(
        manifest_version="3",
        init_script=["one", "two"],
        requirements={"gpu_policy": {"attest_gpu": False}},
        storage_fs="ext4",
        no_instance_id=True,
        event_log_version=2,
    )
    boot = boot_events(app_compose=raw, app_id=b"\7" * 20)
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
        assert tee.attest(report_data=bytes(64)).to_bytes()[0] != 0  # version 1 of the format


def test_vm_config_is_returned_unchanged() -> None:
    """The text is not re-encoded."""
    text = '{ "os_image_hash" : "' + "ab" * 32 + '",\n "unknown": 1.50 }'
    with open_attester("simulator", vm_config=text) as tee:
        assert tee.vm_config == text
        assert tee.attest(report_data=bytes(64)).config == text
        assert tee.app_info.os_image_hash == b"\xab" * 32
    with open_attester("simulator", vm_config="") as tee:
        assert tee.app_info.os_image_hash == b""
