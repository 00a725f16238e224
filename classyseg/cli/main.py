"""`classyseg`: the command with all its subcommands."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from classyseg.cli import (
    benchmark,
    convert_config,
    data,
    env,
    evaluate,
    export,
    keys,
    models,
    new,
    predict,
    push,
    recipe,
    report,
    serve,
    train,
)
from classyseg.cli.arguments import interruptible
from classyseg.cli.output import can_be_printed, emit, in_columns
from classyseg.console import shown

OF_MODELS: dict[str, tuple[Any, str, str]] = {
    "predict": (
        predict,
        "label images, folders and videos with a trained model",
        "1 some files could not be predicted, or else; 2 something you wrote is wrong",
    ),
    "evaluate": (
        evaluate,
        "measure a trained model on a data set: by class, worst images, submissions",
        "2 something you wrote is wrong; 1 else",
    ),
    "export": (
        export,
        "write a trained model as a file for other programs, compared with the model",
        "1 the file differs from the model, or else; 2 something you wrote is wrong",
    ),
    "benchmark": (
        benchmark,
        "compare trained models: latency, throughput, memory, size, mean IoU",
        "2 something you wrote is wrong; 1 else",
    ),
    "push": (
        push,
        "upload a trained model to the Hugging Face hub",
        "2 something you wrote is wrong, or the hub refuses; 1 else",
    ),
    "report": (
        report,
        "make the page of a run again, or one that compares several runs",
        "2 something you wrote is wrong; 1 else",
    ),
    "serve": (
        serve,
        "show a trained model as a web page on this machine, and answer programs",
        "2 something you wrote is wrong; 1 else",
    ),
}
"""The commands for trained models: their modules, help, and exit codes other than 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="classyseg", description="Semantic segmentation and classification by config, with plugins."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train, evaluate and resume (the same as classy_train.py)")
    train.add_arguments(training)
    training.set_defaults(run=train.run)

    for name, (module, help_text, codes) in OF_MODELS.items():
        command = commands.add_parser(name, help=help_text, epilog=f"Exit codes: 0 done; {codes}.")
        module.add_arguments(command)

    config = commands.add_parser("config", help="check, show or describe task configs")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    for name, action, help_text in (
        ("check", _check, "check a config whole, without training"),
        ("show", _show, "print it with every default filled in"),
    ):
        command = actions.add_parser(name, help=help_text)
        command.add_argument("config", metavar="CONFIG", help="task config, YAML or JSON")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="overrides such as optimizer.lr=0.02")
        command.set_defaults(run=action)
    actions.add_parser("schema", help="print the JSON Schema of task configs").set_defaults(run=_schema)
    described = actions.add_parser("keys", help="print what a component takes: keys, defaults, meaning")
    keys.add_arguments(described)
    described.set_defaults(run=keys.run)

    data.add_arguments(commands.add_parser("data", help="get public data sets; check, count, show those of configs"))

    making = commands.add_parser("new", help="make a project: a config for a folder of data, ready to train")
    new.add_arguments(making)

    listing = commands.add_parser("models", help="list the models, plugins' included")
    models.add_arguments(listing)
    listing.set_defaults(run=models.run)
    weights = commands.add_parser("weights", help="list the public weights that models know")
    weights.add_argument("pattern", nargs="?", default="*", help="of the models, such as 'resnet*'")
    weights.set_defaults(run=_weights)
    _add_conversions(commands)
    commands.add_parser("plugins", help="list what plugins offer and whether it works").set_defaults(run=_plugins)

    environment = commands.add_parser(
        "env", help="print what a bug report needs: versions, devices, plugins, variables"
    )
    env.add_arguments(environment)
    environment.set_defaults(run=env.run)

    cluster = commands.add_parser("recipe", help="print a file that starts a run under SLURM, on Ray or Kubernetes")
    recipe.add_arguments(cluster)
    cluster.set_defaults(run=recipe.run)

    parsed, more = parser.parse_known_args(arguments)
    # argparse gives a subcommand only the positional words before its first option; later ones come back here.
    words = next((name for name in ("words", "overrides", "inputs", "runs") if hasattr(parsed, name)), None)
    if more and (words is None or not all(word[:1] != "-" and ("=" in word or words != "overrides") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if words is not None:
        setattr(parsed, words, [*getattr(parsed, words), *more])
    run = parsed.run if parsed.run is train.run else interruptible(parsed.run)  # a training stops at a step, and saves
    return train.guarded(lambda: run(parsed))


def _add_conversions(commands: Any) -> None:
    """Adds the commands that convert files of other libraries."""
    convert = commands.add_parser("convert-weights", help="write any readable file of weights as safetensors")
    convert.add_argument("source", metavar="IN", help="a file, checkpoint folder or URL; with --model, also a name")
    convert.add_argument("target", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("--model", default="", metavar="NAME", help="give the keys that model's names, and check them")
    convert.add_argument("--force", action="store_true", help="replace OUT")
    convert.set_defaults(run=_convert)
    migrating = commands.add_parser(
        "convert-config",
        help="a config of mmsegmentation or ClassyVision as a task config",
        epilog="Exit codes: 0 done; 2 something that changes numbers has no equivalent, or something is wrong.",
    )
    convert_config.add_arguments(migrating)
    migrating.set_defaults(run=convert_config.run)


def _check(arguments: argparse.Namespace) -> int:
    train.checked_config(arguments.config, arguments.overrides)
    emit(f"{arguments.config}: ok")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from classyseg.config import dump_yaml

    values = train.checked_config(arguments.config, arguments.overrides).resolved()
    text = dump_yaml(values)
    emit((text if can_be_printed(text) else dump_yaml(values, only_ascii=True)).removesuffix("\n"))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from classyseg.registry import task_schema

    emit(json.dumps(task_schema(), indent=2))
    return 0


def _weights(arguments: argparse.Namespace) -> int:
    from classyseg.errors import ConfigError
    from classyseg.models.public_weights import public_weights
    from classyseg.registry import MODELS, PluginError

    rows = [("model", "name", "licence", "preprocessing", "digest", "URL")]
    for model in MODELS.names(arguments.pattern):
        try:
            component: Any = MODELS.entry(model).component
            known = public_weights(component, model)
        except PluginError:  # `classyseg plugins` reports what is wrong with it
            continue
        rows += [(model, name, w.licence, w.preprocessing(), w.digest or "-", w.url) for name, w in known.items()]
    if len(rows) == 1:
        raise ConfigError(f"no public weights are known of models that match {shown(arguments.pattern)}")
    emit("\n".join(in_columns(rows)))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from classyseg.models.convert_weights import convert_weights

    emit(convert_weights(arguments.source, arguments.target, model=arguments.model, force=arguments.force))
    return 0


def _plugins(arguments: argparse.Namespace) -> int:
    from classyseg.registry import REGISTRIES

    rows = [("distribution", "version", "kind", "name", "ok")]
    for registry in REGISTRIES.values():
        for offer, problem in registry.plugins():
            distribution = (offer.dist.name, offer.dist.version) if offer.dist else ("?", "?")
            rows.append((*distribution, registry.kind, offer.name, problem or "ok"))
    emit("\n".join(in_columns(rows)))
    return 0
