"""A key that goes with the interpreter is wiped then, and nothing is said about it.

Names of modules are gone by then, and in part those of builtins. The programs here look at the
memory behind each `memset`, by means that are not gone.
"""

import subprocess
import sys

import pytest

from tests.serve.server import PATIENCE, environment

# In a namespace of its own, which nothing else lets go of: the program's must go as usual.
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
    # Of the modules that last to the end those that came first go last.
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
FIRST = {"early module", "sys", "thread-local"}  # the others differ from them by little


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=[] if place in FIRST else pytest.mark.slow, id=place)
        for place in PLACES
    ],
)
def test_keys_go_with_the_interpreter(place: str) -> None:
    """All three kinds, wherever they are held: 128 bytes are zero, and stderr is empty."""
    done = subprocess.run(
        [sys.executable, "-c", f"{WATCH}    {PLACES[place].lstrip()}"],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stderr == b""
    assert done.stdout.partition(b"made")[1:] == (b"made", bytes(128))
