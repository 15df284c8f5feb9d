"""A server as a systemd service: sockets handed over, readiness, and the watchdog.

Without systemd none of it does anything.
"""
