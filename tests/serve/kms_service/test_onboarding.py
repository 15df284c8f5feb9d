"""Setup of a KMS without keys: new ones, or those of another KMS, over plain HTTP."""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import FormatError, UsageError
from attestkit.kms import KmsRoot, SimulatedKms
from attestkit.kms.release.authorization import Decision, FunctionAuthorization
from attestkit.kms.release.roots import KmsRoots, bootstrap_report_data
from attestkit.serve.kms_service.onboarding import read_roots
from attestkit.serve.kms_service.request_queue import WORKERS
from attestkit.testing import SimulatedTee
from tests.runner.cases import every_case
from tests.serve.client import Answer, Connection
from tests.serve.kms_service.kms_clients import SECONDS, anonymous

DOMAIN = {"domain": "localhost"}
MakeKms = Callable[..., SimulatedKms]


def call(kms: SimulatedKms, method: str, message: object = None) -> Answer:
    """Call a method of the setup."""
    with closing(Connection(kms.url)) as connection:
        return connection.call(f"prpc/Onboard.{method}", message)


def error_of(answer: Answer) -> str:
    """Return the text of a refusal."""
    assert answer.status == 400
    return str(answer.json()["error"])


def allow_measured(tee: SimulatedTee) -> FunctionAuthorization:
    """Return an authorization that releases the roots to the measurements of `tee` alone."""
    expected = tee.app_info.mr_aggregated

    def decide_kms(boot: Any) -> Decision:
        if boot.mr_aggregated == expected:
            return Decision.allow()
        return Decision.refuse("aggregated MR not allowed")

    return FunctionAuthorization(lambda _: Decision.allow(), decide_kms)


@pytest.fixture
def new_kms(kms_factory: MakeKms, tee: SimulatedTee, tmp_path: Path) -> MakeKms:
    """Return a function that starts a KMS without keys."""

    def make(**options: Any) -> SimulatedKms:
        folder = {"state_dir": tmp_path / "new", "onboarding": True, "attester": tee.attester}
        return kms_factory(**{**folder, "auth": allow_measured(tee), **options})

    return make


def finish(kms: SimulatedKms) -> None:
    """Finish the setup, and wait for HTTPS."""
    assert call(kms, "Finish").body == b"null"
    assert kms.wait_for_keys(SECONDS)


def test_bootstrap_creates_keys_that_the_kms_then_serves(
    new_kms: MakeKms, tee: SimulatedTee
) -> None:
    """The answer has the public keys, and evidence that is over both; GetMeta has the same."""
    kms = new_kms()
    assert kms.url.startswith("http://")
    with pytest.raises(UsageError) as caught:
        _ = kms.root
    assert caught.value.reason == "not_ready"
    created = call(kms, "Bootstrap", DOMAIN).json()
    ca, k256 = bytes.fromhex(created["ca_pubkey"]), bytes.fromhex(created["k256_pubkey"])
    evidence = Attestation.from_bytes(bytes.fromhex(created["attestation"]))
    result = tee.verify(evidence, report_data=bootstrap_report_data(ca, k256))
    assert result.bound_to == "report_data"
    finish(kms)
    assert kms.url.startswith("https://")
    assert kms.root == KmsRoot(ca, k256)
    meta = anonymous(kms).call("GetMeta").json()
    assert meta["bootstrap_info"] == created
    assert anonymous(kms).call("Onboard.Bootstrap", DOMAIN).status == 404


def test_keys_are_created_once(new_kms: MakeKms) -> None:
    """Afterwards both methods refuse, with the texts of the real KMS."""
    kms = new_kms()
    assert call(kms, "Bootstrap", DOMAIN).status == 200
    assert error_of(call(kms, "Bootstrap", DOMAIN)) == "KMS has already been bootstrapped"
    again = call(kms, "Onboard", {**DOMAIN, "source_url": "https://localhost:1"})
    assert error_of(again) == "KMS has already been onboarded"


