"""The pages about v1 keep their word: its settings and defaults, and settings that move between the stages."""

import ast
import dataclasses
import re

import pytest

import toc
from ppo_lib.config import PRESETS, PPOConfig, PPOConfigV1

TEXT = (toc.ROOT / "book/v1_improvements.md").read_text("utf8")
TERM = re.compile(r"^`(\w+)` = `([^`]*)`\n: ", re.M)


def added() -> dict:
    basic = {field.name for field in dataclasses.fields(PPOConfig)}
    return {name: value for name, value in dataclasses.asdict(PPOConfigV1()).items() if name not in basic}


def test_every_setting_of_v1_is_on_the_page_with_its_default():
    shown = [(name, ast.literal_eval(default)) for name, default in TERM.findall(TEXT)]
    assert dict(shown) == added() and len(shown) == len(added())


def test_every_setting_that_the_page_speaks_of_exists():
    names = {field.name for field in dataclasses.fields(PPOConfigV1)}
    methods = re.findall(r"^- \{src\}`ppo_lib/\S+#\w*Trainer\.\w+`:.*\((.*)\)$", TEXT, re.M)
    spoken = {name for settings in methods for name in re.findall(r"`(\w+)`", settings)}
    assert spoken and spoken <= names, spoken - names


def test_settings_of_v0_are_read_by_v1_and_not_the_other_way(tmp_path):
    PPOConfig(learning_rate=3e-4, seed=7).to_yaml(tmp_path / "v0.yaml")
    read = PPOConfigV1.from_yaml(tmp_path / "v0.yaml")
    assert (read.learning_rate, read.seed, read.save_every) == (3e-4, 7, PPOConfigV1().save_every)
    PPOConfigV1().to_yaml(tmp_path / "v1.yaml")
    with pytest.raises(ValueError, match="unknown setting"):
        PPOConfig.from_yaml(tmp_path / "v1.yaml")


def test_presets_are_as_the_usage_guide_shows_them():
    guide = (toc.ROOT / "book/usage_guide.md").read_text("utf8")
    header, _, *rows = re.search(r"^\| setting \| 8gb .*?\n\n", guide, re.S | re.M).group().strip().splitlines()
    names = [cell.strip() for cell in header.strip("| ").split("|")[1:]]
    words = {"yes": True, "no": False, "none": None}
    for row in rows:
        setting, *cells = [cell.strip() for cell in row.strip("| ").split("|")]
        for name, cell in zip(names, cells, strict=True):
            value = getattr(PPOConfigV1.preset(name), re.search(r"`(\w+)`", setting).group(1))
            shown = words[cell] if cell in words else type(value)(cell)
            assert shown == value, f"the guide says {setting} = {cell} for {name}, the preset says {value}"
    for name in names:
        comment = (PRESETS / f"{name}.yaml").read_text("utf8")
        model, peak = re.search(r"# (\S+) with prompts and responses of 256 tokens: (.* GB)", comment).groups()
        assert f"- `{name}` with {model}: {peak}\n" in guide, f"the preset {name} promises {peak} with {model}"
