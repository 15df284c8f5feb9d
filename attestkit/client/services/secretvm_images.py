"""Registers of SecretVM's images: the published registry, and RTMR3 of an app.

Source: attested-client.md, 2.8. The registry is what its user takes it for: neither its origin nor
its age is checked here.
"""

import csv
from collections.abc import Iterable
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.verifier import ReferenceValues

MAX_REGISTRY: Final = 4 << 20
"""Maximum size of a registry in characters."""

MAX_IMAGES: Final = 4096
"""Maximum number of rows of a registry."""

_WHAT: Final = "SecretVM registry"
_SIZES: Final = {"mrtd": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rootfs_data": 32}
_NAMES: Final = ("template_name", "vm_type", "artifacts_ver")
_REGISTER: Final = 48  # bytes


class SecretVmImage(NamedTuple):
    """One row of the registry: an image on one size of machine."""

    template: str  # size of the machine, such as small
    kind: str  # prod or dev
    version: str
    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rootfs_data: bytes  # 32 bytes, extended into RTMR3


def read_secretvm_registry(text: str) -> tuple[SecretVmImage, ...]:
    """Read the registry of TDX images, CSV with a header.

    Raises:
        FormatError: If it is malformed, over 4 MiB, has over 4,096 rows, or lacks a column.
    """
    if len(text) > MAX_REGISTRY:
        raise FormatError(f"{_WHAT}: over {MAX_REGISTRY} characters", reason="too_large")
    found = []
    try:
        rows = csv.DictReader(text.splitlines(), strict=True)
        if missing := {*_NAMES, *_SIZES} - set(rows.fieldnames or ()):
            message = f"{_WHAT}: column {min(missing)}: missing"
            raise FormatError(message, reason="missing")
        for number, row in enumerate(rows):
            if number == MAX_IMAGES:
                raise FormatError(f"{_WHAT}: over {MAX_IMAGES} rows", reason="too_many")
            found.append(_image(row, number))
    except csv.Error as error:
        raise FormatError(f"{_WHAT}: not CSV: {shown(str(error))}", reason="syntax") from error
    return tuple(found)


def _image(row: dict[str, str | None], number: int) -> SecretVmImage:
    what = f"{_WHAT}: row {number}"
    if None in (texts := [row[name] for name in (*_NAMES, *_SIZES)]):
        raise FormatError(f"{what}: truncated", reason="truncated")
    # A row of the published registry has a space before a value.
    template, kind, version, *values = [str(text).strip(" ") for text in texts]
    sizes = zip(values, _SIZES.items(), strict=True)
    registers = [strict_json.from_hex(one, f"{what}: {k}", n) for one, (k, n) in sizes]
    mrtd, rtmr0, rtmr1, rtmr2, rootfs_data = registers
    return SecretVmImage(template, kind, version, mrtd, rtmr0, rtmr1, rtmr2, rootfs_data)


def secretvm_rtmr3(compose: bytes, rootfs_data: bytes, docker_files: bytes | None = None) -> bytes:
    """Return RTMR3, 48 bytes, of a SecretVM without a dstack app id.

    Args:
        compose: Bytes of the compose file.
        rootfs_data: 32 bytes of the image.
        docker_files: SHA-256 of the archive of docker files, if the app has one.

    Raises:
        UsageError: If a value has the wrong size.
    """
    parts = [sha256(compose), rootfs_data, *([] if docker_files is None else [docker_files])]
    for part in parts:
        if len(part) != 32:
            raise UsageError("rootfs_data, docker_files: must be 32 bytes", reason="wrong_size")
    register = bytes(_REGISTER)
    for part in parts:
        register = sha384(register + part.ljust(_REGISTER, b"\0"))
    return register


def secretvm_references(
    images: Iterable[SecretVmImage], compose: bytes, docker_files: bytes | None = None
) -> ReferenceValues:
    """Return reference values for a policy that accepts one app on any of some images.

    Development and production images share rows but for `rootfs_data`: pass those of the kind and
    versions that are meant, not the whole registry.

    Raises:
        UsageError: If `images` is empty.
    """
    rows = tuple(images)
    if not rows:
        raise UsageError("images: none", reason="missing")
    return ReferenceValues(
        mrtd=[row.mrtd for row in rows],
        rtmr0=[row.rtmr0 for row in rows],
        rtmr1=[row.rtmr1 for row in rows],
        rtmr2=[row.rtmr2 for row in rows],
        rtmr3=[secretvm_rtmr3(compose, row.rootfs_data, docker_files) for row in rows],
    )
