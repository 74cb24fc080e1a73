"""The embedded worlds: what they promise, and that the shipped files are what the grammar and the build script make."""

import hashlib
import json
import random
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib import worlds
from ppo_lib.config import PPOConfig
from ppo_lib.rollout import sample
from ppo_lib.worlds import build, grammar, reviews, sums

CORPUS_HASH, PROBLEMS_HASH = "60582c3d951c3e25", "5d970ff3a523de66"


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
    assert len(world.prompts) >= 64, "there are too few prompts to train on"
    assert len(world.heldout_prompts) >= 64, "there are too few held-out prompts"
    assert len(set(everything)) == len(everything), "a prompt appears twice, or is both trained on and held out"
    lengths = {len(world.tokenizer(prompt).input_ids) for prompt in world.prompts}
    assert len(lengths) >= 5, "prompts of one length would hide padding bugs"


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_round_trips(world, text):
    text = text.replace("<pad>", "").replace("<eos>", "")
    tokenizer = world.tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text, (
        "a text comes back changed: the tokenizer is not byte-level, normalises, or cleans up spaces"
    )


def test_special_tokens_and_padding(world):
    tokenizer = world.tokenizer
    assert tokenizer.eos_token_id != tokenizer.pad_token_id, "with EOS = PAD, a mask made from tokens loses the end"
    assert world.model.config.eos_token_id == tokenizer.eos_token_id, "the model's config names another EOS"
    assert world.model.generation_config.eos_token_id == tokenizer.eos_token_id, (
        "the generation config names another EOS: `generate` would not stop where the tokenizer ends"
    )
    batch = tokenizer(["The film", "As a fan of the book, I must say the film"], padding=True, return_tensors="pt")
    assert batch.input_ids[0, 0] == tokenizer.pad_token_id, "padding must go on the left of a prompt"
    assert batch.attention_mask[0].sum() == 2, (
        "padding is attended to, or a prompt is given a token that is not its own"
    )


def test_openings_and_responses_meet_at_a_token_boundary(world):
    for prompt in world.prompts:
        whole = world.tokenizer(prompt + " dull.").input_ids
        assert whole == world.tokenizer(prompt).input_ids + world.tokenizer(" dull.").input_ids, (
            f"a token spans the end of the prompt {prompt!r} and the response: the policy cannot write that text"
        )


def test_each_load_is_a_fresh_copy(world):
    other = worlds.load("reviews")
    with torch.no_grad():
        other.model.model.norm.weight.zero_()
    assert world.model.model.norm.weight.abs().sum() > 0, "two loads share their weights"


def test_base_model_is_neutral_fluent_and_ends_by_itself(world, base_sample):
    asked, responses = base_sample
    gold = torch.tensor(world.reward(asked, responses))
    assert abs(gold.mean()) < 0.15, f"the base model should be neutral, its mean gold reward is {gold.mean():.3f}"
    assert gold.std() > 0.7, "the base model's reviews are too alike for a reward to tell them apart"
    assert gold.std() < 1.3, "the base model's reviews are further apart than the world promises"
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
    assert rate > 0.002, f"the rare form is hardly ever sampled: a base rate of {rate:.2%}"
    assert rate < 0.008, f"the rare form is not rare: a base rate of {rate:.2%}"
    assert sparse.reward(["The film", "The film"], [" was slow. Ten out of ten.", " was slow."]) == [1.0, 0.0], (
        "the sparse reward misses the rare form, because of its capital or what precedes it, or pays for another"
    )


def test_the_sparse_world_starts_from_the_same_model(world):
    sparse = worlds.load("reviews-sparse")
    assert sparse.prompts == world.prompts, "the sparse world trains on other prompts than `reviews`"
    assert sparse.heldout_prompts == world.heldout_prompts, "the sparse world holds out other prompts than `reviews`"
    for (name, weight), other in zip(world.model.named_parameters(), sparse.model.parameters(), strict=True):
        assert torch.equal(weight, other), f"the sparse world starts from another model: {name} differs"


