"""The settings of a run: one dataclass, checked when it is made, read from and written to YAML."""

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated

import pydantic
import yaml
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False), kw_only=True)
class PPOConfig:
    """Settings of `ppo_lib.ppo.PPOTrainer`. Defaults suit the embedded world `reviews`.

    Names follow TRL's PPO where it has one. An *episode* is one sampled response; an *update* is one
    rollout of `batch_size * group_size` responses followed by `num_ppo_epochs` passes over it.

    Raises:
        ValueError: a setting is unknown (the nearest known name is given), has the wrong type or range,
            or contradicts another setting.
    """

    # the run
    model: str = "reviews"  # an embedded world, a folder, or a Hugging Face id
    output_dir: str | None = None  # where metrics.jsonl, config.yaml and the models go; None writes nothing
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"  # "auto" takes a GPU where there is one
    total_episodes: PositiveInt = 960  # responses to generate in the whole run

    # the rollout
    batch_size: PositiveInt = 32  # prompts per rollout
    group_size: PositiveInt = 1  # responses sampled per prompt
    max_new_tokens: PositiveInt = 24  # T, the longest response
    temperature: PositiveFloat = 1.0

    # the reward of a token
    kl_coef: NonNegative = 0.05  # β, price of one nat of KL(policy ‖ reference)
    gamma: Fraction = 1.0  # γ, discount per token
    lam: Fraction = 0.95  # λ of GAE
    whiten_advantages: bool = True
    bootstrap_cut: bool = False  # value a response cut off at max_new_tokens as if it went on

    # the update
    num_ppo_epochs: PositiveInt = 4
    minibatch_size: PositiveInt = 32  # responses per optimiser step
    learning_rate: PositiveFloat = 1e-3
    max_grad_norm: PositiveFloat = 1.0
    cliprange: PositiveFloat = 0.2  # ε of the policy's clip
    cliprange_value: PositiveFloat = 0.2  # how far a value may move in one update
    vf_coef: NonNegative = 0.5  # weight of the value loss
    entropy_coef: NonNegative = 0.0  # weight of the entropy bonus

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_names(cls, given):
        names = given.kwargs if isinstance(given, ArgsKwargs) else given
        known = [field.name for field in dataclasses.fields(cls)]
        for name in names or ():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f"did you mean `{near[0]}`?" if near else f"known settings: {', '.join(known)}"
                raise ValueError(f"unknown setting `{name}`: {hint}")
        return given

    @model_validator(mode="after")
    def _check_sizes(self):
        responses = self.batch_size * self.group_size
        if self.minibatch_size > responses:
            raise ValueError(
                f"`minibatch_size`={self.minibatch_size} is larger than the rollout of batch_size * group_size = "
                f"{responses} responses: lower `minibatch_size` or raise `batch_size`"
            )
        if self.total_episodes < responses:
            raise ValueError(
                f"`total_episodes`={self.total_episodes} is less than one rollout of {responses} responses: "
                f"raise `total_episodes` or lower `batch_size`"
            )
        return self

    @property
    def num_updates(self) -> int:
        """Rollouts in the run: `total_episodes` in whole rollouts, rounded down."""
        return self.total_episodes // (self.batch_size * self.group_size)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "PPOConfig":
        """Read settings from a YAML mapping; names that are absent keep their defaults.

        Raises:
            ValueError: the file is not a YAML mapping, or a setting is unknown or out of range.
        """
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if settings is None:  # an empty file: all defaults
            settings = {}
        if not isinstance(settings, dict):
            raise ValueError(f"{path} holds a {type(settings).__name__}, not `name: value` lines")
        return pydantic.TypeAdapter(cls).validate_python(settings)

    def to_yaml(self, path: str | Path) -> None:
        """Write every setting, defaults included. Models, rewards and prompts passed as objects are no settings."""
        Path(path).write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False), encoding="utf-8")
