"""The rows of the table: each technique with its published settings, beside bounds and baselines.

A technique takes a batch of edits and gives their pictures, and the masks it found if it did. To
add one, write a function here, or none where one of these takes the settings, and a line in `ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..demo import MODEL
from ..edits.flow_edit import FAMILIES
from ..host.model import family
from .batch import MODELS, Batch, Counter, node, stock


class Edited(NamedTuple):
    """The edited pictures, an IMAGE (N, H, W, 3); the masks (N, H, W) of those that find one."""

    images: Tensor
    masks: Tensor | None = None


Technique = Callable[[Batch], Edited]


Inversion = Callable[[Batch], Any]
"""From a batch of edits to the path of their sources."""


@dataclass(frozen=True)
class Row:
    """A technique with its settings, under the name it has in the table.

    Attributes:
        kinds: the demo models that it works on, of `MODELS`.
    """

    name: str
    technique: Technique
    kinds: Sequence[str] = MODELS


UNET, FLOW = ("unet",), ("flow",)
"""Rows for one of the demo models alone."""


def nothing(batch: Batch) -> Edited:
    """The lower bound: the source through the autoencoder."""
    return Edited(batch.decode(batch.latent))


def answer(batch: Batch) -> Edited:
    """The upper bound: the rendered answer through the autoencoder."""
    return Edited(batch.decode(batch.encode(batch.after)))


def ksampler(batch: Batch, latent: dict[str, Tensor], denoise: float, cfg: float = 7.5) -> Tensor:
    """The pictures (N, H, W, 3) that ComfyUI's KSampler makes of a LATENT under the new prompt."""
    demo = batch.demo
    latent = stock(
        "KSampler",
        model=demo.model,
        seed=0,
        steps=demo.steps["steps"],
        cfg=cfg,
        sampler_name="euler",
        scheduler="normal" if demo.kind == "unet" else demo.steps["spacing"],
        positive=batch.target,
        negative=batch.empty,
        latent_image=latent,
        denoise=denoise,
    )
    return batch.decode(latent)


def img2img(batch: Batch, denoise: float) -> Edited:
    """SDEdit (Meng et al. 2022, arXiv 2108.01073): ComfyUI's KSampler on the noised source."""
    return Edited(ksampler(batch, batch.latent, denoise))


def diffusers_diffedit(batch: Batch, inversion_cfg: float) -> Edited:
    """DiffEdit as diffusers has it, with its defaults but for the guidance of the inversion.

    One edit at a time: it divides the differences by their mean over the whole batch.
    """
    from diffusers import DDIMInverseScheduler, StableDiffusionDiffEditPipeline

    pipeline = StableDiffusionDiffEditPipeline.from_pretrained(MODEL, safety_checker=None)
    pipeline.inverse_scheduler = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    counter = Counter(pipeline.unet)
    images, masks = [], []
    for edit, before in zip(batch.edits, batch.before, strict=True):
        image = before.movedim(-1, 0)[None]
        mask = pipeline.generate_mask(
            image=image,
            source_prompt=edit.source_prompt,
            target_prompt=edit.target_prompt,
            generator=torch.Generator().manual_seed(0),
        )
        latents = pipeline.invert(
            prompt=edit.source_prompt,
            image=image,
            guidance_scale=inversion_cfg,
            generator=torch.Generator().manual_seed(0),
        ).latents
        picture = pipeline(
            prompt=edit.target_prompt, mask_image=mask, image_latents=latents, output_type="pt"
        ).images
        images.append(picture.movedim(1, -1))
        masks.append(torch.from_numpy(mask).float())
    batch.demo.counter.evaluations += counter.evaluations
    return Edited(torch.cat(images), torch.cat(masks))


def plain(batch: Batch, **sampler: Any) -> Edited:
    """The new prompt from the source's inverted noise; what MDP's four are at weight 0."""
    return Edited(batch.sample(**sampler))


def mdp(batch: Batch, kind: str, sampler: dict[str, Any] | None = None, **edit: Any) -> Edited:
    """One of MDP's four edits, by the name of its node."""
    return Edited(batch.sample(edits=node(kind, **edit), **sampler or {}))


def diffedit(batch: Batch, start: float = 0.2, cfg: float = 7.5, **mask: Any) -> Edited:
    """DiffEdit: find the mask, decode from its encoding ratio `1 - start`, keep the rest."""
    masks = batch.mask(**mask)
    images = batch.sample(edits=node("MaskBlend", mask=masks), start=start, cfg=cfg)
    return Edited(images, masks)


