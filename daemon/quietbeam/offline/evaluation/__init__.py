"""Compares denoisers with each other, with filters and with the truth: ``quietbeam evaluate``."""
