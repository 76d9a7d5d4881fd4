"""`export_model`: a function, without its code, in one checkpoint with the weights that it needs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np
from jax.typing import DTypeLike

from pytreesaver._checkpoint.copying import open_to_copy, write_copy
from pytreesaver._checkpoint.models.stored import StoredModel, compressed
from pytreesaver._checkpoint.saving.casting import checked_cast, with_cast_contents
from pytreesaver._checkpoint.saving.contents import contents_of
from pytreesaver._checkpoint.saving.writing import check_format, unchanged_since, write_contents
from pytreesaver._errors import CheckpointExistsError, UnsupportedLeafError
from pytreesaver._io import filesystem
from pytreesaver._io.paths import PathLike, local_path, wrap_os_errors
from pytreesaver._progress import Progress, check_progress
from pytreesaver._run.directory import checkpoint_at
from pytreesaver._text import quoted
from pytreesaver._tree.casting import X64_DTYPES
from pytreesaver._tree.kinds import PYTHON_KINDS, Cells, LeafType, logical_shape, storage_dtype
from pytreesaver._tree.names.select import Selection, Selector, as_selection, selected
from pytreesaver._tree.plain import encode_value
from pytreesaver._tree.rebuild import rebuild_tree
from pytreesaver._tree.restructure import prune_structure
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.formats import places
from pytreesaver.formats.protocol import TreeContents
from pytreesaver.formats.registry import format_at

FUNCTION = "call"
"""The name of a function that was given without one."""

_LARGE_NBYTES = 64 << 20
logger = logging.getLogger("pytreesaver")


class _Weights(NamedTuple):
    """The parameters of the functions.

    Attributes:
        names: the names of the variables.
        abstract: for each a `jax.ShapeDtypeStruct`, or a number.
        rebuild: returns the tree with leaves in place of the variables.
    """

    names: Sequence[str]
    abstract: Sequence[Any]
    rebuild: Callable[[Sequence[Any]], Any]


def export_model(
    path: PathLike,
    function: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    *abstract_args: Any,
    params: Any = None,
    of: PathLike | None = None,
    platforms: Sequence[str] | None = None,
    vjp_order: int = 0,
    only: Selection | None = None,
    cast: bool | DTypeLike = False,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    format: str | None = None,
    progress: Progress = False,
) -> Path:
    """Save a function of JAX in one checkpoint with its weights, so that it runs without the code that made it.

    The function is exported with `jax.export`, as StableHLO. `pytreesaver.load_model` returns it. The checkpoint is an
    ordinary one besides: `restore` returns the weights.

    Args:
        path: where to save the checkpoint, as in `pytreesaver.save`.
        function: a function of the weights and the arguments, jitted or not, without side effects; or a dict of several
            by name.
        abstract_args: the arguments after the weights: trees of `jax.ShapeDtypeStruct`, or arrays of which the shapes
            and dtypes count. Dimensions of `jax.export.symbolic_shape` may have any size later. For several functions,
            one dict with a tuple of arguments for each name.
        params: the weights: a tree of arrays and numbers.
        of: in place of `params`, a checkpoint that has them, or a run directory with the newest one. If both paths are
            on one disk, its data files are shared, as by `base` in `pytreesaver.save`. With ``of=path`` and
            ``overwrite=True``, the function is added to a checkpoint, which keeps all of its variables, in place of
            the functions that it has.
        platforms: what the function is to run on: any of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``. By default,
            the current platform.
        vjp_order: how many times the loaded function can be differentiated.
        only: which variables of the weights the function gets, as in `pytreesaver.restore`. A new checkpoint has no
            others.
        cast: as in `pytreesaver.save`. The function gets the weights after the cast.
        metadata: as in `pytreesaver.save`; with `of`, that of the checkpoint by default.
        overwrite: as in `pytreesaver.save`.
        durable: as in `pytreesaver.save`.
        format: as in `pytreesaver.save`; with ``of=path``, that of the checkpoint by default.
        progress: as in `pytreesaver.save`.

    In a program of several processes, one of them calls it.

    Returns:
        The path of the checkpoint.

    Raises:
        TypeError, ValueError: if an argument is invalid.
        UnsupportedLeafError: if the weights or a result have leaves that are not arrays or numbers. It names all.
        What the function, `jax.export` and `pytreesaver.save` raise.

    Example:
        >>> params = {"w": jax.numpy.ones((3, 2)), "b": jax.numpy.zeros(2)}
        >>> (batch,) = jax.export.symbolic_shape("batch")
        >>> x = jax.ShapeDtypeStruct((batch, 3), jax.numpy.float32)
        >>> path = export_model("served", lambda params, x: x @ params["w"] + params["b"], x, params=params)
        >>> model = pytreesaver.load_model("served")
        >>> model(np.ones((1, 3), np.float32))
        Array([[3., 3.]], dtype=float32)
    """
    check_progress(progress)
    if (params is None) == (of is None):
        raise TypeError("expected params, a tree of weights, or of, a checkpoint that has them")
    functions = _functions(function, abstract_args)
    _check_platforms(platforms, vjp_order)
    selection, checked = None if only is None else as_selection(only), checked_cast(cast)
    target = local_path(path)
    source = None if of is None else checkpoint_at(of)
    with wrap_os_errors("look at", target):
        is_in_place = source is not None and filesystem.resolved(source) == filesystem.resolved(target)
        is_taken = places.exists(target)
    if is_in_place and checked is not False:
        raise ValueError("cast: would round the weights of the checkpoint itself; export the model to another path")
    if is_in_place and format is None:
        found = format_at(target)
        format = None if found is None else found.name
    check_format(target, format, None)
    if is_taken and not overwrite:
        raise CheckpointExistsError(f"{target} exists already; pass overwrite=True to replace a checkpoint")
    options: dict[str, Any] = {"overwrite": overwrite, "durable": durable, "format": format, "progress": progress}
    with ExitStack() as stack:
        reader = None
        if source is None:
            contents = contents_of(params, metadata, only=selection, cast=checked)
            weights = _weights_of_tree(params, contents, is_whole=only is None)
        else:
            # A checkpoint of a run that gets a function stays one of the run, with all of its variables.
            opened = open_to_copy(source, target, None if is_in_place else selection, None, keeps_record=is_in_place)
            reader, contents, _ = stack.enter_context(opened)
            contents = with_cast_contents(contents, checked)
            if metadata is not None:
                contents = contents._replace(metadata=encode_value(dict(metadata), classes=False))
            weights = _weights_of_checkpoint(contents, selection if is_in_place else None)
        models = {
            name: _exported(each, args, weights, platforms, vjp_order) for name, (each, args) in functions.items()
        }
        contents = contents._replace(models=msgspec.to_builtins(models))
        if reader is None:
            return write_contents(target, contents, **options)
        base = None
        is_incremental = hasattr(check_format(target, format, None), "unchanged_since")
        if is_incremental and reader.format_name == "pytreesaver":
            contents, base = unchanged_since(contents, reader.path, target, format)
        return write_copy(reader, target, contents, base=base, is_incremental=is_incremental, **options)


def _functions(function: Any, args: tuple[Any, ...]) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return each function with its arguments, by name."""
    if callable(function):
        return {FUNCTION: (function, args)}
    if not isinstance(function, Mapping) or not function:
        raise TypeError(f"function: expected a function, or a dict of functions by name, found {function!r}")
    args_of = args[0] if len(args) == 1 else None
    if not isinstance(args_of, Mapping) or args_of.keys() != function.keys():
        raise TypeError(
            "abstract_args: expected one dict with a tuple of arguments for each of the functions "
            f"{', '.join(map(str, function))}, found {args!r}"
        )
    for name, each in function.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"function: expected the names of functions, found {name!r}")
        if not (callable(each) and isinstance(args_of[name], tuple | list)):
            raise TypeError(f"function: expected a function and a tuple of arguments for {name!r}")
    return {name: (each, tuple(args_of[name])) for name, each in function.items()}


