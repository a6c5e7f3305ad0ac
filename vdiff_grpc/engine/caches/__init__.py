"""Keys and values that are kept from one forward pass to the next."""
