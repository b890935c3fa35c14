"""Fakes, phantoms, simulators and conformance tests, shipped to plugin authors."""
