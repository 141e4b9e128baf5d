"""Standing questions against new frames: scoring and detection."""
