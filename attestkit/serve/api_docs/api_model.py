"""What one listener serves, in words: what every document about it is made from.

Nothing here is written twice: names and numbers are those of the messages, what a method takes and
answers is in its entry and its annotation, and the words are the docstrings.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import getdoc
from types import NoneType
from typing import Final, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from attestkit.serve.rpc.dispatcher import Method, Service
from attestkit.serve.rpc.json_codec import Prepared
from attestkit.serve.rpc.messages import fields_of

__all__ = [
    "ENCODINGS",
    "ERRORS",
    "STATUSES",
    "Api",
    "Call",
    "Message",
    "Words",
    "calls_of",
    "messages_of",
    "words_of",
]

Message: TypeAlias = type[NamedTuple]

_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


ENCODINGS: Final = {
    "POST in JSON": (
        "with `Content-Type: application/json`, with `?json`, or with a body that starts with a "
        "brace and has no type of its own. Bytes are hex, in any letter case, with `0x` or "
        "without. Every field may be left out unless it is required; unknown ones are ignored."
    ),
    "GET with a query": (
        "has arrays as `name[0]=a` or `name[]=a`, and is answered in JSON. HEAD is the same "
        "without the body."
    ),
    "Any other POST": (
        "is protobuf, with the messages of `/dstack_guest.proto`, and so are its answer and errors."
    ),
}
ERRORS: Final = (
    'In JSON an error is `{"error": "..."}`, in protobuf a message Error. Every response to a '
    "request has an `X-Request-Id`, which the server's log has too."
)
STATUSES: Final = {
    "400": "The request is wrong: it cannot be read, or asks for what cannot be.",
    "404": "There is no such method, page or container.",
    "408": "The listener's limit: the request did not come in time.",
    "431": "The listener's limit: the request line and headers are too long.",
    "500": "The platform or the server failed.",
    "503": "The listener's limit: too many connections or streams.",
}


class Api(NamedTuple):
    """One listener: what is served there, and how to get there with curl."""

    title: str
    version: str  # of the API
    curl: str  # all that comes before a path
    services: Sequence[Service]
    pages: frozenset[str] = frozenset()  # the paths that show something besides
    names_version: bool = False  # every response has X-App-Version


class Call(NamedTuple):
    """One method where it is served."""

    service: str
    name: str
    path: str
    short_path: str  # without the service's name; the same where there is none
    summary: str
    details: str
    request: Message | None
    response: Message | None

    @property
    def id(self) -> str:
        """The name that no other method of the listener has."""
        return f"{self.service}.{self.name}"


class Words(NamedTuple):
    """What a docstring says of a message, and of each of its fields."""

    summary: str
    fields: dict[str, str]


def calls_of(service: Service) -> Iterator[Call]:
    """Yield the methods of a service."""
    for name, method in service.methods.items():
        summary, details = _split(getdoc(method.run) or "")
        yield Call(
            service.name,
            name,
            f"{service.mount}{service.prefix}{name}",
            f"{service.mount}{name}",
            summary,
            details,
            method.request,
            _response(method),
        )


def _response(method: Method) -> Message | None:
    """Return the message that a method answers, which its annotation tells."""
    answer = get_type_hints(method.run)["return"]
    if get_origin(answer) is Prepared:
        [answer] = get_args(answer)
    return None if answer is NoneType else answer


def messages_of(services: Sequence[Service]) -> list[Message]:
    """Return the messages of some services, each once, requests before their responses."""
    found: dict[Message, None] = {}
    for service in services:
        for call in calls_of(service):
            for message in (call.request, call.response):
                if message is not None:
                    found[message] = None
    return list(found)


@cache
def words_of(message: Message) -> Words:
    """Return what the docstring of a message says."""
    text, _, attributes = (getdoc(message) or "").partition("Attributes:\n")
    said = {name: " ".join(words.split()) for name, words in _ATTRIBUTE.findall(attributes)}
    fields = {field.name: said.get(field.name, "") for field in fields_of(message)}
    return Words(_split(text)[0], fields)


def _split(text: str) -> tuple[str, str]:
    """Return the first line of a docstring without its full stop, and the rest as one paragraph."""
    summary, _, details = text.partition("\n")
    return summary.removesuffix("."), " ".join(details.split())
