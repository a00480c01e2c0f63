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
        return f"it is wrapped by the adapter {adapter}; merge it (merge_and_unload) or remove it first"
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
    """The wrapper that holds the module as its `base_layer` (peft), or the module itself where it is the wrapper."""
    if isinstance(getattr(module, "base_layer", None), nn.Module):
        return type(module).__qualname__
    parent, _, leaf = name.rpartition(".")
    return type(modules[parent]).__qualname__ if leaf == "base_layer" and parent in modules else None
