"""Random workflows in API format, built backwards from the nodes that are tested.

The nodes and their inputs come from a server's /object_info. The same seed and the same answer
give the same workflows.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

from .host import Workflow

OURS = "DiffusionPath_"
LOADER = OURS + "DemoModel"

PATCHES = """
APG CFGNorm CFGOverride CFGZeroStar ContextWindowsManual DifferentialDiffusion EasyCache
FreSca FreeU FreeU_V2 HyperTile LazyCache Mahiro ModelComputeDtype ModelMergeSimple
ModelNoiseScale ModelSamplingAuraFlow ModelSamplingContinuousEDM ModelSamplingContinuousV
ModelSamplingDiscrete ModelSamplingFlux ModelSamplingSD3 NAGuidance PatchModelAddDownscale PerpNeg
PerturbedAttentionGuidance RenormCFG RescaleCFG SelfAttentionGuidance SkipLayerGuidanceDiT
SkipLayerGuidanceDiTSimple SkipLayerGuidanceSD3 TCFG TemporalScoreRescaling TomePatchModel
UNetCrossAttentionMultiply UNetSelfAttentionMultiply VideoLinearCFGGuidance
"""

STOCK = """
CLIPSetLastLayer CLIPAttentionMultiply CLIPTextEncode
ConditioningAverage ConditioningCombine ConditioningConcat ConditioningSetArea
ConditioningSetAreaPercentage ConditioningSetAreaStrength ConditioningSetMask
ConditioningSetTimestepRange ConditioningZeroOut InpaintModelConditioning
EmptyLatentImage EmptySD3LatentImage EmptyHunyuanLatentVideo LatentBatch LatentBlend LatentCrop
LatentFlip LatentFromBatch LatentMultiply LatentRotate LatentUpscale RepeatLatentBatch
SetLatentNoiseMask VAEEncode VAEEncodeForInpaint VAEDecode EmptyImage ImageCrop ImageInvert
ImageScale ImageBatch LoadImage LoadImageMask
SolidMask CropMask InvertMask FeatherMask GrowMask ImageToMask MaskComposite MaskToImage
ThresholdMask KSampler KSamplerAdvanced SamplerCustom SamplerCustomAdvanced BasicGuider CFGGuider
DualCFGGuider RandomNoise DisableNoise KSamplerSelect SamplerEulerAncestral
AlignYourStepsScheduler BasicScheduler BetaSamplingScheduler ExponentialScheduler FlipSigmas
KarrasScheduler ManualSigmas PolyexponentialScheduler SDTurboScheduler SetFirstSigma SplitSigmas
SplitSigmasDenoise VPScheduler
"""

PROMPTS = [
    "a red apple on a white background",
    "a green apple on a white background",
    "a cat and a star",
    "a (red:1.3) rose",
    "apple " * 90,
    "",
]
# The usual text of an input, and others.
TEXTS = {
    "phrase": ["apple", "a", "white background", ""],
    "Reweight words": ["apple: 2", "apple: 0\na: -1", "a, apple", "zebra: 2", ""],
    "AttentionMaps words": ["", "apple", "a, apple", "zebra", "apple: 2"],
    "word_overrides": ["", "apple: 0.2-0.6", "apple: 0.5\na: 0", "zebra: 1"],
    "source_words": ["apple", "", "a, apple", "zebra"],
    "target_words": ["apple", "", "a, apple", "zebra"],
    "subtract_words": ["", "white", "apple"],
    "filename_prefix": ["diffusion_path/fuzz"],
    "sigmas": ["10, 5, 2, 0", "14.6, 1", "1", "0, 3, 9", ""],
    **dict.fromkeys(("text", "source_prompt", "target_prompt", "prompt"), PROMPTS),
}
# What a step or a picture more costs time: few of them.
COUNTS = {
    "steps": (1, 4),
    "frames": (1, 4),
    "maps": (1, 2),
    "inner_steps": (1, 2),
    "fixed_point_iterations": (0, 2),
    "average": (1, 3),
    "batch_size": (1, 2),
    "amount": (1, 2),
    "length": (1, 2),
    "blur": (0, 4),
    "resolution": (0, 32),
    "left": (0, 16),
    "top": (0, 16),
    "right": (0, 16),
    "bottom": (0, 16),
    "x": (0, 32),
    "y": (0, 32),
    "grow_mask_by": (0, 8),
    "expand": (-8, 8),
    "start_at_step": (0, 3),
    "step": (0, 4),
}
NUMBERS: list[Any] = [
    math.nan, math.inf, -math.inf, -1, 0, 0.5, 1e30, -1e30, 1e-30, 1e308, 2**31, 2**63, 2**64,
    10**30, True, None, "", "nan", "0.5", "x", {}, [],
]  # fmt: skip
NAMES: list[Any] = [
    "", " ", "\n", "x" * 300, "ü" * 200, "x" * 5000, "x" * 5000 + ".safetensors", "a\0b", "\ud800",
    "..", ".", "~", "../x", "../../etc/passwd", "/etc/passwd", "a/b/c/d", "a/../../b", "C:\\x",
    "%date:yyyy%", "%width%", "x.safetensors [output]", "x\0.safetensors", "[output]", " [output]",
    "[input]", "/", "//x", "🍎", 7, None, math.nan, {},
]  # fmt: skip
STRINGS: list[Any] = [
    "(a:nan)", "(a:inf)", "(a:-1e30)", "(a:1e30)", "(a:0)", "((((((a", "))))", "(a", "\\(",
    "embedding:../x", "embedding:", "apple: nan", "apple: inf", "apple: 1e999", "apple: 1e30",
    "apple:", ": 2", "apple: x", "apple: 1-0", "apple: -1--2", "apple: 2\napple: 3", "{a|b}", "{",
    "", " ", "\n", ",", ":", ",,", "a\0b", "\ud800", "🍎", "e\u0301", "\u202eapple", "x" * 5000,
    "red " * 2000, 7, None, math.nan, {},
]  # fmt: skip


@dataclass(eq=False)
class Term:
    """A node with what goes into it: plain values, and (Term, slot) for a link."""

    kind: str
    inputs: dict[str, Any]


Link = tuple[Term, int]


def typed_inputs(info: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any], bool]]:
    """The type, the settings, and whether it is required, of each input of a node."""
    inputs = {}
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            options = dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], dict) else {}
            kind = spec[0]
            if isinstance(kind, list):
                kind, options = "COMBO", options | {"options": kind}
            inputs[name] = (kind, options, section == "required")
    return inputs


def workflow_of(roots: list[Term]) -> Workflow:
    """Terms as a workflow; a term that occurs twice is one node."""
    numbers: dict[Term, str] = {}
    workflow: Workflow = {}

    def number(term: Term) -> str:
        if term not in numbers:
            inputs = {
                name: [number(value[0]), value[1]] if isinstance(value, tuple) else value
                for name, value in term.inputs.items()
            }
            numbers[term] = str(len(numbers) + 1)
            workflow[numbers[term]] = {"class_type": term.kind, "inputs": inputs}
        return numbers[term]

    for root in roots:
        number(root)
    return workflow


class Grammar:
    """Makes one workflow after another.

    Attributes:
        inputs: of each node that may occur, its inputs.
        outputs: of each node that may occur, its outputs' types.
        producers: of each type, the nodes and slots that give it.
    """

    def __init__(
        self,
        info: dict[str, Any],
        seed: int,
        files: list[list[str]],
        pictures: dict[str, tuple[int, int]],
    ) -> None:
        """Keep what the server knows, groups of names for Load Path, and pictures with sizes."""
        self.random = Random(seed)
        self.files, self.pictures = files, pictures
        known = [name for name in info if name.startswith(OURS)]
        known += [name for name in (PATCHES + STOCK).split() if name in info]
        self.inputs = {name: typed_inputs(info[name]) for name in known}
        self.outputs: dict[str, list[str]] = {name: info[name]["output"] for name in known}
        self.sinks = [name for name in known if info[name].get("output_node")]
        self.producers: dict[str, list[tuple[str, int]]] = {}
        for name, types in self.outputs.items():
            for slot, kind in enumerate(types):
                self.producers.setdefault(str(kind), []).append((name, slot))
        self.depths = self._depths()
        self.used: Counter[str] = Counter()
        self.loader = Term(LOADER, {})
        self._begin()

    def _depths(self) -> dict[str, int]:
        """How deep the smallest term of each node is."""
        depths = {OURS + "LoadPath": 3}
        for _ in self.inputs:
            for name, inputs in self.inputs.items():
                needed = [kind for kind, _, required in inputs.values() if required]
                below = [
                    min((depths.get(maker, 99) for maker, _ in self.producers[kind]), default=99)
                    for kind in needed
                    if kind in self.producers and kind not in ("STRING", "INT", "FLOAT")
                ]
                depths[name] = 1 + max(below, default=0)
            # As deep as an inversion, or it would be the source of nearly all paths.
            depths[OURS + "LoadPath"] = 3
        return depths

    def workflow(self) -> Workflow:
        """The next workflow; some one in three of them is spoilt."""
        random = self.random
        # Executions that share sub-graphs share their results on the server.
        if random.random() < 0.5:
            self._begin()
        workflow = workflow_of(self._roots())
        spoils = random.choices([0, 1, 2, 3], [65, 27, 6, 2])[0]
        for _ in range(spoils):
            self._spoil(workflow)
        return workflow

    def _begin(self) -> None:
        """What the next workflows have in common: size, prompts, model and source picture."""
        sizes = sorted(set(self.pictures.values()))
        usual = self.random.random() < 0.6
        size = (128, 128) if usual else self.random.choice(sizes)
        self.width, self.height = size
        self.pool: dict[str, list[Link]] = {}
        self.pair = Term(OURS + "PromptPair", self._values(OURS + "PromptPair"))
        self.pair.inputs["clip"] = (self.loader, 1)
        self.inverted: Link = (Term(OURS + "LoadPath", {"file": self.files[0][0]}), 0)
        picture = Term("LoadImage", self._values("LoadImage"))
        encoded = {"pixels": (picture, 0), "vae": (self.loader, 2)}
        self.source: Link = (Term("VAEEncode", encoded), 0)
        self.model: Link = (self.loader, 0)
        if self.random.random() < 0.5:
            patches = [name for name in PATCHES.split() if name in self.inputs]
            self.model = self._term(self._rare(patches), 2), 0
        # Only an inverted path can be made to lead back under guidance.
        self.inverted = (self._term(OURS + "DDIMInversion", 2), 0)

    def _roots(self) -> list[Term]:
        """Output nodes that run a node of ours, each rarely used one more often."""
        ours = [name for name in self.inputs if name.startswith(OURS) and name != LOADER]
        sink = self._rare([name for name in ours if name in self.sinks or self.outputs[name]])
        term = self._term(sink, 5)
        while term.kind not in self.sinks:
            kinds = set(self.outputs[term.kind]) & {"LATENT", "IMAGE", "MASK"}
            if kinds:
                break
            term = self._consumer(term)
        return [term, *self._probes(term)]

    def _consumer(self, term: Term) -> Term:
        """A node that takes what leads to no picture by itself; of ours, what only ours take."""
        slot, kind = self.random.choice(list(enumerate(self.outputs[term.kind])))
        takers = [
            (name, entry)
            for name, inputs in self.inputs.items()
            for entry, (taken, _, _) in inputs.items()
            if taken == kind
            and (name.startswith(OURS) or not kind.startswith("DIFFUSION_PATH"))
            and name != term.kind
        ]
        # The sampler takes paths and edits: it is where most of them lead.
        last = [(name, entry) for name, entry in takers if name == OURS + "Sampler"]
        name, entry = self.random.choice(last if last and self.random.random() < 0.6 else takers)
        return self._term(name, 4, {entry: (term, slot)})

    def _probes(self, root: Term) -> list[Term]:
        """Nodes that keep every latent and picture that nodes of ours have made."""
        seen: list[Term] = []

        def visit(term: Term) -> None:
            if term not in seen:
                seen.append(term)
                for value in term.inputs.values():
                    if isinstance(value, tuple):
                        visit(value[0])

        visit(root)
        probes = []
        for term in seen:
            if not term.kind.startswith(OURS):
                continue
            latent = term.inputs.get("latent_image")
            if isinstance(latent, tuple):
                probes.append(keep_latent(latent))
            for slot, kind in enumerate(self.outputs[term.kind]):
                if kind == "LATENT":
                    probes.append(keep_latent((term, slot)))
                if kind in ("IMAGE", "MASK"):
                    probes += keep_picture((term, slot), kind, (self.loader, 2))
        if not probes and root.kind not in self.sinks:
            probes = [keep_latent((root, 0))]
        return probes

    def _rare(self, names: list[str]) -> str:
        """One of these nodes, the less used ones more likely."""
        name = self.random.choices(names, [1 / (1 + self.used[name]) for name in names])[0]
        self.used[name] += 1
        return name

    def _term(self, kind: str, depth: int, given: dict[str, Any] | None = None) -> Term:
        if kind == LOADER:
            return self.loader
        term = Term(kind, self._values(kind) | (given or {}))
        for name, (wanted, _, required) in self.inputs[kind].items():
            if name in term.inputs or wanted not in self.producers:
                continue
            # A path is recorded with few kinds of edits, and with those of a new prompt it is not.
            rare = depth <= 1 or kind == OURS + "RecordPath"
            if required or self.random.random() < (0.1 if rare else 0.35):
                term.inputs[name] = self._link(wanted, depth - 1, kind, name)
        return term

    def _link(self, wanted: str, depth: int, kind: str, name: str) -> Link:
        """Something of the type `wanted` for the input `name` of a node."""
        random = self.random
        ours = kind.startswith(OURS)
        last = int(kind.endswith("_Sampler") or name in ("target", "negative"))
        usual: dict[str, tuple[float, Link]] = {
            "CLIP": (0.9, (self.loader, 1)),
            "MODEL": (0.8 if ours else 0.6, self.model if ours else (self.loader, 0)),
            "DIFFUSION_PATH_PROMPTS": (0.85, (self.pair, 2)),
            "CONDITIONING": (0.8 if ours else 0.5, (self.pair, last)),
            "DIFFUSION_PATH": (0.8 if kind.endswith("Inversion") else 0.3, self.inverted),
            "LATENT": (0.7 if ours else 0.3, self.source),
        }
        share, link = usual.get(wanted, (0.0, self.source))
        if random.random() < share:
            return link
        pool = self.pool.setdefault(wanted, [])
        if pool and random.random() < 0.6:
            return random.choice(pool)
        makers = self.producers[wanted]
        if depth <= 0 or (wanted != "MODEL" and random.random() < 0.3):
            least = min(self.depths[maker] for maker, _ in makers)
            makers = [maker for maker in makers if self.depths[maker[0]] <= least]
        elif depth > 0:
            makers = [maker for maker in makers if self.depths[maker[0]] <= depth + 2]
        chosen = self._rare(sorted({maker for maker, _ in makers}))
        slot = random.choice([slot for maker, slot in makers if maker == chosen])
        made = self._term(chosen, depth - 1), slot
        pool.append(made)
        del pool[:-4]
        return made

    def _values(self, kind: str) -> dict[str, Any]:
        """Valid values for the widgets of a node."""
        values = {}
        for name, (wanted, options, required) in self.inputs[kind].items():
            if wanted not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                continue
            if required or self.random.random() < 0.5:
                values[name] = self._value(kind, name, wanted, options)
        return values

    def _value(self, kind: str, name: str, wanted: str, options: dict[str, Any]) -> Any:
        random = self.random
        default = options.get("default")
        if kind == OURS + "LoadPath":
            group = self.files[0] if random.random() < 0.65 else random.choice(self.files[1:])
            return random.choice(group)
        if name == "image" and wanted == "COMBO":
            fitting = [n for n, size in self.pictures.items() if size == (self.width, self.height)]
            return random.choice(fitting or list(self.pictures))
        if wanted == "STRING":
            texts = TEXTS.get(f"{kind.removeprefix(OURS)} {name}", TEXTS.get(name, [default or ""]))
            return random.choice(texts[:2] if random.random() < 0.9 else texts)
        if wanted == "BOOLEAN":
            return random.random() < 0.5
        if wanted == "COMBO":
            usual = default is not None and random.random() < 0.6
            return default if usual else random.choice(options.get("options") or [""])
        low, high = options.get("min", 0), options.get("max", 1)
        if name in ("width", "height") and wanted == "INT":
            size = getattr(self, name) if random.random() < 0.85 else random.choice([0, 8, 24, 128])
            return max(low, size)
        if name in COUNTS and wanted == "INT":
            return max(low, min(high, random.randint(*COUNTS[name])))
        if default is not None and random.random() < (0.9 if kind.startswith(OURS) else 0.5):
            return default
        around = 4 * abs(default or 0) + 1
        low, high = max(low, -around), min(high, around)
        if wanted == "INT":
            return random.randint(int(low), max(int(low), int(high)))
        return random.choice([low, high]) if random.random() < 0.3 else random.uniform(low, high)

    def _spoil(self, workflow: Workflow) -> None:
        """Change one input of one node, mostly of ours, into something it should not be."""
        random = self.random
        numbers = [n for n, node in workflow.items() if node["inputs"]]
        weights = [6 if workflow[n]["class_type"].startswith(OURS) else 1 for n in numbers]
        number = random.choices(numbers, weights)[0]
        node = workflow[number]
        known = self.inputs.get(node["class_type"], {})
        values = [name for name, value in node["inputs"].items() if not isinstance(value, list)]
        if values and random.random() < 0.8:
            name = random.choice(values)
            kind = known.get(name, ("STRING",))[0]
            at = known[name][1] if name in known else {}
            limits = [
                at[end] + step for end, step in (("min", 0), ("min", -1), ("max", 1)) if end in at
            ]
            strange = NAMES if name in ("file", "filename_prefix", "image") else STRINGS
            if kind in ("INT", "FLOAT", "BOOLEAN"):
                strange = NUMBERS + limits
            # The first of the numbers is the one that passes every check of limits.
            first = kind == "FLOAT" and random.random() < 0.4
            node["inputs"][name] = strange[0] if first else random.choice(strange)
            return
        # A plain value in place of a link is not tried: ComfyUI hands it to any node as it is.
        name = random.choice(list(node["inputs"]))
        others = [
            [other, slot]
            for other, made in workflow.items()
            for slot in range(len(self.outputs.get(made["class_type"], ())))
        ]
        node["inputs"][name] = random.choice([*others, [number, 0], ["999", 0], [number, 99], []])
        if random.random() < 0.2:
            del node["inputs"][name]


def keep_latent(link: Link) -> Term:
    """The output node that writes a latent to a file."""
    return Term("SaveLatent", {"samples": link, "filename_prefix": "fuzz/latent"})


def keep_picture(link: Link, kind: str, vae: Link) -> list[Term]:
    """Output nodes that write an IMAGE or a MASK to a file, and what an encoder makes of it.

    A picture file has no NaN; its encoded latent shows where there was one.
    """
    if kind == "MASK":
        link = (Term("MaskToImage", {"mask": link}), 0)
    encoded = Term("VAEEncode", {"pixels": link, "vae": vae})
    return [Term("PreviewImage", {"images": link}), keep_latent((encoded, 0))]
