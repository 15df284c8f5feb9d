"""Keys from a local key provider are accepted only from the expected enclave, for this TD."""

import json
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import (
    SGX_COLLATERAL,
    SGX_QUOTES,
    SgxQuotingEnclave,
)
from attestkit.errors import AttestKitError, CollateralError, KmsError, PolicyError, UsageError
from attestkit.keys import AppKeys
from attestkit.kms.local_provider import SealedKey, fetch_local_keys, provider_policy
from attestkit.kms.local_provider.sealed_key import (
    derive_seed,
    open_seed,
    provider_report_data,
    seal_seed,
    td_measurements,
    td_report_data,
)
from attestkit.quote import Quote
from attestkit.verifier import AppraisalPolicy, KeyProvider, Verifier
from attestkit.verifier.claims import TcbStatus
from tests.kms.local_provider.machine import (
    ENCLAVE,
    NOW,
    PKI,
    SEED,
    TD,
    make_provider,
    make_verifier,
)
from tests.raising import raises
from tests.runner.cases import every_case

LOCAL_APP = json.dumps(
    {
        "manifest_version": 2,
        "name": "app",
        "runner": "docker-compose",
        "docker_compose_file": "services: {}",
        "key_provider": "local",
    }
).encode()
SEALING_KEY = bytes(range(16))
VERIFIER = make_verifier()
SECRET = bytes(range(1, 33))
Change = Callable[[SealedKey], SealedKey]


@pytest.fixture(scope="module")
def provider() -> Any:
    """Return a provider with a known sealing key."""
    with make_provider(sealing_key=SEALING_KEY) as provider:
        yield provider


def fetch(provider: Any, change: Change = lambda answer: answer, **options: Any) -> AppKeys:
    """Fetch the keys of `TD` from a provider, whose answers are changed."""
    given: dict[str, Any] = {"verifier": VERIFIER, "now": NOW} | options
    return fetch_local_keys(TD.get_quote, lambda quote: change(provider.release(quote)), **given)


def test_keys_are_those_of_the_formula(provider: Any) -> None:
    """The keys follow from sealing key and registers; the id is the MRENCLAVE."""
    seed = derive_seed(SEALING_KEY, td_measurements(Quote.parse(TD.get_quote(bytes(64)))))
    with (
        fetch(provider) as keys,
        fetch(provider, mr_enclave=ENCLAVE.mr_enclave) as again,
        AppKeys.from_seed(seed) as expected,
    ):
        assert keys.k256_key == again.k256_key == expected.k256_key
        assert keys.disk_crypt_key == expected.disk_crypt_key
        assert (keys.env_crypt_key, keys.k256_signature) == (b"", b"")
        assert (keys.key_provider, keys.key_provider_id) == ("local", ENCLAVE.mr_enclave.hex())
        assert seed.hex() not in repr(keys)


