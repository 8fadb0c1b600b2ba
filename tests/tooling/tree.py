"""Where a checkout looks like an installed collection.

Ansible and Python find this code as `ansible_collections.meshops.istio_egress`, whatever the checkout is called. This file keeps, below the cache
directory, a tree in which that name is a link to the checkout, with kubernetes.core (fetched by `setup`) beside it.
It uses the standard library alone, because conftest.py and `setup` import it before anything is installed, and knows nothing of clusters.
"""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("MESH_CACHE") or Path.home() / ".cache" / "istio-egress-mesh")
FETCHED = CACHE / "fetched" / "ansible_collections"


def own_directory(kind: str) -> Path:
    """A directory below the cache for this checkout alone, so that two checkouts on one machine do not meet."""
    return CACHE / kind / hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:12]


def link() -> Path:
    """Make or repair the tree and return it: a value for ANSIBLE_COLLECTIONS_PATH and an entry for sys.path."""
    root = own_directory("collections")
    wanted = {"meshops/istio_egress": CHECKOUT}
    for collection in FETCHED.glob("*/*"):
        wanted[f"{collection.parent.name}/{collection.name}"] = collection
    for name, target in wanted.items():
        place = root / "ansible_collections" / name
        if place.is_symlink() and place.readlink() == target:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}.{os.getpid()}")
        fresh.symlink_to(target)
        fresh.replace(place)  # several test workers may do this at once; rename is atomic
    return root


if __name__ == "__main__":
    print(link())
