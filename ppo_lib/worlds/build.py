"""Rebuild the shipped files of the embedded worlds: `python -m ppo_lib.worlds.build`, or `… --check` to compare only.

Corpus → tokenizer → language model → preferences → reward model, all from fixed seeds on one CPU thread: on one machine
with the same package versions, two runs write the same bytes. It takes a few minutes and prints what it measures.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ppo_lib.rewards import bradley_terry_loss, sequence_scores
from ppo_lib.rollout import sample
from ppo_lib.worlds import grammar, reviews, sums

DATA = Path(__file__).parent / "data"
FOLDERS = ("policy", "reward_model", "sums")
CORPUS_SIZE, PROBLEMS = 20_000, 60_000
VOCABULARY = 640
PAD, EOS = "<pad>", "<eos>"
POLICY_STEPS, SUMS_STEPS, POLICY_BATCH = 1500, 3000, 128
PAIRS, HELDOUT_PAIRS, PROXY_EPOCHS, PROXY_BATCH = 6000, 2000, 3, 64
CENTRE = 0.01  # weight of the term that keeps the proxy's mean near zero (Eisenstein et al. 2023, arXiv:2312.09244)


def build_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: 2 special tokens, the 256 bytes, and merges learned from the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_policy(tokenizer: PreTrainedTokenizerFast, corpus: list[str], steps: int = POLICY_STEPS) -> LlamaForCausalLM:
    """Train a language model on the corpus, each text closed by EOS."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(reviews.llama_config(tokenizer, hidden=48, layers=2, tie_word_embeddings=True))
    texts = tokenizer([text + EOS for text in corpus], padding=True, padding_side="right", return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps, pct_start=0.05)
    for step in range(steps):
        rows = torch.randint(len(corpus), (POLICY_BATCH,))
        ids, mask = texts["input_ids"][rows], texts["attention_mask"][rows]
        width = int(mask.sum(1).max())
        ids, mask = ids[:, :width], mask[:, :width]
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(f"policy step {step + 1}: loss {loss.item():.3f} nats per token", flush=True)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def build_proxy(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str, str]]) -> PreTrainedModel:
    """Train the reward model on preference pairs with the Bradley–Terry loss −log σ(r_chosen − r_rejected)."""
    model = reviews.new_reward_model(seed=0, tokenizer=tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    pairs, order = list(pairs), random.Random(0)
    steps = PROXY_EPOCHS * (len(pairs) // PROXY_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps, pct_start=0.05)
    for _ in range(PROXY_EPOCHS):
        order.shuffle(pairs)
        for start in range(0, len(pairs) - PROXY_BATCH + 1, PROXY_BATCH):
            chosen, rejected = score_pairs(model, tokenizer, pairs[start : start + PROXY_BATCH])
            loss = bradley_terry_loss(chosen, rejected) + CENTRE * ((chosen + rejected) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def score_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the chosen [N] and of the rejected [N] texts of N pairs."""
    texts = [prompt + chosen for prompt, chosen, _ in pairs] + [prompt + rejected for prompt, _, rejected in pairs]
    chosen, rejected = sequence_scores(model, tokenizer, texts).chunk(2)
    return chosen, rejected


def report_sums(tokenizer: PreTrainedTokenizerFast, policy: PreTrainedModel) -> None:
    """Print how often the sums are right, sampled and greedy, and a few responses."""
    asked = sums.problems()[: sums.PROMPTS]
    for greedy in (False, True):
        generator = torch.Generator().manual_seed(5)
        responses = sample(policy, tokenizer, asked * 8, reviews.MAX_NEW_TOKENS, 1.0, generator, greedy).responses
        right = sum(sums.exact_match(asked * 8, responses)) / len(responses)
        print(f"sums: {right:.2%} of the {'greedy' if greedy else 'sampled'} answers are right")
    for prompt, response in zip(asked[:6], responses, strict=False):
        print(f"  {prompt}|{response}")


@torch.no_grad()
def report(tokenizer: PreTrainedTokenizerFast, policy: PreTrainedModel, proxy: PreTrainedModel) -> None:
    """Print what the world is like: base rates, lengths, the proxy's held-out accuracy, samples."""
    train, heldout = reviews.prompts()
    asked = random.Random(5).choices(train, k=8192)
    responses = reviews.sample_reviews(policy, tokenizer, asked, seed=5)
    gold = torch.tensor(reviews.gold_reward(asked, responses))
    sparse = torch.tensor(reviews.sparse_reward(asked, responses))
    lengths = torch.tensor([len(tokenizer(text).input_ids) for text in responses], dtype=torch.float)
    finished = sum(text.endswith((".", "!")) for text in responses) / len(responses)
    print(f"base gold {gold.mean():.3f} ± {gold.std():.3f}, finished {finished:.3f}, tokens {lengths.mean():.1f}")
    print(f"base rate of the rare form {sparse.mean():.4%}")
    pairs = reviews.preference_pairs(HELDOUT_PAIRS, 77, policy, tokenizer, heldout)
    chosen, rejected = score_pairs(proxy, tokenizer, pairs)
    gap = torch.tensor([reviews.gold_score(c) - reviews.gold_score(r) for _, c, r in pairs])
    won, better = chosen > rejected, gap > 0
    print(f"proxy and noisy labels agree on {won.float().mean():.3f} of {len(pairs)} held-out pairs")
    print(f"gold and noisy labels agree on {better.float().mean():.3f}")
    print(f"proxy and gold agree on {(won == better)[gap != 0].float().mean():.3f} of those that gold tells apart")
    proxies = torch.cat([chosen, rejected])
    print(f"proxy on base samples {proxies.mean():.3f} ± {proxies.std():.3f}")
    for prompt, response, score in zip(asked[:8], responses, gold, strict=False):
        print(f"  {score:+.2f}  {prompt} |{response}")


def build(folder: Path) -> None:
    """Build everything into `folder` and print what came out."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    corpus = grammar.corpus(CORPUS_SIZE)
    tokenizer = build_tokenizer(corpus)
    tokenizer.save_pretrained(folder / "policy")  # before use: the file would remember how it last padded
    policy = build_policy(tokenizer, corpus)
    policy.save_pretrained(folder / "policy")
    print(f"policy: {policy.num_parameters():,} parameters after {time.perf_counter() - start:.0f} s", flush=True)
    proxy = build_proxy(tokenizer, reviews.preference_pairs(PAIRS, 1, policy, tokenizer))
    proxy.save_pretrained(folder / "reward_model")
    print(f"reward model: {proxy.num_parameters():,} parameters after {time.perf_counter() - start:.0f} s", flush=True)
    adder = build_policy(tokenizer, sums.corpus(PROBLEMS), SUMS_STEPS)
    adder.save_pretrained(folder / "sums")
    print(f"sums: {adder.num_parameters():,} parameters after {time.perf_counter() - start:.0f} s", flush=True)
    report(tokenizer, policy, proxy)
    report_sums(tokenizer, adder)


def differences(folder: Path) -> list[str]:
    """Names of the built files in `folder` that are not byte for byte the shipped ones."""
    built = [path.relative_to(folder) for path in sorted(folder.glob("*/*"))]
    shipped = [path.relative_to(DATA) for name in FOLDERS for path in sorted((DATA / name).glob("*"))]
    return [
        str(path)
        for path in sorted({*built, *shipped})
        if path not in built or path not in shipped or (folder / path).read_bytes() != (DATA / path).read_bytes()
    ]


def main() -> None:
    """Rebuild in place, or with `--check` rebuild elsewhere and fail if a byte differs."""
    parser = argparse.ArgumentParser(description="Rebuild the shipped files of the embedded worlds.")
    parser.add_argument("--check", action="store_true", help="leave the shipped files alone and compare them")
    if not parser.parse_args().check:
        build(DATA)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        differing = differences(Path(folder))
    if differing:
        sys.exit(f"the rebuilt files differ from the shipped ones: {', '.join(differing)}")
    print("the rebuilt files are the shipped ones, byte for byte")


if __name__ == "__main__":
    main()
