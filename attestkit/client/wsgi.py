"""WSGI middleware that proves a server to attestkit's clients (attested-client.md, part 3).

    from attestkit.client.wsgi import Attested

    tee = attestkit.open()
    app.wsgi_app = Attested(app.wsgi_app, tee, tls="/etc/tls/leaf.pem")  # of Flask

It serves `/.well-known/attestkit` with evidence about the keys of the TLS certificates; every other
request goes to the app unchanged. TLS must end in this TEE, and the private keys must not leave it.
A server that forks its workers opens the TEE in each worker.
"""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, final

from attestkit.attestation.evidence_maker import EvidenceMaker
from attestkit.client.document import PATH, SigningKey
from attestkit.client.middleware.document_endpoint import DocumentEndpoint
from attestkit.client.middleware.tls_keys import TlsSource

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Attested"]


@final
class Attested:
    """A WSGI application with the document of attested TLS.

    Arguments and errors are those of `attestkit.client.asgi.Attested`.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        tee: EvidenceMaker,
        *,
        tls: TlsSource,
        name: str | None = None,
        hpke: bytes | None = None,
        signing: Sequence[SigningKey] = (),
    ) -> None:
        self._app = app
        self._endpoint = DocumentEndpoint(tee, tls, name=name, hpke=hpke, signing=signing)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request for the document, or call the app."""
        if environ.get("PATH_INFO") != PATH:
            return self._app(environ, start_response)
        query = environ.get("QUERY_STRING", "").encode("latin-1")  # PEP 3333
        reply = self._endpoint.answer_blocking(environ["REQUEST_METHOD"], query)
        status = HTTPStatus(reply.status)
        start_response(f"{status.value} {status.phrase}", list(reply.headers))
        return [reply.body]
