"""Prompt-to-prompt's two edits of attention maps as nodes: injection and re-weighting."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention import align
from ..attention.blocks import check_blocks
from ..attention.words import word_values, word_windows
from ..edits import prompt_to_prompt
from .curves import curve_input, told_curve, weight_of
from .support import (
    AUTO,
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
    id_of,
    known_before,
    names_itself,
    prompts_input,
    window_inputs,
)

ALIGN = {
    "auto": align.automatic,
    "replace": align.replace,
    "refine": align.refine,
}
PADDING = ("by position", "from padding")
STRONGEST = 100
"""The largest factor of a word. Above about 10 a picture breaks already."""


class PromptToPrompt(io.ComfyNode):
    """Edit by the words that change, with the source's attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PromptToPrompt",
            display_name="Exchange Words (Prompt-to-Prompt)",
            category=f"{CATEGORY}/attention",
            description="Changes words and keeps the layout: the words of the new prompt get the "
            "attention that the source's words have, for a part of the sampling.",
            search_aliases=[
                "P2P",
                "prompt2prompt",
                "swap",
                "replace object",
                "cross attention control",
            ],
            inputs=[
                prompts_input(),
                io.Combo.Input(
                    "mode",
                    options=list(ALIGN),
                    default="auto",
                    tooltip="Which words belong together. auto: equal words, and words that "
                    "stand in place of others; all others are new. replace: word by "
                    "word, for prompts with the same number of words. refine: equal "
                    "words only.",
                    display_name="match words",
                ),
                fraction_input(
                    "cross_replace",
                    0.8,
                    "For how much of the sampling the source's cross-attention is used, 0 to 1. "
                    "Higher keeps more of the source's layout. 0 = off. The paper's "
                    "cross_replace.",
                    label="keep layout until",
                ),
                fraction_input(
                    "self_replace",
                    0.4,
                    "For how much of the sampling the source's self-attention is used, 0 to 1. "
                    "Higher keeps shapes and textures; lower lets an object change its shape. 0 "
                    "= off. The paper's self_replace.",
                    label="keep shapes until",
                ),
                io.String.Input(
                    "word_overrides",
                    default="",
                    multiline=True,
                    tooltip='Another end, or range, of "keep layout until" for single words of '
                    'the new prompt, one per line: "zebra: 0.6" or "zebra: 0.2-0.6". '
                    "Lower gives a word more freedom.",
                    display_name="for single words",
                    placeholder="zebra: 0.6",
                ),
                edits_input(),
                fraction_input(
                    "cross_start",
                    0.0,
                    "Where cross-attention replacement begins: 0 = full noise, 1 = clean picture.",
                    advanced=True,
                    optional=True,
                    label="keep layout from",
                ),
                fraction_input(
                    "self_start",
                    0.0,
                    "Where self-attention replacement begins: 0 = full noise, 1 = clean picture.",
                    advanced=True,
                    optional=True,
                    label="keep shapes from",
                ),
                io.Int.Input(
                    "self_limit",
                    default=32,
                    min=0,
                    max=1024,
                    tooltip="Largest attention map (side length) in which self-attention is "
                    "replaced, for a 512 x 512 picture; it scales with the picture. "
                    "Smaller keeps only the coarse layout. The paper's code uses 16, "
                    "null-text inversion's 32.",
                    optional=True,
                    advanced=True,
                    display_name="largest map for shapes",
                ),
                io.Combo.Input(
                    "padding",
                    options=list(PADDING),
                    default=PADDING[0],
                    tooltip="Which attention the padding tokens get that fill a prompt up to 77. "
                    "by position (the paper's code): the attention of the source token "
                    "at the same position, which can be a word if the source is longer. "
                    "from padding: that of the source's padding only.",
                    optional=True,
                    advanced=True,
                    display_name="attention of padding",
                ),
                curve_input("for how much of the source's attention is used"),
                io.Float.Input(
                    "joint_replace",
                    display_name="keep both until",
                    default=AUTO,
                    min=AUTO,
                    max=1.0,
                    step=0.01,
                    tooltip="For models whose text and picture share one attention (Flux, SD3, "
                    "Qwen-Image, Z-Image), in place of the inputs above: for how much of the "
                    "sampling the source's attention is used, 0 to 1. Higher keeps more of the "
                    "layout and shapes. -1 = up to 0.2, or just after FlowEdit begins.",
                    optional=True,
                ),
                io.String.Input(
                    "joint_blocks",
                    display_name="blocks",
                    default="",
                    tooltip='For the same models, in which blocks, such as "double 0-18" or '
                    '"0%-66%". Empty = all, or those that suit the model.',
                    placeholder="0%-66%",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(
        cls,
        cross_replace,
        self_replace,
        word_overrides,
        cross_start=0.0,
        self_start=0.0,
        joint_replace=AUTO,
        joint_blocks="",
    ) -> None:
        if AUTO < joint_replace < 0:
            raise ValueError(f'"keep both until" is {joint_replace:g}; use 0 to 1, or -1')
        check_blocks(joint_blocks)
        if cross_replace:
            check_window(cross_start, cross_replace, ('"keep layout from"', '"keep layout until"'))
        if self_replace:
            check_window(self_start, self_replace, ('"keep shapes from"', '"keep shapes until"'))
        word_windows(word_overrides)

    @classmethod
    @names_itself
    def execute(
        cls,
        prompts,
        mode,
        cross_replace,
        self_replace,
        word_overrides,
        edits=(),
        cross_start=0.0,
        self_start=0.0,
        self_limit=32,
        padding=PADDING[0],
        weight_curve=None,
        joint_replace=AUTO,
        joint_blocks="",
    ) -> io.NodeOutput:
        alignment = ALIGN[mode](prompts)
        if padding == "by position":
            alignment = align.padding_by_position(prompts, alignment)
        windows = [(cross_start, cross_replace), (self_start, self_replace)]
        active = [(start, end) for start, end in windows if start < end] or [(0.0, 1.0)]
        factor = weight_of(weight_curve, min(active)[0], max(end for _, end in active))
        edit = prompt_to_prompt.PromptToPrompt(
            pair=prompts,
            alignment=alignment,
            cross_replace=windows[0],
            self_replace=windows[1],
            words=tuple(
                (prompts.target.columns(word), (first, last))
                for word, first, last in word_windows(word_overrides)
            ),
            self_limit=self_limit,
            weight_curve=factor,
            joint_replace=None if joint_replace == AUTO else joint_replace,
            joint_blocks=joint_blocks,
            told_at=id_of(cls),
        )

        def used(x: float) -> float:
            return factor(x) if factor and any(a <= x < b for a, b in active) else 0.0

        return io.NodeOutput((*edits, edit), ui=told_curve(cls, factor, used))


class Reweight(io.ComfyNode):
    """Make words stronger or weaker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Reweight",
            display_name="More or Less of a Word (Reweight)",
            category=f"{CATEGORY}/attention",
            description="Makes words of the new prompt stronger or weaker by scaling their "
            "attention. After Prompt-to-Prompt, everything else stays as it was.",
            search_aliases=[
                "P2P",
                "prompt weight",
                "emphasis",
                "slider",
                "equalizer",
                "attention scale",
            ],
            inputs=[
                prompts_input(),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    tooltip='Words of the new prompt and their factors, one per line: "snow: 2". '
                    "Above 1 = more, below 1 = less, below 0 = the opposite, which models with a "
                    "joint attention (Flux, SD3, Qwen-Image) cannot have.",
                    placeholder="snow: 2",
                ),
                edits_input(),
                *window_inputs(
                    0.0,
                    1.0,
                    "Where it begins: 0 = full noise, 1 = clean picture.",
                    "Where it ends. Earlier changes the layout more than the details.",
                    advanced=True,
                ),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, words, start=0.0, end=1.0) -> None:
        check_window(start, end)
        factors = word_values(words)
        if not factors:
            raise ValueError('words is empty; write a line such as "snow: 2"')
        for word, factor in factors:
            if abs(factor) > STRONGEST:
                raise ValueError(
                    f'"{word}: {factor:g}" leaves nothing of the picture; use -{STRONGEST} to '
                    f"{STRONGEST}, such as 2"
                )

    @classmethod
    @names_itself
    def execute(cls, prompts, words, edits=(), start=0.0, end=1.0) -> io.NodeOutput:
        scales = prompt_to_prompt.scales(prompts.target, word_values(words))
        edit = prompt_to_prompt.Reweight(prompt=prompts.target, scales=scales, start=start, end=end)
        return io.NodeOutput((*edits, edit))
