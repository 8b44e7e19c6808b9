"""Shared by all tests. Each folder brings its own builders."""
