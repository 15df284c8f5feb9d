"""Attempts on the guest agent's API v1 and on the listeners that serve it."""
