"""EAR responses of the verifier service: encodings, signature key and refusals."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest

from attestkit.errors import ConfigError, FormatError, UsageError, VerificationError
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import decide_verifier
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.serve.verifier_service.ear import read_ear_key
from attestkit.serve.verifier_service.query import VerifyQuery
from attestkit.verifier.ear.result_token import policy_uri, verify_ear
from attestkit.verifier.ear.signed_token import EarKey, EarPublicKey
from attestkit.verifier.ear.token_claims import Tier
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.asgi import Client
from tests.serve.guests import NOW
from tests.serve.verifier_service.judges import (
    POLICY,
    STEPS,
    FakeVerifier,
    create_attestation_result,
    create_evidence,
)
from tests.verifier.ear.ears import ED25519, KEYS

if TYPE_CHECKING:
    from attestkit.verifier import Verifier

MakeClient: TypeAlias = Callable[..., Client]
GOOD = json.dumps({"attestation": create_evidence().to_bytes().hex()}).encode()
NONCE = bytes(range(16))
AT = datetime.fromtimestamp(NOW, timezone.utc)


@pytest.fixture
def make_client(loop: asyncio.AbstractEventLoop) -> Iterator[MakeClient]:
    """Return a factory of clients of a signing service; its threads end with the test."""
    with JobThreads(1) as executor:

        def make(fake: object = None, key: EarKey | None = ED25519) -> Client:
            verifier = cast("Verifier", fake or FakeVerifier())
            return Client(VerifierApp(verifier, executor, executor, ear_key=key), loop)

        yield make


def post_evidence(client: Client, query: str, headers: dict[str, str] | None = None) -> Any:
    """POST valid evidence to /verify."""
    return client.request("POST", f"/verify?{query}", GOOD, headers or {})


@every_case("name", KEYS)
@every_case(
    ("query", "accept", "encoding"),
    [
        ("", None, "jwt"),
        ("", "application/json", "jwt"),
        ("", "application/eat+cwt", "cose"),
        ("", "Application/EAT+CWT;q=1, application/eat+jwt;q=0.5", "cose"),
        ("", "application/eat+jwt, application/eat+cwt", "jwt"),
        ("", "application/eat+cwt-seq", "jwt"),
        ("", "x-application/eat+cwt", "jwt"),
        ("", 'text/plain;a="x";b=application/eat+cwt', "jwt"),
        ("", "application/eat+cwt;q=0", "jwt"),
        ("", "application/eat+cwt ; q=0.000 , */*", "jwt"),
        ("", "application/eat+jwt;q=0, application/eat+cwt;q=0.1", "cose"),
        ("&encoding=cose", None, "cose"),
        ("&encoding=jwt", "application/eat+cwt", "jwt"),
    ],
)
def test_ear_round_trip(
    make_client: MakeClient, name: str, query: str, accept: str | None, encoding: str
) -> None:
    """The served public key verifies the EAR, with its policy and nonce."""
    client = make_client(key=KEYS[name])
    headers = {} if accept is None else {"accept": accept}
    response = post_evidence(client, f"format=ear&nonce={NONCE.hex()}{query}", headers)
    assert response.status == 200
    kind = {"jwt": "application/eat+jwt", "cose": "application/eat+cwt"}[encoding]
    assert response.headers["content-type"] == kind
    served = client.get("/verify/keys")
    assert served.headers["content-type"] == "application/jwk-set+json"
    [key] = EarPublicKey.from_jwks(served.body)
    assert key == KEYS[name].public
    found = verify_ear(response.body, key, nonce=NONCE, now=AT, policy_id=policy_uri(POLICY))
    assert (found.form, found.result) == (
        encoding,
        create_attestation_result(nonce=NONCE).to_dict(),
    )
    assert found.issued_at == AT
    assert found.status is Tier.WARNING  # the evidence is OutOfDate
    with raises(VerificationError, "ear_nonce"):
        verify_ear(response.body, key, nonce=NONCE[::-1], now=AT)
    with raises(VerificationError, "ear_expired"):
        verify_ear(response.body, key, nonce=NONCE, now=AT + timedelta(minutes=6))


def test_verify_without_format_ear_returns_json(make_client: MakeClient) -> None:
    """Without format=ear the response is the documented JSON object."""
    client = make_client()
    for query in ("", "format=json"):
        response = post_evidence(client, query, {"accept": "application/eat+cwt"})
        assert response.headers["content-type"] == "application/json"
        assert response.json()["is_valid"] is True


@pytest.mark.parametrize("step", STEPS)
def test_ear_rejected_evidence_is_not_signed(make_client: MakeClient, step: str) -> None:
    """If any step fails, the response is the documented JSON object, which is not a valid EAR."""
    client = make_client(FakeVerifier(**{step: VerificationError("no", reason="unusable")}))
    response = post_evidence(client, "format=ear&encoding=jwt")
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["is_valid"] is False
    with pytest.raises(FormatError):
        verify_ear(response.body, ED25519.public, any_freshness=True, now=AT)


def test_ear_simulated_evidence_is_contraindicated(make_client: MakeClient) -> None:
    """Both the header and the EAR mark simulated evidence."""
    client = make_client(FakeVerifier(appraise=create_attestation_result(simulated=True)))
    response = post_evidence(client, "format=ear")
    assert response.headers["x-attestkit-simulated"] == "true"
    found = verify_ear(response.body, ED25519.public, any_freshness=True, now=AT)
    assert found.simulated
    assert found.status is Tier.CONTRAINDICATED


def test_ear_without_key_is_refused_before_verification(make_client: MakeClient) -> None:
    """Without --ear-key, format=ear is refused before verification; the error names the option."""
    fake = FakeVerifier()
    client = make_client(fake, key=None)
    response = post_evidence(client, "format=ear")
    assert response.status == 400
    assert "--ear-key" in response.error()
    assert fake.taken == []
    response = client.get("/verify/keys")
    assert response.status == 404
    assert "--ear-key" in response.error()
    assert post_evidence(client, "format=json").json()["is_valid"] is True


@every_case(
    "query",
    [
        "format=",
        "format=EAR",
        "format=ear&format=ear",
        "format=ear&encoding=cbor",
        "format=ear&encoding=jwt&encoding=jwt",
        "format=ear&nonce=",
        "format=ear&nonce=00",
        "format=ear&nonce=" + "00" * 65,
        "format=ear&nonce=0x0011223344556677",
        "format=ear&nonce=00+11+22+33+44+55+66+77",
        "format=ear&nonce=" + "00" * 8 + "&nonce=" + "00" * 8,
        "x" * 1025 + "&format=json",
        "x" * 1025 + "&form%61t=ear",
        "nonce=",
        "nonce=00",
        "format=json&nonce=0x0011223344556677",
        "report_data=",
        "report_data=zz",
        "format=ear&report_data=" + "00" * 65,
        "report_data=00&report_data=00",
        "report_data=00&nonce=" + "00" * 8,
        "x" * 1025 + "&report_data=00",
        "encoding=jwt",
        "format=ear&Nonce=" + "00" * 8,
        "Report_Data=00",
        "report-data=00",
        "reportData=00",
        "nonce%20=" + "00" * 8,
        "nonce[]=" + "00" * 8,
        "nonse=" + "00" * 8,
        "eat_nonce=" + "00" * 8,
        "challenge=" + "00" * 8,
        "nonce;=" + "00" * 8,
        "x=y",
    ],
)
def test_ear_invalid_parameter_is_400(make_client: MakeClient, query: str) -> None:
    """Invalid and unknown parameters return 400: a misspelt nonce would not be compared."""
    fake = FakeVerifier()
    response = post_evidence(make_client(fake), query)
    assert response.status == 400
    assert response.error()
    assert fake.taken == []


def test_verify_nonce_in_body_is_422(make_client: MakeClient) -> None:
    """A nonce in the body would not be compared."""
    body = json.dumps({**json.loads(GOOD), "nonce": "00" * 8}).encode()
    fake = FakeVerifier()
    assert make_client(fake).request("POST", "/verify", body, {}).status == 422
    assert fake.taken == []


def test_query_bounds() -> None:
    """A nonce has 8 to 64 bytes, report data 1 to 64, in hex of either case, percent-encoded."""
    for text, nonce in (("AB" * 8, b"\xab" * 8), ("%300" * 64, bytes(64))):
        found = VerifyQuery.from_request(f"format=ear&nonce={text}".encode())
        assert found == VerifyQuery("jwt", nonce)
    for text, report_data in (("AB", b"\xab"), ("%300" * 64, bytes(64))):
        found = VerifyQuery.from_request(f"report_data={text}".encode())
        assert found == VerifyQuery(report_data=report_data)
    assert VerifyQuery.from_request(b"") == VerifyQuery()


# -- the key ---------------------------------------------------------------------------------------


def write_key(folder: Path, data: bytes = bytes(32), mode: int = 0o600) -> Path:
    """Write a key file."""
    path = folder / "ear.key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_read_ear_key_private_file_is_accepted(tmp_path: Path) -> None:
    """A file of mode 0600 or less is accepted, also through a symbolic link."""
    path = write_key(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    expected = EarKey.from_bytes(bytes(32)).public
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert read_ear_key("--ear-key", path).public == expected
        assert read_ear_key("--ear-key", link).public == expected


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o602, 0o601, 0o660])
def test_read_ear_key_accessible_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """The error states the mode and the remedy."""
    path = write_key(tmp_path, mode=mode)
    with raises(ConfigError, "permissions") as caught:
        read_ear_key("--ear-key", path)
    assert str(caught.value) == (
        f"--ear-key {path}: accessible to other users: mode {mode:04o}; run chmod 600 on it"
    )


def test_read_ear_key_invalid_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder and invalid contents are refused; contents are not shown."""
    for path in (tmp_path / "none", tmp_path):
        with raises(ConfigError, "unreadable", start=f"--ear-key {path}: "):
            read_ear_key("--ear-key", path)
    for data in (b"", b"secret" * 6, b"s" * 65_537):
        with raises(ConfigError, "syntax") as caught:
            read_ear_key("--ear-key", write_key(tmp_path, data))
        assert "secret" not in str(caught.value).replace(str(tmp_path), "")


def test_decide_verifier_ear_key_requires_service() -> None:
    """--ear-key requires --verifier; its path becomes absolute."""
    with raises(UsageError, "conflict", start="--ear-key: "):
        decide_verifier(Options(ear_key="k"), {})
    found = decide_verifier(Options(verifier="127.0.0.1:0", ear_key="k"), {})
    assert found is not None
    assert found.options.path("ear_key") == Path("k").absolute()
