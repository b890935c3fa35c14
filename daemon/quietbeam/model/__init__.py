"""What turns counts into clean counts: calibration, engines, fusion."""
