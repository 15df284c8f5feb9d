"""A chat API in a TEE, as openai's clients call it, with a stand-in for the model.

The middleware answers at `/.well-known/attestkit` with evidence about the certificate's key, over
the client's nonce.
"""

import argparse
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import attestkit
from attestkit.client.asgi import Attested

app = FastAPI(title="Private chat")


class Message(BaseModel):
    """A message of a chat."""

    role: str
    content: str


class ChatRequest(BaseModel):
    """The members of a request that this service reads."""

    model: str
    messages: list[Message]
    stream: bool = False


def generate(messages: list[Message]) -> Iterator[str]:
    """Yield the words of an answer; a model would be here."""
    yield from ("You ", "wrote ", f"{len(messages[-1].content.split())} ", "words.")


def reply(request: ChatRequest, name: str, **choice: object) -> dict[str, object]:
    """Return an answer, or a piece of one."""
    choices = [{"index": 0, **choice}]
    head = {"id": "chat-1", "object": name, "created": int(time.time()), "model": request.model}
    return {**head, "choices": choices}


@app.post("/v1/chat/completions", response_model=None)
def complete(request: ChatRequest) -> StreamingResponse | dict[str, object]:
    """Answer a chat, which must not be known to anyone else."""
    words = generate(request.messages)
    if not request.stream:
        message = {"role": "assistant", "content": "".join(words)}
        return reply(request, "chat.completion", finish_reason="stop", message=message)

    def events() -> Iterator[str]:
        for word in words:
            piece = reply(request, "chat.completion.chunk", delta={"content": word})
            yield f"data: {json.dumps(piece)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8443, help="0 selects a free port")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM, the leaf first")
    parser.add_argument("--key", type=Path, required=True, help="its private key")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    options: dict[str, Any] = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    with (
        attestkit.open(args.backend, **options) as tee,
        socket.create_server(("127.0.0.1", args.port)) as listener,
    ):
        attested = Attested(app, tee, tls=args.certificate, name="private chat")
        config = uvicorn.Config(
            attested, ssl_certfile=args.certificate, ssl_keyfile=args.key, log_level="warning"
        )
        print(f"ready https://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
