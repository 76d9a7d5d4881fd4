"""Reading leaves: many variables at a time, in bounded memory, into NumPy arrays, the mapped file, or JAX."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from pytreesaver._checkpoint.restoring.matching import (
    LeafPlan,
)
from pytreesaver._checkpoint.restoring.options import RestoreOptions
from pytreesaver._checkpoint.restoring.targets import build_leaf
from pytreesaver._errors import CorruptCheckpointError, MismatchError
from pytreesaver._io import filesystem
from pytreesaver._io.reading import ALIGNMENT
from pytreesaver._progress import reporting
from pytreesaver._text import quoted
from pytreesaver._tree.boxes import Box, box_shape, index_box, whole_box
from pytreesaver._tree.casting import LossyCastError, convert
from pytreesaver._tree.kinds import (
    LeafType,
    describe,
    describe_dtype,
    logical_shape,
    storage_dtype,
)
from pytreesaver.formats.damage import add_damage, joined_damage
from pytreesaver.formats.protocol import CheckpointReader

_BATCH = 16
"""How many arrays one call of a compiled function takes. It compiles in 30 ms; more make that longer, and nothing
faster."""

_WORTH_COMPILING = 1024
"""From so many arrays of one kind on, the function is compiled: each costs a fourth of what `jax.device_put` takes."""

MOST_COPIED_NBYTES = 64 << 10
"""Up to here an array may be copied, which the compiled function does; larger ones are taken over as they lie."""


def jax_arrays(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Uncommitted JAX arrays on the default device, as `jax.device_put` makes them of `arrays`.

    Example:
        >>> jax_arrays([np.ones(2, np.float32)])
        [Array([1., 1.], dtype=float32)]
    """
    if not arrays:
        return []  # without asking JAX, which would take hold of its devices
    if len(arrays) < _WORTH_COMPILING or not _may_compile():
        return list(jax.device_put(list(arrays)))
    by_kind: dict[Any, list[int]] = {}
    for i, array in enumerate(arrays):
        by_kind.setdefault((array.dtype, array.shape), []).append(i)
    batches: list[list[int]] = []
    rest: list[int] = []
    for alike in by_kind.values():
        is_worth_it = len(alike) >= _WORTH_COMPILING and arrays[alike[0]].nbytes <= MOST_COPIED_NBYTES
        first = len(alike) % _BATCH or _BATCH if is_worth_it else len(alike)
        rest += alike[:first]
        batches += [alike[start : start + _BATCH] for start in range(first, len(alike), _BATCH)]
    results: list[Any] = [None] * len(arrays)
    # There is always a rest, and JAX refuses it if such transfers are forbidden; the others are no less explicit.
    _put(results, rest, jax.device_put([arrays[i] for i in rest]))
    with jax.transfer_guard_host_to_device("allow"):
        for batch in batches:
            _put(results, batch, _unchanged(*[arrays[i] for i in batch]))
    return results


def _put(results: list[Any], positions: Sequence[int], values: Sequence[Any]) -> None:
    for i, value in zip(positions, values, strict=True):
        results[i] = value


_unchanged = jax.jit(lambda *arrays: arrays)


def _may_compile() -> bool:
    """Whether a compiled function gives what `jax.device_put` gives: not where the user has results checked, functions
    not compiled, or a mesh over which they are spread."""
    config: Any = jax.config
    is_left_alone = not (config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs)
    return is_left_alone and jax.sharding.get_abstract_mesh().empty


_WINDOW_NBYTES = 32 << 20
"""How many bytes of leaves that have to be copied are held at a time; twice as many while they go to a device."""

_SMALL_NBYTES = 1 << 20
"""Up to here a variable is read whole, whatever is to become of it."""


