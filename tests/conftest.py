"""Shared by all tests. Each folder brings its own builders."""

from hypothesis import settings

settings.register_profile("mixsup", database=None)  # leaves no folder of examples behind
settings.load_profile("mixsup")
