"""Live cameras: their supervisor, processes, spool, and the sinks that store or record segments."""
