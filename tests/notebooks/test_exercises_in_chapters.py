"""Each exercise has a hint, a stub that its own check does not accept, and a solution that the same check accepts."""

import ast
import re

import cells

STEPS = {"exercise", "exercise-check", "exercise-solution"}
RHYTHM = ["exercise", "exercise-check", "exercise-solution", "exercise-check"]


def steps(notebook) -> list:
    return [cell for cell in cells.code(notebook) if STEPS & cells.tags(cell)]


def exercises(notebook) -> list[list]:
    """The four cells of each exercise: stub, check, solution, check."""
    found = steps(notebook)
    return [found[start : start + 4] for start in range(0, len(found), 4)]


def kind(cell) -> str:
    return next(iter(STEPS & cells.tags(cell)))


def printed(cell) -> str:
    texts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(texts)


def names(source: str) -> set[str]:
    """What a cell's top level defines or assigns."""
    found = set()
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [])
        found |= {node.name} if hasattr(node, "name") else {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def test_chapter_has_exercises_in_order(chapter, notebook):
    found = exercises(notebook)
    assert found, f"{chapter.stem} has no exercise"
    for number, four in enumerate(found, 1):
        rhythm = [kind(cell) for cell in four]
        assert rhythm == RHYTHM, f"{chapter.stem}, exercise {number}: the cells are {rhythm}"


def test_solution_is_hidden_and_redefines_the_stub(chapter, notebook):
    for number, (stub, _, solution, _) in enumerate(exercises(notebook), 1):
        assert "hide-cell" in cells.tags(solution), f"{chapter.stem}, exercise {number}: the solution is in plain sight"
        asked, given = names(stub.source), names(solution.source)
        assert asked and asked <= given, f"{chapter.stem}, exercise {number}: asks for {asked}, the solution is {given}"


def test_every_exercise_has_a_hint_before_its_solution(chapter, notebook):
    text = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text += cell.source
        elif "exercise-solution" in cells.tags(cell):
            assert re.search(r"<details>\s*<summary>Hint", text), f"{chapter.stem}: no hint before\n{cell.source}"
            text = ""


def test_check_refuses_the_stub_and_accepts_the_solution(chapter, executed):
    for number, (_, first, _, second) in enumerate(exercises(executed), 1):
        assert "Not yet" in printed(first), f"{chapter.stem}, exercise {number}: the stub gets {printed(first)!r}"
        assert "Passed" not in printed(first), f"{chapter.stem}, exercise {number}: the stub passes"
        assert "Passed" in printed(second), f"{chapter.stem}, exercise {number}: the solution gets {printed(second)!r}"
        assert "Not yet" not in printed(second), f"{chapter.stem}, exercise {number}: the solution is refused"
