"""From footage to stored frames: sources, decoding in a confined process, segments, Kafka, live cameras, alerts."""