def read_leaves(
    reader: CheckpointReader, plans: Sequence[LeafPlan], names: Sequence[str], options: RestoreOptions
) -> list[Any]:
    """Read the leaf of each plan, and show the progress.

    Args:
        reader: the open checkpoint.
        plans: what to read, and what it becomes.
        names: the names of the leaves.
        options: how to read.

    Raises:
        CorruptCheckpointError: naming every damaged variable.
        MismatchError: naming every variable with a value that the requested dtype cannot represent.
    """
    total = 0 if options.progress is False else sum(reader.nbytes[each] for each in {plan.position for plan in plans})
    with reporting(options.progress, f"restoring {reader.path}", total):
        return _read_leaves(reader, plans, names, options)


def _read_leaves(
    reader: CheckpointReader, plans: Sequence[LeafPlan], names: Sequence[str], options: RestoreOptions
) -> list[Any]:
    leaves: list[Any] = [None] * len(plans)
    found = _Found([], {})
    on_its_way: list[Any] = []
    for group in _groups(reader, plans, options):
        made = _leaves_of_group(reader, [plans[i] for i in group], [names[i] for i in group], options, found)
        if found.damage or found.losses:
            leaves.clear()  # the rest is only read to find all that is wrong
            continue
        for i, leaf in zip(group, made, strict=True):
            leaves[i] = leaf
        # What is on its way to a device still takes memory here; one group may be while the next one is read.
        jax.block_until_ready(on_its_way)  # type: ignore[no-untyped-call]
        on_its_way = [] if len(group) == len(plans) else [leaf for leaf in made if isinstance(leaf, jax.Array)]
    if found.damage:
        raise joined_damage(reader, found.damage)
    if found.losses:
        raise _loss_error(reader, found.losses)
    return leaves


class _Found(NamedTuple):
    """What is wrong with the variables that were read so far."""

    damage: list[CorruptCheckpointError]
    losses: dict[str, tuple[LeafPlan, LossyCastError]]


def _leaves_of_group(
    reader: CheckpointReader,
    plans: Sequence[LeafPlan],
    names: Sequence[str],
    options: RestoreOptions,
    found: _Found,
) -> list[Any]:
    """The leaves of some plans, None for those of which something is wrong."""
    sources = _read_group(reader, plans, options, found.damage)
    leaves: list[Any] = []
    for_jax: dict[int, np.ndarray] = {}
    uses = Counter(plan.position for plan in plans) if len(sources) < len(plans) else {}
    for plan, name in zip(plans, names, strict=True):
        leaf = None
        source = sources.get(plan.position)
        if uses and source is not None:
            uses[plan.position] -= 1
            if uses[plan.position]:
                source = source.copy()  # no two leaves share memory: one of them may be written to, now or later
        if source is not None and _is_taken_as_it_is(reader, plan, options):
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
                found.losses[name] = plan, loss
            except CorruptCheckpointError as error:
                add_damage(found.damage, error)
        leaves.append(leaf)
    if not (found.damage or found.losses):
        for i, leaf in zip(for_jax, jax_arrays(list(for_jax.values())), strict=True):
            leaves[i] = leaf
    return leaves


def _is_taken_as_it_is(reader: CheckpointReader, plan: LeafPlan, options: RestoreOptions) -> bool:
    """Whether a stored array is the leaf, but that it may have to be given to JAX."""
    target = plan.target
    stored, wanted = reader.types[plan.position], target.type
    return (
        (stored is wanted or stored.dtype == wanted.dtype)
        and reader.shapes[plan.position] == target.shape
        and stored.kind in ("jax", "numpy")
        and wanted.kind in ("jax", "numpy")
        and (options.as_numpy or wanted.kind == "numpy" or (target.sharding is None and not wanted.weak_type))
        and not wanted.dtype.startswith(">")
    )


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
    """The plans in groups whose variables are read together; those of one variable are in one group.

    What is read into the memory of its leaf takes none beside it, and does not count.
    """
    group: list[int] = []
    nbytes, last = 0, -1
    positions = [plan.position for plan in plans]
    for i in sorted(range(len(plans)), key=positions.__getitem__):
        position = positions[i]
        if position != last:
            size = 0 if _is_read_in_place(reader, plans[i], options) else reader.nbytes[position]
            if group and (nbytes + size > _WINDOW_NBYTES or options.sequentially):
                yield group
                group, nbytes = [], 0
            nbytes, last = nbytes + size, position
        group.append(i)
    if group:
        yield group


