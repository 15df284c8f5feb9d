"""Endpoint of the document, and the TLS keys in it, for the middleware of ASGI and WSGI."""
