"""Reasons why a linear cannot be replaced that have nothing to do with its weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def find_obstacle(module: nn.Module, name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """What a packed linear in the place of `module` would lose, as a sentence; None when nothing.

    Args:
        module: a linear of some representation.
        name: its qualified name.
        modules: all modules of the model by name.
    """
    adapter = _adapter(module, name, modules)
    if adapter:
        return f"it is {adapter}; merge it (merge_and_unload) or remove it first"
    if hasattr(module, "parametrizations"):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
        return f"it has parametrizations ({names}), which would be lost; remove them first"
    if hasattr(module, "_hf_hook"):
        return "accelerate moves its weights in and out (_hf_hook); load the model on one device instead"
    hooks = [hook for attribute in HOOKS for hook in getattr(module, attribute, {}).values()]
    if hooks:
        called = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
        return f"it has {len(hooks)} hook{'s' * (len(hooks) != 1)} ({called}), which would be lost; remove them first"
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return "its weight has no data (device meta); load the weights first"
    return None


def _adapter(module: nn.Module, name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """What the module has to do with an adapter, which holds the linear that it changes as its `base_layer` (peft)."""
    if isinstance(getattr(module, "base_layer", None), nn.Module):
        return f"wrapped by the adapter {type(module).__qualname__}"
    parent, _, leaf = name.rpartition(".")
    role = "wrapped by" if leaf == "base_layer" else "part of"
    while parent:
        if isinstance(getattr(modules.get(parent), "base_layer", None), nn.Module):
            return f"{role} the adapter {type(modules[parent]).__qualname__}"
        parent, role = parent.rpartition(".")[0], "part of"
    return None
