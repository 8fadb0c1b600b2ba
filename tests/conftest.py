"""Lets any test import `ansible_collections.meshops.istio_egress` and run its playbooks, from a plain `pytest` as from make."""
from __future__ import annotations

import os
import sys

from hypothesis import settings

from tooling import tree

COLLECTIONS = str(tree.link())
sys.path.insert(0, COLLECTIONS)
os.environ.setdefault("ANSIBLE_COLLECTIONS_PATH", COLLECTIONS)  # make release has playbooks come from the artifact instead

# A mesh on the same machine may hold any single example up; a test that hangs is what a deadline would be for, and make shows that as well.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
