"""The one-way path of a frame, one file per stage."""
