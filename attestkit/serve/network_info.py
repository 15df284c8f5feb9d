"""Network configuration of this machine from /proc, without netlink, which seccomp may refuse."""

import fcntl
import logging
import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

_SHOWN: Final = re.compile(r"dstack-wg0|enp\w{0,12}|eth\w{0,12}", re.ASCII)
_MOST_INTERFACES: Final = 64
_MOST_SERVERS: Final = 16
_LARGEST: Final = 1 << 20  # bytes of a file
_ADDRESS, _MASK = 0x8915, 0x891B  # SIOCGIFADDR and SIOCGIFNETMASK, sockios.h
_GATEWAY: Final = 0x0002  # RTF_GATEWAY, route.h
_logger = logging.getLogger("attestkit.serve")


class InterfaceState(NamedTuple):
    """A network interface: its addresses with their prefix lengths, and its counters."""

    name: str
    addresses: tuple[tuple[str, int], ...]  # address and prefix length
    rx_bytes: int  # received since boot
    tx_bytes: int  # sent since boot
    rx_errors: int  # packets
    tx_errors: int


class Network(NamedTuple):
    """Network configuration: DNS servers and routers of default routes are IP addresses."""

    dns_servers: tuple[str, ...]
    gateways: tuple[str, ...]
    interfaces: tuple[InterfaceState, ...]


def read_network(proc: Path = Path("/proc/net"), etc: Path = Path("/etc")) -> Network:
    """Return the network configuration; a field whose file cannot be read is empty.

    Interfaces other than `dstack-wg0`, `enp*` and `eth*` are left out, and all but the first 64
    interfaces and 16 DNS servers. `proc` is the folder of `route`, `ipv6_route`, `if_inet6` and
    `dev`, `etc` that of `resolv.conf`.
    """
    v6 = list(_ipv6_addresses(_lines(proc / "if_inet6")))
    gateways = [
        *_ipv4_gateways(_lines(proc / "route")),
        *_ipv6_gateways(_lines(proc / "ipv6_route")),
    ]
    return Network(
        tuple(_dns_servers(_lines(etc / "resolv.conf")))[:_MOST_SERVERS],
        tuple(dict.fromkeys(gateways)),
        tuple(_interfaces(_lines(proc / "dev"), v6))[:_MOST_INTERFACES],
    )


def _lines(path: Path) -> list[list[str]]:
    """Return the words of each line of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("ascii", "replace")
    except OSError as error:
        _logger.debug("cannot read %s: %s", path, error)
        return []
    return [line.split() for line in text.splitlines()]


def _dns_servers(lines: list[list[str]]) -> Iterator[str]:
    for words in lines:
        if len(words) > 1 and words[0] == "nameserver":
            yield words[1][:64]


def _ipv4_gateways(lines: list[list[str]]) -> Iterator[str]:
    """Yield the addresses of the routers of the IPv4 default routes.

    `lines` are the words of each line of /proc/net/route: name, destination, router, flags (in
    hex).
    """
    for words in lines[1:]:
        if len(words) > 3 and int(words[1], 16) == 0 and int(words[3], 16) & _GATEWAY:
            yield str(IPv4Address(struct.pack("=I", int(words[2], 16))))


def _ipv6_gateways(lines: list[list[str]]) -> Iterator[str]:
    for words in lines:
        is_default = len(words) > 8 and int(words[0], 16) == 0 and int(words[1], 16) == 0
        if is_default and int(words[8], 16) & _GATEWAY:
            yield str(IPv6Address(int(words[4], 16)))


def _ipv6_addresses(lines: list[list[str]]) -> Iterator[tuple[str, str, int]]:
    """Yield interface name, address and prefix length of each IPv6 address.

    `lines` are the words of each line of /proc/net/if_inet6.
    """
    for words in lines:
        if len(words) > 5:
            yield words[5], str(IPv6Address(int(words[0], 16))), int(words[2], 16)


def _interfaces(lines: list[list[str]], v6: list[tuple[str, str, int]]) -> Iterator[InterfaceState]:
    for words in lines[2:]:
        name, _, rest = " ".join(words).partition(":")
        counts = rest.split()
        if _SHOWN.fullmatch(name) is None or len(counts) < 11:
            continue
        rx_bytes, rx_errors, tx_bytes, tx_errors = [int(counts[at]) for at in (0, 2, 8, 10)]
        own = [(address, prefix) for other, address, prefix in v6 if other == name]
        addresses = (*_ipv4_address(name), *own)
        yield InterfaceState(name, addresses, rx_bytes, tx_bytes, rx_errors, tx_errors)


def _ipv4_address(name: str) -> Iterator[tuple[str, int]]:
    """Yield the primary IPv4 address of the interface `name` and its prefix length.

    Yield nothing if it has none.
    """
    request = struct.pack("16s24x", name.encode("ascii"))  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            address, mask = [
                fcntl.ioctl(sock, number, request)[20:24] for number in (_ADDRESS, _MASK)
            ]
        except OSError:
            return
    yield str(IPv4Address(address)), int.from_bytes(mask, "big").bit_count()
