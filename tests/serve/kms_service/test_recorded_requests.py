"""The recorded requests to the real KMS: the simulated one answers in the same way.

The answer differs on purpose where the record says so, or a test.
"""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca
from attestkit.kms import SimulatedKms
from attestkit.kms.release.authorization import Decision, FunctionAuthorization
from attestkit.testing import SimulatedTee
from tests.kms.replayed_kms import make_roots
from tests.runner.cases import every_case
from tests.serve.client import Answer, Connection
from tests.serve.kms_service.kms_clients import (
    KEY,
    Client,
    Webhook,
    anonymous,
    evidence_of,
    running_webhook,
    with_certificate,
)
from tests.serve.upstream_agent.recorded_rows import find_differences
from tests.vectors import data, load, needs_shared
from tests.verifier.platforms import intel

RECORD: Final[dict[str, Any]] = json.loads(
    data("dstack/upstream-312dc605/kms.json") or b'{"rows":[]}'
)
ROWS: Final[dict[str, dict[str, Any]]] = {row["id"]: row for row in RECORD["rows"]}
KEYS: Final[dict[str, str] | None] = load("kms.json").get("roots", {}).get("A")
TOKEN: Final = "test-admin-token"
ALLOWED: Final = b'{"isAllowed":true,"reason":"","gatewayAppId":"0xgw"}'
DENIED: Final = b'{"isAllowed":false,"reason":"app not registered","gatewayAppId":""}'
AUTHORITY: Final = json.dumps(
    {
        "status": "ok",
        "kmsContractAddr": "0x" + "1" * 40,
        "ethRpcUrl": "",
        "gatewayAppId": "0xgw",
        "chainId": 1,
        "appImplementation": "0x" + "2" * 40,
    }
).encode()
# Root A, of which the record is; another one without the vectors, where the tests are skipped.
ROOTS: Final = make_roots(
    bytes.fromhex(KEYS["root_ca_scalar"]) if KEYS else 1,
    bytes.fromhex(KEYS["root_k256_key"]) if KEYS else 2,
)
_SOURCE: Final = re.compile(r"https://localhost:80\d\d")
RECORDED_URL: Final = "http://127.0.0.1:8002"
CONFIG: Final = f'{{"os_image_hash":"{"bb" * 32}","cpu_count":1,"memory_size":2147483648}}'
OTHER_KEY: Final = P256Key.from_scalar(b"\x32" * 32)
# Values that differ on purpose: a simulated KMS is for development, and has created its keys.
DIFFERENT: Final = {"is_dev": True}
# The roots of the record were put in place by hand, so it has no `bootstrap_info`.
STRUCTURE: Final = {"bootstrap_info": {"ca_pubkey": "", "k256_pubkey": "", "attestation": ""}}
WITH_NOTE: Final = [name for name, row in ROWS.items() if "note" in row and "webhook" not in name]
SET_UP_OTHERWISE: Final = {"getmeta-attested", "getmeta-onboarded", "getmeta-dev", *WITH_NOTE}


CONFLICT: Final = {
    "status": 400,
    "content_type": "application/json",
    "error": "App not allowed: vm_config differs from the one in the attestation",
}
# Answers that differ from the record, which has no mark for them.
ON_PURPOSE: Final[dict[str, dict[str, Any]]] = {
    # As a KMS since 0.6.1: request and evidence must have the same configuration.
    "getappkey-other-vm-config": CONFLICT,
    "getappkey-empty-vm-config": CONFLICT,
    # A whole sys-config is unwrapped, so the image has a hash.
    "getappkey-sys-config": ROWS.get("getappkey", {}),
    # A body that starts with { is JSON without a content type, too.
    "getappkey-no-content-type": ROWS.get("getappkey", {}),
}


def rpc_rows(listener: str) -> list[dict[str, Any]]:
    """Return the requests to a listener of a KMS as `set_up` says."""
    return [
        row
        for name, row in ROWS.items()
        if row["listener"] == listener
        and name not in SET_UP_OTHERWISE
        and not name.startswith("getappkey-image")
    ]


def row_id(row: dict[str, Any]) -> str:
    """Return the name of a row."""
    return str(row["id"])


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    """Run an authorization server."""
    with running_webhook() as found:
        found.authority = AUTHORITY
        yield found


