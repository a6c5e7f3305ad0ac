"""Decoding: shared stages over all rows at once, and one file per rule."""
