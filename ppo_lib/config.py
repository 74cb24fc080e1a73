"""The settings of a run: one dataclass, checked when it is made, read from and written to YAML."""

import dataclasses
import difflib
import inspect
import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, PydanticCustomError

PRESETS = Path(__file__).parent / "commands/presets"


def _no_in_yaml(value: Any) -> Any:
    """YAML reads a bare `no` as false."""
    return "no" if value is False else value


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: in 1.1, which PyYAML reads, `1e-6` is a text."""


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that `_Loader` would take for a number."""


EXPONENT = "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
_Loader.add_implicit_resolver(*EXPONENT)
_Dumper.add_implicit_resolver(*EXPONENT)


def read_yaml(text: str) -> Any:
    """Plain data from YAML; a tag that asks for code is an error."""
    return yaml.load(text, _Loader)  # noqa: S506 (a safe loader)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, an empty one included. Only plain data is read: a tag that asks for code is refused.

    Raises:
        ValueError: the file is not a YAML mapping.
    """
    try:
        settings = read_yaml(Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, not `name: value` lines")
    return settings


def write_whole(path: str | Path, text: str) -> None:
    """Write `text` to the file `path`; where that fails, what the file held before is still there."""
    path = Path(path).expanduser()
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def preset_file(name: str) -> Path:
    """The file of the preset called `name`; raises ValueError where there is none."""
    known = sorted((path.stem for path in PRESETS.glob("*.yaml")), key=lambda name: int(name.removesuffix("gb")))
    if name not in known:
        raise ValueError(f"there is no preset {name!r}: the presets are {', '.join(known)}")
    return PRESETS / f"{name}.yaml"


def preset_settings(name: str, with_replay: bool = False) -> dict[str, Any]:
    """The settings of the preset called `name`, and those of its part for replay where they are asked for."""
    settings = read_mapping(preset_file(name))
    of_replay = settings.pop("replay", {})
    return settings | of_replay if with_replay else settings


def descriptions(stage: type) -> dict[str, str]:
    """What is written behind each setting that the class `stage` itself defines: the only description of it."""
    return dict(re.findall(r"^    (\w+): [^#\n]+?  # (.+)$", inspect.getsource(stage), re.M))


def described_settings() -> list[dict[str, str]]:
    """Every setting with its default, as YAML spells it, the stage that brings it, and one line about it."""
    rows: dict[str, dict[str, str]] = {}
    for stage, settings in {"v0": PPOConfig, "v1": PPOConfigV1, "v2": ReplayConfig}.items():
        own = descriptions(settings)
        for field in dataclasses.fields(settings):
            factory = field.default_factory
            value = field.default if factory is dataclasses.MISSING else factory()
            default = value if isinstance(value, str) else json.dumps(value)
            row = rows.setdefault(field.name, {"name": field.name, "default": default, "stage": stage})
            row.setdefault("text", re.sub(r"\bNone\b", "null", own.get(field.name, "")))
            if row["default"] != default:
                row["default"] += f" ({stage}: {default})"
    return list(rows.values())


def later_stages(stage: type["PPOConfig"]) -> list[type["PPOConfig"]]:
    """The settings' classes that extend `stage`, the next one first."""
    return [later for child in stage.__subclasses__() for later in (child, *later_stages(child))]


def _at_home(value: Any) -> Any:
    """`~/runs` is in the user's home, as in a shell."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def _no_switch(value: Any) -> Any:
    """Python counts `true` as 1, which is not what someone means who writes it for a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("switch", "Input should be a number, not true or false")
    return value


