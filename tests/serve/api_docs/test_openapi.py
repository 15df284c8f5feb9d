"""The OpenAPI document matches the served methods."""

import json
from typing import Any, Final

import pytest
from jsonschema_rs import Draft202012Validator

from attestkit.serve import listener_apps
from attestkit.serve.api_docs.api_model import Api, Call, list_calls, read_docstring, schema_name
from attestkit.serve.api_docs.examples import example_of
from attestkit.serve.api_docs.html_page import curl_get
from attestkit.serve.api_docs.openapi import make_document
from attestkit.serve.rpc import json_codec, protobuf_codec
from attestkit.serve.rpc.message_fields import fields_of
from attestkit.serve.rpc.service import Service
from attestkit.serve.services import dstack_guest, guest_v1
from attestkit.serve.services.context import Guest
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client, Response
from tests.serve.guests import GuestClient
from tests.serve.protobuf import MESSAGES
from tests.thorough import slow

SERVICES: Final[dict[str, list[Service]]] = {
    "dstack": [dstack_guest.SERVICE, guest_v1.SERVICE],
    "tappd": [listener_apps._AT_ROOT, listener_apps._OLD_CLIENTS],
    "http": [*listener_apps.EXTERNAL_SERVICES],
    "dev_http": [*listener_apps.DEV_SERVICES],
}
APPS: Final = {"dstack": "dstack", "tappd": "tappd", "http": "external", "dev_http": "dev"}
CALLS: Final = [
    (listener, call)
    for listener, services in SERVICES.items()
    for service in services
    for call in list_calls(service)
]
DOCUMENTS: Final = {"/openapi.json", "/docs", "/dstack_guest.proto"}
STATUSES: Final = {"200", "400", "404", "408", "413", "431", "500", "501", "503"}
each_listener = pytest.mark.parametrize("listener", SERVICES)
each_call = every_case(
    ("listener", "call"), CALLS, ids=[f"{listener} {call.id}" for listener, call in CALLS]
)


@pytest.fixture
def clients(guest: Guest, guest_client: GuestClient) -> dict[str, Client]:
    """Return a client of each listener of one guest."""
    return {name: guest_client(app, guest) for name, app in APPS.items()}


def _document(client: Client) -> Any:
    response = client.get("/openapi.json")
    assert (response.status, response.headers["content-type"]) == (200, JSON_TYPE)
    return response.json()


def _validator(make_document: Any, name: str) -> Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": make_document["components"]}
    return Draft202012Validator(schema)


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["tappd", "http", *slow(("dstack",), ("dev_http",))])
def test_document_is_valid_openapi(clients: dict[str, Client], listener: str) -> None:
    """The document is valid OpenAPI 3.1, including references and unique operation ids."""
    # Importing it takes two seconds, so not at collection.
    from openapi_spec_validator import OpenAPIV31SpecValidator

    found = _document(clients[listener])
    assert found["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(found).validate()


@each_listener
def test_document_lists_served_methods(clients: dict[str, Client], listener: str) -> None:
    """Exactly the listener's methods (POST, and GET unless JSON only) and pages are listed."""
    found = _document(clients[listener])
    calls = {call.path: call for where, call in CALLS if where == listener}
    methods = set(calls)
    pages = DOCUMENTS | ({"/"} if listener == "http" else set())
    pages |= {"/dstack.guest.v1.proto"} if listener != "tappd" else set()
    assert set(found["paths"]) == methods | pages
    for path, verbs in found["paths"].items():
        only_post = path in methods and calls[path].json_only
        assert ("get" in verbs) == (not only_post)
        assert ("post" in verbs) == (path in methods)
        for operation in verbs.values():
            assert set(operation["responses"]) == STATUSES
    client = clients[listener]
    assert all(client.get(page).status == 200 for page in pages)


@each_call
def test_example_is_accepted_in_every_encoding(
    clients: dict[str, Client], listener: str, call: Call
) -> None:
    """Each method's example works on both paths, and the response matches its schema.

    A method that is JSON only documents no other encoding.
    """
    client = clients[listener]
    found = _document(client)
    shown = found["paths"][call.path]["post"]
    body = shown["requestBody"]["content"][JSON_TYPE].get("example", {})
    if call.id.endswith(".RawQuote"):
        assert len(body["report_data"]) == 128
    api = Api("", "", "http://x", SERVICES[listener])
    target = curl_get(api, call).partition("http://x")[2].removesuffix("'")
    binary = (
        b"" if call.request is None else b"".join(protobuf_codec.encode(example_of(call.request)))
    )
    assert (BINARY_TYPE in shown["requestBody"]["content"]) == (not call.json_only)
    status = 501 if call.name == "AttestGpu" else 200  # no GPU attester
    for path in (call.path, *call.other_paths):
        responses = [client.post(path, body)]
        if not call.json_only:
            responses += [
                client.get(target.replace(call.path, path, 1)),
                client.request("POST", path, binary, {"content-type": BINARY_TYPE}),
            ]
        for response in responses:
            assert response.status == status, response.body
            if status == 200:
                _check_answer(found, call, response)
            _same_headers(shown["responses"]["200"]["headers"], response)


def _check_answer(make_document: Any, call: Call, response: Response) -> None:
    binary = response.headers["content-type"] == BINARY_TYPE
    if call.response is None:
        assert response.body == (b"" if binary else b"null")
        return
    body = response.body
    if binary:
        body = b"".join(json_codec.encode(protobuf_codec.decode(call.response, body)))
    _validator(make_document, schema_name(call.response)).validate(json.loads(body))


def _same_headers(documented: dict[str, Any], response: Response) -> None:
    names = {name.lower() for name in documented}
    assert names - {"x-app-version"} == {"x-request-id"}
    assert response.request_id
    assert ("x-app-version" in names) == ("x-app-version" in response.headers)


def test_logs_and_metrics_are_documented_if_mounted() -> None:
    """Both are in the document only when mounted, with all parameters."""
    shown = make_document(Api("", "", "", [], frozenset({"/metrics", "/logs/"})))["paths"]
    assert set(shown) == {"/metrics", "/logs/{container}"}
    container, *options = shown["/logs/{container}"]["get"]["parameters"]
    assert (container["in"], container["required"]) == ("path", True)
    names = ["since", "until", "follow", "text", "bare", "timestamps", "tail", "ansi"]
    assert [option["name"] for option in options] == names
    assert all(option["in"] == "query" for option in options)
    assert make_document(Api("", "", "", []))["paths"] == {}


def test_everything_has_description() -> None:
    """Every message and field has a description, and every message an example."""
    for message in MESSAGES:
        words = read_docstring(message)
        assert words.summary, message
        assert all(words.fields.values()), message
        assert list(words.fields) == [field.name for field in fields_of(message)]
        assert type(example_of(message)) is message
    for _, call in CALLS:
        assert call.summary
