"""The files of an app on hardware are read when they are wanted, and told by name if missing."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from attestkit.backends import host_shared_folder
from attestkit.backends.base import AppHost
from attestkit.dstack import host_shared_folder as host_shared
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import ConfigError, UnsupportedError, UsageError
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.keys import AppKeys
from tests.untyped import untyped
from tests.vectors import data, needs_shared

SEED = bytes(range(20))


def compose(**fields: object) -> bytes:
    """Return an app-compose.json."""
    base = {"manifest_version": 2, "name": "app", "runner": "bash"}
    return json.dumps({**base, **fields}).encode()


def folder_with(folder: Path, **files: object) -> Path:
    """Fill a folder as a host does; keys of `files` have underscores where names have dots."""
    names = {
        "app_compose": "app-compose.json",
        "app_keys": ".appkeys.json",
        "sys_config": ".sys-config.json",
        "instance_info": ".instance_info",
    }
    for key, content in files.items():
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / names[key]).write_bytes(text)
    return folder


@needs_shared
def test_the_files_of_an_agent(tmp_path: Path) -> None:
    """All of them, under the agent's names, kept as they came; each is read once."""
    keys, app = data("dstack/simulator/appkeys.json"), data("dstack/simulator/app-compose.json")
    config = data("dstack/simulator/sys-config.json")
    folder_with(tmp_path, app_compose=app, app_keys=keys, sys_config=config)
    host = HostShared(tmp_path)
    assert isinstance(host, AppHost)
    assert host.app_compose.raw == app
    assert host.vm_config == json.loads(config)["vm_config"]
    assert host.mr_config == ""
    assert host.app_keys.ca_cert == json.loads(keys)["ca_cert"]
    for path in tmp_path.iterdir():
        path.unlink()
    assert host.app_keys is host.app_keys
    assert host.app_compose is host.app_compose
    assert host.vm_config
    host.close()
    host.close()
    with pytest.raises(UsageError, match="closed"):
        _ = host.app_keys.k256_key


def test_a_folder_without_files_names_what_is_missing(tmp_path: Path) -> None:
    """Nothing is read before it is asked for; then file, variable and option are named."""
    for folder in (tmp_path, tmp_path / "nowhere", Path(__file__) / "no folder"):
        host = HostShared(folder)
        assert (host.vm_config, host.mr_config) == ("", "")
        with pytest.raises(UnsupportedError) as caught:
            _ = host.app_compose
        for word in (f"{folder}/app-compose.json", "--app-compose", "$DSTACK_HOST_SHARED_DIR"):
            assert word in str(caught.value)
        with pytest.raises(UnsupportedError, match=r"/\.appkeys\.json.*--app-keys"):
            _ = host.app_keys
        host.close()


def test_what_comes_later_is_found(tmp_path: Path) -> None:
    """That a file was missing is not kept."""
    host = HostShared(tmp_path)
    with pytest.raises(UnsupportedError):
        _ = host.app_compose
    assert host.vm_config == ""
    folder_with(tmp_path, app_compose=compose(), sys_config={"vm_config": "{}"})
    assert host.app_compose.name == "app"
    assert host.vm_config == "{}"


def test_a_named_file_wins_and_must_be_there(tmp_path: Path) -> None:
    """Whoever names a file means that one, not the host's."""
    folder_with(tmp_path, app_compose=compose())
    mine = tmp_path / "mine"
    mine.write_bytes(compose(name="mine"))
    assert HostShared(tmp_path, app_compose=mine).app_compose.name == "mine"
    gone = tmp_path / "gone"
    host = HostShared(tmp_path, app_compose=gone, app_keys=gone, sys_config=gone)
    for name in ("app_compose", "app_keys", "vm_config"):
        with pytest.raises(ConfigError, match=f"{gone}: No such file"):
            getattr(host, name)


