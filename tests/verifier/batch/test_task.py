"""Tests of verify_many: outcomes in order, on any executor."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from attestkit.collateral.cache import CollateralCache
from attestkit.errors import AttestKitError, FormatError, PolicyError, UsageError
from attestkit.verifier import AttestationResult, EvidenceBundle, VerificationItem, Verifier
from tests.untyped import untyped
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, PKI, RecordingGetter, fixed_clock
from tests.verifier.platforms.snp import test_revocation as amd_lists
from tests.verifier.platforms.vtpm.made_tpm import EXTRA
from tests.verifier.tpm import test_ak_collateral as keys

RAW = intel.evidence().to_bytes()


def create_verifier() -> Verifier:
    """Return a verifier that pickles."""
    return Verifier(trust_anchor=PKI.root_der, collateral=intel.collateral())


@pytest.fixture(scope="module", params=["here", "threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    """Return an executor of each kind, or None."""
    if request.param == "here":
        yield None
    elif request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool
    else:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            yield pool


def describe_outcome(found: AttestationResult | AttestKitError) -> str:
    """Return "good", or the name of the error's class."""
    return "good" if isinstance(found, AttestationResult) else type(found).__name__


def test_verify_many_keeps_order_and_errors(executor: Executor | None) -> None:
    """Each outcome has its item's place; a rejection keeps its reason and steps."""
    kinds = [
        VerificationItem(RAW, report_data=NONCE),
        VerificationItem(RAW, report_data=b"other"),
        VerificationItem(RAW[:-1], report_data=NONCE),
        VerificationItem(RAW, report_data=None),
        VerificationItem(b"", report_data=NONCE),
    ]
    items = [kinds[index * 7 % 5] for index in range(83)]
    calls: list[tuple[int, int]] = []
    found = create_verifier().verify_many(
        iter(items), executor, progress=lambda done, total: calls.append((done, total)), now=NOW
    )
    expected = ("good", "PolicyError", "FormatError", "good", "FormatError")
    assert [describe_outcome(each) for each in found] == [
        expected[index * 7 % 5] for index in range(83)
    ]
    rejection = next(each for each in found if isinstance(each, PolicyError))
    assert rejection.reason == "report_data"
    assert rejection.steps
    assert [total for _, total in calls] == [83] * len(calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (83, 83)


def test_verify_many_collateral_of_item(executor: Executor | None) -> None:
    """The collateral of an item is used for that item only."""
    without = Verifier(trust_anchor=PKI.root_der)
    items = [
        VerificationItem(RAW, report_data=NONCE),
        VerificationItem(RAW, report_data=NONCE, collateral=intel.collateral()),
    ]
    assert [describe_outcome(each) for each in without.verify_many(items, executor, now=NOW)] == [
        "CollateralError",
        "good",
    ]


def describe_bundles(
    verifier: Verifier, executor: Executor | None, given: list[EvidenceBundle]
) -> list[str]:
    """Verify bundles of one time; return "accepted" or the reason of each."""
    items = [
        VerificationItem(one.evidence, report_data=one.report_data, bundle=one) for one in given
    ]
    found = verifier.verify_many(items, executor, now=given[0].at)
    return [each.reason if isinstance(each, AttestKitError) else "accepted" for each in found]


def test_verify_many_certificates_and_lists_of_bundle(executor: Executor | None) -> None:
    """Those of a bundle are used for its item only, and a bundle causes no request."""
    verifier = keys.verifier(keys.Server(), clock=fixed_clock)
    issuer, revoking = keys.ISSUER.built.der, keys.ISSUER.crl(keys.LEAF.serial)
    kinds = {
        "accepted": keys.bundle(issuer, *keys.CLEAN),
        "cert_revoked": keys.bundle(issuer, revoking),
        "missing": keys.bundle(),  # its certificates would be fetched for evidence without bundle
    }
    names = [*kinds] * 20
    assert describe_bundles(verifier, executor, [kinds[name] for name in names]) == names
    plain = VerificationItem(keys.evidence(), report_data=EXTRA)
    assert all(verifier.verify_many([plain], executor, now=keys.NOW))


def test_verify_many_lists_of_amd_in_bundle(executor: Executor | None) -> None:
    """A CRL of a bundle revokes its item only."""
    clean, revoked = amd_lists.bundle(), amd_lists.bundle(amd_lists.crl(amd_lists.ASK))
    found = describe_bundles(amd_lists.verifier(), executor, [clean, revoked, clean])
    assert found == ["accepted", "cert_revoked", "accepted"]


def test_verify_many_bundle_must_be_one(executor: Executor | None) -> None:
    """An object of another type in place of a bundle rejects its item."""
    item = VerificationItem(RAW, report_data=NONCE, bundle=untyped({}))
    [found] = create_verifier().verify_many([item], executor, now=NOW)
    assert isinstance(found, UsageError)
    assert found.reason == "wrong_type"


def test_pickled_item_has_evidence_of_its_bundle_once() -> None:
    """Content that an item shares with its bundle is sent to a worker once."""
    shared = EvidenceBundle(bytes(10_000), None, NOW, gpu_evidence=b"\1" * 10_000)
    item = VerificationItem(
        shared.evidence, report_data=NONCE, gpu=shared.gpu_evidence, bundle=shared
    )
    pickled = pickle.dumps(item)
    assert len(pickled) < 21_000
    assert pickle.loads(pickled) == item


@pytest.mark.parametrize("cached_in", ["memory", "folder"])
def test_verify_many_fetches_collateral_once_per_process(
    executor: Executor | None, tmp_path: Path, cached_in: str
) -> None:
    """Threads share the cache of the verifier, and each process keeps its own between chunks."""
    getter = RecordingGetter(tmp_path / "urls")
    cache = (
        CollateralCache(tmp_path / "cache", clock=fixed_clock) if cached_in == "folder" else None
    )
    verifier = Verifier(
        trust_anchor=PKI.root_der,
        pccs_url="http://pccs",
        getter=getter,
        cache=cache,
        clock=fixed_clock,
    )
    for _ in range(2):
        found = verifier.verify_many(
            [VerificationItem(RAW, report_data=NONCE)] * 100, executor, now=NOW
        )
        assert {describe_outcome(each) for each in found} == {"good"}
    processes = 2 if isinstance(executor, ProcessPoolExecutor) else 1
    assert 4 <= len(getter.urls()) <= 4 * processes
    assert len(set(getter.urls())) == 4


def test_verify_many_empty_or_invalid_items() -> None:
    """No items give no outcomes; an invalid item is rejected in its place."""
    assert create_verifier().verify_many([]) == []
    nonsense: list[Any] = [5, (RAW,), VerificationItem(RAW, report_data=NONCE)]
    found = create_verifier().verify_many(nonsense, now=NOW)
    assert [describe_outcome(each) for each in found] == ["UsageError", "UsageError", "good"]


def test_verify_many_progress_error_propagates() -> None:
    """An exception of the progress callback ends the batch and propagates."""

    def failing(_done: int, _total: int) -> None:
        raise KeyError("mine")

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match="mine"):
        create_verifier().verify_many(
            [VerificationItem(RAW, report_data=NONCE)] * 40, pool, failing, now=NOW
        )


