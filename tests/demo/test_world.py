from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_path.demo.world import (
    BACKGROUNDS,
    COLOUR_FAMILIES,
    KINDS,
    OBJECTS,
    SIZE,
    SPLITS,
    Edit,
    Object,
    Scene,
    caption,
    object_mask,
    random_edit,
    random_scene,
    render,
    split_of,
)

BLUE_APPLE = Scene((Object("red apple", (64, 64), 64),), "blue")
CAT_AND_STAR = Scene((Object("cat", (32, 64), 48), Object("star", (96, 40), 56)), "gray")


def edits(kind, count=12, split="held_out"):
    rng = np.random.default_rng(KINDS.index(kind))
    return [random_edit(rng, split, kind) for _ in range(count)]


def combinations(scene: Scene) -> set:
    names = [item.name for item in scene.objects]
    pairs = {(name, scene.background) for name in names}
    return pairs | ({frozenset(names)} if len(names) == 2 else set())


def test_a_seed_gives_the_same_scenes_and_pictures_again():
    def draw():
        rng = np.random.default_rng(7)
        scenes = [random_scene(rng, "train") for _ in range(20)]
        return scenes, [render(scene) for scene in scenes]

    first, second = draw(), draw()
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])


def test_captions_say_what_is_where():
    assert caption(BLUE_APPLE) == "a red apple on a blue background"
    assert (
        caption(CAT_AND_STAR) == "a cat on the left and a star on the right, on a gray background"
    )
    grapes = Scene((Object("grapes", (64, 64), 64),), "striped")
    assert caption(grapes) == "some grapes on a striped background"


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_changes_exactly_the_pixels_of_its_mask(name, background):
    scene = Scene((Object(name, (64, 72), 80),), background)
    empty = replace(scene, objects=())
    image = render(scene)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    mask = object_mask(scene, 0)
    differs = (image != render(empty)).any(2)
    assert not (differs & ~mask).any()
    assert differs.sum() > 0.7 * mask.sum()  # a white patch on white is no difference


def test_two_objects_do_not_touch():
    rng = np.random.default_rng(3)
    for _ in range(50):
        scene = random_scene(rng, "train", 2)
        assert not (object_mask(scene, 0) & object_mask(scene, 1)).any()
        assert scene.objects[0].centre[0] < SIZE // 2 < scene.objects[1].centre[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_nothing_outside_its_mask(kind):
    for edit in edits(kind):
        assert np.array_equal(edit.before[~edit.mask], edit.after[~edit.mask])
        assert not np.array_equal(edit.before, edit.after)
        assert edit.source_prompt != edit.target_prompt


@pytest.mark.parametrize("kind", ["replace", "colour"])
def test_a_replaced_object_keeps_place_and_size(kind):
    for edit in edits(kind):
        pairs = list(zip(edit.source.objects, edit.target.objects, strict=True))
        assert all((a.centre, a.size) == (b.centre, b.size) for a, b in pairs)
        old, new = next((a.name, b.name) for a, b in pairs if a != b)
        assert any({old, new} <= set(family) for family in COLOUR_FAMILIES) == (kind == "colour")


def test_adding_and_removing_leave_the_other_object_alone():
    for edit in edits("add"):
        assert edit.source.objects[0] in edit.target.objects
        assert len(edit.target.objects) == 2
    for edit in edits("remove"):
        assert edit.target.objects[0] in edit.source.objects
        assert len(edit.target.objects) == 1


def test_a_new_background_leaves_the_objects_alone():
    for edit in edits("background"):
        assert edit.source.objects == edit.target.objects
        opaque = ~edit.mask
        assert np.array_equal(edit.before[opaque], edit.after[opaque])
        assert not (edit.before == edit.after)[edit.mask].all(1).all()


def test_hearts_differ_in_nothing_but_colour():
    shapes = [
        object_mask(Scene((Object(name, (64, 64), 96),), "white"), 0) for name in COLOUR_FAMILIES[1]
    ]
    for shape in shapes[1:]:
        assert (shape & shapes[0]).sum() / (shape | shapes[0]).sum() > 0.98


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_of_the_split_asked_for(split):
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng, split, n) for n in (1, 2) for _ in range(20)]
    assert {split_of(scene) for scene in scenes} == {split}
    assert [len(scene.objects) for scene in scenes] == [1] * 20 + [2] * 20


def test_held_out_and_tuning_combinations_are_never_trained_on():
    rng = np.random.default_rng(2)
    trained = set().union(*(combinations(random_scene(rng, "train")) for _ in range(2000)))
    for split in ("tune", "held_out"):
        for _ in range(100):
            assert not combinations(random_scene(rng, split)) <= trained


def test_every_object_and_background_is_trained_on():
    rng = np.random.default_rng(2)
    scenes = [random_scene(rng, "train") for _ in range(500)]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {item.name for scene in scenes for item in scene.objects} == set(OBJECTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_an_edit_belongs_to_one_split(kind, split):
    for edit in edits(kind, 5, split):
        assert split_of(edit.source, edit.target) == split
        if split == "train":
            assert split_of(edit.source) == split_of(edit.target) == "train"


def test_edits_are_values():
    edit = edits("replace", 1)[0]
    assert edit == Edit(edit.source, edit.target, "replace")
    assert len({edit, edit}) == 1


def test_a_caption_without_places_names_the_same_objects_in_the_order_of_the_alphabet():
    left, right = Object("zebra", (32, 64), 56), Object("apple", (96, 64), 56)
    said = "a apple and a zebra on a blue background"
    assert caption(Scene((left, right), "blue"), places=False) == said
    assert caption(Scene((right, left), "blue"), places=False) == said
    alone = Scene((left,), "blue")
    assert caption(alone, places=False) == caption(alone)
