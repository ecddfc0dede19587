"""Programs as machine code: the loops of a lowered graph in C, built by the machine's own compiler."""