def mdp_in_mask(batch: Batch, mask: dict[str, Any] | None = None, **edit: Any) -> Edited:
    """MDP-ε inside DiffEdit's mask."""
    masks = batch.mask(**mask or {})
    edits = node("MaskBlend", mask=masks, edits=node("MDPEpsilon", **edit))
    return Edited(batch.sample(edits=edits), masks)


def ilvr(batch: Batch, **edit: Any) -> Edited:
    """ILVR, by its node."""
    return Edited(batch.sample(edits=node("ILVR", **edit)))


def prompt_to_prompt(
    batch: Batch,
    blend: dict[str, Any] | None = None,
    reweight: float | None = None,
    flow: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    additions: bool = True,
    **edit: Any,
) -> Edited:
    """Prompt-to-prompt, edit by edit; with local blend, with new words reweighted, with FlowEdit.

    Args:
        blend: the settings of local blend, whose words are those of what changes.
        reweight: the factor of the words that are new.
        flow: the settings of FlowEdit.
        additions: whether to use it also where the new prompt only adds something.
    """
    ways = {} if flow is None else {"cfg": flow_cfg(batch)}
    images, masks = [], []
    for one in batch.each():
        old, new = one.changed()
        edits: Any = ()
        if old or additions:
            edits = node("PromptToPrompt", prompts=one.pair, **edit)
        if reweight is not None and new:
            lines = "\n".join(f"{words}: {reweight}" for words in new.split(", "))
            # The authors' equaliser acts only while maps are injected.
            until = {"end": edit.get("cross_replace", 1.0)}
            edits = node("Reweight", prompts=one.pair, words=lines, edits=edits, **until)
        if blend is not None:
            words = {"source_words": old, "target_words": new}
            edits = node("LocalBlend", prompts=one.pair, edits=edits, **words | blend)
        if flow is not None:
            edits = node("FlowEdit", edits=edits, **flow)
        image, mask = one.sample_with_mask(edits=edits, **ways | (sampler or {}))
        images.append(image)
        masks.append(mask)
    return Edited(torch.cat(images), None if blend is None else torch.cat(masks))


BLEND: dict[str, Any] = {}
"""Local blend with its own settings."""


def on(batch: Batch, inversion: Inversion, technique: Technique) -> Edited:
    """A technique on a path of another making, whose cost counts."""
    return technique(batch.inverted(inversion))


FAST: dict[str, Any] = {"method": "x0", "maps": 20, "blur": 1}
"""FastDiffEdit's published settings."""


def ddim(batch: Batch, **inversion: Any) -> Any:
    """DDIM inversion, and with its settings fixed-point inversion, ReNoise and other solvers."""
    ways = {
        "model": batch.demo.model,
        "positive": batch.source,
        "latent_image": batch.latent,
        **batch.demo.steps,
    }
    return node("DDIMInversion", **ways | inversion)[0]


def straight(batch: Batch, **path: Any) -> Any:
    """The straight path, which costs no evaluation; with the steps of the model's family."""
    ways = {"model": batch.demo.model, "positive": batch.source, "latent_image": batch.latent}
    return node("StraightPath", **ways | path)


def ddpm(batch: Batch, **inversion: Any) -> Any:
    """Edit-friendly DDPM inversion, by its paper's 100 steps."""
    ways = {
        "model": batch.demo.model,
        "positive": batch.source,
        "negative": batch.empty,
        "latent_image": batch.latent,
        "spacing": batch.demo.steps["spacing"],
    }
    return node("DDPMInversion", **ways | inversion)


def null_text(batch: Batch, **inversion: Any) -> Any:
    """Null-text inversion of the DDIM path."""
    ways = {"model": batch.demo.model, "path": batch.path, "negative": batch.empty}
    return node("NullTextInversion", **ways | inversion)[0]


def negative_prompt(batch: Batch, **inversion: Any) -> Any:
    """Negative-prompt inversion of the DDIM path."""
    return node("NegativePromptInversion", path=batch.path, **inversion)[0]


def flow_cfg(batch: Batch) -> float:
    """The guidance that FlowEdit's settings give the target on this model."""
    return FAMILIES[family(batch.demo.model)].cfg


def flow_edit(
    batch: Batch,
    path: Inversion = straight,
    mask: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    true_mask: bool = False,
    **edit: Any,
) -> Edited:
    """FlowEdit (arXiv 2412.08629), with its settings for the model.

    Args:
        path: straight, or an inverted one, of which each step is corrected then.
        mask: the settings of DiffEdit's mask, if the edit is to stay inside it.
        true_mask: whether it is to stay inside the true one instead.
    """
    batch = batch.inverted(path)
    edits, masks = node("FlowEdit", **edit), None
    if mask is not None or true_mask:
        masks = batch.truth if true_mask else batch.mask(**mask or {})
        edits = node("MaskBlend", mask=masks, edits=edits)
    return Edited(batch.sample(edits=edits, **{"cfg": flow_cfg(batch)} | (sampler or {})), masks)


