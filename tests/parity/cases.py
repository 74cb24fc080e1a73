"""Random rollouts of many shapes, for comparing `ppo_lib` with other libraries. Needs torch alone."""

from types import SimpleNamespace

import torch

SEEDS = range(8)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def case(seed: int) -> SimpleNamespace:
    """B, T between 2 and 9; responses of different lengths; the tensors named as in `ppo_lib.rollout.Rollout`."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = (int(n) for n in torch.randint(2, 10, (2,), generator=generator))
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(width)[None] < lengths[:, None]
    logprobs = -noise(rows, width).abs()
    return SimpleNamespace(
        mask=mask,
        ended=torch.ones(rows, dtype=torch.bool),
        logprobs=logprobs,
        new_logprobs=logprobs + 0.3 * noise(rows, width),
        ref_logprobs=logprobs + 0.5 * noise(rows, width),
        values=noise(rows, width + 1) * torch.nn.functional.pad(mask, (0, 1)),
        new_values=noise(rows, width),
        rewards=noise(rows, width) * mask,
        scores=noise(rows),
        gamma=float(0.9 + 0.1 * torch.rand(1, generator=generator)),
        lam=float(torch.rand(1, generator=generator)),
    )


def assert_same(mine, theirs, what: str) -> None:
    """Fail unless the two agree to 1e-5."""
    torch.testing.assert_close(mine, theirs, **TOLERANCE, msg=lambda text: f"{what} differs from the peer's\n{text}")
