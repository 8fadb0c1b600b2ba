# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. The Ansible edge of modules that write: results of a plan, check and diff mode, and what a task that broke off left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ansible_collections.meshops.istio_egress.plugins.module_utils._apply import ApplyError, Outcome
from ansible_collections.meshops.istio_egress.plugins.module_utils._module import EgressModule
from ansible_collections.meshops.istio_egress.plugins.module_utils._observer import Observer
from ansible_collections.meshops.istio_egress.plugins.module_utils._plan import Change, Plan
from ansible_collections.meshops.istio_egress.plugins.module_utils._watcher import Watcher


class WritingModule(EgressModule):
    """An EgressModule with doors for plans and their outcomes."""

    @contextmanager
    def errors_in_plain_words(self) -> Iterator[None]:
        with super().errors_in_plain_words():
            try:
                yield
            except ApplyError as error:
                self.fail_json(msg=f"{self._explain(error.cause)} {error.left}", steps=error.done)

    @property
    def looks(self) -> bool:
        """Whether the module waits for what follows a write; in check mode nothing does."""
        return self.params["wait"] and not self.check_mode

    def watcher(self) -> Watcher | None:
        """Who waits until proxies follow; None when nobody does."""
        return Watcher(self._cluster, self.params["wait_timeout"], self.params["istio_namespace"]) if self.looks else None

    def finish(self, plan: Plan, outcome: Outcome, **result: Any) -> None:
        """Ends the module with what was (or, in check mode, would be) done, the diff of it, and the module's own `result`."""
        self.exit_json(
            changed=bool(plan),
            objects=[change.reference() for change in plan.final()],
            steps=plan.lines(),
            follow_seconds=outcome.follow_seconds,
            requests=self._cluster.requests,
            **({"diff": [_diff(change) for change in plan.final()]} if self._diff else {}),
            **result,
        )

    def followed(self, observer: Observer | None) -> dict[str, Any]:
        """What an observer saw, as a module returns it; ``verified: false`` when nobody looked."""
        if observer is None:
            return {"verified": False}
        self.warn_all(observer.warnings)
        return observer.result()


def _diff(change: Change) -> dict[str, str]:
    """Before and after as YAML without the noise that every write makes."""
    header = f"{change.kind} {change.namespace}/{change.name}"
    return {"before": _text(change.before), "after": _text(change.after), "before_header": header, "after_header": header}


def _text(obj: Mapping[str, Any] | None) -> str:
    if obj is None:
        return ""
    import yaml  # EgressModule has said so if it is missing

    noise = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    hidden = ("status", "metadata", *(("data", "stringData") if obj.get("kind") == "Secret" else ()))
    shown = {k: v for k, v in obj.items() if k not in hidden}
    metadata = {k: v for k, v in obj["metadata"].items() if k not in noise}
    return yaml.safe_dump({"apiVersion": shown.pop("apiVersion", None), "kind": shown.pop("kind", None), "metadata": metadata, **shown}, sort_keys=False)
