"""The embedded worlds: what they promise, and that the shipped files are what the grammar and the build script make."""

import hashlib
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib import worlds
from ppo_lib.worlds import build, grammar, reviews

CORPUS_HASH = "60582c3d951c3e25"


@pytest.fixture(scope="module")
def world():
    return worlds.load("reviews")


@pytest.fixture(scope="module")
def base_sample(world):
    asked = world.prompts * 64
    return asked, reviews.sample_reviews(world.model, world.tokenizer, asked, seed=3)


def test_unknown_world_is_named():
    with pytest.raises(ValueError, match="'nowhere'.*reviews-sparse"):
        worlds.load("nowhere")


def test_prompts_are_distinct_and_of_different_lengths(world):
    everything = world.prompts + world.heldout_prompts
    assert len(world.prompts) >= 64 and len(world.heldout_prompts) >= 64
    assert len(set(everything)) == len(everything), "a prompt appears twice, or is both trained on and held out"
    lengths = {len(world.tokenizer(prompt).input_ids) for prompt in world.prompts}
    assert len(lengths) >= 5, "prompts of one length would hide padding bugs"


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_round_trips(world, text):
    text = text.replace("<pad>", "").replace("<eos>", "")
    tokenizer = world.tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_and_padding(world):
    tokenizer = world.tokenizer
    assert tokenizer.eos_token_id != tokenizer.pad_token_id, "with EOS = PAD, a mask made from tokens loses the end"
    assert world.model.config.eos_token_id == world.model.generation_config.eos_token_id == tokenizer.eos_token_id
    batch = tokenizer(["The film", "As a fan of the book, I must say the film"], padding=True, return_tensors="pt")
    assert batch.input_ids[0, 0] == tokenizer.pad_token_id, "padding must go on the left of a prompt"
    assert batch.attention_mask[0].sum() == 2


def test_openings_and_responses_meet_at_a_token_boundary(world):
    for prompt in world.prompts:
        whole = world.tokenizer(prompt + " dull.").input_ids
        assert whole == world.tokenizer(prompt).input_ids + world.tokenizer(" dull.").input_ids, prompt


def test_each_load_is_a_fresh_copy(world):
    other = worlds.load("reviews")
    with torch.no_grad():
        other.model.model.norm.weight.zero_()
    assert world.model.model.norm.weight.abs().sum() > 0, "two loads share their weights"


def test_base_model_is_neutral_fluent_and_ends_by_itself(world, base_sample):
    asked, responses = base_sample
    gold = torch.tensor(world.reward(asked, responses))
    assert abs(gold.mean()) < 0.15, f"the base model should be neutral, its mean gold reward is {gold.mean():.3f}"
    assert 0.7 < gold.std() < 1.3
    finished = sum(text.endswith((".", "!")) for text in responses) / len(responses)
    assert finished > 0.98, f"only {finished:.1%} of the reviews end by themselves"
    lexicon = grammar.lexicon()
    words = [word for text in responses for word in reviews.words_of(text)]
    assert sum(word in lexicon for word in words) / len(words) > 0.995, "the base model writes words of no review"
    assert len(set(responses)) > 0.8 * len(responses), "the base model repeats itself across samples"


def test_rare_form_is_rare_but_present(base_sample):
    asked, responses = base_sample
    sparse = worlds.load("reviews-sparse")
    rate = sum(sparse.reward(asked, responses)) / len(responses)
    assert 0.002 < rate < 0.008, f"the rare form has a base rate of {rate:.2%}"
    assert sparse.reward(["The film", "The film"], [" was slow. Ten out of ten.", " was slow."]) == [1.0, 0.0]


