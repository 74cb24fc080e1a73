"""The front page's run and scene, and the map of the loop: what they show is what is stored and what is there."""

import dataclasses
import json
import re

import pytest
import torch

import loop_map
import scene
import toc
from ppo_lib import worlds
from ppo_lib.config import PPOConfig
from ppo_lib.lab import stored

RUN = stored.load("front_page/run.json")
MEANS = stored.load("front_page/updates.csv")
ROWS = stored.load("front_page/responses.csv")


@pytest.fixture
def program(program_of):
    return program_of("front_page")


def test_the_program_stores_what_the_page_reads(program, tmp_path, monkeypatch):
    """Before the first update the policy is the stored run's, to the letter; here nothing is learned in it."""
    monkeypatch.setattr(program, "SHOWN", 64)
    monkeypatch.setattr(program.PPOTrainer, "update", lambda trainer, rollout: {})
    program.main(["--updates=1", f"--results={tmp_path}"])
    run, means, rows = (stored.load(str(tmp_path / name)) for name in ("run.json", "updates.csv", "responses.csv"))
    assert run.keys() - {"commit"} <= RUN.keys() and (run["seed"], run["dice"]) == (RUN["seed"], RUN["dice"])
    assert run["settings"] | {"total_episodes": 960} == RUN["settings"]
    assert [row["update"] for row in means] == [0, 1] and means[0].keys() == MEANS[0].keys()
    assert rows[0].keys() == ROWS[0].keys() and len(rows) == 2 * run["prompts"] == 128
    at_first = {row["prompt"]: row for row in rows if row["update"] == 0}
    for row in ROWS[: len(RUN["shown"])]:
        assert at_first[row["prompt"]]["response"] == row["response"], "the stored run is not this program's"
    assert means[0]["score"] == pytest.approx(MEANS[0]["score"], abs=1e-4)
    again = {row["prompt"]: row["response"] for row in rows if row["update"] == 1}
    assert again == {prompt: row["response"] for prompt, row in at_first.items()}, "each look has dice of its own"


