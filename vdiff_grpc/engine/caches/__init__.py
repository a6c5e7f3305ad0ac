"""Keys and values that are kept from one forward pass to the next: where, whose, for how long."""
