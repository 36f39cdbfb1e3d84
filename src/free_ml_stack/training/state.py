"""Conversion of the training state to JSON and tensors, without pickle."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def flatten(tree: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """Convert `tree` to JSON; add its tensors to `tensors`, under their path in the tree."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):  # as pairs, because keys of optimizer states are integers
        return {"items": [[key, flatten(value, tensors, f"{name}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [flatten(value, tensors, f"{name}/{i}") for i, value in enumerate(tree)]}
    return tree


def copy_tensors(tree: Any) -> Any:
    """Copy a state and its tensors."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copy_tensors(value) for key, value in tree.items()}
    return type(tree)(map(copy_tensors, tree)) if isinstance(tree, list | tuple) else tree


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Reverse `flatten`."""
    if not isinstance(tree, dict):
        return tree
    [(kind, value)] = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: unflatten(item, tensors) for key, item in value}
    items = [unflatten(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def generator_states() -> dict[str, Any]:
    """Return the states of all random generators used in training."""
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
    # the machine may have more or fewer devices than that of the checkpoint
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
