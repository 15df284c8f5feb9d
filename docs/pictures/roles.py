"""Trust between the roles: the two ways of RFC 9334 in which evidence and result travel."""

from docs.pictures.canvas import APP, INK, MAKER, OURS, PLAIN, SIGNED, Box, Canvas

__all__ = ["trust"]


def trust() -> str:
    """Draw background check and passport, one below the other."""
    canvas = Canvas(
        812,
        "Who trusts whom: background check and passport",
        "Background check: the attester sends evidence to the relying party, which has a verifier"
        " appraise it. Passport: the attester has its evidence appraised, and shows the signed "
        "result to the relying party. In both the endorser's collateral and the reference values "
        "go to the verifier, the relying party's nonce goes to the attester, and the relying "
        "party trusts the verifier.",
    )
    canvas.heading(34, "Background check")
    canvas.note((24, 56), "the relying party asks a verifier, often in its own process", size=15)
    _background_check(canvas)
    canvas.rule(446)
    canvas.heading(482, "Passport")
    canvas.note((24, 504), "the attester presents a signed result", size=15)
    _passport(canvas)
    return canvas.svg()


def _background_check(canvas: Canvas) -> None:
    endorser = canvas.box(Box(24, 76, 184, 58), "endorser\nthe vendor: Intel, AMD", MAKER)
    reference = canvas.box(
        Box(296, 76, 240, 58), "reference value provider\nwho built image and app", PLAIN
    )
    verifier = canvas.box(Box(180, 200, 200, 62), "verifier\n`attestkit.Verifier`", SIGNED)
    attester = canvas.box(Box(24, 358, 184, 62), "attester\n`attestkit.open()`", OURS)
    relying = canvas.box(Box(352, 358, 184, 62), "relying party\nyour program", APP)
    canvas.arrow(endorser.bottom(), (endorser.bottom()[0], 218), (verifier.x, 218))
    canvas.note((30, 188), "collateral")
    canvas.arrow(reference.bottom(), (reference.bottom()[0], 218), (380, 218))
    canvas.note((428, 172), "reference")
    canvas.note((428, 190), "values")
    canvas.arrow(relying.left(0.28), attester.right(0.28))
    canvas.text((280, 366), "1 nonce", size=14, colour=INK)
    canvas.arrow(attester.right(0.78), relying.left(0.78))
    canvas.text((280, 430), "2 evidence", size=14, colour=INK)
    canvas.arrow((392, 358), (392, 310), (252, 310), (252, 262))
    canvas.text((304, 330), "3 evidence", size=14, colour=INK)
    canvas.arrow((330, 262), (330, 286), (460, 286), (460, 358))
    canvas.note((392, 278), "4 result")


def _passport(canvas: Canvas) -> None:
    verifier = canvas.box(Box(180, 530, 200, 62), "verifier\nwith collateral and policy", SIGNED)
    attester = canvas.box(Box(24, 704, 184, 62), "attester\nshows its result", OURS)
    relying = canvas.box(Box(352, 704, 184, 62), "relying party\ntrusts the verifier", APP)
    canvas.arrow((76, 704), (76, 550), (verifier.x, 550))
    canvas.note((66, 538), "1 evidence")
    canvas.arrow((verifier.x, 576), (150, 576), (150, 704))
    canvas.note((162, 646), "2 signed result")
    canvas.arrow(attester.right(), relying.left())
    canvas.text((280, 724), "3 result", size=14, colour=INK)
    canvas.arrow((relying.top()[0], 704), (relying.top()[0], 561), (380, 561), dashed=True)
    canvas.note((458, 646), "trusts")
    canvas.note((24, 794), "A signed result is an EAR; attestkit verify --save-ear writes one.")
