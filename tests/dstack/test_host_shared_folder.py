"""The host's app files are read on first access, and errors name the file."""

import errno
import json
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from attestkit.backends.base import AppHost
from attestkit.backends.environment import find_host_shared_folder
from attestkit.dstack import host_shared_folder
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import ConfigError, FormatError, UnsupportedError, UsageError
from attestkit.keys import AppKeys
from tests.raising import errno_of, raises
from tests.untyped import untyped
from tests.vectors import data, needs_shared

SEED = bytes(range(20))


def make_compose(**fields: object) -> bytes:
    """Return an app-compose.json."""
    base = {"manifest_version": 2, "name": "app", "runner": "bash"}
    return json.dumps({**base, **fields}).encode()


def write_folder(folder: Path, **files: object) -> Path:
    """Write files into a folder as a host does; keys replace dots of the names by underscores."""
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
def test_host_shared_reads_agent_files_once(tmp_path: Path) -> None:
    """All files are read under the agent's names, unchanged, and once each."""
    keys, app = data("dstack/simulator/appkeys.json"), data("dstack/simulator/app-compose.json")
    config = data("dstack/simulator/sys-config.json")
    write_folder(tmp_path, app_compose=app, app_keys=keys, sys_config=config)
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


def test_host_shared_missing_file_error_names_file_and_option(tmp_path: Path) -> None:
    """A file is read on first access; the error names file, variable and option."""
    for folder in (tmp_path, tmp_path / "nowhere", Path(__file__) / "no folder"):
        host = HostShared(folder)
        assert (host.vm_config, host.mr_config) == ("", "")
        with raises(UnsupportedError, "no_app") as caught:
            _ = host.app_compose
        for part in (f"{folder}/app-compose.json", "--app-compose", "$DSTACK_HOST_SHARED_DIR"):
            assert part in str(caught.value)
        with raises(UnsupportedError, "no_keys") as caught:
            _ = host.app_keys
        for part in (f"{folder}/.appkeys.json", "--app-keys", "$DSTACK_HOST_SHARED_DIR"):
            assert part in str(caught.value)
        host.close()


def test_host_shared_file_created_later_is_read(tmp_path: Path) -> None:
    """The absence of a file is not cached."""
    host = HostShared(tmp_path)
    with pytest.raises(UnsupportedError):
        _ = host.app_compose
    assert host.vm_config == ""
    write_folder(tmp_path, app_compose=make_compose(), sys_config={"vm_config": "{}"})
    assert host.app_compose.name == "app"
    assert host.vm_config == "{}"


def test_host_shared_named_file_replaces_host_file(tmp_path: Path) -> None:
    """A file named by the caller is used, and must exist."""
    write_folder(tmp_path, app_compose=make_compose())
    mine = tmp_path / "mine"
    mine.write_bytes(make_compose(name="mine"))
    assert HostShared(tmp_path, app_compose=mine).app_compose.name == "mine"
    gone = tmp_path / "gone"
    host = HostShared(tmp_path, app_compose=gone, app_keys=gone, sys_config=gone)
    for name in ("app_compose", "app_keys", "vm_config"):
        with raises(ConfigError, "unreadable") as caught:
            getattr(host, name)
        assert errno_of(caught.value) == errno.ENOENT
        assert str(gone) in str(caught.value)


def test_host_shared_invalid_file_error_names_file_and_key(tmp_path: Path) -> None:
    """The error names file, key and reason, and contains no secret."""
    write_folder(
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


def test_host_shared_unreadable_file_fails(tmp_path: Path) -> None:
    """A directory, a loop of links, a device and an oversized file are errors."""
    (tmp_path / "app-compose.json").mkdir()
    with raises(ConfigError, "unreadable") as folder:
        _ = HostShared(tmp_path).app_compose
    assert errno_of(folder.value) == errno.EISDIR
    (tmp_path / ".sys-config.json").symlink_to(".sys-config.json")
    with raises(ConfigError, "unreadable") as loop:
        _ = HostShared(tmp_path).vm_config
    assert errno_of(loop.value) == errno.ELOOP
    with raises(ConfigError, "unreadable") as device:
        host_shared_folder.read_file(Path("/dev/zero"))
    assert "/dev/zero" in str(device.value)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 40)
    with raises(ConfigError, "too_large"):
        host_shared_folder.read_file(tmp_path / "long")


# -- the boot ----------------------------------------------------------------------------------


def boot_payloads(host: HostShared, app_id: bytes | None = None) -> dict[str, bytes]:
    """Return the payloads that a boot would measure."""
    return {event.name: event.payload for event in host.boot_events(app_id)}


