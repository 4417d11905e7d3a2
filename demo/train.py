"""Train the demo model: `python -m demo.train`, from the root of the repository.

Six stages run in order: the autoencoder, the judge, the denoiser with its text encoder, their
export to `demo/model`, and the flow model and the CLIP, which read the same text encoder. Name
some to run only those. A run that was stopped continues where it was: its state is in
`.demo-work/`. To train a finished stage further, or the published weights:

    python -m demo.train denoiser export --more 5000

Every stage starts from what the ones before it left in `demo/model`. A new autoencoder needs a new
denoiser: then delete `.demo-work/` first.
"""

from __future__ import annotations

import argparse

from .autoencoder import load_autoencoder, train_autoencoder
from .clip import export_clip, train_clip
from .denoiser import train_denoiser, trained_so_far
from .export import export_denoiser, export_flow
from .flow import train_flow
from .flow import trained_so_far as trained_flow
from .judge import train_judge

STAGES = ("autoencoder", "judge", "denoiser", "export", "flow", "clip")


def main() -> None:
    """Run the stages named on the command line, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--more", type=int, default=0, metavar="STEPS")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"unknown stage: {', '.join(sorted(unknown))}")

    stages, more = arguments.stages or STAGES, arguments.more
    if "autoencoder" in stages:
        train_autoencoder(more)
    if "judge" in stages:
        train_judge(load_autoencoder(), more)
    if "denoiser" in stages:
        train_denoiser(load_autoencoder(), more)
    if "export" in stages:
        export_denoiser(trained_so_far(), load_autoencoder())
    if "flow" in stages:
        train_flow(load_autoencoder(), more)
        export_flow(trained_flow())
    if "clip" in stages:
        export_clip(train_clip(load_autoencoder(), more))


if __name__ == "__main__":
    main()
