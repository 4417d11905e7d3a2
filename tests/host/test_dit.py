"""Where the tokens are in the transformers: each claim against ComfyUI's own network.

One number of a latent, or one token of a prompt, is made another, and the keys that change with it
say where it is. What is kept of a source is tested here, too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models

JOINT = (
    *("sd3", "sd35_medium", "flux_dev", "flux_schnell", "flux2", "chroma", "qwen_image"),
    *("lumina2", "z_image", "hunyuan_video", "hidream"),
)
CROSS = ("wan", "wan_i2v", "ltxv", "anima")
FAMILIES = (*JOINT, *CROSS)
MIXED = ("lumina2", "z_image")
"""Those with layers for the picture alone before the first that is counted."""


@pytest.fixture(scope="module", autouse=True)
def models(comfy: Path) -> Iterator[None]:
    """ComfyUI, and each model once, gone before ComfyUI is."""
    yield
    tiny.cache_clear()


@functools.cache
def tiny(name: str) -> Any:
    return getattr(tiny_models, name)()


class Seen(NamedTuple):
    """A call of attention, and what the control makes of it."""

    layer: tuple | None
    kind: str
    keys: Tensor
    place: slice
    text: slice | None
    start: int

    @property
    def rows(self) -> Tensor:
        """The keys (tokens, ...) of the one picture, heads together."""
        keys = self.keys[0]
        return keys.transpose(0, 1).flatten(1) if keys.ndim == 3 else keys


class Watching:
    """The override of another pack, which writes down every call in one call of the network."""

    def __init__(self, control: Any, tokens: int) -> None:
        self.control, self.tokens = control, tokens
        self.calls: list[Seen] = []

    def __call__(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any):
        from diffusion_path.host.attention import Call

        options, control = named["transformer_options"], self.control
        layer, kind = control._layer(q.shape[-2], k.shape[-2], options)
        place, text = slice(0), None
        if layer is not None and kind != "cross":
            place, text = control._places(kind, q.shape[-2], options)
        nobody: Any = None
        whose = {"target": [], "source": None, "size": (), "place": place}
        how = {"whole": nobody, "attend": nobody, "heads": 1, "text": text}
        call = Call(q=q, k=k, v=v, text_ends=control.text_ends, **whose, **how)
        start = 0
        if text is not None:
            first = torch.eye(self.tokens)[:, :1]
            start = int(call.over_keys(first, k.shape[-2]).argmax())
        self.calls.append(Seen(layer, kind, k.clone(), place, text, start))
        return attention(q, k, v, *args, **named)


def seen(name: str, prompt: list, latent: Tensor) -> list[Seen]:
    """The calls of one call of the network, whose attention the control lets pass."""
    import comfy.sample
    import comfy.samplers

    from diffusion_path.host.networks import control_of

    model = tiny(name).clone()
    control = control_of(model.model.diffusion_model)
    watching = Watching(control, prompt[0][0].shape[1])
    model.model_options["transformer_options"]["optimized_attention_override"] = watching
    model.model_options = control.options(model.model_options)

    def enter(apply: Any, args: dict) -> Tensor:
        control.enter(args["input"])
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(enter)
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([0.9, 0.0])
    start = torch.zeros_like(latent)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, latent, 1.0, euler, sigmas, prompt, prompt, start, disable_pbar=True, seed=0
        )
    return watching.calls


def words(name: str) -> int:
    """More than a picture has tokens, where the family reads as many as there are."""
    return 77 if tiny_models.prompt(name)[0][0].shape[1] == 77 else 80


@functools.cache
def plain(name: str, height: int, width: int) -> list[Seen]:
    prompt = tiny_models.prompt(name, 1, words(name))
    return seen(name, prompt, tiny_models.picture(name, height=height, width=width)["samples"])


def layers(*blocks: tuple | None, kinds: str = "joint") -> list[tuple]:
    """(layer, kind) of the calls of attention, in their order."""
    found: list[tuple] = []
    for block in blocks:
        if block is None:
            found.append((None, ""))
            continue
        for kind in kinds.split():
            before = [one for one in found if one[0] and one[0][:2] == block and one[1] == kind]
            found.append(((*block, len(before)), kind))
    return found


FLUX = [("double", 0), ("double", 1), ("single", 0), ("single", 1)]
TWO = [("block", 0), ("block", 1)]
LAYERS = {
    **dict.fromkeys(("flux_dev", "flux_schnell", "flux2", "chroma", "hidream"), layers(*FLUX)),
    **dict.fromkeys(("sd3", "qwen_image"), layers(*TWO)),
    **dict.fromkeys(("wan", "ltxv", "anima"), layers(*TWO, kinds="self cross")),
    # without CLIP's view of the first frame the text is read once more in its place
    "wan_i2v": layers(*TWO, kinds="self cross cross"),
    # the first two blocks attend to the picture alone as well
    "sd35_medium": layers(TWO[0], None, TWO[1], None, ("block", 2)),
    # refiners of the text, and of the picture
    **dict.fromkeys(("lumina2", "z_image"), layers(None, None, *TWO)),
    "hunyuan_video": layers(None, None, *FLUX),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_call_is_of_a_block_or_of_what_is_no_block(name: str):
    from diffusion_path.host.dit import blocks_of

    calls = plain(name, 8, 12)
    assert [(call.layer, call.kind) for call in calls] == LAYERS[name]
    named = dict.fromkeys(call.layer[:2] for call in calls if call.layer)
    assert tuple(named) == blocks_of(tiny(name).model.diffusion_model)


def first_of(calls: list[Seen], *kinds: str) -> Seen:
    return next(call for call in calls if call.kind in kinds)


def changed(before: Seen, after: Seen) -> list[int]:
    """Which rows of the keys are others."""
    return (before.rows != after.rows).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in FAMILIES
        for size in ((8, 12), (9, 13))
        if (name, size) != ("hunyuan_video", (9, 13))  # at which its network fails
    ],
)
def test_a_place_of_the_picture_has_the_token_that_the_control_says(name: str, size: tuple):
    from diffusion_path.host.dit import grid_of

    whole = tiny_models.picture(name, height=size[0], width=size[1])["samples"]
    grid = grid_of(tiny(name).model.diffusion_model, whole.shape[2:])
    before = first_of(plain(name, *size), "joint", "self")
    assert before.place.stop - before.place.start == math.prod(grid)
    sides = [latent / tokens for latent, tokens in zip(whole.shape[2:], grid, strict=True)]
    ends = tuple(length - 1 for length in whole.shape[2:])
    inside = tuple(end // 2 + 1 if end > 1 else end for end in ends)
    first = (0,) * len(grid)  # which at odd sizes fills up the other ends, too
    for at in (inside, ends) if size[0] % 2 else (first, inside, ends):
        other = whole.clone()
        other[(0, 0, *at)] += 1.0
        rows = changed(before, first_of(with_latent(name, other), "joint", "self"))
        token = 0
        for place, side, length in zip(at, sides, grid, strict=True):
            token = token * length + int(place / math.ceil(side))
        if name in MIXED:  # the layers before have told the whole picture of it
            assert rows[0] == before.place.start
            assert rows == list(range(rows[0], len(before.rows)))
        else:
            assert rows == [before.place.start + token]


def with_latent(name: str, latent: Tensor) -> list[Seen]:
    return seen(name, tiny_models.prompt(name, 1, words(name)), latent)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_of_the_prompt_is_where_the_control_says(name: str):
    latent = tiny_models.picture(name)["samples"]
    prompt = tiny_models.prompt(name, 1, words(name))
    before = first_of(plain(name, 8, 12), "joint", "cross")
    for token in (0, 3, words(name) - 1):
        rows = changed(before, first_of(with_token(name, prompt, token, latent), before.kind))
        if name in (*MIXED, "hunyuan_video"):  # refined: each token has read the others
            last = rows[0] + words(name) - 1
            assert rows[0] == before.start and before.text is not None
            assert rows == list(range(rows[0], before.text.stop)) and rows[-1] >= last
        else:
            assert rows == [before.start + token]


def with_token(name: str, prompt: list, token: int, latent: Tensor) -> list[Seen]:
    ((embedding, options),) = prompt
    other = embedding.clone()
    other[0, token] += 1.0
    return seen(name, [[other, options]], latent)


@pytest.mark.parametrize("name", JOINT)
def test_picture_and_text_share_no_token_and_leave_only_padding(name: str):
    call = first_of(plain(name, 8, 12), "joint")
    assert call.text is not None
    tokens = len(call.rows)
    picture, text = (set(range(*part.indices(tokens))) for part in (call.place, call.text))
    assert not picture & text
    padding = 8 if name == "z_image" else 0
    assert len(picture | text) == tokens - padding
    if name == "z_image":
        assert (call.text, call.place) == (slice(0, 96), slice(96, 96 + 24))  # of 32
    if name == "hidream":
        assert call.place == slice(0, 24)
    elif name != "z_image":
        assert call.place == slice(tokens - len(picture), tokens)


def test_flux_2_has_its_padding_before_the_prompt():
    call = first_of(plain("flux2", 8, 12), "joint")
    assert (call.text, call.start) == (slice(0, 512), 512 - 80)


def test_hunyuan_video_15_has_the_text_of_byt5_before_the_prompt():
    name = "hunyuan_video_15"
    ((embedding, options),) = tiny_models.prompt(name, 1, 20)
    glyphs = {"conditioning_byt5small": torch.randn(1, 6, 1472)}
    prompt = [[embedding, options | glyphs]]
    latent = tiny_models.picture(name)["samples"]
    before = first_of(seen(name, prompt, latent), "joint")
    rows = changed(before, first_of(with_token(name, prompt, 3, latent), "joint"))
    assert rows == list(range(6, 26))
    assert before.start == 6


@pytest.mark.parametrize("name", ["flux_dev", "qwen_image", "flux2"])
@pytest.mark.parametrize("sizes", [[(8, 12)], [(4, 6), (8, 4)]], ids=["one", "two"])
def test_the_tokens_of_references_are_neither_the_pictures_nor_the_texts(name: str, sizes: list):
    references = [
        tiny_models.picture(name, height=height, width=width, seed=5) for height, width in sizes
    ]
    prompt = tiny_models.referring(tiny_models.prompt(name, 1, 40), *references)
    latent = tiny_models.picture(name)["samples"]
    before = first_of(seen(name, prompt, latent), "joint")
    side = 1 if name == "flux2" else 2
    behind = sum(height * width // side**2 for height, width in sizes)
    assert before.place.stop == len(before.rows) - behind
    assert before.text == slice(0, before.place.start)
    other = latent.clone()
    other[..., -1, -1] += 1.0
    after = first_of(seen(name, prompt, other), "joint")
    assert changed(before, after) == [before.place.stop - 1]


# kinds of networks


class Sized(torch.nn.Module):
    """Has lists of blocks of some length."""

    def __init__(self, **blocks: int) -> None:
        super().__init__()
        for name, count in blocks.items():
            setattr(self, name, range(count))


def published(kind: str, **blocks: int) -> Any:
    """A network of that class, with nothing but its blocks."""
    return type("Published", (Sized, named(kind)), {"__module__": "comfy.ldm.published"})(**blocks)


def named(kind: str) -> type:
    """An empty class that has the name of one of ComfyUI's."""
    module, name = kind.rsplit(".", 1)
    return type(name, (), {"__module__": f"comfy.ldm.{module}"})


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (
            ("flux.model.Flux", {"double_blocks": 19, "single_blocks": 38}),
            [("double", i) for i in (11, 12, 14, 17, 18)],
        ),
        (
            ("flux.model.Flux", {"double_blocks": 4, "single_blocks": 4}),
            [("single", 2), ("single", 3)],
        ),
        (
            ("modules.diffusionmodules.mmdit.MMDiT", {"joint_blocks": 24}),
            [("block", i) for i in (5, 7, 8, 9, 10)],
        ),
        (
            ("modules.diffusionmodules.mmdit.MMDiT", {"joint_blocks": 38}),
            [("block", i) for i in (16, 18, 20, 21, 24)],
        ),
        (
            ("qwen_image.model.QwenImageTransformer2DModel", {"transformer_blocks": 60}),
            [("block", i) for i in (22, 26, 30, 34, 38)],
        ),
    ],
    ids=lambda value: value[0].split(".")[-1] if isinstance(value, tuple) else "",
)
def test_the_maps_are_those_of_the_published_blocks_or_of_the_middle_third(
    comfy: Path, network: tuple, wanted: list
):
    from diffusion_path.host.dit import maps_of

    kind, blocks = network
    assert maps_of(published(kind, **blocks)) == {*wanted}


