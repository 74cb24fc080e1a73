"""The front page's scene: policy, reward, critic and reference around one text, in a run that can be played.

What is drawn here is the end of the run, which is what a reader without JavaScript sees; `front-page.js` plays it.
"""

import html
import json

from ppo_lib.lab import stored

RUN = "front_page"
LOWEST, HIGHEST = -0.5, 2.0  # of the curve's scale
DRIFT = 10.0  # nats at which the tie between policy and reference is taut

HEAD = '<circle class="head" cx="38" cy="46" r="27"/>'
EYES = '<circle class="ink" cx="29" cy="41" r="3"/><circle class="ink" cx="47" cy="41" r="3"/>'
CLOSED = '<path class="line" d="M24 41q5 5 10 0M42 41q5 5 10 0"/>'
SMILE = '<path class="line" d="M28 55q10 9 20 0"/>'
SPRING = "M0 0q26 3 0 6.3" + "t0 6.3" * 6
FLAT = '<path class="line" d="M30 58h16"/>'
MOOD = '<g class="mood"><path class="line" d="M27 57q11 14 22 0"/></g>'
PENCIL = '<path class="tool" d="M74 70l4-14 26-34 10 8-26 34z"/><path class="line" d="M78 56l10 8M74 70l7-3"/>'
FLAKE = (
    '<path class="line" d="M92 22v40M75 32l34 20M109 32l-34 20M87 26l5 5 5-5M87 58l5-5 5 5M76 40l7-2-2-7'
    'M108 40l-7-2 2-7M76 44l7 2-2 7M108 44l-7 2 2 7"/>'
)
CARD = '<rect class="tool" x="68" y="22" width="67" height="34" rx="5"/><path class="line" d="M101 56v22"/>'
BUBBLE = (
    '<rect class="tool" x="72" y="10" width="60" height="34" rx="17"/>'
    '<circle class="tool" cx="72" cy="50" r="4"/><circle class="tool" cx="66" cy="57" r="2.5"/>'
)
GLASSES = '<path class="line" d="M20 41a8 8 0 1 0 16 0a8 8 0 1 0 -16 0M40 41a8 8 0 1 0 16 0a8 8 0 1 0 -16 0M36 41h4"/>'

WHO = {
    "policy": (
        HEAD + EYES + SMILE + PENCIL,
        "01_text_as_decisions",
        "is the model in training: it writes the text, one token after the other.",
        "",
    ),
    "reward": (
        HEAD + EYES + MOOD + CARD + '<text class="number" x="101" y="45" data-show="score">{score}</text>',
        "02_rewards",
        "reads the finished text and gives it one number, the score.",
        "",
    ),
    "critic": (
        HEAD + EYES + GLASSES + FLAT + BUBBLE + '<text class="number" x="102" y="33" data-show="guess">{guess}</text>',
        "04_advantages",
        "guesses the score beforehand: what beats the guess is made likelier, what falls short less likely.",
        '<span data-show="surprise">{surprise}</span>',
    ),
    "reference": (
        HEAD + CLOSED + FLAT + FLAKE,
        "03_rollouts",
        "is the policy as it was before training, frozen: drifting away from it costs score.",
        'Drift (KL): <span data-show="kl">{kl}</span> nats',
    ),
}


def content() -> dict:
    """What the scene plays: mean score and KL by update, and each shown prompt's responses with score and guess."""
    run = stored.load(f"{RUN}/run.json")
    updates = [[round(row["score"], 2), round(row["kl"], 2)] for row in stored.load(f"{RUN}/updates.csv")]
    answers: dict = {prompt: [] for prompt in run["shown"]}
    for row in stored.load(f"{RUN}/responses.csv"):
        answers[row["prompt"]].append([row["response"], round(row["score"], 2), round(row["guess"], 2)])
    scale = {"lowest": LOWEST, "highest": HIGHEST, "drift": DRIFT}
    return {"updates": updates, "answers": answers, "prompts": run["prompts"], "scale": scale}


def number(value: float) -> str:
    """Two digits after the point, and a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def surprise(score: float, guess: float) -> str:
    """What the difference between score and guess means for this text."""
    above = round(score - guess, 2)
    if above == 0:
        return "As guessed"
    return f"{number(abs(above))} {'above' if above > 0 else 'below'} guess"


def figure(run: dict) -> str:
    """The scene as HTML, at the end of the run, with all of the run inside."""
    updates, answers, scale = run["updates"], run["answers"], run["scale"]
    last = len(updates) - 1
    mean, kl = updates[-1]
    prompt, looks = next(iter(answers.items()))
    (_, before, _), (_, score, guess) = looks[0], looks[-1]
    shown = {"score": number(score), "guess": number(guess), "kl": f"{kl:.1f}", "surprise": surprise(score, guess)}
    look = {
        "mood": max(-1.0, min(1.0, score / scale["highest"])),
        "slack": 1 - kl / scale["drift"],
        "at": 1,
        "height": height(mean),
    }
    style = "; ".join(f"--{name}: {value:.3f}" for name, value in look.items())
    data = json.dumps(run, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    options = "".join(f"<option>{html.escape(words)}</option>" for words in answers)
    firsts = [words + looks[0][0] for words, looks in answers.items()]
    texts = [words + text for words, looks in answers.items() for text, *_ in looks]
    return f"""<figure class="scene" role="group" aria-label="The loop of PPO" style="{style}"><div class="scene-grid">
