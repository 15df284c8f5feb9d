"""Network configuration read from files of the kernel."""

from pathlib import Path

from attestkit.serve.network_info import Network, read_network

DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:     100       1    0    0    0     0          0         0      100       1    0    0
  eth0:  123456     100    3    0    0     0          0         0   654321     200    4    0
enp0s9x:10 1 0 0 0 0 0 0 20 1 0 0
dstack-wg0:    1       1    0    0    0     0          0         0        2       1    0    0
 docker0:     9       1    0    0    0     0          0         0        9       1    0    0
"""
ROUTE = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ZERO = "0" * 32
ROUTE6 = f"""\
{ZERO} 00 {ZERO} 00 20010db8000000000000000000000001 00000400 1 0 00000003 eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 1 0 00200200 lo
"""
INET6 = (
    "20010db80000000000000000000000aa 02 40 00 80 eth0\n"
    "00000000000000000000000000000001 01 80 10 80 lo\n"
)


def write(folder: Path, **files: str) -> None:
    """Write files."""
    for name, text in files.items():
        (folder / name.replace("_conf", ".conf")).write_text(text)


def test_read_network_parses_kernel_files(tmp_path: Path) -> None:
    """Name servers, routers, and the shown interfaces with IPv6 addresses and counters."""
    servers = "# comment\nnameserver 192.0.2.53\nsearch a\nnameserver 2001:db8::53\nnameserver\n"
    write(tmp_path, dev=DEV, route=ROUTE, ipv6_route=ROUTE6, if_inet6=INET6, resolv_conf=servers)
    found = read_network(tmp_path, tmp_path)
    assert found.dns_servers == ("192.0.2.53", "2001:db8::53")
    assert found.gateways == ("192.0.2.1", "2001:db8::1")
    names = {one.name: one for one in found.interfaces}
    assert list(names) == ["eth0", "enp0s9x", "dstack-wg0"]
    assert names["eth0"][2:] == (123456, 654321, 3, 4)
    assert ("2001:db8::aa", 64) in names["eth0"].addresses


def test_read_network_without_files_is_empty(tmp_path: Path) -> None:
    """Files that are missing, empty or truncated give empty parts."""
    assert read_network(tmp_path, tmp_path) == Network((), (), ())
    write(tmp_path, dev="", route="x", ipv6_route="", if_inet6="a", resolv_conf="\xff\n")
    assert read_network(tmp_path, tmp_path) == Network((), (), ())


def test_read_network_of_this_machine() -> None:
    """The real files are read without an error."""
    assert isinstance(read_network(), Network)
