"""Trains beside the pipeline, in its own process, and judges every candidate."""
