"""Which decoder a policy is sampled with."""

from transformers import PreTrainedModel

from ppo_lib.sampling.decoding import Decoder, LlamaDecoder
from ppo_lib.sampling.graphs import GraphDecoder


def decoder_for(policy: PreTrainedModel) -> type[Decoder]:
    """The fastest decoder that `policy` can have."""
    if not LlamaDecoder.fits(policy):
        return Decoder
    return GraphDecoder if GraphDecoder.fits(policy) else LlamaDecoder
