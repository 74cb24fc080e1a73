"""The command line: what it takes, what it prints, how it fails."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml

from ppo_lib.commands import cli, inputs
from ppo_lib.commands.plan import plan
from ppo_lib.config import ReplayConfig
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.running import checkpoint

SMALL = {
    "batch_size": 4, "minibatch_size": 4, "num_ppo_epochs": 1, "max_new_tokens": 6, "total_episodes": 16,
    "eval_every": 2, "save_every": 1, "eval_samples": 2,
}  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder to work in, with a small configuration, prompts and a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SMALL | {"eval_prompts": "held.txt"}))
    (tmp_path / "held.txt").write_text("The film was\n\nI think\n")
    (tmp_path / "judge.py").write_text("def length(prompts, responses):\n    return [len(r) / 9 for r in responses]\n")
    return tmp_path


def train(*words: str) -> int:
    return cli.main(["train", "run.yaml", *words])


def metrics_of(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "eps"} for row in rows]


def failing_in_update(number: int, fail, monkeypatch):
    """Let `fail` happen in update `number` of the next run."""
    whole = PPOTrainer.train_step

    def step(self, prompts):
        if len(self.history) + 1 == number:
            fail()
        return whole(self, prompts)

    monkeypatch.setattr(PPOTrainer, "train_step", step)


def test_train_eval_and_plot(work, capsys):
    assert train("--set", "output_dir=out", "--set", "seed=3") == 0, "a small run on the command line fails"
    assert "4 updates, score" in capsys.readouterr().out, "a run ends without a word of its updates and its score"
    assert yaml.safe_load((work / "out/config.yaml").read_text())["seed"] == 3, (
        "--set is lost on the way to config.yaml"
    )
    assert [row["update"] for row in metrics_of(work / "out")] == [0, 1, 2, 3, 4], (
        "metrics.jsonl lacks an update or the evaluation at the start, or has one twice"
    )

    assert cli.main(["eval", "out", "--json"]) == 0, "a run cannot be judged"
    judged = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in judged["samples"]] == ["The film was", "I think"], (
        "a run is judged on other prompts than its `eval_prompts`"
    )
    last = metrics_of(work / "out")[-1]
    assert judged["metrics"]["eval/score"] == last["eval/score"], "the newest checkpoint is the end of the run"

    assert cli.main(["eval", "out/model", "--json"]) == 0, "the saved weights of a run cannot be judged"
    of_weights = json.loads(capsys.readouterr().out)["metrics"]
    assert of_weights["eval/kl"] == pytest.approx(last["eval/kl"], abs=1e-5), "against the model the run started from"

    assert cli.main(["eval", "reviews", "--set", "eval_prompts=held.txt", "--set", "max_new_tokens=4"]) == 0, (
        "a world cannot be judged with settings of the command line"
    )
    shown = capsys.readouterr().out
    assert "'I think'" in shown, "eval shows no response to a prompt of `eval_prompts`"
    assert "score_greedy" in shown, "eval leaves out the score of the greedy responses"

    with open(work / "out/metrics.jsonl", "a") as file:
        file.write('{"objective/scores": 0.')  # the run was killed here
    assert cli.main(["plot", "out", "-o", "seen.html"]) == 0, (
        "a half line that a kill left in metrics.jsonl stops the plot"
    )
    page = (work / "seen.html").read_text()
    assert '<script src="http' not in page, "the page loads a script from the network"
    assert "Plotly.newPlot" in page, "the page draws nothing"
    assert "held-out score" in page, "the figure leaves out the held-out score"
    assert cli.main(["resume", "out"]) == 0, "resuming a complete run is an error"
    assert "the run is complete: 4 updates" in capsys.readouterr().out, (
        "who resumes a complete run is not told that it is"
    )


def test_settings_of_the_command_line_win_over_the_file_and_the_file_over_the_preset(work):
    (work / "more.yaml").write_text("batch_size: 2\nlora_rank: 4\n")
    settings = inputs.settings_from("8gb", work / "more.yaml", ["lora_rank=2", "report_to=[console]"])
    assert settings["batch_size"] == 2, "the preset wins over the file"
    assert settings["lora_rank"] == 2, "the file wins over --set"
    assert settings["report_to"] == ["console"], "a list behind --set is lost, or not read as YAML"
    assert settings["gradient_accumulation_steps"] == 8, "the preset's own"


@pytest.mark.parametrize(
    ("words", "trainer", "expected"),
    [
        ({}, PPOTrainer, {}),
        ({"preset": "16gb"}, PPOTrainer, {"batch_size": 4}),
        ({"preset": "8gb", "replay": True}, PPOTrainerWithReplay, {"use_replay_buffer": True, "batch_size": 1}),
        ({"preset": "16gb", "replay": True}, PPOTrainerWithReplay, {"replay_buffer_size": 1000, "batch_size": 4}),
        ({"changes": ["replay_sample_size=24"]}, PPOTrainerWithReplay, {"use_replay_buffer": True, "batch_size": 16}),
        ({"preset": "32gb", "changes": ["max_replay_reuse=2"]}, PPOTrainerWithReplay,
         {"replay_buffer_size": 2000, "replay_sample_size": 64, "max_replay_reuse": 2, "use_replay_buffer": True}),
        ({"changes": ["use_replay_buffer=false", "minibatch_size=16"]}, PPOTrainerWithReplay,
         {"use_replay_buffer": False}),
        ({"file": "replay.yaml"}, PPOTrainerWithReplay, {"staleness_threshold": 3, "use_replay_buffer": True}),
        ({"file": "replay.yaml", "preset": "8gb"}, PPOTrainerWithReplay, {"use_replay_buffer": True}),
    ],
)  # fmt: skip
def test_replay_is_used_where_it_is_asked_for(work, words, trainer, expected):
    """By --replay, or by any of its settings; a preset alone does not ask for it, and brings its sizes when asked."""
    (work / "replay.yaml").write_text("staleness_threshold: 3\n")
    settings = inputs.settings_from(**{"preset": None, "file": None, "changes": []} | words)
    assert inputs.trainer_class(settings) is trainer, f"{words} chooses the wrong trainer"
    config = inputs.config_of(settings)
    assert type(config) is trainer.config_class, f"{words} makes the settings of another stage than the trainer's"
    found = {name: getattr(config, name) for name in expected}
    assert found == expected, f"{words} brings the wrong sizes, as of a preset with replay that nobody asked for"


def test_a_run_with_replay_resumes_with_its_buffer_and_is_judged(work, capsys, monkeypatch):
    words = ("--replay", "--set", "replay_sample_size=4")
    assert train(*words, "--set", "output_dir=whole") == 0, "a run with replay fails"
    with monkeypatch.context() as broken:
        failing_in_update(4, lambda: 1 / 0, broken)
        assert train(*words, "--set", "output_dir=cut") == cli.RUN_FAILED, (
            "a run that failed has another exit code than 1"
        )
    assert cli.main(["resume", "cut"]) == 0, "a run with replay cannot be resumed"
    whole = metrics_of(work / "whole")
    assert metrics_of(work / "cut") == whole, "resumed on the command line, a run with replay goes another way"
    assert whole[-1]["efficiency/trained_responses"] == 16 + 3 * 4, "nothing was replayed"
    assert cli.main(["eval", "cut"]) == 0, "a run with replay cannot be judged"
    assert cli.main(["eval", "cut/model"]) == 0, "the saved weights of a run with replay cannot be judged"
    assert cli.main(["plot", "cut"]) == 0, "a run with replay cannot be plotted"
    assert cli.main(["train", "cut/config.yaml", "--dry-run"]) == 0, "the settings saved with a run are not taken"
    assert "4 earlier responses beside 4 fresh ones" in capsys.readouterr().out, "the plan leaves out what is replayed"


def test_dry_run_states_what_is_replayed_and_what_the_buffer_takes(work, capsys):
    words = ("replay_buffer_size=20", "replay_sample_size=12", "replay_keep_best=0.5", "max_replay_reuse=2")
    assert train(*(word for setting in words for word in ("--set", setting)), "--dry-run") == 0, (
        "a dry run with settings of replay fails"
    )
    plan = capsys.readouterr().out
    place = 6 * (4 + 4 + 4) + 4 + 1 + 4 + 4 + 4 + 4  # three numbers a token, six a response
    for said in (
        "replay        12 earlier responses beside 4 fresh ones in each update",
        "a response is replayed 2 times on average (`max_replay_reuse`), so that 3 are trained on",
        f"room for 20 responses, {20 * place / 1e6:.1f} MB of main memory; it holds 20 at most, 10 of them for their",
        "steps         16: in each update 1 passes, 4 of 4 responses each",
    ):
        assert said in plan, f"the plan of replay does not say, or reckons otherwise: {said}"
    config = ReplayConfig(replay_buffer_size=20, replay_sample_size=12, minibatch_size=4, max_new_tokens=6)
    assert PPOTrainerWithReplay(config=config).buffer.nbytes == 20 * place, "the plan's buffer is not the run's"


REPLAY = {"replay_sample_size": 5, "staleness_threshold": 1, "replay_buffer_size": 100, "max_replay_kl": None,
          "min_ess": 0}  # fmt: skip


@pytest.mark.parametrize("replay", [{}, REPLAY], ids=["v1", "v2"])
def test_a_run_does_what_its_plan_says(replay, work, monkeypatch):
    """Sizes that could be mistaken for each other differ; scores stay, so that nothing but the first is a new best."""
    monkeypatch.setattr("ppo_lib.commands.plan.memory_table", lambda moments: [])
    monkeypatch.setattr("ppo_lib.commands.plan.memory_by_moment", lambda *_: {"now": {"weights": 0}})
    config = inputs.config_of(SMALL | replay | {
        "batch_size": 3, "group_size": 2, "gradient_accumulation_steps": 2, "minibatch_size": 2, "num_ppo_epochs": 2,
        "total_episodes": 43, "eval_every": 2, "save_every": 2, "keep_last": 1, "output_dir": "out", "device": "cpu",
        "eval_prompts": "held.txt",
    })  # fmt: skip
    said = {line[:14].strip(): line[14:] for line in plan(config)[0].splitlines()}
    trainer = inputs.trainer_class(replay)(config=config, eval_reward=lambda prompts, responses: [0.0] * len(prompts))
    steps, saved, held, step, save = [], [], [0], trainer.step, checkpoint.save_checkpoint
    trainer.step = lambda minibatch: steps.append((len(trainer.history), len(minibatch))) or step(minibatch)
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *given: saved.append(save(*given)))
    trainer.train(*inputs.prompts_of(config), lambda *_: held.append(len(trainer.buffer) if replay else 0) or False)

    done, responses, kept = len(trainer.history), trainer.episodes_done, checkpoint.checkpoints(trainer.checkpoint_dir)
    last = [rows for update, rows in steps if update == done - 1]
    for line, found in {
        "updates": f"{done} of {responses // done} responses, {responses} in all, of 6 tokens",
        "steps": f"{done * len(last)}: in each update 2 passes, {len(last) // 2} of {last[0]} responses each, 2 in ",
        "evaluations": f"{len(trainer.evaluations)}, sampled and greedy",
        "checkpoints": f"{len(saved)}, and one at each new best; {len(kept)} are kept",
        **({"replay": f"5 earlier responses beside {responses // done} fresh ones in each update"} if replay else {}),
        **({"buffer": f"it holds {max(held)} at most"} if replay else {}),
    }.items():
        assert found in said[line], f"the plan's {line} are {said[line]!r}, and the run had {found!r}"
    size = sum(file.stat().st_size for file in kept[-1].iterdir()) / 1e6
    assert float(said["checkpoints"].split()[-3]) == pytest.approx(size, rel=0.1), f"a checkpoint takes {size} MB"


def test_a_run_of_v1_cannot_begin_to_replay(work, capsys):
    assert train("--set", "output_dir=out", "--set", "total_episodes=4") == 0, "a run of one update fails"
    assert cli.main(["resume", "out", "--set", "replay_sample_size=4"]) == cli.BAD_INPUT, (
        "a setting of replay on a run without a buffer does not end with exit code 2"
    )
    assert "`replay_sample_size` is a setting of replay, and the run has none" in capsys.readouterr().err, (
        "who asks a run of v1 to replay is not told that it has no replay"
    )


def test_dry_run_shows_the_plan_and_touches_nothing(work, capsys, monkeypatch):
    monkeypatch.setattr("ppo_lib.commands.timing.estimate_time", lambda *_: "long")
    before = sorted(work.rglob("*"))
    assert train("--preset", "8gb", "--set", "gradient_accumulation_steps=2", "--dry-run") == 0, "a dry run fails"
    plan = capsys.readouterr().out
    assert sorted(work.rglob("*")) == before, "a dry run writes or removes a file"
    for words in (
        "the policy with its adapters off",
        "updates       2 of 8 responses, 16 in all",
        "steps         2: in each update 1 passes, 1 of 8 responses each, 4 in memory",
        "evaluations   2,",
        "checkpoints   3, and one at each new best; 3 are kept",
        "peak: ",
    ):
        assert words in plan, f"the plan does not say, or reckons otherwise: {words}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "lerning_rate=1"], "did you mean `learning_rate`?"),
        (["--set", "learning_rate=fast"], "`learning_rate`: Input should be a valid number"),
        (["--set", "total_episodes=1"], "less than one rollout"),
        (["--preset", "9gb"], "the presets are 8gb, 16gb, 32gb"),
        (["--set", "model=nowhere/at-all", "--dry-run"], "nowhere/at-all"),
        (["--reward", "judge:length"], "path/to/file.py:function"),
        (["--set", "reward=judge.py:length"], "unknown setting `reward`"),
    ],
)
def test_bad_input_is_one_clear_line_and_code_2(work, capsys, words, message):
    assert train(*words) == cli.BAD_INPUT, "bad input does not end with exit code 2"
    said = capsys.readouterr().err
    assert "Traceback" not in said, "bad input ends in a traceback"
    assert message in said, "the error does not say what is wrong with the input"
    assert said.count("\n") == 1, "the error is more than one line"


def test_yaml_cannot_run_code(work, capsys):
    (work / "run.yaml").write_text("seed: !!python/object/apply:pathlib.Path.touch [pwned]\n")
    code = train()
    assert not (work / "pwned").exists(), (
        "a file of settings runs code: it is read by a loader that makes Python objects"
    )
    assert code == cli.BAD_INPUT, "settings that would run code do not end with exit code 2"
    assert "is not YAML" in capsys.readouterr().err, "the error does not say that the settings are no plain YAML"


def test_prompts_from_lines_and_from_json_lines(work):
    assert inputs.prompts_in("held.txt") == ["The film was", "I think"], "a blank line is a prompt, or a prompt is lost"
    (work / "p.jsonl").write_text('{"prompt": "Two\\nlines", "id": 1}\n\n{"prompt": "One"}\n')
    assert inputs.prompts_in("p.jsonl") == ["Two\nlines", "One"], (
        "a prompt with a line end is torn, or a blank line is one"
    )
    (work / "p.jsonl").write_text('{"prompt": "One"}\n{"text": "Two"}\n')
    with pytest.raises(ValueError, match=r'p\.jsonl, line 2: .* field "prompt"'):
        inputs.prompts_in("p.jsonl")


@pytest.mark.parametrize(
    ("fail", "code", "word"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM"),
        (lambda: os.kill(os.getpid(), signal.SIGINT), 130, "stopped by Ctrl-C"),
        (lambda: 1 / 0, cli.RUN_FAILED, "the run failed: division by zero"),
    ],
)
def test_a_run_that_ends_early_names_its_checkpoint_and_resumes_exactly(work, capsys, monkeypatch, fail, code, word):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us deaf to it
    assert train("--set", "output_dir=whole") == 0, "the run that the test compares with fails"
    with monkeypatch.context() as broken:
        failing_in_update(3, fail, broken)
        assert train("--set", "output_dir=cut") == code, "a run that ends early has the exit code of another end"
    said = capsys.readouterr().err
    assert f"{word}, after 2 whole updates; the last checkpoint is {os.path.join('cut', 'checkpoints')}" in said, (
        "a run that ends early tells another cause, counts the broken update, or names no checkpoint"
    )
    assert "Traceback" not in said, "a run that ends early ends in a traceback"
    assert "go on with: python -m ppo_lib resume cut" in said, "a run that ends early does not say how to go on"
    assert cli.main(["resume", "cut"]) == 0, "a run that ended early cannot be resumed"
    assert metrics_of(work / "cut") == metrics_of(work / "whole"), (
        "the resumed run goes another way: a part of its state, or random numbers of the broken update, are wrong"
    )


@pytest.mark.filterwarnings("always:resumed with other settings")
def test_a_reward_function_must_be_named_again_on_resume(work, capsys, monkeypatch):
    words = ["train", "run.yaml", "--reward=judge.py:length", "--set", "output_dir=out"]
    monkeypatch.setattr(sys, "argv", ["ppo_lib", *words])
    assert cli.main([*words, "--set", "total_episodes=8"]) == 0, "a run with a reward function fails"
    assert cli.main(["resume", "out"]) == cli.BAD_INPUT, (
        "a run on a reward function is resumed on its world's own reward"
    )
    assert "name it again, --reward judge.py:length" in capsys.readouterr().err, (
        "the error does not name the run's reward"
    )
    assert cli.main(["resume", "out", "--reward", "judge.py:length", "--set", "total_episodes=16"]) == 0, (
        "a run whose reward function is named again cannot be resumed"
    )
    out = capsys.readouterr()
    assert "4 updates" in out.out, "the resumed run does not go on to its new `total_episodes`"
    assert "warning: resumed with other settings" in out.err, "the command line swallows the warning of other settings"


def test_resume_and_plot_of_nothing(work, capsys):
    assert cli.main(["resume", "absent"]) == cli.BAD_INPUT, "resume of nothing does not end with exit code 2"
    assert cli.main(["plot", "absent"]) == cli.BAD_INPUT, "plot of nothing does not end with exit code 2"
    said = capsys.readouterr().err
    assert "there is no whole checkpoint in absent" in said, "resume does not say that there is no checkpoint"
    assert "there is no run in absent: no such folder" in said, "plot does not say that there is no such folder"


def test_it_is_a_program():
    done = subprocess.run([sys.executable, "-m", "ppo_lib", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, "`python -m ppo_lib train --help` fails"
    assert "a configuration from elsewhere must not run code" in " ".join(done.stdout.split()), (
        "the help does not say why a reward is named on the command line alone"
    )
