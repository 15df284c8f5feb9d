"""The page of `report`: evidence and its verdict for people, in one HTML file.

It loads nothing from elsewhere.
"""
