"""Tests of merging collateral: an older part never replaces a verified newer one."""

import errno
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import SimulatedPccs
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    QeIdentityConfig,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.caching_source import (
    CollateralLookup,
    CollateralSource,
    root_key_id,
)
from attestkit.collateral.intel_collateral import merge_newest
from attestkit.collateral.pccs_client import Platform
from attestkit.collateral.responses import Response
from tests.collateral.services import BASE, NOW, PKI, QUOTE, SERVED, Service, respond
from tests.pki.certificates import name_of
from tests.runner.cases import every_case

DAY: Final = timedelta(days=1)
PARTS: Final = {
    "tcb_info": ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
    "qe_identity": ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
    "pck_crl": ("pck_crl", "pck_crl_issuer_chain"),
    "root_ca_crl": ("root_ca_crl",),
}


def create_collateral(
    number: int = 18, *, age: timedelta = DAY, pki: SimulatedPki = PKI
) -> Collateral:
    """Return collateral of this age with this evaluation data number."""
    return pki.collateral(
        NOW,
        CollateralConfig(
            age=age,
            tcb_info=TcbInfoConfig(evaluation_number=number),
            qe_identity=QeIdentityConfig(evaluation_number=number),
        ),
    )


NEW: Final = create_collateral(19)
OLD: Final = create_collateral(18, age=20 * DAY)


