"""Which blocks a text names, and the published blocks that the presets mean by percentages."""

from __future__ import annotations

import pytest

from diffusion_path.attention.blocks import check_blocks, chosen
from diffusion_path.core.families import Traits
from diffusion_path.edits.source_features import PRESETS, SourceFeatures

FLUX = tuple(("double", i) for i in range(19)) + tuple(("single", i) for i in range(38))
SD15 = (
    *(("input", i) for i in (1, 2, 4, 5, 7, 8)),
    ("middle", 0),
    *(("output", i) for i in range(3, 12)),
)
"""The blocks that have attention, in the order of their call."""


def of(kind: str, *numbers: int) -> set:
    return {(kind, number) for number in numbers}


@pytest.mark.parametrize("text", ["", " ", "\n", "all", "ALL", " , ,", "0%-100%", "0-56"])
def test_an_empty_text_and_all_name_every_block(text: str):
    assert chosen(text, FLUX) == {*FLUX}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", of("double", 0)),
        ("18, 19", of("double", 18) | of("single", 0)),
        ("18-20", of("double", 18) | of("single", 0, 1)),
        ("50-99", of("single", *range(31, 38))),
        ("3-3", of("double", 3)),
    ],
)
def test_numbers_without_a_kind_count_all_blocks_in_the_order_of_their_call(text: str, wanted: set):
    assert chosen(text, FLUX) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("double", of("double", *range(19))),
        ("single 2", of("single", 2)),
        ("single2", of("single", 2)),
        ("Single 36-37", of("single", 36, 37)),
        ("double 17-18, single 0", of("double", 17, 18) | of("single", 0)),
        ("double 1, 0\nsingle 36 – 99", of("double", 0, 1) | of("single", 36, 37)),
        ("all 18-19", of("double", 18) | of("single", 0)),
        ("double 1, double 1-2, 1", of("double", 1, 2)),
    ],
)
def test_numbers_with_a_kind_are_the_blocks_own_and_parts_add_up(text: str, wanted: set):
    assert chosen(text, FLUX) == wanted


def test_a_kinds_numbers_are_those_that_its_blocks_have_and_not_their_places():
    assert chosen("input 4-6", SD15) == of("input", 4, 5)
    assert chosen("input 0-1", SD15) == of("input", 1)
    assert chosen("output 3", SD15) == of("output", 3)
    assert chosen("middle", SD15) == of("middle", 0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0%", [0]),
        ("50%", [5]),
        ("59%", [5]),
        ("99%", [9]),
        ("0%-50%", [0, 1, 2, 3, 4]),
        ("60%-100%", [6, 7, 8, 9]),
        ("95%-97%", [9]),
        ("25% - 40%", [2, 3]),
    ],
)
def test_percentages_are_parts_of_all_blocks_without_the_one_at_their_end(text: str, wanted: list):
    assert chosen(text, tuple(("block", i) for i in range(10))) == of("block", *wanted)


def test_percentages_of_a_kind_are_of_its_blocks_alone():
    assert chosen("single 50%-100%", FLUX) == of("single", *range(19, 38))
    assert chosen("output 12%", SD15) == of("output", 4)
    assert chosen("output 12%-100%", SD15) == of("output", *range(4, 12))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_percentage_names_a_block_of_every_network(count: int):
    blocks = tuple(("block", i) for i in range(count))
    for percent in (0, 2, 33, 50, 99):
        assert len(chosen(f"{percent}%", blocks)) == 1
        assert chosen(f"{percent}%-100%", blocks) == {*blocks[int(percent * count / 100) :]}


def published(preset: str, unet: bool, blocks: tuple) -> list[set]:
    return [{*chosen(taken.blocks, blocks)} for taken in PRESETS[preset][0 if unet else 1]]


def test_the_presets_percentages_are_the_published_blocks():
    vital = of("double", 0, 1, 17, 18) | of("single", 6, 9, 34, 35, 37)
    assert published("Stable Flow", False, FLUX) == [vital]
    assert published("MasaCtrl", True, SD15) == [{*SD15[10:]}]
    assert {*SD15[10:]} == of("output", *range(6, 12))
    features, maps = published("Plug-and-Play", True, SD15)
    assert (features, maps) == (of("output", 4), of("output", *range(4, 12)))
    assert published("RF-Solver", False, FLUX) == [of("single", *range(20, 38))]
    assert published("StyleAligned", False, FLUX) == [{*FLUX}]


def test_a_preset_in_a_model_takes_its_blocks_there_or_those_that_the_user_names():
    flux = Traits("Flux dev", joint=True, blocks=FLUX)
    ((injection, start, end),) = SourceFeatures(preset="RF-Solver").settled(flux).injections
    assert injection.blocks == of("single", *range(20, 38))
    assert (start, end) == (0.0, 0.2)
    for preset in PRESETS:
        own = SourceFeatures(preset=preset, blocks="double 3", start=0.1, end=0.7).settled(flux)
        for injection, *window in own.injections:
            assert injection.blocks == of("double", 3)
            assert window == [0.1, 0.7]


@pytest.mark.parametrize("text", ["", "all", "0", "single", "5%-9%", "double 0-18, single 20-37"])
def test_a_text_is_checked_without_a_network(text: str):
    check_blocks(text)


@pytest.mark.parametrize(
    "part", ["1-2-3", "-1", "1.5", "double x", "%", "50 %", "double 1 2", "1;2", "30-20", "40%-25%"]
)
def test_what_is_no_number_is_refused_with_or_without_a_network(part: str):
    for text in (part, f"all, {part}"):
        for check in (check_blocks, lambda text: chosen(text, FLUX)):
            with pytest.raises(ValueError) as refusal:
                check(text)
            assert str(refusal.value) == (
                f'blocks has "{part}"; write numbers such as "0-9", "double 0-18" or "60%-100%"'
            )


@pytest.mark.parametrize("part", ["57", "single 38", "output 3", "block", "singles"])
def test_what_names_no_block_of_the_network_is_refused_with_those_there_are(part: str):
    check_blocks(part)
    with pytest.raises(ValueError) as refusal:
        chosen(f"double 0, {part}", FLUX)
    there = "double 0 to 18, single 0 to 37"
    assert str(refusal.value) == f'blocks has "{part}", and this model has {there}'
    with pytest.raises(ValueError, match="input 1 to 8, middle 0 to 0, output 3 to 11"):
        chosen("double 0", SD15)


def test_a_network_without_blocks_has_none_to_choose():
    assert chosen("double 0-18", ()) == frozenset()
