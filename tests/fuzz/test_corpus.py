"""What the fuzzers have found stays mended: every input of the corpus, and some random ones for each parser."""

import logging
from pathlib import Path
from random import Random

import pytest
from fuzz.by_name import NAMES, target_named
from fuzz.execution import checked, next_input, warm_up

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="pytreesaver")


def corpus_of(name):
    return [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_input_gives_a_value_or_an_error_by_name(name):
    target = target_named(name)
    warm_up(target)
    for content in corpus_of(name):
        checked(target.run, content)


@pytest.mark.parametrize("name", NAMES)
def test_random_inputs_give_a_value_or_an_error_by_name(name):
    target, random = target_named(name), Random(name)
    warm_up(target)
    known = [*target.seeds, *corpus_of(name)]
    for _ in range(target.executions):
        content = random.choice(known)
        for _ in range(random.choice((1, 1, 2, 3))):
            content = next_input(target, content, random)
        checked(target.run, content)


def test_the_corpus_is_small():
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 1 << 20
