"""The networks: policy (any causal language model), critic (its trunk with a value head), frozen reference.

Adapters (LoRA) and other ways to less memory are in `running/memory.py`.
"""

import copy
import functools
import glob
import inspect
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, is_peft_available

from ppo_lib.running.terminal import no_foreign_bars

CRITIC_FOLDER = "critic"
VALUE_HEAD_FILE = "value_head.safetensors"
WRITTEN_ASIDE = ".ppo_lib-writing-"  # in the name of a folder that is being written: nobody else calls one so


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the forward pass of `model` has an argument of this name."""
    return argument in _arguments_of(type(model).forward)


@functools.cache
def _arguments_of(forward: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def model_inputs(model: nn.Module, tokens: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Arguments of `model.forward` for `tokens` [B, L], the last L places of left-padded `attention_mask` [B, L' ≥ L].

    The first real token of a row has position 0.
    """
    inputs = {"input_ids": tokens, "attention_mask": attention_mask}
    if takes(model, "position_ids"):
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    return inputs


def trunk_of(policy: PreTrainedModel) -> PreTrainedModel:
    """The network below the head of `policy`, whose last states the head reads; AttributeError where there is none."""
    trunk: Any = policy.base_model
    if trunk is policy:  # a model that is part of a larger one may name its trunk otherwise
        trunk = policy.model
    return trunk


