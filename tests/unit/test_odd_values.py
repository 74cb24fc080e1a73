"""Values with a separator in them: `=`, `:`, `,`, `#`, quotes, blanks, wherever a run is given a text."""

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppo_lib.commands import cli, inputs
from ppo_lib.config import PPOConfigV1
from ppo_lib.data import PPODataset
from ppo_lib.running.trackers import append_yaml

PLAIN = [
    "runs/lr=0.1", "a=b=c", "=a", "a=", "a:b", "a::b", ":a", "C:\\runs\\a", "http://a:1/b", "a,b", "a, b", "a;b", "a b",
    "runs/a #1", "runs/#1", "#1", "it's", 'a "b" c', "a 'b'", "-a", "--a", "-1a", "läufe/ü", "走る/😀", "a|b", "a>b",
    "100%", "a*", "a?", "a&b", "&a b", "a\x85b", "a\nb", "1e-3/a", "a[0]", "a{b}", "$HOME/a", "a~", "~a/b", "v1.2",
    "1.2.3", "1e", "inf", "nan", "none", "None", "...a", "--- a",
]  # fmt: skip
SOMETHING_ELSE = [
    "1e-3", "1e5", "-1", "0.5", "010", "12:30", "1_000", "true", "no", "off", "2026-01-31", "a: b", "a:", "- a", "? a",
    "[a]", "[a, b]", "{a}", "{a: b}", ".inf", ".nan",
]  # fmt: skip
NO_YAML = ["[a", "{a", "@a", "`a", "*a", "%a", "!a", "'a", '"a', "a: b: c", "=", "<<"]
NOTHING = ["", "null", "Null", "~"]


def set_to(name: str, value: str):
    """What `--set name=value` makes of a setting; in words, where it is refused."""
    try:
        return getattr(inputs.config_of(inputs.pairs([f"{name}={value}"])), name.strip())
    except ValueError as error:
        return f"refused: {cli.one_line(error)}"


@pytest.mark.parametrize("name", ["output_dir", "project"])
def test_a_text_behind_set_is_taken_as_it_is_typed(name):
    for value in PLAIN:
        assert set_to(name, value) == value, f"--set {name}={value} is taken for {set_to(name, value)!r}"


def test_a_text_that_yaml_takes_for_something_else_is_refused_by_name_and_taken_in_quotes(capsys):
    for value in SOMETHING_ELSE:
        assert cli.main(["train", "--set", f"project={value}"]) == cli.BAD_INPUT, f"--set project={value} is accepted"
        said = capsys.readouterr().err
        assert "`project`: Input should be a valid string" in said and """project='"…"'""" in said, f"{value}: {said}"
        for quoted in (f'"{value}"', f"'{value}'"):
            assert set_to("project", quoted) == value, f"--set project={quoted} is {set_to('project', quoted)!r}"


def test_what_is_no_yaml_is_refused_in_one_line(capsys):
    for value in NO_YAML:
        assert cli.main(["train", "--set", f"project={value}"]) == cli.BAD_INPUT, f"--set project={value} is accepted"
        said = capsys.readouterr().err
        assert f"--set project={value}: the value is not YAML" in said and said.count("\n") == 1, f"{value}: {said}"


def test_nothing_is_null_where_a_setting_may_be():
    for value in NOTHING:
        assert set_to("output_dir", value) is None, f"--set output_dir={value} is a folder"
        said = set_to("project", value)
        assert said.startswith("refused: `project`: Input should be a valid string"), f"--set project={value} is {said}"


