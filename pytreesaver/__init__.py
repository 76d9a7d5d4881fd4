"""Save and restore any JAX pytree, exactly: ``save(tree, path)`` and ``restore(path)``.

The public names are those of ``__init__.pyi``. Each is imported when it is first used, so that importing pytreesaver
costs almost nothing.
"""

import lazy_loader

_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name != "__version__":
        return _public_name(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pytreesaver")
    except PackageNotFoundError:  # a source tree on the path of modules
        return "0.0"
