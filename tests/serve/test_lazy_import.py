"""Large libraries are imported in threads, so that the event loop is not blocked."""

import pytest

from tests.serve.server import run_python

# Request pages and a method in protobuf; record which thread imports each library.
PROGRAM = """
import sys, threading
from urllib.request import Request, urlopen
import attestkit
from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses

LARGE = set("aiodocker aiohttp google.protobuf jinja2 prometheus_client psutil wcwidth".split())
found = []

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in LARGE:
            found.append((name, threading.current_thread().name == "attestkit-serve"))

compose = b'{"manifest_version":2,"name":"a","runner":"bash","public_sysinfo":true}'
places, options = ListenAddresses(http=("127.0.0.1", 0)), ServerOptions(docker="/dev/null")
with (
    attestkit.open("simulator", app_compose=compose) as tee,
    BackgroundServer(tee, places, options) as ready,
):
    assert not LARGE & sys.modules.keys()
    sys.meta_path.insert(0, Finder())
    for path, body in (("", None), ("metrics", None), ("docs", None), ("prpc/Version", b"")):
        kind = {"Content-Type": "application/octet-stream"}
        with urlopen(Request(f"{ready.addresses['http']}/{path}", body, kind)) as response:
            assert response.status == 200
print(*sorted(name for name, by_loop in found if by_loop))
print(*sorted(name for name, by_loop in found if not by_loop))
"""


@pytest.mark.slow
def test_event_loop_imports_no_large_library() -> None:
    """Pages, metrics, documents and protobuf import their libraries in threads."""
    done = run_python(PROGRAM)
    assert done.returncode == 0, done.stderr
    by_loop, by_threads = done.stdout.splitlines()
    assert by_loop == ""
    assert {*by_threads.split()} >= {
        *("aiodocker", "aiohttp", "google.protobuf", "jinja2", "prometheus_client", "psutil")
    }