def test_boot_events_have_measured_payloads(tmp_path: Path) -> None:
    """App id, compose hash, instance, image and key provider follow the agent's rules."""
    app = AppCompose.parse(make_compose(storage_fs="ext4"))
    write_folder(
        tmp_path,
        app_compose=app.raw,
        sys_config={"vm_config": json.dumps({"os_image_hash": "ab" * 32})},
        instance_info={"instance_id_seed": SEED.hex(), "other": 1},
    )
    host = HostShared(tmp_path)
    found = boot_payloads(host)
    names = "system-preparing app-id compose-hash gpu-policy-hash instance-id boot-mr-done"
    assert list(found) == [*names.split(), "key-provider", "storage-fs", "system-ready"]
    assert found["app-id"] == app.compose_hash[:20]
    assert found["compose-hash"] == app.compose_hash
    assert found["instance-id"] == sha256(SEED + app.compose_hash[:20]).digest()[:20]
    assert found["key-provider"] == b'{"name":"none","id":""}'
    assert found["storage-fs"] == b"ext4"
    other = boot_payloads(host, b"\1" * 20)
    assert other["app-id"] == b"\1" * 20
    assert other["instance-id"] == sha256(SEED + b"\1" * 20).digest()[:20]


@needs_shared
def test_boot_events_with_kms_measure_provider_and_image(tmp_path: Path) -> None:
    """The key provider is measured, and with a KMS the image too."""
    kms = {"Kms": {"url": "", "pubkey": "0102", "tmp_ca_key": "", "tmp_ca_cert": ""}}
    keys = json.loads(data("dstack/simulator/appkeys.json")) | {"key_provider": kms}
    vm_config = json.dumps({"os_image_hash": "ab" * 32})
    write_folder(
        tmp_path, app_compose=make_compose(), app_keys=keys, sys_config={"vm_config": vm_config}
    )
    host = HostShared(tmp_path)
    assert boot_payloads(host)["key-provider"] == b'{"name":"kms","id":"0102"}'
    assert boot_payloads(host)["os-image-hash"] == b"\xab" * 32
    host.close()


def test_boot_events_without_instance_id(tmp_path: Path) -> None:
    """Without a seed, or if the app disables it, the instance id is empty."""
    write_folder(tmp_path, app_compose=make_compose())
    assert HostShared(tmp_path).instance_id(bytes(20)) == b""
    for info in ({}, {"instance_id_seed": ""}):
        write_folder(tmp_path, instance_info=info)
        assert HostShared(tmp_path).instance_id(bytes(20)) == b""
    seed = {"instance_id_seed": SEED.hex()}
    write_folder(tmp_path, app_compose=make_compose(no_instance_id=True), instance_info=seed)
    assert HostShared(tmp_path).instance_id(bytes(20)) == b""
    write_folder(tmp_path, app_compose=make_compose())
    assert len(HostShared(tmp_path).instance_id(bytes(20))) == 20


@pytest.mark.parametrize(
    "info", [b"", b"[]", {"instance_id_seed": 1}, {"instance_id_seed": "00"}, b"\xff"]
)
def test_boot_events_with_invalid_instance_info_fails(tmp_path: Path, info: object) -> None:
    """An invalid file is an error, since ignoring it would change the instance id."""
    write_folder(tmp_path, app_compose=make_compose(), instance_info=info)
    with pytest.raises(ConfigError, match=r"/\.instance_info: ") as caught:
        HostShared(tmp_path).boot_events()
    assert isinstance(caught.value.__cause__, FormatError)


def test_boot_events_with_invalid_app_id_is_usage_error(tmp_path: Path) -> None:
    """A boot requires an app, and its id has 20 bytes."""
    with raises(UnsupportedError, "no_app"):
        HostShared(tmp_path).boot_events()
    write_folder(tmp_path, app_compose=make_compose())
    for wrong in (b"", bytes(19), bytearray(20), "a" * 20):
        with raises(UsageError, "wrong_size"):
            HostShared(tmp_path).boot_events(untyped(wrong))


def test_host_shared_closed_during_read_wipes_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys read during a close are wiped, and none are read afterwards."""
    (tmp_path / ".appkeys.json").write_text(json.dumps(make_key_file(AppKeys.from_seed(bytes(32)))))
    host, read = HostShared(tmp_path), AppKeys.from_json
    closer = threading.Thread(target=host.close)

    def read_slowly(text: bytes, *, name: str) -> AppKeys:
        closer.start()
        closer.join(0.1)  # close must wait for this thread: otherwise the keys do not exist yet
        return read(text, name=name)

    monkeypatch.setattr(AppKeys, "from_json", read_slowly)
    keys = host.app_keys
    closer.join()
    with pytest.raises(UsageError, match="closed"):
        _ = keys.k256_key
    assert host.app_keys is keys
    unread = HostShared(tmp_path)
    unread.close()
    with raises(UsageError, "closed"):
        _ = unread.app_keys


def make_key_file(keys: AppKeys) -> dict[str, object]:
    """Return a key file; that of a KMS has no CA key."""
    return {
        "disk_crypt_key": "",
        "env_crypt_key": "",
        "k256_key": keys.k256_key.hex(),
        "k256_signature": "",
        "gateway_app_id": "",
        "ca_cert": keys.ca_cert,
        "key_provider": {"Kms": {"url": "", "pubkey": "", "tmp_ca_key": "", "tmp_ca_cert": ""}},
    }


def test_host_shared_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the guest's default or the one in the environment variable."""
    monkeypatch.delenv("DSTACK_HOST_SHARED_DIR", raising=False)
    assert str(find_host_shared_folder()) == "/dstack/.host-shared"
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    assert find_host_shared_folder() == tmp_path
