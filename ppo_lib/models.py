"""The networks: policy (any causal language model), critic (its trunk with a value head), frozen reference."""

import copy
import inspect
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CRITIC_FOLDER = "critic"
VALUE_HEAD_FILE = "value_head.safetensors"


def model_inputs(model: nn.Module, tokens: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Arguments of `model.forward` for `tokens` [B, L], the last L places of left-padded `attention_mask` [B, L' ≥ L].

    The first real token of a row has position 0.
    """
    inputs = {"input_ids": tokens, "attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    return inputs


class Critic(nn.Module):
    """V(s): the trunk of a language model with a linear value head, which starts at V = 0."""

    def __init__(self, trunk: PreTrainedModel):
        super().__init__()
        self.trunk = trunk
        self.value_head = nn.Linear(trunk.config.get_text_config().hidden_size, 1, dtype=trunk.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> "Critic":
        """A critic that starts from a copy of the policy's trunk and shares no weights with it."""
        return cls(copy.deepcopy(policy.base_model)).to(policy.device)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """`tokens` [B, L] → values [B, L]; the value at i is that of the text up to and including token i."""
        hidden = self.trunk(**model_inputs(self.trunk, tokens, attention_mask), use_cache=False).last_hidden_state
        return self.value_head(hidden).squeeze(-1).float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the trunk as `transformers` does, and the head beside it."""
        self.trunk.save_pretrained(folder)
        save_file(self.value_head.state_dict(), Path(folder) / VALUE_HEAD_FILE)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Critic":
        critic = cls(AutoModel.from_pretrained(folder))
        critic.value_head.load_state_dict(load_file(Path(folder) / VALUE_HEAD_FILE))
        return critic


def load_policy(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Policy and tokenizer from a folder or a Hugging Face id.

    Raises:
        ValueError: nothing by that name can be loaded.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"`model`={name!r} cannot be loaded: it is no embedded world, no folder with a saved model, "
            f"and no reachable Hugging Face id ({str(error).splitlines()[0]})"
        ) from error


def load_critic(folder: str, policy: PreTrainedModel) -> Critic:
    """The critic saved beside a policy in `folder`; a new one from the policy's trunk where there is none."""
    saved = Path(folder) / CRITIC_FOLDER
    return Critic.from_pretrained(saved) if saved.is_dir() else Critic.from_policy(policy)


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy as it is now, which never takes a gradient."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


def save_models(
    folder: str | Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, critic: Critic
) -> None:
    """Write policy, tokenizer and critic so that `AutoModelForCausalLM.from_pretrained(folder)` works."""
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    critic.save_pretrained(Path(folder) / CRITIC_FOLDER)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the input embedding, V."""
    return model.get_input_embeddings().num_embeddings


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel) -> None:
    """Check that the tokenizer fits the policy, and give it a padding token where it has none.

    Raises:
        ValueError: the tokenizer has no EOS, or more tokens than the policy has embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, so no response could ever end: set `tokenizer.eos_token`")
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
        raise ValueError(f"`device`={name!r} cannot be used here: {error}; use \"auto\" or \"cpu\"") from error
