"""The MongoDB filters that W&B's public API sends, applied to runs (guide: ref/python/public-api)."""

import json
import operator
from typing import Any

COMPARISONS = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$in": lambda value, choices: value in choices,
    "$nin": lambda value, choices: value not in choices,
}
NAMES = {"sweep": "sweepName", "display_name": "displayName", "created_at": "createdAt", "jobType": "jobType"}
Node = dict[str, Any]


def wanted(nodes: list[Node], filters: dict[str, Any]) -> list[Node]:
    """Return the nodes that match the filters."""
    return [node for node in nodes if passes(node, filters)]


def passes(node: Node, filters: dict[str, Any]) -> bool:
    """Return whether a node matches all conditions."""
    for name, condition in filters.items():
        if name in ("$and", "$or"):
            results = [passes(node, one) for one in condition]
            good = all(results) if name == "$and" else any(results)
        elif isinstance(condition, dict):
            value = looked_up(node, name)
            good = all(value is not None and COMPARISONS[sign](value, other) for sign, other in condition.items())
        else:
            good = looked_up(node, name) == condition
        if not good:
            return False
    return True


def ordered(nodes: list[Node], order: str) -> list[Node]:
    """Sort nodes by a key with its sign, `+summary_metrics.loss`; those without it are last."""
    if not order:
        return nodes
    name, down = order.lstrip("+-"), order.startswith("-")
    with_key = [node for node in nodes if looked_up(node, name) is not None]
    without = [node for node in nodes if looked_up(node, name) is None]
    return sorted(with_key, key=lambda node: looked_up(node, name), reverse=down) + without


def looked_up(node: Node, name: str) -> Any:
    """Return a field of a node, or a key in its summary or configuration."""
    table, _, key = name.partition(".")
    if table in ("summary_metrics", "summaryMetrics", "config"):
        found = json.loads(node["config" if table == "config" else "summaryMetrics"]).get(key.removesuffix(".value"))
        return found["value"] if table == "config" and isinstance(found, dict) else found
    return node.get(NAMES.get(name, name))
