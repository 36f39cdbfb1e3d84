"""The state of training as JSON and tensors, without pickle."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def split(tree: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """`tree` as JSON, its tensors moved to `tensors` under their path in it."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):  # as pairs: an optimizer's keys are numbers
        return {"items": [[key, split(value, tensors, f"{name}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [split(value, tensors, f"{name}/{i}") for i, value in enumerate(tree)]}
    return tree


def copied(tree: Any) -> Any:
    """A state whose tensors are copies."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return type(tree)(map(copied, tree)) if isinstance(tree, list | tuple) else tree


def joined(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `split` took apart."""
    if not isinstance(tree, dict):
        return tree
    [(kind, value)] = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: joined(item, tensors) for key, item in value}
    items = [joined(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def generators() -> dict[str, Any]:
    """The states of all random generators that training draws from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Set all random generators to `states`."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
