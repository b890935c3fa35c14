"""Publishes the daemon's own runs as bluesky documents that point into the recording."""