class Critic(nn.Module):
    """V(s): the trunk of a language model with a linear value head, which starts at V = 0."""

    def __init__(self, trunk: PreTrainedModel):
        super().__init__()
        self.trunk = trunk
        config = trunk.config.get_text_config()
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size  # OPT may project its last layer
        self.value_head = nn.Linear(width, 1, dtype=trunk.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> "Critic":
        """A critic that starts from a copy of the policy's trunk and shares no weights with it."""
        return cls(copy.deepcopy(trunk_of(policy))).to(policy.device)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """`tokens` [B, L] → values [B, L]; the value at i is that of the text up to and including token i."""
        hidden = self.trunk(**model_inputs(self.trunk, tokens, attention_mask), use_cache=False).last_hidden_state
        return self.values(hidden)

    def values(self, states: Tensor) -> Tensor:
        """Values [B, L] from the trunk's last states [B, L, D]."""
        return self.value_head(states.to(self.value_head.weight.dtype)).squeeze(-1).float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the trunk as `transformers` does, and the head beside it."""
        self.trunk.save_pretrained(folder)
        save_file(self.value_head.state_dict(), Path(folder) / VALUE_HEAD_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Critic":
        critic = cls(AutoModel.from_pretrained(folder, dtype=torch.float32))
        critic.value_head.load_state_dict(load_file(Path(folder) / VALUE_HEAD_FILE))
        return critic


class HeadOnTrunk(Critic):
    """V(s) from the policy's own trunk: the value head is its only weight, so one pass gives logits and values.

    Args:
        policy: whose trunk it is.
        critic: an earlier critic; its head is taken over where its trunk is the policy's.
    """

    def __init__(self, policy: PreTrainedModel, critic: Critic | None = None):
        trunk = trunk_of(policy)
        super().__init__(trunk)
        del self._modules["trunk"]
        object.__setattr__(self, "trunk", trunk)  # no module of its own: weights are counted and trained once
        if critic is not None:
            pairs = zip(critic.trunk.parameters(), trunk.parameters(), strict=True)
            if all(torch.equal(theirs.to(ours.device), ours) for theirs, ours in pairs):
                self.value_head = critic.value_head
            else:
                warnings.warn("the critic's trunk is not the policy's: with one trunk, V(s) begins at 0", stacklevel=2)


def read_policy(name: str) -> PreTrainedModel:
    """The model in a folder or of an id; one of adapters by peft, for transformers leaves out DoRA's and whole layers.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if not is_peft_available() or find_adapter_config_file(name) is None:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    from peft import AutoPeftModelForCausalLM

    policy = AutoPeftModelForCausalLM.from_pretrained(name, dtype=torch.float32).get_base_model()
    policy.name_or_path = name
    return policy


@no_foreign_bars()
def load_policy(
    name: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Policy, in 32-bit floats, from a folder or a Hugging Face id, with its own tokenizer unless one is given.

    Raises:
        ValueError: nothing by that name can be loaded, or it is damaged, or it has no tokenizer.
    """
    try:
        policy = read_policy(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"`model`={name!r} cannot be loaded: it is no embedded world, no folder with a whole saved model, "
            f"and no reachable Hugging Face id ({str(error).splitlines()[0]})"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`model`={name!r} cannot be loaded: its weights are pickled, with code that would run when they are "
            "unpickled; take a model whose weights are safetensors"
        ) from error
    try:
        return policy, tokenizer or AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model`={name!r} has no tokenizer that can be loaded: pass `tokenizer=…`") from error


@no_foreign_bars()
def load_critic(folder: str) -> Critic | None:
    """The critic saved beside a policy in `folder`; None where there is none.

    Raises:
        ValueError: there is one, but it is damaged.
    """
    saved = Path(folder) / CRITIC_FOLDER
    if not saved.is_dir():
        return None
    try:
        return Critic.from_pretrained(saved)
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"the critic in {saved} is damaged ({error}): remove it to start a new one") from error


def has_adapters(model: nn.Module) -> bool:
    """Whether any layer of `model` is one of peft's, around another."""
    return any(
        (hasattr(module, "base_layer") and hasattr(module, "merge")) or hasattr(module, "original_module")
        for module in model.modules()
    )


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters of `model` into its weights, all of which are trained then: it is a plain model again."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    done: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        if name.startswith(done) or not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):  # a whole layer of its own
            module = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        while isinstance(module, BaseTunerLayer):  # one around another, where a layer has several weights
            module.merge()
            module = module.base_layer  # type: ignore[attr-defined]  # all of its subclasses have one
        model.set_submodule(name, module)
        done += (f"{name}.",)
    model._hf_peft_config_loaded = False  # or save_pretrained would look for adapters to save
    names = [str(conversion) for conversion in getattr(model, "_weight_conversions", None) or ()]
    if any("lora_" in name for name in names):  # those of a folder of adapters: a plain model would not find its names
        model._weight_conversions = None  # type: ignore[assignment]  # torch knows modules and tensors alone
    return model.requires_grad_(True)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` in 32-bit floats, on the CPU, with its adapters added into its weights."""
    device = model.device
    plain = copy.deepcopy(model.cpu()).float()  # a GPU that needs adapters has no room for a copy
    model.to(device)  # type: ignore[arg-type]  # as transformers wraps it, it seems to take a model
    return merge_adapters(plain)


@torch.no_grad()
def few_logits(model: PreTrainedModel) -> Tensor:
    """What `model` makes of a few tokens, to tell whether another does the same: [1, 8, V] on the CPU."""
    tokens = torch.arange(8, device=model.device)[None] % vocabulary_size(model)
    return model(input_ids=tokens, use_cache=False)[0].float().cpu()


@no_foreign_bars()
def written_and_read(model: PreTrainedModel, folder: str | Path | None = None) -> PreTrainedModel:
    """`model` as a save followed by a load gives it, by way of a folder of its own below `folder`."""
    for left_over in Path(folder).glob(f"{WRITTEN_ASIDE}*") if folder else ():
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=WRITTEN_ASIDE, dir=folder) as aside:
        model.save_pretrained(aside)
        return type(model).from_pretrained(aside, dtype=torch.float32).eval()


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy as it is now, which never takes a gradient."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


@no_foreign_bars()
def save_models(
    folder: str | Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, critic: Critic
) -> None:
    """Write policy, tokenizer and critic so that `AutoModelForCausalLM.from_pretrained(folder)` works.

    All is written aside first and then moved, file by file: a save that fails leaves the last one as it was.
    """
    folder = Path(folder).expanduser().resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{folder.name}{WRITTEN_ASIDE}"
    for left_over in folder.parent.glob(f"{glob.escape(mine)}*"):  # of a process that was killed while it saved
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=mine, dir=folder.parent) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        policy.save_pretrained(new)
        tokenizer.save_pretrained(new)
        critic.save_pretrained(new / CRITIC_FOLDER)
        files = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        try:
            for file in files:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    _keep(target, old / file)
                (new / file).replace(target)
        except BaseException:
            for file in files:
                if (old / file).exists():
                    (old / file).replace(folder / file)
                elif not (new / file).exists():
                    (folder / file).unlink()
            raise


def _keep(file: Path, name: Path) -> None:
    """Let the content of `file` have another name too, so that it outlives what is put in its place."""
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, name)
    except OSError:  # not every disk has links
        shutil.copyfile(file, name)


def settle_positions(model: nn.Module, longest: int) -> bool:
    """Keep one set of rotations for texts of up to `longest` tokens, where a model has another for longer texts.

    longrope takes its long factors for a whole batch once one text in it is longer than the model was first trained
    on: in the middle of a response, and for other texts in each minibatch, so that old and new probabilities would not
    compare. Where `longest` is beyond that length, long factors are taken for all texts. Returns whether this was done.
    """
    switched = False
    module: Any  # what rotates has a configuration and frequencies, in whichever class
    for module in model.modules():
        if getattr(module, "rope_type", None) != "longrope":
            continue
        switch = module.config.rope_parameters["original_max_position_embeddings"]
        if longest > switch:
            some = torch.zeros(1, 1, 1, device=module.inv_freq.device)
            module(some, torch.full((1, 1), switch, device=some.device))  # it switches at such a position
            module.rope_type = "longrope, long factors"
            switched = True
    return switched


def allowed_inexactness(model: PreTrainedModel) -> float:
    """Nats per token by which two ways to compute a log-probability may differ: rounding, in the precision in use."""
    precisions = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    kind = model.device.type
    if torch.is_autocast_enabled(kind):
        precisions.add(torch.get_autocast_dtype(kind))
    return max(1e-3, 16 * max(torch.finfo(precision).eps for precision in precisions))


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the input embedding, V."""
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.shape[0]


def context_length(model: PreTrainedModel) -> float:
    """The most tokens that `model` takes; infinite where its configuration names no limit."""
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")]
    for name, module in model.named_modules():  # RoBERTa's family counts positions from behind that of padding
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits)


@torch.no_grad()
def check_causal_decoder(policy: PreTrainedModel) -> None:
    """Try on two short texts that `policy` is a decoder: each logit depends on earlier tokens alone, a cache is kept.

    Raises:
        ValueError: it is not; the message says what to pass instead.
    """
    name, instead = type(policy).__name__, "pass a decoder, as AutoModelForCausalLM loads them (Llama, Qwen, GPT-2 …)"
    if policy.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder with a decoder, and reads a prompt before it writes: {instead}")
    if policy.get_output_embeddings() is None or getattr(policy, "generation_config", None) is None:
        also = "; a classifier can be the `reward`" if hasattr(policy, "num_labels") else ""
        raise ValueError(f"{name} has no head that gives a logit to each next token: {instead}{also}")
    try:
        tokens = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=policy.device) % vocabulary_size(policy)
        mask = torch.ones_like(tokens)
        output = policy(**model_inputs(policy, tokens, mask), use_cache=True)
    except Exception as error:
        raise ValueError(f"{name} cannot read a text of four tokens ({error!r}): {instead}") from error
    first, second = output.logits[:, :-1].float()
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * first.abs().max().item()):
        raise ValueError(f"the logits of {name} depend on tokens that come later, as an encoder's do: {instead}")
    if not takes(policy, "past_key_values") or not hasattr(output.get("past_key_values"), "reorder_cache"):
        raise ValueError(f"{name} keeps no key-value cache, which sampling needs: {instead}")
    try:  # to go on with the second text alone, as sampling does when others have ended
        output.past_key_values.reorder_cache(torch.tensor([1], device=policy.device))
        inputs = model_inputs(policy, tokens[1:, :1], torch.cat([mask[1:], mask[1:, :1]], dim=1))
        policy(**inputs, past_key_values=output.past_key_values, use_cache=True)
    except Exception as error:
        raise ValueError(f"{name} cannot go on from its cache with some of its texts ({error!r}): {instead}") from error
    try:
        vocabulary_size(trunk_of(policy))
    except (AttributeError, NotImplementedError) as error:
        message = f"{name} has no trunk with embeddings below its head, of which a critic could be made: {instead}"
        raise ValueError(message) from error


def check_names(policy: PreTrainedModel) -> None:
    """Raise ValueError where a model read again would have weights that `policy` has not, which would be random."""
    try:
        with torch.device("meta"):
            plain = type(policy)(copy.deepcopy(policy.config)).state_dict()
    except Exception:  # a class of one's own may be made in another way
        return
    mine = policy.state_dict()
    other = [name for name, weight in plain.items() if name not in mine or mine[name].shape != weight.shape]
    if other:
        raise ValueError(
            f"the policy's weights are not those that its configuration names, so that they would not be read again: "
            f"{', '.join(other[:3])}{' …' if len(other) > 3 else ''}. Change `model.config` with the layers, undo "
            "parametrizations (torch.nn.utils.parametrize.remove_parametrizations), and merge what peft wraps"
        )


def prepare_policy(policy: PreTrainedModel) -> None:
    """Check that the policy can be trained, sampled and saved; adapters that it brings are merged into its weights.

    Raises:
        ValueError: it is no causal decoder with a key-value cache, or its weights are in half precision or all frozen.
    """
    check_causal_decoder(policy.eval())
    if has_adapters(policy):
        refusal = "the policy's adapters cannot be merged into its weights: pass a model without adapters"
        before = few_logits(policy)
        try:
            after = few_logits(written_and_read(merge_adapters(policy)))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"{refusal} ({error})") from error
        if not torch.allclose(before, after, rtol=1e-2, atol=1e-2 * before.abs().max().item()):
            raise ValueError(refusal)
        warnings.warn(
            "the policy brought adapters: they are merged into its weights, all of which are trained now (new "
            "adapters are added with v1's `lora_rank`)",
            stacklevel=3,
        )
    check_names(policy)
    if policy.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"the policy's weights are {policy.dtype}, which lose small updates: pass model.float()")
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError("all weights of the policy are frozen, nothing could be learned: model.requires_grad_(True)")
    try:
        policy.generation_config.validate(strict=True)
    except ValueError:
        policy.generation_config.do_sample = True  # sampling settings without it are refused when a model is saved


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel) -> None:
    """Check that the tokenizer fits the policy, and give it a padding token where it has none.

    Raises:
        ValueError: the tokenizer has no EOS, or more tokens than the policy has embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, so no response could ever end: set `tokenizer.eos_token`")
    if tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        raise ValueError("the tokenizer puts an EOS behind every prompt, which would end it: set add_eos_token=False")
    if len(tokenizer) > vocabulary_size(policy):
        raise ValueError(
            f"the tokenizer knows {len(tokenizer)} tokens but the policy has {vocabulary_size(policy)} embeddings: "
            "pass the tokenizer that belongs to `model`"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_same_vocabulary(policy: PreTrainedModel, other: PreTrainedModel, role: str) -> None:
    """Raise ValueError unless `other` (the "reference", say) has as many token embeddings as the policy."""
    if vocabulary_size(other) != vocabulary_size(policy):
        raise ValueError(
            f"the {role} has a vocabulary of {vocabulary_size(other)} tokens, the policy one of "
            f"{vocabulary_size(policy)}: token ids would mean different words; use a {role} of the same family"
        )


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'`device`={name!r} cannot be used here: {error}; use "auto" or "cpu"') from error