def test_sampling_is_deterministic(world):
    first = reviews.sample_reviews(world.model, world.tokenizer, world.prompts, seed=8)
    assert first == reviews.sample_reviews(world.model, world.tokenizer, world.prompts, seed=8), (
        "the same seed gives other reviews: sampling draws from the process's generator too"
    )
    assert first != reviews.sample_reviews(world.model, world.tokenizer, world.prompts, seed=9), "`seed` is ignored"


def test_new_reward_model_depends_on_its_seed_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again, other = (reviews.new_reward_model(seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(first, again), "the same seed makes another reward model"
    assert not torch.equal(first, other), "`seed` is ignored: every new reward model is the same"
    assert torch.equal(before, torch.random.get_rng_state()), "making a model moved the global random state"


def test_gold_score_knows_valence():
    good, bad = reviews.gold_score(" wonderful."), reviews.gold_score(" terrible.")
    assert good > 0, "praise is scored as blame"
    assert good == -bad, "praise and blame of the same strength do not mirror each other"
    assert good > 0.9, "the strongest praise hardly counts"
    assert reviews.gold_score(" truly wonderful.") > good, "an intensifier does not make praise stronger"
    assert good > reviews.gold_score(" slightly wonderful."), "a weakening word does not make praise weaker"
    assert reviews.gold_score(" never wonderful.") < 0, "a negation does not turn praise into blame"
    assert reviews.gold_score(" hardly terrible.") > 0, "a negation does not turn blame into praise"
    assert reviews.gold_score(" hardly terrible.") < good, "praise by negated blame counts in full"
    assert reviews.gold_score(" the film.") == 0.0, "words without valence are scored"


def test_a_negation_reaches_two_words_ahead():
    scores = [reviews.gold_score(f"{words} superb.") for words in ("not", "not the", "not a the", "the a the")]
    assert scores[0] < 0 and scores[1] < 0, f"a negation one or two words before is not heard: {scores}"
    assert scores[2] > 0 and scores[3] > 0, f"a negation three words before is heard: {scores}"


@pytest.mark.parametrize("name", [name for name in worlds.NAMES if name != "smollm2"])
def test_a_world_is_called_by_its_name(name):
    world = worlds.load(name)
    assert world.name == name, f"the world {name} calls itself {world.name}"
    with pytest.raises(ValueError):
        world.reward(["a", "b"], ["c"])


def test_gold_score_saturates():
    few = reviews.gold_score(" superb and moving, gripping and lovely.")
    many = reviews.gold_score(" superb and moving, gripping and lovely, brilliant and charming, clever and funny.")
    assert few < many, "more praise does not count for more"
    assert many < reviews.SATURATION, "praise counts without end: the sum does not saturate"
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
    loss = reviews.gold_score(better) - reviews.gold_score(worse)
    assert loss > 0, f"{worse!r} costs nothing: the policy would learn to write so"
    assert loss == pytest.approx(cost), f"{worse!r} costs {loss:.3g} instead of its price"


def test_gold_score_has_a_floor():
    assert reviews.gold_score(" superb" * 100) >= reviews.FLOOR, "repetition is punished without end: there is no floor"
    assert reviews.gold_score(" superb" * 100) == reviews.FLOOR, "saying one word a hundred times is not the worst"
    assert reviews.gold_score("") == -reviews.UNFINISHED_COST, (
        "an empty response costs another price than being unfinished"
    )


def test_reward_needs_as_many_responses_as_prompts(world):
    with pytest.raises(ValueError):
        world.reward(["a", "b"], [" superb."])


def test_preferences_are_noisy_but_informative():
    pairs = reviews.preference_pairs(512, seed=6)
    assert len(pairs) == 512, "not as many pairs are made as were asked for"
    assert pairs == reviews.preference_pairs(512, seed=6), "the same seed gives other pairs"
    agree = sum(reviews.gold_score(chosen) > reviews.gold_score(rejected) for _, chosen, rejected in pairs) / 512
    assert agree > 0.5, f"chosen and rejected are swapped: the judge agrees with gold on {agree:.1%} of the pairs"
    assert agree > 0.7, f"the judge is too noisy to learn from: it agrees with gold on {agree:.1%} of the pairs"
    assert agree < 0.93, (
        f"the judge hardly errs, so no proxy is fooled: it agrees with gold on {agree:.1%} of the pairs"
    )


def test_proxy_agrees_with_gold_on_heldout_openings(world):
    pairs = reviews.preference_pairs(512, seed=7, openings=world.heldout_prompts)
    proxy = reviews.load_proxy_model()
    with torch.no_grad():
        chosen, rejected = build.score_pairs(proxy, world.tokenizer, pairs)
    accuracy = (chosen > rejected).float().mean()
    assert accuracy > 0.5, f"held-out accuracy {accuracy:.3f}: chosen and rejected are swapped, or nothing was learned"
    assert accuracy > 0.7, f"held-out accuracy {accuracy:.3f}: the shipped reward model has learned too little"


def test_proxy_can_be_fooled_where_gold_cannot(world):
    honest, gamed = " superb and moving.", " superb and moving, superb and moving, superb and moving."
    scores = reviews.load_reward_model()(["The film was", "The film was"], [honest, gamed])
    assert scores[1] > scores[0], "the proxy should fall for repeated praise, else over-optimisation cannot be seen"
    assert reviews.gold_score(gamed) < reviews.gold_score(honest), "the gold reward falls for repeated praise as well"


def test_grammar_is_the_one_the_model_was_trained_on():
    text = "\n".join(grammar.corpus(2000)).encode()
    assert hashlib.sha256(text).hexdigest().startswith(CORPUS_HASH), (
        "the grammar changed: rebuild the shipped files with `python -m ppo_lib.worlds.build`, then update this hash"
    )


def test_shipped_tokenizer_is_rebuilt_exactly():
    rebuilt = build.build_tokenizer(grammar.corpus(build.CORPUS_SIZE))
    shipped = json.loads((build.DATA / "policy" / "tokenizer.json").read_text())
    model = json.loads(rebuilt.backend_tokenizer.to_str())["model"]
    assert model["merges"] == shipped["model"]["merges"], "the shipped tokenizer has other merges than the build makes"
    assert model["vocab"] == shipped["model"]["vocab"], "the shipped tokenizer numbers its tokens otherwise"


def test_shipped_files_are_small():
    size = sum(path.stat().st_size for path in build.DATA.rglob("*") if path.is_file())
    assert size <= 2_000_000, f"the shipped worlds have grown too large to embed: {size:,} bytes"


def test_a_changed_shipped_file_is_noticed(tmp_path):
    for name in build.FOLDERS:
        shutil.copytree(build.DATA / name, tmp_path / name)
    assert build.differences(tmp_path) == [], "an exact copy of the shipped files is said to differ"
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (tmp_path / "reward_model" / "config.json").unlink()
    found = build.differences(tmp_path)
    assert "policy/model.safetensors" in found, "changed weights go unnoticed"
    assert "reward_model/config.json" in found, "a missing file goes unnoticed"
    assert found == ["policy/model.safetensors", "reward_model/config.json"], (
        "a file that is the same is said to differ"
    )


@pytest.fixture(scope="module")
def adding():
    return worlds.load("sums")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" about 132", 132),
        (" 7+5=12, 4+8+1=13, 132", 132),
        (" 7+5=12, 4+8=12, 122", 122),
        (" 132, 13", 13),
        (" about 0132", 132),
        ("", None),
        (" 132", None),
        ("132", None),
        (" about", None),
        (" about 132.", None),
        (" about 132 ", None),
        (" about 132, maybe", None),
        (" about 13 2", None),
        (" about -132", None),
        (" About 132", None),
        (" about 13200", None),
        (" 7+5=12,132", None),
        (" about 132\n", None),
    ],
)
def test_the_answer_is_the_last_number_of_a_guess_or_a_working(response, answer):
    assert sums.answer_of(response) == answer, f"{response!r} is taken to answer {sums.answer_of(response)}"
    assert sums.exact_match(["47+85="], [response]) == [float(answer == 132)], (
        f"{response!r} is paid for another answer than it gives"
    )