# -- truth of outcomes ----------------------------------------------------------------------------


def test_batch_outcome_is_true_only_for_accepted_evidence(executor: Executor | None) -> None:
    """`if outcome:` accepts no evidence that was rejected, on any executor."""
    items = [VerificationItem(RAW, report_data=each) for each in (NONCE, b"other", None)]
    items.append(VerificationItem(b"", report_data=NONCE))
    verifier, accepted = create_verifier(), [True, False, True, False]
    assert [bool(each) for each in verifier.verify_many(items, executor, now=NOW)] == accepted
    stream = verifier.verify_stream(items, executor, ordered=True, now=NOW)
    assert [bool(each) for _, each in stream] == accepted


def test_batch_returned_error_is_not_lost_when_raised() -> None:
    """An executor of Python ignores a false exception, so a raised error is true."""
    [error] = create_verifier().verify_many([VerificationItem(b"", report_data=NONCE)], now=NOW)
    assert isinstance(error, FormatError)
    assert bool(error) is False

    def fail() -> None:
        raise error

    with ThreadPoolExecutor(1) as pool, pytest.raises(FormatError):
        pool.submit(fail).result()
    assert bool(error) is True
    with pytest.raises(FormatError) as caught:
        create_verifier().verify(b"", report_data=NONCE)
    assert caught.value.with_traceback(None)


def verify_nothing() -> list[AttestationResult | AttestKitError]:
    """Return the outcome of empty evidence."""
    return create_verifier().verify_many([VerificationItem(b"", report_data=NONCE)], now=NOW)


def raise_outcome() -> None:
    """Raise the outcome of empty evidence."""
    [error] = verify_nothing()
    assert isinstance(error, FormatError)
    raise error


def test_batch_returned_error_in_other_process() -> None:
    """A copy of a returned error is false too; one that another process raised is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        [error] = pool.submit(verify_nothing).result()
        with pytest.raises(FormatError) as caught:
            pool.submit(raise_outcome).result()
    for each in (error, copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert bool(each) is False
    assert bool(caught.value.with_traceback(None)) is True


@dataclass(frozen=True)
class LabelledItem(VerificationItem):
    """An item with a field of its own."""

    label: str


def test_pickled_item_of_subclass_keeps_its_fields() -> None:
    """Workers of another process get all that a caller has put into an item."""
    item = LabelledItem(RAW, report_data=NONCE, label="first")
    assert pickle.loads(pickle.dumps(item)) == item
