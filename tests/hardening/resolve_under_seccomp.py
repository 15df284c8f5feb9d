"""Look a name up: unshare -mn python resolve_under_seccomp.py PROFILE PROGRAM.

It requires mount and network namespaces of its own, in which it is the only name server, configured
for libc. PROGRAM then runs under the profile, and resolves names. A UDP query for a name that
begins with `long` gets a truncated response, so that libc repeats it over TCP.
"""

import fcntl
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ADDRESSES = {1: socket.inet_aton("192.0.2.7"), 28: socket.inet_pton(socket.AF_INET6, "2001:db8::7")}
SETTINGS = {
    "/etc/resolv.conf": "nameserver 127.0.0.1\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}
_HEAD = struct.Struct(
    "!6H"
)  # id, flags, counts of questions, answers, authorities, additional records
_IFREQ = struct.Struct("16sH14x")
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_TRUNCATED = 0x0200


def answer(query: bytes, *, by_tcp: bool) -> bytes:
    """Return a response (RFC 1035, section 4) with the one address of the queried type."""
    number, *_ = _HEAD.unpack_from(query)
    end = query.index(b"\0", _HEAD.size) + 5  # a name, its type and its class
    question = query[_HEAD.size : end]
    if question[1:].startswith(b"long") and not by_tcp:
        return _HEAD.pack(number, 0x8180 | _TRUNCATED, 1, 0, 0, 0) + question
    address = ADDRESSES.get(int.from_bytes(question[-4:-2], "big"), b"")
    head = _HEAD.pack(number, 0x8180, 1, 1 if address else 0, 0, 0)
    record = b"\xc0\x0c" + question[-4:] + struct.pack("!IH", 60, len(address)) + address
    return head + question + (record if address else b"")


def _serve_udp(server: socket.socket) -> None:
    while True:
        query, client = server.recvfrom(512)
        server.sendto(answer(query, by_tcp=False), client)


def _serve_tcp(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            while size := stream.read(2):
                reply = answer(stream.read(int.from_bytes(size, "big")), by_tcp=True)
                stream.write(len(reply).to_bytes(2, "big") + reply)
                stream.flush()


def _start() -> None:
    """Configure the loopback interface, and serve queries on it."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 53))
    tcp = socket.create_server(("127.0.0.1", 53))
    for serve, server in ((_serve_udp, udp), (_serve_tcp, tcp)):
        threading.Thread(target=serve, args=(server,), daemon=True).start()


def _configure_libc(folder: Path) -> None:
    for number, (path, text) in enumerate(SETTINGS.items()):
        file = folder / str(number)
        file.write_text(text)
        words = ["mount", "--bind", str(file), path]
        subprocess.run(words, check=True)


def main() -> None:
    """Start the server, run the program under the profile, and exit with its status."""
    profile, program = sys.argv[1:]
    _start()
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        _configure_libc(Path(folder))
        confined = str(Path(__file__).with_name("run_under_seccomp.py"))
        words = [sys.executable, confined, profile, sys.executable, "-c", program]
        done = subprocess.run(words, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
