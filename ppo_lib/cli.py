"""The command line: train, resume, evaluate and plot runs outside a notebook.

    python -m ppo_lib train run.yaml --preset 16gb --set seed=1 --dry-run
    python -m ppo_lib train run.yaml --replay
    python -m ppo_lib resume runs/first
    python -m ppo_lib eval runs/first --json
    python -m ppo_lib plot runs/first

Runs are of v1. With `--replay`, or where a setting of replay is named, they are of v2.

A configuration may come from anywhere, so nothing in it can run code. A reward *function* is therefore named on the
command line alone, by whoever types it: `--reward path/to/file.py:function`.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pydantic

RUN_FAILED, BAD_INPUT = 1, 2
REPLAY_HELP = (
    "train on earlier responses too, with v2's trainer. Naming any setting of replay in the file or with --set does "
    "the same; without one, v1's trainer is used"
)
REWARD_HELP = (
    "a Python function (prompts, responses) -> scores. It is never read from a YAML file, "
    "because a configuration from elsewhere must not run code"
)


def main(argv: list[str] | None = None) -> int:
    """Do what `argv` says (by default the process's arguments).

    Returns:
        The exit code, which is 0, or 2 for bad input, 1 for a run that failed, 130 for Ctrl-C, 143 for SIGTERM.
    """
    arguments = parser().parse_args(argv)
    with warnings.catch_warnings(), sigterm_as_exception():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            arguments.command(arguments)
            return 0
        except RunEnded as ended:
            code, error, lines = ended.code, ended.__cause__, [str(ended)]
        except KeyboardInterrupt as stop:
            code, error, lines = exit_code(stop), stop, [f"stopped by {signal_name(stop)}"]
        except (ValueError, TypeError, ImportError, OSError) as bad:
            code, error, lines = BAD_INPUT, bad, [f"error: {one_line(bad)}"]
        except Exception as failure:
            code, error, lines = RUN_FAILED, failure, [f"error: {type(failure).__name__}: {one_line(failure)}"]
    if arguments.debug:
        raise error
    print(*lines, sep="\n", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The words that the command line understands."""
    top = argparse.ArgumentParser(prog="python -m ppo_lib", description="PPO for language models.")
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, does: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=does)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name != "plot":
            sub.add_argument(
                "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting over all others; repeatable"
            )
            sub.add_argument("--reward", metavar="FILE.py:FUNCTION", help=REWARD_HELP)
        return sub

    train = command("train", train_command, "start a run")
    train.add_argument("config", nargs="?", type=Path, help="YAML file of settings; without one, the defaults")
    train.add_argument("--preset", metavar="NAME", help="settings for a GPU: 8gb, 16gb, 32gb; the file goes over them")
    train.add_argument("--replay", action="store_true", help=REPLAY_HELP)
    train.add_argument("--dry-run", action="store_true", help="print the plan and the memory it needs, and do nothing")
    resume = command("resume", resume_command, "go on with a run from its newest whole checkpoint")
    resume.add_argument("run", type=Path, help="the run's output_dir")
    for sub in (train, resume):
        sub.add_argument("--eval-reward", metavar="FILE.py:FUNCTION", help="judges the held-out responses; as --reward")
    evaluation = command("eval", eval_command, "judge a model, or a run's newest checkpoint, on held-out prompts")
    evaluation.add_argument("model", help="a run's output_dir, a saved model, an embedded world or a Hugging Face id")
    evaluation.add_argument("--json", action="store_true", help="print one JSON object, with every response")
    plot = command("plot", plot_command, "draw a run's metrics into one HTML file that needs no network")
    plot.add_argument("run", type=Path, help="the run's output_dir, while it runs or afterwards")
    plot.add_argument("-o", "--output", type=Path, help="the file to write; by default RUN/metrics.html")
    return top


# commands


def train_command(arguments: argparse.Namespace) -> None:
    from ppo_lib import inputs

    settings = inputs.settings_from(arguments.preset, arguments.config, arguments.set, arguments.replay)
    if "output_dir" not in settings:
        settings["output_dir"] = os.path.join("runs", f"{datetime.now():%Y-%m-%d-%H%M%S}-{os.getpid()}")
    if "report_to" not in settings and sys.stdout.isatty():
        settings["report_to"] = ["console"]
    config = inputs.config_of(settings)
    if arguments.dry_run:
        from ppo_lib.plan import plan

        print(plan(config))
        return
    prompts, heldout = inputs.prompts_of(config)
    reward = inputs.reward_of(config, arguments.reward)
    trainer = inputs.trainer_class(settings)(None, reward, config=config, **eval_reward(arguments))
    run(trainer, prompts, heldout)


def resume_command(arguments: argparse.Namespace) -> None:
    from ppo_lib import inputs

    changes = inputs.pairs(arguments.set) | {"output_dir": str(arguments.run)}
    run(*inputs.continued(arguments.run, changes, arguments.reward, **eval_reward(arguments)))


