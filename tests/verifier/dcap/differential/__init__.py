"""Random evidence, signed again after each alteration, verified by attestkit and by dcap-qvl."""