def test_keys_are_kept_in_the_key_file(provider: Any, tmp_path: Path) -> None:
    """The file has the provider as dstack writes it, and gives the same keys, log and chain."""
    path = tmp_path / ".appkeys.json"
    with fetch(provider) as keys:
        keys.save(path)
        with AppKeys.load(path) as again:
            assert again.k256_key == keys.k256_key
            assert again.ca_cert == keys.ca_cert
            assert (again.key_provider, again.key_provider_id) == (
                "local",
                ENCLAVE.mr_enclave.hex(),
            )
    found = json.loads(path.read_text())["key_provider"]
    assert found["Local"]["mr"] == ENCLAVE.mr_enclave.hex()
    assert list(found["Local"]) == ["key", "mr"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_event_of_the_boot_names_the_enclave(provider: Any) -> None:
    """A TD with these keys measures the MRENCLAVE, and a policy of its verifier requires it."""
    with fetch(provider) as keys:
        guest = Simulator(seed=SEED, app_keys=keys, app_compose=LOCAL_APP, now=lambda: NOW)
        evidence = Attester(guest).attest(nonce=b"nonce of 16 bytes")
    identity = KeyProvider(name="local-sgx", id=ENCLAVE.mr_enclave)
    other = KeyProvider(name="local-sgx", id=bytes(32))
    for accepted, holds in ((identity, True), (other, False)):
        policy = AppraisalPolicy.default().replace(key_provider=[accepted])
        verifier = Verifier(
            trust_anchor=PKI.root_der, collateral=PKI.collateral(NOW), policy=policy
        )
        if holds:
            verifier.verify(evidence, nonce=b"nonce of 16 bytes", now=NOW)
        else:
            with raises(PolicyError, "key_provider"):
                verifier.verify(evidence, nonce=b"nonce of 16 bytes", now=NOW)


def test_other_enclave_has_other_keys_and_is_refused_by_the_pin(provider: Any) -> None:
    """The sealing key depends on the MRENCLAVE; a pin, by argument or policy, refuses another."""
    other = ENCLAVE._replace(mr_enclave=bytes(range(32)))
    with make_provider(enclave=other) as stranger, make_provider() as own:
        with fetch(stranger) as keys, fetch(own) as ours:
            assert keys.k256_key != ours.k256_key
            assert keys.key_provider_id == bytes(range(32)).hex()
        with raises(KmsError, "wrong_provider"):
            fetch(stranger, mr_enclave=ENCLAVE.mr_enclave)
        pinned = make_verifier(provider_policy(ENCLAVE.mr_enclave))
        with raises(KmsError, "evidence_refused"):
            fetch(stranger, verifier=pinned)
        fetch(own, verifier=pinned).close()
    with raises(UsageError, "wrong_size"):
        fetch(provider, mr_enclave=bytes(31))
    with raises(UsageError, "wrong_size"):
        provider_policy(bytes(31))


def forged(**config: Any) -> Change:
    """Return a change that replaces the quote by one of a deviating quoting enclave."""
    enclave = SgxQuotingEnclave(PKI, config=msgspec.structs.replace(SGX_QUOTES, **config))
    return lambda answer: answer._replace(
        provider_quote=enclave.quote(
            ENCLAVE._replace(report_data=provider_report_data(answer.encrypted_key))
        )
    )


def over_other_seed(answer: SealedKey) -> SealedKey:
    """Replace the sealed seed by one that the host made; the quote is of the old one."""
    box = seal_seed(bytes(32), td_report_data(x25519_public_key(SECRET)))
    return answer._replace(encrypted_key=box)


def with_debug_enclave(answer: SealedKey) -> SealedKey:
    """Replace the quote by one of an enclave in debug mode."""
    report_data = provider_report_data(answer.encrypted_key)
    debug = ENCLAVE._replace(report_data=report_data, attributes=b"\x07" + ENCLAVE.attributes[1:])
    return answer._replace(provider_quote=SgxQuotingEnclave(PKI).quote(debug))


def with_td_quote(answer: SealedKey) -> SealedKey:
    """Replace the quote by one of a TD over the same report data."""
    quote = TD.get_quote(provider_report_data(answer.encrypted_key))
    return answer._replace(provider_quote=quote)


def with_other_half(answer: SealedKey) -> SealedKey:
    """Replace the quote by one whose report data do not end in zeros."""
    report_data = provider_report_data(answer.encrypted_key)[:32] + b"\1" * 32
    quote = SgxQuotingEnclave(PKI).quote(ENCLAVE._replace(report_data=report_data))
    return answer._replace(provider_quote=quote)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (over_other_seed, "evidence_refused"),
        (with_debug_enclave, "evidence_refused"),
        (with_td_quote, "evidence_refused"),
        (with_other_half, "evidence_refused"),
        (forged(pck_key="other"), "evidence_refused"),
        (forged(attestation_key="other", bound_key="another"), "malformed"),
        (forged(qe_isvsvn=2), "evidence_refused"),  # OutOfDate
        (lambda answer: answer._replace(provider_quote=b""), "malformed"),
        (lambda answer: answer._replace(provider_quote=answer.provider_quote[:-1]), "malformed"),
    ],
)
def test_answer_of_hostile_host_is_refused(provider: Any, change: Change, reason: str) -> None:
    """A sealed seed or a quote that is not the enclave's gives no keys."""
    with raises(KmsError, reason):
        fetch(provider, change)


