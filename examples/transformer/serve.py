"""Continue a text with an exported model. This program knows only the path: it imports none of the model's code.

Run ``python examples/transformer/serve.py served "def main("``.
"""

import sys

import jax.numpy as jnp
import numpy as np

import pytreesaver as pts


def main(path: str, prompt: str, count: str = "60") -> None:
    model = pts.load_model(path)
    size = model.in_avals[0].shape[0]
    text = list(prompt.encode())
    for _ in range(int(count)):
        window = text[-size:]
        tokens = np.zeros(size, np.int32)
        tokens[: len(window)] = window
        text.append(int(jnp.argmax(model(tokens, np.int32(len(window))))))
    print(bytes(text).decode(errors="replace"))


if __name__ == "__main__":
    main(*sys.argv[1:])
