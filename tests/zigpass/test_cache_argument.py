"""The name of the key-value cache among a model's arguments, old and new."""

import inspect

import pytest
import torch
from torch import nn

from tests.models import quantized_tiny_llama
from zigpass.cache_argument import cache_argument, cache_arguments


class Old(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return input_ids


class New(nn.Module):
    def forward(self, input_ids, cache=None):
        return input_ids


@pytest.mark.parametrize(("model", "name"), [(Old(), "past_key_values"), (New(), "cache"), (nn.Linear(1, 1), None)])
def test_both_names_are_known(model, name):
    assert cache_argument(model) == name


def test_the_installed_transformers_is_one_of_them():
    model = quantized_tiny_llama()
    assert cache_argument(model) in inspect.signature(model.forward).parameters


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Old(), "past_key_values"),
        (New(), "cache"),
        (torch.compile(New(), backend="eager"), "cache"),
        (lambda token, **kwargs: token, "past_key_values"),
    ],
)
def test_arguments_of_models_compiled_models_and_functions(model, name):
    cache = object()
    assert cache_arguments(model, cache) == {name: cache, "use_cache": True}
