"""Older collateral never takes the place of newer that has passed, whoever fetches it and when."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    QeIdentityConfig,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.caching_source import CollateralSource, Found
from attestkit.collateral.merge import newest, root_of
from attestkit.collateral.pccs_client import Platform, Response
from tests.collateral.services import BASE, NOW, PKI, QUOTE, Service, answers
from tests.verifier import parcels

DAY: Final = timedelta(days=1)
PARTS: Final = {
    "tcb_info": ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
    "qe_identity": ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
    "pck_crl": ("pck_crl", "pck_crl_issuer_chain"),
    "root_ca_crl": ("root_ca_crl",),
}


def said(number: int = 18, *, age: timedelta = DAY, pki: SimulatedPki = PKI) -> Collateral:
    """Return what was said by a root that long ago, with that evaluation data number."""
    return pki.collateral(
        NOW,
        CollateralConfig(
            age=age,
            tcb_info=TcbInfoConfig(evaluation_number=number),
            qe_identity=QeIdentityConfig(evaluation_number=number),
        ),
    )


NEW: Final = said(19)
OLD: Final = said(18, age=20 * DAY)


class World:
    """A folder, and a service that says what it is told to; every source is another process."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.says = NEW
        self.asked = 0
        self.now = NEW.valid_from

    def get(self, url: str) -> Response:
        """Get a URL."""
        self.asked += 1
        return answers(self.says, url)

    def cache(self) -> CollateralCache:
        """Return a cache as a process opens it."""
        return CollateralCache(self.folder, clock=lambda: self.now)

    def process(self) -> CollateralSource:
        """Return a source as a process has it."""
        return CollateralSource(BASE, getter=self.get, cache=self.cache())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a folder with a service."""
    return World(tmp_path)


def let_pass(source: CollateralSource) -> Found:
    """Return what a source finds, which passes a verification."""
    found = source.find(QUOTE)
    source.passed(found)
    return found


def asked_again(source: CollateralSource) -> Collateral:
    """Return what a source has in place of what it found, over which evidence was refused."""
    again = source.find_again(source.find(QUOTE))
    assert again is not None
    return again.collateral


# -- part by part ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_older_gives_way(part: str) -> None:
    """With its signature and its chain, and without the others."""
    theirs = {name: getattr(OLD, name) for name in PARTS[part]}
    assert newest(NEW, replace(NEW, **theirs)) == NEW
    ours = {name: getattr(NEW, name) for name in PARTS[part]}
    mixed = newest(replace(OLD, **ours), OLD)
    assert mixed == replace(OLD, **ours)


def test_what_is_as_old_or_newer_is_taken() -> None:
    """A number counts before the date at which it was said."""
    assert newest(OLD, NEW) is NEW
    again = replace(NEW, tcb_info_issuer_chain=NEW.tcb_info_issuer_chain + "\n")
    assert newest(NEW, again) is again
    late = said(18, age=timedelta())
    assert newest(NEW, late) == replace(
        late, **{name: getattr(NEW, name) for part in list(PARTS)[:2] for name in PARTS[part]}
    )
    early = said(20, age=10 * DAY)
    assert newest(NEW, early).tcb_info == early.tcb_info
    assert newest(NEW, early).pck_crl == NEW.pck_crl


@pytest.mark.parametrize("text", ["{}", "[", '{"tcbEvaluationDataNumber":"1"}'])
def test_what_cannot_be_read_is_for_the_verifier_to_refuse(text: str) -> None:
    """It is no reason to fail here, on either side."""
    broken = replace(NEW, tcb_info=text, pck_crl=b"0")
    assert newest(NEW, broken) is broken
    assert newest(broken, NEW) is NEW


def test_roots() -> None:
    """A root is known by its key, and no root by None."""
    assert root_of(NEW) == root_of(OLD)
    assert root_of(said(pki=SimulatedPki(bytes(32)))) not in {root_of(NEW), None}
    assert root_of(replace(NEW, tcb_info_issuer_chain="none")) is None


# -- a cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_older_collateral_replaces_nothing(
    world: World, caplog: pytest.LogCaptureFixture, *, restart: bool
) -> None:
    """Not where what is cached is doubted before this process has seen it pass."""
    first = world.process()
    let_pass(first)
    other = world.process() if restart else first
    world.says = OLD
    asked = world.asked
    assert other.find_again(other.find(QUOTE)) is None
    assert world.asked == asked + (4 if restart else 0)
    assert ("older collateral" in caplog.text) is restart
    for process in (first, other, world.process()):
        assert process.find(QUOTE).collateral == NEW


def test_two_processes_at_once(world: World) -> None:
    """One has in memory what was; neither what it lets pass nor what it fetches is believed."""
    world.says = OLD
    slow, quick = world.process(), world.process()
    found = slow.find(QUOTE)
    quick.find(QUOTE)
    world.says = NEW
    again = quick.find_again(quick.find(QUOTE))
    assert again is not None
    quick.passed(again)
    slow.passed(found)  # is older than what has passed elsewhere, and is not used again
    assert slow.find(QUOTE).collateral == NEW
    world.says = OLD
    third = world.process()
    assert third.find(QUOTE).collateral == NEW
    assert third.find_again(third.find(QUOTE)) is None


def test_an_older_entry_is_not_used(world: World) -> None:
    """Whoever put it there: what has passed is looked at before it is."""
    let_pass(world.process())
    source = world.process()
    found = source.find(QUOTE)
    world.cache().put(found.key, OLD)
    source = world.process()
    assert source.find(QUOTE) == found
    assert world.cache().get(found.key) == NEW
    assert world.asked == 4


@pytest.mark.parametrize("folder", [False, True])
def test_what_has_ended_still_counts(world: World, *, folder: bool) -> None:
    """When there is nothing to use any more, an older part that is in date is not taken."""
    world.folder = world.folder if folder else None
    source = world.process()
    let_pass(source)
    world.now = OLD.valid_until - timedelta(hours=1)
    ended = replace(NEW, pck_crl=OLD.pck_crl, pck_crl_issuer_chain=OLD.pck_crl_issuer_chain)
    assert world.now < ended.valid_until
    world.now = NEW.valid_until
    world.says = OLD
    source = world.process() if folder else source
    assert source.find(QUOTE).collateral == NEW  # which a verification refuses, for it has ended
    fresh = said(19, age=-30 * DAY)
    world.says = fresh
    assert source.find(QUOTE).collateral == fresh


def from_the_future() -> str:
    """Return a certificate of nobody's, in PEM, that is valid from long after now."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    start = NEW.valid_from + 20 * 365 * DAY
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + DAY)
    return made.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_chain_that_nobody_looks_at_hides_nothing(
    world: World, when: str, *, folder: bool
) -> None:
    """Its dates are a stranger's to choose, and such collateral passes a verification."""
    world.folder = world.folder if folder else None
    chained = replace(NEW, pck_crl_issuer_chain=from_the_future())
    assert chained.valid_from > world.now
    genuine = parcels.collateral()
    foreign = replace(genuine, pck_crl_issuer_chain=chained.pck_crl_issuer_chain)
    judge = parcels.verifier(collateral=foreign)
    judge.verify(parcels.evidence().to_bytes(), report_data=parcels.NONCE)
    source = world.process()
    for says in (chained,) if when == "before" else (NEW, chained):
        world.says = says
        let_pass(source)
        source = world.process() if folder else source
    world.says = OLD
    found = source.find(QUOTE).collateral
    assert (found.tcb_info, found.pck_crl) == (NEW.tcb_info, NEW.pck_crl)


