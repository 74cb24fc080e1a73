"""The command line: train, resume, evaluate and plot runs outside a notebook; `EXAMPLES` shows it.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pydantic

if TYPE_CHECKING:
    from ppo_lib.config import PPOConfigV1
    from ppo_lib.ppo_v1 import PPOTrainer

RUN_FAILED, BAD_INPUT, PIPE_CLOSED = 1, 2, 128 + 13
EXAMPLES = {
    "train": """
  python -m ppo_lib train                                       a small run, everything embedded
  python -m ppo_lib train run.yaml --preset 16gb --dry-run      the plan, the memory and the time it needs
  python -m ppo_lib train run.yaml --set seed=1 --set output_dir=runs/second --samples 3
  python -m ppo_lib train run.yaml --reward judge.py:score      with your own reward
  python -m ppo_lib train run.yaml --replay                     v2: earlier responses are trained on too""",
    "resume": """
  python -m ppo_lib resume runs/first                           from its newest whole checkpoint
  python -m ppo_lib resume runs/first --set total_episodes=1920
  python -m ppo_lib resume runs/first/checkpoints/update-00000010 --set output_dir=runs/branch""",
    "eval": """
  python -m ppo_lib eval runs/first                             the newest checkpoint
  python -m ppo_lib eval runs/first/best --json                 the best model of the run, for a program
  python -m ppo_lib eval reviews --set eval_prompts=mine.txt    a world, before any training""",
    "plot": """
  python -m ppo_lib plot runs/first                             also while the run goes on
  python -m ppo_lib plot runs/first -o first.html""",
    "settings": """
  python -m ppo_lib settings                                    all of them
  python -m ppo_lib settings replay                             those with "replay" in their names""",
}
REPLAY_HELP = (
    "train on earlier responses too, with v2's trainer. Naming any setting of replay in the file or with --set does "
    "the same; without one, v1's trainer is used"
)
SAMPLES_HELP = "print N held-out prompts at each evaluation, each with a sampled response and its score"
DRY_RUN_HELP = (
    "print the plan, the memory it needs, and an estimate of its time from one update that is made and thrown away; "
    "write nothing"
)
REWARD_HELP = (
    "a Python function (prompts, responses) -> scores. It is never read from a YAML file, "
    "because a configuration from elsewhere must not run code"
)


def main(argv: list[str] | None = None) -> int:
    """Do what `argv` says (by default the process's arguments).

    Returns:
        The exit code, which is 0, or 2 for bad input, 1 for a run that failed, 130 for Ctrl-C, 143 for SIGTERM, 141
        where nobody read on what is printed.
    """
    try:
        try:
            return command_line(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `head`, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of it when it ends
        return PIPE_CLOSED


def command_line(argv: list[str] | None) -> int:
    """`main`, where all that is printed is read."""
    words = sys.argv[1:] if argv is None else argv
    top, commands = parser()
    if not words:
        top.print_help()
        return BAD_INPUT
    if words[0] not in (*commands, "-h", "--help"):
        return said(f"error: there is no command {words[0]!r}{nearest(words[0], commands)}", code=BAD_INPUT)
    arguments, unknown = top.parse_known_args(words)
    if unknown:
        return said(f"error: {not_understood(unknown, words[0], commands)}", code=BAD_INPUT)
    with warnings.catch_warnings(), sigterm_as_exception():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            arguments.command(arguments)
            return 0
        except BrokenPipeError:
            raise
        except RunEnded as ended:
            code, error, lines = ended.code, ended.__cause__ or ended, [str(ended)]
        except KeyboardInterrupt as stop:
            code, error, lines = exit_code(stop), stop, [f"stopped by {signal_name(stop)}"]
        except (ValueError, TypeError, ImportError, OSError) as bad:
            code, error, lines = BAD_INPUT, bad, [f"error: {one_line(bad)}"]
        except Exception as failure:
            code = BAD_INPUT if any("--" in note for note in getattr(failure, "__notes__", ())) else RUN_FAILED
            error, lines = failure, [f"error: {type(failure).__name__}: {one_line(failure)}"]
    if arguments.debug:
        raise error
    return said(*lines, code=code)


def said(*lines: str, code: int) -> int:
    """`code`, after `lines` went to stderr."""
    print(*lines, sep="\n", file=sys.stderr)
    return code


def nearest(word: str, known: Iterable[str]) -> str:
    """What `word` may have meant, else all that is `known`."""
    from ppo_lib.commands.places import did_you_mean

    known = list(known)
    return did_you_mean(word, known, cutoff=0.5) or f": write one of {', '.join(known)}"


def not_understood(words: list[str], command: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    """What is wrong with `words`, which are left over behind `command`."""
    word = words[0].partition("=")[0]
    if word.startswith("-"):
        options = {name: [o for o in sub._option_string_actions if len(o) > 2] for name, sub in commands.items()}
        having = [name for name in commands if word in options[name]]
        hint = f": it is one of {' and '.join(having)}" if having else nearest(word, options[command])
        return f"{command} has no option {word}{hint}"
    return f"there is no use for {shlex.join(words)}: a setting is --set name=value, in quotes where it holds spaces"


def parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """What understands the command line, and the part for each command."""
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    shown = "\n".join(example.splitlines()[1] for example in EXAMPLES.values())
    top = argparse.ArgumentParser(
        prog="python -m ppo_lib", description="PPO for language models.", **form,
        epilog=f"examples:\n{shown}\n\n`python -m ppo_lib COMMAND --help` shows more of each command.",
    )  # fmt: skip
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, does: Callable, text: str) -> argparse.ArgumentParser:
        about = text[0].upper() + text[1:] + "."
        sub = commands.add_parser(name, help=text, description=about, epilog="examples:" + EXAMPLES[name], **form)
        sub.set_defaults(command=does)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in ("train", "resume", "eval"):
            sub.add_argument("--samples", type=int, metavar="N", help=SAMPLES_HELP)
            sub.add_argument(
                "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting over all others; repeatable"
            )
            sub.add_argument("--reward", metavar="FILE.py:FUNCTION", help=REWARD_HELP)
        return sub

    train = command("train", train_command, "start a run")
    train.add_argument("config", nargs="?", type=Path, help="YAML file of settings; without one, the defaults")
    train.add_argument("--preset", metavar="NAME", help="settings for a GPU: 8gb, 16gb, 32gb; the file goes over them")
    train.add_argument("--replay", action="store_true", help=REPLAY_HELP)
    train.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)
    resume = command("resume", resume_command, "go on with a run from its newest whole checkpoint")
    resume.add_argument("run", help="the run's output_dir, or one of its checkpoints")
    for sub in (train, resume):
        sub.add_argument("--eval-reward", metavar="FILE.py:FUNCTION", help="judges the held-out responses; as --reward")
    evaluation = command("eval", eval_command, "judge a model, or a run's newest checkpoint, on held-out prompts")
    evaluation.add_argument(
        "model", help="a run's output_dir, a checkpoint, a saved model, an embedded world or a Hugging Face id"
    )
    evaluation.add_argument("--json", action="store_true", help="print one JSON object, with every response")
    plot = command("plot", plot_command, "draw a run's metrics into one HTML file that needs no network")
    plot.add_argument("run", help="the run's output_dir, while it runs or afterwards; a checkpoint shows it until then")
    plot.add_argument("-o", "--output", type=Path, help="the file to write; by default RUN/metrics.html")
    known = command("settings", settings_command, "list every setting with its default, its stage and what it is")
    known.add_argument("name", nargs="?", default="", help="a setting, or a part of names; without it, all")
    return top, commands.choices


# commands


def train_command(arguments: argparse.Namespace) -> None:
    from ppo_lib.commands import inputs, places

    settings = inputs.settings_from(arguments.preset, arguments.config, arguments.set, arguments.replay)
    settings |= eval_samples(arguments)
    if "output_dir" not in settings:
        settings["output_dir"] = os.path.join("runs", f"{datetime.now():%Y-%m-%d-%H%M%S}-{os.getpid()}")
    if "report_to" not in settings and sys.stdout.isatty():
        settings["report_to"] = ["console"]
    config = inputs.config_of(settings)
    if arguments.dry_run:
        dry_run(config, arguments.reward)
        return
    if config.output_dir:
        places.check_output_dir(config.output_dir)
    prompts, heldout = inputs.prompts_of(config)
    reward = inputs.reward_of(config, arguments.reward)
    trainer = inputs.trainer_class(settings)(None, reward, config=config, **eval_reward(arguments))
    where = f"into {config.output_dir}" if config.output_dir else "and keep nothing (`output_dir` is null)"
    run(arguments, f"train {config.model} {where}", trainer, prompts, heldout)


def dry_run(config: "PPOConfigV1", place: str | None) -> None:
    """Print the plan at once, and then the time, which has to be measured."""
    from ppo_lib.commands import inputs
    from ppo_lib.commands.plan import plan
    from ppo_lib.commands.timing import estimate_time

    reward = inputs.reward_function(place) if place else None
    text, peak = plan(config)
    print(text, flush=True)
    if sys.stderr.isatty():
        print("measuring one update; Ctrl-C leaves it out", file=sys.stderr)
    print(f"time: {estimate_time(config, reward, peak)}")


def resume_command(arguments: argparse.Namespace) -> None:
    from ppo_lib.commands import inputs, places
    from ppo_lib.running import checkpoint

    place = places.to_resume(arguments.run)
    changes = home_of(place) | inputs.pairs(arguments.set) | eval_samples(arguments)
    trainer, prompts, heldout, found = inputs.continued(place, changes, arguments.reward, **eval_reward(arguments))
    update, folder = len(trainer.history), Path(trainer.config.output_dir or "no folder")
    title = f"resume {folder} from update {update} of {update + trainer.updates_left} ({found})"
    if found.resolve().parent != (folder / "checkpoints").resolve():
        title = f"resume {found}, which is of update {update}, into {folder}"
    elif any(path.name > found.name for path in checkpoint.checkpoints(found.parent)):
        title += f"; what the run did after update {update} is dropped"
    run(arguments, title, trainer, prompts, heldout)


def eval_command(arguments: argparse.Namespace) -> None:
    from ppo_lib.commands import inputs, places
    from ppo_lib.running.evaluation import evaluate
    from ppo_lib.running.terminal import number

    place, changes = places.to_judge(arguments.model), inputs.pairs(arguments.set) | eval_samples(arguments)
    if isinstance(place, Path) and not (place / "config.json").exists():
        changes |= home_of(place) | {"report_to": []}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "resumed with other settings")  # nothing is resumed here
            trainer, prompts, heldout, found = inputs.continued(place, changes, arguments.reward)
        judged = f"the policy after update {len(trainer.history)} of its run ({found})"
    else:
        name = str(place.resolve() if isinstance(place, Path) else place)
        trainer, prompts, heldout = inputs.saved(name, changes, arguments.reward)
        judged = f"saved weights ({place})" if isinstance(place, Path) else f"the model {place}"
    which, prompts = "held-out prompts" if heldout else "prompts, none of them held out", heldout or prompts
    metrics, rows = evaluate(trainer, prompts, trainer.eval_reward, trainer.config.seed)
    if arguments.json:
        told = {"model": arguments.model, "judged": judged, "metrics": metrics, "samples": rows}
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return
    print(f"{judged}, on {len(prompts)} {which}, {trainer.config.max_new_tokens} tokens at most")
    print("\n".join(f"  {name.removeprefix('eval/'):14}{number(value):>9}" for name, value in metrics.items()))
    for row in rows[: trainer.config.eval_samples]:
        print(f"\n{row['prompt']!r}\n  {number(row['score'], '.2f'):>6}  sampled {row['sampled']!r}")
        print(f"  {number(row['score_greedy'], '.2f'):>6}  greedy  {row['greedy']!r}")


def plot_command(arguments: argparse.Namespace) -> None:
    from ppo_lib.commands import places
    from ppo_lib.config import write_whole
    from ppo_lib.lab.plots import standalone_page, training_figure
    from ppo_lib.running import checkpoint

    place = places.existing_folder(arguments.run, "run")
    if places.is_checkpoint(place):
        name, state = place.resolve().name, checkpoint.load_checkpoint(place)
        first = [{"episode": 0, **row} for row in state["evaluations"] if row["update"] == 0]
        rows, run = first + checkpoint.rows_of(state["history"]), places.run_of(place)
        title, target = f"{run.resolve().name} until {name}", run / f"{name}.html"
        print(f"the log of its run until {name}", file=sys.stderr)
    else:
        rows, title, target = rows_of(place), place.resolve().name, place / "metrics.html"
    if not any(row["update"] for row in rows):
        raise ValueError(f"there is nothing to plot in {place}: no update is logged yet")
    target = arguments.output.expanduser() if arguments.output else target
    target = target / "metrics.html" if target.is_dir() else target
    if not target.parent.is_dir():
        raise ValueError(f"--output {target}: there is no folder {target.parent}")
    write_whole(target, standalone_page(training_figure(rows), title=f"Metrics of {title}"))
    print(target)


def settings_command(arguments: argparse.Namespace) -> None:
    from ppo_lib.commands.places import did_you_mean
    from ppo_lib.config import described_settings

    rows = described_settings()
    found = [row for row in rows if arguments.name.lower() in row["name"]]
    if not found:
        hint = did_you_mean(arguments.name, [row["name"] for row in rows]) or "; without a name, all are listed"
        raise ValueError(f"no setting has {arguments.name!r} in its name{hint}")
    name, default = (max(len(row[column]) for row in found) + 2 for column in ("name", "default"))
    for row in [{"name": "setting", "default": "default", "stage": "stage", "text": ""}, *found]:
        print(f"{row['name']:{name}}{row['default']:{max(default, 9)}}{row['stage']:7}{row['text']}".rstrip())


# what commands share


class RunEnded(Exception):
    """A run ended before its time; the message says why and how to go on."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Terminated(KeyboardInterrupt):
    """The process was asked to end."""


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Within the block SIGTERM raises, as Ctrl-C does, so that a run ends in order."""

    def end(*_: Any) -> NoReturn:
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


def run(
    arguments: argparse.Namespace, title: str, trainer: "PPOTrainer", prompts: list[str], heldout: list[str] | None
) -> None:
    """Train, and say what will be done, and where things are, also where the run does not come to its end."""
    from ppo_lib.commands.places import in_shell
    from ppo_lib.running.checkpoint import CheckpointError, checkpoints
    from ppo_lib.running.terminal import number
    from ppo_lib.running.trackers import SampleLines

    output_dir = trainer.config.output_dir
    rewards = {"--reward": arguments.reward, "--eval-reward": arguments.eval_reward}
    words = [word for option, place in rewards.items() if place for word in (option, place)]
    go_on = in_shell("resume", output_dir, *words) if output_dir else ""
    if arguments.samples and heldout is None:
        raise ValueError("--samples shows responses to held-out prompts, and there are none: set `eval_prompts`")
    if not trainer.updates_left:
        way = "`early_stopping_patience`" if trainer.out_of_patience else "`total_episodes`"
        now = getattr(trainer.config, way.strip("`"))
        print(f"the run is complete: {len(trainer.history)} updates. To go on, raise {way} (now {now}) with --set")
        return
    print(title, *what_will_be_done(trainer, prompts, heldout, go_on), sep="\n  ", flush=True)
    if arguments.samples:
        trainer.accelerator.log_with.append(SampleLines())
    try:
        trainer.train(prompts, heldout)
    except BaseException as error:
        if isinstance(error, CheckpointError) or not hasattr(trainer, "batches"):
            raise  # it had not begun
        stop = error if isinstance(error, KeyboardInterrupt) else None
        why = f"stopped by {signal_name(stop)}" if stop else f"the run failed: {one_line(error)}"
        why = "stopped, as nobody reads its output any more" if isinstance(error, BrokenPipeError) else why
        last = checkpoints(trainer.checkpoint_dir)[-1:] if output_dir else []
        where = f"the last checkpoint is {last[0]}" if last else "there is no checkpoint"
        how = f"; go on with: {go_on}" if last else ""
        code = exit_code(stop) if stop else RUN_FAILED
        raise RunEnded(f"{why}, after {len(trainer.history)} whole updates; {where}{how}", code) from error
    parts = [updates(len(trainer.history)), f"score {number(trainer.history[-1]['objective/scores'], '.3f')}"]
    parts += [f"held out {number(trainer.evaluations[-1]['eval/score'], '.3f')}"] if trainer.evaluations else []
    print(", ".join(parts + ([output_dir] if output_dir else [])))


def updates(count: int) -> str:
    return "1 update" if count == 1 else f"{count} updates"


def what_will_be_done(trainer: "PPOTrainer", prompts: list[str], heldout: list[str] | None, go_on: str) -> list[str]:
    """The run in a few lines: what is trained, when it is judged, how it is stopped and gone on with."""
    config = trainer.config
    stage = "v2" if hasattr(config, "use_replay_buffer") else "v1"
    every = f"every {config.eval_every} updates" if config.eval_every > 1 else "every update"
    saved = f"a checkpoint every {config.save_every} updates" if config.save_every > 1 else "a checkpoint every update"
    return [
        f"{stage} on {trainer.device.type}: {updates(trainer.updates_left)} of {config.rollout_size} responses to "
        f"{len(prompts)} prompts, {config.max_new_tokens} tokens at most",
        f"{len(heldout)} held-out prompts, judged at the start, after {every} and at the end"
        if heldout
        else "no held-out prompts (`eval_prompts`): nothing is judged",
        f"{saved}; Ctrl-C stops the run, and it goes on with: {go_on}"
        if config.output_dir
        else "Ctrl-C stops the run, and nothing of it is left",
    ]


def eval_samples(arguments: argparse.Namespace) -> dict:
    """The setting that --samples stands for."""
    if arguments.samples is None:
        return {}
    if arguments.samples < 1:
        raise ValueError(f"--samples {arguments.samples}: write a number of prompts, 1 or more")
    return {"eval_samples": arguments.samples}


def home_of(place: Path) -> dict:
    """The setting of where a run or the run of a checkpoint is, which may have been moved since it was written."""
    from ppo_lib.commands.places import is_checkpoint, run_of

    if not is_checkpoint(place):
        return {"output_dir": str(place)}
    return {"output_dir": str(run_of(place))} if place.resolve().parent.name == "checkpoints" else {}


def eval_reward(arguments: argparse.Namespace) -> dict:
    """The keyword `eval_reward` of a trainer, where one was named."""
    from ppo_lib.commands import inputs

    place = arguments.eval_reward
    return {"eval_reward": inputs.reward_function(place, "--eval-reward")} if place else {}


def rows_of(run: Path) -> list[dict]:
    """The whole lines of a run's metrics.jsonl, which may still be growing, or whose run was killed while it wrote."""
    path, rows = run / "metrics.jsonl", []
    if not path.exists():
        other = run.resolve().parent
        hint = f": name the run, {other}" if (other / path.name).exists() else ": name the `output_dir` of a run"
        raise ValueError(f"there is no run in {run}: it holds no {path.name}{hint}")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    if not rows:
        raise ValueError(f"{path} has no whole line yet")
    return rows


def hint(name: str, fault: Mapping[str, object]) -> str:
    """For who wrote Python's None in YAML, or a text that YAML takes for something else."""
    if fault["input"] in ("None", "none"):
        return "; nothing is written null"
    return f"""; a text in quotes is one, {name}='"…"'""" if fault["type"] == "string_type" else ""


def one_line(error: BaseException) -> str:
    """What `error` says, on one line."""
    if isinstance(error, pydantic.ValidationError):
        faults = [(".".join(map(str, fault["loc"])), fault) for fault in error.errors()]
        told = [(name, fault["msg"] + hint(name, fault)) for name, fault in faults]
        return "; ".join(f"`{name}`: {text}" if name else text.removeprefix("Value error, ") for name, text in told)
    told_otherwise = ("whole updates are logged", "with `resume_from_checkpoint`")  # notes of the trainer
    notes = [n for n in getattr(error, "__notes__", ()) if not any(words in n for words in told_otherwise)]
    return ": ".join(" ".join(text.split()) for text in (str(error) or type(error).__name__, *notes))
