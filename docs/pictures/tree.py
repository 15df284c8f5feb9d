"""What grows from what: keys from a root, and attestkit from its layers."""

from attestkit.backends import BUILTIN
from docs.pictures.canvas import APP, MAKER, OURS, PLAIN, SIGNED, SOFT, Box, Canvas

__all__ = ["architecture", "keys"]


def keys() -> str:
    """Draw an app's keys: the root from a KMS, each key from root and path, and who signs it."""
    canvas = Canvas(
        706,
        "What an app's keys are derived from",
        "A key service derives the app's root key from its own root and the app id, for a guest "
        "that proves to be that app, and signs its public key. The root key and a path give 32 "
        "bytes through HKDF-SHA256; they are a secp256k1 key or an Ed25519 seed. The root key "
        "signs purpose and public key. A verifier of the chain recovers both signers' keys and "
        "compares the last with the key service's.",
    )
    canvas.heading(34, "Keys, from the root down")
    _derivation(canvas)
    canvas.rule(528)
    canvas.heading(560, "Who signs a key")
    _signing(canvas)
    return canvas.svg()


def _derivation(canvas: Canvas) -> None:
    service = canvas.box(Box(24, 54, 236, 60), "key service (KMS)\nits own root key", MAKER)
    measured = canvas.box(Box(330, 54, 206, 60), "app id\nproved by a quote", SIGNED)
    canvas.arrow(measured.left(), service.right())
    root = canvas.box(Box(24, 182, 236, 62), "root key of the app\n`AppKeys.k256_key`", OURS)
    canvas.arrow(service.bottom(), root.top())
    canvas.note((154, 153), "HKDF: app id, app-key")
    path = canvas.box(Box(330, 182, 206, 62), "path\n`wallet/eth`", APP)
    derive = canvas.box(
        Box(24, 312, 512, 60), "HKDF-SHA256\nsalt RATLS, info = the path, 32 bytes", PLAIN
    )
    canvas.arrow(root.bottom(), (142, 312))
    canvas.arrow(path.bottom(), (433, 312))
    for x, lines in (
        (24, "secp256k1\nscalar"),
        (200, "Ed25519\nseed"),
        (376, "P-256\nolder DeriveKey"),
    ):
        box = canvas.box(Box(x, 424, 160, 60), lines, APP)
        canvas.arrow((box.top()[0], derive.bottom()[1]), box.top())
    canvas.note((24, 508), "One path gives all three the same bytes: use derive(path, algorithm).")


def _signing(canvas: Canvas) -> None:
    chain = [
        canvas.box(Box(24, 580, 132, 60), "key service\nits public key", MAKER),
        canvas.box(Box(214, 580, 132, 60), "root key\nof one app id", OURS),
        canvas.box(Box(404, 580, 132, 60), "public key\nand purpose", APP),
    ]
    canvas.arrow(chain[0].right(), chain[1].left())
    canvas.arrow(chain[1].right(), chain[2].left())
    canvas.text((185, 598), "signs", size=14, colour=SOFT)
    canvas.text((375, 598), "signs", size=14, colour=SOFT)
    canvas.text((185, 664), "signature_chain[1]", size=13, colour=SOFT, mono=True)
    canvas.text((375, 664), "signature_chain[0]", size=13, colour=SOFT, mono=True)
    canvas.note((24, 690), "Compare the recovered key service's key with the one you trust.")


def architecture() -> str:
    """Draw attestkit's layers, and what is around them."""
    frame = Box(24, 324, 244, 46 + 34 * len(BUILTIN))
    below = frame.bottom()[1] + 24
    canvas = Canvas(
        int(below) + 148,
        "attestkit in one picture",
        "Above: the server, which speaks the dstack guest agent API, and the command line and "
        "attested clients. Below them the attester, which creates evidence, and the verifier, "
        "which authenticates evidence and appraises it. The attester uses one of the backends: "
        f"{', '.join(BUILTIN)}. The verifier uses collateral and a policy, whose registers can be "
        "measured from an image. Both use the same values, on top of the C core.",
    )
    clients = canvas.box(
        Box(24, 24, 244, 58), "official clients, curl\ncontainers of the app", PLAIN
    )
    callers = canvas.box(Box(292, 24, 244, 58), "shell, CI, your program\nrelying parties", PLAIN)
    server = canvas.box(Box(24, 120, 244, 62), "server\n`serve`", APP)
    command = canvas.box(
        Box(292, 120, 244, 62), "command line, clients\n`cli, client, ra_tls`", APP
    )
    canvas.arrow(clients.bottom(), server.top())
    canvas.arrow(callers.bottom(), command.top())
    attester = canvas.box(Box(24, 222, 244, 62), "Attester\ncreates evidence", OURS)
    verifier = canvas.box(Box(292, 222, 244, 62), "Verifier\nreturns a result, or raises", SIGNED)
    for above, under in ((server, attester), (command, verifier)):
        canvas.arrow(above.bottom(), under.top())
    canvas.line((146, 202), (414, 202))  # each of the two above has both below
    canvas.box(frame, colours=PLAIN, dashed=True)
    canvas.arrow(attester.bottom(), frame.top())
    canvas.text((146, 350), "backends: 64 bytes to a quote", size=14, colour=SOFT)
    for number, name in enumerate(BUILTIN):
        canvas.box(Box(40, 362 + 34 * number, 212, 28), f"`{name}`", OURS)
    _verification(canvas, verifier)
    canvas.box(
        Box(24, below, 512, 56),
        "values: no input, no output\nQuote, EventLog, Attestation, keys",
        SIGNED,
    )
    canvas.box(
        Box(24, below + 72, 512, 52),
        "core: hashes, replay, parsing\nC, or the same in Python",
        PLAIN,
        size=14,
    )
    return canvas.svg()


def _verification(canvas: Canvas, verifier: Box) -> None:
    signatures = canvas.box(
        Box(292, 324, 244, 80), "signatures, event logs\nTDX, SEV-SNP,\nTPMs, NVIDIA GPUs", SIGNED
    )
    canvas.arrow(verifier.bottom(), signatures.top())
    for x, lines, source in (
        (292, "collateral\nfrom vendors", "PCCS, files\nor your cache"),
        (422, "policy\nyour rules", "measure\nan image"),
    ):
        used = canvas.box(Box(x, 444, 114, 62), lines, MAKER, size=14)
        canvas.arrow((x + 57, 404), used.top())
        given = canvas.box(Box(x, 546, 114, 62), source, PLAIN, size=14)
        canvas.arrow(given.top(), used.bottom())
