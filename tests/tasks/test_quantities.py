"""The table of quantities: names are taken apart, wrong ones are refused with the whole table."""

from __future__ import annotations

import pytest

from expunge.records import UsageError
from expunge.tasks.quantities import TABLE, Name, layer_index, parse, table_text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_logp", Name(False, False, "token_logp", "")),
        ("ref_answer_logp", Name(True, False, "answer_logp", "")),
        ("alt_token_logp", Name(False, True, "token_logp", "")),
        ("ref_alt_answer_logp", Name(True, True, "answer_logp", "")),
        ("ref_hidden@7", Name(True, False, "hidden", "7")),
        ("hidden@25%", Name(False, False, "hidden", "25%")),
    ],
)
def test_names_are_taken_apart(name: str, expected: Name) -> None:
    assert parse(name) == expected
    assert parse(expected.local).base == expected.base


@pytest.mark.parametrize(
    "name", ["token_lopg", "reference_logits", "hiden@3", "token_logp@3", "ref_", "", "alt_ref_logits"]
)
def test_an_unknown_quantity_prints_the_table(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(name)
    for known in TABLE:
        assert known in str(caught.value)
    assert "ref_..." in str(caught.value)


def test_the_nearest_quantity_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'token_logp'"):
        parse("token_lopg")


def test_hidden_needs_a_layer() -> None:
    with pytest.raises(UsageError, match="needs a layer"):
        parse("hidden")


def test_the_table_names_shape_and_unit_of_every_quantity() -> None:
    for name, quantity in TABLE.items():
        (line,) = [line for line in table_text().splitlines() if line.strip().startswith(name + " ")]
        assert quantity.shape in line
        assert quantity.unit in line


@pytest.mark.parametrize(
    ("layer", "depth", "index"),
    [
        ("1", 4, 1),
        ("4", 4, 4),
        ("25%", 4, 1),
        ("25%", 32, 8),
        ("50%", 4, 2),
        ("100%", 5, 5),
        ("1%", 12, 1),
        ("0%", 4, 1),
    ],
)
def test_layers_by_number_and_by_share_of_the_depth(layer: str, depth: int, index: int) -> None:
    assert layer_index(layer, depth) == index


@pytest.mark.parametrize("layer", ["0", "5", "-1", "150%", "first", "", "%"])
def test_layers_that_a_model_has_not_are_refused(layer: str) -> None:
    with pytest.raises(UsageError, match="layer"):
        layer_index(layer, 4)
