"""Two models as one, each for a range of noise levels, as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.experts import joined, levels_of
from .support import CATEGORY, fraction_input, known_before, names_itself, tell


class Experts(io.ComfyNode):
    """Join two models that were trained for different noise levels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Experts",
            display_name="Two Models by Noise Level (Wan 2.2, eDiff-I)",
            category=CATEGORY,
            description="Joins two models into one: the first samples the noisy part of the "
            "schedule, the second the rest. Every sampler, inversion and guider takes the result "
            "as one model.",
            search_aliases=[
                "Wan 2.2",
                "experts",
                "high noise",
                "low noise",
                "refiner",
                "MoE",
                "eDiff-I",
                "two stage",
            ],
            inputs=[
                io.Model.Input(
                    "high_noise",
                    tooltip="The model for the noisy part. Its schedule (shift) is that of both. "
                    "Connect its LoRAs before this node.",
                ),
                io.Model.Input(
                    "low_noise",
                    tooltip="The model for the rest, of the same family. Connect its LoRAs before "
                    "this node.",
                ),
                fraction_input(
                    "switch_at",
                    0.5,
                    "Where the second model takes over, as a fraction of the schedule: 0 = full "
                    "noise, 1 = clean picture. The node shows the noise level. Wan 2.2 "
                    "switches at noise level 0.875 (text to video) or 0.9 (image to video).",
                    label="switch at",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Both models as one: for any sampler, for the inversions, for the "
                    "guider.",
                )
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, switch_at) -> None:
        if switch_at in (0, 1):
            idle, change = ("high_noise", "raise") if not switch_at else ("low_noise", "lower")
            raise ValueError(
                f"switch_at is {switch_at:g}, which leaves no part of the schedule to {idle}; "
                f"{change} switch_at"
            )

    @classmethod
    @names_itself
    def execute(cls, high_noise, low_noise, switch_at) -> io.NodeOutput:
        model = joined(high_noise, low_noise, switch_at)
        (level,) = levels_of(model, (switch_at,))
        text = f"Switches at noise level {level:.3g}"
        return io.NodeOutput(model, ui=tell(cls, text, figures={"noise_level": level}))
