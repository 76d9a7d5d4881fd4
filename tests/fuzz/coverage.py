"""Which lines of the library an input reaches, without a tool, in order to keep few inputs."""

import sys
import threading

from fuzz.execution import Violation, checked


def smallest_inputs(target, known, inputs):
    """Yield the inputs, the smallest first, that reach lines that neither the known ones nor those before reach."""
    seen = set()
    for content in known:
        seen |= lines_of(target, content)
    for content in sorted(inputs, key=len):
        found = lines_of(target, content)
        if not found <= seen:
            seen |= found
            yield content


def lines_of(target, content):
    """Return the lines of the library that an input reaches, and none for an input that is an error."""
    found = set()

    def trace(frame, event, _):
        if "/pytreesaver/" not in frame.f_code.co_filename:
            return None
        found.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    try:
        checked(target.run, content)
    except Violation:
        return found
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        checked(target.run, content)
    except Violation:  # it takes longer now
        pass
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return found
