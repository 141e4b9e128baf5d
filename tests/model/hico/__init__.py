"""Tests of HiCo."""
