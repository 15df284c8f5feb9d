"""The end of streams of events, of the APIs whose streams are known."""

from typing import Final

from attestkit.client.sealing.event_stream import EventStreamEnd
from tests.runner.cases import every_case

CHAT: Final = b'data: {"choices": []}\n\ndata: [DONE]\n\n'
RESPONSES: Final = (
    b'event: response.created\ndata: {}\n\nevent: response.completed\ndata: {"a": "b"}\n\n'
)


def complete(stream: bytes, size: int = 0) -> bool:
    """Return whether a stream is complete, which is fed in pieces of a size, or at once."""
    end = EventStreamEnd()
    for at in range(0, len(stream), size or len(stream) or 1):
        end.feed(stream[at : at + (size or len(stream))])
    return end.complete


@every_case(
    "stream",
    [
        CHAT,
        CHAT.replace(b"\n", b"\r\n"),
        CHAT.replace(b"data: [", b"data:["),
        CHAT.rstrip(),
        CHAT + b": comment\n\n",
        RESPONSES,
        RESPONSES.replace(b"completed", b"failed"),
        RESPONSES.replace(b"event: response.completed", b"event:message_stop"),
        b'event: error\ndata: {"error": {}}\n\n',
        b"data: " + bytes(1000) + b"\n\n" + CHAT,
    ],
)
def test_complete_streams(stream: bytes) -> None:
    """A stream is complete with its last event, however it is cut into pieces."""
    for size in (0, 1, 2, 7):
        assert complete(stream, size)


@every_case(
    "stream",
    [
        b"",
        b'data: {"choices": []}\n\n',
        b'data: {"text": "data: [DONE]"}\n\n',
        b'data: {"text": "\\ndata: [DONE]"}\n\n',
        CHAT + b'data: {"more": 1}\n\n',
        RESPONSES + b"event: x\ndata: y\n\n",
        b"event: response.created\n\n",
        b": data: [DONE]\n\n",
        b"data: [DONE] \n\n",
        b"x" * 64 + b"data: [DONE]\n\n",
    ],
)
def test_incomplete_streams(stream: bytes) -> None:
    """A mark inside of a text, in a comment or before other events is not an end."""
    for size in (0, 1, 2, 7):
        assert not complete(stream, size)


def test_every_cut_before_the_end_is_incomplete() -> None:
    """A stream that was cut anywhere before its mark is not complete."""
    for stream, mark in ((CHAT, b"[DONE]"), (RESPONSES, b"completed")):
        end = stream.index(mark) + len(mark)
        for size in range(len(stream)):
            assert complete(stream[:size]) == (size >= end)
