"""Shared by all tests: nothing reaches a hub, and files jvidprune caches go to a folder of the run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