def inpainting(batch: Batch, cfg: float = 7.5) -> Edited:
    """ComfyUI's own inpainting, inside the true mask: a noise mask on the latent, and KSampler."""
    masked = stock("SetLatentNoiseMask", samples=batch.latent, mask=batch.truth)
    return Edited(ksampler(batch, masked, 1.0, cfg), batch.truth)


def in_true_mask(
    batch: Batch,
    path: Inversion = straight,
    resample: dict[str, Any] | None = None,
    **sampler: Any,
) -> Edited:
    """The new prompt inside the true mask: blended diffusion (arXiv 2206.02779), and with settings
    of Resample RePaint (arXiv 2201.09865).

    Args:
        path: straight, so that the noise knows nothing of what was there before.
    """
    batch = batch.inverted(path)
    edits = node("MaskBlend", mask=batch.truth)
    if resample is not None:
        edits = node("Resample", edits=edits, **resample)
    return Edited(batch.sample(edits=edits, **sampler), batch.truth)


def source_features(
    batch: Batch, path: Inversion = ddim, sampler: dict[str, Any] | None = None, **edit: Any
) -> Edited:
    """One of the methods of Source Features along an inverted path."""
    edits = node("SourceFeatures", **edit)
    return Edited(batch.inverted(path).sample(edits=edits, **sampler or {}))


def midpoint(batch: Batch) -> Any:
    """RF-Solver's inversion."""
    return ddim(batch, solver="midpoint")


def kv_edit(batch: Batch, true_mask: bool = False) -> Edited:
    """KV-Edit without inversion (arXiv 2502.17363): FlowEdit, and the source's background in the
    attention."""
    batch = batch.inverted(straight)
    masks = batch.truth if true_mask else batch.mask()
    edits = node("KeepBackground", mask=masks, edits=node("FlowEdit"))
    return Edited(batch.sample(edits=edits, cfg=flow_cfg(batch)), masks)


def imagic(batch: Batch, strength: float = 0.6, **fit: Any) -> Edited:
    """Imagic's embeddings (arXiv 2210.09276) in place of the two prompts of FlowEdit."""
    ways = {"steps": 150, "learning_rate": 5e-3, "strength": strength} | fit
    given = {"model": batch.demo.model, "positive": batch.target, "latent_image": batch.latent}
    positive, source, _ = node("OptimizePrompt", **given | ways)
    path = straight(batch, positive=source)
    latent, _ = batch.walk(path, positive=positive, cfg=flow_cfg(batch), edits=node("FlowEdit"))
    return Edited(batch.decode(latent))


def flow_align(batch: Batch, omega: float = 2.0, anchor: float = 0.01, **edit: Any) -> Edited:
    """FlowAlign (arXiv 2505.23145): the source's prompt is the negative, and each step is pulled
    to the source."""
    ways = {"cfg": omega, "negative": batch.source}
    return flow_edit(batch, sampler=ways, source_cfg=1.0, anchor=anchor, **edit)


def edit_friendly(
    batch: Batch, path: Inversion = ddpm, cfg: float = 15.0, start: float = 0.36
) -> Edited:
    """Edit-friendly DDPM inversion (arXiv 2304.06140): the source's noise, the new prompt."""
    return plain(batch.inverted(path), cfg=cfg, start=start, eta=1.0)


def h_space(batch: Batch, **edit: Any) -> Edited:
    """Asyrp's step (arXiv 2210.10960) with the difference of the two prompts, along the inverted
    path under the source's own prompt."""
    edits = node("HSpace", towards=batch.target, **edit)
    return Edited(batch.sample(edits=edits, positive=batch.source, cfg=1.0))


def clip_guidance(batch: Batch, scale: float = 100.0, **edit: Any) -> Edited:
    """CLIP guidance (SDG, arXiv 2112.05744) to the new prompt, along the inverted path under the
    source's own prompt."""
    from ..demo.loader import load_clip_vision

    given = {"vae": batch.demo.vae, "clip": batch.demo.clip, "clip_vision": load_clip_vision()}
    images = []
    for one in batch.each():
        wanted = {"text": one.edit.target_prompt, "scale": scale, "cutouts": 0}
        edits = node("Guidance", guide="prompt", **given, **wanted | edit)
        images.append(one.sample(edits=edits, positive=one.source, cfg=1.0))
    return Edited(torch.cat(images))


