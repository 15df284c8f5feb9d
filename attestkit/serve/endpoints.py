"""Where a server listens, and what it says once it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Places", "Ready"]


class Places(NamedTuple):
    """Where to listen; None is not at all. TCP places are (host, port), port 0 is any free one.

    Only `http` may be a unix socket instead, with the mode and group of the others.
    """

    dstack: Path | None = None
    tappd: Path | None = None
    http: tuple[str, int] | Path | None = None
    dev_http: tuple[str, int] | None = None
    socket_mode: int = 0o600
    socket_group: str | None = None
    verifier: tuple[str, int] | None = None
    pccs: tuple[str, int] | None = None
    verifier_metrics: tuple[str, int] | None = None


class Ready:
    """What listens; printed, it is the line that says so to a program that waits for it.

    Attributes:
        places: The path, or the URL with the real port, of each listener that is on, by its name:
            dstack, tappd, http, dev_http, verifier, pccs, verifier_metrics.
    """

    __slots__ = ("places",)

    def __init__(self, places: Mapping[str, Path | str]) -> None:
        self.places: Mapping[str, Path | str] = places

    def __str__(self) -> str:
        from shlex import quote  # changes nothing unless a path has blanks in it

        return " ".join(
            ["ready", *(f"{name}={quote(str(at))}" for name, at in self.places.items())]
        )