<div class="paper">
<p class="prompt"><label for="scene-prompt">Prompt</label> <select id="scene-prompt">{options}</select></p>
{answer("before", "Before training", prompt, looks[0][0], number(before), max(firsts, key=len))}
{answer("now", f"After {last} updates", prompt, looks[-1][0], number(score), max(texts, key=len))}
<p class="buttons"><button type="button" class="play">Train</button><button type="button" class="step">Step</button>
<input type="range" min="0" max="{last}" value="{last}" aria-label="Update"></p>
<p class="calm">Your system asks for less motion: Train goes five updates at a time.</p>
<p class="said" role="status"></p>
</div>
<div class="learn">
<p class="when">Mean over {run["prompts"]} unseen prompts</p>
<p>score <b data-show="mean">{number(mean)}</b> · KL <b data-show="kl">{kl:.1f}</b></p>
{curve(updates)}
</div>
{"".join(character(name, shown) for name in WHO)}
{arrow("writes", "0 0 32 24", "M2 12h24")}
{arrow("read", "0 0 32 24", "M2 12h24")}
{arrow("compared", "0 0 24 40", "M12 2v32")}
<p class="hint">Each update changes the policy a little.</p>
{arrow("push", "0 0 32 40", "M30 38L6 6")}
{arrow("informs", "0 0 32 24", "M30 12H6")}
<svg class="tie" viewBox="-14 0 28 44" aria-hidden="true"><path d="{SPRING}"/></svg>
<script type="application/json">{data}</script>
</div></figure>"""


def answer(kind: str, when: str, prompt: str, text: str, score: str, longest: str) -> str:
    """A text with its score; what is not seen of it keeps room for the longest one."""
    return (
        f'<div class="answer {kind}"><p class="when">{when}</p><p class="score"><small>score</small> '
        f'<b>{score}</b></p><p class="text"><span><i>{html.escape(prompt)}</i><q>{html.escape(text)}</q></span>'
        f'<span class="room" aria-hidden="true">{html.escape(longest)}</span></p></div>'
    )


def character(name: str, shown: dict[str, str]) -> str:
    drawing, chapter, words, extra = WHO[name]
    return (
        f'<section class="who {name}"><svg viewBox="0 0 136 84" width="136" height="84" aria-hidden="true">'
        f'{drawing.format(**shown)}</svg><p>The <a href="../chapters/{chapter}.html">{name}</a> {words}</p>'
        f'<p class="extra">{extra.format(**shown)}</p></section>'
    )


def arrow(name: str, box: str, path: str) -> str:
    width, high = box.split()[2:]
    return (
        f'<svg class="arrow {name}" viewBox="{box}" width="{width}" height="{high}" aria-hidden="true"><defs>'
        f'<marker id="tip-{name}" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs><path d="{path}" marker-end="url(#tip-{name})"/></svg>'
    )


def height(score: float) -> float:
    """Where a mean score stands on the curve's scale, from 0 to 1."""
    return (score - LOWEST) / (HIGHEST - LOWEST)


def curve(updates: list) -> str:
    """The mean score by update: all of it pale, and what has been played."""
    step = 300 / (len(updates) - 1)
    line = "M" + "L".join(f"{at * step:.1f} {100 - 100 * height(mean):.1f}" for at, (mean, _) in enumerate(updates))
    ticks = "".join(
        f'<span class="tick" style="bottom: {100 * height(score):.0f}%">{score}</span>' for score in (0, 1, 2)
    )
    grid = "".join(f'<path class="grid" d="M0 {100 - 100 * height(score):.1f}h300"/>' for score in (0, 1, 2))
    ends = number(updates[0][0]), number(updates[-1][0])
    words = f"Curve of the mean score over {len(updates) - 1} updates: from {ends[0]} to {ends[1]}"
    return (
        f'<div class="curve" role="img" aria-label="{words}"><svg viewBox="0 0 300 100" preserveAspectRatio="none">'
        f'{grid}<path class="whole" d="{line}"/><path class="played" d="{line}"/></svg>{ticks}<span class="dot"></span>'
        f'</div><p class="axis"><span>0</span><span>{len(updates) - 1} updates</span></p>'
    )