def test_of_any_number_of_blocks_there_are_maps_to_look_at(comfy: Path):
    from diffusion_path.host.dit import blocks_of, maps_of

    for count in range(1, 61):
        network = published("wan.model.WanModel", blocks=count)
        found = maps_of(network)
        assert found and found <= {*blocks_of(network)}
        assert all(count // 3 <= number < 2 * count / 3 for _, number in found)
        assert len(found) == 5 or count < 15


def test_a_network_is_known_by_its_class_and_those_of_its_class(comfy: Path):
    from comfy.ldm.aura.mmdit import MMDiT as AuraFlow
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.ldm.wan.model import VaceWanModel

    from diffusion_path.host.dit import FAMILIES, blocks_of, family_of

    def bare(cls: type) -> Any:
        return cls.__new__(cls)

    assert family_of(bare(MMDiT)) is FAMILIES["modules.diffusionmodules.mmdit.MMDiT"]
    assert family_of(bare(VaceWanModel)) is FAMILIES["wan.model.WanModel"]
    assert family_of(bare(AuraFlow)) is None  # of the same name
    elsewhere = type("Own", (MMDiT,), {"__module__": "custom_nodes.own"})
    assert family_of(bare(elsewhere)) is None
    assert blocks_of(bare(AuraFlow)) == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tiny_model_is_of_a_known_kind_and_has_its_traits(name: str):
    from diffusion_path.host.networks import attention_blocks, control_of, traits_of

    model = tiny(name)
    network = model.model.diffusion_model
    traits = traits_of(model)
    assert traits.joint == (name in JOINT)
    assert traits.network == type(network).__name__
    assert traits.blocks == attention_blocks(network)
    assert [layer[:2] for layer in control_of(network).layers] == list(traits.blocks)


# options


def test_the_options_that_are_given_stay_and_another_packs_override_is_called_inside():
    from diffusion_path.host.networks import control_of

    def theirs(attention: Any, *args: Any, **named: Any) -> str:
        return f"theirs of {attention(*args, **named)}"

    def block(args: dict, extra: dict) -> dict:
        return extra["original_block"](args)

    given = {
        "transformer_options": {
            "optimized_attention_override": theirs,
            "patches_replace": {"dit": {("double_block", 1): block, ("last", 0): block}},
        }
    }
    kept = repr(given)
    control = control_of(tiny("sd3").model.diffusion_model)
    transformer = control.options(given)["transformer_options"]
    override = transformer["optimized_attention_override"]
    assert override(lambda q, **_: f"attention of {q}", "q") == "theirs of attention of q"
    replaced = transformer["patches_replace"]["dit"]
    assert {*replaced} == {("double_block", 0), ("double_block", 1), ("last", 0)}
    assert replaced["last", 0] is block
    assert repr(given) == kept


def test_a_block_that_says_no_number_is_given_one_which_another_packs_patch_passes_on():
    from diffusion_path.host.dit import Marked

    def original(args: dict) -> Any:
        return args["transformer_options"].get("block_index"), args["img"]

    def doubled(args: dict, extra: dict) -> Any:
        return extra["original_block"]({**args, "img": 2 * args["img"]})

    options = {"own": 1}
    args, extra = {"transformer_options": options, "img": 3}, {"original_block": original}
    assert Marked(7, None)(args, extra) == (7, 3)
    assert Marked(7, doubled)(args, extra) == (7, 6)
    assert options == {"own": 1}


# what is kept of the source


class OnCard:
    """Stands for a tensor that may be on a graphics card; it says where it was copied to."""

    def __init__(self, numbers: int, device: str = "meta") -> None:
        self.numbers, self.device = numbers, torch.device(device)

    def numel(self) -> int:
        return self.numbers

    def element_size(self) -> int:
        return 2

    def to(self, device: Any, copy: bool = False) -> OnCard:
        return OnCard(self.numbers, str(device))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, comfy: Path) -> dict[str, int]:
    """How much of a card is free, which a test may change."""
    import comfy.model_management

    free = {"bytes": 4000}
    name = "get_free_memory"
    monkeypatch.setattr(comfy.model_management, name, lambda *args: free["bytes"])
    return free


