"""Independent programs that verify evidence of attestkit or use its server (`make judges`)."""
