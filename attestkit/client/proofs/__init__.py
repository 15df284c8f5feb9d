"""What a server has proven, for which requirements and policies, and for how long."""
