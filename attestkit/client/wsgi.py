"""WSGI middleware that serves a TEE's evidence to attestkit's clients; see `client.document`.

    from attestkit.client.wsgi import Attested

    tee = attestkit.open()
    app.wsgi_app = Attested(app.wsgi_app, tee, tls="/etc/tls/leaf.pem")  # of Flask

It serves `/.well-known/attestkit` with evidence about the keys of the TLS certificates; every other
request goes to the app unchanged. TLS must end in this TEE, and the private keys must not leave it.
A server that forks its workers opens the TEE in each worker.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, final

from attestkit.client.document import PATH
from attestkit.client.document_endpoint import DocumentEndpoint

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment  # noqa: F401 - a base

__all__ = ["Attested"]


@final
class Attested(DocumentEndpoint["WSGIApplication"]):
    """WSGI app that answers `/.well-known/attestkit` with evidence, and passes all else to an app.

    Arguments and errors are those of `attestkit.client.asgi.Attested`.
    """

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request for `/.well-known/attestkit`; pass all else to the app (PEP 3333)."""
        if environ.get("PATH_INFO") != PATH:
            return self._app(environ, start_response)
        query = environ.get("QUERY_STRING", "").encode("latin-1")  # PEP 3333
        reply = self._answer_blocking(environ["REQUEST_METHOD"], query)
        status = HTTPStatus(reply.status)
        start_response(f"{status.value} {status.phrase}", list(reply.headers))
        return [reply.body]
