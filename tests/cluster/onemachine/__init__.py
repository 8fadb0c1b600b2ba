"""A Kubernetes cluster with Istio on one machine, and an internet of its own for it to talk to. Standard library only: this runs before any venv exists."""
