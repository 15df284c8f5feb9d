"""Attempts on collateral, its caches and services, bundles and trust anchors."""
