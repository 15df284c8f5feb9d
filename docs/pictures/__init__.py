"""The drawn pictures of the documentation, and the script that draws them."""
