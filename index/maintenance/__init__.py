"""Work on a store as a whole: compaction and verification."""
