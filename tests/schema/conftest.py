"""Properties are checked for what they say, not for how long the machine takes."""

from hypothesis import settings

settings.register_profile("schema", deadline=None)
settings.load_profile("schema")
