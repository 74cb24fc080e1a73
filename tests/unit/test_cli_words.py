"""What the command line says: before a run, of a path that is none, of a misspelt word; numbers and bars."""

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from transformers.utils import logging as of_transformers

from ppo_lib import config, models, worlds
from ppo_lib.commands import cli, places, timing
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.running.checkpoint import name_of
from ppo_lib.running.terminal import NOISE, in_one_line, number
from ppo_lib.running.trackers import Console

SMALL = {
    "batch_size": 4, "minibatch_size": 4, "num_ppo_epochs": 1, "max_new_tokens": 6, "total_episodes": 12,
    "eval_every": 2, "save_every": 1, "eval_samples": 2, "eval_prompts": "held.txt", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with settings, prompts, rewards, and the whole run `runs/first`."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "run.yaml").write_text(yaml.safe_dump(SMALL))
    (folder / "held.txt").write_text("The film was\nI think\nWe saw\n")
    (folder / "judge.py").write_text("def length(prompts, responses):\n    return [len(r) / 9 for r in responses]\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "empty").mkdir()
    (folder / "begun").mkdir()
    for place in ("kept/model", "weights", "checked/checkpoints/update-00000001"):
        (folder / place).mkdir(parents=True)
    for place in ("kept/model", "weights"):
        (folder / place / "config.json").write_text("{}")
    (folder / "begun/metrics.jsonl").write_text('{"update": 0, "episode": 0, "eval/score": 1.0}\n')
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.setenv("TQDM_DISABLE", "1")
        assert cli.main(["train", "run.yaml", "--set", "output_dir=runs/first", "--set", "keep_last=9"]) == 0, (
            "the run that the tests of this file need fails"
        )
    return folder


@pytest.fixture
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return folder


def told(capsys, line: str, code: int = 0) -> str:
    """What the command `line` prints on stdout where it goes well, else on stderr."""
    capsys.readouterr()
    assert cli.main(shlex.split(line)) == code, f"{line}: {capsys.readouterr()}"
    said = capsys.readouterr()
    assert "Traceback" not in said.err, f"{line} shows a traceback"
    return said.err if code else said.out


# before a run


def test_a_run_says_what_it_will_do_before_it_does(work, capsys, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "train", lambda *_: 1 / 0)
    words = ["--reward", "judge.py:length"]
    assert cli.main(["train", "run.yaml", "--set", "output_dir=said", *words]) == cli.RUN_FAILED, (
        "a run that failed has another exit code than 1"
    )
    assert not Path("said").exists(), "a run that has not begun leaves a folder"
    assert capsys.readouterr().out == (
        "train reviews into said\n"
        "  v1 on cpu: 3 updates of 4 responses to 64 prompts, 6 tokens at most\n"
        "  3 held-out prompts, judged at the start, after every 2 updates and at the end\n"
        "  a checkpoint every update; Ctrl-C stops the run, and it goes on with: "
        "python -m ppo_lib resume said --reward judge.py:length\n"
    ), "a run says something else than what it will do, or says it only afterwards"


def test_a_run_without_a_folder_says_so(work, capsys):
    said = told(capsys, "train run.yaml --replay --set output_dir=null --set total_episodes=4 --set minibatch_size=8")
    assert "train reviews and keep nothing" in said, "a run without an `output_dir` does not say that it keeps nothing"
    assert "v2 on cpu: 1 update of 4" in said, "the stage, the device or the number of updates is told wrongly"
    assert "1 update, score" in said, "one update is told in the plural, or the run ends without a word"


def test_training_into_a_run_names_resume(work, capsys):
    said = told(capsys, "train run.yaml --set output_dir=runs/first", cli.BAD_INPUT)
    assert "`output_dir`='runs/first' holds an earlier run: go on with it by" in said, (
        "training into a run is refused without naming the setting and the run"
    )
    assert "python -m ppo_lib resume runs/first, or choose another folder" in said, (
        "the error does not say how to go on with the run"
    )


def test_ctrl_c_before_the_first_update_names_the_checkpoint_of_the_start(work, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(PPOTrainer, "train_step", stop)
        said = told(capsys, "train run.yaml --set output_dir=stopped", 130)
    assert f"after 0 whole updates; the last checkpoint is stopped/checkpoints/{name_of(0)}" in said, (
        "a run stopped in its first update counts it, or has no checkpoint of the start"
    )
    assert "resume stopped from update 0 of 3" in told(capsys, "resume stopped"), (
        "the run does not resume from its start"
    )


# places


@pytest.mark.parametrize("form", ["branch/checkpoints/{}", "./branch/checkpoints/{}/", "~/branch/checkpoints/{}"])
def test_a_checkpoint_is_taken_where_a_run_is(work, capsys, monkeypatch, form, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(work / "held.txt", tmp_path)
    shutil.copytree(work / "runs/first", tmp_path / "branch")
    first = form.format(name_of(1))
    assert "the policy after update 1 of its run" in told(capsys, f"eval {first}"), (
        "eval of a checkpoint judges the run's newest one"
    )
    page = Path(told(capsys, f"plot {first}").strip())
    assert page.name == f"{name_of(1)}.html", (
        "the page of a checkpoint has the name of the whole run's, or of another's"
    )
    assert page.resolve().parent == tmp_path / "branch", "the page of a checkpoint is not written into its run's folder"
    said = told(capsys, f"resume {first}")
    assert "from update 1 of 3" in said, "resume of a checkpoint goes on from the run's newest one"
    assert "what the run did after update 1 is dropped" in said, "later updates are dropped without a word"
    assert "v1 on cpu: 2 updates" in said, "the updates that are left are not counted from the named checkpoint"
    assert "the run is complete: 3 updates" in told(capsys, "resume branch/"), (
        "a run that went on from an early checkpoint does not come to its end in its own folder"
    )


def test_a_checkpoint_may_go_on_in_a_folder_of_its_own(work, capsys):
    before = (work / "runs/first/metrics.jsonl").read_bytes()
    said = told(capsys, f"resume runs/first/checkpoints/{name_of(2)} --set output_dir=other")
    assert f"resume runs/first/checkpoints/{name_of(2)}, which is of update 2, into other\n" in said, (
        "it is not told which checkpoint goes on, or into which folder"
    )
    assert (work / "runs/first/metrics.jsonl").read_bytes() == before, "a branch rewrites the log of the run it left"
    assert "dropped" not in said, "a branch is said to drop updates of the run it left"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("resume runs/frist", "there is no whole checkpoint in runs/frist: no such folder; did you mean runs/first?"),
        ("resume empty", "name the `output_dir` of a run"),
        ("resume runs", "it holds the runs first: name one of them"),
        (
            "resume kept",
            "there is no whole checkpoint in kept/checkpoints: the run kept no checkpoints (v0 keeps none); "
            "begin another from its weights: python -m ppo_lib train --set model=kept/model",
        ),
        (
            "resume weights",
            "it holds saved weights; begin a run from them: python -m ppo_lib train --set model=weights\n",
        ),
        ("resume run.yaml", "it is a file, not a folder; a run is begun with: python -m ppo_lib train run.yaml"),
        ("resume runs/first/model", "or go on with their run: python -m ppo_lib resume runs/first"),
        ("resume runs/first/checkpoints/update-3", f"did you mean runs/first/checkpoints/{name_of(3)}?"),
        ("eval runs/frist", "there is no model in runs/frist: no such folder; did you mean runs/first?"),
        ("eval revews", "no folder here (is it spelt right?)"),
        ("eval revews", "did you mean reviews?"),
        ("eval empty", "there is no model in empty: it holds no checkpoints/, no model/ and no config.json"),
        ("eval held.txt", "there is no model in held.txt: it is a file, not a folder"),
        ("plot runs/frist", "there is no run in runs/frist: no such folder; did you mean runs/first?"),
        ("plot runs/first/model", "it holds no metrics.jsonl: name the run, "),
        ("plot begun", "there is nothing to plot in begun: no update is logged yet"),
        ("plot runs/first -o nowhere/a.html", "--output nowhere/a.html: there is no folder nowhere"),
        ("train rum.yaml", "there is no file of settings 'rum.yaml': did you mean run.yaml?"),
        (
            "train runs/first",
            "is a folder, and a YAML file of settings is needed; to go on with its run: python -m "
            "ppo_lib resume runs/first\n",
        ),
        ("train begun", "a YAML file of settings is needed; to go on with its run: python -m ppo_lib resume begun\n"),
        ("train weights", "a YAML file of settings is needed; to train that model: --set model=weights\n"),
        (
            "train run.yaml --set output_dir=begun",
            "`output_dir`='begun' holds an earlier run: go on with it by python -m "
            "ppo_lib resume begun, or choose another",
        ),
        ("train reviews", "did you mean --set model=reviews?"),
        ("train 16gb", "did you mean --preset 16gb?"),
        ("train run.yaml --set output_dir=held.txt", "held.txt is a file; choose a folder"),
        ("train run.yaml --set output_dir=held.txt/a", "held.txt is a file; choose a folder"),
        ("train run.yaml --set train_prompts=hold.txt", "`train_prompts`='hold.txt' cannot be read"),
        ("train run.yaml --set model=revews", "did you mean reviews?"),
    ],
)
def test_a_place_that_is_none_is_told_in_one_line(work, capsys, line, message):
    before = sorted(work.rglob("*"))
    said = told(capsys, line, cli.BAD_INPUT)
    assert message in said, "the error does not say what is there instead, or what was meant"
    assert said.count("\n") == 1, "the error is more than one line"
    assert sorted(work.rglob("*")) == before, "it left something behind"


def test_a_folder_that_may_not_be_written_is_told_before_the_models_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(places.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="`output_dir`=.* cannot be written: no permission in"):
        places.check_output_dir(str(tmp_path / "a/b"))


# words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian run.yaml", "there is no command 'trian': did you mean train?"),
        ("--debug train", "there is no command '--debug': write one of train, resume"),
        ("train --prest 16gb", "train has no option --prest: did you mean --preset?"),
        ("resume runs/first --preset 8gb", "resume has no option --preset: it is one of train"),
        ("train run.yaml --set seed = 1", "a setting is --set name=value, in quotes where it holds spaces"),
        ("train run.yaml --set seed", "--set seed: write name=value, with no space around the ="),
        ("train --set seed=1 gamma=1", "did you mean --set gamma=1?"),
        ("train run.yaml --set kl_target=None", "`kl_target`: Input should be a valid number"),
        ("train run.yaml --set kl_target=None", "nothing is written null"),
        ("train run.yaml --samples 0", "--samples 0: write a number of prompts, 1 or more"),
        ("train run.yaml --reward judge.py:lenght", "defines no function 'lenght': did you mean length?"),
        ("train run.yaml --reward broken.py:f", "division by zero: --reward broken.py:f: running broken.py failed"),
        ("train run.yaml --reward held.txt:f", "--reward held.txt:f: the name of a Python file ends in .py"),
        ("train run.yaml --eval-reward judge:f", "--eval-reward judge:f: write path/to/file.py:function"),
        ("settings lerning_rate", "no setting has 'lerning_rate' in its name: did you mean learning_rate?"),
    ],
)
def test_a_word_that_is_wrong_is_told_in_one_line(work, capsys, line, message):
    said = told(capsys, line, cli.BAD_INPUT)
    assert message in said, "the error does not say which word is wrong, or what was meant"
    assert said.count("\n") == 1, "the error is more than one line"


