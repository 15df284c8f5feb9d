"""A key released at interpreter exit is wiped, without output.

Module globals and some builtins are gone by then. The programs inspect the memory after each
`memset` by means that remain.
"""

import subprocess
import sys

import pytest

from tests.serve.server import PATIENCE, environment

# The namespace is held by this only, so that the program's globals are released as usual.
WATCH = '''if True:
    exec("""if True:
    import ctypes, os
    def watched(real, copy, seen, write):
        def memset(place, value, size):
            real(place, value, size)
            copy(seen, place, size)
            write(1, bytes_of(seen)[:size])
        return memset
    bytes_of = memoryview
    ctypes.memset = watched(
        ctypes.memset, ctypes.memmove, ctypes.create_string_buffer(b"?" * 64, 64), os.write
    )
    """, {})
    from attestkit._crypto.ecdsa import K256Key, P256Key
    from attestkit._crypto.ed25519 import Ed25519Key
    octets = bytes(31) + b"1"
    keys = [K256Key(octets), P256Key.from_scalar(octets), Ed25519Key(octets)]
    __import__("os").write(1, b"made")
'''
PLACES = {
    "global": "",
    "cycle": "keys.append(keys); del keys",
    "module": "import attestkit._crypto.zeroize as module; module.keys = keys; del keys",
    # Modules that last until the end are released in the order of their import.
    "early module": "import os; os.keys = keys; del keys",
    "builtins": "import builtins; builtins.keys = keys; del keys",
    "sys": "import sys; sys.keys = keys; del keys",
    "thread-local": "import threading; place = threading.local(); place.keys = keys; del keys",
    "daemon": """
    import threading
    place, there = threading.local(), threading.Event()
    def work():
        global keys
        place.keys = keys
        del keys
        there.set()
        threading.Event().wait()
    threading.Thread(target=work, daemon=True).start()
    there.wait()""",
}
FIRST = {"early module", "sys", "thread-local"}  # the others differ little


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param(reference, marks=[] if reference in FIRST else pytest.mark.slow, id=reference)
        for reference in PLACES
    ],
)
def test_keys_at_interpreter_exit_are_wiped(reference: str) -> None:
    """Keys of all three types are zeroed wherever they are referenced, and stderr is empty."""
    done = subprocess.run(
        [sys.executable, "-c", f"{WATCH}    {PLACES[reference].lstrip()}"],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stderr == b""
    assert done.stdout.partition(b"made")[1:] == (b"made", bytes(128))
