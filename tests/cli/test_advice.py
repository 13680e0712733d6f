"""Advice on settings that do not fit the data."""

import pytest

from cli.advice import advice
from tests.helpers.commands import build_method
from tests.helpers.networks import Flat


def found(name, *words, images=1438):
    method = build_method(name, Flat(12), 6, *words, images=images)
    return advice(method.plan, method.modules())


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["--queue_size", "1409"], "queue of 1,409 rows is larger than the 1,408 images of an epoch"),
        (["--batch_size", "256"], "an epoch has 5 steps of 256 images"),
        (["--batch_size", "256"], "leaves out 158 of 1,438 images"),
        (["--epochs", "2", "--warmup_epochs", "1"], "the warm-up takes 44 of 88 steps"),
        (["--steps", "9"], "--log_every 10 is beyond the 9 steps"),
    ],
)
def test_advice_names_what_does_not_fit(words, phrase):
    batch = [] if "--batch_size" in words else ["--batch_size", "32"]
    queue = [] if "--queue_size" in words else ["--queue_size", "300"]
    assert any(phrase in text for text in found("nnclr", *words, *batch, *queue))


@pytest.mark.parametrize("name", ["nnclr", "mocov2", "ressl"])
def test_advice_is_silent_where_all_fits(name):
    assert found(name, "--batch_size", "32", "--queue_size", "1408", "--epochs", "20") == []


def test_a_queue_that_a_step_fills_is_counted_for_every_method_with_one():
    for name in ("mocov2", "ressl", "swav"):
        more = ["--queue_start_epoch", "1"] if name == "swav" else []
        texts = found(name, "--batch_size", "16", "--queue_size", "512", "--epochs", "90", *more, images=320)
        assert any("queue of 512 rows is larger than the 320 images" in text for text in texts), name