def _weights_of_tree(tree: Any, contents: TreeContents, *, is_whole: bool) -> _Weights:
    flat = flatten_tree(tree)
    shardings = dict(zip(flat.names, (getattr(leaf, "sharding", None) for leaf in flat.leaves), strict=True))
    abstract = _abstract(contents, [shardings[name] for name in contents.names])
    if not is_whole:
        return _Weights(contents.names, abstract, lambda leaves: rebuild_tree(contents.structure, leaves)[0])
    structure: Any = jax.tree.structure(tree)

    def rebuild(leaves: Sequence[Any]) -> Any:
        return structure.unflatten(flat.all_leaves(dict(zip(contents.names, leaves, strict=True))))

    return _Weights(contents.names, abstract, rebuild)


def _weights_of_checkpoint(contents: TreeContents, only: Selector | None) -> _Weights:
    if only is not None:
        flags = selected(only, list(contents.names), "the checkpoint")
        positions = [i for i, flag in enumerate(flags) if flag]
        structure = prune_structure(contents.structure, {i: place for place, i in enumerate(positions)})
        contents = contents.part(positions)._replace(structure=structure)
    abstract = _abstract(contents, [None] * len(contents.names))
    return _Weights(contents.names, abstract, lambda leaves: rebuild_tree(contents.structure, leaves)[0])


def _abstract(contents: TreeContents, shardings: Sequence[Any]) -> list[Any]:
    """Return what stands for each variable while a function is exported."""
    columns = list(zip(contents.names, contents.types, contents.shapes, shardings, strict=True))
    problems = {
        name: f"expected an array or a number, found {leaf_type.kind} of {leaf_type.dtype}"
        for name, leaf_type, _, _ in columns
        if not _is_argument(leaf_type)
    }
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        problems |= {
            name: f"found {leaf_type.dtype}, which JAX would truncate to {X64_DTYPES[leaf_type.dtype]} while "
            "jax_enable_x64 is off; convert it, pass cast=, or enable x64"
            for name, leaf_type, _, _ in columns
            if leaf_type.kind not in PYTHON_KINDS and leaf_type.dtype in X64_DTYPES
        }
        numbers = zip(contents.names, contents.types, contents.cells, strict=True)
        problems |= {
            name: "found a number that 32 bits cannot represent, while jax_enable_x64 is off"
            for name, leaf_type, cells in numbers
            if leaf_type.kind in ("int", "float", "complex") and name not in problems and not _fits_32_bits(cells)
        }
    _refuse("the weights", problems)
    return [_abstract_leaf(leaf_type, shape, sharding) for _, leaf_type, shape, sharding in columns]


