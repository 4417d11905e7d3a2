"""Train the demo model: `python -m demo.train`, from the root of the repository.

Four stages run in order: the autoencoder, the judge, the denoiser with its text encoder, and the
export to `demo/model`. Name some to run only those. A run that was stopped continues where it was:
its state is in `.demo-work/`. `python -m demo.train denoiser export --more 5000` trains a finished
stage further.
"""

from __future__ import annotations

import argparse

from .autoencoder import train_autoencoder

STAGES = {
    "autoencoder": train_autoencoder,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="which stages; default all")
    parser.add_argument("--more", type=int, default=0, metavar="STEPS",
                        help="train stages that are finished this many steps further")
    args = parser.parse_args()
    for name in args.stages or STAGES:
        STAGES[name](args.more)


if __name__ == "__main__":
    main()
