"""Attempts on the setup of a KMS over plain HTTP, on its administration, and on taken-over keys."""

import json
from functools import cache
from typing import Any, Final

from attestkit.backends.simulator.faults.kms_faults import KmsFaults
from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.kms.release.authorization import DevAuthorization
from attestkit.kms.release.roots import KmsRoots
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service.admin import AdminApp
from attestkit.serve.kms_service.onboarding import Onboarding, make_onboarding_app, read_roots
from attestkit.serve.kms_service.server_identity import KmsParts
from tests.attacks.attempts import Surfaces, bound
from tests.attacks.v1.on_methods import event_loop
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client, Response
from tests.verifier.platforms import intel

attacks = Surfaces("kms")
DOMAIN: Final = {"domain": "localhost"}
BOOTSTRAP, ONBOARD = "/prpc/Onboard.Bootstrap", "/prpc/Onboard.Onboard"


@cache
def threads() -> JobThreads:
    """Return the threads of all requests."""
    return JobThreads(2, "setup")


def new_kms() -> tuple[Onboarding, Client]:
    """Return a KMS without keys, and a client of its setup."""
    parts = KmsParts(
        intel.verifier(), DevAuthorization(), None, KmsFaults.of(None), intel.NOW.timestamp
    )
    setup = Onboarding(None, parts, threads())
    app = make_onboarding_app(setup, Limits(), Traffic())
    return setup, Client(app, event_loop())


def ask(
    client: Client,
    path: str = BOOTSTRAP,
    message: object = DOMAIN,
    verb: str = "POST",
    **headers: str,
) -> Response:
    """Send a request to the setup."""
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    sent = {"host": "localhost:8000", "content-type": JSON_TYPE}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(verb, path, body, sent)


assert ask(new_kms()[1]).status == 200


def creates_nothing(path: str = BOOTSTRAP, message: object = DOMAIN, **headers: str) -> None:
    """Assert that a request is refused and creates no keys."""
    setup, client = new_kms()
    answer = ask(client, path, message, **headers)
    assert 400 <= answer.status < 500, answer.body
    assert setup.state is None


SOURCE: Final = {**DOMAIN, "source_url": "https://127.0.0.1:1"}
PAGES: Final[dict[str, dict[str, str]]] = {
    "of another site": {"origin": "https://evil.example", "content_type": "text/plain"},
    "without an origin": {"origin": "null", "content_type": "text/plain"},
    "that rebound its name": {"origin": "http://evil.example:8000", "host": "evil.example:8000"},
    "by the word of its browser": {"sec_fetch_site": "cross-site", "content_type": "text/plain"},
    "of another port": {"sec_fetch_site": "same-site", "content_type": "text/plain"},
    "with an empty form": {"origin": "https://evil.example", "content_type": BINARY_TYPE},
}
for _name, _headers in PAGES.items():
    attacks.add(
        "confuse", f"keys created by a web page {_name}", bound(creates_nothing, **_headers)
    )


@attacks.attempt("confuse")
def keys_of_the_attacker_taken_over_by_a_web_page() -> None:
    """A page sends a form that names the attacker's KMS; its request must not be made."""
    _, client = new_kms()
    headers = {"origin": "https://evil.example", "content_type": "text/plain"}
    answer = ask(client, ONBOARD, SOURCE, **headers)
    assert answer.status == 400
    assert b"Failed to onboard" not in answer.body
    assert b"no TEE" not in answer.body


SETUPS: Final[dict[str, dict[str, Any]]] = {
    "by an address in a page": {"verb": "GET", "path": f"{BOOTSTRAP}?domain=localhost"},
    "by a question of a browser": {"verb": "OPTIONS"},
    "for a domain with a line end": {"message": {"domain": "a\nb"}},
    "for a domain with a NUL": {"message": {"domain": "localhost\0"}},
    "for a domain of another script": {"message": {"domain": "l\u043ecalhost"}},
    "for every domain": {"message": {"domain": "*"}},
    "for a long domain": {"message": {"domain": "a." * 200 + "a"}},
    "for no domain": {"message": {}},
    "for two domains": {"message": b'{"domain":"a","domain":"b"}'},
    "by a method of the released KMS": {"path": "/prpc/KMS.Bootstrap"},
    "by a path with a point": {"path": "/prpc/./Onboard.Bootstrap"},
}
for _name, _options in SETUPS.items():
    attacks.add("confuse", f"keys created {_name}", bound(creates_nothing, **_options))


@attacks.attempt("replay")
def keys_created_twice() -> None:
    """A second request does not replace the keys of the first."""
    setup, client = new_kms()
    assert ask(client).status == 200
    assert setup.state is not None
    first = setup.state.roots
    for path, message in ((BOOTSTRAP, DOMAIN), (ONBOARD, SOURCE)):
        assert ask(client, path, message).status == 400
    assert setup.state.roots is first


@attacks.attempt("confuse")
def setup_finished_without_keys() -> None:
    """Neither the page nor the method ends the setup before there are keys."""
    for verb, path in (("GET", "/finish"), ("POST", "/prpc/Onboard.Finish")):
        assert ask(new_kms()[1], path, {}, verb).status == 400