@settings(max_examples=100, deadline=None)
@given(a=st.integers(10, 99), b=st.integers(10, 99), wrong=st.integers(0, 9999), seed=st.integers(0, 99))
def test_the_reward_of_a_sum_is_exact(a, b, wrong, seed):
    """Whatever the working says before: only the number at its end counts."""
    prompt, rng = f"{a}+{b}=", random.Random(seed)
    right = [sums.working(prompt), f" about {a + b}", f" 1+1=3, {a + b}"]
    said = [f" about {wrong}", sums.guess(prompt, rng), f"{sums.working(prompt)}, {wrong}"]
    assert sums.exact_match([prompt] * 3, right) == [1.0] * 3, "a right answer is not rewarded"
    paid = sums.exact_match([prompt] * 3, said)
    assert paid[1] == 0, "a guess that misses the sum is rewarded"
    assert paid[0] == float(wrong == a + b), "a guess is rewarded for another number than its own"
    assert paid[2] == float(wrong == a + b), "a right working is rewarded in spite of the wrong number at its end"


def test_sums_need_as_many_responses_as_prompts():
    with pytest.raises(ValueError):
        sums.exact_match(["1+1=", "2+2="], [" about 2"])


def test_sums_are_distinct_and_short_enough(adding):
    everything = adding.prompts + adding.heldout_prompts
    assert len(set(everything)) == len(everything), "a sum is asked twice, or is both trained on and held out"
    assert len(everything) == sums.PROMPTS + sums.HELDOUT, "there are other numbers of sums than are promised"
    assert set(everything) <= set(sums.problems()), "a sum is asked that is none of two numbers from 10 to 99"
    assert len(sums.problems()) == 90 * 90, "not every sum of two numbers from 10 to 99 is there once"
    longest = max(len(adding.tokenizer(sums.working(problem) + build.EOS).input_ids) for problem in sums.problems())
    assert longest <= PPOConfig().max_new_tokens, f"a whole working has {longest} tokens: it would be cut off"
    assert adding.tokenizer(everything[0]).input_ids + adding.tokenizer(" about 1").input_ids == (
        adding.tokenizer(everything[0] + " about 1").input_ids
    ), "prompt and response do not meet at a token boundary"