def test_what_has_passed_at_another_time_does_not_count(world: World) -> None:
    """Of a verification at an instant to come: what counts now stays."""
    source = world.process()
    let_pass(source)
    world.says = said(20, age=-30 * DAY)
    later = source._ask(source.find(QUOTE).key, "tdx", Platform("00806F050000", "platform"))
    source.passed(source.find(QUOTE)._replace(shared=later, collateral=later))
    world.says = OLD
    assert world.process().find(QUOTE).collateral.tcb_info == NEW.tcb_info


def test_what_is_amended_is_no_younger(world: World) -> None:
    """An entry stays as old as it was fetched, and one that has ended is none."""
    let_pass(world.process())
    world.says = OLD
    key = world.process().find(QUOTE).key
    world.cache().put(key, OLD)
    world.now += timedelta(hours=20)
    asked = world.asked
    source = CollateralSource(
        BASE, getter=world.get, cache=world.cache(), max_age=timedelta(hours=30)
    )
    assert source.find(QUOTE).collateral == NEW
    assert world.asked == asked
    world.now += timedelta(hours=11)
    assert source.find(QUOTE).collateral == NEW
    assert world.asked == asked + 4


def test_what_is_amended_may_have_gone(world: World) -> None:
    """Where another thread has put something else since, that is not touched."""
    cache = world.cache()
    key = ("", BASE, "tdx", "00806F050000", "platform")
    assert cache.amend(key, OLD, NEW) is None
    cache.put(key, NEW)
    assert cache.amend(key, OLD, said(20)) is None
    assert cache.get(key) is NEW


def test_a_forgery_locks_nothing_out(world: World) -> None:
    """What says it is newer, and has not passed, is not held to; nor is what has passed lost."""
    number = b'"tcbEvaluationDataNumber":19'.decode()
    forged = replace(NEW, tcb_info=NEW.tcb_info.replace(number, number.replace("19", "99")))
    assert forged != NEW
    let_pass(world.process())
    for says, want in ((forged, forged), (OLD, NEW), (forged, forged), (NEW, NEW)):
        world.says = says
        assert asked_again(world.process()) == want


def test_another_root_is_not_compared(world: World) -> None:
    """A simulator with a new seed may be younger or older than the one before it."""
    let_pass(world.process())
    other = said(1, age=25 * DAY, pki=SimulatedPki(bytes(32)))
    world.says = other
    assert asked_again(world.process()) == other


def test_what_comes_from_the_future_does_not_count(world: World) -> None:
    """What passed while the clock was wrong holds nothing back, and is put right."""
    world.says = future = said(19, age=-40 * DAY)
    world.now = future.valid_from
    let_pass(world.process())
    world.says, world.now = NEW, NEW.valid_from
    assert let_pass(world.process()).collateral == NEW
    world.says = OLD
    source = world.process()
    assert source.find_again(source.find(QUOTE)) is None


def test_kept_files_are_bounded(tmp_path: Path) -> None:
    """They are as many as entries, and take no entry's place."""
    cache = CollateralCache(tmp_path, limit=2, clock=lambda: NEW.valid_from)
    for name in "abc":
        cache.put((name,), NEW)
        cache.keep((name,), NEW)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.kept"))) == 2
    assert len(cache._entries) == len(cache._kept) == 2
    assert cache.get(("c",)) == cache.kept(("c",)) == NEW
    assert cache.kept(("a",)) is None


def test_without_a_cache_nothing_is_kept() -> None:
    """A source that keeps nothing has nothing to compare with."""
    source = CollateralSource(BASE, getter=Service())
    let_pass(source)
    assert let_pass(source).cached is False
