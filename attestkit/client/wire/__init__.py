"""Connections that are proven before they carry a request; no knowledge of services."""
