"""What the middleware for ASGI and WSGI shares: the document's endpoint, and the TLS keys in it."""
