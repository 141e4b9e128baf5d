"""Tests of the functions of the desk."""
