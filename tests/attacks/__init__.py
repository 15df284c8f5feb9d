"""Attempts to break what attestkit promises, by surface; each is a test.

`python -m tests.attacks` runs them all and writes docs/records/attacks.json.
"""
