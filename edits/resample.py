"""Resampling (RePaint, Lugmayr et al., CVPR 2022, arXiv 2201.09865): back into the noise and on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.edit import Edit, Need, Transition
from ..core.path import DiffusionPath, Source


@dataclass(frozen=True, kw_only=True)
class Resample(Edit):
    """Take each stretch of the path several times (section 4.2 and appendix B of the paper).

    The stretches have `jump` steps each. They are counted from the end, where the last step is
    left out; what does not make up a whole one is left out in the beginning. After a stretch the
    latent jumps back to where that began, by noise, and takes it again.

    What is put back outside a mask meets the rest at each pass anew, so that both come to fit.

    Attributes:
        jump: how many steps; the paper's is 10 of 250. Ours suits paths of 28 to 50.
        resamplings: how often each stretch is taken, 1 is none; the paper's is 10.
        start, end: only stretches within this part of the model's schedule are taken again, 0 is
            its noisy end.
    """

    needs: ClassVar[Need] = Need(0)
    hint: ClassVar[str] = "make the mask larger"

    jump: int = 2
    resamplings: int = 3
    start: float = 0.0
    end: float = 1.0

    def check(self, path: DiffusionPath) -> None:
        if path.residuals is not None:
            raise ValueError(
                "Resample adds fresh noise, and this path has noise of its own for each step; take "
                "a path from DDIM Inversion, Straight Path or Record Path"
            )

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def transitions(
        self, source: Source, transitions: Sequence[Transition]
    ) -> Sequence[Transition]:
        if self.resamplings == 1:
            return transitions
        if any(after > before for before, after in transitions):
            raise ValueError("Resample is twice in this chain, which has room for one; remove one")
        window, taken, again = self.steps(source), list[Transition](), self.resamplings - 1
        for done, transition in enumerate(transitions, start=1):
            taken.append(transition)
            stretch = transitions[max(done - self.jump, 0) : done]
            ends = (len(transitions) - 1 - done) % self.jump == 0 and done < len(transitions)
            inside = all(source.index(before) in window for before, _ in stretch)
            if ends and inside and len(stretch) == self.jump:
                taken += again * [(stretch[-1][1], stretch[0][0]), *stretch]
        if len(taken) == len(transitions):
            raise ValueError(
                f"Resample repeats {self.jump} steps at a time, and there are not so many in its "
                "part of the schedule, the last step left out; lower jump, or lower start or raise "
                "end of Resample"
            )
        return taken
