"""Object stores, reached by URL: their paths, and the operations of `pytreesaver._io.filesystem` on them."""