def test_one_setup_runs_at_a_time(new_kms: MakeKms) -> None:
    """While the source of an Onboard does not answer, other calls are refused at once."""
    kms = new_kms()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        source = {**DOMAIN, "source_url": f"https://localhost:{silent.getsockname()[1]}"}
        first = pool.submit(call, kms, "Onboard", source)
        with closing(silent.accept()[0]):
            for method, message in (("Onboard", source), ("Bootstrap", DOMAIN)) * WORKERS:
                assert "by another request" in error_of(call(kms, method, message))
            assert not first.done()
        assert error_of(first.result(SECONDS)).startswith("Failed to onboard: ")
    assert call(kms, "Bootstrap", DOMAIN).status == 200


def test_setup_refuses_invalid_requests(new_kms: MakeKms) -> None:
    """A domain that is not one; the methods of KMS; to finish without keys."""
    kms = new_kms()
    bad = call(kms, "Bootstrap", {"domain": "a_b.c"})
    assert error_of(bad) == "domain contains an invalid DNS label"
    with closing(Connection(kms.url)) as connection:
        answer = connection.call("prpc/KMS.GetMeta")
    assert answer.status == 404
    assert answer.json()["error"] == "Service not found: KMS.GetMeta"
    assert "has no keys" in error_of(call(kms, "Finish"))
    with closing(Connection(kms.url)) as connection:
        assert "has no keys" in error_of(connection.send_request("GET", "/finish"))


def test_setup_describes_the_kms(new_kms: MakeKms, tee: SimulatedTee) -> None:
    """Its measurements are those in its evidence, for the authorization of another KMS."""
    found = call(new_kms(), "GetAttestationInfo").json()
    assert found["mr_aggregated"] == tee.app_info.mr_aggregated.hex()
    assert found["tee_variant"] == "dstack-tdx"
    ppid = bytes.fromhex(found["ppid"])
    assert len(ppid) == 16
    assert found["device_id"] == sha256(ppid).hexdigest()


