"""Clients that have proven a server before they send it a request."""
