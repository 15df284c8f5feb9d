"""App data in a recording: the host's configuration, but never keys."""

import json
from pathlib import Path

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.base import AppHost, hosts_app
from attestkit.backends.simulator import Simulator
from attestkit.errors import UnsupportedError
from tests.backends.recording.recorded import record
from tests.raising import raises
from tests.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine

COMPOSE = b'{"manifest_version": 2, "name": "app", "runner": "docker-compose"}'


def test_keys_are_never_recorded(tmp_path: Path) -> None:
    """They are available while recording, and unsupported in a replay."""
    path = tmp_path / "a.jsonl"
    with attestkit.open("recording", path=path, of="simulator", options={"seed": SEED}) as tee:
        secret = tee.keys.derive_compat("wallet").key
    with (
        attestkit.open("recording", path=path) as tee,
        raises(UnsupportedError, "no_keys"),
    ):
        tee.keys.derive_compat("wallet")
    agent = record(tmp_path / "b.jsonl", FakeAgent())
    with Attester(agent) as tee:
        assert tee.keys.derive_compat("wallet").key == secret
    with attestkit.open("recording", path=tmp_path / "b.jsonl") as tee:
        for use in (
            lambda: tee.keys.derive_compat("wallet"),
            lambda: tee.keys.derive("wallet", "p256"),
            lambda: tee.keys.sign(b"", "ed25519"),
        ):
            with raises(UnsupportedError, "no_keys"):
                use()
    for file in tmp_path.glob("*.jsonl"):
        assert secret.hex() not in file.read_text()
        assert SEED.hex() not in file.read_text()


def test_host_shared_files_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay on another machine has the configuration of hardware evidence, without keys."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "app-compose.json").write_bytes(COMPOSE)
    config = {"vm_config": '{"cpu_count": 2, "os_image_hash": "' + "11" * 32 + '"}'}
    (shared / ".sys-config.json").write_text(json.dumps(config))

    def use(tee: Attester) -> list[object]:
        evidence = tee.attest(report_data=b"nonce", pad=True)
        return [evidence.to_bytes(), evidence.config, tee.app_compose.raw, tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    assert first[1:] == [config["vm_config"], COMPOSE, config["vm_config"]]
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first
        assert tee.host is not None
        with raises(UnsupportedError, "no_keys"):
            tee.keys.derive_compat("")


def test_snp_launch_document_is_recorded(tmp_path: Path) -> None:
    """The document is part of the evidence."""
    from attestkit.attestation.launch.mr_config import host_data

    document = '{"version": 3, "app_id": "' + "22" * 20 + '"}'
    shared = tmp_path / "shared"
    shared.mkdir()
    config = {"vm_config": "{}", "mr_config": document}
    (shared / ".sys-config.json").write_text(json.dumps(config))
    backend = FakeSnp(host_data=host_data(document))
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        first = tee.attest(report_data=b"nonce", pad=True)
    (shared / ".sys-config.json").unlink()
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        second = tee.attest(report_data=b"nonce", pad=True)
        with raises(UnsupportedError, "no_app"):
            _ = tee.app_compose
    assert second.to_bytes() == first.to_bytes()
    assert document.encode() in first.to_bytes()


def test_recording_without_host_shared_files_has_no_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay raises the recorded error."""

    def use(tee: Attester) -> list[object]:
        with raises(UnsupportedError, "no_app") as caught:
            _ = tee.app_compose
        return [tee.attest(report_data=bytes(64)).to_bytes(), str(caught.value), tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first


def test_hosts_app_reads_no_attributes() -> None:
    """Isinstance of Python before 3.12 would read them."""

    class Host(FakeSnp):
        @property
        def app_compose(self) -> object:
            raise AssertionError("attribute read")

        vm_config = app_keys = app_compose

    assert hosts_app(Host())
    assert hosts_app(Simulator())
    assert isinstance(Simulator(), AppHost)
    assert not hosts_app(FakeSnp())
