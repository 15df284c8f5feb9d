"""Access to the external listener by JWT: scopes of its routes, and verification of tokens.

This is attestkit's own scheme. That of dstack's agent since 0.6.3 is not published.
"""
