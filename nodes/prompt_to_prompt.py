"""Prompt-to-prompt's two edits of attention maps as nodes: injection and re-weighting."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention import align
from ..attention.words import word_values, word_windows
from ..edits import prompt_to_prompt
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
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


class PromptToPrompt(io.ComfyNode):
    """Edit by the words that change, with the source's attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PromptToPrompt",
            display_name="Exchange Words (Prompt-to-Prompt)",
            category=f"{CATEGORY}/attention",
            description="Gives the new prompt's words the attention that the source's words have, "
            "for a part of the path: what is where stays, and what it is follows the new prompt.",
            search_aliases=["P2P", "prompt2prompt", "cross attention control", "word swap"],
            inputs=[
                prompts_input(),
                io.Combo.Input(
                    "mode",
                    options=list(ALIGN),
                    default="auto",
                    tooltip="auto: equal words belong together, words in the place of others take "
                    "their attention, the rest is new. The paper's two: replace goes word by word, "
                    "for prompts with as many words; refine has every word new that is not equal.",
                ),
                fraction_input(
                    "cross_replace",
                    0.8,
                    "Up to where the words get the source's attention. Higher keeps more of the "
                    "source's layout; 0 is off.",
                ),
                fraction_input(
                    "self_replace",
                    0.4,
                    "Up to where the picture's parts attend to each other as in the source. Higher "
                    "keeps shapes and textures; lower lets a thing take another form; 0 is off.",
                ),
                io.String.Input(
                    "word_overrides",
                    default="",
                    multiline=True,
                    tooltip="Another end, or window, of cross_replace for words of the new prompt, "
                    'one a line: "zebra: 0.6" or "zebra: 0.2-0.6". Lower gives a word more '
                    "freedom.",
                ),
                edits_input(),
                fraction_input(
                    "cross_start",
                    0.0,
                    "Where cross_replace begins; 0 is the noisy end of the path.",
                    advanced=True,
                    optional=True,
                ),
                fraction_input(
                    "self_start",
                    0.0,
                    "Where self_replace begins; 0 is the noisy end of the path.",
                    advanced=True,
                    optional=True,
                ),
                io.Int.Input(
                    "self_limit",
                    default=32,
                    min=0,
                    max=1024,
                    tooltip="self_replace works in layers of at most as many by as many pixels, "
                    "for a picture of 512 by 512; it grows with larger ones. Smaller keeps only "
                    "the coarse layout of the source: the paper's code has 16, that of null-text "
                    "inversion 32.",
                    optional=True,
                    advanced=True,
                ),
                io.Combo.Input(
                    "padding",
                    options=list(PADDING),
                    default=PADDING[0],
                    tooltip="Which attention the padding gets, the empty tokens that fill a prompt "
                    "up to 77. by position, as in the paper's code: that of the source's token in "
                    "the same place, which can be a word if the source is the longer prompt. from "
                    "padding: that of the source's padding only.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[edits_output()],
        )

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
    ) -> io.NodeOutput:
        if cross_replace:
            check_window(cross_start, cross_replace, ("cross_start", "cross_replace"))
        if self_replace:
            check_window(self_start, self_replace, ("self_start", "self_replace"))
        alignment = ALIGN[mode](prompts)
        if padding == "by position":
            alignment = align.padding_by_position(prompts, alignment)
        edit = prompt_to_prompt.PromptToPrompt(
            pair=prompts,
            alignment=alignment,
            cross_replace=(cross_start, cross_replace),
            self_replace=(self_start, self_replace),
            words=tuple(
                (prompts.target.columns(word), (first, last))
                for word, first, last in word_windows(word_overrides)
            ),
            self_limit=self_limit,
        )
        return io.NodeOutput((*edits, edit))


class Reweight(io.ComfyNode):
    """Make words stronger or weaker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Reweight",
            display_name="More or Less of a Word (Reweight)",
            category=f"{CATEGORY}/attention",
            description="Multiplies the attention to words of the new prompt: more of a word, or "
            "less, in the places where it is. Behind Prompt-to-Prompt the rest stays as it was.",
            search_aliases=["P2P", "equalizer", "word weight", "emphasis", "attention scale"],
            inputs=[
                prompts_input(),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    tooltip='Words of the new prompt and their factors, one a line: "snow: 2". '
                    "Above 1 is more of it, below 1 less, below 0 the opposite.",
                ),
                edits_input(),
                *window_inputs(
                    0.0,
                    1.0,
                    "Where the window begins; 0 is the noisy end of the path.",
                    "Where the window ends. Earlier changes the layout more than the details.",
                    advanced=True,
                ),
            ],
            outputs=[edits_output()],
        )

    @classmethod
    @names_itself
    def execute(cls, prompts, words, edits=(), start=0.0, end=1.0) -> io.NodeOutput:
        check_window(start, end)
        factors = word_values(words)
        if not factors:
            raise ValueError('words is empty; write a line such as "snow: 2"')
        scales = prompt_to_prompt.scales(prompts.target, factors)
        edit = prompt_to_prompt.Reweight(prompt=prompts.target, scales=scales, start=start, end=end)
        return io.NodeOutput((*edits, edit))