def test_wrong_files_are_told_by_name(tmp_path: Path) -> None:
    """File, key and reason, and no secret."""
    folder_with(
        tmp_path, app_compose=b"{}", app_keys=b'{"k256_key": "s3cret"}', sys_config={"vm_config": 1}
    )
    host = HostShared(tmp_path)
    with pytest.raises(ConfigError, match=r"/app-compose\.json: manifest_version"):
        _ = host.app_compose
    with pytest.raises(ConfigError, match=r"/\.appkeys\.json: ") as caught:
        _ = host.app_keys
    assert "s3cret" not in str(caught.value)
    for name in ("vm_config", "mr_config"):
        with pytest.raises(ConfigError, match=r"/\.sys-config\.json: .*vm_config"):
            getattr(host, name)


def test_a_file_that_cannot_be_read_is_no_missing_file(tmp_path: Path) -> None:
    """A folder in its place, a loop of links, a device and a file of any size are errors."""
    (tmp_path / "app-compose.json").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        _ = HostShared(tmp_path).app_compose
    (tmp_path / ".sys-config.json").symlink_to(".sys-config.json")
    with pytest.raises(ConfigError, match="a link that leads on and on, which is not foll"):
        _ = HostShared(tmp_path).vm_config
    with pytest.raises(ConfigError, match="/dev/zero: not a regular file"):
        host_shared.read_file(Path("/dev/zero"))
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="/long: longer than"):
        host_shared.read_file(tmp_path / "long")


def test_the_launch_document(tmp_path: Path) -> None:
    """What the machine was launched with is in sys-config, or in the machine's configuration."""
    inner = json.dumps({"mr_config": "inner"})
    folder_with(tmp_path, sys_config={"vm_config": inner})
    assert HostShared(tmp_path).mr_config == "inner"
    folder_with(tmp_path, sys_config={"vm_config": inner, "mr_config": "outer"})
    assert HostShared(tmp_path).mr_config == "outer"


# -- the boot ----------------------------------------------------------------------------------


def payloads(host: HostShared, app_id: bytes | None = None) -> dict[str, bytes]:
    """Return what would be measured."""
    return {event.name: event.payload for event in host.boot_events(app_id)}


def test_what_a_boot_measures(tmp_path: Path) -> None:
    """App id, compose hash, instance, image and key provider, by the agent's rules."""
    app = AppCompose.parse(compose(storage_fs="ext4"))
    folder_with(
        tmp_path,
        app_compose=app.raw,
        sys_config={"vm_config": json.dumps({"os_image_hash": "ab" * 32})},
        instance_info={"instance_id_seed": SEED.hex(), "other": 1},
    )
    host = HostShared(tmp_path)
    found = payloads(host)
    names = "system-preparing app-id compose-hash gpu-policy-hash instance-id boot-mr-done"
    assert list(found) == [*names.split(), "key-provider", "storage-fs", "system-ready"]
    assert found["app-id"] == app.compose_hash[:20]
    assert found["compose-hash"] == app.compose_hash
    assert found["instance-id"] == sha256(SEED + app.compose_hash[:20]).digest()[:20]
    assert found["key-provider"] == b'{"name":"none","id":""}'
    assert found["storage-fs"] == b"ext4"
    other = payloads(host, b"\1" * 20)
    assert other["app-id"] == b"\1" * 20
    assert other["instance-id"] == sha256(SEED + b"\1" * 20).digest()[:20]


@needs_shared
def test_keys_of_a_kms_are_told(tmp_path: Path) -> None:
    """Where the keys come from is measured, and with a KMS the image too."""
    kms = {"Kms": {"url": "", "pubkey": "0102", "tmp_ca_key": "", "tmp_ca_cert": ""}}
    keys = json.loads(data("dstack/simulator/appkeys.json")) | {"key_provider": kms}
    vm_config = json.dumps({"os_image_hash": "ab" * 32})
    folder_with(tmp_path, app_compose=compose(), app_keys=keys, sys_config={"vm_config": vm_config})
    host = HostShared(tmp_path)
    assert payloads(host)["key-provider"] == b'{"name":"kms","id":"0102"}'
    assert payloads(host)["os-image-hash"] == b"\xab" * 32
    host.close()


