from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the program.
settings.register_profile(
    "vnsmail", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vnsmail")
