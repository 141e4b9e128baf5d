"""Live cameras: supervisor, camera processes, spool, recorder."""
