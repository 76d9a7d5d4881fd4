"""``pytreesaver info``: show everything about a checkpoint except its values."""

from pathlib import Path
from typing import Any

from pytreesaver._cli.app import app, checkpoint_argument, checkpoint_path, output_options
from pytreesaver._cli.output import (
    bytes_text,
    count_text,
    jsonable,
    number_text,
    styled,
    write,
    write_json,
)
from pytreesaver._inspect.checkpoint import load_checkpoint
from pytreesaver._inspect.type_tree import TypeNode
from pytreesaver._run.recorded import modified_time
from pytreesaver._text import plural, printable, time_text
from pytreesaver._tree.plain import encode_value
from pytreesaver.formats import places


@app.command("info")
@checkpoint_argument("path")
@output_options
def info(path: Path, json: bool) -> None:
    """Show the format, version, step, time, metrics, metadata and tree structure of a checkpoint.

    The exit code is 1 if a file is missing or has the wrong size. Use verify to check the contents.

    For example:

    \b
      pytreesaver info runs/a/ckpt-100
    """
    with load_checkpoint(checkpoint_path(path)) as checkpoint:
        time = modified_time(checkpoint.path) if checkpoint.time is None else checkpoint.time
        sizes = places.file_sizes(checkpoint.path)
        freed = places.freed_nbytes(places.stored_files(checkpoint.path))
        written = sum(sizes.values()) - checkpoint.shared_nbytes
        size = sum(variable.size for variable in checkpoint.values())
        tree = checkpoint.type_tree()
        if json:
            write_json(
                {
                    "path": str(checkpoint.path),
                    "format": checkpoint.format,
                    "version": checkpoint.version,
                    "step": checkpoint.step,
                    "time": time,
                    "variables": len(checkpoint),
                    "size": size,
                    "nbytes": checkpoint.nbytes,
                    "written_nbytes": written,
                    "freed_nbytes": freed,
                    "files": {name or checkpoint.path.name: size for name, size in sizes.items()},
                    "models": checkpoint.models,
                    "metrics": checkpoint.metrics,
                    "metadata": encode_value(checkpoint.metadata, classes=False),
                    "structure": _as_json(tree),
                }
            )
            checkpoint.check()
            return
        saved = time_text(time)
        facts = {
            "format": f"{checkpoint.format}, version {checkpoint.version}",
            "step": "" if checkpoint.step is None else str(checkpoint.step),
            "saved": saved,
            "variables": count_text(len(checkpoint)),
            "params": count_text(size),
            "bytes": bytes_text(checkpoint.nbytes),
            "on disk": f"{bytes_text(sum(sizes.values()))}, in {plural(len(sizes), 'file')}",
            "written": ""
            if not checkpoint.shared_nbytes
            else f"{bytes_text(written)}, the rest taken from an earlier checkpoint",
            "frees": "" if freed == sum(sizes.values()) else f"{bytes_text(freed)}, if it is deleted",
        }
        write(styled(str(checkpoint.path), "bold"))
        facts |= {f"function/{name}": signature for name, signature in checkpoint.models.items()}
        facts |= {f"metrics/{name}": number_text(value) for name, value in checkpoint.metrics.items()}
        facts |= {f"metadata/{name}": repr(value) for name, value in checkpoint.metadata.items()}
        width = max(len(printable(name)) for name in facts)
        for name, value in facts.items():
            if value:
                write(f"  {styled(f'{printable(name):<{width}}', 'dim')}  {printable(value)}")
        write()
        for line in str(tree).split("\n"):
            write(printable(line))
        checkpoint.check()


def _as_json(node: TypeNode) -> dict[str, Any]:
    return {"key": jsonable(node.key), "type": node.type, "children": [_as_json(child) for child in node.children]}
