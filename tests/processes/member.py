"""One process of a `Team`: calls the functions that the test names, in its order."""

import functools
import importlib.util
import os
import pickle
import sys
import warnings


@functools.cache
def load(file):
    spec = importlib.util.spec_from_file_location("of_the_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    rank, count, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the functions print goes elsewhere
    import jax

    if count > 1:
        jax.distributed.initialize(address, num_processes=count, process_id=rank)
    jax.devices()
    from processes.team import Failed

    warnings.simplefilter("error")
    pickle.dump("ready", answers)
    answers.flush()
    while True:
        try:
            file, name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)
        try:
            result = getattr(load(file), name)(*arguments)
        except Exception as error:
            result = Failed(error)
        pickle.dump(result, answers)
        answers.flush()


if __name__ == "__main__":
    main()
