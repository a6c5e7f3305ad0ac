"""Attention over packed segments: one function, several backends."""
