"""The daemon around the pipeline: supervision, control, telemetry."""