def ledits(batch: Batch) -> Any:
    """LEDITS++'s inversion, without a prompt."""
    return ddpm(batch, positive=batch.empty, steps=50, cfg=1.0, solver="sde-dpm++")


def concepts(batch: Batch, scale: float = 5.0, start: float = 0.15, **concept: Any) -> Edited:
    """LEDITS++ (arXiv 2311.16711): what is new is added, what is no more removed; the picture as a
    whole has no prompt."""
    images = []
    for one in batch.inverted(ledits).each():
        edits: Any = ()
        for words, signed in zip(one.changed(), (-scale, scale), strict=True):
            if words:
                given = {"clip": batch.demo.clip, "prompt": words, "scale": signed, **concept}
                edits = node("Concept", edits=edits, **given)
        ways = {"positive": one.empty, "cfg": 1.0, "start": start, "eta": 1.0}
        images.append(one.sample(edits=edits, **ways))
    return Edited(torch.cat(images))


def uni_edit(batch: Batch, alpha: float = 0.6, omega: float = 5.0, **path: Any) -> Edited:
    """Uni-Inv up to `alpha` of the schedule, and Uni-Edit from there (arXiv 2504.13109)."""
    inverted = batch.inverted(partial(ddim, solver="uni", strength=alpha, **path))
    edits = node("UniEdit", alpha=alpha, omega=omega)
    return Edited(inverted.sample(edits=edits, cfg=1.0))


def pull_to_source(
    batch: Batch, path: Inversion = ddim, sampler: dict[str, Any] | None = None, **edit: Any
) -> Edited:
    """RF-Inversion's controlled way back (arXiv 2410.10792) along any path."""
    edits = node("PullToSource", **edit)
    return Edited(batch.inverted(path).sample(edits=edits, **sampler or {}))


def rf_inversion(batch: Batch) -> Any:
    """RF-Inversion's controlled way up: half towards plain noise, without a prompt."""
    return ddim(batch, positive=batch.empty, solver="euler", gamma=0.5)


DIRECT = "direct"
INVERSIONS: dict[str, Inversion] = {
    "DDIM": ddim,
    "fixed point, 3 iterations": partial(ddim, fixed_point_iterations=3),
    "ReNoise, 3 iterations, average of 2": partial(ddim, fixed_point_iterations=3, average=2),
    "negative-prompt": negative_prompt,
    "negative-prompt, proximal l0": partial(negative_prompt, proximal="l0"),
    "negative-prompt, proximal l1": partial(negative_prompt, proximal="l1"),
    DIRECT: ddim,
}
"""The inversions of the table beside null-text, which is timed."""

