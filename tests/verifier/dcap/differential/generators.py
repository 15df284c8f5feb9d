"""Random evidence by kind. Each generator names what it altered in `Forge.altered`."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any, Final

from attestkit._crypto.x509.simulated.certificate_encoder import encode_extension
from tests.verifier.dcap.dcap_samples import NOW
from tests.verifier.dcap.differential.certificate_forms import SGX_EXTENSION
from tests.verifier.dcap.differential.forge import ISSUE, NEXT, SGX, TDX, Forge, date, seconds
from tests.verifier.dcap.differential.levels import form_facts, generate_levels

Generator = Callable[[Random], Forge]

_FORMS: Final = ((TDX, 4), (TDX, 5), (SGX, 3))
_CERTIFICATES: Final = ("root", "ca", "signer", "leaf")
_EXTENSIONS: Final = (35, 31, 14, 15, 19, SGX_EXTENSION)


def generate_bytes(r: Random) -> Forge:
    """Bits of the quote flipped, and now and then bytes replaced, removed or inserted."""
    forge = Forge(*r.choice(_FORMS))

    def change(quote: bytes) -> bytes:
        altered = bytearray(quote)
        for _ in range(r.choice((1, 1, 1, 2, 5))):
            at = r.randrange(r.choice((len(altered), 1300)))
            altered[at] ^= 1 << r.randrange(8)
            forge.altered.add(_region(forge, quote, at))
        if r.random() < 0.1:
            at = r.randrange(len(altered))
            altered[at : at + r.randrange(8)] = r.randbytes(r.randrange(8))
            forge.altered.add(f"{_region(forge, quote, at)} and behind")
        if r.random() < 0.02:
            altered += r.randbytes(r.choice((1, 8)))
            forge.altered.add("behind the quote")
        return bytes(altered)

    forge.change_quote = change
    return forge


def _region(forge: Forge, quote: bytes, at: int) -> str:
    """Return the name of the part of an unaltered quote that has the byte at an offset."""
    body = {(TDX, 4): 584, (TDX, 5): 648 + 6, (SGX, 3): 384}[forge.tee, forge.version]
    end = 48
    section = 6 if forge.version > 3 else 0
    for name, size in (
        ("header", 0),
        ("body", body),
        ("size of the signature data", 4),
        ("signature", 64),
        ("attestation key", 64),
        ("section header", section),
        ("QE report", 384),
        ("QE report signature", 64),
        ("size of the QE authentication data", 2),
        ("QE authentication data", 32),
        ("certification header", 6),
    ):
        end += size
        if at < end:
            return name
    before = quote[:at].count(b"-----END CERTIFICATE-----\n")
    return f"PCK chain {('leaf', 'ca', 'root', 'end')[before]}"


# Values for a member of a body: types, edges of ranges, dates, and words of other members.
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, 1, -1, 3, 13, 255, 256, 65535, 65536, 1 << 31, 1 << 32, 1.0),
    *("", "00", "x", [], {}, [{}], "TDX", "SGX", "QE", "TD_QE"),
    *("UpToDate", "OutOfDate", "Revoked", "ConfigurationNeeded", "TDRelaunchAdvised"),
    *(date(NOW), date(NOW - 1), date(NOW + 1)),
    *("2024-02-30T00:00:00Z", "2024-01-01T00:00:00.5Z", "2024-01-01T01:00:00+01:00", "2024-01-01"),
    *("5077570000aa", "507757000000", "0000", "00" * 48, "00" * 8, "FF" * 8, "00" * 16, "ff" * 4),
)
_MEMBERS: Final = ("tdxModule", "tdxModuleIdentities", "tdxtcbcomponents", "advisoryIDs", "id", "x")


def generate_bodies(r: Random) -> Forge:
    """A member of TCB info or QE identity replaced, removed or added."""
    forge = Forge(*r.choice(_FORMS))
    alter_body(r, forge, r.choice(("tcb_info", "qe_identity")))
    return forge


def alter_body(r: Random, forge: Forge, name: str) -> None:
    """Replace, remove or add a member of `tcb_info` or `qe_identity`."""
    where: Any = getattr(forge, name)
    path = name
    while True:
        key = r.choice(list(where) if isinstance(where, dict) else range(len(where)))
        path += f".{key}" if isinstance(where, dict) else "[]"
        if not isinstance(where[key], (dict, list)) or not where[key] or r.random() < 0.2:
            break
        where = where[key]
    way = r.random()
    if way < 0.2:
        del where[key]
        forge.altered.add(f"{path} removed")
    elif way < 0.3 and isinstance(where, dict):
        added = r.choice(_MEMBERS)
        modules = (forge.tcb_info.get(member) for member in _MEMBERS[:2])
        where[added] = deepcopy(r.choice((None, {}, [], "x", 1, *modules)))
        forge.altered.add(f"{path.rpartition('.')[0]}.{added} added")
    else:
        where[key] = deepcopy(r.choice(_VALUES))
        forge.altered.add(f"{path} replaced")


def generate_times(r: Random) -> Forge:
    """The time of the verification near the edges of validity periods."""
    forge = Forge(*r.choice(_FORMS))
    for body in (forge.tcb_info, forge.qe_identity):
        body["issueDate"] = date(r.choice((ISSUE, NOW - 100)))
        body["nextUpdate"] = date(r.choice((NEXT, NOW + 100)))
    for which in (*_CERTIFICATES, "crl root", "crl pck"):
        if r.random() < 0.4:
            forge.alter(which, start=NOW - 100, end=NOW + 100)
    forge.now = r.choice((ISSUE, NEXT, NOW, NOW - 100, NOW + 100)) + r.choice((-1, 0, 1))
    forge.altered |= time_facts(forge)
    return forge


def time_facts(forge: Forge) -> set[str]:
    """Return the parts that are not valid at the time of the verification."""
    now, found = forge.now, set()
    windows: list[tuple[str, int, int | None]] = []
    windows += [(name, form.start, form.end) for name, form in forge.certificates.items()]
    windows += [(f"crl {name}", form.start, form.end) for name, form in forge.crls.items()]
    windows += [
        (name, seconds(body["issueDate"]), seconds(body["nextUpdate"]))
        for name, body in (("tcb_info", forge.tcb_info), ("qe_identity", forge.qe_identity))
    ]
    for name, start, end in windows:
        if now < start:
            found.add(f"{name} early")
        elif end == now and name not in forge.certificates:
            found.add(f"{name} at its end")
        elif end is not None and now > end:
            found.add(f"{name} late")
    return found


def generate_certificates(r: Random) -> Forge:
    """Certificates, CRLs, chains and SGX extension that deviate from Intel's profile."""
    forge = Forge(*r.choice(_FORMS), ca=r.choice(("platform", "processor")))
    for _ in range(r.choice((1, 1, 2))):
        alter = r.choice((_alter_certificate,) * 6 + (_alter_crl,) * 4 + (_alter_chain, _alter_sgx))
        alter(r, forge)
    forge.altered |= time_facts(forge) | form_facts(forge)
    return forge


