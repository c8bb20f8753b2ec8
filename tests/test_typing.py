"""The annotations as they can be asked for at run time. `.ci/run` has mypy and stubtest too."""

import inspect
import typing
from importlib.resources import files

import pytest

import fastnorm as fn
from fastnorm import layers, reference, testing

FUNCTIONS = [
    pytest.param(function, id=f"{module.__name__}.{name}")
    for module in (fn, reference, testing)
    for name in module.__all__
    if inspect.isfunction(function := getattr(module, name))
]
CLASSES = [pytest.param(getattr(layers, name), id=name) for name in layers.__all__]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_and_result_has_a_type(function):
    hints = typing.get_type_hints(function)  # a name that is not there is a NameError
    assert hints.keys() == inspect.signature(function).parameters.keys() | {"return"}


@pytest.mark.parametrize("layer", CLASSES)
def test_layers_have_types(layer):
    for function in (layer.__init__, layer.forward, layer.backward):
        parameters = inspect.signature(function).parameters.keys() - {"self"}
        assert typing.get_type_hints(function).keys() == parameters | {"return"}


def test_caches_have_types(operation):
    """A cache is a NamedTuple or a dataclass: the types of its fields can be asked for."""
    forward = getattr(fn, f"{operation.name}_forward")
    _, cache = typing.get_args(typing.get_type_hints(forward)["return"])
    assert typing.get_type_hints(cache).keys() == set(cache._fields)


def test_the_package_says_that_it_has_types():
    assert files("fastnorm").joinpath("py.typed").is_file()
    assert files("fastnorm").joinpath("_arrays.pyi").is_file()
