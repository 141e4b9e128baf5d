"""Needles in haystacks: VideoNIAH, single-hop pictures and chains of pictures."""