def test_without_words_there_is_help(capsys):
    assert cli.main([]) == cli.BAD_INPUT, "without words the program does not end with exit code 2"
    said = capsys.readouterr().out
    assert all(name in said for name in cli.EXAMPLES), "the help leaves out a command"
    assert "examples:" in said, "the help shows no examples"


@pytest.mark.parametrize("name", cli.EXAMPLES)
def test_help_has_examples_that_are_understood(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    assert cli.EXAMPLES[name] in capsys.readouterr().out, f"the help of {name} leaves out or rewraps its examples"
    for line in cli.EXAMPLES[name].strip().splitlines():
        words = shlex.split(line.strip().partition("    ")[0])
        assert words[:4] == ["python", "-m", "ppo_lib", name], f"an example of {name} is of another command: {line}"
        cli.parser()[0].parse_args(words[3:])


def test_a_reader_that_leaves_gets_no_traceback():
    program = subprocess.Popen(
        [sys.executable, "-m", "ppo_lib", "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.close()
    with program:
        assert program.stderr.read() == b"", "a reader that leaves gets a traceback, or Python's complaint as it ends"
        assert program.wait() == cli.PIPE_CLOSED, "a program that nobody reads has another exit code than 141"


# options, one function for each that shows what it does


def trained(line: str) -> tuple[PPOTrainer, list[str], list[str]]:
    """The trainer that the command `line` would train, its prompts, and those held out."""
    with mock.patch.object(PPOTrainer, "train", autospec=True) as train:
        cli.main(shlex.split(line))  # it fails afterwards, for want of a history
    assert train.called, f"{line} trains nothing"
    return train.call_args.args


def train_config(tell):
    assert trained("train run.yaml")[0].config.max_new_tokens == 6, "the file of settings is ignored"
    assert trained("train --set output_dir=null")[0].config.max_new_tokens == 24, "without a file there are no defaults"


def train_preset(tell):
    config = trained("train --preset 16gb --set output_dir=null")[0].config
    assert (config.lora_rank, config.batch_size) == (16, 4), "--preset is ignored"


def train_replay(tell):
    for words, stage in (("", "v1"), ("--replay", "v2")):
        said = tell(f"train run.yaml {words} --set total_episodes=4 --set output_dir=null --set minibatch_size=4")
        assert f"{stage} on cpu" in said, f"train {words} is not of {stage}"


def train_dry_run(tell):
    with mock.patch("ppo_lib.commands.timing.estimate_time", return_value="long"):
        said = tell("train run.yaml --dry-run --set output_dir=dry")
    assert "updates       3 of 4 responses" in said and "time: long" in said, f"--dry-run shows no plan: {said}"
    assert not Path("dry").exists(), "--dry-run writes something"


def train_samples(tell):
    said = tell("train run.yaml --set output_dir=sampled --samples 3 --set 'report_to=[console]'").splitlines()
    lines = [line for line in said if "held out" in line and "→" in line]
    assert [line.split()[0] for line in lines] == [*"000222333"], f"--samples 3, and these are shown: {lines}"
    assert "'The film was' → '" in lines[0] and "'I think' → '" in lines[1], "samples are of other prompts"
    assert said.index(lines[3]) == 1 + next(i for i, line in enumerate(said) if line.split()[:2] == ["2", "8"]), "below"
    assert "→" not in tell("train run.yaml --set output_dir=null"), "samples are shown that nobody asked for"


def resume_samples(tell):
    shutil.copytree("runs/first", "again")
    said = tell("resume again --samples 1 --set total_episodes=16").splitlines()
    assert sum("→" in line for line in said) == 1, f"resume --samples 1 shows not 1 of them: {said}"


def eval_samples(tell):
    for wanted in (1, 2):
        shown = tell(f"eval runs/first --samples {wanted}").count("  sampled '")
        assert shown == wanted, f"eval --samples {wanted} shows {shown}"


def settings_of(command):
    def shown(tell):
        trainer, *_ = trained(f"{command} --set seed=7 --set gamma=0.5")
        assert (trainer.config.seed, trainer.config.gamma) == (7, 0.5), f"{command} --set is ignored"

    return shown


def eval_set(tell):
    judged = json.loads(tell("eval runs/first --json --set max_new_tokens=1"))["metrics"]
    assert judged["eval/length"] == 1, f"eval --set max_new_tokens=1 is ignored: {judged}"
    drawn = {tuple(row["sampled"] for row in json.loads(tell(f"eval runs/first --json --set seed={n}"))["samples"])
             for n in (0, 7, 7)}  # fmt: skip
    assert len(drawn) == 2, f"eval --set seed is ignored: {drawn}"


def reward_of(command, option, *trained_on_and_judge):
    def shown(tell):
        trainer, *_ = trained(f"{command} {option} judge.py:length")
        found = trainer.reward.__name__, trainer.eval_reward.__name__
        assert found == trained_on_and_judge, f"{command} {option} judge.py:length trains on and judges by {found}"

    return shown


def eval_reward(tell):
    told = json.loads(tell("eval runs/first --json --reward judge.py:length"))["samples"]
    lengths = [len(row["sampled"]) / 9 for row in told]
    assert [row["score"] for row in told] == pytest.approx(lengths), "eval --reward is ignored"


def resume_run(tell):
    said = tell("resume runs/first")
    assert "the run is complete: 3 updates" in said, f"resume goes on with another run: {said}"


def eval_model(tell):
    judged = f"the policy after update 3 of its run (runs/first/checkpoints/{name_of(3)}), on 3 held-out"
    assert judged in tell("eval runs/first"), "eval of a run does not judge its newest checkpoint"
    assert "saved weights (runs/first/best), on 3 held-out" in tell("eval runs/first/best/"), "eval judges others"
    assert "the model sums, on 64 held-out prompts" in tell("eval sums"), "eval of a world judges another model"


def eval_json(tell):
    told = json.loads(tell("eval runs/first --json"))
    assert len(told["samples"]) == 3 and "eval/kl" in told["metrics"], f"eval --json lacks something: {told}"


def plot_run(tell):
    assert tell("plot runs/first").strip() == "runs/first/metrics.html", "plot draws another run"
    assert "Metrics of first" in Path("runs/first/metrics.html").read_text(), "plot draws another run"


def plot_output(tell):
    for option in ("-o", "--output"):
        assert tell(f"plot runs/first {option} empty/{option}.html") == f"empty/{option}.html\n", f"{option} is ignored"
        assert Path(f"empty/{option}.html").exists(), f"{option} writes nothing"


def settings_name(tell):
    assert len(tell("settings replay_s").splitlines()) == 3 < len(tell("settings").splitlines()), "the name is ignored"


def debug(command):
    def shown(tell):
        with pytest.raises(ValueError, match="nowhere"):
            cli.main([command, "nowhere/at-all", "--debug"])
        assert "nowhere" in tell(f"{command} nowhere/at-all", cli.BAD_INPUT), f"{command} shows a traceback"

    return shown


def train_reward(tell):
    reward_of("train run.yaml", "--reward", "length", "length")(tell)
    trainer, *_ = trained("train run.yaml --reward judge.py:length --set reward_model=nowhere")
    assert trainer.reward.__name__ == "length", "`reward_model` goes over --reward"


GO_ON = "resume runs/first --set total_episodes=16"
OPTIONS = {
    "train config": train_config, "train preset": train_preset, "train replay": train_replay,
    "train dry_run": train_dry_run, "train samples": train_samples, "train set": settings_of("train run.yaml"),
    "train reward": train_reward,
    "train eval_reward": reward_of("train run.yaml", "--eval-reward", "gold_reward", "length"),
    "resume run": resume_run, "resume samples": resume_samples, "resume set": settings_of(GO_ON),
    "resume reward": reward_of(GO_ON, "--reward", "length", "length"),
    "resume eval_reward": reward_of(GO_ON, "--eval-reward", "gold_reward", "length"),
    "eval model": eval_model, "eval json": eval_json, "eval samples": eval_samples, "eval set": eval_set,
    "eval reward": eval_reward, "plot run": plot_run, "plot output": plot_output, "settings name": settings_name,
} | {f"{command} debug": debug(command) for command in cli.EXAMPLES}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "option",
    [f"{name} {a.dest}" for name, command in cli.parser()[1].items() for a in command._actions if a.dest != "help"],
)
def test_every_option_does_something(option, work, capsys):
    assert option in OPTIONS, f"nothing shows that the option of `{option}` does anything: add a function to OPTIONS"
    OPTIONS[option](lambda line, code=0: told(capsys, line, code))


def test_a_run_has_a_folder_of_its_own_and_on_a_terminal_a_table_unless_told_otherwise(work):
    with mock.patch.object(sys.stdout, "isatty", return_value=True):
        plain, told_otherwise = trained("train")[0], trained("train --set report_to=[] --set output_dir=mine")[0]
    assert (plain.config.report_to, told_otherwise.config.report_to) == (["console"], []), "`report_to` on a terminal"
    assert Path(plain.config.output_dir).parent.name == "runs", (
        "without an `output_dir` a run has no folder below runs/"
    )
    assert told_otherwise.config.output_dir == "mine", "the `output_dir` that was set is replaced by the program's own"
    assert trained("train")[0].config.report_to == [], "a table is printed where nobody reads it"


# settings


def test_every_setting_is_described_once_with_its_default(capsys):
    rows = {row["name"]: row for row in config.described_settings()}
    stages = {"v0": config.PPOConfig(), "v1": config.PPOConfigV1(), "v2": config.ReplayConfig()}
    assert rows.keys() == vars(stages["v2"]).keys(), "a setting is left out of the list, or one is listed that is none"
    for name, row in rows.items():
        assert len(row["text"]) > 5 and "None" not in row["text"], f"{name} has no line behind it, or speaks Python"
        default, _, later = row["default"].partition(" (v2: ")
        for stage, shown in ((row["stage"], default), ("v2", later.rstrip(")") or default)):
            read = type(stages[stage])(**{name: config.read_yaml(shown)})
            assert read == stages[stage], f"{name} has another default in {stage}"
        assert [stage for stage in stages if hasattr(stages[stage], name)][0] == row["stage"], (
            f"{name} is listed with another stage than the one that brings it"
        )
    for name in config.descriptions(config.ReplayConfig):
        assert name in config.ReplayConfig.__annotations__, f"{name} is read from somewhere else"
    listed = told(capsys, "settings").splitlines()
    assert len(listed) == 1 + len(rows), "a setting is printed on no line, or on more than one"
    assert max(map(len, listed)) < 150, "a line of the list of settings is too long for a terminal"
    assert [line.split()[0] for line in told(capsys, "settings CLIP").splitlines()] == [
        "setting", "cliprange", "cliprange_value", "cliprange_high",
    ], "a name in capital letters finds other settings"  # fmt: skip


# a dry run's time


def test_a_dry_run_times_an_update_and_leaves_no_trace(work, capsys):
    before, random = sorted(work.rglob("*")), torch.get_rng_state()
    said = told(capsys, "train run.yaml --dry-run --samples 2")
    assert sorted(work.rglob("*")) == before, "a dry run leaves a file behind, or removes one"
    assert torch.equal(torch.get_rng_state(), random), "a dry run uses up random numbers of the process"
    [time] = [line for line in said.splitlines() if line.startswith("time: ")]
    assert time.startswith("time: about "), f"a dry run measures no time: {time}"
    assert ": 3 updates of " in time, f"the time is of another number of updates: {time}"
    assert " and 3 evaluations of " in time, f"the time is of another number of evaluations: {time}"
    assert "an estimate from one measured update on this machine (cpu)" in time, (
        f"the time is not called an estimate, or not with the machine it is of: {time}"
    )
    said = told(capsys, "train run.yaml --replay --dry-run --set output_dir=runs/first")
    assert "output        runs/first; it would not begin: `output_dir`='runs/first' holds an earlier run" in said, (
        "a plan into the folder of an earlier run does not say that the run would not begin"
    )
    assert "time: about " in said, "no time is told where an earlier run lies in `output_dir`, or with replay"


def test_a_time_is_that_of_all_updates_and_evaluations(monkeypatch):
    monkeypatch.setattr(timing, "_update", lambda trainer: 3.0)
    monkeypatch.setattr(timing, "_evaluation", lambda trainer, heldout: 10.0)
    run = config.PPOConfigV1(**SMALL | {"total_episodes": 4000, "eval_prompts": None})
    hours = (1000 * 3 + 501 * 10) / 3600
    said = timing.estimate_time(run, None, 0)
    assert said.startswith(f"about {hours:.1f} h: 1000 updates of 3 s and 501 evaluations of 10 s"), (
        f"the time leaves out updates or evaluations, or the evaluation at the start: {said}"
    )
    assert [timing.spoken(seconds) for seconds in (0.0312, 42.4, 90, 5400)] == [
        "0.031 s",
        "42 s",
        "1.5 min",
        "1.5 h",
    ], "a time is told in another unit, or with other digits"


@pytest.mark.parametrize(
    ("settings", "peak", "why"),
    [
        ({"model": "somebody/some-model"}, 0, "not measured: the model's weights are not on this machine"),
        ({"mixed_precision": "fp16", "device": "cpu"}, 0, "not measured: `mixed_precision`='fp16' needs a GPU"),
        ({}, 1e15, "not measured: 1000000.0 GB are needed"),
    ],
)
def test_a_time_that_cannot_be_measured_says_why(settings, peak, why):
    assert timing.estimate_time(config.PPOConfigV1(**settings), None, peak).startswith(why), (
        "a time that cannot be measured is told all the same, or with another cause"
    )


# samples


def test_samples_need_held_out_prompts(work, capsys):
    words = "--set model=runs/first/model --set train_prompts=held.txt --set eval_prompts=null --reward judge.py:length"
    said = told(capsys, f"train run.yaml {words} --samples 2 --set output_dir=none", cli.BAD_INPUT)
    assert not Path("none").exists(), "a run that is refused leaves a folder"
    assert "there are none: set `eval_prompts`" in said, "the error does not say that --samples needs `eval_prompts`"


# numbers and bars


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(-4.047e-07, ".4g", "0"), (5.9e-8, ".4g", "0"), (-0.0, ".4g", "0"), (-0.0004, ".3f", "0.000"),
     (-0.0006, ".3f", "-0.001"), (-1e-5, ".4g", "-1e-05"), (12345, ".4g", "12345"), (float("nan"), ".4g", "nan"),
     (0.12345, ".4g", "0.1235"), (NOISE, ".1g", "5e-06")],
)  # fmt: skip
def test_noise_around_0_is_0(value, form, text):
    assert number(value, form) == text, "noise around 0 is shown, or what is no noise is taken for it or rounded"