# -- keys of another KMS -----------------------------------------------------------------------

ROOTS: Final = KmsRoots.from_seed(bytes(range(32)))
OTHER: Final = KmsRoots.from_seed(bytes(32))


def answer_of(**changes: Any) -> dict[str, Any]:
    """Return the answer to GetKmsKey."""
    entry = {"ca_key": ROOTS.ca_key.pkcs8_pem, "k256_key": ROOTS.k256_secret.hex()}
    temp = {"temp_ca_key": ROOTS.temp_ca_key.pkcs8_pem}
    return {**temp, "keys": [{**entry, **changes.pop("entry", {})}], **changes}


def taken(answer: object, root: bytes = ROOTS.ca_spki) -> object:
    """Read an answer of a KMS that has shown this root."""
    text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return read_roots(text, root, OTHER.rpc_key)


assert taken(answer_of())
GOOD: Final = json.dumps(answer_of())
ENTRY: Final = answer_of()["keys"][0]
ROOT_ANSWERS: Final[dict[str, tuple[object, type[AttestKitError], str]]] = {
    "of another CA than the one shown": (
        answer_of(entry={"ca_key": OTHER.ca_key.pkcs8_pem}),
        FormatError,
        "wrong_value",
    ),
    "with a second entry": (answer_of(keys=[ENTRY, ENTRY]), FormatError, "wrong_size"),
    "without an entry": (answer_of(keys=[]), FormatError, "wrong_size"),
    "with an entry in a list": (answer_of(keys=[[ENTRY]]), FormatError, "wrong_size"),
    "with a key of zero": (answer_of(entry={"k256_key": "00" * 32}), UsageError, "invalid_key"),
    "with a key of 31 bytes": (answer_of(entry={"k256_key": "11" * 31}), FormatError, "wrong_size"),
    "with a public key": (
        answer_of(temp_ca_key=ROOTS.public_root.ca_spki.hex()),
        FormatError,
        "syntax",
    ),
    "with a member twice": (
        GOOD.replace('"keys"', '"keys": [], "keys"').encode(),
        FormatError,
        "duplicate",
    ),
}
for _name, (_answer, _error, _reason) in ROOT_ANSWERS.items():
    attacks.add("forge", f"roots {_name}", bound(taken, _answer), _error, _reason)


# -- administration ----------------------------------------------------------------------------

TOKEN: Final = "correct horse battery"
CLEAR: Final = "/prpc/Admin.ClearImageCache"


@cache
def admin() -> Client:
    """Return a client of the listener for administration."""
    return Client(AdminApp(TOKEN, Limits(), Traffic()), event_loop())


def administer(path: str = CLEAR, verb: str = "POST", **headers: str) -> int:
    """Return the status of a request."""
    message = {"image_hash": "all", "config_hash": ""}
    return ask(admin(), path, message, verb, **headers).status


assert administer(authorization=f"Bearer {TOKEN}") == 200
CREDENTIALS: Final[dict[str, dict[str, str]]] = {
    "without a token": {},
    "with a part of the token": {"authorization": f"Bearer {TOKEN[:-1]}"},
    "with more than the token": {"authorization": f"Bearer {TOKEN}x"},
    "with the token in capitals": {"authorization": f"Bearer {TOKEN.upper()}"},
    "with the token as a user": {"authorization": "Basic Y29ycmVjdCBob3JzZSBiYXR0ZXJ5Og=="},
    "with another scheme": {"authorization": f"Token {TOKEN}"},
    "with the token alone": {"authorization": TOKEN},
    "with an empty token": {"x_admin_token": ""},
    "with the token in a cookie": {"cookie": f"token={TOKEN}"},
    "with base64 that is none": {"authorization": "Basic ===="},
    "with a token that is not ASCII": {"x_admin_token": TOKEN.replace("o", "\u043e")},
}
for _name, _headers in CREDENTIALS.items():
    attacks.add(
        "forge",
        f"administration {_name}",
        bound(lambda headers: _is(administer(**headers), 401), _headers),
    )


def _is(found: int, wanted: int) -> None:
    assert found == wanted


@attacks.attempt("confuse")
def administration_with_a_token_in_its_address() -> None:
    """An address is in logs and histories."""
    _is(administer(f"{CLEAR}?token={TOKEN.replace(' ', '+')}"), 401)


@attacks.attempt("confuse")
def administration_by_a_web_page_with_kept_credentials() -> None:
    """A browser sends the password that it keeps for this address for a page, too."""
    basic = "Basic OmNvcnJlY3QgaG9yc2UgYmF0dGVyeQ=="
    assert administer(authorization=basic) == 200
    headers = {"origin": "https://evil.example", "content_type": "text/plain"}
    _is(administer(authorization=basic, **headers), 400)


for _name, _token in {
    "of 15 characters": "x" * 15,
    "with a line end": "x" * 16 + "\n",
    "that is not ASCII": "\u00e9" * 16,
    "of 5,000 characters": "x" * 5000,
}.items():
    attacks.add(
        "confuse",
        f"token for administration {_name}",
        bound(AdminApp, _token, Limits(), Traffic()),
        UsageError,
        "wrong_value",
    )
