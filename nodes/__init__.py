"""The pack's nodes: schema, checks and calling. No mathematics lives here."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention_maps import AttentionMaps
from .composite import Composite
from .concept import Concept
from .demo import DemoCLIPVision, DemoModel
from .diffedit import DiffEditMask, MaskBlend
from .example import ExamplePicture
from .experts import Experts
from .files import LoadPath, PathPreview, SavePath
from .flow_edit import FlowEdit, PullToSource, UniEdit
from .grid import ContactSheet, EditGrid
from .guidance import Guidance
from .guider import Guider, PathSampler
from .h_space import HSpace, HSpaceDirections
from .ilvr import ILVR
from .imagic import OptimizePrompt
from .local_blend import LocalBlend
from .mdp import MDPCondition, MDPEpsilon, MDPGuidance, MDPLatent
from .null_text import NegativePromptInversion, NullTextInversion
from .paint_with_words import PaintWithWords
from .paths import DDIMInversion, RecordPath
from .prompt_to_prompt import PromptToPrompt, Reweight
from .prompts import PromptPair
from .report import EditReport
from .resample import Resample
from .sampler import Sampler
from .source_features import KeepBackground, SourceFeatures
from .straight import DDPMInversion, StraightPath

NODES: list[type[io.ComfyNode]] = [
    DemoModel,
    DemoCLIPVision,
    ExamplePicture,
    Experts,
    DDIMInversion,
    RecordPath,
    StraightPath,
    DDPMInversion,
    NullTextInversion,
    NegativePromptInversion,
    OptimizePrompt,
    DiffEditMask,
    MDPEpsilon,
    MDPCondition,
    MDPLatent,
    MDPGuidance,
    ILVR,
    FlowEdit,
    UniEdit,
    PullToSource,
    Guidance,
    Concept,
    HSpace,
    HSpaceDirections,
    MaskBlend,
    Resample,
    PromptPair,
    PromptToPrompt,
    Reweight,
    LocalBlend,
    PaintWithWords,
    SourceFeatures,
    KeepBackground,
    AttentionMaps,
    Sampler,
    Guider,
    PathSampler,
    SavePath,
    LoadPath,
    PathPreview,
    EditReport,
    Composite,
    EditGrid,
    ContactSheet,
]


class DiffusionPathExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
