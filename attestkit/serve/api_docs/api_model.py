"""Model of the methods of one listener, from which its API documents are generated.

All content comes from the code: names and numbers from the messages, types of requests and
responses from the service table and annotations, and descriptions from docstrings.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from inspect import getdoc
from types import NoneType
from typing import Final, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from attestkit.serve.docstrings import describe_attributes
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.message_fields import fields_of, package_of, version_of
from attestkit.serve.rpc.service import Method, Service

Message: TypeAlias = type[NamedTuple]


ENCODINGS: Final = {
    "POST in JSON": (
        "with `Content-Type: application/json`, with `?json`, or with a body that starts with a "
        "brace and has no content type. Bytes are hex, in any letter case, with or without `0x`. "
        "Every field is optional unless it is marked as required; unknown fields are ignored."
    ),
    "GET with a query": (
        "has arrays as `name[0]=a` or `name[]=a`; the response is JSON. HEAD is the same without "
        "the body."
    ),
    "Any other POST": (
        "is protobuf, with the messages of the `.proto` files; so are its response and errors."
    ),
}
JSON_ONLY: Final = "Only POST with `Content-Type: application/json` is accepted."
"""Sentence about a method that is `json_only`."""

ERRORS: Final = (
    'An error is `{"error": "..."}` in JSON, and a message Error in protobuf. Every response to a '
    "request has an `X-Request-Id`, which also appears in the server's log."
)
STATUSES: Final = {
    "400": "The request is malformed or has an invalid value.",
    "404": "No such method, page or container.",
    "408": "Listener limit: the request did not arrive in time.",
    "413": "The body is larger than the limit.",
    "431": "Listener limit: the request line and headers are too long.",
    "500": "The platform or the server failed.",
    "501": "The machine lacks what the method needs.",
    "503": "Listener limit: too many connections or streams.",
}


class Api(NamedTuple):
    """One listener: its services and pages, and its address for curl."""

    title: str
    version: str  # of the API
    curl: str  # arguments of curl up to the path
    services: Sequence[Service]
    pages: frozenset[str] = frozenset()  # paths of the other views
    names_version: bool = False  # every response has X-App-Version

    @property
    def packages(self) -> Sequence[str]:
        """The protobuf packages of the services, in their order."""
        return list(dict.fromkeys(service.package for service in self.services))


class Call(NamedTuple):
    """One method at one listener."""

    service: str  # title of the service
    name: str
    path: str
    other_paths: Sequence[str]
    summary: str
    details: str
    request: Message | None
    response: Message | None
    json_only: bool  # only POST in JSON

    @property
    def id(self) -> str:
        """Name that is unique on the listener, such as `DstackGuest-v1.GetKey`."""
        return f"{self.service.replace(' ', '-')}.{self.name}"


class Documentation(NamedTuple):
    """Description of a message and of its fields, from its docstring."""

    summary: str
    fields: dict[str, str]


def title_of(service: Service) -> str:
    """Return the name of a service with its version, such as `DstackGuest v1`."""
    return f"{service.name} {service.version}".strip()


def list_calls(service: Service) -> Iterator[Call]:
    """Yield a Call for each method of a service."""
    for name, method in service.methods.items():
        summary, details = _split(getdoc(method.run) or "")
        prefixes = dict.fromkeys((service.prefix, ""))
        path, *others = [f"{at}{prefix}{name}" for at in service.mounts for prefix in prefixes]
        yield Call(
            title_of(service),
            name,
            path,
            others,
            summary,
            details,
            method.request,
            _response(method),
            method.json_only,
        )


def schema_name(message: Message) -> str:
    """Return the name of a message that is unique among the packages, such as `v1.InfoResponse`."""
    version = version_of(package_of(message))
    return f"{version}.{message.__name__}" if version else message.__name__


def _response(method: Method) -> Message | None:
    """Return the class of a method's response, from its annotation.

    None if the method returns nothing.
    """
    answer = get_type_hints(method.run)["return"]
    if get_origin(answer) is PreparedResponse:
        [answer] = get_args(answer)
    return None if answer is NoneType else answer


def list_messages(services: Sequence[Service]) -> list[Message]:
    """Return the messages of the services, each once, requests before their responses.

    A message in a field follows the message that has the field.
    """
    found: dict[Message, None] = {}

    def add(message: Message) -> None:
        found[message] = None
        for field in fields_of(message):
            if field.nested:
                add(field.kind)

    for service in services:
        for call in list_calls(service):
            for message in (call.request, call.response):
                if message is not None:
                    add(message)
    return list(found)


@cache
def read_docstring(message: Message) -> Documentation:
    """Return the descriptions in the docstrings of a message and its base classes."""
    descriptions: dict[str, str] = {}
    for kind in reversed(message.__mro__):
        descriptions |= describe_attributes(kind)
    fields = {field.name: descriptions.get(field.name, "") for field in fields_of(message)}
    return Documentation(_split(getdoc(message) or "")[0], fields)


def _split(text: str) -> tuple[str, str]:
    """Split a docstring: return its first line without full stop, and the rest as a paragraph.

    `text` is the docstring; the second text is empty if it has only one line.
    """
    summary, _, details = text.partition("\n")
    return summary.removesuffix("."), " ".join(details.split())