def _is_read_in_place(reader: CheckpointReader, plan: LeafPlan, options: RestoreOptions) -> bool:
    """Whether a leaf has the memory into which its variable is read: on a CPU JAX takes over what lies aligned."""
    if not _is_taken_as_it_is(reader, plan, options):
        return False
    nbytes = reader.nbytes[plan.position]
    is_aligned = nbytes % ALIGNMENT == 0 or (nbytes > _SMALL_NBYTES and not options.mmap)
    is_taken_over = nbytes > MOST_COPIED_NBYTES and is_aligned
    return options.as_numpy or plan.target.type.kind == "numpy" or (is_taken_over and _puts_on_cpu())


def _puts_on_cpu() -> bool:
    """Whether arrays that are given no place go to the memory of the CPU."""
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    return (getattr(device, "platform", device) or jax.default_backend()) == "cpu"


def _read_group(
    reader: CheckpointReader, plans: Sequence[LeafPlan], options: RestoreOptions, damage: list[CorruptCheckpointError]
) -> dict[int, np.ndarray]:
    """The stored arrays, by their positions, of the plans that take a variable whole; nothing of what is damaged."""
    rest = list(
        dict.fromkeys(
            plan.position
            for plan in plans
            if _is_taken_as_it_is(reader, plan, options) or not _is_read_in_parts(reader, plan, options)
        )
    )
    arrays: dict[int, np.ndarray] = {}
    if options.mmap:
        places = [(position, whole_box(reader.shapes[position])) for position in rest]
        try:
            mapped = reader.map(places, verify=options.verify)
        except CorruptCheckpointError as error:
            add_damage(damage, error)
            # What is intact and not mapped has to be looked at yet.
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
    return arrays


def _is_read_in_parts(reader: CheckpointReader, plan: LeafPlan, options: RestoreOptions) -> bool:
    """Whether a leaf is made of copies of parts of its variable, so that the variable need not be held whole."""
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
    """The leaf of a plan, from its whole stored array, or from parts of it that are read now."""
    position, target = plan.position, plan.target
    name, stored, wanted = reader.names[position], reader.types[position], target.type
    shape = logical_shape(stored, reader.shapes[position])
    if options.as_numpy and wanted.kind in ("jax", "key"):
        wanted = LeafType("numpy", wanted.dtype)
    sharding = None if options.as_numpy else target.sharding
    try:
        if source is None:
            return _leaf_of_parts(reader, position, wanted, target.shape, sharding, options)
        if shape != target.shape:
            source = source.reshape(*target.shape, *source.shape[len(shape) :])
        return build_leaf(source, stored, wanted, sharding)
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(
            f"{reader.path}: {quoted(name)}: the stored bytes are no str: {error}", damaged=[name]
        ) from error
    except CorruptCheckpointError:
        raise
    except (ValueError, TypeError) as error:
        where = "" if sharding is None else f" with {sharding}"
        raise MismatchError(
            f"{quoted(name)} of {reader.path}: {describe(stored, shape)} cannot be made{where}: {error}"
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
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[index_box(index, shape)])


def _read_boxes(
    reader: CheckpointReader,
    position: int,
    boxes: Sequence[Box],
    wanted: LeafType,
    shape: tuple[int, ...],
    options: RestoreOptions,
) -> dict[Box, np.ndarray]:
    """Boxes of a variable in the wanted shape and dtype, each in memory of its own or as it lies in the file."""
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
    # The rest is still read when something is lost, because its checksums may tell why.
    try:
        convert(values, output)
    except LossyCastError as loss:
        losses.append(loss)
