"""`python -m pipelines`: published weights to bundles, and bundles to where they are used."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import Permanent, PipelineError, Temporary
from predictor.errors import InvalidBundle

EXIT_DONE, EXIT_BUG, EXIT_USAGE, EXIT_BAD_INPUT, EXIT_TEMPORARY, EXIT_INTERRUPTED = 0, 1, 2, 3, 5, 130
_EPILOG = "Exit status: 0 done, 2 wrong usage, 3 an input is refused, 5 try again later."

logger = logging.getLogger("vani")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m pipelines", description=__doc__, epilog=_EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    texts = {
        "convert": "make a bundle of published weights: PhoWhisper-CTC or IndicConformer, known by what is in them",
        "doctor": "confirm or name every assumption about a bundle, or about published weights",
        "export-mlflow": "write a bundle as an MLflow model, for `mlflow models serve`",
        "replica": "write small weights in exactly a published layout, to try the way that real ones go",
    }
    made = {
        name: commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG, allow_abbrev=False
        )
        for name, text in texts.items()
    }
    _convert_arguments(made["convert"])
    _doctor_arguments(made["doctor"])
    _export_arguments(made["export-mlflow"])
    _replica_arguments(made["replica"])
    return parser


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a .ckpt, .safetensors, or a directory as downloaded from the hub")
    add("out", type=Path, metavar="BUNDLE", help="the directory to make; it must not exist")
    add("--name", help="what the model is called where it is served (default: by its family)")
    add("--version", default="1", help="of the bundle, as V2's model version (default: %(default)s)")
    add("--repository", help="where the weights come from (default: the family's on the hub)")
    add("--revision", default="", help="the commit of it (default: what the hub's client noted beside the files)")
    add("--quantize", choices=("int8",), help="smaller and faster; admitted over --testset alone: by errors and speed")
    add("--testset", type=Path, metavar="DIR", help="clips to measure by: manifest.jsonl with audio, text, language")
    add(
        "--max-rise",
        type=float,
        default=0.3,
        metavar="POINTS",
        help="of word error rate that --quantize and --length auto may cost (default: %(default)s)",
    )
    add("--least-speedup", type=float, default=1.1, metavar="N", help="of --quantize, in times (default: %(default)s)")
    phowhisper = parser.add_argument_group("PhoWhisper-CTC")
    add = phowhisper.add_argument
    add("--tokenizer", type=Path, metavar="DIR", help="vocab.json and merges.txt, or tokenizer.json (default: SOURCE)")
    add("--rows", type=Path, metavar="TEXT", help="keep the tokens alone that spell this text, and single bytes")
    add(
        "--length",
        choices=("true", "padded", "auto"),
        default="true",
        help="give the network windows as they are, or silence up to 30 s as in its training, or whichever --testset"
        " says (default: %(default)s)",
    )
    add("--weights", action="store_true", help="keep the weights too, for the PyTorch engine on a GPU")
    add("--openvino", action="store_true", help="write OpenVINO's form too (needs the extra openvino)")
    model = parser.add_argument_group("a language model in the search")
    add = model.add_argument
    add("--language-model", action="append", default=[], metavar="CODE=FILE", help="KenLM's, of a language (repeat)")
    add("--language-model-weight", type=float, default=0.5, metavar="W", help="(default: %(default)s)")
    add("--word-bonus", type=float, default=1.0, metavar="NATS", help="for each word (default: %(default)s)")


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a bundle, or published weights")
    parser.add_argument("--testset", type=Path, metavar="DIR", help="clips to try a bundle on")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's directory")
    parser.add_argument("out", type=Path, metavar="OUT", help="the MLflow model to write; it must not exist")


def _replica_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", choices=("phowhisper", "indic-conformer"))
    parser.add_argument("out", type=Path, metavar="DIR", help="the directory to make")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")


def _convert(args: argparse.Namespace) -> int:
    from pipelines import conversion

    models = conversion.LanguageModels(
        dict(map(_language_model, args.language_model)), args.language_model_weight, args.word_bonus
    )
    wanted = conversion.Wanted(
        name=args.name,
        version=args.version,
        repository=args.repository,
        revision=args.revision,
        precision=args.quantize or "fp32",
        testset=args.testset,
        max_rise_points=args.max_rise,
        least_speedup=args.least_speedup,
        tokenizer=args.tokenizer,
        rows=args.rows,
        length=args.length,
        weights=args.weights,
        openvino=args.openvino,
        language_models=models,
    )
    made = conversion.convert(args.source, args.out, wanted)
    print(f"{args.out}: {made.name} version {made.version}, {made.digest}")
    return EXIT_DONE


def _language_model(text: str) -> tuple[str, Path]:
    code, equals, file = text.partition("=")
    if not (code and equals and file):
        raise Permanent(f"--language-model is a language and a file, such as vi=vi.binary, and not {text!r}")
    return code, Path(file)


def _doctor(args: argparse.Namespace) -> int:
    from pipelines import doctor

    findings = doctor.inspect(args.path, args.testset)
    print(doctor.to_json(findings) if args.json else doctor.to_text(findings))
    return EXIT_DONE if all(finding.ok for finding in findings if finding.needed) else EXIT_BAD_INPUT


def _export(args: argparse.Namespace) -> int:
    from pipelines import mlflow_export

    made = mlflow_export.export(args.bundle, args.out)
    print(f"{args.out}: {made.name} version {made.version}, {made.digest}")
    return EXIT_DONE


def _replica(args: argparse.Namespace) -> int:
    from pipelines.replicas import conformer, phowhisper

    if args.out.exists():
        raise Permanent(f"{args.out} exists already")
    (phowhisper if args.family == "phowhisper" else conformer).write(args.out, seed=args.seed)
    print(args.out)
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command == "convert" and not args.testset and (args.quantize or args.length == "auto"):
        parser.error("--quantize and --length auto are decided by measuring: name a --testset")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run = {"convert": _convert, "doctor": _doctor, "export-mlflow": _export, "replica": _replica}[args.command]
    try:
        return run(args)
    except InvalidBundle as error:
        print("\n".join(error.problems), file=sys.stderr)
        return EXIT_BAD_INPUT
    except PipelineError as error:
        print(error, file=sys.stderr)
        return EXIT_TEMPORARY if isinstance(error, Temporary) else EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install 'vani[predictor,torch,pipelines]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
