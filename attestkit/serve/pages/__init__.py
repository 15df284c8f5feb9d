"""Pages of the external listener: the dashboard, and the static files that it loads.

Everything that a page shows is escaped.
"""