Place = Annotated[str, BeforeValidator(_at_home)]  # a path, or what is looked up by name where there is none
Precision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_in_yaml)]
Tracker = Literal["console", "tensorboard", "wandb"]
Count = Annotated[int, BeforeValidator(_no_switch), Field(ge=0)]
PositiveInt = Annotated[int, BeforeValidator(_no_switch), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(_no_switch), Field(ge=0)]
PositiveFloat = Annotated[float, BeforeValidator(_no_switch), Field(gt=0)]
Fraction = Annotated[float, BeforeValidator(_no_switch), Field(ge=0, le=1)]


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
    model: Place = "reviews"  # an embedded world, a folder, or a Hugging Face id
    output_dir: Place | None = None  # where metrics.jsonl, config.yaml and the models go; None writes nothing
    seed: Count = 0  # of every random number: the same seed gives the same run
    device: str = "auto"  # "auto" takes a GPU where there is one
    total_episodes: PositiveInt = 960  # responses to generate in the whole run
    exact_check: bool = True  # compare the sampler's log-probabilities with the model's before the first update

    # the rollout
    batch_size: PositiveInt = 32  # prompts per rollout
    group_size: PositiveInt = 1  # responses sampled per prompt
    max_new_tokens: PositiveInt = 24  # T, the longest response
    temperature: PositiveFloat = 1.0  # of sampling; below 1 the likely tokens are drawn more often

    # the reward of a token
    kl_coef: NonNegative = 0.05  # β, price of one nat of KL(policy ‖ reference)
    gamma: Fraction = 1.0  # γ, discount per token
    lam: Fraction = 0.95  # λ of GAE
    whiten_advantages: bool = True  # scale the advantages of an update to mean 0 and variance 1
    bootstrap_cut: bool = False  # value a response cut off at max_new_tokens as if it went on

    # the update
    num_ppo_epochs: PositiveInt = 4  # passes over the responses of an update
    minibatch_size: PositiveInt = 32  # responses per optimiser step
    learning_rate: PositiveFloat = 1e-3  # of AdamW, for policy and critic
    max_grad_norm: PositiveFloat = 1.0  # longer gradients, of policy and critic each, are shortened to this
    cliprange: PositiveFloat = 0.2  # ε of the policy's clip
    cliprange_value: PositiveFloat = 0.2  # how far a value may move in one update
    vf_coef: NonNegative = 0.5  # weight of the value loss
    entropy_coef: NonNegative = 0.0  # weight of the entropy bonus

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_names(cls, given: Any) -> Any:
        names = given.kwargs if isinstance(given, ArgsKwargs) else given
        known = [field.name for field in dataclasses.fields(cls)]
        for name in names or ():
            if name not in known:
                raise ValueError(f"unknown setting `{name}`: {cls._hint(str(name), known)}")
        return given

    @classmethod
    def _hint(cls, name: str, known: list[str]) -> str:
        stages = reversed(later_stages(cls))  # a setting belongs to the first stage that has it
        later = {field.name: stage.__name__ for stage in stages for field in dataclasses.fields(stage)}
        if name in later:
            return f"it is one of `{later[name]}`"
        near = difflib.get_close_matches(name, [*known, *later], n=1, cutoff=0.5)
        return f"did you mean `{near[0]}`?" if near else f"known settings: {', '.join(known)}"

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.step_size > self.update_size:
            raise ValueError(
                f"`minibatch_size`={self.minibatch_size} is larger than {self._update_in_words}: lower "
                "`minibatch_size` or raise `batch_size`"
            )
        if self.total_episodes < self.rollout_size:
            raise ValueError(
                f"`total_episodes`={self.total_episodes} is less than one rollout of {self.rollout_size} responses: "
                f"raise `total_episodes` or lower `batch_size`"
            )
        return self

    @property
    def rollout_size(self) -> int:
        """Responses in a rollout."""
        return self.batch_size * self.group_size

    @property
    def update_size(self) -> int:
        """Responses that an update trains on."""
        return self.rollout_size

    @property
    def _update_in_words(self) -> str:
        return f"the rollout of batch_size * group_size = {self.batch_size * self.group_size} responses"

    @property
    def step_size(self) -> int:
        """Responses in an optimiser step."""
        return self.minibatch_size

    @property
    def num_updates(self) -> int:
        """Rollouts in the run: `total_episodes` in whole rollouts, rounded down."""
        return self.total_episodes // self.rollout_size

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read settings from a YAML mapping; names that are absent keep their defaults.

        Raises:
            ValueError: the file is not a YAML mapping, or a setting is unknown or out of range.
        """
        return pydantic.TypeAdapter(cls).validate_python(read_mapping(path))

    def to_yaml(self, path: str | Path) -> None:
        """Write every setting, defaults included. Models, rewards and prompts passed as objects are no settings."""
        write_whole(path, yaml.dump(dataclasses.asdict(self), Dumper=_Dumper, sort_keys=False))


@dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False), kw_only=True)
class PPOConfigV1(PPOConfig):
    """Settings of `ppo_lib.ppo_v1.PPOTrainer`. With the defaults, v1 does what v0 does, bit for bit.

    An *update* spans `gradient_accumulation_steps` times the responses it has in v0, and so does each optimiser
    step; only `minibatch_size` of them are in memory at a time.

    Raises:
        ValueError: as `PPOConfig`.
    """

    # data, for the command line; None takes the world's own
    train_prompts: Place | None = None  # a text file with one prompt a line, or JSON lines with a field "prompt"
    eval_prompts: Place | None = None  # held-out prompts, a file of the same kind
    reward_model: Place | None = None  # a sequence classifier with one output: a folder or a Hugging Face id

    # the learning rate, one step of its schedule an update
    lr_scheduler: str = "constant"  # a name of transformers' get_scheduler, "plateau", or a class of torch's
    lr_scheduler_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # arguments of that scheduler
    warmup_updates: Count = 0  # updates over which the learning rate rises to its height

    # the update
    policy_objective: Literal["clip", "regression"] = "clip"  # PPO's, or a pull of each ratio to exp(A/η)
    regression_scale: PositiveFloat = 0.5  # η of regression: an advantage of η asks for a ratio of e
    regression_floor: NonNegative = 0.3  # τ of regression, in nats: a token is pushed down by no more
    cliprange_high: PositiveFloat | None = None  # ε above a ratio of 1; None takes `cliprange` there too
    critic_warmup: Count = 0  # times the critic alone learns from the first rollout before the policy does
    gradient_accumulation_steps: PositiveInt = 1  # minibatches per optimiser step
    kl_stop: PositiveFloat | None = None  # end an update whose approximate KL to π_old passes this
    max_skipped_steps: PositiveInt = 5  # steps in a row with a NaN or infinite gradient before the run stops

    # the price of KL
    kl_target: PositiveFloat | None = None  # nats per response that β is steered towards; None keeps β
    kl_horizon: PositiveInt = 10_000  # responses over which β adapts

    # memory
    mixed_precision: Precision = "no"  # of the forward passes; weights stay as they are
    activation_checkpointing: bool = False  # recompute activations in the backward pass
    share_trunk: bool = False  # the critic is a value head on the policy's own trunk, not a network of its own
    response_logits_only: bool = False  # no logits for prompt tokens
    logits_chunk: PositiveInt | None = None  # response tokens whose logits exist at a time; None takes all at once
    lora_rank: PositiveInt | None = None  # train adapters of this rank instead of all weights
    lora_alpha: PositiveFloat = 32.0  # adapters are scaled by lora_alpha / lora_rank
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights that adapters leave frozen
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"  # adamw_8bit needs a GPU and the extra `eight-bit`

    # evaluation, where `train` is given held-out prompts
    eval_every: PositiveInt = 5  # updates from one evaluation to the next
    eval_samples: Count = 4  # prompts whose responses are kept as text
    early_stopping_patience: PositiveInt | None = None  # evaluations without a new best before the run ends
    early_stopping_min_delta: NonNegative = 0.0  # by how much a held-out score must beat the best

    # checkpoints, in output_dir/checkpoints
    save_every: PositiveInt = 10  # updates from one checkpoint to the next
    keep_last: PositiveInt = 2  # checkpoints kept, the best one excepted

    # logs; metrics.jsonl is always written to output_dir
    report_to: list[Tracker] = dataclasses.field(default_factory=list)  # any of console, tensorboard, wandb
    project: str = "ppo"  # name of the project at Weights & Biases and in TensorBoard
    wandb_mode: Literal["offline", "online"] = "offline"  # offline needs no account; `wandb sync` uploads later

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.frozen_dtype != "float32" and not self.lora_rank:
            raise ValueError(f"`frozen_dtype`={self.frozen_dtype!r} needs frozen weights: set `lora_rank`, 16 say")
        for name in ("tensorboard", "wandb"):
            if name in self.report_to and not self.output_dir:
                raise ValueError(f"`report_to` names {name}, which writes to `output_dir`: set it")
        return self

    @property
    def rollout_size(self) -> int:
        return self.batch_size * self.group_size * self.gradient_accumulation_steps

    @property
    def step_size(self) -> int:
        return self.minibatch_size * self.gradient_accumulation_steps

    @property
    def num_evaluations(self) -> int:
        """Evaluations of a run with held-out prompts: before the first update, every `eval_every`, after the last."""
        return 1 + math.ceil(self.num_updates / self.eval_every)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """The settings for a GPU of some size, "8gb", "16gb" or "32gb", with `settings` over them.

        Raises:
            ValueError: there is no such preset, or a setting is wrong.
        """
        return cls(**(preset_settings(name, with_replay=issubclass(cls, ReplayConfig)) | settings))


@dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False), kw_only=True)
class ReplayConfig(PPOConfigV1):
    """Settings of `ppo_lib.ppo_v2.PPOTrainerWithReplay`. With `use_replay_buffer=False`, v2 does what v1 does.

    An update trains on one fresh rollout and on `replay_sample_size` responses of earlier ones, mixed.
    `ReplayConfig.preset` gives sizes for the buffer as well; with "8gb" replay is off until `use_replay_buffer=True`.

    Raises:
        ValueError: as `PPOConfig`.
    """

    # shape and rate of an update, measured on four tasks (benchmarks/replay_study.md)
    batch_size: PositiveInt = 16  # prompts per rollout, fewer than without replay
    minibatch_size: PositiveInt = 32  # responses per optimiser step, fresh and replayed ones
    learning_rate: PositiveFloat = 5e-4  # twice as many steps for a response as without replay, half as long each

    # the buffer
    use_replay_buffer: bool = True  # false makes v2 do what v1 does
    replay_buffer_size: PositiveInt = 1000  # responses that the buffer has room for
    replay_sample_size: Count = 16  # responses replayed in an update
    max_replay_reuse: PositiveInt = 8  # times a response is replayed before it is retired
    staleness_threshold: PositiveInt = 16  # updates after which a response expires
    replay_anneal: Fraction = 0.0  # last share of the run, in which replay fades to zero

    # how fresh responses are sampled
    behaviour_temperature: PositiveFloat | None = None  # while scores are low; None samples at `temperature`
    behaviour_cooling: PositiveFloat = 0.3  # rise of the mean score over which it cools down to `temperature`

    # which responses are replayed
    replay_recency: PositiveFloat | None = 4.0  # τ in updates: weight exp(−age/τ); None draws evenly
    replay_priority: NonNegative = 0.0  # α: weight |score − mean score|^α
    replay_priority_correction: Fraction = 1.0  # β of prioritised replay, for α > 0
    replay_keep_best: Fraction = 0.0  # share of the buffer kept for the highest scores
    replay_spacing: Count = 0  # updates from a use of a response, or its sampling, to the next

    # how a replayed response is corrected for the policy that sampled it
    correction: Literal["decoupled", "coupled", "none"] = "decoupled"  # decoupled weighs by π_k/μ, coupled clips at μ
    importance_level: Literal["token", "sequence"] = "token"  # whether a weight is of a token or of a response
    importance_cap: PositiveFloat = 2.0  # C, most that a token may weigh
    trace_cap: PositiveFloat = 1.0  # c̄, most that an advantage reaches back per token
    replay_gains_only: bool = False  # replayed tokens teach only where their advantage is positive
    second_moment_limit: PositiveFloat | None = None  # mean of (log π_k/μ)² over the tokens that are kept

    # when replay is left out
    min_ess: Fraction = 0.1  # effective sample size of the weights, as a share of the replayed tokens
    max_replay_kl: PositiveFloat | None = 1.0  # nats per token between μ and π_k; further responses are dropped

    @model_validator(mode="after")
    def _check_replay(self) -> Self:
        if not self.use_replay_buffer:
            return self
        size, kept = self.replay_buffer_size, self.replay_keep_best
        if size < self.rollout_size:
            raise ValueError(
                f"`replay_buffer_size`={size} has no room for one rollout of {self.rollout_size} responses: raise it"
            )
        if self.replay_sample_size > size:
            raise ValueError(
                f"`replay_sample_size`={self.replay_sample_size} is more than the buffer can hold: lower it, or raise "
                f"`replay_buffer_size`={size}"
            )
        if kept == 1:
            raise ValueError(
                "`replay_keep_best`=1 keeps everything, so nothing would expire by `staleness_threshold`: lower it"
            )
        if kept and int(kept * size) == 0:
            raise ValueError(
                f"`replay_keep_best`={kept} of `replay_buffer_size`={size} is less than one response: raise either"
            )
        if self.replay_spacing > self.staleness_threshold:
            raise ValueError(
                f"with `replay_spacing`={self.replay_spacing} a response expires before it may be replayed: lower it, "
                f"or raise `staleness_threshold`={self.staleness_threshold}"
            )
        hot = self.behaviour_temperature
        if hot is not None and hot <= self.temperature:
            raise ValueError(f"`behaviour_temperature`={hot} is not above `temperature`={self.temperature}: raise it")
        if hot is not None and self.correction != "decoupled":
            raise ValueError(
                f"`correction`={self.correction!r} takes the hot policy of `behaviour_temperature` for the cool one: "
                "set 'decoupled'"
            )
        if self.correction == "decoupled" and self.importance_cap < 1:
            raise ValueError(
                f"`importance_cap`={self.importance_cap} would take weight from fresh responses too, whose ratio is 1: "
                "raise it to 1 or more"
            )
        return self

    @property
    def update_size(self) -> int:
        return self.rollout_size + (self.replay_sample_size if self.use_replay_buffer else 0)

    @property
    def _update_in_words(self) -> str:
        if not self.use_replay_buffer:
            return super()._update_in_words
        parts = self.gradient_accumulation_steps
        among = f", divided by gradient_accumulation_steps = {parts}" if parts > 1 else ""
        return f"an update of {self.rollout_size} fresh and {self.replay_sample_size} replayed responses{among}"


REPLAY_SETTINGS = frozenset(f.name for f in dataclasses.fields(ReplayConfig)) - frozenset(
    f.name for f in dataclasses.fields(PPOConfigV1)
)