@pytest.fixture(scope="module")
def kms(webhook: Webhook) -> Iterator[SimulatedKms]:
    """Run a KMS with the roots of the record."""
    with SimulatedKms(
        intel.verifier(),
        roots=ROOTS,
        auth=webhook.url,
        image_verify=False,
        admin=("127.0.0.1", 0),
        admin_token=TOKEN,
        now=intel.NOW.timestamp,
    ) as found:
        yield found


def evidence(key: P256Key) -> bytes:
    """Return evidence with the configuration of the record, for a certificate."""
    return evidence_of(key, config=CONFIG).stripped().to_bytes()


def client_of(kms: SimulatedKms, kind: str) -> Client:
    """Return a client with the certificate of a row."""
    if kind == "none":
        return anonymous(kms)
    extension = {
        "unbound": evidence(OTHER_KEY),
        "garbage": b"\xef" * 3,
        "plain": None,
    }
    if kind in extension:
        return with_certificate(kms, extension[kind])
    issuer = None
    if kind == "self-signed":
        issuer = _own_ca(), KEY
    elif kind == "root-leaf":
        issuer = kms.root_cert, ROOTS.ca_key
    return with_certificate(kms, evidence(KEY), issuer=issuer)


def _own_ca() -> str:
    return certificate_pem(
        issue_ca(
            key=KEY, subject="x", path_length=0, not_before=157_766_400, not_after=4_000_000_000
        )
    )


def authorize(webhook: Webhook, mode: str | None) -> None:
    """Make the webhook answer as in a row."""
    webhook.status, webhook.body = 200, ALLOWED
    if mode == "deny":
        webhook.body = DENIED
    elif mode == "status 500":
        webhook.status, webhook.body = 500, b"x" * 600
    elif mode is not None:
        webhook.body = mode.encode()


def expected_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the answer that is expected, with attestkit's differences."""
    if same := row.get("same_as"):
        own = {"path", "headers", "body"}
        row = {**{name: value for name, value in ROWS[same].items() if name not in own}, **row}
    if answer := ON_PURPOSE.get(row["id"]):
        return {"method": row["method"], "path": row["path"], **answer}
    return {**row, **row.get("attestkit", {})}


def is_cut(row: dict[str, Any], path: str, value: object) -> bool:
    """Return whether the record has not the whole value, or it is random."""
    return path in row.get("random", {}) or "\N{HORIZONTAL ELLIPSIS}" in str(value)


def is_meta(row: dict[str, Any]) -> bool:
    """Return whether an answer is that of GetMeta."""
    return "k256_pubkey" in (row.get("json") or {}) and "is_dev" in row["json"]


