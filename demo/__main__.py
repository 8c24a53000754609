"""`python -m demo`: how the embedded default was made, step by step."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

WORK = Path(".work/demo")
RELEASES = (1, 2, 3)
PRECISION = "int8"


def _corpus(args: argparse.Namespace) -> None:
    from demo import corpus, testset

    corpus.synthesise(args.work / "corpus", exclude=testset.texts())


def _train(args: argparse.Namespace) -> None:
    from demo import corpus, train

    spoken = corpus.read(args.work / "corpus")
    for stage in args.stage or train.RECIPES:
        train.Trainer(train.RECIPES[stage], spoken, args.work).run()


def _testset(_: argparse.Namespace) -> None:
    from demo import testset

    print(f"{testset.write()} clips in {testset.DIRECTORY}")


def _export(args: argparse.Namespace) -> None:
    from demo import export, rates

    for release in args.release or RELEASES:
        directory = rates.BUNDLES / f"vani-demo-{release}"
        bundle = export.export(args.work, release, args.precision, directory)
        size_bytes = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{directory.name}: {size_bytes / 1e6:.1f} MB, {bundle.digest}")


def _make(args: argparse.Namespace) -> None:
    for step in (_testset, _corpus, _train, _export):
        step(args)


def _wer(args: argparse.Namespace) -> None:
    from rich.console import Console

    from demo import rates, testset

    clips = testset.read()
    bundles = args.bundle or sorted(path for path in rates.BUNDLES.iterdir() if path.is_dir())
    Console(width=120).print(rates.table({path.name: rates.transcribe(path, clips) for path in bundles}))


def _run(_: argparse.Namespace) -> int:
    from demo import run

    return run.run()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m demo", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=WORK, help="where the corpus and checkpoints lie (default: %(default)s)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, release=None, stage=None, precision=PRECISION)
        return added

    command("run", _run, "serve the embedded model, send it the test set, show what it understood")
    wer = command("wer", _wer, "error rates on the embedded test set")
    wer.add_argument("--bundle", type=Path, nargs="+", metavar="DIR", help="(default: all of demo/bundles)")
    command("make", _make, "all of the steps below, in order; goes on where it was interrupted")
    command("testset", _testset, "speak the test set (needs espeak-ng)")
    command("corpus", _corpus, "speak the training corpus (needs espeak-ng; four minutes)")
    train = command("train", _train, "train the releases, or go on where a run was interrupted (needs torch)")
    export = command("export", _export, "write the bundles of trained releases (needs torch)")
    train.add_argument("--stage", type=int, nargs="+", metavar="N", help="of RECIPES in train.py (default: all)")
    export.add_argument("--release", type=int, nargs="+", choices=RELEASES, help="(default: all)")
    export.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    return args.run(args) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
