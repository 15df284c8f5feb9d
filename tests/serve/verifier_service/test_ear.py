"""Signed verdicts over HTTP: for evidence that passed, to who asks, by the key of an option."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest

from attestkit.errors import ConfigError, FormatError, UsageError, VerificationError
from attestkit.serve.config.command_line import Options
from attestkit.serve.config.verifier_settings import decide_verifier
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.serve.verifier_service.ear import EarRequest, read_ear_key
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.ear.result_token import EarKey, EarPublicKey, Tier, policy_uri, verify_ear
from tests.serve.asgi import Client
from tests.serve.guests import NOW
from tests.serve.verifier_service.judges import STEPS, StandIn, evidence, result
from tests.verifier.ear.ears import ED25519, KEYS

MakeClient: TypeAlias = Callable[..., Client]
GOOD = json.dumps({"attestation": evidence().to_bytes().hex()}).encode()
NONCE = bytes(range(16))
POLICY = AppraisalPolicy.development()
AT = datetime.fromtimestamp(NOW, timezone.utc)


class Judge(StandIn):
    """Believes everything, by a policy."""

    policy = POLICY


@pytest.fixture
def make_client(loop: asyncio.AbstractEventLoop) -> Iterator[MakeClient]:
    """Make clients of a service that signs; its threads end with the test."""
    with ThreadPoolExecutor(1) as executor:

        def make(judge: object = None, key: EarKey | None = ED25519) -> Client:
            verifier = cast("Verifier", judge or Judge())
            return Client(VerifierApp(verifier, executor, ear_key=key), loop)

        yield make


def ask(client: Client, query: str, headers: dict[str, str] | None = None) -> Any:
    """Have good evidence judged."""
    return client.request("POST", f"/verify?{query}", GOOD, headers or {})


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        ("", None, "jwt"),
        ("", "*/*", "jwt"),
        ("", "application/json", "jwt"),
        ("", "application/eat+jwt", "jwt"),
        ("", "application/eat+cwt", "cose"),
        ("", "Application/EAT+CWT;q=1, application/eat+jwt;q=0.5", "cose"),
        ("", "application/eat+jwt, application/eat+cwt", "jwt"),
        ("", "application/eat+cwt-seq", "jwt"),
        ("", "x-application/eat+cwt", "jwt"),
        ("", 'text/plain;a="x";b=application/eat+cwt', "jwt"),
        ("", "application/eat+cwt;q=0", "jwt"),
        ("", "application/eat+cwt ; q=0.000 , */*", "jwt"),
        ("", "application/eat+jwt;q=0, application/eat+cwt;q=0.1", "cose"),
        ("", "text/html,application/eat+cwt", "cose"),
        ("&encoding=cose", None, "cose"),
        ("&encoding=jwt", "application/eat+cwt", "jwt"),
    ],
)
def test_a_signed_verdict(
    make_client: MakeClient, name: str, query: str, accept: str | None, form: str
) -> None:
    """With the service's public key alone the claims come back, under the policy and the nonce."""
    client = make_client(key=KEYS[name])
    headers = {} if accept is None else {"accept": accept}
    response = ask(client, f"format=ear&nonce={NONCE.hex()}{query}", headers)
    assert response.status == 200
    kind = {"jwt": "application/eat+jwt", "cose": "application/eat+cwt"}[form]
    assert response.headers["content-type"] == kind
    served = client.get("/verify/keys")
    assert served.headers["content-type"] == "application/jwk-set+json"
    [key] = EarPublicKey.from_jwks(served.body)
    assert key == KEYS[name].public
    found = verify_ear(response.body, key, nonce=NONCE, now=AT, policy_id=policy_uri(POLICY))
    assert (found.form, found.result) == (form, result().to_dict())
    assert found.issued_at == AT
    assert found.status is Tier.WARNING  # of evidence that is OutOfDate
    with pytest.raises(VerificationError) as caught:
        verify_ear(response.body, key, nonce=NONCE[::-1], now=AT)
    assert caught.value.reason == "ear_nonce"
    with pytest.raises(VerificationError) as caught:
        verify_ear(response.body, key, nonce=NONCE, now=AT + timedelta(minutes=6))
    assert caught.value.reason == "ear_expired"


def test_without_being_asked_nothing_is_signed(make_client: MakeClient) -> None:
    """A key changes nothing for who asks as upstream's clients do."""
    client = make_client()
    for query in ("", "format=json", "x=y", "nonce=zz", "encoding=cose", "x=y&" * 300):
        response = ask(client, query, {"accept": "application/eat+cwt"})
        assert response.headers["content-type"] == "application/json"
        assert response.json()["is_valid"] is True