def _fits_32_bits(cells: Cells) -> bool:
    value = np.asarray(cells.arrays[0])
    if value.dtype.kind == "i":
        return bool(-(2**31) <= value < 2**31)
    most = np.finfo(np.float32).max
    parts = np.array([np.real(value), np.imag(value)])
    return bool((~np.isfinite(parts) | (abs(parts) <= most)).all())


def _is_argument(leaf_type: LeafType) -> bool:
    if leaf_type.kind == "key":
        return True
    if leaf_type.dtype.startswith(">"):
        return False
    return (
        leaf_type.kind not in ("str", "bytes")
        and storage_dtype(leaf_type).kind in "biufcV"
        and (leaf_type.kind != "int" or leaf_type.dtype == "int64")
    )


def _abstract_leaf(leaf_type: LeafType, shape: Sequence[int], sharding: Any) -> Any:
    if leaf_type.kind in PYTHON_KINDS:
        return {"bool": False, "int": 0, "float": 0.0, "complex": 0j}[leaf_type.kind]
    is_spread = sharding is not None and len(sharding.device_set) > 1
    dtype: Any = storage_dtype(leaf_type)
    if leaf_type.kind == "key":
        dtype = jax.eval_shape(lambda: jax.random.key(0, impl=leaf_type.key_impl)).dtype
    return jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
        logical_shape(leaf_type, shape), dtype, sharding=sharding if is_spread else None, weak_type=leaf_type.weak_type
    )


def _refuse(what: str, problems: Mapping[str, str]) -> None:
    if problems:
        lines = "\n".join(f"  {quoted(name)}: {problem}" for name, problem in problems.items())
        advice = "; select others with only=" if what == "the weights" else ""
        raise UnsupportedLeafError(f"{what} of a model cannot have these leaves{advice}:\n{lines}")


_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def _check_platforms(platforms: Any, vjp_order: Any) -> None:
    if platforms is not None:
        if isinstance(platforms, str) or not isinstance(platforms, Sequence):
            raise TypeError(f'platforms: expected a list such as ["cpu", "cuda"], found {platforms!r}')
        unknown = [each for each in platforms if each not in _PLATFORMS]
        if unknown or not platforms:
            raise ValueError(f"platforms: expected some of {', '.join(_PLATFORMS)}, found {list(platforms)!r}")
    if isinstance(vjp_order, bool) or not isinstance(vjp_order, int | np.integer) or vjp_order < 0:
        raise ValueError(f"vjp_order: expected a number of at least 0, found {vjp_order!r}")


def _exported(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    weights: _Weights,
    platforms: Sequence[str] | None,
    vjp_order: int,
) -> StoredModel:
    """Export a function of the leaves of the weights and of the arguments."""
    count = len(weights.names)
    flat_args = flatten_tree(list(args))
    _refuse("the arguments", flat_args.problems)
    args_structure: Any = jax.tree.structure(list(args))
    results: list[Any] = []

    def flat(*leaves: Any) -> tuple[Any, ...]:
        result = function(weights.rebuild(leaves[:count]), *args_structure.unflatten(leaves[count:]))
        flattened = flatten_tree(result)
        _refuse("the result", flattened.problems)
        results.append((jax.tree.structure(result), flattened.structure))
        return tuple(flattened.leaves)

    given = None if platforms is None else list(platforms)
    exported = jax.export.export(jax.jit(flat), platforms=given)(*weights.abstract, *flat_args.leaves)
    result_structure, structure = results[-1]
    result = result_structure.unflatten([_Shown(each) for each in exported.out_avals])
    arguments = map(repr, args_structure.unflatten([_Shown(each) for each in exported.in_avals[count:]]))
    serialized = exported.serialize(vjp_order=int(vjp_order))
    if len(serialized) > _LARGE_NBYTES:
        logger.warning(
            "the exported function has %d MB: it contains arrays as constants; pass them as weights",
            len(serialized) >> 20,
        )
    return StoredModel(
        signature=f"({', '.join(arguments)}) -> {result!r}",
        parameters=list(weights.names),
        arguments=flat_args.structure,
        argument_names=flat_args.names,
        result=structure,
        platforms=list(exported.platforms),
        devices=exported.nr_devices,
        calling_convention=exported.calling_convention_version,
        jax=jax.__version__,
        exported=compressed(serialized),
    )


class _Shown:
    """Stands for an array in the text of a tree."""

    def __init__(self, aval: Any) -> None:
        self._text = f"{aval.dtype.name}[{','.join(map(str, aval.shape))}]"

    def __repr__(self) -> str:
        return self._text