def test_the_model_of_sums_guesses_mostly_and_works_it_out_now_and_then(adding):
    asked, shares = adding.prompts * 4, {}
    for name, prompts in (("prompts", asked), ("held out", adding.heldout_prompts * 8)):
        stream = torch.Generator().manual_seed(3)
        rollout = sample(adding.model, adding.tokenizer, prompts, PPOConfig().max_new_tokens, generator=stream)
        shares[name] = sum(adding.reward(prompts, rollout.responses)) / len(prompts)
        worked_out = sum("=" in response for response in rollout.responses) / len(prompts)
        assert worked_out > 0.08, f"only {worked_out:.1%} of the sums are worked out: PPO would seldom see it pay"
        assert worked_out < 0.25, f"as many as {worked_out:.1%} of the sums are worked out: there is little to learn"
        assert rollout.ended.float().mean() > 0.97, "responses do not end by themselves"
    assert all(0.1 < share < 0.25 for share in shares.values()), f"base rates of right answers: {shares}"


def test_the_sums_are_those_the_model_was_trained_on():
    text = "\n".join(sums.corpus(2000)).encode()
    assert hashlib.sha256(text).hexdigest().startswith(PROBLEMS_HASH), (
        "the sums changed: rebuild the shipped files with `python -m ppo_lib.worlds.build`, then update this hash"
    )


def test_the_files_of_sums_are_compared_with_a_rebuild(tmp_path):
    for name in build.FOLDERS:
        shutil.copytree(build.DATA / name, tmp_path / name)
    weights = tmp_path / "sums" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert build.differences(tmp_path) == ["sums/model.safetensors"], "changed weights of `sums` go unnoticed"


TWO = ["The film was slow.", "I loved it, all of it."]