def test_the_critics_guess_is_its_last_word_before_the_text_is_whole(program):
    trainer, prompts = program.PPOTrainer(seed=0, device="cpu"), worlds.load("reviews").heldout_prompts[:8]
    torch.nn.init.normal_(trainer.critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    _, rows = program.look(trainer, prompts)
    rollout = trainer.respond(prompts, torch.Generator().manual_seed(program.DICE))
    with torch.no_grad():
        values = trainer.values(rollout)
    for row, of_row, length in zip(rows, values.tolist(), rollout.lengths.tolist(), strict=True):
        assert row["guess"] == pytest.approx(of_row[length - 1], abs=1e-5), "the guess is of another moment"


def test_the_most_ordinary_responses_are_shown(program):
    """Near the mean before *and* after: neither the best ones nor those that gained most."""

    def look(mean, scores):
        return {"score": mean}, [{"prompt": prompt, "score": score} for prompt, score in scores.items()]

    before = look(0.0, {"best": 0.9, "plain": 0.1, "gains most": -2.0, "falls": 0.0, "even": -0.1})
    after = look(1.0, {"best": 2.1, "plain": 1.1, "gains most": 2.0, "falls": -1.0, "even": 0.6})
    assert program.most_ordinary([before, look(9.0, {}), after]) == ["plain", "even", "best"], "not the ordinary ones"


def test_the_stored_run_is_v0_with_its_defaults_and_seed_0():
    assert RUN["settings"] == dataclasses.asdict(PPOConfig(device="cpu")), "a setting was chosen for the page"
    assert (RUN["seed"], RUN["threads"], RUN["changed_since_commit"]) == (0, 1, [])
    assert RUN["updates"] == 30 == PPOConfig().total_episodes // PPOConfig().batch_size
    assert [row["update"] for row in MEANS] == list(range(31))
    shown = [(row["update"], row["prompt"]) for row in ROWS]
    assert sorted(shown) == sorted((update, prompt) for update in range(31) for prompt in RUN["shown"])


def test_the_stored_texts_earn_the_stored_scores():
    world = worlds.load("reviews")
    assert set(RUN["shown"]) <= set(world.heldout_prompts) and RUN["prompts"] == len(world.heldout_prompts)
    earned = world.reward([row["prompt"] for row in ROWS], [row["response"] for row in ROWS])
    assert [row["score"] for row in ROWS] == pytest.approx(list(earned), abs=1e-5), "a stored score is not earned"
    for row in ROWS:
        assert row["kl"] == pytest.approx(row["logprob"] - row["ref_logprob"], abs=1e-3)


def test_what_the_page_says_of_the_run():
    """The mean rises by far more than chance, from a policy that is the reference and a critic that knows nothing."""
    first, last = MEANS[0], MEANS[-1]
    assert abs(first["kl"]) < 1e-5 and last["kl"] > 1 and last["score"] > first["score"] + 1
    assert {row["guess"] for row in ROWS if row["update"] == 0} == {0.0}
    for update, mean in ((0, first["score"]), (30, last["score"])):
        for row in ROWS:
            assert row["update"] != update or abs(row["score"] - mean) < 0.25, "a shown response is not ordinary"


@pytest.fixture(scope="module")
def page():
    return scene.figure(scene.content())


def test_the_scene_shows_the_end_of_the_run_without_javascript(page):
    prompt = RUN["shown"][0]
    first, last = (next(r for r in ROWS if (r["update"], r["prompt"]) == (u, prompt)) for u in (0, 30))
    for row in (first, last):
        assert f"<i>{prompt}</i><q>{row['response']}</q>" in page
        assert f"<b>{row['score']:.2f}</b>".replace("-", "−") in page
    for name, value in (
        ("score", f"{last['score']:.2f}"), ("guess", f"{last['guess']:.2f}"), ("mean", f"{MEANS[-1]['score']:.2f}"),
        ("kl", f"{MEANS[-1]['kl']:.1f}"),
    ):  # fmt: skip
        assert set(re.findall(f'data-show="{name}">([^<]*)<', page)) == {value}


def test_the_scene_carries_the_whole_run_and_is_small(page):
    played = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert played["updates"] == [[round(row["score"], 2), round(row["kl"], 2)] for row in MEANS]
    for row in ROWS:
        numbers = [round(row["score"], 2), round(row["guess"], 2)]
        assert played["answers"][row["prompt"]][int(row["update"])] == [row["response"], *numbers]
    assert len(page.encode()) < 60_000


def test_the_whole_curve_fits_its_scale():
    assert all(0 < scene.height(row["score"]) < 1 for row in MEANS)
    assert max(row["kl"] for row in MEANS) < scene.DRIFT, "the tie between policy and reference would turn over"


@pytest.mark.parametrize("name", ["policy", "critic", "reference", "reward"])
def test_each_of_the_four_says_in_one_sentence_what_it_does(page, name):
    (said,) = re.findall(rf'<section class="who {name}">.*?<p>(.*?)</p>', page)
    words = re.sub("<[^>]+>", "", said)
    assert words.startswith(f"The {name} ") and words.endswith(".") and words.count(".") == 1, words


@pytest.mark.parametrize(
    ("score", "guess", "said"),
    [(1.5, 1.2, "0.30 above guess"), (-0.5, 0.25, "0.75 below guess"), (1.0, 1.0, "As guessed")],
)
def test_what_the_critic_says_of_a_score(score, guess, said):
    assert scene.surprise(score, guess) == said


# The map of the loop


def test_every_chapter_has_one_box_in_the_order_of_the_book():
    chapters = [path.stem for path in toc.chapters(toc.read())]
    assert [box.chapter for box in loop_map.BOXES] == chapters, "a chapter without a box, or a box without a chapter"


@pytest.mark.parametrize("box", loop_map.BOXES, ids=lambda box: box.name)
def test_a_box_leads_to_code_and_to_an_equation_that_name_each_other(box):
    path, _, name = box.code.partition("#")
    source = (toc.ROOT / path).read_text("utf8")
    assert re.search(rf"^\s*(def|class) {name.split('.')[-1]}\b", source, re.M), f"{box.code} is not there"
    line = (toc.ROOT / "book/notation.md").read_text("utf8").split(f"({box.equation})=\n")[1].split("\n(eq-")[0]
    assert line.startswith(f"**{box.name}.**") and "$$" in line
    assert f"</chapters/{box.chapter}>" in line and f"{{src}}`{box.code}`" in line


@pytest.mark.parametrize("layout", [loop_map.WIDE, loop_map.NARROW], ids=lambda layout: layout.name)
def test_boxes_stand_apart_and_within_the_picture(layout):
    assert layout.places.keys() == {box.number for box in loop_map.BOXES}
    places = list(layout.places.values())
    for at, (x, y) in enumerate(places):
        assert x >= 0 <= y and x + loop_map.WIDTH <= layout.size[0] and y + loop_map.HEIGHT <= layout.size[1]
        for other, top in places[:at]:
            assert abs(x - other) > loop_map.WIDTH or abs(y - top) > loop_map.HEIGHT, "two boxes overlap"


@pytest.mark.parametrize("layout", [loop_map.WIDE, loop_map.NARROW], ids=lambda layout: layout.name)
def test_the_lines_join_the_boxes_that_belong_together(layout):
    """The loop 1 → 2 → … → 6 → 1; replay leaves it at 3, and comes back through buffer and weights at 4."""
    drawn = {ends_at(layout, path) for path in re.findall("M[^M]+", layout.loop + layout.side)}
    loop = {("1", "2"), ("2", "3"), ("3", "4"), ("4", "5"), ("5", "6"), ("6", "1")}
    replay = {("3", "11"), ("11", "10"), ("10", "4")}
    assert drawn == loop | replay | {("7", "5"), ("6", "8"), ("2", "9"), ("1", "12")}


def ends_at(layout, path):
    """The boxes nearest to where a path begins and ends."""
    points, at = [], (0.0, 0.0)
    for letter, numbers in re.findall(r"([MhvHVqQ])([^A-Za-z]*)", path):
        values = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", numbers)]
        if letter == "M":
            at = (values[0], values[1])
        elif letter == "h":
            at = (at[0] + values[0], at[1])
        elif letter == "v":
            at = (at[0], at[1] + values[0])
        elif letter == "q":
            at = (at[0] + values[2], at[1] + values[3])
        points.append(at)

    def nearest(point):
        def gap(number):
            x, y = layout.places[number]
            across = max(x - point[0], point[0] - x - loop_map.WIDTH, 0)
            return across + max(y - point[1], point[1] - y - loop_map.HEIGHT, 0)

        return min(layout.places, key=gap)

    return nearest(points[0]), nearest(points[-1])


@pytest.mark.parametrize("box", loop_map.BOXES, ids=lambda box: box.name)
def test_one_box_is_lit_and_its_name_is_said(box):
    picture = loop_map.figure(box.chapter, lambda other, kind: f"{other.chapter}/{kind}")
    for svg in re.findall(r"<svg.*?</svg>", picture, re.S):
        (lit,) = re.findall(r'<g class="box current">.*?</g>', svg)
        assert f'href="{box.chapter}/chapter"' in lit and svg.count('aria-current="page"') == 1
        assert svg.count("<a ") == 3 * len(loop_map.BOXES)
    assert f"You are here: {box.number} {box.name}," in re.search(r'<nav[^>]*aria-label="([^"]*)"', picture)[1]


def test_a_box_without_a_page_is_no_link():
    picture = loop_map.figure("04_advantages", lambda box, kind: None if box.number == "5" else "there")
    assert picture.count("<a ") == 2 * 3 * 11 + 1, "a box whose chapter is not built still is a link"
