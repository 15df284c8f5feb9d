"""What a browser sees on the external listener: the dashboard and the files it loads.

All that it shows is escaped.
"""
