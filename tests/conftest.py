from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of the program.
settings.register_profile("vnsmail", deadline=None)
settings.load_profile("vnsmail")
