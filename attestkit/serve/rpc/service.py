"""Services: the methods under a mount point, and how each may be called."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from attestkit.serve.rpc.message_fields import version_of
from attestkit.serve.rpc.messages import PACKAGE


class Method(NamedTuple):
    """One method of a service: a function and its request message (None: the payload is ignored).

    A `device` method may wait for the platform; if the platform blocks, it runs in the device's
    thread. A method that `writes` to a disk always does. One that `signs` certificates runs in a
    thread of its own if a KMS signs them. A `json_only` method accepts only POST
    with `Content-Type: application/json`, which a web page cannot send to another origin without
    its permission. A `post_only` method accepts only POST, in any encoding, because GET and HEAD
    are safe (RFC 9110, section 9.2.1). A method that `waits` is a coroutine function. API documents
    take the response type from the annotation of `run`, and the description from its docstring.
    """

    run: Callable[[Any, Any], object]  # arguments: the methods' context, and the message
    request: type[Any] | None = None
    device: bool = False
    writes: bool = False
    json_only: bool = False
    post_only: bool = False
    waits: bool = False
    signs: bool = False


class MethodRoute(NamedTuple):
    """The method that a path leads to, and its name for metrics."""

    name: str  # for metrics: the method's name, of a versioned package as in v1.GetKey
    method: Method


class Service(NamedTuple):
    """Methods under a mount point and its aliases; `prefix` is optional in their paths."""

    methods: Mapping[str, Method]
    mount: str = "/"
    prefix: str = ""
    name: str = ""  # in API documents
    package: str = PACKAGE  # protobuf package
    aliases: Sequence[str] = ()  # further mount points

    @property
    def mounts(self) -> Sequence[str]:
        """The mount point and its aliases."""
        return (self.mount, *self.aliases)

    @property
    def version(self) -> str:
        """The version in the name of the protobuf package, such as v1; empty if it has none."""
        return version_of(self.package)

    def route(self, name: str) -> MethodRoute:
        """Return the method of this name, with its name for metrics, such as v1.GetKey."""
        label = f"{self.version}.{name}" if self.version else name
        return MethodRoute(label, self.methods[name])