class SharedFolder:
    """A cache folder and a PCCS; each source stands for another process."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.served = NEW
        self.requests = 0
        self.now = NEW.valid_from

    def get(self, url: str) -> Response:
        """Respond to a GET of the served collateral."""
        self.requests += 1
        return respond(SimulatedPccs(lambda: self.served, SERVED), url)

    def cache(self) -> CollateralCache:
        """Return a new cache on the folder."""
        return CollateralCache(self.folder, clock=lambda: self.now)

    def process(self) -> CollateralSource:
        """Return a new source on the folder."""
        return CollateralSource(BASE, getter=self.get, cache=self.cache())


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    """Return a folder with a service."""
    return SharedFolder(tmp_path)


def find_and_mark_verified(source: CollateralSource) -> CollateralLookup:
    """Return the collateral that a source finds, marked as verified."""
    found = source.find(QUOTE)
    source.mark_verified(found)
    return found


def refetch(source: CollateralSource) -> Collateral:
    """Return the collateral that a source refetches after a rejection."""
    changed = source.refetch(source.find(QUOTE))
    assert changed is not None
    return changed.collateral


# -- merging parts ---------------------------------------------------------------------------------


@every_case("part", PARTS)
def test_merge_newest_replaces_older_part(part: str) -> None:
    """Only the older part is replaced, with its signature and chain."""
    older_fields = {name: getattr(OLD, name) for name in PARTS[part]}
    assert merge_newest(NEW, replace(NEW, **older_fields)) == NEW
    newer_fields = {name: getattr(NEW, name) for name in PARTS[part]}
    mixed = merge_newest(replace(OLD, **newer_fields), OLD)
    assert mixed == replace(OLD, **newer_fields)


def test_merge_newest_compares_number_before_date() -> None:
    """Equal or newer parts are taken; the evaluation data number counts before the issue date."""
    assert merge_newest(OLD, NEW) is NEW
    changed = replace(NEW, tcb_info_issuer_chain=NEW.tcb_info_issuer_chain + "\n")
    assert merge_newest(NEW, changed) is changed
    recent = create_collateral(18, age=timedelta())
    assert merge_newest(NEW, recent) == replace(
        recent, **{name: getattr(NEW, name) for part in list(PARTS)[:2] for name in PARTS[part]}
    )
    newer = create_collateral(20, age=10 * DAY)
    assert merge_newest(NEW, newer).tcb_info == newer.tcb_info
    assert merge_newest(NEW, newer).pck_crl == NEW.pck_crl


@pytest.mark.parametrize("text", ["{}", "[", '{"tcbEvaluationDataNumber":"1"}'])
def test_merge_newest_accepts_unreadable_parts(text: str) -> None:
    """Unreadable parts are left for the verifier to reject."""
    broken = replace(NEW, tcb_info=text, pck_crl=b"0")
    assert merge_newest(NEW, broken) is broken
    assert merge_newest(broken, NEW) is NEW
    assert root_key_id(replace(NEW, tcb_info_issuer_chain=text)) is None


# -- cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_refetch_older_collateral_is_ignored(
    shared: SharedFolder, caplog: pytest.LogCaptureFixture, *, restart: bool
) -> None:
    """Refetched older collateral does not replace verified collateral, also after a restart."""
    first = shared.process()
    find_and_mark_verified(first)
    other = shared.process() if restart else first
    shared.served = OLD
    requests = shared.requests
    assert other.refetch(other.find(QUOTE)) is None
    assert shared.requests == requests + (4 if restart else 0)
    assert ("older collateral" in caplog.text) is restart
    for process in (first, other, shared.process()):
        assert process.find(QUOTE).collateral == NEW


def test_mark_verified_older_than_other_process_is_ignored(shared: SharedFolder) -> None:
    """Older collateral that one process verified does not replace newer of another process."""
    shared.served = OLD
    slow, quick = shared.process(), shared.process()
    found = slow.find(QUOTE)
    quick.find(QUOTE)
    shared.served = NEW
    changed = quick.refetch(quick.find(QUOTE))
    assert changed is not None
    quick.mark_verified(changed)
    slow.mark_verified(found)  # older than the collateral verified by the other process
    assert slow.find(QUOTE).collateral == NEW
    shared.served = OLD
    third = shared.process()
    assert third.find(QUOTE).collateral == NEW
    assert third.refetch(third.find(QUOTE)) is None


def test_find_older_entry_is_replaced_by_verified(shared: SharedFolder) -> None:
    """A cached entry that is older than verified collateral is replaced."""
    find_and_mark_verified(shared.process())
    source = shared.process()
    found = source.find(QUOTE)
    shared.cache().put(found.key, OLD)
    source = shared.process()
    assert source.find(QUOTE) == found
    assert shared.cache().get(found.key) == NEW
    assert shared.requests == 4


@pytest.mark.parametrize("folder", [False, True])
def test_find_expired_verified_collateral_is_not_replaced_by_older(
    shared: SharedFolder, *, folder: bool
) -> None:
    """Expired verified collateral is not replaced by an older part that is still valid."""
    shared.folder = shared.folder if folder else None
    source = shared.process()
    find_and_mark_verified(source)
    shared.now = OLD.valid_until - timedelta(hours=1)
    ended = replace(NEW, pck_crl=OLD.pck_crl, pck_crl_issuer_chain=OLD.pck_crl_issuer_chain)
    assert shared.now < ended.valid_until
    shared.now = NEW.valid_until
    shared.served = OLD
    source = shared.process() if folder else source
    assert (
        source.find(QUOTE).collateral == NEW
    )  # rejected by a verification, because it has expired
    fresh = create_collateral(19, age=-30 * DAY)
    shared.served = fresh
    assert source.find(QUOTE).collateral == fresh


def create_future_certificate() -> str:
    """Return a self-signed certificate in PEM that becomes valid long after now."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    name = name_of("nobody")
    start = NEW.valid_from + 20 * 365 * DAY
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + DAY)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_find_ignores_dates_of_chain(shared: SharedFolder, when: str, *, folder: bool) -> None:
    """The dates of the PCK CRL's chain do not hide newer collateral."""
    shared.folder = shared.folder if folder else None
    chained = replace(NEW, pck_crl_issuer_chain=create_future_certificate())
    assert chained.valid_from > shared.now
    source = shared.process()
    for served in (chained,) if when == "before" else (NEW, chained):
        shared.served = served
        find_and_mark_verified(source)
        source = shared.process() if folder else source
    shared.served = OLD
    found = source.find(QUOTE).collateral
    assert (found.tcb_info, found.pck_crl) == (NEW.tcb_info, NEW.pck_crl)


def test_mark_verified_at_future_time_is_ignored(shared: SharedFolder) -> None:
    """Collateral verified for a future time does not replace the current one."""
    source = shared.process()
    find_and_mark_verified(source)
    shared.served = create_collateral(20, age=-30 * DAY)
    later = source._fetch(source.find(QUOTE).key, "tdx", Platform("507757000000", "platform"))
    source.mark_verified(source.find(QUOTE)._replace(shared=later, collateral=later))
    shared.served = OLD
    assert shared.process().find(QUOTE).collateral.tcb_info == NEW.tcb_info