def test_a_quarter_of_the_free_memory_is_for_what_is_kept_and_the_rest_is_offloaded(
    memory: dict[str, int],
):
    from diffusion_path.host.attention import Kept

    card: Any = torch.device("meta")
    kept = Kept()
    for key in range(4):
        kept.put(key, {"keys": OnCard(100), "values": OnCard(100)})  # type: ignore[dict-item]
        memory["bytes"] = 0  # what is kept itself does not count again
    where = [[one.device.type for one in kept._tensors[key].values()] for key in range(4)]
    assert where == [["meta"] * 2, ["meta"] * 2, ["cpu"] * 2, ["cpu"] * 2]
    assert kept.most == 4 * 400
    for key in range(4):  # and comes back from there
        found = kept.get(key, card)
        assert found is not None
        assert [one.device.type for one in found.values()] == ["meta"] * 2
    kept.clear()
    assert kept.get(0, card) is None
    memory["bytes"] = 4000
    kept.put(0, {"keys": OnCard(500)})  # type: ignore[dict-item]
    assert [one.device.type for one in kept._tensors[0].values()] == ["meta"]
    assert kept.most == 4 * 400  # the most at a time


def test_what_is_kept_is_a_copy_and_stands_beside_what_the_key_has(memory: dict[str, int]):
    from diffusion_path.host.attention import Kept

    cpu = torch.device("cpu")
    keys, values = torch.ones(3), torch.zeros(2)
    kept = Kept()
    kept.put("layer", {"keys": keys})
    kept.put("layer", {"values": values})
    keys.zero_()
    found = kept.get("layer", cpu)
    assert found is not None and {*found} == {"keys", "values"}
    assert torch.equal(found["keys"], torch.ones(3))
    assert kept.get("another", cpu) is None
    assert kept.most == 5 * 4


def test_all_of_these_families_are_tested():
    assert {*LAYERS} == {*FAMILIES}
    assert len([*itertools.chain(JOINT, CROSS)]) == len(FAMILIES) == 15
