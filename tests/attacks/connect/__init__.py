"""Attempts on `connect()`: what a client must refuse before it sends anything."""
