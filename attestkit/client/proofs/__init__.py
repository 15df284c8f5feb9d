"""Proofs of servers: their requirements and policies, and how long they are valid."""
