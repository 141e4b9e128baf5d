"""Evidence bundles: footage, pictures and answers with a signed list of their digests."""
