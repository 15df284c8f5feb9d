"""Look-up of OS images by hash."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.measure import read_dstack_image
from attestkit.verifier.images import image_store
from attestkit.verifier.images.image_store import ImageStore
from tests.measure.image_samples import archive, image_files, write_folder
from tests.processes import in_child
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.images.booted_images import boot_files, image_hash, store
from tests.verifier.platforms import intel

FILES = boot_files()
HEX = image_hash(FILES)
HASH = bytes.fromhex(HEX)


def test_folder_is_found_by_hash(tmp_path: Path) -> None:
    """The folder of an image has the hash as its name; others are not looked at."""
    store(tmp_path / "images", FILES)
    store(tmp_path / "images", FILES, name="dstack-0.5.4")
    found = ImageStore(tmp_path / "images").find_facts(HASH)
    assert found == ("0.5.4", False)
    assert ImageStore(tmp_path / "images").find_facts(bytes(32)) is None


@pytest.mark.parametrize("name", ["{}.tar.gz", "mr_{}.tar.gz"])
@pytest.mark.parametrize("inner", ["", "dstack-0.5.4"])
def test_archive_is_found_by_hash(tmp_path: Path, name: str, inner: str) -> None:
    """An archive has the hash in its name."""
    (tmp_path / name.format(HEX)).write_bytes(archive(FILES, folder=inner))
    assert ImageStore(tmp_path).find_facts(HASH) == ("0.5.4", False)


def test_folder_may_be_that_of_one_image(tmp_path: Path) -> None:
    """The folder may be an image itself."""
    folder = write_folder(tmp_path / "dstack-0.5.4", FILES)
    assert ImageStore(folder).find_facts(HASH) == ("0.5.4", False)


def test_mapping_has_paths_and_images(tmp_path: Path) -> None:
    """A mapping names a folder, an archive or an image that was read, by the hash in hex."""
    folder = write_folder(tmp_path / "a", FILES)
    for source in (folder, str(folder), read_dstack_image(folder)):
        assert ImageStore({HEX.upper(): source}).find_facts(HASH) == ("0.5.4", False)
    assert ImageStore({}).find_facts(HASH) is None


def test_image_under_another_hash_is_refused(tmp_path: Path) -> None:
    """A folder whose image has another hash than its name is an error, not that image."""
    other = image_files(version="0.5.5")
    store(tmp_path, other, name=HEX)
    with raises(ConfigError, "wrong_value", part=image_hash(other)):
        ImageStore(tmp_path).find_facts(HASH)
    with raises(ConfigError, "wrong_value", part=image_hash(other)):
        ImageStore({HEX: read_dstack_image(tmp_path / HEX)}).find_facts(HASH)


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_hash_of_another_size_is_not_looked_up(tmp_path: Path, size: int) -> None:
    """Only 32 bytes name an image, so that the folder itself is never one."""
    write_folder(tmp_path / "images", FILES)
    assert ImageStore(tmp_path / "images").find_facts(HASH[:size].ljust(size, b"x")) is None


@pytest.mark.parametrize("name", ["bzImage", "sha256sum.txt", "metadata.json"])
def test_symbolic_link_in_image_is_refused(tmp_path: Path, name: str) -> None:
    """A link in place of a file is not followed, although its target would be right."""
    folder = store(tmp_path / "images", FILES)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        ImageStore(tmp_path / "images").find_facts(HASH)
    assert name in str(caught.value)


def test_link_to_folder_of_image_is_followed(tmp_path: Path) -> None:
    """The user may link the folder of an image under its hash; its files are checked the same."""
    target = write_folder(tmp_path / "dstack-0.5.4", FILES)
    images = tmp_path / "images"
    images.mkdir()
    (images / HEX).symlink_to(target)
    assert ImageStore(images).find_facts(HASH) == ("0.5.4", False)
    (images / ("11" * 32)).symlink_to(tmp_path / "missing")
    assert ImageStore(images).find_facts(b"\x11" * 32) is None


@pytest.mark.parametrize("name", ["bzImage", "sha256sum.txt"])
def test_pipe_in_image_is_refused(tmp_path: Path, name: str) -> None:
    """A pipe without a writer does not block."""
    folder = store(tmp_path / "images", FILES)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ConfigError) as caught:
        ImageStore(tmp_path / "images").find_facts(HASH)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [HEX, f"{HEX}.tar.gz"])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, name: str) -> None:
    """A file in place of a folder is read as an archive."""
    (tmp_path / name).write_bytes(b"no archive")
    with raises(ConfigError, "wrong_value", part="gzip"):
        ImageStore(tmp_path).find_facts(HASH)


def test_file_replaced_after_a_look_up_is_refused_by_a_new_store(tmp_path: Path) -> None:
    """Digests of an intact image stay valid; a store that reads the altered files refuses them."""
    folder = store(tmp_path, FILES)
    known = ImageStore(tmp_path)
    assert known.find_facts(HASH) is not None
    (folder / "bzImage").write_bytes(b"another kernel")
    assert known.find_facts(HASH) is not None
    with raises(ConfigError, "wrong_value", part="bzImage"):
        ImageStore(tmp_path).find_facts(HASH)


def test_image_swapped_between_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is exchanged while it is read has files of two images, and is refused."""
    from attestkit.measure.image_files import FolderSource

    folder = store(tmp_path, FILES)
    other = image_files(version="0.5.5")
    read = FolderSource.read_files
    calls: list[int] = []

    def swap(source: FolderSource, limits: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the list and the metadata have been read
            write_folder(folder, other)
        return read(source, limits)

    monkeypatch.setattr(FolderSource, "read_files", swap)
    with pytest.raises(ConfigError):
        ImageStore(tmp_path).find_facts(HASH)
    assert len(calls) == 2


def test_kernel_that_is_read_again_must_be_that_of_the_image(tmp_path: Path) -> None:
    """For a memory size that changes the kernel the image is read again, and checked again."""
    folder = store(tmp_path, FILES)
    found = ImageStore(tmp_path).find(HASH)
    assert found is not None
    memory = 5 << 29  # 2.5 GiB
    first = found.kernel_events(memory, (9, 2), second_separator=False)
    (folder / "bzImage").write_bytes(b"another kernel")
    assert found.kernel_events(memory, (9, 2), second_separator=False) == first
    assert found.kernel_events(2 << 30, (9, 2), second_separator=False) != first
    with raises(ConfigError, "wrong_value", part="bzImage"):
        found.kernel_events(memory + (1 << 20), (9, 2), second_separator=False)


def test_images_may_be_added_while_in_use(tmp_path: Path) -> None:
    """A folder is searched again for an unknown image."""
    images = ImageStore(tmp_path)
    assert images.find_facts(HASH) is None
    store(tmp_path, FILES)
    assert images.find_facts(HASH) is not None


def test_threads_read_an_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that need the same image wait for the one that reads it."""
    store(tmp_path, FILES)
    reads: list[object] = []

    def count(path: Any) -> Any:
        reads.append(path)
        return read_dstack_image(path)

    monkeypatch.setattr(image_store, "read_dstack_image", count)
    images, found = ImageStore(tmp_path), []
    threads = [
        threading.Thread(target=lambda: found.append(images.find_facts(HASH))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("0.5.4", False)] * 4
    assert len(reads) == 1


def test_locks_that_are_held_at_a_fork_do_not_block_the_child(tmp_path: Path) -> None:
    """A child reads images, and computes kernels of those that its parent has read."""
    other = boot_files(version="0.5.5")
    store(tmp_path, FILES)
    store(tmp_path, other)
    images = ImageStore(tmp_path)
    known = images.find(HASH)
    assert known is not None

    def child() -> None:
        assert images.find_facts(bytes.fromhex(image_hash(other))) == ("0.5.5", False)
        assert known.kernel_events(5 << 29, (9, 2), second_separator=False)

    with images._reading, known._lock:
        assert in_child(child)


def test_number_of_remembered_images_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest image is forgotten, and read again."""
    monkeypatch.setattr(image_store, "_MOST_KNOWN", 1)
    other = boot_files(version="0.5.5")
    folder = store(tmp_path, FILES)
    store(tmp_path, other)
    images = ImageStore(tmp_path)
    assert images.find_facts(HASH) is not None
    assert images.find_facts(bytes.fromhex(image_hash(other))) is not None
    (folder / "bzImage").unlink()
    with raises(ConfigError, "wrong_value", part="bzImage"):
        images.find_facts(HASH)


def test_damaged_image_is_not_read_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any evidence may name it, so it is read again only after 10 seconds."""
    now, reads = [100.0], []

    def read(source: Any) -> Any:
        reads.append(source)
        return read_dstack_image(source)

    monkeypatch.setattr(image_store, "read_dstack_image", read)
    path = store(tmp_path, FILES) / "bzImage"
    content = path.read_bytes()
    path.write_bytes(b"damaged")
    images = ImageStore(tmp_path)
    monkeypatch.setattr(images._damaged, "_timer", lambda: now[0])
    for seconds in (0.0, 0.0, 9.9):
        now[0] += seconds
        with raises(ConfigError, "wrong_value", part="bzImage"):
            images.find_facts(HASH)
        assert len(reads) == 1
        path.write_bytes(content)
    now[0] += 0.2
    assert images.find_facts(HASH) is not None
    assert len(reads) == 2


@pytest.mark.parametrize("listed", [False, True])
def test_relative_path_is_that_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, listed: bool
) -> None:
    """A store keeps its folder when the process changes its own, also in another process."""
    folder = store(tmp_path / "images", FILES)
    monkeypatch.chdir(tmp_path)
    images = ImageStore({HEX: f"images/{folder.name}"} if listed else "images")
    monkeypatch.chdir("/")
    for one in (images, pickle.loads(pickle.dumps(images))):
        assert one.find_facts(HASH) is not None


@every_case(
    ("images", "reason"),
    [
        (5, "wrong_type"),
        ({"ab": "folder"}, "wrong_value"),
        ({"zz" * 32: "folder"}, "wrong_value"),
        ({f" {HEX}": "folder"}, "wrong_value"),
        ({HEX: 5}, "wrong_type"),
        ({HASH: "folder"}, "wrong_type"),
        ({f"{number:064x}": "folder" for number in range(257)}, "too_many"),
    ],
    ids=str,
)
def test_wrong_argument_is_refused(images: Any, reason: str) -> None:
    """A wrong argument is refused when the verifier is created."""
    with pytest.raises(UsageError) as caught:
        intel.verifier(images=images)
    assert caught.value.reason == reason


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """A folder that does not exist, or a file, is refused when the verifier is created."""
    (tmp_path / "file").write_bytes(b"")
    for name in ("missing", "file"):
        with raises(ConfigError, "unreadable", part=name):
            intel.verifier(images=tmp_path / name)


def test_verifier_with_images_pickles(tmp_path: Path) -> None:
    """A verifier with images works in another process."""
    store(tmp_path, FILES)
    verifier = intel.verifier(images=str(tmp_path), clock=intel.fixed_clock)
    assert isinstance(pickle.loads(pickle.dumps(verifier)), type(verifier))
