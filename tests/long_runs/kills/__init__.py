"""Processes killed at random moments, 1,000 times: `make kills`."""