ROWS: Sequence[Row] = (
    Row("source, not edited", nothing),
    Row("the truth itself", answer),
    Row("img2img (SDEdit), denoise 0.5", partial(img2img, denoise=0.5)),
    Row("img2img (SDEdit), denoise 0.6", partial(img2img, denoise=0.6)),
    Row("img2img (SDEdit), denoise 0.8", partial(img2img, denoise=0.8)),
    Row("diffusers' DiffEdit", partial(diffusers_diffedit, inversion_cfg=7.5), UNET),
    Row(
        "diffusers' DiffEdit, inverted at guidance 1",
        partial(diffusers_diffedit, inversion_cfg=1),
        UNET,
    ),
    Row("plain sampling from the inverted noise", plain),
    Row("MDP-ε", partial(mdp, kind="MDPEpsilon")),
    Row("MDP-c", partial(mdp, kind="MDPCondition")),
    Row("MDP-x", partial(mdp, kind="MDPLatent")),
    Row("MDP-β", partial(mdp, kind="MDPGuidance")),
    Row("ILVR, coarse size 2", partial(ilvr, factor=2)),
    Row("DiffEdit", diffedit),
    Row("DiffEdit, tuned: threshold 0.3, start 0", partial(diffedit, threshold=0.3, start=0.0)),
    Row("FastDiffEdit", partial(diffedit, **FAST)),
    Row("DiffEdit, mask by denoising twice", partial(diffedit, method="denoise", maps=2)),
    Row("MDP-ε in DiffEdit's mask", mdp_in_mask),
    Row(
        "MDP-ε in DiffEdit's mask, tuned: threshold 0.3, end 0.3",
        partial(mdp_in_mask, mask={"threshold": 0.3}, end=0.3),
    ),
    Row("FlowEdit", flow_edit),
    Row("FlowEdit in DiffEdit's mask", partial(flow_edit, mask={})),
    Row("FlowEdit on the inverted path", partial(flow_edit, path=ddim)),
    Row("FlowEdit under Imagic's embeddings", imagic),
    Row("FlowAlign", flow_align),
    Row("edit-friendly DDPM inversion", edit_friendly),
    Row("Concept (LEDITS++)", concepts),
    Row("h-space, Asyrp's step", h_space, UNET),
    Row("h-space, whole step, scale 2.5", partial(h_space, scale=2.5, shifted="whole step"), UNET),
    Row("CLIP guidance to the new prompt", clip_guidance),
    Row("Uni-Edit, alpha 0.6", uni_edit),
    Row("Uni-Edit, alpha 0.8", partial(uni_edit, alpha=0.8)),
    Row("Uni-Edit, alpha 0.6, 15 steps", partial(uni_edit, steps=15)),
    Row("Uni-Edit, alpha 0.8, 15 steps", partial(uni_edit, alpha=0.8, steps=15)),
    Row("RF-Inversion", partial(pull_to_source, path=rf_inversion), FLOW),
    Row("prompt-to-prompt", prompt_to_prompt),
    Row("prompt-to-prompt and local blend", partial(prompt_to_prompt, blend=BLEND)),
    Row(
        "prompt-to-prompt and FlowEdit",
        partial(on, inversion=straight, technique=partial(prompt_to_prompt, flow={})),
    ),
    Row(
        "prompt-to-prompt and FlowEdit; FlowEdit alone where something is added",
        partial(
            on, inversion=straight, technique=partial(prompt_to_prompt, flow={}, additions=False)
        ),
    ),
    Row(
        "prompt-to-prompt, local blend and FlowEdit",
        partial(on, inversion=straight, technique=partial(prompt_to_prompt, blend=BLEND, flow={})),
    ),
    Row("MasaCtrl", partial(source_features, preset="MasaCtrl")),
    Row("Plug-and-Play", partial(source_features, preset="Plug-and-Play")),
    Row("RF-Solver-Edit", partial(source_features, path=midpoint, preset="RF-Solver"), FLOW),
    Row("Stable Flow", partial(source_features, preset="Stable Flow")),
    Row("StyleAligned", partial(source_features, preset="StyleAligned")),
    Row("FlowEdit with Keep Background in DiffEdit's mask", kv_edit),
    Row("FlowEdit with Keep Background in the true mask", partial(kv_edit, true_mask=True)),
    Row("FlowEdit with Mask Blend in the true mask", partial(flow_edit, true_mask=True)),
    Row("inpainting (Set Latent Noise Mask) in the true mask", inpainting),
    Row("Mask Blend on a straight path in the true mask", in_true_mask),
    Row(
        "Mask Blend on a straight path in the true mask, guidance 1",
        partial(in_true_mask, cfg=1.0),
    ),
    Row("Resample (RePaint) in the true mask", partial(in_true_mask, resample={})),
    Row(
        "Resample (RePaint) in the true mask, guidance 1",
        partial(in_true_mask, resample={}, cfg=1.0),
    ),
    Row(
        "prompt-to-prompt, PIE-Bench's settings: refine, 0.4, 0.6, new words twice",
        partial(prompt_to_prompt, mode="refine", cross_replace=0.4, self_replace=0.6, reweight=2.0),
        UNET,
    ),
    Row(
        "null-text; prompt-to-prompt",
        partial(on, inversion=null_text, technique=prompt_to_prompt),
        UNET,
    ),
    Row(
        "null-text from the empty prompt; prompt-to-prompt",
        partial(
            on, inversion=partial(null_text, start_from="negative"), technique=prompt_to_prompt
        ),
        UNET,
    ),
    Row(
        "null-text; prompt-to-prompt and local blend",
        partial(on, inversion=null_text, technique=partial(prompt_to_prompt, blend=BLEND)),
        UNET,
    ),
    Row(
        "negative-prompt; prompt-to-prompt",
        partial(on, inversion=negative_prompt, technique=prompt_to_prompt),
        UNET,
    ),
    Row(
        "negative-prompt, proximal l0; prompt-to-prompt",
        partial(on, inversion=partial(negative_prompt, proximal="l0"), technique=prompt_to_prompt),
        UNET,
    ),
    Row(
        "negative-prompt; prompt-to-prompt and local blend",
        partial(on, inversion=negative_prompt, technique=partial(prompt_to_prompt, blend=BLEND)),
        UNET,
    ),
)
