"""Prompts: the dataset a trainer takes, and the endless stream of batches it draws from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch


class Table(Protocol):
    """What gives a column by its name: a table of `datasets`, pandas, polars, pyarrow."""

    def __getitem__(self, column: str, /) -> Any: ...


#: Texts of any length, or a table that has them in a column.
Prompts = Sequence[str] | Table


class PPODataset:
    """Prompts to respond to.

    Args:
        prompts: texts of any length, or a table (of `datasets`, pandas, polars, pyarrow), of which it takes `column`.
        column: the text column of a table.

    Raises:
        ValueError: there are no prompts, one is empty, or the column is missing.
        TypeError: a prompt is not text, or `prompts` is one string or a mapping.
    """

    def __init__(self, prompts: Prompts, column: str = "prompt"):
        if isinstance(prompts, Mapping):
            raise TypeError(f"`prompts` is a mapping of {list(prompts)}: pass one split, or one list, of it")
        texts: Any = prompts
        columns = columns_of(prompts)
        if columns is not None:
            if column not in columns:
                raise ValueError(f"the dataset has columns {columns}, not `{column}`: pass PPODataset(data, column=…)")
            texts = texts[column]
            texts = texts.to_pylist() if hasattr(texts, "to_pylist") else texts  # pyarrow's own text type
        if isinstance(texts, str):
            raise TypeError("`prompts` is one string: pass a list of strings, e.g. PPODataset([prompt])")
        self.prompts: list[str] = [] if texts is None else list(texts)
        if not self.prompts:
            raise ValueError("there are no prompts: PPODataset needs at least one")
        for index, prompt in enumerate(self.prompts):
            if not isinstance(prompt, str):
                raise TypeError(f"prompt {index} is a {type(prompt).__name__}, not text: make it a str or drop it")
            if not prompt.strip():
                raise ValueError(f"prompt {index} is empty: the policy needs at least one token to start from; drop it")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> str:
        return self.prompts[index]


def columns_of(table: Any) -> list[str] | None:
    """The names of a table's columns, under whichever name its library has them; None for what is no table."""
    for names in (getattr(table, "column_names", None), getattr(table, "columns", None)):
        if names is not None and not callable(names):
            return [str(name) for name in names]
    fields = getattr(getattr(table, "dtype", None), "names", None)  # numpy's arrays of records
    return list(fields) if fields else None


def as_dataset(data: PPODataset | Prompts) -> PPODataset:
    """Accept a `PPODataset`, a table with a column `prompt`, or a list of strings."""
    return data if isinstance(data, PPODataset) else PPODataset(data)


class PromptBatches(Iterator[list[str]]):
    """Batches of `batch_size` prompts without end, reshuffled at each pass over the data.

    A batch may span two passes, so a dataset smaller than a batch works and no prompt is ever dropped.
    """

    def __init__(self, dataset: PPODataset, batch_size: int, generator: torch.Generator):
        self.dataset, self.batch_size, self.generator = dataset, batch_size, generator
        self.waiting: list[int] = []  # prompts of this pass that are still to come

    def __next__(self) -> list[str]:
        while len(self.waiting) < self.batch_size:
            self.waiting += torch.randperm(len(self.dataset), generator=self.generator).tolist()
        batch, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        return [self.dataset[index] for index in batch]
