"""Save and restore any JAX pytree, exactly: ``save(tree, path)`` and ``restore(path)``.

The public names are those of ``__init__.pyi``. Each is imported when it is first used, so that importing pytreesaver
costs almost nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