def value_differences(row: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Yield the members whose values differ, where the record has them."""
    found = answer.json()
    for name, value in (row.get("json") or {}).items():
        if name in STRUCTURE:
            continue
        if not is_cut(row, name, value) and found[name] != DIFFERENT.get(name, value):
            yield f"{name}: {value} -> {found[name]}"


def send(client: Client, row: dict[str, Any]) -> Answer:
    """Send the request of a row."""
    body = bytes.fromhex(row["body_hex"]) if "body_hex" in row else row.get("body", "").encode()
    verb = row["method"]
    return client.send(verb, row["path"], body if verb == "POST" else None, row.get("headers"))


@needs_shared
@every_case("row", rpc_rows("rpc"), ids=row_id)
def test_request_gets_the_recorded_answer(
    row: dict[str, Any], kms: SimulatedKms, webhook: Webhook
) -> None:
    """Status, content type, shape, texts and values are those of the real KMS."""
    expected = expected_of(row)
    authorize(webhook, row.get("authorisation"))
    client = client_of(kms, row.get("certificate", "none"))
    if expected["status"] is None:  # in TLS 1.3, clients notice it at their first read
        with pytest.raises((ssl.SSLError, ConnectionError)):
            send(client, row)
        return
    answer = send(client, row)
    expected = json.loads(json.dumps(expected).replace(RECORDED_URL, webhook.url))
    if expected.get("error", "").endswith("\N{HORIZONTAL ELLIPSIS}"):
        assert len(answer.json()["error"]) == 609 - len(RECORDED_URL) + len(webhook.url)
        expected["error"] = answer.json()["error"]
    if "page" in expected:  # all pages of errors are JSON
        assert answer.status == expected["status"]
        return
    if families := expected.pop("families", None):
        lines = answer.body.decode().splitlines()
        helps = [f"# HELP {name} {text}" for name, text, _ in families]
        assert [line for line in lines if line.startswith("# HELP")] == helps
    if is_meta(expected):
        expected["json"].update(STRUCTURE)
    assert list(find_differences(expected, answer)) == []
    if "json" in expected and answer.status == 200:
        assert list(value_differences(expected, answer)) == []


@needs_shared
@every_case("row", rpc_rows("admin"), ids=row_id)
def test_administration_gets_the_recorded_answer(row: dict[str, Any], kms: SimulatedKms) -> None:
    """The listener for administration answers as that of the real KMS, with and without token."""
    with closing(Connection(kms.admin_url)) as connection:
        body = bytes.fromhex(row["body_hex"]) if "body_hex" in row else row.get("body")
        answer = connection.send_request(row["method"], row["path"], body, row.get("headers"))
    expected = expected_of(row)
    assert answer.status == expected["status"]
    for name, value in expected.get("headers_of_answer", {}).items():
        assert answer.headers[name.lower()] == value
    if "text" in expected:
        assert answer.body.decode() == expected["text"]
    else:
        assert list(find_differences(expected, answer)) == []


@needs_shared
def test_setup_gets_the_recorded_answers(tee: SimulatedTee) -> None:
    """The setup of a KMS without keys, one request after the other."""
    rows = [row for row in ROWS.values() if row["listener"] == "onboarding"]
    with SimulatedKms(tee.verifier(), attester=tee.attester, onboarding=True) as kms:
        for row in rows:
            if row["id"] == "onboard-second":  # from here on of a second KMS
                break
            with closing(Connection(kms.url)) as connection:
                answer = connection.send_request(
                    row["method"], row["path"], row.get("body"), row.get("headers")
                )
            expected = expected_of(row)
            assert answer.status == expected["status"], row["id"]
            if "page" in row:
                assert answer.headers["content-type"] == row["content_type"]
                continue
            assert list(find_differences(expected, answer)) == [], row["id"]
        assert kms.wait_for_keys(20)


@needs_shared
def test_setup_of_second_kms_gets_the_recorded_answers(tee: SimulatedTee) -> None:
    """A second KMS takes over the keys of an attested one, and none of one without evidence."""
    allow = FunctionAuthorization(lambda _: Decision.allow(), lambda _: Decision.allow())
    start = partial(SimulatedKms, tee.verifier(), auth=allow)
    waiting = partial(start, attester=tee.attester, onboarding=True)

    def send_to(second: SimulatedKms, name: str, source: SimulatedKms) -> None:
        row = json.loads(_SOURCE.sub(source.url, json.dumps(ROWS[name])))
        with closing(Connection(second.url)) as connection:
            answer = connection.send_request(
                row["method"], row["path"], row.get("body"), row.get("headers")
            )
        assert list(find_differences(row, answer)) == []
        if "text" in row:
            assert answer.body.decode() == row["text"]

    with start(attester=tee.attester) as source, waiting() as second:
        send_to(second, "onboard-second", source)
        send_to(second, "onboard-finish-page", source)
        assert second.wait_for_keys(20)
        assert second.root == source.root
    with start() as source, waiting() as second:
        send_to(second, "onboard-unattested-source", source)


@needs_shared
def test_unverified_image_gets_the_recorded_answer(tmp_path: Path) -> None:
    """An image that cannot be verified gets no keys where a list of images is required.

    The text differs on purpose: the authorization decides without a hash.
    """
    path = tmp_path / "auth-config.json"
    path.write_text(json.dumps({"osImages": ["bb" * 32]}))
    row = ROWS["getappkey-image-verify"]
    with SimulatedKms(intel.verifier(), roots=ROOTS, auth=path, now=intel.NOW.timestamp) as kms:
        answer = send(client_of(kms, row["certificate"]), row)
    assert list(find_differences(row, answer)) == []
    assert answer.json()["error"] == "App not allowed: Boot denied: OS image is not allowed"
