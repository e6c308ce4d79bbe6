"""Profiles of hypothesis: HYPOTHESIS_PROFILE=nightly looks further than each change can."""

import os

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the program.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# The same examples each time: what a change is judged by must not depend on luck.
settings.register_profile(
    "vnsmail", PATIENT, max_examples=40, derandomize=True, database=None
)
settings.register_profile("nightly", PATIENT, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "vnsmail"))
