"""Tests of needles in haystacks."""
