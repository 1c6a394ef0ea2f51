"""How fast arms of a steering experiment are played."""
