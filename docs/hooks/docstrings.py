"""Make our docstrings what mkdocstrings expects: an extension of griffe, by which it reads the package."""

import re
from typing import Any

import griffe

_CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?!`)")
_SECTION = re.compile(r"^Raises:\n((?:[ \t]+.*\n|\n)+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of pytreesaver while griffe loads them."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings, when the public names are known."""
        public = {
            str(name): f"{module.path}.{name}"
            for module in (pkg["formats"], pkg["orbax"], pkg["testing"], pkg)
            for name in (module.exports or module.members)
            if not str(name).startswith("_") and (module is not pkg or pkg.members[str(name)].is_alias)
        }
        for module in _modules(pkg):
            for member in module.members.values():
                if not member.is_alias:
                    _rewrite(member, public)
                    _show_values(member, pkg)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    return [module, *(inner for each in module.modules.values() if not each.is_alias for inner in _modules(each))]


def _rewrite(obj: Any, public: dict[str, str], class_path: str = "", members: frozenset[str] = frozenset()) -> None:
    if obj.is_class:
        class_path = public.get(obj.name, "")
        arguments = {each.name for each in obj.parameters}
        members = frozenset(
            name
            for name, each in obj.members.items()
            if each.has_docstring and name[0] != "_" and name not in arguments
        )
        for member in obj.members.values():
            if not member.is_alias:
                _rewrite(member, public, class_path, members)
    if obj.docstring is not None and not obj.is_module:

        def link(match: re.Match[str]) -> str:
            name = match[1]
            head, _, tail = name.removeprefix("pytreesaver.").partition(".")
            if class_path and name in members:
                target = f"{class_path}.{name}"
            elif head in public and (name.startswith("pytreesaver.") or head[0].isupper() or "_" in head):
                target = f"{public[head]}.{tail}".rstrip(".")
            else:
                return match[0]
            return match[0] if target.endswith(f".{obj.name}") else f"[`{name}`][{target}]"

        obj.docstring.value = _CODE.sub(link, rewritten(obj.docstring.value))


def _show_values(obj: Any, package: griffe.Module) -> None:
    """Show the values of our constants, and the strings that an argument may be, in place of their internal names."""

    def value_of(expression: Any, kind: type) -> Any:
        path = expression.canonical_path if isinstance(expression, griffe.ExprName) else ""
        if not path.startswith("pytreesaver."):
            return expression
        try:
            found: Any = package[path.removeprefix("pytreesaver.")]
        except KeyError:
            return expression
        return (
            found.value if not found.is_alias and found.is_attribute and isinstance(found.value, kind) else expression
        )

    def with_literals(expression: Any) -> Any:
        if isinstance(expression, griffe.ExprBinOp):
            expression.left, expression.right = with_literals(expression.left), with_literals(expression.right)
            return expression
        value = value_of(expression, griffe.ExprSubscript)
        return value if value is expression or str(value).startswith("Literal") else expression

    members = obj.members.values() if obj.is_class else [obj]
    for function in [each for each in members if not each.is_alias and each.is_function]:
        for parameter in function.parameters:
            parameter.default = value_of(parameter.default, str)
            parameter.annotation = with_literals(parameter.annotation)


def rewritten(text: str) -> str:
    """Return a docstring whose sections griffe understands.

    It knows "Examples" but not "Example", an error in "Raises" on one line with a colon, and no literal blocks.
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"::\n\n(?= )", ":\n\n", text)
    return _SECTION.sub(lambda match: _raises(match[1]), f"{text}\n").rstrip("\n")


def _raises(lines: str) -> str:
    entries: list[str] = []
    for line in filter(None, lines.split("\n")):
        if line.startswith("     "):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    errors = [entry.replace(", ", " | ", entry.partition(": ")[0].count(", ")) for entry in entries if ": " in entry]
    others = [f"{entry[0].lower()}{entry[1:].rstrip('.')}" for entry in entries if ": " not in entry]
    section = "".join(f"    {entry}\n" for entry in errors)
    section = f"Raises:\n{section}\n" if errors else ""
    return section + "".join(f"{'Also raised' if errors else 'Raises'}: {entry}.\n\n" for entry in others)