def test_the_table_shows_a_small_learning_rate_and_whole_counts(capsys):
    Console().log({"update": 12345, "episode": 1234567, "objective/kl": -4e-7, "lr": 1e-6, "eval/score": None})
    assert capsys.readouterr().out.splitlines()[1].split() == ["12345", "1234567", "0", "1e-06"], (
        "the table takes a small learning rate for noise, rounds a count, or prints a value that is missing"
    )


def test_a_text_stays_on_one_line():
    assert in_one_line("a\nb", 9) == "'a\\nb'", "a line end within a text breaks the line"
    assert in_one_line("abc", 3) == "'abc'", "a text that just fits is cut"
    assert in_one_line("abcdef", 4, end=True) == "'…def'", "with `end` other letters than the last are shown"
    assert in_one_line("abcdef", 3) == "'ab…'", "a long text is cut at another letter, or not marked as cut"
    assert in_one_line("abcdef", 3, end=True) == "'…ef'", "with `end` the end of the text is cut off, not its beginning"


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_transformers_stay_away_and_as_the_user_set_them(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", drawn := io.StringIO())
    monkeypatch.setattr(of_transformers, "_tqdm_active", shown)
    world = worlds.load("reviews")
    models.save_models(tmp_path / "a", world.model, world.tokenizer, models.Critic.from_policy(world.model))
    models.load_policy(str(tmp_path / "a"))
    models.load_critic(str(tmp_path / "a"))
    assert drawn.getvalue() == "", "transformers draws its bars between the trainer's own"
    assert of_transformers.is_progress_bar_enabled() is shown, (
        "the user's own switch of transformers' bars is not put back"
    )
    world.model.save_pretrained(tmp_path / "b")
    assert ("Writing model shards" in drawn.getvalue()) is shown, "bars of other saves are the user's own"


@pytest.mark.parametrize(
    ("name", "place"),
    [("kept", Path("kept/model")), ("weights", Path("weights")), ("runs/first", Path("runs/first")),
     ("runs/first/checkpoints", Path("runs/first")), (f"runs/first/checkpoints/{name_of(2)}", None), ("sums", "sums"),
     ("somebody/some-model", "somebody/some-model")],
)  # fmt: skip
def test_what_is_judged_is_the_model_that_a_name_means(work, name, place):
    assert places.to_judge(name) == (Path(name) if place is None else place), f"{name} is taken for another model"


def test_a_checkpoint_is_known_by_its_name_and_by_its_manifest(work, tmp_path):
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / places.MANIFEST).write_text("{}")
    known = [places.is_checkpoint(path) for path in (tmp_path / "copied", Path("checked/checkpoints/update-00000001"))]
    assert known == [True, True], "a copied or a broken checkpoint is not known for one"
    assert not places.is_checkpoint(work / "empty"), "any folder is taken for a checkpoint"
