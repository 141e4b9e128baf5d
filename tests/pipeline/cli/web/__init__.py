"""Tests of the commands of the web desk."""
