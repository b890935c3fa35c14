"""Reads files: denoising, evaluation and repair after the run."""