def test_merged_entry_keeps_its_age(shared: SharedFolder) -> None:
    """A merged entry keeps the time of its fetch, and expires by it."""
    find_and_mark_verified(shared.process())
    shared.served = OLD
    key = shared.process().find(QUOTE).key
    shared.cache().put(key, OLD)
    shared.now += timedelta(hours=20)
    requests = shared.requests
    source = CollateralSource(
        BASE, getter=shared.get, cache=shared.cache(), max_age=timedelta(hours=30)
    )
    assert source.find(QUOTE).collateral == NEW
    assert shared.requests == requests
    shared.now += timedelta(hours=11)
    assert source.find(QUOTE).collateral == NEW
    assert shared.requests == requests + 4


def test_cache_replace_changed_entry_is_kept(shared: SharedFolder) -> None:
    """`replace` does nothing if another thread has changed the entry."""
    cache = shared.cache()
    key = ("", BASE, "tdx", "00806F050000", "platform")
    assert cache.replace(key, OLD, NEW) is None
    cache.put(key, NEW)
    assert cache.replace(key, OLD, create_collateral(20)) is None
    assert cache.get(key) is NEW


def test_forged_newer_collateral_replaces_nothing(shared: SharedFolder) -> None:
    """Unverified collateral with a higher number neither stays nor removes verified collateral."""
    number = b'"tcbEvaluationDataNumber":19'.decode()
    forged = replace(NEW, tcb_info=NEW.tcb_info.replace(number, number.replace("19", "99")))
    assert forged != NEW
    find_and_mark_verified(shared.process())
    for served, expected in ((forged, forged), (OLD, NEW), (forged, forged), (NEW, NEW)):
        shared.served = served
        assert refetch(shared.process()) == expected


def test_merge_ignores_other_root(shared: SharedFolder) -> None:
    """Collateral of different roots is not compared."""
    find_and_mark_verified(shared.process())
    other = create_collateral(1, age=25 * DAY, pki=SimulatedPki(bytes(32)))
    shared.served = other
    assert refetch(shared.process()) == other


def test_verified_collateral_from_future_is_replaced(shared: SharedFolder) -> None:
    """Collateral verified while the clock was wrong is replaced."""
    shared.served = future = create_collateral(19, age=-40 * DAY)
    shared.now = future.valid_from
    find_and_mark_verified(shared.process())
    shared.served, shared.now = NEW, NEW.valid_from
    assert find_and_mark_verified(shared.process()).collateral == NEW
    shared.served = OLD
    source = shared.process()
    assert source.refetch(source.find(QUOTE)) is None


def full_disk(*_: object) -> None:
    """Raise the error of writing to a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_verified_collateral_that_cannot_be_written_is_kept(
    shared: SharedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older collateral in the folder does not hide newer collateral in memory."""
    shared.served = create_collateral(17, age=25 * DAY)
    source = shared.process()
    found = find_and_mark_verified(source)
    monkeypatch.setattr("attestkit.collateral.cache.write_cache_file", full_disk)
    for served in (NEW, OLD, OLD):
        shared.served = served
        fetched = source._fetch(found.key, "tdx", Platform("507757000000", "platform"))
        assert fetched == NEW
        source.mark_verified(found._replace(shared=fetched, collateral=fetched))


def test_verified_files_are_bounded(tmp_path: Path) -> None:
    """Files of verified collateral have the same limit as entries, and do not count as such."""
    cache = CollateralCache(tmp_path, limit=2, clock=lambda: NEW.valid_from)
    for name in "abc":
        cache.put((name,), NEW)
        cache.put_verified((name,), NEW)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.kept"))) == 2
    assert len(cache._entries) == len(cache._verified) == 2
    assert cache.get(("c",)) == cache.get_verified(("c",)) == NEW
    assert cache.get_verified(("a",)) is None


def test_source_without_cache_caches_nothing() -> None:
    """A source without cache fetches each time."""
    source = CollateralSource(BASE, getter=Service())
    find_and_mark_verified(source)
    assert find_and_mark_verified(source).cached is False
