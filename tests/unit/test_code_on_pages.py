"""The pages keep their word: each of their code blocks runs as it stands, for a few updates."""

import dataclasses
import inspect
import json
import re
import shlex

import pytest

import toc
from ppo_lib import ppo, worlds

PAGES = [
    "usage_guide",
    "v1_improvements",
    "replay_guide",
    "versions_compared",
    "decision_guide",
]
BLOCK = re.compile(r"<!-- (?:run|file: (?P<file>\S+)) -->\n```(?P<language>\w+)\n(?P<code>.*?)```", re.S)
SMALL = {"batch_size": 4, "minibatch_size": 4, "max_new_tokens": 4, "num_ppo_epochs": 1}
UPDATES = 3


def read(page: str) -> str:
    return (toc.ROOT / f"book/{page}.md").read_text("utf8")


def blocks(text: str):
    """(line, what, code) of each marked block: what is a language to run, or the name of a file to write."""
    for found in BLOCK.finditer(text):
        yield text.count("\n", 0, found.start("code")), found["file"] or found["language"], found["code"]


@pytest.fixture
def small_runs(monkeypatch):
    """Every trainer does a few small updates, whatever its settings say, and the world has few prompts."""
    load, load_world = ppo.PPOTrainer._load, worlds.load

    def load_small(trainer, *arguments):
        config = trainer.config
        for name, most in SMALL.items():
            setattr(config, name, min(most, getattr(config, name)))
        config.total_episodes = min(UPDATES * config.rollout_size, config.total_episodes)
        load(trainer, *arguments)

    def few_prompts(name: str = "reviews") -> worlds.World:
        world = load_world(name)
        return dataclasses.replace(world, prompts=world.prompts[:8], heldout_prompts=world.heldout_prompts[:8])

    monkeypatch.setattr(ppo.PPOTrainer, "_load", load_small)
    monkeypatch.setattr(worlds, "load", few_prompts)


def run_commands(code: str) -> None:
    """Each line is a command `python -m ppo_lib …`; they run in this process."""
    from ppo_lib.commands.cli import main

    for command in code.replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if words:
            assert words[:3] == ["python", "-m", "ppo_lib"], f"{command!r} is no command that can be tested"
            assert not main(words[3:]), f"`{command}` fails"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, small_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    world = worlds.load()
    names = {"prompts": world.prompts, "train_dataset": world.prompts, "eval_dataset": world.heldout_prompts}
    for line, what, code in blocks(read(page)):
        try:
            if what == "python":
                exec(compile("\n" * line + code, f"{page}.md", "exec"), names)
            elif what == "bash":
                run_commands(code)
            else:
                (tmp_path / what).write_text(code, encoding="utf-8")
        except Exception as error:
            error.add_note(f"in the block at line {line} of book/{page}.md")
            raise
    assert any("PPOTrainer" in code for _, what, code in blocks(read(page)) if what == "python"), "no block was run"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_marked(page):
    text = read(page)
    fences = [language for language in re.findall(r"^```(\w+)$", text, re.M) if language != "text"]
    assert len(list(blocks(text))) == len(fences) > 0, f"a code block of book/{page}.md has no `<!-- run -->` above it"


def test_the_lines_that_chapter_1_begins_with_are_the_trainers():
    """In their order, each leads to the chapter that builds it."""
    cells = json.loads((toc.ROOT / "chapters/01_text_as_decisions.ipynb").read_text("utf8"))["cells"]
    [table] = [text for text in ("".join(cell["source"]) for cell in cells) if "`PPOTrainer.train_step`" in text]
    rows = re.findall(r"^\d\. `([^`]+)`: (.*)$", table, re.M)
    code = inspect.getsource(ppo.PPOTrainer.train_step)
    places = [code.find(line) for line, _ in rows]
    assert len(rows) == 5 and places == sorted(places) and min(places) > 0, f"not `train_step`'s lines: {rows}"
    linked = [name for _, where in rows for name in re.findall(r"\((\w+)\.ipynb\)", where)]
    assert {name[:2] for name in linked} == {"02", "03", "04", "05", "06"}, f"the lines lead to {linked}"
    assert all((toc.ROOT / f"chapters/{name}.ipynb").exists() for name in linked), f"one of {linked} is no chapter"
