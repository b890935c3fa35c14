"""Serves frames, metrics and controls over EPICS: Channel Access and PV Access."""
