"""Inversion of recordings: recovered physics with bands that hold what they promise."""
