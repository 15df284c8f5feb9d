"""Changes to the agent's JSON, on its tokens: form, members, values, and what is no JSON."""

import json
import re
from itertools import accumulate, chain, pairwise
from random import Random

from attestkit.event_log.event import json_string, runtime_digest, runtime_preimage
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from fuzz.havoc import havoc

Tokens = list[bytes]

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[A-Za-z]+|[ \t\r\n]+|.', re.DOTALL)

BLANKS = (b" ", b"\n", b"\t", b"\r", b"\r\n  ", b"    ", b"\x0b", b"\x0c", b"\xc2\xa0", b"\0")
NUMBERS = (
    *(b"0", b"1", b"2", b"3", b"4", b"-1", b"-0", b"00", b"01", b"+1", b"1.0", b"3.", b".5"),
    *(b"3e0", b"1E+0", b"2e-1", b"4294967295", b"4294967296", b"134217729", b"1.34217729e8"),
    *(b"134217730", b"18446744073709551617", b"9" * 40, b"1" * 5000, b"NaN", b"-Infinity", b"1_0"),
)
VALUES = (
    *(b"true", b"false", b"null", b"nul", b"True", b'""', b"[]", b"{}", b"[1,[2,{}],null]"),
    *(b'{"a":{"b":[]}}', b'{"a":1,"a":2}', b'"', b"[", b"}", b"[,]", b"{,}", b'{"a"}', b"[1,]"),
)
KEYS = (
    *(b'"imr"', b'"event_type"', b'"digest"', b'"event"', b'"event_payload"', b'"version"'),
    *(b'"preimage"', b'"recnum"', b'"digests"', b'"content_type"', b'"unknown"', b'""'),
    *(b'"Imr"', b'"im\\u0072"', b'"imr "', b'"digest\\u0000"', b'"eve\xc3\xb1t"'),
)
# Into a text: escapes right and wrong, and characters.
PIECES = (
    *(b"\\n", b"\\/", b'\\"', b"\\\\", b"\\b\\f\\r\\t", b"\\u12", b"\\u12g4", b"\\x41", b"\\"),
    *(b"\\U0041", b"\\u+123", b"\\u 12f", b":", b"/", b"\x7f", b"\x1f", b"\n", b"\0", b'"'),
    *("é".encode(), "漢".encode(), "🦀".encode(), b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80"),
    *(b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\x80", b"\xff", b"\xe6\xbc", b"\xf0\x9f\xa6"),
)
# Where UTF-8, UTF-16 and JSON change their minds.
_EDGES = (0, 0x1F, 0x20, 0x22, 0x3A, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF)
_SURROGATES = (0xD800, 0xD83E, 0xDBFF, 0xDC00, 0xDD80, 0xDFFF)
_LEADS = b"\x7f\x80\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xf7\xf8\xff"
NAMES = ("", "app-id", "a:b", 'q"\\', "\n\x01\x7f", "é漢🦀", "\u2028", "system-ready", "/")


def dissect(text: bytes) -> Tokens:
    """Take a text apart; joined they are the text again."""
    tokens: Tokens = _TOKEN.findall(text)
    return tokens


def spans(text: bytes) -> list[tuple[int, int]]:
    """Return the parts that can go, large ones first: elements and members, each with a comma."""
    tokens = dissect(text)
    offsets = [0, *accumulate(map(len, tokens))]
    parts: list[tuple[int, int]] = []
    open_ones: list[list[int]] = []  # of each, the places of its bracket and commas
    for at, token in enumerate(tokens):
        if token in (b"[", b"{"):
            open_ones.append([at])
        elif token == b"," and open_ones:
            open_ones[-1].append(at)
        elif token in (b"]", b"}") and open_ones:
            first, *others = [*open_ones.pop(), at]
            parts.append((first + 1, others[0] + (others[0] != at)))
            parts += pairwise(others)
    found = [(offsets[start], offsets[end]) for start, end in parts]
    return sorted(found, key=lambda span: span[0] - span[1])


def mutate(dice: Random, tokens: Tokens, other: Tokens) -> bytes:
    """Return the text with some changes; `other` is one to take events from."""
    tokens = list(tokens)
    mild = dice.random() < 0.6
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3))):
        if tokens:
            dice.choice(_MILD if mild else _HARD)(dice, tokens, other)
    text = b"".join(tokens)
    return havoc(dice, text) if dice.random() < 0.1 else text


# -- where things are ------------------------------------------------------------------------------


def _place(dice: Random, tokens: Tokens) -> int:
    return int(dice.random() * len(tokens))


def _find(dice: Random, tokens: Tokens, kind: bytes, *, value: bool = False) -> int:
    """Return the place of some token that starts so, behind a colon if it is to be a value.

    Where there is none it is any place.
    """
    start = _place(dice, tokens)
    for at in chain(range(start, len(tokens)), range(start)):
        if tokens[at][:1] in kind and (not value or tokens[at - 1][:1] == b":"):
            return at
    return start


