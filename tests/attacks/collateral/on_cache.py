"""Attempts on the cache of collateral: older collateral, files of others, links and pipes."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from attestkit._system.cache_folder import add_checksum
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache, Key
from attestkit.errors import (
    AttestKitError,
    ConfigError,
)
from tests.attacks.attempts import Surfaces
from tests.collateral.services import (
    QUOTE,
)
from tests.collateral.test_merge import NEW, OLD, SharedFolder, find_and_mark_verified, refetch
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, fixed_clock

attacks = Surfaces("collateral")

RAW: Final = intel.evidence().to_bytes()
KEY: Final[Key] = ("http://pccs.test", "tdx", "507757000000", "platform")
ATTACKER: Final = SimulatedPki(bytes(32))


# -- rollback ----------------------------------------------------------------------------------


@attacks.attempt("replay")
def older_collateral_after_a_restart(tmp_path: Path) -> None:
    """Verified collateral is not replaced by older collateral."""
    shared = SharedFolder(tmp_path)
    find_and_mark_verified(shared.process())
    shared.served = OLD
    again = shared.process()
    assert again.refetch(again.find(QUOTE)) is None
    assert shared.process().find(QUOTE).collateral == NEW


FOREIGN_CHAIN: Final = ATTACKER.collateral(NOW.timestamp()).tcb_info_issuer_chain
HIDING: Final[dict[str, Callable[[Collateral], Collateral]]] = {
    "with a further root in the chain": lambda old: replace(
        old, tcb_info_issuer_chain=old.tcb_info_issuer_chain + FOREIGN_CHAIN
    ),
    "with the chain of another PKI": lambda old: replace(old, tcb_info_issuer_chain=FOREIGN_CHAIN),
    "with a number that is text": lambda old: replace(
        old,
        tcb_info=old.tcb_info.replace(
            '"tcbEvaluationDataNumber":18', '"tcbEvaluationDataNumber":"99"'
        ),
    ),
    "with a second, larger number": lambda old: replace(
        old, tcb_info=old.tcb_info[:-1] + ',"tcbEvaluationDataNumber":99}'
    ),
}


def hidden_rollback(change: Callable[[Collateral], Collateral], tmp_path: Path) -> object:
    """Serve older collateral, changed so that it is not compared with the verified one."""
    shared = SharedFolder(tmp_path)
    shared.now = NOW
    find_and_mark_verified(shared.process())
    shared.served = change(OLD)
    for file in tmp_path.glob("*.json"):  # the fetched entries only
        file.unlink()
    found = shared.process().find(QUOTE).collateral
    assert found.tcb_info != OLD.tcb_info or found.tcb_info_issuer_chain != CHAIN
    return intel.verifier(collateral=found).verify(RAW, report_data=NONCE)


CHAIN: Final = OLD.tcb_info_issuer_chain
for title, change in HIDING.items():
    attacks.add(
        "replay",
        f"older collateral {title}",
        partial(hidden_rollback, change),
        AttestKitError,
        "chain_length",
        "untrusted_root",
        "tcb_info_bad_signature",
        "malformed",
    )


@attacks.attempt("forge")
def forged_newer_collateral_does_not_stay(tmp_path: Path) -> None:
    """A network attacker once serves a number that no later answer reaches."""
    shared = SharedFolder(tmp_path)
    find_and_mark_verified(shared.process())
    text = NEW.tcb_info.replace('"tcbEvaluationDataNumber":19', '"tcbEvaluationDataNumber":99')
    shared.served = replace(NEW, tcb_info=text)
    assert refetch(shared.process()) == shared.served
    shared.served = NEW
    assert refetch(shared.process()) == NEW


# -- cache files -------------------------------------------------------------------------------


def entry(folder: Path, **changes: Any) -> bytes:
    """Store collateral; return its file with other members and a right checksum."""
    CollateralCache(folder, clock=fixed_clock).put(KEY, intel.collateral())
    [path] = folder.glob("*.json")
    members = json.loads(path.read_bytes().split(b"\n", 1)[1]) | changes
    raw = add_checksum(json.dumps(members).encode())
    path.write_bytes(raw)
    return raw


FILES: Final[dict[str, dict[str, Any]]] = {
    "of another platform": {"key": [*KEY[:2], "00806F050000", "platform"]},
    "of a service of the attacker": {"key": ["http://attacker.test", *KEY[1:]]},
    "fetched in the future": {"fetched_at": "2099-01-01T00:00:00+00:00"},
    "fetched at a time without a zone": {"fetched_at": "2026-09-21T00:00:00"},
    "fetched at a number": {"fetched_at": 0},
    "of another version": {"version": 2},
    "of a version that is true": {"version": "1"},
    "without collateral": {"collateral": None},
    "of expired collateral": {
        "collateral": json.loads(intel.PKI.collateral(NOW.timestamp() - 90 * 86400).to_json())
    },
}


def misleading(changes: dict[str, Any], tmp_path: Path) -> None:
    """A file that another program wrote is ignored, and no error."""
    entry(tmp_path)
    assert CollateralCache(tmp_path, clock=fixed_clock).get(KEY) == intel.collateral()
    entry(tmp_path, **changes)
    assert CollateralCache(tmp_path, clock=fixed_clock).get(KEY) is None


for title, changes in FILES.items():
    attacks.add("confuse", f"cache file {title}", partial(misleading, changes))


@attacks.attempt("confuse")
def cache_file_under_the_name_of_another_key(tmp_path: Path) -> None:
    """The owner of the folder is trusted, and still a moved file is not taken for another."""
    cached = CollateralCache(tmp_path, clock=fixed_clock)
    cached.put(KEY, intel.collateral())
    other: Key = (*KEY[:2], "00806F050000", "platform")
    [path] = tmp_path.glob("*.json")
    path.rename(cached._path(tmp_path, other, ".json"))
    assert CollateralCache(tmp_path, clock=fixed_clock).get(other) is None


@attacks.attempt("confuse")
def fetched_file_under_the_name_of_a_verified_one(tmp_path: Path) -> None:
    """Unverified collateral that poses as verified would hide genuine, older parts."""
    cached = CollateralCache(tmp_path, clock=fixed_clock)
    cached.put(KEY, intel.collateral())
    [path] = tmp_path.glob("*.json")
    path.rename(path.with_suffix(".kept"))
    # The key of verified collateral begins with the hash of its root.
    assert CollateralCache(tmp_path, clock=fixed_clock).get_verified(("x", *KEY)) is None


@attacks.attempt("confuse")
def cache_file_that_is_a_link(tmp_path: Path) -> None:
    """A link to a file of another user is not followed, in reading and in writing."""
    folder = tmp_path / "cache"
    raw = entry(folder)
    [path] = folder.glob("*.json")
    target = tmp_path / "elsewhere"
    target.write_bytes(raw)
    path.unlink()
    path.symlink_to(target)
    cached = CollateralCache(folder, clock=fixed_clock)
    assert cached.get(KEY) is None
    cached.put(KEY, NEW)
    assert target.read_bytes() == raw


@attacks.attempt("exhaust")
def cache_file_that_is_a_pipe(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever."""
    entry(tmp_path)
    [path] = tmp_path.glob("*.json")
    path.unlink()
    os.mkfifo(path)
    start = time.monotonic()
    assert CollateralCache(tmp_path, clock=fixed_clock).get(KEY) is None
    assert time.monotonic() - start < 1


@attacks.attempt("exhaust")
def cache_file_of_a_gigabyte(tmp_path: Path) -> None:
    """A sparse file is not read into memory."""
    entry(tmp_path)
    [path] = tmp_path.glob("*.json")
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    start = time.process_time()
    assert CollateralCache(tmp_path, clock=fixed_clock).get(KEY) is None
    assert time.process_time() - start < 1


@attacks.attempt("confuse", ConfigError, "permissions")
def cache_folder_that_is_a_link_of_another_user(tmp_path: Path) -> object:
    """A folder of another user would be a cache that he writes."""
    if os.geteuid() != 0:
        raise ConfigError("only root can give a folder away", reason="unreadable")
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    return CollateralCache(folder)
