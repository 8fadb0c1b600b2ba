"""Lets any test import `ansible_collections.meshops.istio_egress` and run its playbooks, from a plain `pytest` as from make."""
from __future__ import annotations

import os
import sys

from tooling import tree

COLLECTIONS = str(tree.link())
sys.path.insert(0, COLLECTIONS)
os.environ["ANSIBLE_COLLECTIONS_PATH"] = COLLECTIONS
