"""Integration with systemd: socket activation, readiness, and watchdog.

Without systemd's environment variables it has no effect.
"""