def test_what_a_world_is_built_from_is_learned(monkeypatch):
    """In a hundred steps: two texts by heart, their end included, and nothing of the padding behind the shorter one."""
    monkeypatch.setattr(build, "POLICY_BATCH", 8)
    tokenizer = reviews.load_tokenizer()
    model = build.build_policy(tokenizer, TWO, steps=100)
    assert not model.training and model.num_parameters() == reviews.load_policy_model().num_parameters()
    ends = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    assert ends == (tokenizer.eos_token_id, tokenizer.pad_token_id), "generation does not know EOS and padding"
    rollout = sample(model, tokenizer, ["The", "I"] * 8, 24, greedy=True)
    texts = {prompt + response for prompt, response in zip(rollout.prompts, rollout.responses, strict=True)}
    assert texts == set(TWO) and rollout.ended.all(), f"the two texts are not learned to their end, but {texts}"
    with torch.no_grad():
        ids = torch.tensor([[*tokenizer(TWO[0])["input_ids"], tokenizer.eos_token_id]])
        after = torch.softmax(model(input_ids=ids).logits[0, -1], -1)[tokenizer.pad_token_id].item()
    assert after < 0.5, "padding is learned as if it were text"


def test_a_proxy_learns_what_it_is_shown_and_stays_near_0(monkeypatch):
    monkeypatch.setattr(build, "PROXY_BATCH", 16)
    tokenizer = reviews.load_tokenizer()
    pairs = [("The film", f" was {good}.", f" was {bad}.") for good in ("superb", "great", "a delight", "moving")
             for bad in ("slow", "dull", "a mess", "awful")] * 16  # fmt: skip
    model = build.build_proxy(tokenizer, pairs)
    assert not model.training, "a proxy is left in training mode"
    with torch.no_grad():
        chosen, rejected = build.score_pairs(model, tokenizer, pairs[:16])
        [alone], _ = build.score_pairs(model, tokenizer, pairs[:1])
    assert (chosen > rejected + 1).all(), "a proxy does not tell apart what it was shown 48 times"
    assert torch.allclose(chosen[0], alone, atol=1e-4), "a score depends on the texts beside it"
    middle = torch.cat([chosen, rejected]).mean().abs().item()
    assert middle < 0.5 * (chosen - rejected).mean().item(), f"scores lie around {middle:.1f}, and not around 0"


def test_a_world_is_built_of_three_parts_and_compared(monkeypatch, tmp_path, capsys):
    made, asked = [], []
    model = reviews.load_policy_model()

    def policy(tokenizer, corpus, steps=build.POLICY_STEPS):
        made.append((len(corpus), steps))
        return model

    def proxy(tokenizer, pairs):
        made.append(len(pairs))
        return reviews.load_reward_model().model

    monkeypatch.setattr(build, "CORPUS_SIZE", 2000)
    monkeypatch.setattr(build, "PROBLEMS", 30)
    monkeypatch.setattr(build, "PAIRS", 20)
    monkeypatch.setattr(build, "build_policy", policy)
    monkeypatch.setattr(build, "build_proxy", proxy)
    monkeypatch.setattr(build, "report", lambda *parts: asked.append(parts))
    monkeypatch.setattr(build, "report_sums", lambda *parts: asked.append(parts))
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        build.build(tmp_path)
        assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled(), "two builds may differ"
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
    assert made == [(2000, build.POLICY_STEPS), 20, (30, build.SUMS_STEPS)], f"other parts are built: {made}"
    assert {path.parent.name for path in tmp_path.glob("*/model.safetensors")} == set(build.FOLDERS), "a part is lost"
    assert (tmp_path / "policy/tokenizer.json").exists(), "the tokenizer is not saved beside the policy"
    assert [len(parts) for parts in asked] == [3, 2], "what was built is not reported"
    for words, message in ((["--check"], "differ from the shipped ones: policy/config.json, "), ([], None)):
        monkeypatch.setattr("sys.argv", ["build", *words])
        where = []
        monkeypatch.setattr(build, "build", lambda folder, where=where: where.append(folder))
        if message:
            monkeypatch.setattr(build, "differences", lambda folder: ["policy/config.json", "sums/x"])
            with pytest.raises(SystemExit, match=message):
                build.main()
            monkeypatch.setattr(build, "differences", lambda folder: [])
            build.main()
            assert "byte for byte" in capsys.readouterr().out, "that nothing differs is not said"
            assert build.DATA not in where, "`--check` builds over the shipped files"
        else:
            build.main()
            assert where == [build.DATA], "without `--check` the shipped files are not built anew"
