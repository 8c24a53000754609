"""`python -m predictor`: transcribe files here and now, serve, or edit the API keys of a server."""

import argparse
import math
import os
import socket
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from predictor import keys
from predictor.errors import InvalidBundle, PredictorError
from predictor.settings import EMBEDDED_BUNDLE, PREFIX, InvalidSettings, available_cores, describe

EXIT_DONE, EXIT_BUG, EXIT_USAGE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

T = TypeVar("T")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m predictor", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    text = "print what is said in audio files; needs no server and no network"
    transcribe = commands.add_parser(
        "transcribe",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="Exit status: 0 all transcribed, 2 wrong usage, 3 a file or the bundle cannot be used.",
    )
    transcribe.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="WAV, FLAC, OGG, MP3, WebM, M4A, AMR ..."
    )
    transcribe.add_argument(
        "--bundle", type=Path, default=EMBEDDED_BUNDLE, help="model directory (default: the embedded demo)"
    )
    transcribe.add_argument("--language", help="code such as vi or hi (default: identified from the audio)")
    transcribe.add_argument(
        "--decoding", choices=("ctc", "rnnt"), default="ctc", help="rnnt where the model has it (default: %(default)s)"
    )
    transcribe.add_argument(
        "--engine",
        choices=("auto", "onnx", "openvino", "torch"),
        default="auto",
        help="what runs the network (default: the fastest of what is installed)",
    )
    transcribe.add_argument(
        "--max-audio-seconds", type=float, default=14_400, metavar="S", help="longest recording (default: %(default)s)"
    )
    transcribe.add_argument(
        "--format",
        choices=("text", "json", "srt", "vtt"),
        default="text",
        help="json has words with times and confidence",
    )
    transcribe.add_argument(
        "--output", type=Path, metavar="DIR", help="write one file per input there instead of printing"
    )
    transcribe.add_argument("--jobs", type=int, default=available_cores(), help="files at once (default: a core each)")

    text = "answer requests over HTTP until SIGTERM"
    commands.add_parser(
        "serve",
        help=text,
        description=text[0].upper() + text[1:] + ". Set up by the environment alone:\n\n" + describe(),
        epilog="Exit status: 0 stopped as asked, 2 wrong setting, 3 the bundle is refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_keys(commands)
    return parser


def _add_keys(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "add, revoke or list API keys"
    parser = commands.add_parser(
        "keys",
        help=text,
        description=text[0].upper() + text[1:] + ". Servers that read the file see a change within a second or two.",
        epilog="Exit status: 0 done, 2 wrong usage, 3 the file cannot be used or has no such key.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for action, text in (
        ("add", "draw a new key, print it this once, and keep its hash in the file"),
        ("revoke", "take a key out of the file"),
        ("list", "print the names and limits of the keys in the file"),
    ):
        made = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".", epilog=parser.epilog)
        if action != "list":
            made.add_argument("name", type=_argument(keys.read_name), metavar="NAME", help="what the key is called")
        made.add_argument("--file", type=Path, required=True, metavar="F", help="the file of hashed keys")
        if action == "add":
            made.add_argument(
                "--audio-seconds-per-minute",
                type=_argument(keys.read_limit),
                metavar="N",
                help="what the key may send (default: no limit)",
            )


def _argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """A reader of `keys` as argparse wants it: with a sentence of its own for wrong usage."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except keys.InvalidKeys as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _transcribe(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from predictor import transcript
    from predictor.recognizer import Recognizer

    render: dict[str, Callable[[transcript.Transcript], str]] = {
        "text": lambda result: result.text,
        "json": transcript.to_json,
        "srt": transcript.to_srt,
        "vtt": transcript.to_vtt,
    }
    recognizer = Recognizer.load(args.bundle, args.max_audio_seconds, engine=args.engine)
    recognizer.check(args.language, args.decoding)

    def work(path: Path) -> str | Exception:
        try:
            return render[args.format](recognizer.transcribe(path.read_bytes(), args.language, (), args.decoding))
        except (PredictorError, OSError) as error:
            return error

    failed = False
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            results = zip(args.files, pool.map(work, args.files), strict=True)
            several = len(args.files) > 1
            for path, result in tqdm(results, "transcribing", len(args.files), unit="file", disable=not several):
                if isinstance(result, Exception):
                    failed = True
                    reason = result.strerror if isinstance(result, OSError) else result
                    tqdm.write(f"{path}: {reason}", file=sys.stderr)
                elif args.output:
                    (args.output / f"{path.name}.{'txt' if args.format == 'text' else args.format}").write_text(
                        result + "\n"
                    )
                else:
                    tqdm.write(f"{path}\t{result}" if several else result, file=sys.stdout)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    if not 0 < args.max_audio_seconds < math.inf:
        parser.error("--max-audio-seconds must be a number above 0")
    if args.format in ("srt", "vtt") and len(args.files) > 1 and not args.output:
        parser.error(f"subtitles of several files need --output DIR, where each becomes a .{args.format} file")
    if args.output:
        names = [path.name for path in args.files]
        if len(set(names)) < len(names):
            parser.error("--output needs files of different names")
        args.output.mkdir(parents=True, exist_ok=True)


def _serve() -> int:
    from predictor import logs, settings

    configuration = settings.load()
    _check_port(configuration.http_port)
    logs.configure(configuration.log_format, configuration.log_level)
    sys.argv = sys.argv[:1]  # kserve parses the command line while it is imported
    from predictor.server import serve

    serve(configuration)
    return EXIT_DONE


def _check_port(port: int) -> None:
    """Raise InvalidSettings where the port cannot be opened: before the model is loaded, not a minute later."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does, for ports just given up
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  (what the server binds)
        except OSError as error:
            raise InvalidSettings(f"{PREFIX}HTTP_PORT: port {port} cannot be opened: {error.strerror}") from error


def _keys(args: argparse.Namespace) -> int:
    try:
        if args.action == "add":
            print(keys.add(args.file, args.name, args.audio_seconds_per_minute))
            print("Keep this key now: the file has only its hash.", file=sys.stderr)
        elif args.action == "revoke":
            keys.revoke(args.file, args.name)
        else:
            for key in keys.read(args.file):
                limit = key.audio_seconds_per_minute
                print(key.name, "no limit" if limit is None else f"{keys.write_limit(limit)} s/min", sep="\t")
    except keys.InvalidKeys as error:
        return _fail(EXIT_BAD_INPUT, [f"{args.file}: {error}"])
    return EXIT_DONE


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.command == "serve":
            return _serve()
        if args.command == "keys":
            return _keys(args)
        _check_usage(parser, args)
        return _transcribe(args)
    except InvalidSettings as error:
        return _fail(EXIT_USAGE, str(error).splitlines())
    except InvalidBundle as error:
        return _fail(EXIT_BAD_INPUT, ["the bundle is refused:", *error.problems])
    except PredictorError as error:
        return _fail(EXIT_BAD_INPUT, [str(error)])
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _fail(status: int, lines: Iterable[str]) -> int:
    print(*lines, sep="\n", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