def test_instances_that_are_not_told_apart(tmp_path: Path) -> None:
    """Without a seed, or where the app wants none, the instance id is empty."""
    folder_with(tmp_path, app_compose=compose())
    assert HostShared(tmp_path).instance_id(bytes(20)) == b""
    for info in ({}, {"instance_id_seed": ""}):
        folder_with(tmp_path, instance_info=info)
        assert HostShared(tmp_path).instance_id(bytes(20)) == b""
    seed = {"instance_id_seed": SEED.hex()}
    folder_with(tmp_path, app_compose=compose(no_instance_id=True), instance_info=seed)
    assert HostShared(tmp_path).instance_id(bytes(20)) == b""
    folder_with(tmp_path, app_compose=compose())
    assert len(HostShared(tmp_path).instance_id(bytes(20))) == 20


@pytest.mark.parametrize(
    "info", [b"", b"[]", {"instance_id_seed": 1}, {"instance_id_seed": "00"}, b"\xff"]
)
def test_a_wrong_instance_info_is_told(tmp_path: Path, info: object) -> None:
    """It is not taken for none: the instance would be another one after every boot."""
    folder_with(tmp_path, app_compose=compose(), instance_info=info)
    with pytest.raises(ConfigError, match=r"/\.instance_info: "):
        HostShared(tmp_path).boot_events()


def test_a_boot_needs_an_app(tmp_path: Path) -> None:
    """And an id is 20 bytes."""
    with pytest.raises(UnsupportedError, match=r"app-compose\.json"):
        HostShared(tmp_path).boot_events()
    folder_with(tmp_path, app_compose=compose())
    for wrong in (b"", bytes(19), bytearray(20), "a" * 20):
        with pytest.raises(UsageError, match="20 bytes"):
            HostShared(tmp_path).boot_events(untyped(wrong))


def test_the_version_of_events_is_the_apps(tmp_path: Path) -> None:
    """The same events, digested otherwise."""
    folder_with(tmp_path, app_compose=compose(event_log_version=2))
    events = HostShared(tmp_path).boot_events()
    assert {event.version for event in events} == {2}
    assert replay_from(ZERO, events) != ZERO


def test_files_are_read_once_by_many_threads(tmp_path: Path) -> None:
    """So that there is one set of keys to wipe."""
    (tmp_path / ".appkeys.json").write_text(json.dumps(key_file(AppKeys.from_seed(bytes(32)))))
    host = HostShared(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: id(host.app_keys), range(8)))
    assert len(found) == 1
    host.close()


def test_no_keys_outlive_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are read while somebody closes are wiped, and none are read behind that."""
    (tmp_path / ".appkeys.json").write_text(json.dumps(key_file(AppKeys.from_seed(bytes(32)))))
    host, read = HostShared(tmp_path), AppKeys.from_json
    closer = threading.Thread(target=host.close)

    def read_slowly(text: bytes, *, name: str) -> AppKeys:
        closer.start()
        closer.join(0.1)  # it has to wait for us: else it is done before there is a key to wipe
        return read(text, name=name)

    monkeypatch.setattr(AppKeys, "from_json", read_slowly)
    keys = host.app_keys
    closer.join()
    with pytest.raises(UsageError, match="closed"):
        _ = keys.k256_key
    assert host.app_keys is keys
    unread = HostShared(tmp_path)
    unread.close()
    with pytest.raises(UsageError, match=r"^these files of the host are closed$"):
        _ = unread.app_keys


def key_file(keys: AppKeys) -> dict[str, object]:
    """Return the content of a key file; a KMS's, which has no key of an authority."""
    return {
        "disk_crypt_key": "",
        "env_crypt_key": "",
        "k256_key": keys.k256_key.hex(),
        "k256_signature": "",
        "gateway_app_id": "",
        "ca_cert": keys.ca_cert,
        "key_provider": {"Kms": {"url": "", "pubkey": "", "tmp_ca_key": "", "tmp_ca_cert": ""}},
    }


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guest's own programs look, or where the variable says."""
    monkeypatch.delenv("DSTACK_HOST_SHARED_DIR", raising=False)
    assert str(host_shared_folder()) == "/dstack/.host-shared"
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    assert host_shared_folder() == tmp_path
