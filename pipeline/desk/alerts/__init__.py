"""Standing questions of the desk: what is asked, the frames that follow, and the webhooks."""