def test_setup_has_a_page(new_kms: MakeKms) -> None:
    """It says that the KMS is simulated."""
    with closing(Connection(new_kms().url)) as connection:
        answer = connection.send_request("GET", "/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"its keys protect nothing" in answer.body


def test_second_kms_takes_over_the_keys(
    new_kms: MakeKms, kms_factory: MakeKms, tee: SimulatedTee
) -> None:
    """Both then have the same roots and temporary CA; the second has no bootstrap info."""
    first = kms_factory(attester=tee.attester, auth=allow_measured(tee))
    second = new_kms()
    answer = call(second, "Onboard", {**DOMAIN, "source_url": first.url})
    assert answer.json() == {"k256_pubkey": first.root.k256_public_key.hex()}  # type: ignore[union-attr]
    finish(second)
    assert second.root == first.root
    keys = [anonymous(kms).call("GetTempCaCert").json()["temp_ca_key"] for kms in (first, second)]
    assert keys[0] == keys[1]
    assert anonymous(second).call("GetMeta").json()["bootstrap_info"] is None


def test_taken_over_keys_are_loaded_at_the_next_start(
    new_kms: MakeKms, kms_factory: MakeKms, tee: SimulatedTee
) -> None:
    """The folder has them: with keys there is no setup."""
    first = kms_factory(attester=tee.attester, auth=allow_measured(tee))
    second = new_kms()
    assert call(second, "Onboard", {**DOMAIN, "source_url": first.url}).status == 200
    second.close()
    again = new_kms()
    assert again.url.startswith("https://")
    assert again.root == first.root


@pytest.fixture(params=["unattested", "source refuses", "refused by us", "no roots"])
def refusing(
    request: pytest.FixtureRequest, kms_factory: MakeKms, new_kms: MakeKms, tee: SimulatedTee
) -> Iterator[tuple[SimulatedKms, SimulatedKms, str]]:
    """Return a source, a KMS without keys, and a part of the error."""
    allow = allow_measured(tee)
    refuse = FunctionAuthorization(lambda _: Decision.allow(), lambda _: Decision.refuse("never"))
    if request.param == "unattested":
        text = "Source KMS certificate does not contain attestation"
        yield kms_factory(auth=allow), new_kms(), text
    elif request.param == "source refuses":
        yield kms_factory(auth=refuse, attester=tee.attester), new_kms(), "Boot denied: never"
    elif request.param == "refused by us":
        source = kms_factory(auth=allow, attester=tee.attester)
        yield source, new_kms(auth=refuse), "Boot denied: never"
    else:
        source = kms_factory(attester=tee.attester)
        yield source, new_kms(), "this KMS does not release its roots"


def test_onboarding_needs_the_consent_of_both(
    refusing: tuple[SimulatedKms, SimulatedKms, str],
) -> None:
    """Each side verifies and authorizes the other; otherwise no keys are stored."""
    source, kms, text = refusing
    found = error_of(call(kms, "Onboard", {**DOMAIN, "source_url": source.url}))
    assert found.startswith("Failed to onboard: ")
    assert text in found
    assert "has no keys" in error_of(call(kms, "Finish"))


def test_onboarding_refuses_plain_urls(new_kms: MakeKms) -> None:
    """Only https URLs are called."""
    found = error_of(call(new_kms(), "Onboard", {**DOMAIN, "source_url": "http://localhost:1"}))
    assert found.startswith("Failed to onboard: KMS URL")


# -- the answer to GetKmsKey -----------------------------------------------------------------------

ROOTS = KmsRoots.from_seed(bytes(32))
ANSWER: dict[str, Any] = {
    "temp_ca_key": ROOTS.temp_ca_key.pkcs8_pem,
    "keys": [{"ca_key": ROOTS.ca_key.pkcs8_pem, "k256_key": ROOTS.k256_secret.hex()}],
}


def test_answer_is_read() -> None:
    """The keys of the source, and the new TLS key."""
    found = read_roots(json.dumps(ANSWER).encode(), ROOTS.ca_spki, ROOTS.temp_ca_key)
    assert (found.ca_spki, found.k256_secret) == (ROOTS.ca_spki, ROOTS.k256_secret)
    assert found.rpc_key == ROOTS.temp_ca_key


@every_case(
    "change",
    [
        {"keys": []},
        {"keys": ANSWER["keys"] * 2},
        {"keys": None},
        {"keys": [None]},
        {"keys": [{**ANSWER["keys"][0], "ca_key": ROOTS.temp_ca_key.pkcs8_pem}]},
        {"keys": [{**ANSWER["keys"][0], "ca_key": ROOTS.ca_key.pkcs8_pem[:-40]}]},
        {"keys": [{**ANSWER["keys"][0], "k256_key": "00" * 31}]},
        {"keys": [{**ANSWER["keys"][0], "k256_key": "00" * 32}]},
        {"keys": [{"ca_key": ROOTS.ca_key.pkcs8_pem}]},
        {"temp_ca_key": "x"},
        {"temp_ca_key": 1},
    ],
)
def test_malformed_answer_is_refused_without_keys_in_the_error(change: dict[str, Any]) -> None:
    """The number of entries, their types, sizes and the root are checked."""
    data = json.dumps({**ANSWER, **change}).encode()
    with pytest.raises((FormatError, UsageError)) as caught:
        read_roots(data, ROOTS.ca_spki, ROOTS.rpc_key)
    text = repr(caught.value) + repr(caught.value.__cause__)
    assert ROOTS.k256_secret.hex() not in text
    assert ROOTS.ca_key.pkcs8_pem[40:80] not in text


def test_every_cut_of_an_answer_is_refused() -> None:
    """A truncated answer is an error of its format."""
    data = json.dumps(ANSWER).encode()
    for size in range(len(data)):
        with pytest.raises(FormatError):
            read_roots(data[:size], ROOTS.ca_spki, ROOTS.rpc_key)
