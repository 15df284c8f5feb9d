"""Two agents prove themselves over MCP, with the calls that a host's model would make.

Starts each server over stdio with the options of this program.
"""

import sys
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters


def server(options: list[str]) -> StdioServerParameters:
    """Return the parameters to start an agent's server."""
    program = str(Path(__file__).with_name("server.py"))
    return StdioServerParameters(command=sys.executable, args=[program, *options])


async def call(agent: Client, tool: str, **arguments: object) -> dict[str, Any]:
    """Call a tool and return its response, a plain value as `result`; raise on its errors."""
    answer = await agent.call_tool(tool, arguments)
    if answer.is_error or answer.structured_content is None:
        raise RuntimeError(f"{tool} failed: {answer.content}")
    content: dict[str, Any] = answer.structured_content
    return content


async def introduce(options: list[str]) -> bool:
    """Let Bob prove himself to Alice and sign a text; return whether she accepts both."""
    async with Client(server(options)) as alice, Client(server(options)) as bob:
        nonce = (await call(alice, "challenge"))["result"]
        proof = await call(bob, "prove", nonce=nonce)
        verdict = await call(alice, "check", nonce=nonce, proof=proof)
        print("bob's proof:", verdict)
        again = await call(alice, "check", nonce=nonce, proof=proof)
        print("the same again:", again)
        words = {"text": "the meeting is at noon"}
        words["signature"] = (await call(bob, "sign", **words))["result"]
        heard = await call(alice, "check_signature", **words, public_key=proof["public_key"])
        print("bob's words:", heard)
        return bool(verdict["accepted"] and heard["accepted"] and not again["accepted"])


if __name__ == "__main__":
    sys.exit(0 if anyio.run(introduce, sys.argv[1:]) else 1)