def test_the_sparse_world_starts_from_the_same_model(world):
    sparse = worlds.load("reviews-sparse")
    assert sparse.prompts == world.prompts and sparse.heldout_prompts == world.heldout_prompts
    for (name, weight), other in zip(world.model.named_parameters(), sparse.model.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_sampling_is_deterministic(world):
    first = reviews.sample_reviews(world.model, world.tokenizer, world.prompts, seed=8)
    assert first == reviews.sample_reviews(world.model, world.tokenizer, world.prompts, seed=8)
    assert first != reviews.sample_reviews(world.model, world.tokenizer, world.prompts, seed=9)


def test_new_reward_model_depends_on_its_seed_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again, other = (reviews.new_reward_model(seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state()), "making a model moved the global random state"


def test_gold_score_knows_valence():
    good, bad = reviews.gold_score(" wonderful."), reviews.gold_score(" terrible.")
    assert good == -bad > 0.9, "the two sides should mirror each other"
    assert reviews.gold_score(" truly wonderful.") > good > reviews.gold_score(" slightly wonderful.")
    assert reviews.gold_score(" never wonderful.") < 0 < reviews.gold_score(" hardly terrible.") < good
    assert reviews.gold_score(" the film.") == 0.0


def test_gold_score_saturates():
    few = reviews.gold_score(" superb and moving, gripping and lovely.")
    many = reviews.gold_score(" superb and moving, gripping and lovely, brilliant and charming, clever and funny.")
    assert few < many < reviews.SATURATION
    assert many - few < few / 2, "the second half of the praise should add less than the first"


@pytest.mark.parametrize(
    ("better", "worse", "cost"),
    [
        (" superb.", " superb. superb.", reviews.REPEAT_COST),
        (" superb.", " superb the the.", reviews.REPEAT_COST),
        (" superb.", " superb qzx.", reviews.UNKNOWN_COST),
        (" superb.", " superb", reviews.UNFINISHED_COST),
    ],
)
def test_gold_score_punishes_degenerate_text(better, worse, cost):
    assert reviews.gold_score(better) - reviews.gold_score(worse) == pytest.approx(cost)


def test_gold_score_has_a_floor():
    assert reviews.gold_score(" superb" * 100) == reviews.FLOOR
    assert reviews.gold_score("") == -reviews.UNFINISHED_COST


def test_reward_needs_as_many_responses_as_prompts(world):
    with pytest.raises(ValueError):
        world.reward(["a", "b"], [" superb."])


def test_preferences_are_noisy_but_informative():
    pairs = reviews.preference_pairs(512, seed=6)
    assert len(pairs) == 512 and pairs == reviews.preference_pairs(512, seed=6)
    agree = sum(reviews.gold_score(chosen) > reviews.gold_score(rejected) for _, chosen, rejected in pairs) / 512
    assert 0.7 < agree < 0.93, f"the judge agrees with gold on {agree:.1%} of the pairs"


def test_proxy_agrees_with_gold_on_heldout_openings(world):
    pairs = reviews.preference_pairs(512, seed=7, openings=world.heldout_prompts)
    proxy = reviews.load_proxy_model()
    with torch.no_grad():
        chosen, rejected = build.score_pairs(proxy, world.tokenizer, pairs)
    accuracy = (chosen > rejected).float().mean()
    assert accuracy > 0.7, f"held-out accuracy {accuracy:.3f}: the shipped reward model has learned too little"


def test_proxy_can_be_fooled_where_gold_cannot(world):
    honest, gamed = " superb and moving.", " superb and moving, superb and moving, superb and moving."
    scores = reviews.load_reward_model()(["The film was", "The film was"], [honest, gamed])
    assert scores[1] > scores[0], "the proxy should fall for repeated praise, else over-optimisation cannot be seen"
    assert reviews.gold_score(gamed) < reviews.gold_score(honest)


def test_grammar_is_the_one_the_model_was_trained_on():
    text = "\n".join(grammar.corpus(2000)).encode()
    assert hashlib.sha256(text).hexdigest().startswith(CORPUS_HASH), (
        "the grammar changed: rebuild the shipped files with `python -m ppo_lib.worlds.build`, then update this hash"
    )


def test_shipped_tokenizer_is_rebuilt_exactly():
    rebuilt = build.build_tokenizer(grammar.corpus(build.CORPUS_SIZE))
    shipped = json.loads((build.DATA / "policy" / "tokenizer.json").read_text())
    model = json.loads(rebuilt.backend_tokenizer.to_str())["model"]
    assert model["vocab"] == shipped["model"]["vocab"] and model["merges"] == shipped["model"]["merges"]


def test_shipped_files_are_small():
    size = sum(path.stat().st_size for path in build.DATA.rglob("*") if path.is_file())
    assert size <= 2_000_000, f"{size:,} bytes"


def test_a_changed_shipped_file_is_noticed(tmp_path):
    for name in build.FOLDERS:
        shutil.copytree(build.DATA / name, tmp_path / name)
    assert build.differences(tmp_path) == []
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (tmp_path / "reward_model" / "config.json").unlink()
    assert build.differences(tmp_path) == ["policy/model.safetensors", "reward_model/config.json"]
