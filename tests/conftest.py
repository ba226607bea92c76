"""Settings of the whole suite: no network, one thread, no time limits that a busy machine would break."""

import os

# Before anything imports them: a test that asks the Hub must fail at once, and tiny operators want one thread.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings  # noqa: E402

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
