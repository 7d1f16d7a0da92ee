"""Settings of all tests: Hypothesis draws the same examples every time and does not watch the clock.

Tests share two cores with a whole cluster, so a deadline of 200 ms says nothing about the code. To look for
new examples: HYPOTHESIS_PROFILE=explore make test.
"""

import os

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
