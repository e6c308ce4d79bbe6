from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of the program.
# With --hypothesis-profile=thorough each property is looked at for longer.
settings.register_profile("vnsmail", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("vnsmail")
