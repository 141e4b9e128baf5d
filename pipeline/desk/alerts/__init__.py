"""Standing questions at work: the frames that follow, and the webhooks."""
