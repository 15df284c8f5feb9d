"""Checks of a verification, in the order of their steps."""
