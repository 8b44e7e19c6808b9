"""Shared by all tests. Each folder brings its own builders."""

from hypothesis import settings

settings.register_profile("mixsup", database=None, deadline=None)  # leaves no folder of examples behind; how fast a machine is, is no test
settings.load_profile("mixsup")
