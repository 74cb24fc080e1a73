"""What a path on the command line names: a run, a checkpoint or saved weights; and what to say where it is none."""

import difflib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from ppo_lib.running.checkpoint import MANIFEST, PREFIX, checkpoints

PROGRAM = "python -m ppo_lib"


def in_shell(*words: str | Path) -> str:
    """The command of this program that `words` are."""
    return f"{PROGRAM} {shlex.join(map(str, words))}"


def did_you_mean(word: str, known: Iterable[str], mark: str = ":", cutoff: float = 0.6) -> str:
    """`: did you mean …?` with the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"{mark} did you mean {near[0]}?" if near else ""


def siblings(path: Path) -> list[str]:
    """The paths beside `path`, which is not there itself."""
    return [str(path.parent / other.name) for other in path.absolute().parent.glob("[!.]*")]


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint's folder, whole or not."""
    return (path / MANIFEST).exists() or (path.is_dir() and path.resolve().name.startswith(PREFIX))


def run_of(path: Path) -> Path:
    """The folder of the run that the checkpoint `path` is of; of a copy that stands alone, the folder it is in."""
    parent = path.resolve().parent
    run = parent.parent if parent.name == "checkpoints" else parent
    return Path(os.path.relpath(run)) if not path.is_absolute() and run.is_relative_to(Path.cwd()) else run


def existing_folder(name: str, sought: str) -> Path:
    """`name` as a folder that exists; the folder `checkpoints` of a run is the run.

    Raises:
        ValueError: there is none; the message begins with `sought`, what is looked for there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return run_of(path / "x") if path.resolve().name == "checkpoints" and checkpoints(path) else path
    if not path.exists():
        near = did_you_mean(str(path), siblings(path), ";")
        raise ValueError(f"there is no {sought} in {path}: no such folder{near}")
    start = path.suffix in (".yaml", ".yml")
    fix = f"a run is begun with: {in_shell('train', path)}" if start else "name the folder"
    raise ValueError(f"there is no {sought} in {path}: it is a file, not a folder; {fix}")


def to_resume(name: str) -> Path:
    """The run or the checkpoint that `name` names, to go on from.

    Raises:
        ValueError: it names none; the message says what is there instead, and what can be done with it.
    """
    path = existing_folder(name, "whole checkpoint")
    if is_checkpoint(path) or checkpoints(path / "checkpoints"):
        return path
    if (path / "config.json").exists():
        fix = f"it holds saved weights; begin a run from them: {in_shell('train', '--set', f'model={path}')}"
        if checkpoints(path.resolve().parent / "checkpoints"):
            fix += f", or go on with their run: {in_shell('resume', run_of(path / 'checkpoints/x').parent)}"
    elif (path / "model" / "config.json").exists():
        fix = "the run kept no checkpoints (v0 keeps none); begin another from its weights: " + in_shell(
            "train", "--set", f"model={path / 'model'}"
        )
    elif runs := [run.name for run in sorted(path.iterdir()) if checkpoints(run / "checkpoints")]:
        fix = f"it holds the runs {', '.join(runs[-5:])}: name one of them"
    else:
        fix = "name the `output_dir` of a run, or one of the folders in its checkpoints/"
    raise ValueError(f"there is no whole checkpoint in {path / 'checkpoints'}: {fix}")


def to_judge(name: str) -> Path | str:
    """The run, the checkpoint or the folder of weights that `name` names; else `name`, as of a world or a model's id.

    Raises:
        ValueError: it is a file, a folder that holds none of them, or not there in a folder that is.
    """
    path = Path(name).expanduser()
    if not path.exists() and not (len(path.parts) > 1 and path.parent.is_dir()):
        return name
    path = existing_folder(name, "model")
    if is_checkpoint(path) or checkpoints(path / "checkpoints") or (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return path / "model"
    raise ValueError(f"there is no model in {path}: it holds no checkpoints/, no model/ and no config.json")


def check_output_dir(place: str) -> None:
    """Raise ValueError where a new run cannot write to `place`: it holds a run, is no folder, or may not be written."""
    folder, said = Path(place), f"`output_dir`={place!r}"
    if holds_run(folder):
        raise ValueError(
            f"{said} holds an earlier run: go on with it by {in_shell('resume', place)}, or choose another folder with "
            "--set output_dir=…"
        )
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"{said} cannot be made: {nearest} is a file; choose a folder with --set output_dir=…")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{said} cannot be written: no permission in {nearest}; choose another folder with --set")


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (folder / "metrics.jsonl").exists() or bool(checkpoints(folder / "checkpoints"))


def settings_file(path: str | Path) -> Path:
    """`path` as a file of settings that exists; raises ValueError, with what may be meant, where it is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        fix = f"; to go on with its run: {in_shell('resume', path)}" if holds_run(path) else ""
        fix = fix or (f"; to train that model: --set model={path}" if (path / "config.json").exists() else "")
        raise ValueError(f"{path} is a folder, and a YAML file of settings is needed{fix}")
    if path.exists():
        return path
    raise ValueError(f"there is no file of settings {str(path)!r}{_meant_by(path)}")


def _meant_by(path: Path) -> str:
    from ppo_lib.config import PRESETS
    from ppo_lib.worlds import NAMES

    if "=" in path.name:
        return f": did you mean --set {shlex.quote(str(path))}?"
    if (PRESETS / f"{path}.yaml").exists():
        return f": did you mean --preset {path}?"
    if str(path) in NAMES:
        return f": did you mean --set model={path}?"
    return did_you_mean(str(path), siblings(path))