def _text(dice: Random, tokens: Tokens) -> int:
    """Return the place of some text, most of the time that of a value."""
    return _find(dice, tokens, b'"', value=dice.random() < 0.9)


def _member(tokens: Tokens, start: int) -> tuple[int, int]:
    """Return where the next member starts, and where it ends without its comma."""
    for key in range(start, len(tokens) - 2):
        if tokens[key + 1][:1] == b":" and tokens[key][:1] == b'"':
            return key, key + 3
    return min(start, len(tokens) - 1), min(start + 1, len(tokens))


def _event(at: int, tokens: Tokens) -> tuple[int, int]:
    """Return where the object at a place starts, and where it ends."""
    depth = 0
    for end in range(at, len(tokens)):
        depth += (tokens[end][:1] == b"{") - (tokens[end][:1] == b"}")
        if depth <= 0:
            return at, end + 1
    return at, len(tokens)


# -- changes ---------------------------------------------------------------------------------------


def _blank(dice: Random, tokens: Tokens, _: Tokens) -> None:
    tokens.insert(_place(dice, tokens), dice.choice(BLANKS))


def _spread(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Put blanks everywhere, as a person's JSON has them."""
    blank = dice.choice(BLANKS[:6])
    marks = dice.choice((b",", b":", b",:", b",:[]{}"))
    tokens[:] = [token + blank if token in marks else token for token in tokens]


def _some_piece(dice: Random) -> bytes:
    """Return one of the pieces, or make one: an escape, two of them, or bytes that look like UTF-8.

    Of two escapes the second is often a surrogate if the first is.
    """
    chance = dice.random()
    if chance < 0.5:
        return dice.choice(PIECES)
    if chance < 0.6:
        return b"\\%c" % int(dice.random() * 128)
    if chance < 0.75:
        lead = dice.choice(_LEADS)
        return bytes((lead, *(dice.choice(b"\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0") for _ in range(3))))
    codes = [dice.choice(_SURROGATES if dice.random() < 0.7 else _EDGES) for _ in range(2)]
    form = dice.choice((b"\\u%04x", b"\\u%04X"))
    return b"".join([form % code for code in codes[: dice.choice((1, 2, 2))]])


def _number(dice: Random, tokens: Tokens, _: Tokens) -> None:
    tokens[_find(dice, tokens, b"0123456789-", value=True)] = dice.choice(NUMBERS)


def _value(dice: Random, tokens: Tokens, _: Tokens) -> None:
    tokens[_place(dice, tokens)] = dice.choice(dice.choice((VALUES, NUMBERS, KEYS)))


def _piece(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Put something into a text, or in place of a character."""
    at = _text(dice, tokens)
    text = tokens[at]
    inside = 1 + int(dice.random() * max(1, len(text) - 1))
    tokens[at] = text[:inside] + _some_piece(dice) + text[inside + int(dice.random() * 2) :]


def _name(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Put something into the name of an event."""
    at = _find(dice, tokens, b'"', value=True)
    if b'"event"' in tokens[at:]:
        at = tokens.index(b'"event"', at) + 2
    if at < len(tokens):
        text = tokens[at]
        inside = 1 + int(dice.random() * max(1, len(text) - 1))
        tokens[at] = text[:inside] + _some_piece(dice) + text[inside:]


def _hex(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Change digits: their case, their number, one that is none."""
    at = _text(dice, tokens)
    text = tokens[at]
    inside = 1 + int(dice.random() * max(1, len(text) - 1))
    one = text[:inside] + dice.choice((b"g", b"G", b" ", b"0", b"", b"aB", b"/", b":", b"@", b"`"))
    tokens[at] = dice.choice(
        (
            text.upper(),
            text.swapcase(),
            one + text[inside + 1 :],
            text[:1] + text[3:],
            text[:-2] + b'"',
        )
    )


def _empty(dice: Random, tokens: Tokens, _: Tokens) -> None:
    tokens[_text(dice, tokens)] = b'""'


def _escape(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Write a character of a text as an escape."""
    at = _text(dice, tokens)
    text = tokens[at]
    inside = 1 + int(dice.random() * max(1, len(text) - 2))
    if text[inside : inside + 1].isalnum():
        form = dice.choice((b"\\u%04x", b"\\u%04X"))
        tokens[at] = text[:inside] + form % text[inside] + text[inside + 1 :]


def _key(dice: Random, tokens: Tokens, _: Tokens) -> None:
    tokens[_member(tokens, _place(dice, tokens))[0]] = dice.choice(KEYS)


def _add(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Add a member."""
    value = dice.choice(dice.choice((VALUES, NUMBERS, KEYS)))
    at = _member(tokens, _place(dice, tokens))[0]
    tokens[at:at] = [dice.choice(KEYS), b":", value, b","]


def _repeat(dice: Random, tokens: Tokens, _: Tokens) -> None:
    start, end = _member(tokens, _place(dice, tokens))
    tokens[start:start] = [*tokens[start:end], b","]


def _drop(dice: Random, tokens: Tokens, _: Tokens) -> None:
    start, end = _member(tokens, _place(dice, tokens))
    if tokens[end : end + 1] == [b","]:
        end += 1
    elif start and tokens[start - 1] == b",":
        start -= 1
    del tokens[start:end]


def _swap(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Let a member and the next one change places."""
    start, end = _member(tokens, _place(dice, tokens))
    then, last = _member(tokens, end)
    if last < len(tokens):
        tokens[start:last] = tokens[then:last] + tokens[end:then] + tokens[start:end]


def _nest(dice: Random, tokens: Tokens, _: Tokens) -> None:
    levels = dice.choice((1, 2, 3, 30, 64, 65, 196, 197, 198, 199, 200, 300))
    left, right = dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"}")))
    at = _member(tokens, _place(dice, tokens))[1] - 1
    tokens[at : at + 1] = [left * levels, *tokens[at : at + 1], right * levels]


def _lose(dice: Random, tokens: Tokens, _: Tokens) -> None:
    at = _place(dice, tokens)
    del tokens[at : at + dice.choice((1, 1, 2, 5))]


def _cut(dice: Random, tokens: Tokens, _: Tokens) -> None:
    del tokens[_place(dice, tokens) :]


def _around(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Put something before or behind the text."""
    what = dice.choice((b" ", b"\n\t ", b"\xef\xbb\xbf", b"\0", b",", b"[]", b"x", b"\xa0", b"]"))
    tokens.insert(dice.choice((0, len(tokens))), what)


def _graft(dice: Random, tokens: Tokens, other: Tokens) -> None:
    """Take an event of another log in."""
    if other:
        start, end = _event(_find(dice, other, b"{"), other)
        _put_in(dice, tokens, other[start:end])


def _without(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Take an event out."""
    start, end = _event(_find(dice, tokens, b"{"), tokens)
    end += tokens[end : end + 1] == [b","]
    del tokens[start - (tokens[end - 1] != b"," and start > 1) : end]


def _runtime(dice: Random, tokens: Tokens, _: Tokens) -> None:
    """Put in a runtime event that is right, or right but for one thing."""
    _put_in(dice, tokens, dissect(made_event(dice)))


def _put_in(dice: Random, tokens: Tokens, event: Tokens) -> None:
    """Put an event before another one, or into an empty log."""
    if b"{" in tokens:
        at = _event(_find(dice, tokens, b"{"), tokens)[0]
        tokens[at:at] = [*event, b","]
    else:
        tokens[1:1] = event


def made_event(dice: Random) -> bytes:
    """Return a runtime event of either version as some writer would have it."""
    name = dice.choice(NAMES) + dice.choice(NAMES)
    payload = dice.randbytes(dice.choice((0, 1, 4, 20, 32, 70)))
    version = dice.choice((1, 2))
    digest = runtime_digest(name, payload, version).hex()
    if dice.random() < 0.5:
        digest = dice.choice(("", "", "", "ab" * 48))
    members: dict[str, object] = {"imr": 3, "event_type": RUNTIME_EVENT_TYPE, "digest": digest}
    members |= {"event": name, "event_payload": payload.hex()}
    if version == 2 or dice.random() < 0.1:
        preimage = runtime_preimage(name, payload, 2)
        if dice.random() < 0.1:  # digits in the wrong case, inside the preimage and outside
            members["event_payload"] = payload.hex().upper()
            preimage = preimage.replace(payload.hex().encode(), payload.hex().upper().encode())
        members |= {"version": version, "preimage": preimage.hex()}
    if dice.random() < 0.1:
        members.pop(dice.choice(list(members)))
    if dice.random() < 0.2:
        members = dict(sorted(members.items(), key=lambda _: dice.random()))
    if dice.random() < 0.7:
        parts = [f'"{key}":{json_string(value)}' for key, value in members.items()]
        return ("{" + ",".join(parts) + "}").encode()
    separators = dice.choice(((",", ":"), (", ", ": "), (" ,", " : ")))
    return json.dumps(members, separators=separators).encode()


# Those after which it mostly is a log still, and those after which it mostly is none.
_MILD = (
    *(_blank, _spread, _hex, _escape, _name, _name, _piece, _add, _swap, _swap, _without, _graft),
    *(_runtime, _runtime, _runtime, _around),
)
_HARD = (
    *(_blank, _number, _number, _value, _piece, _name, _hex, _empty, _escape, _key, _add),
    *(_repeat, _drop, _nest, _lose, _cut, _around),
)
