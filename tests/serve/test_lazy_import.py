"""Large libraries are imported in threads, so that the event loop is not blocked."""

from tests.serve.server import run_python

# Request every page and the protobuf mode; record which thread imports each library.
PROGRAM = """
import asyncio, os, sys, threading, time
import attestkit
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError
from attestkit.serve.api_docs import api_model as api, views as docs
from attestkit.serve import listener_apps as apps, listener_apps as pages
from attestkit.serve.services import worker_api as worker
from attestkit.serve.services.context import Guest
from attestkit.serve.http.views import ViewRequest

LARGE = {"aiodocker", "aiohttp", "google.protobuf", "jinja2", "prometheus_client", "psutil"}
found = set()

class Noting:
    def find_spec(self, name, path=None, target=None):
        if name in LARGE:
            found.add((name, threading.current_thread() is threading.main_thread()))

async def ask(view):
    try:
        await view.show(guest, ViewRequest(name="x"))
    except AttestKitError:
        pass

async def main():
    views = pages.make_views(guest)
    for view in (views["/"], views["/metrics"], *docs.make_views(described).values()):
        await ask(view)
    app = apps.external_app(guest)
    target, binary = b"/prpc/Worker.Version", b"application/octet-stream"
    assert app.direct(target, None) and app.direct(target, b"application/json")
    assert app.direct(target, binary) is None  # it waits, elsewhere
    await app(
        {
            "type": "http", "method": "POST", "raw_path": target, "query_string": b"",
            "headers": [(b"content-type", binary)],
        },
        receive,
        send,
    )
    assert app.direct(target, binary) is not None

async def receive():
    return {"type": "http.request"}

async def send(message):
    assert message.get("status", 200) == 200

tee = attestkit.open("simulator")
text = b'{"manifest_version":2,"name":"a","runner":"bash","public_sysinfo":true}'
compose = AppCompose.parse(text)
guest = Guest(
    tee, app_compose=compose, app_keys=None, vm_config="{}", now=time.time, random=os.urandom,
    docker="/dev/null",
)
described = api.Api("t", "0", "curl", [worker.SERVICE], docs.PATHS, names_version=False)
assert not LARGE & sys.modules.keys()
sys.meta_path.insert(0, Noting())
asyncio.run(main())
print(*sorted(name for name, by_loop in found if by_loop))
print(*sorted(name for name, by_loop in found if not by_loop))
"""


def test_event_loop_imports_no_large_library() -> None:
    """Pages, metrics, documents and protobuf import their libraries in threads."""
    done = run_python(PROGRAM)
    assert done.returncode == 0, done.stderr
    by_loop, by_threads = done.stdout.splitlines()
    assert by_loop == ""
    assert by_threads.split() == [
        *("aiodocker", "aiohttp", "google.protobuf", "jinja2", "prometheus_client", "psutil")
    ]