def test_a_value_behind_set_is_of_its_settings_kind(monkeypatch):
    monkeypatch.setenv("HOME", "/my/own")
    for name, value, expected in [
        ("learning_rate", "1e-3", 1e-3), ("learning_rate", "1E-3", 1e-3), ("learning_rate", ".5", 0.5),
        ("learning_rate", "1", 1.0), ("learning_rate", "'1e-3'", 1e-3), ("total_episodes", "1e3", 1000),
        ("total_episodes", "960 # a day", 960), (" seed ", " 3 ", 3), ("kl_stop", "null", None), ("kl_stop", "~", None),
        ("whiten_advantages", "no", False), ("whiten_advantages", "false", False), ("whiten_advantages", "on", True),
        ("mixed_precision", "no", "no"), ("report_to", "[console]", ["console"]), ("report_to", "[]", []),
        ("lr_scheduler_kwargs", "{step_size: 2, gamma: 1e-1}", {"step_size": 2, "gamma": 0.1}),
        ("lr_scheduler_kwargs", '{"a=b": "c: d"}', {"a=b": "c: d"}), ("train_prompts", "~/a b.txt", "/my/own/a b.txt"),
        ("train_prompts", "'~/a'", "/my/own/a"), ("train_prompts", "a/~/b", "a/~/b"),
    ]:  # fmt: skip
        found = set_to(name, value)
        assert found == expected and type(found) is type(expected), f"--set {name}={value} is taken for {found!r}"


def test_the_last_of_two_changes_counts():
    assert inputs.pairs(["seed=1", "project=a", "seed=2"]) == {"seed": 2, "project": "a"}, "an earlier --set wins"


def assert_written_and_read(text: str, folder: Path) -> None:
    config = PPOConfigV1(model=f"m{text}", output_dir=text, project=text, lr_scheduler_kwargs={text: [text]})
    config.to_yaml(folder / "config.yaml")
    try:
        again = PPOConfigV1.from_yaml(folder / "config.yaml")
    except ValueError as error:
        raise AssertionError(f"`project`={text!r} in the config.yaml of a run cannot be read: {error}") from error
    assert again == config, f"`project`={text!r} is {again.project!r} in the config.yaml of a run"


def test_a_file_of_settings_holds_any_text(tmp_path):
    for value in [*PLAIN, *SOMETHING_ELSE, *NO_YAML, *NOTHING]:
        assert_written_and_read(value, tmp_path)
        if "'" not in value and "\n" not in value and "\x85" not in value:
            text = f"project: '{value}' # or another\nseed: 1\n"
            (tmp_path / "run.yaml").write_text(text, encoding="utf-8-sig")
            config = PPOConfigV1.from_yaml(tmp_path / "run.yaml")
            assert (config.project, config.seed) == (value, 1), f"{text!r} is taken for {config.project!r}"


@given(text=st.text())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_settings_that_a_run_writes_are_those_it_had(text, tmp_path):
    assert_written_and_read(text, tmp_path)


# files


ODD_NAMES = ["lr=0.1", "a:b", "a, b", "a #1", "it's", 'a "b"', "-a", "ü", "v1.2", "a;b&c"]
LINES = ["a=b", "a: b", "- a", "# a", '"a"', "'a", "a,b", "a\tb", "  a  ", "{a", "null", "true", "1e-3", "-a", "ü 😀",
         "a\\nb"]  # fmt: skip


def test_prompts_arrive_as_they_stand_in_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ODD_NAMES:
        plain, objects = Path(f"{name}.txt"), Path(f"{name}.jsonl")
        plain.write_text("\n".join(LINES), encoding="utf-8")
        objects.write_text("\n".join(json.dumps({"prompt": line, "text": "no"}) for line in LINES), encoding="utf-8")
        changes = {"model": "mine"} | inputs.pairs([f"train_prompts={plain}", f"eval_prompts={objects}"])
        train, heldout = inputs.prompts_of(inputs.config_of(changes))
        assert train == LINES, f"lines of {plain} change on the way: {train}"
        assert heldout == LINES, f"prompts of {objects} change on the way: {heldout}"


def test_a_table_gives_the_column_that_is_named():
    for column in (*ODD_NAMES, "columns", "text: a=b"):
        table = pd.DataFrame({"prompt": ["no"] * len(LINES), column: LINES})
        assert PPODataset(table, column=column).prompts == LINES, f"column={column!r} is not the one that is taken"