@every_case("size", [0, 48, 79, 81, 112])
def test_sealed_seed_of_other_size_is_refused(size: int) -> None:
    """A sealed seed of another size is refused even if a genuine enclave quotes it."""

    def answer(_: SealedKey) -> SealedKey:
        box = bytes(size)
        quote = SgxQuotingEnclave(PKI).quote(
            ENCLAVE._replace(report_data=provider_report_data(box))
        )
        return SealedKey(box, quote)

    with make_provider() as provider, raises(KmsError, "wrong_size"):
        fetch(provider, answer)


def test_sealed_seed_for_another_td_is_refused(provider: Any) -> None:
    """A replayed answer, genuine for another key, does not open."""
    old = provider.release(TD.get_quote(td_report_data(x25519_public_key(SECRET))))
    assert open_seed(SECRET, old.encrypted_key)
    with raises(KmsError, "invalid_key"):
        fetch(provider, lambda _: old)


def test_machine_that_is_out_of_date_is_refused_unless_accepted(provider: Any) -> None:
    """The TCB policy applies to the provider's machine."""
    info = msgspec.structs.replace(SGX_COLLATERAL.tcb_info, status="SWHardeningNeeded")
    collateral = PKI.collateral(NOW, msgspec.structs.replace(SGX_COLLATERAL, tcb_info=info))
    with raises(KmsError, "evidence_refused"):
        fetch(provider, verifier=make_verifier(collateral=collateral))
    policy = provider_policy(
        accepted_statuses=[TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED]
    )
    policy = policy.replace(accepted_advisories=None)
    fetch(provider, verifier=make_verifier(policy, collateral=collateral)).close()


def test_td_is_no_provider_under_any_policy(provider: Any) -> None:
    """A TD is refused also by a verifier that accepts TDs and has their collateral."""
    policy = provider_policy().replace(platforms={"sgx", "dstack-tdx"})
    verifier = make_verifier(policy, collateral=PKI.collateral(NOW))
    with raises(KmsError, "evidence_refused", part="must be of an SGX enclave"):
        fetch(provider, with_td_quote, verifier=verifier)


def test_policy_must_name_enclaves(provider: Any) -> None:
    """No preset accepts an enclave; a policy that refuses simulated evidence refuses this one."""
    for policy in (AppraisalPolicy.default(), provider_policy().replace(refuse_simulated=True)):
        with raises(KmsError, "evidence_refused"):
            fetch(provider, verifier=make_verifier(policy))


def test_other_root_and_missing_collateral(provider: Any) -> None:
    """A provider under another root is refused; missing collateral is an error of its own."""
    other = SimulatedPki(bytes(32))
    with raises(KmsError, "evidence_refused"):
        fetch(provider, verifier=make_verifier(trust_anchor=other.root_der))
    with raises(KmsError, "evidence_refused"):
        fetch(provider, now=NOW + 40 * 86_400)
    with raises(CollateralError, "missing"):
        fetch(provider, verifier=make_verifier(collateral=None))


def test_errors_contain_no_secret(provider: Any) -> None:
    """Neither the secret key nor the seed is in an error, its causes, or a traceback."""
    seed = derive_seed(SEALING_KEY, td_measurements(Quote.parse(TD.get_quote(bytes(64)))))
    for change in (
        over_other_seed,
        with_debug_enclave,
        lambda old: old._replace(encrypted_key=b""),
    ):
        with pytest.raises(AttestKitError) as caught:
            fetch(provider, change, random=lambda _: bytes(SECRET))
        shown = "".join(traceback.format_exception(caught.value))
        for secret in (seed, SECRET, SEALING_KEY):
            assert secret.hex() not in shown
            assert repr(secret) not in shown
