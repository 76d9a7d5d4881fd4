"""Reading of leaves, many variables at a time and in bounded memory: as NumPy arrays, mapped memory or JAX arrays."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from pytreesaver._checkpoint.restoring.jax_arrays import MAX_COPIED_NBYTES, jax_arrays
from pytreesaver._checkpoint.restoring.matching import LeafPlan
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.targets import Template, build_leaf, with_layout
from pytreesaver._errors import CorruptCheckpointError, MismatchError
from pytreesaver._io import filesystem
from pytreesaver._io.reading import ALIGNMENT
from pytreesaver._progress import reporting
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import Box, box_shape, index_box, whole_box
from pytreesaver._tree.casting import LossyCastError, convert
from pytreesaver._tree.kinds import LeafType, describe, describe_dtype, logical_shape, storage_dtype
from pytreesaver.formats.damage import add_damage, joined_damage, refuse_unreadable, unreadable_variables
from pytreesaver.formats.protocol import CheckpointReader

_WINDOW_NBYTES = 32 << 20
"""The maximum size of a group of several leaves to copy. A second group may be in flight to a device."""

_SMALL_NBYTES = 1 << 20  # variables up to this size are never read in parts


def read_leaves(
    reader: CheckpointReader, plans: Sequence[LeafPlan], names: Sequence[str], options: RestoreOptions
) -> list[Any]:
    """Read the leaf of each plan, and report the progress.

    Args:
        reader: the open checkpoint.
        plans: the variables to read and the leaves that they become.
        names: the names of the leaves.
        options: how to read.

    Raises:
        CorruptCheckpointError: if variables are damaged. It names all of them.
        MismatchError: if the requested dtype cannot represent a value. It names every such variable.
    """
    total = 0 if options.progress is False else sum(reader.nbytes[each] for each in {plan.position for plan in plans})
    with reporting(options.progress, f"restoring {reader.path}", total):
        leaves = _read_leaves(reader, plans, names, options)
        if options.verify and not options.mmap:
            positions = [plan.position for plan in plans]
            getattr(reader, "remember", _nothing)(positions, leaves, on_request=options.is_incremental)
        return leaves


def _nothing(*arguments: Any, **options: Any) -> None:
    """Do nothing, in place of a method that a reader lacks."""


def _read_leaves(
    reader: CheckpointReader, plans: Sequence[LeafPlan], names: Sequence[str], options: RestoreOptions
) -> list[Any]:
    unreadable = unreadable_variables(reader)
    wanted = dict.fromkeys(reader.names[plan.position] for plan in plans)
    refuse_unreadable(reader.path, "restored", {name: unreadable[name] for name in wanted if name in unreadable})
    leaves: list[Any] = [None] * len(plans)
    failures = _Failures([], {})
    read_ahead: Any = getattr(reader, "read_ahead", None)
    if read_ahead is not None:
        read_ahead([plan.position for plan in plans if _is_read_in_parts(reader, plan, options)])
    in_flight: list[Any] = []
    for group in _groups(reader, plans, options):
        made = _leaves_of_group(reader, [plans[i] for i in group], [names[i] for i in group], options, failures)
        if failures.damage or failures.losses:
            leaves.clear()  # the rest is read only to find all failures
            continue
        for i, leaf in zip(group, made, strict=True):
            leaves[i] = leaf
        # Arrays in flight to a device still take memory on the host. One group may be in flight while the next is read.
        jax.block_until_ready(in_flight)  # type: ignore[no-untyped-call]
        in_flight = [] if len(group) == len(plans) else [leaf for leaf in made if isinstance(leaf, jax.Array)]
    if failures.damage:
        raise joined_damage(reader, failures.damage)
    if failures.losses:
        raise _loss_error(reader, failures.losses)
    return leaves


class _Failures(NamedTuple):
    """The damage and the lossy casts in the variables that were read so far."""

    damage: list[CorruptCheckpointError]
    losses: dict[str, tuple[LeafPlan, LossyCastError]]


def _leaves_of_group(
    reader: CheckpointReader,
    plans: Sequence[LeafPlan],
    names: Sequence[str],
    options: RestoreOptions,
    failures: _Failures,
) -> list[Any]:
    """Return the leaves of some plans, None for those that failed. Adds to `failures`."""
    sources = _read_group(reader, plans, options, failures.damage)
    leaves: list[Any] = []
    for_jax: dict[int, np.ndarray] = {}
    uses = Counter(plan.position for plan in plans) if len(sources) < len(plans) else {}
    for plan, name in zip(plans, names, strict=True):
        leaf = None
        source = sources.get(plan.position)
        if uses and source is not None:
            uses[plan.position] -= 1
            if uses[plan.position]:
                source = source.copy()  # leaves must not share memory: the user may write to one of them
        if source is not None and _needs_no_conversion(reader, plan, options):
            if not (options.as_numpy or plan.target.type.kind == "numpy"):
                for_jax[len(leaves)] = source
            elif source.flags.aligned:
                leaf = source
            else:
                leaf = source.copy()
        elif source is not None or _is_read_in_parts(reader, plan, options):
            try:
                leaf = _leaf(reader, plan, source, options)
            except LossyCastError as loss:
                failures.losses[name] = plan, loss
            except CorruptCheckpointError as error:
                add_damage(failures.damage, error)
        leaves.append(leaf)
    if not (failures.damage or failures.losses):
        for i, leaf in zip(for_jax, jax_arrays(list(for_jax.values())), strict=True):
            leaves[i] = leaf
    return leaves


def _needs_no_conversion(reader: CheckpointReader, plan: LeafPlan, options: RestoreOptions) -> bool:
    """Return whether the stored array is the leaf, except that JAX may have to put it on a device."""
    target = plan.target
    stored, wanted = reader.types[plan.position], target.type
    return (
        (stored is wanted or stored.dtype == wanted.dtype)
        and reader.shapes[plan.position] == target.shape
        and stored.kind in ("jax", "numpy")
        and wanted.kind in ("jax", "numpy")
        and (options.as_numpy or wanted.kind == "numpy" or _is_default(target))
        and not wanted.dtype.startswith(">")
    )


def _is_default(target: Template) -> bool:
    """Return whether `jax_arrays` makes such arrays."""
    return target.sharding is None and target.layout is None and not target.type.weak_type


def _loss_error(reader: CheckpointReader, losses: Mapping[str, tuple[LeafPlan, LossyCastError]]) -> MismatchError:
    lines, dtypes = [], {}
    for name, (plan, loss) in losses.items():
        stored = reader.types[plan.position]
        expected = describe(plan.target.type, plan.target.shape)
        found = describe(stored, logical_shape(stored, reader.shapes[plan.position]))
        lines.append(f"  {quoted(name)}: expected {expected}, found {found} ({loss})")
        dtypes[name] = describe_dtype(plan.target.type), describe_dtype(stored)
    count = len(lines)
    return MismatchError(
        f"{count} variable{'s' * (count != 1)} of {reader.path} cannot be cast without loss:\n" + "\n".join(lines),
        dtype=dtypes,
    )


def _groups(reader: CheckpointReader, plans: Sequence[LeafPlan], options: RestoreOptions) -> Iterator[list[int]]:
    """Yield the plans in groups whose variables are read together. Plans of the same variable are in the same group.

    Variables that are read directly into the memory of their leaf need no other memory and do not count.
    """
    group: list[int] = []
    nbytes, last = 0, -1
    window = getattr(reader, "window_nbytes", _WINDOW_NBYTES)
    positions = [plan.position for plan in plans]
    for i in sorted(range(len(plans)), key=positions.__getitem__):
        position = positions[i]
        if position != last:
            size = 0 if _is_read_in_place(reader, plans[i], options) else reader.nbytes[position]
            if group and (nbytes + size > window or options.sequentially):
                yield group
                group, nbytes = [], 0
            nbytes, last = nbytes + size, position
        group.append(i)
    if group:
        yield group


def _is_read_in_place(reader: CheckpointReader, plan: LeafPlan, options: RestoreOptions) -> bool:
    """Return whether the variable is read into the memory of its leaf. On the CPU, JAX uses aligned memory in place."""
    if not _needs_no_conversion(reader, plan, options):
        return False
    nbytes = reader.nbytes[plan.position]
    is_aligned = nbytes % ALIGNMENT == 0 or (nbytes > _SMALL_NBYTES and not options.mmap)
    is_used_by_jax = nbytes > MAX_COPIED_NBYTES and is_aligned
    return options.as_numpy or plan.target.type.kind == "numpy" or (is_used_by_jax and _default_device_is_cpu())


def _default_device_is_cpu() -> bool:
    """Return whether JAX puts arrays into CPU memory by default."""
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    return (getattr(device, "platform", device) or jax.default_backend()) == "cpu"


def _read_group(
    reader: CheckpointReader, plans: Sequence[LeafPlan], options: RestoreOptions, damage: list[CorruptCheckpointError]
) -> dict[int, np.ndarray]:
    """Return the stored arrays that are not read in parts, by their positions, without the damaged ones."""
    rest = list(
        dict.fromkeys(
            plan.position
            for plan in plans
            if _needs_no_conversion(reader, plan, options) or not _is_read_in_parts(reader, plan, options)
        )
    )
    arrays: dict[int, np.ndarray] = {}
    if options.mmap:
        places = [(position, whole_box(reader.shapes[position])) for position in rest]
        try:
            mapped = reader.map(places, verify=options.verify)
        except CorruptCheckpointError as error:
            add_damage(damage, error)
            # Variables that are intact but cannot be mapped are read below; damaged ones are not read again.
            places = [(position, box) for position, box in places if reader.names[position] not in error.damaged]
            rest = [position for position, _ in places]
            mapped = reader.map(places, verify=False)
        arrays = {position: array for position, array in zip(rest, mapped, strict=True) if array is not None}
    rest = [position for position in rest if position not in arrays]
    if rest:
        try:
            arrays |= zip(rest, reader.read(rest, verify=options.verify), strict=True)
        except CorruptCheckpointError as error:
            add_damage(damage, error)
    origins: set[int] = set()
    for position in sorted(arrays) if reader.same_as else ():
        origin = reader.same_as.get(position, position)
        if origin in origins:  # stored once, but here the leaves must not share memory
            arrays[position] = arrays[position].copy()
        origins.add(origin)
    return arrays


def _is_read_in_parts(reader: CheckpointReader, plan: LeafPlan, options: RestoreOptions) -> bool:
    """Return whether a leaf is built from copies of parts of its variable, which is then never in memory as a whole."""
    if reader.nbytes[plan.position] <= _SMALL_NBYTES:
        return False
    stored, target = reader.types[plan.position], plan.target
    kinds = ("jax", "numpy", "numpy_scalar")
    if stored.kind not in kinds or target.type.kind not in kinds:
        return False
    is_sharded = target.sharding is not None and len(target.sharding.device_set) > 1 and not options.as_numpy
    is_sharded = is_sharded and not target.type.weak_type
    return is_sharded or storage_dtype(stored) != storage_dtype(target.type)


def _leaf(reader: CheckpointReader, plan: LeafPlan, source: np.ndarray | None, options: RestoreOptions) -> Any:
    """Return the leaf of a plan, from the stored array, or, if that is None, from parts of it that are read now."""
    position, target = plan.position, plan.target
    name, stored, wanted = reader.names[position], reader.types[position], target.type
    shape = logical_shape(stored, reader.shapes[position])
    if options.as_numpy and wanted.kind in ("jax", "key"):
        wanted = LeafType("numpy", wanted.dtype)
    sharding = None if options.as_numpy else target.sharding
    try:
        if source is None:
            leaf = _leaf_of_parts(reader, position, wanted, target.shape, sharding, options)
        else:
            if shape != target.shape:
                source = source.reshape(*target.shape, *source.shape[len(shape) :])
            leaf = build_leaf(source, stored, wanted, sharding)
        return leaf if target.layout is None or options.as_numpy else with_layout(leaf, target.layout)
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(
            f"{reader.path}: {quoted(name)}: the stored bytes are not a valid str: {error}", damaged=[name]
        ) from error
    except CorruptCheckpointError:
        raise
    except (ValueError, TypeError) as error:
        where = "" if sharding is None else f" with {sharding}"
        raise MismatchError(
            f"{quoted(name)} of {reader.path}: {describe(stored, shape)} cannot be restored{where}: {error}"
        ) from error


def _leaf_of_parts(
    reader: CheckpointReader,
    position: int,
    wanted: LeafType,
    shape: tuple[int, ...],
    sharding: Any,
    options: RestoreOptions,
) -> Any:
    if sharding is None or len(sharding.device_set) == 1:
        whole = whole_box(shape)
        array = _read_boxes(reader, position, [whole], wanted, shape, options)[whole]
        return build_leaf(array, wanted, wanted, sharding)
    indices = sharding.addressable_devices_indices_map(shape).values()
    boxes = list(dict.fromkeys(index_box(index, shape) for index in indices))
    parts = _read_boxes(reader, position, boxes, wanted, shape, options)
    dtype = storage_dtype(wanted)
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[index_box(index, shape)], dtype=dtype)


def _read_boxes(
    reader: CheckpointReader,
    position: int,
    boxes: Sequence[Box],
    wanted: LeafType,
    shape: tuple[int, ...],
    options: RestoreOptions,
) -> dict[Box, np.ndarray]:
    """Return boxes of a variable in the wanted shape and dtype, each mapped from the file or in separate memory."""
    dtype = storage_dtype(wanted)
    parts: dict[Box, np.ndarray] = {}
    if options.mmap and dtype == storage_dtype(reader.types[position]) and shape == reader.shapes[position]:
        mapped = reader.map([(position, box) for box in boxes], verify=options.verify)
        parts = {box: array for box, array in zip(boxes, mapped, strict=True) if array is not None}
    rest = [box for box in boxes if box not in parts]
    for box in rest:
        nbytes = math.prod(box_shape(box)) * dtype.itemsize
        parts[box] = filesystem.new_memory(nbytes).view(dtype).reshape(box_shape(box))
    losses: list[LossyCastError] = []
    reader.read_boxes(
        position,
        rest,
        [parts[box] for box in rest],
        verify=options.verify,
        shape=shape,
        assign=partial(_assign, losses),
    )
    if losses:
        raise losses[0]
    return parts


def _assign(losses: list[LossyCastError], output: np.ndarray, values: np.ndarray) -> None:
    # Continue after a loss: a checksum of the rest may show that the variable is damaged.
    try:
        convert(values, output)
    except LossyCastError as loss:
        losses.append(loss)