@pytest.mark.parametrize("step", STEPS)
def test_a_refusal_is_never_signed(make_client: MakeClient, step: str) -> None:
    """Whichever step fails, the answer is the documented object, and no reader takes it for one."""
    client = make_client(Judge(**{step: VerificationError("no")}))
    response = ask(client, "format=ear&encoding=jwt")
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["is_valid"] is False
    with pytest.raises(FormatError):
        verify_ear(response.body, ED25519.public, nonce=None, now=AT)


def test_simulated_evidence(make_client: MakeClient) -> None:
    """The header says it, as ever; the EAR says it where no header is."""
    client = make_client(Judge(appraise=result(simulated=True)))
    response = ask(client, "format=ear")
    assert response.headers["x-attestkit-simulated"] == "true"
    found = verify_ear(response.body, ED25519.public, nonce=None, now=AT)
    assert found.simulated
    assert found.status is Tier.CONTRAINDICATED


def test_without_a_key(make_client: MakeClient) -> None:
    """Nobody waits for a judgement that could not be signed; the option is named."""
    judge = Judge()
    client = make_client(judge, key=None)
    response = ask(client, "format=ear")
    assert response.status == 400
    assert "--ear-key" in response.error()
    assert judge.taken == []
    response = client.get("/verify/keys")
    assert response.status == 404
    assert "--ear-key" in response.error()
    assert ask(client, "format=json").json()["is_valid"] is True


@pytest.mark.parametrize(
    "query",
    [
        "format=",
        "format=EAR",
        "format=jwt",
        "format=ear&format=ear",
        "format=ear&encoding=cbor",
        "format=ear&encoding=jwt&encoding=jwt",
        "format=ear&nonce=",
        "format=ear&nonce=00",
        "format=ear&nonce=" + "00" * 65,
        "format=ear&nonce=0x0011223344556677",
        "format=ear&nonce=00+11+22+33+44+55+66+77",
        "format=ear&nonce=%ff%00",
        "format=ear&nonce=" + "00" * 8 + "&nonce=" + "00" * 8,
        "format=ear&x=" + "x" * 1012,
        "x" * 1025 + "&format=json",
        "x" * 1025 + "&form%61t=ear",
    ],
)
def test_parameters_that_are_wrong(make_client: MakeClient, query: str) -> None:
    """They are told as such, and nothing is judged."""
    judge = Judge()
    response = ask(make_client(judge), query)
    assert response.status == 400
    assert response.error()
    assert judge.taken == []


def test_nonces_at_their_bounds() -> None:
    """8 and 64 bytes, in capitals too, escaped too."""
    for text, nonce in (("AB" * 8, b"\xab" * 8), ("%300" * 64, bytes(64))):
        found = EarRequest.from_request(f"format=ear&nonce={text}".encode(), ())
        assert found == EarRequest("jwt", nonce)


# -- the key ---------------------------------------------------------------------------------------


def key_file(folder: Path, data: bytes = bytes(32), mode: int = 0o600) -> Path:
    """Write a key."""
    path = folder / "ear.key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_key_of_ours_alone(tmp_path: Path) -> None:
    """Mode 0600, or less; a link to it will do."""
    path = key_file(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    wanted = EarKey.from_bytes(bytes(32)).public
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert read_ear_key("--ear-key", path).public == wanted
        assert read_ear_key("--ear-key", link).public == wanted


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o602, 0o601, 0o660])
def test_a_key_that_others_get_at(tmp_path: Path, mode: int) -> None:
    """It is refused, with what is to be done."""
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=f"--ear-key .*mode {mode:04o}.*chmod 600"):
        read_ear_key("--ear-key", path)


def test_what_is_no_key(tmp_path: Path) -> None:
    """A missing file, a folder, and contents of another kind, of which nothing is shown."""
    with pytest.raises(ConfigError, match=r"--ear-key .*No such file"):
        read_ear_key("--ear-key", tmp_path / "none")
    with pytest.raises(ConfigError, match="directory"):
        read_ear_key("--ear-key", tmp_path)
    for data in (b"", b"secret" * 6, b"s" * 65_537):
        with pytest.raises(ConfigError) as caught:
            read_ear_key("--ear-key", key_file(tmp_path, data))
        assert "secret" not in str(caught.value).replace(str(tmp_path), "")


def test_the_option() -> None:
    """It is the verifier service's, and a path from where the server was started."""
    with pytest.raises(UsageError, match="--ear-key is for the verifier service"):
        decide_verifier(Options(ear_key="k"), {})
    found = decide_verifier(Options(verifier="127.0.0.1:0", ear_key="k"), {})
    assert found is not None
    assert found.ear_key == Path("k").absolute()
    assert found.names["ear_key"] == "--ear-key"
