"""Independent programs that verify or use what attestkit makes; `make judges` runs them."""