def eval_command(arguments: argparse.Namespace) -> None:
    from ppo_lib import inputs
    from ppo_lib.data import PPODataset
    from ppo_lib.evaluation import evaluate

    place, changes = Path(arguments.model), inputs.pairs(arguments.set)
    if (place / "checkpoints").is_dir():
        changes |= {"output_dir": str(place), "report_to": []}
        trainer, prompts, heldout = inputs.continued(place, changes, arguments.reward)
    else:
        trainer, prompts, heldout = inputs.saved(arguments.model, changes, arguments.reward)
    prompts = heldout or prompts
    trainer.check_room(PPODataset(prompts))
    metrics, rows = evaluate(trainer, prompts, trainer.eval_reward, trainer.config.seed)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "metrics": metrics, "samples": rows}, ensure_ascii=False, indent=1))
        return
    print(f"{arguments.model} on {len(prompts)} prompts, {trainer.config.max_new_tokens} tokens at most")
    print("\n".join(f"  {name.removeprefix('eval/'):14}{value:9.4g}" for name, value in metrics.items()))
    for row in rows[: trainer.config.eval_samples]:
        print(f"\n{row['prompt']!r}\n  {row['score']:6.2f}  sampled {row['sampled']!r}")
        print(f"  {row['score_greedy']:6.2f}  greedy  {row['greedy']!r}")


def plot_command(arguments: argparse.Namespace) -> None:
    from ppo_lib.plots import standalone_page, training_figure

    figure = training_figure(rows_of(arguments.run / "metrics.jsonl"))
    target = arguments.output or arguments.run / "metrics.html"
    aside = target.with_name(f".{target.name}.part")
    aside.write_text(standalone_page(figure, title=f"Metrics of {arguments.run.resolve().name}"), encoding="utf-8")
    aside.replace(target)
    print(target)


# what commands share


class RunEnded(Exception):
    """A run ended before its time; the message says why and how to go on."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


@contextmanager
def sigterm_as_exception():
    """Within the block SIGTERM raises, as Ctrl-C does, so that a run ends in order."""

    def end(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def signal_name(stop: KeyboardInterrupt) -> str:
    return "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"


def exit_code(stop: KeyboardInterrupt) -> int:
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def run(trainer, prompts: list[str], heldout: list[str] | None) -> None:
    """Train, and say where things are, also where the run does not come to its end."""
    from ppo_lib.checkpoint import CheckpointError, checkpoints

    output_dir = trainer.config.output_dir
    if not trainer.updates_left:
        way = "`early_stopping_patience`" if trainer.out_of_patience else "`total_episodes`"
        print(f"the run is complete: {len(trainer.history)} updates. To go on, raise {way} with --set")
        return
    try:
        trainer.train(prompts, heldout)
    except BaseException as error:
        if isinstance(error, CheckpointError) or not hasattr(trainer, "batches"):
            raise  # it had not begun
        stopped = isinstance(error, KeyboardInterrupt)
        why = f"stopped by {signal_name(error)}" if stopped else f"the run failed: {one_line(error)}"
        last = checkpoints(trainer.checkpoint_dir)[-1:] if output_dir else []
        where = f"the last checkpoint is {last[0]}" if last else "there is no checkpoint"
        how = f"; go on with: python -m ppo_lib resume {shlex.quote(output_dir)}" if last else ""
        code = exit_code(error) if stopped else RUN_FAILED
        raise RunEnded(f"{why}, after {len(trainer.history)} whole updates; {where}{how}", code) from error
    score = trainer.history[-1]["objective/scores"]
    said = [f"{len(trainer.history)} updates", f"score {score:.3f}"]
    said += [f"held out {trainer.evaluations[-1]['eval/score']:.3f}"] if trainer.evaluations else []
    print(", ".join(said + ([output_dir] if output_dir else [])))


def eval_reward(arguments: argparse.Namespace) -> dict:
    """The keyword `eval_reward` of a trainer, where one was named."""
    from ppo_lib import inputs

    return {"eval_reward": inputs.reward_function(arguments.eval_reward)} if arguments.eval_reward else {}


def rows_of(path: Path) -> list[dict]:
    """The whole lines of a metrics.jsonl that may still be growing, or whose run was killed while it wrote."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    if not rows:
        raise ValueError(f"{path} has no whole line yet")
    return rows


def one_line(error: BaseException) -> str:
    """What `error` says, on one line."""
    if isinstance(error, pydantic.ValidationError):
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        return "; ".join(f"`{name}`: {text}" if name else text.removeprefix("Value error, ") for name, text in faults)
    told_otherwise = ("whole updates are logged", "with `resume_from_checkpoint`")  # notes of the trainer
    notes = [n for n in getattr(error, "__notes__", ()) if not any(words in n for words in told_otherwise)]
    return ": ".join(" ".join(text.split()) for text in (str(error) or type(error).__name__, *notes))
