"""The Kafka worker: publisher, poller, indexer, partition ownership, dead letters."""
