"""The bounds of every listener, so that a stranger can neither hold nor fill the server."""

from typing import NamedTuple

from attestkit.errors import AttestKitError

__all__ = ["LimitError", "Limits"]


class LimitError(AttestKitError):
    """A client has as much as it may have of something; later there may be more. A 503."""


class Limits(NamedTuple):
    """How much, how many, how long; each can be set by `--limit NAME=VALUE`.

    Sizes are bytes, times seconds. Of `connections`, twice as many are let in to be told so (503);
    more are closed at once.
    """

    body: int = 10 * 1024 * 1024  # of a request to a method; a larger one is a 400
    verifier_body: int = 1024 * 1024  # of a request to the verifier; a larger one is a 413
    head: int = 32 * 1024  # request line and headers; a larger one is a 431
    headers: int = 100  # how many; more are a 431
    head_seconds: float = 10.0  # from a request's first byte to the end of its headers; 408
    body_seconds: float = 30.0  # between two pieces of a body; 408
    idle_seconds: float = 10.0  # between two requests; closed
    write_seconds: float = 30.0  # for which a client may take nothing of its answer; closed
    connections: int = 256  # of one listener; 503
    streams: int = 16  # of container logs, for one client; 503
    stream_seconds: float = 600.0  # for which a log stream may be silent; ended
    drain_seconds: float = 10.0  # for the requests in flight when the server stops; cancelled
