"""`load_model`: a function that `export_model` has stored, with its weights, ready to call."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from pytreesaver._checkpoint.models.stored import StoredModel, stored_models
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.restore import restore_reader
from pytreesaver._checkpoint.restoring.targets import ShardingRule
from pytreesaver._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedVersionError,
)
from pytreesaver._io.paths import PathLike
from pytreesaver._progress import Progress
from pytreesaver._run.directory import opened_checkpoint
from pytreesaver._text import did_you_mean, quoted
from pytreesaver._tree.rebuild import MalformedStructureError, rebuild_tree
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.formats.protocol import CheckpointReader

logger = logging.getLogger("pytreesaver")


class ModelFunction:
    """A function of a model. Calling it with the arguments after the weights runs it.

    It can be jitted and differentiated. JAX cannot vmap exported functions: export one of a batch.

    Attributes:
        signature: its arguments and result, as text.
        in_avals: the abstract values of its arguments, without the weights, in the order of `jax.tree.leaves`.
        out_avals: the abstract values of its result, in the same order.
        platforms: the platforms that it was exported for.
        exported: the `jax.export.Exported`, a function of the leaves of the weights and of the arguments.
    """

    def __init__(self, name: str, stored: StoredModel, exported: Any, params: Any, shardings: Any) -> None:
        self._name = name
        self._stored = stored
        self._names = set(flatten_tree(params).names)
        self._weights = self._ordered(params)
        count = len(stored.parameters)
        self.signature = stored.signature
        self.in_avals: tuple[Any, ...] = tuple(exported.in_avals[count:])
        self.out_avals: tuple[Any, ...] = tuple(exported.out_avals)
        self.platforms: tuple[str, ...] = tuple(exported.platforms)
        self.exported = exported
        self._call = jax.jit(exported.call) if shardings is None else jax.jit(exported.call, in_shardings=shardings)

    def __call__(self, *args: Any) -> Any:
        """Call the function with the weights of the checkpoint."""
        return self._called(self._weights, args)

    def apply(self, params: Any, *args: Any) -> Any:
        """Call the function with other weights: a tree with the same names, shapes and dtypes.

        The gradient with respect to the weights is that of this function, if the model was exported with `vjp_order`.

        Raises:
            TypeError: if the weights or the arguments have other names than those of the exported function.
        """
        return self._called(self._ordered(params), args)

    def _ordered(self, params: Any) -> list[Any]:
        """Return the leaves of weights in the order in which the exported function takes them."""
        weights = flatten_tree(params)
        leaf_of = dict(zip(weights.names, weights.leaves, strict=True))
        missing = set(self._stored.parameters) - leaf_of.keys()
        unknown = leaf_of.keys() - self._names
        if missing or unknown:
            what = ", ".join(map(quoted, sorted(missing | unknown)[:5]))
            raise TypeError(f"{self!r}: expected weights with the names of those in the checkpoint; different: {what}")
        return [leaf_of[name] for name in self._stored.parameters]

    def _called(self, weights: list[Any], args: tuple[Any, ...]) -> Any:
        given = flatten_tree(list(args))
        expected = self._stored.argument_names
        argument_of = dict(zip(given.names, given.leaves, strict=True))
        if argument_of.keys() != set(expected):
            raise TypeError(f"{self!r}: expected arguments with the leaves {expected}, found {given.names}")
        leaves = self._call(*weights, *(argument_of[name] for name in expected))
        return rebuild_tree(self._stored.result, leaves)[0]

    def __repr__(self) -> str:
        return f"<{self._name}{self.signature}>"


class Model(Mapping[str, ModelFunction]):
    """The functions of a checkpoint, by name, and their weights. If there is one, the model can be called like it.

    Attributes:
        path: the checkpoint.
        params: the weights, as `pytreesaver.restore` returns them.
    """

    def __init__(self, path: Path, params: Any, functions: Mapping[str, ModelFunction]) -> None:
        self.path = path
        self.params = params
        self._functions = dict(functions)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # which `jax.jit` needs
        return id(self)

    def __getitem__(self, name: str) -> ModelFunction:
        try:
            return self._functions[name]
        except KeyError:
            names = list(self._functions)
            raise KeyError(f"{self.path} has no function {name!r}{did_you_mean(str(name), names)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __call__(self, *args: Any) -> Any:
        """Call the function with the weights."""
        return self._only(*args)

    def apply(self, params: Any, *args: Any) -> Any:
        """Call the function with other weights, as `ModelFunction.apply`."""
        return self._only.apply(params, *args)

    @property
    def _only(self) -> ModelFunction:
        if len(self._functions) != 1:
            names = ", ".join(f"model[{name!r}]" for name in self._functions)
            raise TypeError(f"{self.path} has several functions; call one of them: {names}")
        (function,) = self._functions.values()
        return function

    @property
    def in_avals(self) -> tuple[Any, ...]:
        """As in `ModelFunction`."""
        return self._only.in_avals

    @property
    def out_avals(self) -> tuple[Any, ...]:
        """As in `ModelFunction`."""
        return self._only.out_avals

    @property
    def platforms(self) -> tuple[str, ...]:
        """As in `ModelFunction`."""
        return self._only.platforms

    def __repr__(self) -> str:
        return f"<Model {self.path}: {', '.join(map(repr, self._functions.values()))}>"


def load_model(
    path: PathLike,
    *,
    sharding: ShardingRule | None = None,
    mmap: bool = False,
    verify: bool = True,
    progress: Progress = False,
) -> Model:
    """Load a model that `pytreesaver.export_model` has saved: its weights, and functions that need no code.

    Loading runs nothing. Calling the model compiles the StableHLO in the checkpoint, and runs it: see the documentation
    of models for what that means if you do not trust who made it.

    Args:
        path: the checkpoint, or a run directory, whose newest checkpoint is loaded.
        sharding: where to put the weights, as in `pytreesaver.restore`. A model that was exported for several devices
            gets the first ones, and the shardings of its export, by default.
        mmap: as in `pytreesaver.restore`.
        verify: as in `pytreesaver.restore`.
        progress: as in `pytreesaver.restore`.

    Raises:
        CheckpointNotFoundError: if there is no checkpoint, or it has no model.
        UnsupportedVersionError: if this version of JAX does not read what the other one exported. JAX promises to read
            models for six months, and models of versions up to three weeks newer.
        ValueError: if the model needs more devices than there are.
        What `pytreesaver.restore` raises.

    Example:
        >>> params = {"a": jax.numpy.full(2, 3.0)}
        >>> path = pytreesaver.export_model("line", lambda p, x: p["a"] * x, jax.numpy.ones(2), params=params)
        >>> model = load_model("line")
        >>> model, model(jax.numpy.ones(2))
        (<Model line: <call(float32[2]) -> float32[2]>>, Array([3., 3.], dtype=float32))
    """
    options = RestoreOptions(sharding=sharding, mmap=mmap, verify=verify, progress=progress)
    with opened_checkpoint(path) as reader:
        models = stored_models(getattr(reader, "models", None), reader.path)
        if not models:
            raise CheckpointNotFoundError(
                f"{reader.path}: expected a checkpoint with a model, found one without; export_model saves one"
            )
        exported = {name: _deserialized(each, name, reader) for name, each in models.items()}
        shardings = {name: _shardings(each, reader.path) for name, each in exported.items()}
        spread = next((name for name, each in shardings.items() if each is not None), None)
        if spread is not None and sharding is None:
            of_name = dict(zip(models[spread].parameters, shardings[spread] or (), strict=False))
            options = options._replace(sharding=lambda name, shape: of_name.get(name))
        params = restore_reader(reader, None, options.checked(None), 4)
    functions = {name: ModelFunction(name, models[name], exported[name], params, shardings[name]) for name in models}
    return Model(reader.path, params, functions)


def _deserialized(stored: StoredModel, name: str, reader: CheckpointReader) -> Any:
    path = reader.path
    low = jax.export.minimum_supported_calling_convention_version
    high = jax.export.maximum_supported_calling_convention_version
    if not low <= stored.calling_convention <= high:
        raise UnsupportedVersionError(
            f"{path}: the function {quoted(name)} was exported by JAX {stored.jax} with version "
            f"{stored.calling_convention} of the calling convention; JAX {jax.__version__} reads versions {low} to "
            f"{high}: install another version of JAX, or export it again"
        )
    try:
        exported = jax.export.deserialize(stored.serialized())
    except Exception as error:
        raise CorruptCheckpointError(
            f"{path}: the function {quoted(name)}, exported by JAX {stored.jax}, cannot be read by JAX "
            f"{jax.__version__}: {error!r}"
        ) from error
    count = len(stored.parameters) + len(stored.argument_names)
    if not set(stored.parameters) <= set(reader.names) or len(exported.in_avals) != count:
        raise CorruptCheckpointError(f"{path}: the function {quoted(name)} needs other variables or arguments")
    try:
        rebuild_tree(stored.result, [0] * len(exported.out_avals))
    except MalformedStructureError as error:
        raise CorruptCheckpointError(f"{path}: the result of {quoted(name)} is malformed: {error}") from None
    except Exception:  # a class that does not accept these leaves
        logger.debug("the result of %s was not tried", name, exc_info=True)
    return exported


def _shardings(exported: Any, path: Path) -> Sequence[Any] | None:
    """Return the shardings of the arguments of a function that was exported for several devices, or None."""
    count = exported.nr_devices
    if count == 1:
        return None
    if count > len(jax.devices()):
        raise ValueError(f"{path}: the model was exported for {count} devices, and there are {len(jax.devices())}")
    devices = np.array(jax.devices()[:count])
    # JAX wants the mesh of the export again, which only a private attribute has.
    named = [each for each in getattr(exported, "_in_named_shardings", ()) if each is not None]
    if named:
        abstract: Any = named[0].mesh
        shape, names = abstract.axis_sizes, abstract.axis_names
        mesh = jax.sharding.Mesh(devices.reshape(shape), names, axis_types=abstract.axis_types)
    else:
        mesh = jax.sharding.Mesh(devices, ("devices",))
    return tuple(exported.in_shardings_jax(mesh))