@pytest.fixture
def modules(monkeypatch):
    """What is imported is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("file", ["my judge", "judge.v2", "judge-2", "ürteil", "a=b:c"])
def test_a_reward_is_found_whatever_its_file_is_called(file, tmp_path, monkeypatch, modules):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (*ODD_NAMES, "~"):
        path = tmp_path / folder.replace("~", "") / f"{file}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def score(prompts, responses):\n    return [{len(folder)}.5] * len(prompts)\n")
        place = f"{folder}/{file}.py:score"
        found = inputs.reward_function(place)(["a"], ["b"])
        assert found == [len(folder) + 0.5], f"--reward {place} is another function"
        with pytest.raises(ValueError) as caught:
            inputs.reward_function(f"{folder}/{file}.py:scores")
        assert "defines no function 'scores': did you mean score?" in str(caught.value), f"{place}: {caught.value}"
        for words in ([f"--reward={place}", "--set", "project=--reward"], *([["--reward", place]] * (folder != "-a"))):
            Path("sessions.yaml").unlink(missing_ok=True)
            append_yaml(Path("sessions.yaml"), {"command": shlex.join(["python", "ppo_lib", "train", *words])})
            assert inputs.reward_named_before(Path()) == place, f"the reward of {words} is forgotten on resume"


# a whole run


ODD = "runs/lr=0.1, a:b #1 it's ü"


def commands_in(text: str) -> list[list[str]]:
    """The commands of this program that `text` tells to type, as a shell takes them."""
    lines = [line.partition("python -m ppo_lib ")[2] for line in text.splitlines() if "python -m ppo_lib " in line]
    lines = [line.partition("; ")[0].partition(", or choose another")[0] for line in lines]
    try:
        return [shlex.split(line) for line in lines]
    except ValueError as error:
        raise AssertionError(f"it tells to type what no shell takes ({error}): {lines}") from error


def typed(*words: str, code: int = 0) -> str:
    """What a command prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = cli.main(list(words))
    assert found == code, f"{words} ends with {found}: {err.getvalue()}"
    return out.getvalue() + err.getvalue()


def test_a_run_in_an_oddly_named_folder_is_begun_resumed_judged_and_drawn(tmp_path, monkeypatch, modules):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    Path("run =1.yaml").write_text(yaml.safe_dump({
        "batch_size": 4, "minibatch_size": 4, "num_ppo_epochs": 1, "max_new_tokens": 4, "total_episodes": 8,
        "eval_every": 2, "save_every": 1, "device": "cpu", "eval_prompts": "held #1.txt",
    }))  # fmt: skip
    Path("held #1.txt").write_text("a=b: c\n# d\n")
    Path("the judge.v2.py").write_text("def score(prompts, responses):\n    return [len(r) / 9 for r in responses]\n")
    words = ["train", "run =1.yaml", "--set", f"output_dir={ODD}", "--reward", "the judge.v2.py:score"]
    monkeypatch.setattr(sys, "argv", ["ppo_lib", *words])
    said = typed(*words)
    assert (tmp_path / ODD / "metrics.jsonl").exists(), f"`output_dir` was another: {sorted(tmp_path.rglob('*'))}"
    [resume] = commands_in(said)
    assert resume == ["resume", ODD, "--reward", "the judge.v2.py:score"], f"typed as it is told, it goes on {resume}"
    assert "the run is complete" in typed(*resume)
    assert commands_in(typed(*words, code=cli.BAD_INPUT)) == [["resume", ODD]], "it tells to resume another folder"
    forgotten = typed("resume", ODD, code=cli.BAD_INPUT)
    assert shlex.split(forgotten.splitlines()[0].partition("again, ")[2]) == resume[2:], f"it tells to type {forgotten}"
    told = typed("resume", f"{ODD}/model", code=cli.BAD_INPUT).replace(", or go on", "\n")
    assert commands_in(told) == [["train", "--set", f"model={ODD}/model"], ["resume", ODD]], f"it tells to type {told}"
    judged = json.loads(typed("eval", ODD, "--reward", "the judge.v2.py:score", "--json"))
    assert [row["prompt"] for row in judged["samples"]] == ["a=b: c", "# d"], "held-out prompts change on the way"
    assert typed("plot", ODD, "-o", "a=b: c.html").strip() == "a=b: c.html", "the page was written elsewhere"
    assert "<title>Metrics of lr=0.1, a:b #1 it&#x27;s ü</title>" in Path("a=b: c.html").read_text("utf8")
