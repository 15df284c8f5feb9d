"""Backend for a TEE behind a dstack guest agent, which has the event log and the keys."""

from attestkit.backends.dstack_agent.backend import DstackAgent

__all__ = ["DstackAgent"]
