"""A local server with the OCSP responders and RIM services of many cases."""

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, NamedTuple

_MOST: Final = 1 << 16  # bytes of a request


class CaseServices(NamedTuple):
    """Services of one case."""

    ocsp: Callable[[bytes], bytes]  # request to answer, in DER
    rims: Mapping[str, bytes]


@contextmanager
def serve(cases: Mapping[str, CaseServices]) -> Iterator[str]:
    """Serve `/<case>/ocsp/` and `/<case>/v1/rim/<id>`; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, name, *_, rim_id = self.path.split("/")
            rim = cases[name].rims.get(rim_id)
            if rim is None:
                self.send_error(404)
                return
            body = {"id": rim_id, "rim": b64encode(rim).decode(), "rim_format": "TCG"}
            self._reply(json.dumps(body).encode())

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            assert size <= _MOST
            self._reply(cases[self.path.split("/")[1]].ocsp(self.rfile.read(size)))

        def log_message(self, *_: object) -> None:
            pass

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
