"""OS images that simulated machines boot: made up, or those of files, and their documents."""
