"""A recording knows the app that the host had told of, and never has its keys."""

import json
from pathlib import Path

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.base import AppHost, hosts_app
from attestkit.backends.simulator import Simulator
from attestkit.errors import UnsupportedError
from tests.backends.recording.recorded import leave_the_machine_out, record
from tests.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine

COMPOSE = b'{"manifest_version": 2, "name": "app", "runner": "docker-compose"}'


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine gets in."""
    leave_the_machine_out(tmp_path, monkeypatch)


def test_keys_are_never_recorded(tmp_path: Path) -> None:
    """They are there while it records, and a replay says why it has none."""
    path = tmp_path / "a.jsonl"
    with attestkit.open("recording", path=path, of="simulator", options={"seed": SEED}) as tee:
        secret = tee.keys.derive("wallet").key
    with (
        attestkit.open("recording", path=path) as tee,
        pytest.raises(UnsupportedError, match="keys are not recorded"),
    ):
        tee.keys.derive("wallet")
    agent = record(tmp_path / "b.jsonl", FakeAgent())
    with Attester(agent) as tee:
        assert tee.keys.derive("wallet").key == secret
    with attestkit.open("recording", path=tmp_path / "b.jsonl") as tee:
        for ask in (
            lambda: tee.keys.derive("wallet"),
            lambda: tee.keys.derive_separated("wallet", "p256"),
            lambda: tee.keys.sign(b"", "ed25519"),
        ):
            with pytest.raises(UnsupportedError, match="keys are not recorded"):
                ask()
    for file in tmp_path.glob("*.jsonl"):
        assert secret.hex() not in file.read_text()
        assert SEED.hex() not in file.read_text()


def test_what_the_host_shares_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of hardware has its configuration, on another machine too; keys stay."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "app-compose.json").write_bytes(COMPOSE)
    config = {"vm_config": '{"cpu_count": 2, "os_image_hash": "' + "11" * 32 + '"}'}
    (shared / ".sys-config.json").write_text(json.dumps(config))

    def use(tee: Attester) -> list[object]:
        evidence = tee.attest(b"nonce")
        return [evidence.to_bytes(), evidence.config, tee.app_compose.raw, tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    assert first[1:] == [config["vm_config"], COMPOSE, config["vm_config"]]
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first
        assert tee.host is not None
        with pytest.raises(UnsupportedError, match="keys are not recorded"):
            tee.keys.derive("")


def test_the_launch_document_of_an_snp_guest_is_recorded(tmp_path: Path) -> None:
    """Evidence carries it, so a replay has to know it."""
    from attestkit.attestation.launch.mr_config import host_data

    document = '{"version": 3, "app_id": "' + "22" * 20 + '"}'
    shared = tmp_path / "shared"
    shared.mkdir()
    config = {"vm_config": "{}", "mr_config": document}
    (shared / ".sys-config.json").write_text(json.dumps(config))
    backend = FakeSnp(host_data=host_data(document))
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        first = tee.attest(b"nonce")
    (shared / ".sys-config.json").unlink()
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        second = tee.attest(b"nonce")
        with pytest.raises(UnsupportedError, match=r"there is no .*app-compose.json"):
            _ = tee.app_compose
    assert second.to_bytes() == first.to_bytes()
    assert document.encode() in first.to_bytes()


def test_a_host_that_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay of such hardware knows no app either, and says what was missing."""

    def use(tee: Attester) -> list[object]:
        with pytest.raises(UnsupportedError, match="app-compose") as caught:
            _ = tee.app_compose
        return [tee.attest(b"").to_bytes(), str(caught.value), tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first


def test_hosts_app_asks_nothing() -> None:
    """Python before 3.12 would read the attributes, and files that are not there."""

    class Host(FakeSnp):
        @property
        def app_compose(self) -> object:
            raise AssertionError("asked")

        vm_config = app_keys = app_compose

    assert hosts_app(Host())
    assert hosts_app(Simulator())
    assert isinstance(Simulator(), AppHost)
    assert not hosts_app(FakeSnp())