_OTHER_EXTENSIONS: Final = (30, 33, 36, 37, 54, 17, 99)


def _alter_certificate(r: Random, forge: Forge) -> None:
    which = r.choice(_CERTIFICATES)
    critical = r.random() < 0.5
    value = r.choice((b"\x05\x00", b"\x30\x00"))
    number = r.choice(_OTHER_EXTENSIONS)
    extra = encode_extension(number, value, critical=critical)
    fields: dict[str, Any] = {
        "left_out": (r.choice(_EXTENSIONS),),
        "extra": (extra,),
        "path_length": r.choice((None, -1, 0, 1, 2)),
        "usage": r.choice((b"\x01\x06", b"\x06\xc0", b"\x02\x04", b"\x01\x02", b"\x07\x80")),
        "start": r.choice((NOW - 1, NOW, NOW + 1)),
        "end": r.choice((NOW - 1, NOW, NOW + 1)),
        "name": r.choice((*(form.name for form in forge.certificates.values()), "CA", "x")),
        "signing_key": r.choice(("root-ca", "tcb-signing", "pck-platform-ca")),
        "key": r.choice(("root-ca", "tcb-signing", "other")),
        "version": r.randrange(4),
        "serial": r.choice((1, 0, -5, 2**160, 2**159 - 1, forge.certificates["signer"].serial)),
        "crl_url": "",
    }
    name = r.choice(list(fields))
    forge.alter(which, **{name: fields[name]})
    numbers = {"extra": number, "left_out": fields["left_out"][0]}
    forge.altered.add(f"{which} {name} {numbers.get(name, '')}".rstrip())


def _alter_crl(r: Random, forge: Forge) -> None:
    which = r.choice(("crl root", "crl pck"))
    serials = [form.serial for form in forge.certificates.values()]
    fields: dict[str, Any] = {
        "left_out": (r.choice((20, 35)),),
        "revoked": tuple(r.sample((*serials, 5, 2**100), r.randrange(1, 4))),
        "start": r.choice((NOW - 1, NOW, NOW + 1)),
        "end": r.choice((NOW - 1, NOW, NOW + 1, None)),
        "signing_key": r.choice(("root-ca", "pck-platform-ca", "tcb-signing")),
        "issuer": r.choice(("root", "ca", "signer")),
        "version": r.choice((None, 1, 2)),
        "number": r.choice((0, 2**31, 2**40, 2**159)),
    }
    name = r.choice(list(fields))
    forge.alter(which, **{name: fields[name]})
    forge.altered.add(f"{which} {name}")


def _alter_chain(r: Random, forge: Forge) -> None:
    which = r.choice(list(forge.chains))
    forge.chains[which] = tuple(r.choices(_CERTIFICATES, k=r.randrange(1, 5)))
    forge.altered.add(f"chain {which}")


def _alter_sgx(r: Random, forge: Forge) -> None:
    edges = (0, 127, 128, 255, 32767, 32768, 65535, 65536)
    count = r.choice((16, 16, 15, 17))
    components = list(forge.sgx.components)
    components[r.randrange(len(components))] = r.choice((0, 5, 127, 128, 255, 256))
    fields: dict[str, Any] = {
        "flags": r.choice((None, (True, False, True))),
        "instance_id": r.choice((None, bytes(16), bytes(15))),
        "pcesvn": r.choice(edges),
        "components": tuple([*components, 1][:count]),
        "sgx_type": r.randrange(4),
        "ppid": bytes(r.choice((15, 16, 17))),
        "fmspc": bytes(r.choice((5, 6, 7))),
        "pceid": r.randbytes(r.choice((1, 2, 2, 3))),
        "cpusvn": bytes(r.choice((15, 16, 17))),
    }
    name = r.choice(list(fields))
    forge.sgx = replace(forge.sgx, **{name: fields[name]})
    forge.altered.add(f"sgx {name}")


GENERATORS: Final[dict[str, Generator]] = {
    "levels": generate_levels,
    "bytes": generate_bytes,
    "bodies": generate_bodies,
    "certificates": generate_certificates,
    "times": generate_times,
}
