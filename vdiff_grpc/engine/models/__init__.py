"""The model families: one small file each."""
