"""Kinds of segments that the library does not have yet, written for the net of toy_model.py: each a
file with what contracts.py says of a kind, and nothing of them anywhere else."""
