"""`python -m diffusion_path.batch`: edit a folder of pictures, or the rows of a manifest.

python -m diffusion_path.batch photos/ edited/ --source "a cat" --target "a dog"
python -m diffusion_path.batch rows.csv edited/ --workflow my_workflow.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .driver import BatchError, Outcome, run_batch
from .manifest import SUFFIXES, Manifest, ManifestError, read_folder, read_manifest
from .workflow import WorkflowError, load_workflow

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 130
"""Exit codes: all rows have pictures, not all, nothing was begun or it could not go on, Ctrl-C."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    usage = argparse.ArgumentParser(
        "diffusion-path-batch",
        description="Edit a folder of pictures, or the rows of a manifest, with a workflow. "
        "Start it again with the same words to go on after a stop.",
    )
    usage.add_argument("input", help="a folder of pictures, or a .csv, .jsonl or .parquet file")
    usage.add_argument("output", help="the folder for pictures and results; may be an address")
    usage.add_argument(
        "--workflow",
        default="01",
        help="a file saved with Export (API), or the name or number of an example (default: 01)",
    )
    usage.add_argument("--source", help="for a folder: what its pictures show")
    usage.add_argument(
        "--target",
        action="append",
        default=[],
        help="for a folder: what the results shall show; several are tried on each picture",
    )
    usage.add_argument(
        "--workers", type=count, help="ComfyUIs at a time (default: by GPUs, or else by cores)"
    )
    usage.add_argument(
        "--cpus-per-worker", type=count, default=1, help="cores for each of them (default: 1)"
    )
    usage.add_argument("--address", help="of a Ray cluster (default: Ray on this machine alone)")
    usage.add_argument(
        "--results",
        choices=["jsonl", "parquet"],
        default="jsonl",
        help="parquet: write results.parquet beside results.jsonl",
    )
    usage.add_argument("--retry-failed", action="store_true", help="run failed rows once more")
    return usage


def count(text: str) -> int:
    """A number of things, of which there is at least one."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def rows(words: argparse.Namespace) -> Manifest:
    """What the command line asks for."""
    if not words.input.lower().endswith(SUFFIXES):
        return read_folder(words.input, words.source, words.target)
    if words.source is not None or words.target:
        raise ManifestError("--source and --target are for a folder: a manifest has columns")
    return read_manifest(words.input)


def summary(outcome: Outcome, output: str) -> str:
    """How it went, on one line."""
    done = len(outcome.table) - outcome.failed
    text = f"{done} of {len(outcome.table)} rows are done, {outcome.ran} of them now run"
    if outcome.failed:
        first = next(line for line in outcome.table if line["status"] != "done")
        text += f", {outcome.failed} failed (row {first['row']}: {first['error']})"
    return f"{text}: {output}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = parser().parse_args(arguments)
    try:
        outcome = run_batch(
            rows(words),
            load_workflow(words.workflow),
            words.output,
            workers=words.workers,
            threads=words.cpus_per_worker,
            address=words.address,
            retry_failed=words.retry_failed,
            as_parquet=words.results == "parquet",
        )
    except (ManifestError, WorkflowError, BatchError) as error:
        print(f"diffusion-path-batch: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(
            f"Stopped. What is done is in {words.output}: the same command goes on from there.",
            file=sys.stderr,
        )
        return STOPPED
    print(summary(outcome, words.output))
    return FAILED if outcome.failed else DONE


if __name__ == "__main__":
    sys.exit(main())
